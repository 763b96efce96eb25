"""Slopes of tails against explicit Jacobians: never below, and as close as rounding permits."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from attackcheck import InputError
from attackcheck.models.layers import MaxMin
from attackcheck.refined.slopes import measure_slopes
from attackcheck.refined.tail import find_tail


def random(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module.eval()


def opaque(channels: int) -> nn.Module:
    return nn.GroupNorm(1, channels)


TAILS = {
    "1x1": lambda: [nn.Conv2d(3, 4, 1)],
    "3x3": lambda: [nn.Conv2d(3, 4, 3, padding=1)],
    "1x3": lambda: [nn.Conv2d(3, 4, (1, 3), padding=(0, 1))],
    "dilated": lambda: [nn.Conv2d(3, 4, 3, padding=2, dilation=2), nn.Conv2d(4, 3, 1)],
    "two 3x3": lambda: [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)],
    "transposed": lambda: [nn.ConvTranspose2d(3, 5, 2, 2), nn.Conv2d(5, 3, 1)],
    "transposed, then 3x3": lambda: [nn.ConvTranspose2d(3, 5, 2, 2), nn.Conv2d(5, 3, 3, padding=1)],
    "shuffled": lambda: [nn.Conv2d(3, 16, 1), nn.PixelShuffle(2), nn.Dropout(0.5)],
    "nearest": lambda: [nn.Conv2d(3, 4, 1), nn.Upsample(scale_factor=3, mode="nearest")],
    "bilinear": lambda: [nn.Conv2d(3, 4, 1), nn.Upsample(scale_factor=4, mode="bilinear")],
    "bilinear, then 3x3": lambda: [nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(3, 4, 3, padding=1)],
}


def jacobian(layers: nn.Module, features: Tensor) -> Tensor:
    """``(O, H * W, C * h * w)``."""
    rows: Tensor = torch.autograd.functional.jacobian(lambda x: layers(x[None])[0], features)  # type: ignore
    return rows.flatten(3).flatten(1, 2)


@pytest.mark.parametrize("size", [(5, 9), (1, 2), (11, 3)])
@pytest.mark.parametrize("name", TAILS)
def test_affine_tails_at_every_pixel(name: str, size: tuple[int, int]) -> None:
    model = random(nn.Sequential(opaque(3), *TAILS[name]()))
    tail = find_tail(model)
    assert tail.last is None
    assert len(tail.head) == 1
    height, width = size[0] * tail.scale, size[1] * tail.scale
    slopes = measure_slopes(tail, 3, height, width)
    rows = jacobian(tail.affine.double(), torch.rand(3, *size).double())
    true = (rows[:, None] - rows[None]).norm(dim=-1).movedim(-1, 0)  # (H * W, K, K)
    shown = slopes.table[slopes.places(height, width, torch.device("cpu")), :, :, 0, 0]
    assert bool((shown >= true).all())
    torch.testing.assert_close(shown, true, rtol=1e-9, atol=1e-6)
    if slopes.block is not None:
        assert tail.reach == 0
        one = jacobian(tail.affine, torch.rand(3, 1, 1).double()).flatten(0, 1)
        exact = float(torch.linalg.matrix_norm(one, 2))
        assert exact <= slopes.block <= exact * (1 + 1e-6)


def sorted_tail(pairs: int, seed: int = 0) -> nn.Sequential:
    layers = [nn.ConvTranspose2d(5, 2 * pairs, 2, 2), MaxMin(), nn.Conv2d(2 * pairs, 4, 1)]
    model = random(nn.Sequential(opaque(5), *layers), seed)
    assert isinstance(model, nn.Sequential)
    return model


@pytest.mark.parametrize("seed", range(3))
def test_a_sorting_tail_has_the_slope_of_the_order_that_it_is_in(seed: int) -> None:
    tail = find_tail(sorted_tail(3, seed))
    slopes = measure_slopes(tail, 5, 4, 6)
    assert slopes.pairs == 3
    features = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(seed)).double()
    affine, whole = tail.affine.double(), nn.Sequential(*tail.affine, MaxMin(), tail.last.double())
    rows = jacobian(whole, features)  # the order does not change around here
    true = (rows[:, None] - rows[None]).norm(dim=-1).movedim(-1, 0)
    first, second = affine(features[None])[0].flatten(1).chunk(2, 0)
    order = ((first < second).long() * torch.tensor([4, 2, 1])[:, None]).sum(0)
    places = slopes.places(4, 6, torch.device("cpu"))
    shown = slopes.table[places, :, :, order, 0]
    assert bool((shown >= true).all())
    torch.testing.assert_close(shown, true, rtol=1e-9, atol=1e-6)
    swaps = jacobian(affine, features)
    apart = (swaps[:3] - swaps[3:]).norm(dim=-1).T  # (H * W, P)
    assert bool((slopes.swaps[places] >= apart).all())
    torch.testing.assert_close(slopes.swaps[places], apart, rtol=1e-9, atol=1e-6)


def test_a_mask_frees_exactly_its_pairs() -> None:
    slopes = measure_slopes(find_tail(sorted_tail(3)), 5, 2, 2)
    for order, mask in itertools.product(range(8), range(8)):
        free = [other for other in range(8) if (other ^ order) & ~mask == 0]
        best = slopes.table[..., free, 0].amax(dim=-1)
        assert torch.equal(slopes.table[..., order, mask], best)


def gradients(tail, seed: int) -> Tensor:
    """Norms ``(H * W, K, K)`` of the gradients of logit differences at random features."""
    whole = nn.Sequential(*tail.affine, MaxMin(), tail.last).double()
    features = torch.randn(5, 1, 1, generator=torch.Generator().manual_seed(seed)).double()
    rows = jacobian(whole, features)
    return (rows[:, None] - rows[None]).norm(dim=-1).movedim(-1, 0)


@pytest.mark.parametrize(("pairs", "told", "masks"), [(6, 6, 64), (7, 7, 1), (11, 0, 1)])
def test_many_pairs_are_told_apart_less(pairs: int, told: int, masks: int) -> None:
    tail = find_tail(sorted_tail(pairs))
    slopes = measure_slopes(tail, 5, 2, 2)
    assert (slopes.pairs, slopes.masks) == (told, masks)
    largest = torch.zeros_like(slopes.largest)
    for seed in range(50):
        largest = torch.maximum(largest, gradients(tail, seed))
    assert bool((slopes.largest >= largest).all())
    off = ~torch.eye(4, dtype=torch.bool)
    assert float((largest / slopes.largest)[:, off].min()) > (0.5 if told else 0.2)


def test_a_pair_adds_no_more_than_its_contrast() -> None:
    """Every order from every other, by the sum over the pairs in which they differ."""
    slopes = measure_slopes(find_tail(sorted_tail(4)), 5, 2, 2)
    added = slopes.contrasts[None] * slopes.swaps[:, None, None]  # (T, K, K, P)
    for one, other in itertools.product(range(16), range(16)):
        differ = torch.tensor([bool((one ^ other) >> (3 - pair) & 1) for pair in range(4)])
        bound = slopes.table[..., one, 0] + (added * differ).sum(-1)
        assert bool((slopes.table[..., other, 0] <= bound * (1 + 1e-12)).all())


class Subclassed(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).abs()


def test_what_is_not_known_stays_in_the_head() -> None:
    assert len(find_tail(nn.Sequential(nn.Conv2d(3, 3, 1), Subclassed(3, 3, 1), nn.Conv2d(3, 3, 1))).head) == 2
    circular = nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular")
    assert len(find_tail(nn.Sequential(circular, nn.Conv2d(3, 3, 1))).head) == 1
    strided = nn.Sequential(nn.Conv2d(3, 3, 2, stride=2), nn.ConvTranspose2d(3, 3, 2, 2))
    assert len(find_tail(strided).head) == 1
    aligned = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
    with pytest.raises(InputError, match="ends in convolutions"):
        find_tail(nn.Sequential(nn.Conv2d(3, 3, 1), aligned))


def test_refusals() -> None:
    hooked = nn.Sequential(nn.Conv2d(3, 3, 1))
    hooked.register_forward_hook(lambda *_: None)
    with pytest.raises(InputError, match="without hooks"):
        find_tail(hooked)
    with pytest.raises(InputError, match="chain of layers"):
        find_tail(nn.Conv2d(3, 3, 1))
    with pytest.raises(InputError, match="ends in convolutions"):
        find_tail(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()))
