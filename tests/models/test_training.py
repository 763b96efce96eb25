"""Losses against their formulas, the loop against itself when interrupted, the command from end to end."""

import argparse
import csv
import dataclasses
import io
import math
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from attackcheck.commands import train as command
from attackcheck.errors import InputError
from attackcheck.models.checkpoint import load_checkpoint
from attackcheck.models.datasets import Dataset, Sample, load_data
from attackcheck.models.isounet import IsoUNetConfig
from attackcheck.models.layouts import LAYOUTS
from attackcheck.models.lipnet import LipNetConfig
from attackcheck.models.losses import LOSSES, segmentation_loss
from attackcheck.models.networks import SIZES, Config, build, export
from attackcheck.models.presets import PRESETS
from attackcheck.models.training import Measured, Progress, Recipe, measure, train
from attackcheck.reporters.training import TrainingLog, draw_training

TINY: Config = IsoUNetConfig(7, width=8, depth=1, bottom=1, head=4)
DATA = load_data("scenes:12:5:32x64")
RECIPE = Recipe(steps=6, batch=3, crop=(32, 32), focus=0.3)


def logits_and_labels() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, 3, 5, generator=generator), torch.randint(0, 4, (2, 3, 5), generator=generator)


def by_hand(name: str, z: Tensor, label: int, tau: float, margin: float) -> float:
    others = [float(z[k]) for k in range(len(z)) if k != label]
    gap = float(z[label]) - max(others)
    if name in {"ce", "margin-ce"}:
        own = float(z[label]) - (margin * math.sqrt(2) if name == "margin-ce" else 0)
        return math.log(sum(math.exp(tau * (value - own)) for value in [own, *others])) / tau
    hinge = max(0.0, margin * math.sqrt(2) - gap)
    return hinge if name == "hinge" else hinge - gap / tau


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"joint"}))
def test_losses_follow_their_formulas(name: str) -> None:
    logits, labels = logits_and_labels()
    expected = [
        by_hand(name, logits[b, :, i, j], int(labels[b, i, j]), 3.0, 0.4)
        for b in range(2)
        for i in range(3)
        for j in range(5)
    ]
    loss = segmentation_loss(name, logits, labels, tau=3.0, margin=0.4)
    assert float(loss) == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_the_joint_loss_follows_the_certificate() -> None:
    """Its reach is the margin at which the cheapest flips of an image have used the budget up."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 3, 4, 5, generator=generator, dtype=torch.float64)
    labels = logits.argmax(1)
    labels[0, 0, :2] = (labels[0, 0, :2] + 1) % 3  # wrong: flipped already
    labels[0, 3, 4] = 255
    valid = labels != 255
    known = torch.where(valid, labels, 0)
    own = logits.gather(1, known[:, None])[:, 0]
    margins = (own - logits.scatter(1, known[:, None], -torch.inf).amax(1))[valid].sort().values
    for eps in (0.2, 0.7, 1.5):
        costs = margins.clamp_min(0).square() / 2
        bought = int(((costs.cumsum(0)) <= eps**2).sum())
        assert 2 <= bought < len(margins)
        reach = max(float(margins[bought]), 0.01)
        scaled = 4.0 * logits / reach
        scaled.scatter_add_(1, known[:, None], torch.full_like(own, -4.0)[:, None])
        each = (torch.logsumexp(scaled, 1) - scaled.gather(1, known[:, None])[:, 0])[valid] * reach / 4.0
        loss = segmentation_loss("joint", logits, labels, tau=1.0, margin=eps)
        assert float(loss) == pytest.approx(float(each.mean()), rel=1e-9)
    rich = segmentation_loss("joint", logits, labels, tau=1.0, margin=100.0)  # everything is bought
    assert math.isfinite(float(rich))


@pytest.mark.parametrize("name", sorted(set(LOSSES) - {"joint"}))
def test_losses_ignore_255_and_weigh_classes(name: str) -> None:
    logits, labels = logits_and_labels()
    holes = labels.clone()
    holes[labels == 2] = 255
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0])
    masked = segmentation_loss(name, logits, holes, tau=3.0, margin=0.4)
    weighted = segmentation_loss(name, logits, labels, tau=3.0, margin=0.4, weights=weights)
    torch.testing.assert_close(masked, weighted)
    nothing = segmentation_loss(name, logits, torch.full_like(labels, 255), tau=3.0, margin=0.4)
    assert float(nothing) == 0


class Fixed(nn.Module):
    """Logits that do not depend on the picture."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1, -1, -1)


