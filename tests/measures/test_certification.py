"""`certify` on models with known answers: certified <= attacked <= clean, and what happens where the claim is false."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import attackcheck as ac
from attackcheck import InputError, LipschitzClaim, Measure, MetricClaim, Verdict
from attackcheck.certifier import certify_data
from attackcheck.cli import main
from attackcheck.counterexample import Outcome, load_counterexample
from attackcheck.metric_counterexample import is_metric, load_metric, replay_metric
from attackcheck.metrics import read_metrics
from attackcheck.models.exact import AffineConv, AffinePixel, affine_conv, orthonormal_rows
from attackcheck.reporters.certification import CertificationReporter, csv_text

EPS = (0.0, 0.05, 0.2, 0.6, 2.0)


def scene(model: torch.nn.Module, seed: int = 0, count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels that the model mostly gets right, some ignored."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(count, 3, 9, 12, generator=generator)
    with torch.no_grad():
        labels = model(images).argmax(dim=1)
    wrong = torch.rand(labels.shape, generator=generator)
    labels = torch.where(wrong < 0.15, 0, labels)
    return images, torch.where(wrong > 0.95, 255, labels)


@pytest.mark.parametrize("seed", range(4))
def test_certified_attacked_clean(seed: int) -> None:
    """An exact constant: no attack beats the certificate, and everything falls with eps."""
    model = affine_conv(classes=4, seed=seed)
    claim = LipschitzClaim(model.lipschitz_joint(9, 12), pixel=model.lipschitz_pixel(9, 12))
    images, labels = scene(model, seed)
    table = ac.certify(model, images, labels, claim, EPS, steps=5)
    assert table.sound
    assert not table.findings
    assert table.exit_code() == 0
    shown = {(row.measure, row.cls) for row in table.rows}
    assert {measure for measure, _ in shown} == set(Measure)
    for measure, cls in shown:
        rows = [table.row(measure, eps, cls) for eps in EPS]
        sign = 1 if measure.falls else -1
        for row in rows:
            assert row.attacked is not None
            chain = [sign * value for value in (row.per_pixel, row.certified, row.attacked, row.clean)]
            assert chain == sorted(chain), row
        for column in ("certified", "per_pixel", "attacked"):
            values = [sign * getattr(row, column) for row in rows]
            assert values == sorted(values, reverse=True), (measure, cls, column)
        assert rows[0].attacked == rows[0].clean
    last = table.row("accuracy", 2.0)
    assert last.attacked is not None
    assert last.attacked < last.clean  # the attack does something


def test_a_tight_model_is_met_by_its_attack() -> None:
    """Orthonormal rows: the relaxation is the truth, so the attack comes close to the certificate."""
    model = orthonormal_rows(classes=3)
    images, labels = scene(model, 1)
    table = ac.certify(model, images, labels, LipschitzClaim(1.0), (0.3, 0.6), steps=60)
    for eps in (0.3, 0.6):
        row = table.row("accuracy", eps)
        assert row.attacked is not None
        assert row.certified <= row.attacked
        assert row.clean - row.attacked > 0.6 * (row.clean - row.certified)


def overclaimed() -> tuple[AffineConv, torch.Tensor, torch.Tensor, LipschitzClaim]:
    model = affine_conv(classes=3, seed=7)
    images, labels = scene(model, 7)
    return model, images, labels, LipschitzClaim(model.lipschitz_joint(9, 12) / 8)


def test_a_false_constant_breaks_metric_claims_that_can_be_replayed(tmp_path: Path) -> None:
    model, images, labels, claim = overclaimed()
    table = ac.certify(model, images, labels, claim, (0.3, 1.0), steps=10, counterexamples=tmp_path)
    assert not table.sound
    assert table.exit_code() == 1
    kinds = {finding.claim.measure for finding in table.violations}
    assert {Measure.ACCURACY, Measure.STABILITY, Measure.MEAN_IOU, Measure.FNR, Measure.IOU} <= kinds
    for finding in table.violations:
        assert finding.claim.excess(finding.value) > 0
        assert finding.distance <= finding.claim.eps
        assert finding.counterexample is not None
        assert is_metric(finding.counterexample)
        example = load_metric(finding.counterexample)
        outcome, now = replay_metric(example, model)
        assert outcome is Outcome.REPRODUCED
        assert now.value == finding.value == example.value
        for clean, perturbed, image in zip(example.clean, example.perturbed, images, strict=True):
            assert torch.equal(clean, image)
            assert float((perturbed.double() - clean.double()).norm()) <= finding.claim.eps
    path = next(f.counterexample for f in table.violations if f.claim.measure is Measure.ACCURACY)
    assert path is not None
    example = load_metric(path)
    honest = dataclasses.replace(example, claim=dataclasses.replace(example.claim, value=0.0))
    assert replay_metric(honest, model)[0] is Outcome.FIXED
    near = dataclasses.replace(example, claim=dataclasses.replace(example.claim, eps=1e-3))
    assert replay_metric(near, model)[0] is Outcome.CANNOT_CHECK
    with pytest.raises(InputError, match="expected a counterexample"):
        load_counterexample(path)


def test_metric_claims_of_ones_own() -> None:
    model, images, labels, _ = overclaimed()
    claim = LipschitzClaim(model.lipschitz_joint(9, 12))
    wrong = MetricClaim(Measure.ACCURACY, 1.0, 0.95)
    right = MetricClaim(Measure.ACCURACY, 1.0, 0.1)
    rate = MetricClaim("fnr", 1.0, 0.05, cls=0)  # type: ignore[arg-type]
    table = ac.certify(model, images, labels, claim, (0.5,), metrics=[wrong, right, rate])
    assert [finding.claim for finding in table.violations] == [wrong, rate]
    assert table.epsilons == (0.5, 1.0)
    assert any("class 0" in name for name in table.attacks)
    with pytest.raises(InputError, match="class below 3"):
        ac.certify(model, images, labels, claim, (0.5,), metrics=[MetricClaim("iou", 0.1, 0.5, cls=9)])  # type: ignore
    with pytest.raises(InputError, match="attacks"):
        ac.certify(model, images, labels, claim, (0.5,), metrics=[wrong], attack=False)


def test_a_value_that_is_missed_by_rounding_is_no_violation() -> None:
    """What was measured, claimed a hair higher."""
    model, images, labels, _ = overclaimed()
    claim = LipschitzClaim(model.lipschitz_joint(9, 12))
    reached = ac.certify(model, images, labels, claim, (1.0,), metrics=[MetricClaim("accuracy", 1.0, 1.0)])  # type: ignore
    value = reached.findings[0].value
    assert value == reached.row("accuracy", 1.0).attacked
    near = MetricClaim("accuracy", 1.0, value * (1 + 1e-7))  # type: ignore[arg-type]
    again = ac.certify(model, images, labels, claim, (1.0,), metrics=[near])
    assert [finding.verdict for finding in again.findings] == [Verdict.ROUNDING]
    assert (again.exit_code(), again.exit_code(strict=True)) == (0, 1)
    held = MetricClaim("accuracy", 1.0, value)  # type: ignore[arg-type]
    assert not ac.certify(model, images, labels, claim, (1.0,), metrics=[held]).findings


def test_ties_are_counted_in_the_claims_favour() -> None:
    """Two classes with equal rows: float64 sees a tie everywhere, whatever argmax says."""
    row = torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64)
    model = AffinePixel(torch.stack([row, row, -row]))
    images = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.ones(1, 4, 5, dtype=torch.int64)  # argmax says 0
    table = ac.certify(
        model,
        images,
        labels,
        LipschitzClaim(2.0),
        (0.001,),
        metrics=[MetricClaim("accuracy", 0.001, 1.0)],  # type: ignore
    )
    assert [finding.verdict for finding in table.findings] == [Verdict.UNDECIDED]
    assert table.findings[0].value == 1.0


def test_without_labels_and_without_attacks() -> None:
    model = affine_conv(classes=3, seed=2)
    images, labels = scene(model)
    claim = LipschitzClaim(model.lipschitz_joint(9, 12))
    table = ac.certify(model, images, None, claim, EPS, attack=False)
    assert {row.measure for row in table.rows} == {Measure.STABILITY, Measure.COMPONENTS}
    assert all(row.attacked is None for row in table.rows)
    pixel = ac.certify(model, images, labels, LipschitzClaim(claim.lipschitz, "pixel"), EPS, attack=False)
    assert all(
        row.certified == row.per_pixel or (math.isnan(row.certified) and math.isnan(row.per_pixel))
        for row in pixel.rows
    )
    radii = np.full((2, 9, 12), 0.1)
    given = ac.certify(model, images, labels, ac.RadiusClaim(radii), (0.05, 0.2), attack=False)
    assert given.row("accuracy", 0.05).certified == given.row("accuracy", 0.05).clean
    assert given.row("accuracy", 0.2).certified == 0.0


def test_what_cannot_be_used() -> None:
    model = affine_conv(classes=3)
    images, labels = scene(model)
    claim = LipschitzClaim(1.0)
    for epsilons in ((), (-0.1,), (math.nan,), (math.inf,)):
        with pytest.raises(InputError, match="eps"):
            ac.certify(model, images, labels, claim, epsilons)
    with pytest.raises(InputError, match="labels"):
        ac.certify(model, images, labels[:, :3], claim)
    for wrong in ({"measure": "dice"}, {"eps": -1.0}, {"value": 1.5}, {"cls": 2}, {"measure": "iou"}):
        given = {"measure": "accuracy", "eps": 0.1, "value": 0.5} | wrong
        with pytest.raises(InputError, match="expected"):
            MetricClaim(**given)  # type: ignore[arg-type]


def test_metric_files(tmp_path: Path) -> None:
    toml, plain = tmp_path / "m.toml", tmp_path / "m.json"
    toml.write_text('[[metric]]\nmeasure = "iou"\neps = 0.1\nvalue = 0.5\nclass = 2\n')
    plain.write_text('[{"measure": "accuracy", "eps": 0.1, "value": 0.837, "source": "table 3"}]')
    assert read_metrics(toml) == (MetricClaim(Measure.IOU, 0.1, 0.5, 2, "m.toml"),)
    assert read_metrics(plain) == (MetricClaim(Measure.ACCURACY, 0.1, 0.837, None, "table 3"),)
    for text in (
        "",
        "[]",
        "{",
        "[[metric]]",
        '[{"measure": "accuracy"}]',
        '[{"measure": "accuracy", "eps": 1, "x": 2}]',
    ):
        plain.write_text(text)
        with pytest.raises(InputError):
            read_metrics(plain)
    with pytest.raises(InputError):
        read_metrics(tmp_path / "none.toml")


def test_altered_counterexamples_are_refused(tmp_path: Path) -> None:
    model, images, labels, claim = overclaimed()
    table = ac.certify(model, images, labels, claim, (1.0,), counterexamples=tmp_path)
    path = next(finding.counterexample for finding in table.violations if finding.counterexample is not None)
    with np.load(path) as archive:
        content = dict(archive)
    name = next(name for name in content if name.startswith("shift"))
    content[name] = content[name] * 2
    np.savez(path, **content)
    with pytest.raises(InputError, match="hashes"):
        load_metric(path)
    path.write_bytes(path.read_bytes()[:500])
    assert not is_metric(path)
    with pytest.raises(InputError):
        load_metric(path)


FACTORY = """
import torch
import attackcheck as ac
from attackcheck.models.exact import affine_conv

