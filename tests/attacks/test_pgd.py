"""PGD against models with known distances: above them it flips, below them it never does."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from attackcheck.attacks import ImageFlip, PixelFlip, RegionFlip, guided, pgd
from attackcheck.attacks.objectives import LOSSES
from attackcheck.models import exact

SIDE = 6
COUNT = SIDE * SIDE


def picture(seed: int) -> Tensor:
    return torch.rand((3, SIDE, SIDE), generator=torch.Generator().manual_seed(seed + 20), dtype=torch.float64)


def flips(model: torch.nn.Module, image: Tensor, found: Tensor) -> Tensor:
    index = torch.arange(COUNT)
    after = model(found)[index, :, index // SIDE, index % SIDE].argmax(1)
    return after != model(image[None])[0].argmax(0).flatten()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
@pytest.mark.parametrize("make", [exact.affine_pixel, exact.affine_conv, exact.orthonormal_rows])
def test_it_flips_just_above_the_distance_and_never_below(make: object, dtype: torch.dtype) -> None:
    index = torch.arange(COUNT)
    objective = PixelFlip(index // SIDE, index % SIDE)
    for seed in range(3):
        model, image = make(seed=seed), picture(seed).to(dtype)  # type: ignore[operator]
        distance = model.flip_distance(image).flatten()
        batch = image.expand(COUNT, -1, -1, -1)
        for quantile in (0.1, 0.5, 0.9):
            eps = float(distance.quantile(quantile)) * (1 + 1e-4)
            found = pgd(model, batch, objective, eps=eps, restarts=3)
            flipped = flips(model, image, found)
            moved = (found.double() - image.double()).flatten(1).norm(dim=1)
            assert (moved <= eps * (1 + 1e-6) + (1e-6 if dtype == torch.float32 else 0)).all()
            assert not flipped[distance > eps * 1.001].any()
            assert flipped[distance < eps * 0.98].double().mean() >= 0.99


def test_one_start_follows_the_nearest_class() -> None:
    """The runner-up in logits need not be the nearest class; the first start goes to the nearest all the same."""
    index = torch.arange(COUNT)
    model, image = exact.affine_pixel(classes=6, seed=5), picture(1)
    distance = model.flip_distance(image).flatten()
    for i in range(0, COUNT, 5):
        one = index[i : i + 1]
        found = pgd(model, image[None], PixelFlip(one // SIDE, one % SIDE), eps=float(distance[i]) * 1.02, restarts=6)
        after = model(found)[0, :, i // SIDE, i % SIDE].argmax()
        assert after != model(image[None])[0, :, i // SIDE, i % SIDE].argmax()


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_flips_a_region_at_a_generous_budget(loss: str) -> None:
    model = exact.orthonormal_rows(seed=2)
    images = torch.stack([picture(seed) for seed in range(5)])
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[1, 1:4] = True
    together = torch.stack([model.flip_distance(image)[mask].square().sum().sqrt() for image in images])
    eps = float(together.max()) * 1.3
    found = pgd(model, images, RegionFlip(mask, loss=loss), eps=eps, steps=40)
    flipped = (model(found).argmax(1) != model(images).argmax(1))[:, mask]
    assert flipped.double().mean() >= 0.9
    below = pgd(model, images, RegionFlip(mask, loss=loss), eps=float(together.min()) * 0.999)
    assert not (model(below).argmax(1) != model(images).argmax(1))[:, mask].all(1).any()


@pytest.mark.parametrize("loss", ["ce", "segpgd", "cospgd"])
def test_image_wide_flips_come_near_the_best_possible_number(loss: str) -> None:
    """With independent pixels the most that a budget can flip is known: the cheapest, in squares."""
    model = exact.orthonormal_rows(seed=2)
    images = torch.stack([picture(seed) for seed in range(4)])
    cheapest = torch.stack([model.flip_distance(image) for image in images]).flatten(1).sort(dim=1).values
    eps = 0.8
    best = (cheapest.square().cumsum(1) <= eps**2).sum(1)
    found = pgd(model, images, ImageFlip(loss=loss), eps=eps, steps=40)
    flipped = (model(found).argmax(1) != model(images).argmax(1)).sum((1, 2))
    assert (flipped <= best).all()
    assert flipped.sum() >= 0.5 * best.sum()


def test_random_starts_come_from_the_rows_own_generator() -> None:
    model = exact.folded_pixel(seed=1)
    images = torch.stack([picture(seed) for seed in range(3)])
    rows = cols = torch.tensor([1, 2, 3])

    def run(part: slice) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in range(3)[part]]
        objective = PixelFlip(rows[part], cols[part])
        return pgd(model, images[part], objective, eps=0.3, restarts=5, generator=generators)

    together = run(slice(0, 3))
    assert torch.equal(run(slice(0, 3)), together)
    for i in range(3):
        torch.testing.assert_close(run(slice(i, i + 1)), together[i : i + 1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("attack", [pgd, guided])
def test_each_row_may_have_a_budget_of_its_own(attack: Callable[..., Tensor]) -> None:
    model = exact.orthonormal_rows(seed=2)
    images = torch.stack([picture(seed) for seed in range(3)])
    budgets = torch.tensor([0.5, 1.0, 2.0])
    found = attack(model, images, ImageFlip(loss="segpgd"), eps=budgets)
    lengths = (found - images).flatten(1).norm(dim=1)
    assert (lengths <= budgets * (1 + 1e-6)).all()
    assert (lengths >= budgets * 0.99).all()
    for i, eps in enumerate(budgets.tolist()):
        alone = attack(model, images[i : i + 1], ImageFlip(loss="segpgd"), eps=eps)
        torch.testing.assert_close(found[i : i + 1], alone, rtol=0, atol=1e-9)


def test_the_box_is_kept() -> None:
    image = picture(4)
    image[:, :3] = image[:, :3].round()
    index = torch.arange(COUNT)
    batch = image.expand(COUNT, -1, -1, -1)
    found = pgd(exact.affine_conv(seed=1), batch, PixelFlip(index // SIDE, index % SIDE), eps=0.5, box=(0.0, 1.0))
    assert found.min() >= 0
    assert found.max() <= 1
    assert ((found - image).flatten(1).norm(dim=1) <= 0.5 * (1 + 1e-12)).all()


def test_without_a_gradient_it_goes_on_from_a_random_start() -> None:
    model = torch.nn.Conv2d(3, 3, 1).double()
    torch.nn.init.zeros_(model.weight)
    images = torch.stack([picture(0), picture(1)])
    found = pgd(model, images, PixelFlip(torch.tensor([0, 0]), torch.tensor([1, 1])), eps=0.2, restarts=2)
    assert torch.isfinite(found).all()
    assert math.isclose(float((found - images).flatten(1).norm(dim=1).max()), 0.2, rel_tol=1e-6)