def test_measured_figures() -> None:
    logits = torch.tensor([[4.0, 1.0, 0.0, 2.0], [1.0, 2.0, 3.0, 0.0], [0.0, 0.0, 1.0, 0.0]]).view(1, 3, 1, 4)
    labels = torch.tensor([[0, 1, 0, 255]])
    pictures = Dataset("one", None, 1, lambda _: Sample("one", torch.zeros(3, 1, 4), labels))
    found = measure(Fixed(logits), pictures, lipschitz=2.0, classes=3)
    assert found.pixels == 3
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.miou == pytest.approx((1 / 2 + 1 / 2) / 2)  # class 2 is absent
    margins = torch.tensor([3.0, 1.0, 2.0]) / (2 * math.sqrt(2))
    assert found.radius == pytest.approx(float(margins.median()))
    assert found.certified == pytest.approx((2 / 3, 2 / 3, 2 / 3))


def run(config: Config, recipe: Recipe, **options: object) -> tuple[dict[str, Tensor], list[Progress]]:
    network = build(config, seed=0)
    events = list(train(network, DATA, recipe, **options))  # type: ignore[arg-type]
    return network.state_dict(), events


@pytest.mark.parametrize("stop", [1, 4])
@pytest.mark.parametrize("config", [TINY, LipNetConfig(7, widths=(4, 8), branch=4, decoder=(4, 4))])
def test_an_interrupted_training_ends_like_an_uninterrupted_one(config: Config, stop: int, tmp_path: Path) -> None:
    whole, events = run(config, RECIPE)
    state = tmp_path / "state"
    first = train(build(config, seed=0), DATA, RECIPE, state=state, every=2)
    for _ in range(stop):
        next(first)
    first.close()
    resumed, rest = run(config, RECIPE, state=state, resume=True)
    assert [event.step for event in rest] == list(range(stop + 1, RECIPE.steps + 1))
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-7)
    assert rest[-1].loss == pytest.approx(events[-1].loss, rel=1e-6)
    assert rest[-1].seconds > 0
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_state_of_another_recipe_or_a_broken_one_is_refused(tmp_path: Path) -> None:
    state = tmp_path / "state"
    run(TINY, RECIPE, state=state, every=3)
    with pytest.raises(InputError, match="got others"):
        run(TINY, Recipe(steps=7, batch=3), state=state, resume=True)
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(InputError, match="unreadable"):
        run(TINY, RECIPE, state=state, resume=True)


def test_measurements_come_at_intervals_and_at_the_end() -> None:
    _, events = run(TINY, RECIPE, validation=load_data("scenes:2:6:32x64"), every=4)
    assert [event.step for event in events if event.measured] == [4, 6]
    measured = events[-1].measured
    assert measured is not None
    assert 0 <= measured.miou <= measured.accuracy <= 1
    assert list(measured.radii) == sorted(measured.radii)


def test_training_learns() -> None:
    recipe = Recipe(steps=60, batch=4, lr=1e-2)
    network = build(TINY, seed=0)
    pictures = load_data("scenes:16:5:32x64")
    before = measure(export(network), DATA, lipschitz=1, classes=7)
    events = list(train(network, pictures, recipe))
    after = measure(export(network), load_data("scenes:6:77:32x64"), lipschitz=1, classes=7)
    assert events[-1].loss < events[0].loss
    assert after.accuracy > max(0.6, before.accuracy + 0.2)
    assert export(network).constants().joint < 1.0001


@pytest.mark.parametrize(
    "options", [{"loss": "mse"}, {"steps": 0}, {"batch": 0}, {"tau": 0.0}, {"lr": math.nan}, {"lr": -1.0}]
)
def test_senseless_recipes_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(InputError, match="expected"):
        Recipe(**options)  # type: ignore[arg-type]


