"""Whole runs on models with closed-form distances."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import attackcheck as ac
from attackcheck import InputError, Kind, Verdict
from attackcheck.attacks.plans import Plan, Stage
from attackcheck.events import Finding, RunFinished, RunStarted
from attackcheck.models import exact

SIZE = 6
MODELS = {
    "affine pixel": exact.affine_pixel,
    "affine convolution": exact.affine_conv,
    "folded": exact.folded_pixel,
    "relu": exact.relu_pixel,
    "orthonormal": exact.orthonormal_rows,
    "opposite": exact.opposite_rows,
}
WIDE = Plan(
    "wide",
    (
        Stage("linearised"),
        Stage("ddn", pixels=6, options={"steps": 30}),
        Stage("linearised", objective="region"),
        Stage("pgd", objective="image", options={"steps": 5}, eps=(0.1,)),
        Stage("lipschitz", objective="map", options={"steps": 60}),
    ),
)


def pictures(seed, count=2, size=SIZE):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def constant(model, scope="joint"):
    return getattr(model, f"lipschitz_{scope}")(SIZE, SIZE)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", range(3))
def test_no_alarm_with_the_exact_norm(name, seed):
    model = MODELS[name](seed=seed).float()
    for scope in ("joint", "pixel"):
        claim = ac.LipschitzClaim(constant(model, scope), scope)
        report = ac.verify(model, pictures(seed), claim, plan=WIDE, pixels=10)
        assert report.sound, report.violations
        assert report.attacked_count == 20
        assert report.exit_code() == 0
        assert (report.flip_distance[report.attacked] >= report.radius[report.attacked] * (1 - 1e-5)).all()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("seed", range(3))
def test_a_constant_three_percent_too_small_is_found(name, seed):
    model = MODELS[name](seed=seed).float()
    report = ac.verify(model, pictures(seed), ac.LipschitzClaim(constant(model) / 1.03), plan=WIDE, pixels=10)
    assert not report.sound
    assert report.exit_code() == 1
    if name in ("orthonormal", "opposite"):  # tight: every flip shows it
        assert {v.kind for v in report.violations} >= {Kind.PIXEL, Kind.TWO_BALL, Kind.SET, Kind.LIPSCHITZ}


@pytest.mark.parametrize("name", ["affine pixel", "affine convolution", "orthonormal", "opposite"])
def test_flip_distances_are_the_closed_form(name):
    model = MODELS[name](seed=5).float()
    images = pictures(5)
    report = ac.verify(model, images, ac.LipschitzClaim(constant(model)), attacks=["linearised"], pixels="all")
    truth = torch.stack([model.double().flip_distance(image.double()) for image in images]).numpy()
    assert (report.flip_distance >= truth * (1 - 1e-5)).all()
    assert np.mean(report.flip_distance <= truth * 1.01) >= 0.99


def test_a_forgotten_square_root_shows_on_a_tight_model():
    model = exact.orthonormal_rows(seed=2).float()
    images = pictures(2)
    radii = torch.stack([model.double().flip_distance(image.double()) for image in images]) * math.sqrt(2)
    report = ac.verify(model.float(), images, ac.RadiusClaim(radii), plan="quick", pixels=5)
    assert len(report.violations) == 10
    assert all(v.ratio == pytest.approx(math.sqrt(2), rel=1e-3) for v in report.violations)


def test_a_certifier_that_is_a_function_is_asked_beyond_the_boundary():
    model = exact.orthonormal_rows(seed=2).float()

    def certifier(images):  # sound at the data, too large where the first channel was moved
        logits = model(images)
        top = logits.topk(2, dim=1).values
        radius = (top[:, 0] - top[:, 1]).double() / math.sqrt(2)
        return torch.where(torch.isin(images, clean).all(dim=1), radius, 3 * radius)

    clean = pictures(2, count=1)
    report = ac.verify(model, clean, ac.RadiusClaim(certifier), plan="quick", pixels=5)
    assert {v.kind for v in report.violations} == {Kind.TWO_BALL}


def test_pixels_that_nobody_aimed_at_are_not_overlooked():
    model = exact.affine_conv(classes=3, kernel=5, seed=4).float()
    images = pictures(4, count=1)
    radii = model.double().flip_distance(images[0].double())[None]
    given = np.array([[0, 3, 3]])
    wrong = torch.zeros_like(radii)
    wrong[0, 3, 3] = radii[0, 3, 3] * 0.5
    wrong[0, 3, 2] = 100.0  # flips on the way to the other pixel
    report = ac.verify(model.float(), images, ac.RadiusClaim(wrong), plan=WIDE, pixels=given)
    assert (3, 2) in {v.pixel for v in report.violations}


@pytest.mark.parametrize("batch", [1, 2, 3, 7])
def test_the_same_seed_gives_the_same_report_whatever_the_batch_size(batch):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    model.eval()
    claim, images = ac.LipschitzClaim(3.0), pictures(1)
    one = ac.verify(model, images, claim, plan=WIDE, pixels=9, seed=4, batch=9)
    other = ac.verify(model, images, claim, plan=WIDE, pixels=9, seed=4, batch=batch)
    assert np.array_equal(one.attacked, other.attacked)
    assert one.counts == other.counts
    assert [(v.kind, v.pixel, v.verdict) for v in one.findings] == [
        (v.kind, v.pixel, v.verdict) for v in other.findings
    ]
    assert np.array_equal(one.flip_distance, other.flip_distance)


def test_another_seed_chooses_other_pixels():
    model = exact.affine_pixel(seed=0).float()
    masks = [
        ac.verify(model, pictures(0), ac.LipschitzClaim(9.0), plan="quick", pixels=4, seed=s).attacked for s in (0, 1)
    ]
    assert not np.array_equal(*masks)


def test_targets_are_reached_and_reported():
    model = exact.affine_pixel(classes=4, seed=1).float()
    images = pictures(1, count=1)
    report = ac.verify(model, images, ac.LipschitzClaim(constant(model)), plan="quick", pixels="all", target=2)
    predicted = model(images).argmax(1).numpy()
    assert not report.attacked[predicted == 2].any()
    assert report.attacked[predicted != 2].all()
    truth = model.double().flip_distance_to(images[0].double(), 2).numpy()
    reached = report.flip_distance[0][predicted[0] != 2] <= truth[predicted[0] != 2] * 1.01
    assert reached.mean() > 0.95


def test_ignored_and_uncertified_pixels_are_counted_not_attacked():
    model = exact.affine_pixel(seed=0).float()
    images = pictures(0, count=1)
    labels = torch.zeros(1, SIZE, SIZE, dtype=torch.long)
    labels[0, 0] = 255
    radii = torch.full((1, SIZE, SIZE), 1e-6)
    radii[0, 1] = 0.0
    report = ac.verify(model, images, ac.RadiusClaim(radii), labels=labels, plan="quick", pixels="all")
    assert not report.attacked[0, :2].any()
    assert report.attacked[0, 2:].all()
    assert report.unchecked == {"ignored label": SIZE, "radius 0": SIZE}


def test_regions_are_attacked_as_a_whole_and_measured_against_their_joint_distance():
    model = exact.orthonormal_rows(seed=6).float()
    images = pictures(6, count=1)
    report = ac.verify(
        model, images, ac.LipschitzClaim(1.0), plan=WIDE, pixels=1, regions=["rect:1,1,2,3", "rect:0,0,2,2@0.5"]
    )
    truth = model.double().flip_distance(images[0].double())
    whole, half = report.regions
    assert whole.pixels == 6
    assert whole.joint_distance == pytest.approx(float(truth[1:3, 1:4].norm()), rel=1e-5)
    assert whole.joint_distance <= whole.distance * (1 + 1e-5)
    assert whole.distance <= whole.joint_distance * 1.1
    assert half.joint_distance == pytest.approx(float(truth[:2, :2].flatten().sort().values[:2].norm()), rel=1e-5)


def test_maxfail_and_budget_stop_a_run_and_say_so():
    model = exact.orthonormal_rows(seed=1).float()
    claim = ac.LipschitzClaim(0.5)
    report = ac.verify(model, pictures(1, count=3), claim, plan="quick", pixels=4, maxfail=1)
    assert not report.sound
    assert len(report.radii) == 1
    assert "maxfail" in report.stopped
    report = ac.verify(model, pictures(1, count=3), claim, plan="quick", pixels=4, budget=1e-9)
    assert "budget" in report.stopped


def test_ctrl_c_keeps_what_was_found():
    inner = exact.orthonormal_rows(seed=1).float()
    calls = []

    def model(x):
        calls.append(len(x))
        if len(calls) == 60:
            raise KeyboardInterrupt
        return inner(x)

    report = ac.verify(model, pictures(1, count=20), ac.LipschitzClaim(0.5), plan="quick", pixels=8)
    assert report.stopped == "interrupted"
    assert report.violations


def test_events_tell_the_story_in_order():
    events = []
    model = exact.orthonormal_rows(seed=1).float()
    ac.verify(model, pictures(1), ac.LipschitzClaim(0.9), plan="quick", pixels=2, on_event=events.append)
    assert isinstance(events[0], RunStarted)
    assert isinstance(events[-1], RunFinished)
    assert sum(isinstance(event, Finding) for event in events) == len(events[-1].report.findings) > 0


def test_float64_and_module_in_float64_work():
    model = exact.orthonormal_rows(seed=1).double()
    report = ac.verify(model, pictures(1).double(), ac.LipschitzClaim(1.0), plan="quick", pixels=4)
    assert report.sound
    assert report.attacked_count == 8


def test_a_model_without_gradient_is_named_by_the_preflight():
    class Rounded(nn.Module):
        def forward(self, x):
            return exact.affine_pixel(seed=0).float()((x * 8).round() / 8)

    events = []
    ac.verify(Rounded().eval(), pictures(0), ac.LipschitzClaim(1.0), plan="quick", pixels=2, on_event=events.append)
    assert "AC107" in {getattr(event, "code", None) for event in events}


def test_findings_other_than_violations_do_not_fail_unless_strict():
    # a true claim: of one that is false by half the tolerance, rounding may show more than all of it
    model = exact.orthonormal_rows(seed=1).float()
    report = ac.verify(model, pictures(1), ac.LipschitzClaim(1.0), plan=WIDE, pixels="all")
    assert report.sound
    assert any(f.verdict is Verdict.ROUNDING for f in report.findings)
    assert report.exit_code() == 0
    assert report.exit_code(strict=True) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.rand(0, 3, 4, 4)}, "at least one image"),
        ({"images": torch.rand(1, 4, 4, 4)}, "does not accept images"),
        ({"images": torch.rand(4, 4)}, r"\(N, C, H, W\)"),
        ({"images": torch.rand(1, 3, 4, 4) * 2}, r"\[0, 1\]"),
        ({"images": torch.full((1, 3, 4, 4), math.nan)}, "NaN"),
        ({"images": torch.zeros(1, 3, 4, 4, dtype=torch.uint8)}, "floating-point"),
        ({"labels": torch.zeros(1, 5, 4, dtype=torch.long)}, "labels"),
        ({"labels": torch.zeros(1, 4, 4)}, "integer labels"),
        ({"plan": "fast"}, "plan"),
        ({"attacks": ["pgdd"]}, "pgd"),
        ({"pixels": 0}, "at least 1"),
        ({"pixels": np.zeros((0, 3), dtype=int)}, r"\(M, 3\)"),
        ({"pixels": np.array([[0, 9, 0]])}, "inside 4x4"),
        ({"regions": ["circle:3"], "plan": WIDE}, "region"),
        ({"target": 4}, "target class"),
        ({"seed": -1}, "seed"),
        ({"tolerance": 2.0}, "tolerance"),
        ({"maxfail": 0}, "maxfail"),
        ({"batch": 0}, "batch"),
        ({"budget": 0.0}, "budget"),
    ],
)
def test_bad_input_is_one_sentence(change, message):
    arguments = {"images": torch.rand(1, 3, 4, 4), "pixels": 2, "plan": "quick"} | change
    with pytest.raises(InputError, match=message) as caught:
        ac.verify(exact.affine_pixel(classes=4).float(), arguments.pop("images"), ac.LipschitzClaim(1.0), **arguments)
    assert "\n" not in str(caught.value)


class Broken(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x):
        return self.output(x)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda x: x.sum(dim=(2, 3)), "AC102"),
        (lambda x: x[:, :1], "AC102"),
        (lambda x: x[..., ::2], "AC102"),
        (lambda x: {"out": x}, "AC102"),
        (lambda x: x / 0, "AC101"),
        (lambda x: x + torch.rand(1), "AC104"),
    ],
)
def test_a_sick_model_is_refused_with_a_stable_code(output, message):
    with pytest.raises(InputError, match=message):
        ac.verify(Broken(output).eval(), torch.rand(1, 3, 4, 4), ac.LipschitzClaim(1.0), plan="quick", pixels=2)


def test_training_mode_is_refused_where_it_changes_anything():
    images, claim = torch.rand(1, 3, 4, 4), ac.LipschitzClaim(1.0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1))
    with pytest.raises(InputError, match="AC103"):
        ac.verify(model.train(), images, claim, plan="quick", pixels=1)
    assert model[0].num_batches_tracked == 0  # the user's model was not touched
    ac.verify(nn.Conv2d(3, 2, 1).train(), images, claim, plan="quick", pixels=1)


def test_broken_weights_are_refused():
    model = nn.Conv2d(3, 2, 1)
    with torch.no_grad():
        model.weight[0, 0] = math.nan
    with pytest.raises(InputError, match="AC110"):
        ac.verify(model.eval(), torch.rand(1, 3, 4, 4), ac.LipschitzClaim(1.0))
