"""The certificate-guided attack where the largest number of flips is known, and beside plain losses."""

import pytest
import torch
from torch import Tensor, nn

import attackcheck as ac
from attackcheck.attacks import ImageFlip, PixelFlip, RegionFlip, guided, pgd
from attackcheck.attacks.objectives import LOSSES
from attackcheck.errors import InputError
from attackcheck.models import exact
from attackcheck.models.datasets import load_data
from attackcheck.models.shelf import NAMES, shipped

SIDE = 16


def pictures(count: int = 4, side: int = SIDE) -> Tensor:
    generators = [torch.Generator().manual_seed(seed + 20) for seed in range(count)]
    return torch.stack([torch.rand((3, side, side), generator=g, dtype=torch.float64) for g in generators])


def flips(model: nn.Module, images: Tensor, found: Tensor) -> Tensor:
    with torch.no_grad():
        return (model(found).argmax(1) != model(images).argmax(1)).flatten(1).sum(1)


@pytest.mark.parametrize("eps", [0.2, 0.8, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_it_comes_near_the_largest_number_of_flips_where_that_is_known(seed: int, eps: float) -> None:
    """Orthonormal rows at every pixel alone: the certificate is exact, and the cheapest pixels are the best."""
    model, images = exact.orthonormal_rows(seed=seed), pictures()
    cost = torch.stack([model.flip_distance(image) for image in images]).flatten(1).square().sort(dim=1).values
    most = (cost.cumsum(1) <= eps**2).sum(1)
    found = guided(model, images, ImageFlip(), eps=eps, steps=40)
    assert ((found - images).flatten(1).norm(dim=1) <= eps * (1 + 1e-12)).all()
    flipped = flips(model, images, found)
    assert (flipped <= most).all()
    assert flipped.sum() >= 0.9 * most.sum()


@pytest.mark.parametrize("problem", ["affine", *NAMES])
def test_no_plain_loss_flips_more_in_as_many_passes(problem: str) -> None:
    if problem == "affine":
        model, images, budgets = exact.affine_conv(seed=2), pictures(2), (0.3, 1.0)
    else:
        data = load_data(None)
        model, images, budgets = ac.load(shipped(problem)).model, data[2].image[None], (0.3,)
    for eps in budgets:
        ours = flips(model, images, guided(model, images, ImageFlip(), eps=eps, steps=15)).sum()
        for loss in LOSSES:
            theirs = flips(model, images, pgd(model, images, ImageFlip(loss=loss), eps=eps, steps=15)).sum()
            assert ours >= theirs, (eps, loss)


def test_only_what_the_objective_weighs_is_aimed_at() -> None:
    model, images = exact.orthonormal_rows(seed=1), pictures()
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[2:6, 3:9] = True
    found = guided(model, images, RegionFlip(mask), eps=1.0)
    delta = (found - images).abs().amax(1)
    assert (delta[:, ~mask] == 0).all()
    inside = flips(model, images, found)
    cost = torch.stack([model.flip_distance(image)[mask] for image in images]).square().sort(dim=1).values
    assert inside.sum() >= 0.8 * (cost.cumsum(1) <= 1).sum()


def test_rows_are_independent_and_the_box_is_kept() -> None:
    model, images = exact.affine_conv(seed=3), pictures(3, 8)
    together = guided(model, images, ImageFlip(), eps=0.5, box=(0.0, 1.0))
    assert together.min() >= 0
    assert together.max() <= 1
    for i in range(3):
        alone = guided(model, images[i : i + 1], ImageFlip(), eps=0.5, box=(0.0, 1.0))
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-9)


def test_it_costs_as_many_passes_as_it_says() -> None:
    model, count = exact.affine_conv(), 0

    def counted(x: Tensor) -> Tensor:
        nonlocal count
        count += x.shape[0]
        return model(x)

    guided(counted, pictures(1, 8), ImageFlip(), eps=0.5, steps=7)
    assert count == 2 + 7


def test_a_model_without_gradient_and_constant_margins_ends_finite() -> None:
    found = guided(lambda x: 0 * x + torch.eye(3)[0][:, None, None], pictures(1, 8).float(), ImageFlip(), eps=0.5)
    assert torch.isfinite(found).all()


def test_a_single_pixel_is_refused_in_one_sentence() -> None:
    with pytest.raises(InputError, match="regions and images"):
        guided(exact.affine_pixel(), pictures(1, 8), PixelFlip(torch.tensor([1]), torch.tensor([1])), eps=0.1)


def test_no_subnormal_gradient_slows_the_network_down() -> None:
    """Weights fall exponentially with the margin; at small budgets those of most pixels would be subnormal."""
    model, image, smallest = ac.load(shipped(NAMES[0])).model, load_data(None)[0].image[None], []

    def watched(x: Tensor) -> Tensor:
        logits = model(x)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: smallest.append(gradient[gradient != 0].abs().min()))
        return logits

    guided(watched, image, ImageFlip(), eps=0.1, steps=5)
    assert len(smallest) == 5
    assert min(smallest) > 1e-13