def test_pictures_that_cannot_be_trained_on_are_refused() -> None:
    bare = Dataset("bare", None, 2, lambda i: Sample(str(i), torch.zeros(3, 32, 32), None))
    with pytest.raises(InputError, match="labels for every training picture"):
        list(train(build(TINY), bare, RECIPE))
    with pytest.raises(InputError, match="at least the crop 64x64"):
        list(train(build(TINY), DATA, Recipe(steps=1, batch=1, crop=(64, 64))))


def arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser.add_subparsers())
    return parser.parse_args(["train", *words])


COMMAND = (
    "--arch", "isounet", "--width", "8", "--data", "scenes:6:1:32x64", "--validation", "scenes:2:9:32x64",
    "--steps", "4", "--batch", "2", "--every", "2", "--threads", "1",
)  # fmt: skip


def test_the_command_writes_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "net.pt"
    assert command.run(arguments(*COMMAND, "--out", str(out))) == 0
    loaded = load_checkpoint(out)
    assert loaded.card["steps"] == 4
    assert loaded.card["data"] == "scenes:6:1:32x64"
    assert str(loaded.card["command"]).startswith("attackcheck train --arch isounet")
    assert 1 <= loaded.lipschitz_pixel <= loaded.lipschitz_joint < 1.0001
    captured = capsys.readouterr()
    assert "mIoU" in captured.out
    assert "step 2/4" in captured.err
    assert [path.name for path in tmp_path.iterdir()] == ["net.pt"]


def test_ctrl_c_keeps_the_state_and_resume_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "net.pt"
    assert command.run(arguments(*COMMAND, "--out", str(tmp_path / "whole.pt"))) == 0

    def interrupted(*args: object, **options: object) -> Tensor:
        signal.raise_signal(signal.SIGINT)
        return segmentation_loss(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("attackcheck.models.training.segmentation_loss", interrupted)
    assert command.run(arguments(*COMMAND, "--out", str(out))) == 130
    assert "--resume" in capsys.readouterr().err
    assert not out.exists()
    monkeypatch.undo()
    assert command.run(arguments(*COMMAND, "--out", str(out), "--resume")) == 0
    whole, resumed = (load_checkpoint(path).model.state_dict() for path in (tmp_path / "whole.pt", out))
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=1e-6)


def test_parsing_the_command_line_needs_no_torch() -> None:
    code = (
        "import argparse, sys, attackcheck.models; from attackcheck.commands import train;"
        "train.add_arguments(argparse.ArgumentParser().add_subparsers()); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "words",
    [("--size", "XXL"), ("--width", "7"), ("--crop", "64"), ("--data", "nothing"), ("--threads", "0"),
     ("--out", "/nowhere/net.pt"), ("--every", "0"), ("--steps", "-1"), ("--crop", "20x20")],
)  # fmt: skip
def test_wrong_options_are_one_sentence(words: tuple[str, ...], tmp_path: Path) -> None:
    out = () if "--out" in words else ("--out", str(tmp_path / "net.pt"))
    with pytest.raises(InputError, match="expected"):
        command.run(arguments(*COMMAND, *words, *out))


def test_other_pictures_lend_their_last_tenth(tmp_path: Path) -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (11, 3, 16, 16)), rng.integers(0, 3, (11, 16, 16))
    np.savez(tmp_path / "a.npz", images=images.astype(np.uint8), labels=labels.astype(np.uint8))
    words = (
        "--arch",
        "lipnet",
        "--data",
        f"arrays:{tmp_path / 'a.npz'}",
        "--steps",
        "1",
        "--out",
        str(tmp_path / "n.pt"),
    )
    assert command.run(arguments(*words)) == 0
    loaded = load_checkpoint(tmp_path / "n.pt")
    assert str(loaded.card["validation"]).endswith("[10:]")
    assert loaded.model(torch.rand(1, 3, 16, 16)).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("name", LOSSES)
def test_no_labels_no_loss(name: str) -> None:
    logits, labels = logits_and_labels()
    logits.requires_grad_()
    loss = segmentation_loss(name, logits, torch.full_like(labels, 255), tau=3.0, margin=0.4)
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not bool(logits.grad.any())


