"""foolbox and torchattacks behind our signature: they flip the right pixel, never below the closed form."""

import random
import sys
from collections.abc import Callable
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import Tensor

from attackcheck.attacks import PixelFlip, RegionFlip, registry
from attackcheck.errors import InputError
from attackcheck.models import exact

# looked up, not imported: what their import prints or warns is a matter of the code under test
NAMES = [name for name in registry.names() if "." in name and find_spec(name.split(".")[0]) is not None]
# how far beyond the closed form the median may be; foolbox.fmn does not project (see libraries.py)
MEDIAN = {
    "foolbox.ddn": 1.02,
    "foolbox.cw": 1.05,
    "foolbox.deepfool": 1.03,
    "foolbox.fmn": 2.1,
    "torchattacks.cw": 1.15,
    "torchattacks.fab": 1.02,
    "torchattacks.deepfool": 1.03,
}
TARGETED = {"foolbox.ddn", "foolbox.cw", "foolbox.fmn", "foolbox.pgd", "torchattacks.pgd", "torchattacks.cw"}
SIDE = 6
ROWS = torch.tensor([0, 1, 2, 3, 4, 5, 0, 5])
COLS = torch.tensor([0, 3, 5, 2, 1, 5, 4, 0])


def picture(seed: int) -> Tensor:
    return torch.rand((3, SIDE, SIDE), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attack(name: str) -> Callable[..., Tensor]:
    return registry.get(name).function


def options(name: str, eps: float) -> dict[str, float]:
    return {"eps": eps} if name.endswith("pgd") else {}


@pytest.mark.parametrize("box", [None, (0.0, 1.0)], ids=["free", "boxed"])
@pytest.mark.parametrize("name", NAMES)
def test_they_flip_the_pixel_and_are_never_below_the_closed_form(name: str, box: tuple[float, float] | None) -> None:
    for make in (exact.affine_conv, exact.orthonormal_rows):
        model, image = make(seed=0), picture(3)
        truth = model.flip_distance(image)[ROWS, COLS]
        batch = image.float().expand(len(ROWS), -1, -1, -1)
        found = attack(name)(model, batch, PixelFlip(ROWS, COLS), box=box, **options(name, float(truth.max()) * 1.3))
        assert found.dtype == torch.float32
        if box is not None:
            assert found.min() >= 0
            assert found.max() <= 1
        distance = (found.double() - batch.double()).flatten(1).norm(dim=1)
        clean = model(image[None])[0, :, ROWS, COLS].argmax(0)
        flipped = model(found)[torch.arange(len(ROWS)), :, ROWS, COLS].argmax(1) != clean
        assert flipped.double().mean() >= (0.7 if box else 0.85)
        assert (distance >= truth * (1 - 1e-4))[flipped].all()
        assert (distance > 0).all()
        if name in MEDIAN and box is None:
            assert float((distance / truth).median()) <= MEDIAN[name]


@pytest.mark.parametrize("name", NAMES)
def test_targets_are_reached_or_refused(name: str) -> None:
    model, image = exact.orthonormal_rows(seed=0), picture(3).float()
    prediction = model(image[None])[0, :, ROWS, COLS].argmax(0)
    target = (prediction + 1) % 3
    batch = image.expand(len(ROWS), -1, -1, -1)
    objective = PixelFlip(ROWS, COLS, target)
    if name not in TARGETED:
        with pytest.raises(InputError, match="no targeted mode"):
            attack(name)(model, batch, objective)
        return
    found = attack(name)(model, batch, objective, **options(name, 1.5))
    after = model(found)[torch.arange(len(ROWS)), :, ROWS, COLS].argmax(1)
    assert (after == target).double().mean() >= 0.85


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_alone_with_their_seed_and_the_global_state_is_untouched(name: str) -> None:
    model, image = exact.affine_conv(seed=1), picture(5).float()
    batch = image.expand(3, -1, -1, -1)
    extra = options(name, 0.5)
    if name.endswith("pgd"):
        extra["random_start"] = True

    def run(part: slice) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in range(3)[part]]
        return attack(name)(
            model, batch[part], PixelFlip(ROWS[:3][part], COLS[:3][part]), generator=generators, **extra
        )

    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    together = run(slice(0, 3))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # type: ignore[index]
    for i in range(3):
        assert torch.equal(run(slice(i, i + 1)), together[i : i + 1])


@pytest.mark.parametrize("name", NAMES)
def test_they_are_silent(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    model, image = exact.affine_pixel(), picture(1).float()
    attack(name)(model, image[None], PixelFlip(ROWS[:1], COLS[:1]), **options(name, 0.5))
    assert capfd.readouterr() == ("", "")


def test_other_objectives_and_images_outside_the_box_are_refused() -> None:
    model, image = exact.affine_pixel(), picture(1).float()
    mask = torch.ones(SIDE, SIDE, dtype=torch.bool)
    with pytest.raises(InputError, match="single pixels"):
        attack("foolbox.ddn")(model, image[None], RegionFlip(mask))
    with pytest.raises(InputError, match="within the box"):
        attack("foolbox.ddn")(model, image[None] + 1, PixelFlip(ROWS[:1], COLS[:1]), box=(0.0, 1.0))


@pytest.mark.parametrize("name", ["foolbox.ddn", "torchattacks.fab"])
def test_an_absent_library_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name.split(".")[0], None)
    with pytest.raises(InputError, match="is not installed: pip install") as caught:
        attack(name)(exact.affine_pixel(), picture(1)[None], PixelFlip(ROWS[:1], COLS[:1]))
    assert "\n" not in str(caught.value)


def test_failure_returns_the_most_promising_point_and_not_the_clean_image() -> None:
    def flat(images: Tensor) -> Tensor:
        bias = torch.tensor([5.0, 0.0], dtype=images.dtype)[None, :, None, None]
        return torch.cat([images[:, :1], -images[:, :1]], 1) * 1e-3 + bias

    image = picture(2).float()
    found = attack("foolbox.ddn")(flat, image[None], PixelFlip(ROWS[:1], COLS[:1]))
    assert float((found - image).norm()) > 0
    assert flat(found)[0, :, 0, 0].diff() > flat(image[None])[0, :, 0, 0].diff()
