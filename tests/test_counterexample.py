"""Counterexamples survive a round trip exactly, and anything else in the file is refused."""

import json

import numpy as np
import pytest
import torch

import attackcheck as ac
from attackcheck import InputError, Kind, Verdict
from attackcheck.attacks.plans import Plan, Stage
from attackcheck.counterexample import Outcome, load_counterexample, replay
from attackcheck.models import exact

PLAN = Plan("all kinds", (Stage("linearised"), Stage("lipschitz", objective="map", options={"steps": 20})))


@pytest.fixture
def broken(tmp_path):
    """A violated run: its model, claim and report."""
    model = exact.orthonormal_rows(seed=3).float()
    images = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    claim = ac.LipschitzClaim(0.9)
    report = ac.verify(model, images, claim, plan=PLAN, pixels=3, counterexamples=tmp_path / "found")
    return model, images, claim, report


def test_every_violation_has_a_file_and_every_kind_replays(broken):
    model, images, _, report = broken
    # a metric is about a data set, and gadgets need a certifier
    assert {violation.kind for violation in report.violations} == set(Kind) - {Kind.METRIC, Kind.RATE, Kind.GADGET}
    for violation in report.violations:
        example = load_counterexample(violation.counterexample)
        assert torch.equal(example.clean, images[0])
        assert (example.kind, example.pixel, example.radius) == (violation.kind, violation.pixel, violation.radius)
        again = replay(example, model)
        assert again.outcome is Outcome.REPRODUCED
        assert again.judgement.distance == violation.distance
        assert again.judgement.bound == pytest.approx(violation.radius, rel=1e-6)


def test_a_sound_claim_and_a_repaired_model_are_fixed(broken):
    model, _, _, report = broken
    for violation in report.violations:
        example = load_counterexample(violation.counterexample)
        assert replay(example, model, ac.LipschitzClaim(1.0 + 1e-6)).outcome is Outcome.FIXED
    pixel = next(v for v in report.violations if v.kind is Kind.PIXEL)
    flat = exact.affine_pixel(classes=3, seed=1).float()
    flat.weight.data.mul_(1e-3)
    assert replay(load_counterexample(pixel.counterexample), flat).outcome is not Outcome.REPRODUCED


def test_another_kind_of_model_cannot_be_checked(broken):
    model, _, _, report = broken
    example = load_counterexample(report.violations[0].counterexample)
    assert replay(example, exact.affine_pixel(channels=4).float()).outcome is Outcome.CANNOT_CHECK
    sets = next(v for v in report.violations if v.kind is Kind.SET)
    weaker = ac.LipschitzClaim(0.9, "pixel")
    assert replay(load_counterexample(sets.counterexample), model, weaker).outcome is Outcome.CANNOT_CHECK


def test_radius_claims_replay_from_the_recorded_radius(tmp_path):
    model = exact.orthonormal_rows(seed=3).float()
    images = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    radii = model.double().flip_distance(images[0].double())[None] * 1.1
    report = ac.verify(model.float(), images, ac.RadiusClaim(radii), plan="quick", pixels=2, counterexamples=tmp_path)
    assert len(report.violations) == 2
    for violation in report.violations:
        result = replay(load_counterexample(violation.counterexample), model)
        assert result.outcome is Outcome.REPRODUCED
        assert result.judgement.verdict is Verdict.VIOLATED


def rewritten(path, change):
    """The same file with its arrays and description passed through ``change``."""
    with np.load(path) as archive:
        content = {
            "clean": archive["clean"],
            "perturbed": archive["perturbed"],
            "meta": json.loads(str(archive["meta"])),
        }
    change(content)
    if "meta" in content:
        content["meta"] = json.dumps(content["meta"])
    np.savez(path, **content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["perturbed"].__setitem__((0, 0, 0), 0.25), "altered"),
        (lambda c: c["meta"].update(version=99), "version"),
        (lambda c: c["meta"].update(format="other"), "version"),
        (lambda c: c["meta"].pop("radius"), "radius"),
        (lambda c: c.pop("meta"), "meta"),
        (lambda c: c["meta"].update(kind="MAGIC"), "MAGIC"),
    ],
)
def test_an_altered_file_is_refused_in_one_sentence(broken, change, message):
    path = broken[3].violations[0].counterexample
    rewritten(path, change)
    with pytest.raises(InputError, match=message) as caught:
        load_counterexample(path)
    assert "\n" not in str(caught.value)


def test_truncated_missing_and_foreign_files_are_refused(broken, tmp_path):
    path = broken[3].violations[0].counterexample
    path.write_bytes(path.read_bytes()[:200])
    for bad in (path, tmp_path / "nothing.npz", tmp_path):
        with pytest.raises(InputError):
            load_counterexample(bad)
    pickled = tmp_path / "pickle.npz"
    np.savez(pickled, clean=np.array([{}], dtype=object), perturbed=np.zeros(1), meta="{}")
    with pytest.raises(InputError):
        load_counterexample(pickled)


def test_a_full_disk_costs_the_file_not_the_finding(broken, tmp_path):
    model, images, claim, report = broken
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    events = []
    again = ac.verify(model, images, claim, plan=PLAN, pixels=3, counterexamples=blocked, on_event=events.append)
    assert len(again.violations) == len(report.violations)
    assert all(violation.counterexample is None for violation in again.violations)
    told = [event.message for event in events if getattr(event, "code", "") == "AC112"]
    assert len(told) == 2  # of the audit's two images, and of the first violation
    assert len(set(told)) == 2