def true():
    model = affine_conv(classes=3, seed=7)
    return model, ac.LipschitzClaim(model.lipschitz_joint(9, 12))

def false():
    model, claim = true()
    return model, ac.LipschitzClaim(claim.lipschitz / 8)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    _, images, labels, _ = overclaimed()
    np.savez(tmp_path / "data.npz", images=images.numpy(), labels=labels.numpy())
    (tmp_path / "net.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["certify", "net.py:true", "--data", "arrays:data.npz", "--eps", "0.1,0.4", "--steps", "3"]
    assert main([*common, "--json", "out.json", "--csv", "out.csv"]) == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("0 violations of", "accuracy", "mean IoU"))
    assert max(len(line.rstrip()) for line in shown.splitlines() if not line.startswith(("0 viol", "claim"))) <= 80
    document = json.loads((folder / "out.json").read_text())
    assert document["sound"] is True
    assert {row["measure"] for row in document["rows"]} == {measure.value for measure in Measure}
    lines = list(csv.DictReader(io.StringIO((folder / "out.csv").read_text())))
    assert len(lines) == len(document["rows"])
    assert float(lines[0]["certified"]) == document["rows"][0]["certified"]
    entry = next(entry for entry in document["smallest"] if entry["measure"] == "stability" and entry["drop"] == 0.1)
    assert main([*common[:4], "--no-attack", "--smallest", "out.csv"]) == 0
    lines = list(csv.DictReader(io.StringIO((folder / "out.csv").read_text())))
    assert len(lines) == len(document["smallest"])
    line = next(line for line in lines if (line["measure"], line["loss"]) == ("stability", "0.1"))
    assert float(line["mean"]) == entry["mean"]
    assert entry["refined"] is None
    assert line["refined_q95"] == ""
    capsys.readouterr()
    assert main([*common[:6], "--no-attack", "-q", "--json", "-"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["attacks"] == []
    assert "nothing attacked" in captured.err


def test_the_command_finds_and_replays(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "claims.toml").write_text('[[metric]]\nmeasure = "accuracy"\neps = 1.0\nvalue = 0.99\n')
    options = ["--data", "arrays:data.npz", "--eps", "0.4", "-q"]
    assert main(["certify", "net.py:true", *options, "--metric", "claims.toml", "--out", "found"]) == 1
    shown = capsys.readouterr().out
    assert "VIOLATED METRIC pixel accuracy >= 0.99 at eps 1 (claims.toml)" in shown
    assert "UNSOUND" in shown
    path = next((folder / "found").glob("metric-accuracy-*.npz"))
    assert main(["replay", str(path), "net.py:true"]) == 1
    assert "reproduced" in capsys.readouterr().out
    assert main(["certify", "net.py:false", *options]) == 1
    assert "UNSOUND" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong",
    [
        ["--eps", "a"], ["--eps", "-1"], ["--eps", ""], ["--steps", "0"], ["--images", "0"], ["--plot", "x.txt"],
        ["--metric", "none.toml"], ["--csv", "no/such/folder.csv"], ["--json", ""], ["--tolerance", "2"],
    ],
)  # fmt: skip
def test_bad_options_are_one_sentence(wrong: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["certify", "net.py:true", "--data", "arrays:data.npz", "--no-attack", *wrong]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("attackcheck: expected")
    assert captured.err.count("\n") == 1


def test_plots(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["certify", "net.py:true", "--data", "arrays:data.npz", "--eps", "0,0.4", "--steps", "2", "-q"]
    monkeypatch.setattr("attackcheck.reporters.plots.find_spec", lambda _: None)
    assert main([*options, "--plot", "out.png"]) == 2
    assert "attackcheck[plots]" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    pytest.importorskip("matplotlib")
    assert main([*options, "--plot", "out.svg"]) == 0
    assert "<svg" in (folder / "out.svg").read_text()


def test_an_interruption_keeps_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    from attackcheck.certifier import Plan
    from attackcheck.subject import Subject
    from attackcheck.verification import ArrayImages

    model, images, labels, claim = overclaimed()
    calls = []

    def interrupted(*given: object, **options: object) -> torch.Tensor:
        calls.append(given)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return given[1]  # type: ignore[return-value]

    monkeypatch.setattr("attackcheck.attacks._guided.guided", interrupted)
    steps = list(certify_data(Subject(model, claim, {}), ArrayImages(images, labels), Plan(epsilons=(0.1, 0.2))))
    table = steps[-1][0]
    assert table.stopped == "interrupted"
    assert table.row("accuracy", 0.1).certified <= table.row("accuracy", 0.1).clean


def test_csv_has_empty_cells_where_there_is_no_value() -> None:
    model = affine_conv(classes=3)
    images, labels = scene(model)
    table = ac.certify(model, images, labels, LipschitzClaim(5.0), (0.1,), attack=False)
    lines = list(csv.DictReader(io.StringIO(csv_text(table))))
    assert {line["attacked"] for line in lines} == {""}
    reporter = CertificationReporter(["attackcheck", "replay"], tables=False)
    with reporter:
        reporter.progress(table, 0, 0)
        reporter.finish(table)


def test_verify_attacks_metric_claims_too(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, images, labels, _ = overclaimed()
    claim = LipschitzClaim(model.lipschitz_joint(9, 12))
    wrong = MetricClaim("accuracy", 1.0, 0.97)  # type: ignore[arg-type]
    rate = MetricClaim("fnr", 1.0, 0.01, cls=0)  # type: ignore[arg-type]
    report = ac.verify(model, images, claim, labels, plan="quick", pixels=2, metrics=[wrong, rate])
    assert {violation.statement for violation in report.violations} == {wrong.describe(), rate.describe()}
    for violation in report.violations:
        assert violation.kind is ac.Kind.METRIC
        assert violation.ratio > 1
    assert json.dumps(report.to_dict())
    assert ac.verify(model, images, claim, labels, plan="quick", pixels=2).sound
    (folder / "claims.json").write_text('{"metric": [{"measure": "accuracy", "eps": 1.0, "value": 0.97}]}')
    options = ["--data", "arrays:data.npz", "--plan", "quick", "--pixels", "2", "--metric", "claims.json"]
    assert main(["verify", "net.py:true", *options, "--json", "out.json", "--out", "found"]) == 1
    shown = capsys.readouterr().out
    assert "METRIC" in shown
    assert "pixel accuracy >= 0.97 at eps 1" in shown
    found = json.loads((folder / "out.json").read_text())["violations"][0]
    assert found["kind"] == "METRIC"
    assert main(["replay", found["counterexample"], "net.py:true"]) == 1
