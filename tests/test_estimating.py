"""Estimates against runs: passes as they are counted, and time as a network tells it that keeps the time itself."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import attackcheck as ac
from attackcheck import stage_costs
from attackcheck.attacks.plans import Plan, Stage, plan
from attackcheck.cli import main
from attackcheck.engine import run
from attackcheck.estimating import estimate
from attackcheck.events import RunFinished
from attackcheck.passes import count_passes
from attackcheck.regions import RegionRequest
from attackcheck.reporters.estimates import duration, size
from attackcheck.subject import Settings, Subject
from attackcheck.verification import ArrayImages

MANY = Plan(
    "many",
    (
        Stage("linearised", options={"rays": 2, "iterations": 8}),
        Stage("ddn", pixels=4, options={"steps": 10}),
        Stage("cw", pixels=3, options={"steps": 6, "searches": 2}),
        Stage("pgd", pixels=2, options={"steps": 4, "restarts": 2}, eps=(0.1, 0.3)),
        Stage("boundary", unflipped=True),
        Stage("ddn", objective="region", options={"steps": 10}),
        Stage("guided", objective="image", options={"steps": 6}, eps=(0.1, 0.3)),
        Stage("lipschitz", objective="map", options={"steps": 6, "radii": (0.1, 1.0)}),
        Stage("pairs", objective="map", options={"steps": 6, "radii": (1.0, 10.0)}),
    ),
)


class Time:
    """Seconds that pass only while the network works."""

    now = 0.0

    def __call__(self):
        return self.now

    def __deepcopy__(self, memo):
        return self


class Ticking(nn.Module):
    """A small network that takes a microsecond for a pixel forward, two backward, and four times that in float64."""

    def __init__(self, time=None):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 3, padding=1))
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)
        self.time = Time() if time is None else time
        self.eval()

    def _tick(self, images, times):
        rows, _, height, width = images.shape
        self.time.now += times * 1e-6 * rows * height * width * (4 if images.dtype == torch.float64 else 1)

    def forward(self, images):
        logits = self.layers(images)
        self._tick(images, 1)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: self._tick(gradient, 2))
        return logits


def both(attacks, height, width, images=2, **options):
    """The estimate and the report of one run, and how long it took."""
    model = Ticking()
    generator = torch.Generator().manual_seed(1)
    data = ArrayImages(torch.rand(images, 3, height, width, generator=generator))
    settings = Settings(plan=attacks, audit=False, **options)
    subject = Subject(model, ac.LipschitzClaim(60.0), {})
    before = estimate(subject, data, settings, clock=model.time)
    start = model.time.now
    *_, last = run(subject, data, settings)
    assert isinstance(last, RunFinished)
    return before, last.report, model.time.now - start


@pytest.mark.parametrize(
    ("height", "width", "pixels", "options"),
    [
        (20, 24, 12, {}),
        (64, 72, 30, {}),
        (40, 48, 12, {"crops": False}),
        (24, 40, 9, {"target": 2, "box": (0.0, 1.0)}),
        (24, 40, 7, {"regions": [RegionRequest("components", "2")]}),
    ],
    ids=["whole", "crops", "no crops", "target", "regions"],
)
def test_passes_are_those_of_the_run(height, width, pixels, options):
    before, report, taken = both(MANY, height, width, pixels=pixels, **options)
    found = {stage.attack: 0.0 for stage in before.stages}
    back = dict(found)
    for stage in before.stages:
        found[stage.attack] += stage.forward
        back[stage.attack] += stage.backward
    for attack in report.attacks:
        if attack.name == "boundary":
            continue
        assert found[attack.name] == pytest.approx(attack.forward, rel=0.15), attack.name
        assert back[attack.name] == pytest.approx(attack.backward, rel=0.15), attack.name
    assert before.forward == pytest.approx(sum(attack.forward for attack in report.attacks), rel=0.1)
    assert before.seconds == pytest.approx(taken, rel=0.25)


@pytest.mark.parametrize("name", ["quick", "standard"])
def test_time_of_plans_that_come_along(name):
    before, _, taken = both(plan(name), 64, 72, images=1, pixels=12)
    assert before.seconds == pytest.approx(taken, rel=0.25)
    assert before.crop is not None


def test_the_small_calls_of_rows_that_begin_anew_are_not_taken_for_the_usual_ones(monkeypatch):
    counted = []

    def kept(*arguments, **options):
        counted.append(count_passes(*arguments, **options))
        return counted[-1]

    monkeypatch.setattr(stage_costs, "count_passes", kept)
    model = Ticking()
    images = ArrayImages(torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(0)))
    settings = Settings(plan=Plan("first", plan("quick").stages[:1]), pixels=48, audit=False)
    estimate(Subject(model, ac.LipschitzClaim(60.0), {}), images, settings, clock=model.time)
    assert counted
    assert all(passes.together == 1 for passes in counted)


def test_images_and_budgets_count_once_each():
    settings = Settings(plan=MANY, pixels=5, audit=False)
    model = Ticking()
    subject = Subject(model, ac.LipschitzClaim(60.0), {})
    images = torch.rand(6, 3, 10, 10, generator=torch.Generator().manual_seed(0))
    few, many = (estimate(subject, ArrayImages(images[:n]), settings, clock=model.time) for n in (2, 6))
    each = few.seconds - sum(few.once.values())
    assert many.seconds - sum(many.once.values()) == pytest.approx(3 * each, rel=1e-6)
    shard = estimate(subject, ArrayImages(images), replace(settings, shard=(1, 3)), clock=model.time)
    assert shard.images == 2
    assert shard.forward == few.forward
    side = estimate(subject, ArrayImages(images), replace(settings, workers=3), clock=model.time)
    assert side.seconds == pytest.approx(few.seconds, rel=1e-6)


class Bent(nn.Module):
    """Logits that bend wherever the image is bright: half of the pixels leap, or none."""

    def __init__(self, bend):
        super().__init__()
        self.bend = bend
        self.layer = nn.Conv2d(3, 4, 3, padding=1)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.3, generator=generator)
        self.eval()

    def forward(self, images):
        logits = self.layer(images)
        return logits + self.bend * torch.sin(40 * logits)


@pytest.mark.parametrize(
    "more", [{"leaps": (16,)}, {"crossings": 2}, {"scouts": 3, "leaps": (16,)}], ids=["leaps", "crossings", "scouts"]
)
@pytest.mark.parametrize("bend", [0.0, 0.05])
def test_pixels_that_leap_are_foreseen(bend, more):
    stage = Stage("linearised", options={"rays": 2, "search": 2, "refine": 4, **more})
    images = torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(2))
    subject, data = Subject(Bent(bend), ac.LipschitzClaim(60.0), {}), ArrayImages(images)
    settings = Settings(plan=Plan("leaps", (stage,)), pixels=40, audit=False)
    before = estimate(subject, data, settings)
    *_, last = run(subject, data, settings)
    attack = last.report.attacks[0]
    assert (before.forward, before.backward) == (attack.forward, attack.backward)
    scouts, crossed = more.get("scouts", 0), 23 * ("crossings" in more)
    least = 40 * (2 + 2 * 2 + 16 + 6 + 4 + 4 + scouts * (1 + 2 + 6) + crossed)
    assert attack.forward == least if not bend else attack.forward > 1.2 * least


def test_what_an_earlier_run_has_done_is_not_counted(tmp_path, capsys):
    np.savez(tmp_path / "data.npz", images=np.random.default_rng(0).random((5, 3, 16, 16), dtype=np.float32))
    source = tmp_path / "small.py"
    source.write_text(
        "import torch\ndef model():\n    torch.manual_seed(0)\n    return torch.nn.Conv2d(3, 4, 3, padding=1).eval()\n"
    )
    command = ["verify", "--model", f"{source}:model", "--data", f"arrays:{tmp_path / 'data.npz'}", "--lipschitz", "9"]
    command += ["--pixels", "3", "--plan", "quick", "--out", str(tmp_path / "out"), "--threads", "1"]

    def estimated(*more):
        assert main([*command, *more, "--estimate", "--json", str(tmp_path / "found.json")]) == 0
        return json.loads((tmp_path / "found.json").read_text())["estimate"]

    whole = estimated()
    assert (whole["images"], whole["done"]) == (5, 0)
    assert main(command) == 0
    parts = tmp_path / "out" / "parts"
    for number in (1, 3):
        (parts / f"image-{number:06d}.npz").unlink()
    capsys.readouterr()
    some = estimated()
    assert (some["images"], some["done"]) == (2, 3)
    assert "3 images are done in that folder" in capsys.readouterr().out
    assert some["forward"] == pytest.approx(whole["forward"] * 2 / 5)
    assert "audit of the weights" not in some["once"]
    assert main(command) == 0
    none = estimated()
    assert (none["images"], none["done"], none["forward"], none["seconds"]) == (0, 5, 0, 0)
    capsys.readouterr()
    assert main([*command, "--seed", "7", "--estimate"]) == 2
    assert "holds a run of" in capsys.readouterr().err


def test_a_linear_attack_is_counted_as_its_docstring_says():
    settings = Settings(plan=MANY)
    stage = Stage("ddn", options={"steps": 12, "refine": 5, "classes": 3})
    passes = count_passes(stage, settings, channels=3, classes=6, place=(20, 20), rows=4, crops=False)
    assert (passes.forward, passes.backward) == (1 + 12 + 5, 3 + 12)
    assert passes.widest == 1
    twice = Stage("linearised", options={"rays": 2, "search": 3, "iterations": 8, "refine": 4, "classes": 4})
    passes = count_passes(twice, settings, channels=3, classes=6, place=(20, 20), rows=4, crops=False)
    assert (passes.forward, passes.backward) == (2 + 2 * 3 + 8 + 3 + 4, 4 + 8 + 3)
    assert passes.widest == 2


OPTIONS = {
    "plain": ["--plan", "quick"],
    "attacks": ["--attack", "ddn,guided"],
    "region": ["--region", "rect:1,1,4,4@0.5", "--plan", "quick"],
    "target": ["--target", "1", "--box", "--plan", "quick"],
    "shard": ["--shard", "2/2", "--budget", "1s", "--plan", "quick"],
    "all": ["--pixels", "all", "--plan", "quick", "--no-crops", "--batch", "3", "-q"],
    "file": ["--pixels", "FILE", "--plan", "quick", "--choose", "weakest", "--threads", "2"],
    "metric": ["--metric", "METRIC", "--plan", "quick"],
    "radii": ["--radii", "RADII", "--attack", "linearised", "--no-audit", "--strict"],
    "written": ["--out", "OUT", "--junit", "JUNIT", "--plan", "quick", "-x", "1"],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_command_line_estimates_with_every_option(name, tmp_path, capsys):
    source = tmp_path / "small.py"
    source.write_text(
        "import torch\n"
        "def model():\n"
        "    layer = torch.nn.Conv2d(3, 4, 3, padding=1, bias=False)\n"
        "    torch.nn.init.orthogonal_(layer.weight, generator=torch.Generator().manual_seed(0))\n"
        "    return layer.eval()\n"
    )
    images = np.random.default_rng(0).random((2, 3, 16, 16), dtype=np.float32)
    np.savez(tmp_path / "data.npz", images=images, labels=np.zeros((2, 16, 16), dtype=np.int64))
    np.savez(tmp_path / "radii.npz", radii=np.full((2, 16, 16), 1e-4))
    np.save(tmp_path / "pixels.npy", np.array([[0, 1, 1], [1, 2, 3], [1, 2, 4]]))
    (tmp_path / "metric.toml").write_text('[[metric]]\nmeasure = "accuracy"\neps = 0.1\nvalue = 0.1\n')
    given = {
        "FILE": tmp_path / "pixels.npy",
        "METRIC": tmp_path / "metric.toml",
        "RADII": tmp_path / "radii.npz",
        "OUT": tmp_path / "out",
        "JUNIT": tmp_path / "junit.xml",
    }
    options = [str(given.get(option, option)) for option in OPTIONS[name]]
    if name != "radii":
        options += ["--lipschitz", "9"]
    if "--pixels" not in options:
        options += ["--pixels", "3"]
    before = set(tmp_path.iterdir())
    common = ["verify", "--estimate", "--model", f"{source}:model", "--data", f"arrays:{tmp_path / 'data.npz'}"]
    assert main([*common, *options, "--json", "-"]) == 0
    found = json.loads(capsys.readouterr().out)["estimate"]
    assert found["seconds"] > 0
    assert found["memory"] > 2**20
    assert found["forward"] > 0
    assert found["images"] == (1 if name == "shard" else 2)
    assert {path for path in tmp_path.iterdir() if path.name != "__pycache__"} == before
    if name == "plain":
        assert main([*common, *options]) == 0
        said = capsys.readouterr().out
        assert "Nothing was attacked" in said
        assert "linearised" in said


def test_amounts_are_written_for_people():
    assert [duration(x) for x in (0.04, 9.0, 41.2, 600, 12600, 1.8e6)] == [
        "0.0 s", "9.0 s", "41 s", "10 min", "3.5 h", "21 days",
    ]  # fmt: skip
    assert [size(x) for x in (3 * 2**20, 5 * 2**30)] == ["3 MiB", "5.0 GiB"]