def test_joint_training_learns_and_certifies_more_than_it_did() -> None:
    recipe = Recipe(steps=40, batch=4, lr=1e-2, loss="joint", margin=1.0)
    network, pictures = build(TINY, seed=0), load_data("scenes:16:5:32x64")
    before = measure(export(network), pictures, lipschitz=1.0, classes=7)
    *_, last = train(network, pictures, recipe, validation=pictures, every=40)
    assert last.measured is not None
    assert last.measured.accuracy > before.accuracy + 0.2
    assert last.measured.certified[0] > before.certified[0]


def test_noise_is_a_function_of_seed_and_step() -> None:
    pictures = load_data("scenes:4:5:32x64")

    def first(noise: float) -> float:
        recipe = Recipe(steps=1, batch=2, noise=noise)
        return next(train(build(TINY, seed=0), pictures, recipe)).loss

    assert first(0.5) == first(0.5) != first(0.0)
    with pytest.raises(InputError, match="noise"):
        Recipe(noise=-1.0)


def test_the_unconstrained_twin_is_trained_and_saved(tmp_path: Path) -> None:
    out, table = tmp_path / "n.pt", tmp_path / "n.csv"
    words = ["--arch", "lipnet", "--width", "4", "--data", "scenes:4:5:32x64", "--steps", "4", "--batch", "2",
             "--every", "2", "--noise", "0.1", "--unconstrained", "--csv", str(table), "--out", str(out)]  # fmt: skip
    assert command.run(arguments(*words)) == 0
    loaded = load_checkpoint(out)
    assert "--unconstrained" in str(loaded.card["command"])
    assert "--noise 0.1" in str(loaded.card["command"])
    network = build(loaded.model.config, plain=True, seed=0)  # type: ignore[arg-type]
    again = build(loaded.model.config, plain=True, seed=0)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), again.parameters(), strict=True))
    started = dict(network.named_parameters())
    moved = [not torch.equal(value, started[name]) for name, value in loaded.model.named_parameters()]
    assert all(moved)
    image = torch.rand(1, 3, 32, 64)
    assert torch.equal(export(network)(image), network.eval()(image))
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [row["step"] for row in rows] == ["2", "4"]
    assert [float(row["epoch"]) for row in rows] == [1.0, 2.0]
    assert float(rows[-1]["accuracy"]) == pytest.approx(float(str(loaded.card["accuracy"])))


def test_the_table_of_a_resumed_training_goes_on(tmp_path: Path) -> None:
    table = tmp_path / "n.csv"
    measured = Measured(0.5, 0.25, (0.1, 0.2, 0.3, 0.4, 0.5), (0.3, 0.2, 0.1), 10)
    log = TrainingLog(table, 10)
    for step in (10, 20, 30):
        log.add(Progress(step, 40, 1.0, 2.0, measured))
        log.add(Progress(step + 1, 40, 1.0, 2.0))
    log = TrainingLog(table, 10, resume=True)
    log.add(Progress(20, 40, 9.0, 2.0, measured))
    rows = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [(row["step"], row["loss"]) for row in rows] == [("10", "1.0"), ("20", "9.0")]
    assert rows[0]["radius_50"] == "0.3"
    assert rows[0]["certified_0.05"] == "0.3"
    table.write_text("other\n1\n")
    with pytest.raises(InputError, match="CSV file of a training"):
        TrainingLog(table, 10, resume=True)
    with pytest.raises(InputError, match="could not write"):
        TrainingLog(tmp_path / "no" / "n.csv", 10)


def test_curves_of_a_training(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    log = TrainingLog(tmp_path / "n.csv", 10)
    for step in (10, 20):
        log.add(Progress(step, 20, 1.0, 2.0, Measured(0.5, 0.25, (0.1,) * 5, (0.3, 0.2, 0.1), 10)))
    draw_training(tmp_path / "n.csv", tmp_path / "n.svg")
    assert "<svg" in (tmp_path / "n.svg").read_text()


def test_presets_fill_in_what_is_not_said() -> None:
    given = arguments("--preset", "pets-3", "--data", "/pets", "--steps", "7")
    assert (given.size, given.tau, given.steps, given.preset) == ("M1", 3.0, 7, "pets-3")
    assert PRESETS["pets-3"].specifications("/pets") == ("pets:/pets:trainval@128x128", "pets:/pets:test@128x128")
    assert arguments("--preset", "cityscapes", "--data", "x", "--tau", "5").tau == 5.0
    assert arguments().preset is None
    for preset in PRESETS.values():
        assert preset.size in SIZES[preset.arch]
        assert preset.data.partition(":")[0] in {*LAYOUTS, "cityscapes"}
        assert preset.loss in LOSSES
    with pytest.raises(InputError, match="folder beside --preset"):
        PRESETS["kvasir"].specifications("kvasir:/data")
    with pytest.raises(SystemExit):
        arguments("--preset", "imagenet")


def written(root: Path, preset: str) -> None:
    """Three pictures of noise in the layout in which the preset's data set is published."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)

    def picture(path: Path, mode: str = "RGB", values: tuple[int, ...] = tuple(range(256))) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        shape = (40, 48, 3) if mode == "RGB" else (40, 48)
        Image.fromarray(rng.choice(np.array(values, np.uint8), shape), mode).save(path)

    for index in range(3):
        if preset == "kvasir":
            picture(root / "images" / f"{index}.jpg")
            picture(root / "masks" / f"{index}.jpg", values=(0, 255))
        elif preset == "cityscapes":
            for split in ("train", "val"):
                name = f"aachen_00000{index}_000019"
                picture(root / "leftImg8bit" / split / "aachen" / f"{name}_leftImg8bit.png")
                picture(root / "gtFine" / split / "aachen" / f"{name}_gtFine_labelIds.png", "L", tuple(range(34)))
        else:
            picture(root / "images" / f"cat_{index}.jpg")
            picture(root / "annotations" / "trimaps" / f"cat_{index}.png", "L", (1, 2, 3))
            for split in ("trainval", "test"):
                (root / "annotations" / f"{split}.txt").write_text("cat_0 1 1 1\ncat_1 1 1 1\ncat_2 1 1 1\n")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_train_at_a_reduced_size(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, name)
    preset = PRESETS[name]
    small = dataclasses.replace(
        preset,
        data=re.sub(r"@\d+x\d+", "@32x48", preset.data),
        validation=preset.validation and re.sub(r"@\d+x\d+", "@32x48", preset.validation),
    )
    monkeypatch.setattr("attackcheck.models.presets.PRESETS", {**PRESETS, name: small})
    out = tmp_path / "n.pt"
    words = (
        "--preset",
        name,
        "--data",
        str(tmp_path),
        "--steps",
        "2",
        "--batch",
        "2",
        "--width",
        "4",
        "--out",
        str(out),
    )
    assert command.run(arguments(*words)) == 0
    loaded = load_checkpoint(out)
    assert loaded.lipschitz_joint < 1.00001
    classes = loaded.card["classes"]
    assert isinstance(classes, list)
    assert len(classes) == {"kvasir": 2, "cityscapes": 19}.get(name, 3)
    assert loaded.model(torch.rand(1, 3, 32, 48)).shape == (1, len(classes), 32, 48)
    assert f"--tau {preset.tau}" in str(loaded.card["command"])
    assert f"--size {preset.size}" in str(loaded.card["command"])
    with pytest.raises(InputError, match="--csv FILE beside --plot"):
        command.run(arguments(*words, "--plot", str(tmp_path / "n.png")))


def test_bfloat16_convolutions_train_an_orthogonal_network() -> None:
    pictures = load_data("scenes:16:5:32x64")
    states = {}
    for precision in ("float32", "bf16"):
        network = build(TINY, seed=0)
        events = list(train(network, pictures, Recipe(steps=40, batch=4, lr=1e-2, precision=precision)))
        frozen = export(network)
        assert frozen.constants().joint < 1.00001
        assert {value.dtype for value in (*network.parameters(), *frozen.parameters())} == {torch.float32}
        states[precision] = frozen.state_dict(), events[-1].loss
    (full, loss), (half, rough) = states["float32"], states["bf16"]
    assert rough == pytest.approx(loss, rel=0.1)
    assert any(not torch.equal(full[name], half[name]) for name in full)
    with pytest.raises(InputError, match="precision"):
        Recipe(precision="fp16")
