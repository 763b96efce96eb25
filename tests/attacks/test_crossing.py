"""Between two minima that rays find lies a nearer one that they do not."""

import pytest
import torch
from torch import Tensor, nn

from attackcheck.attacks import PixelFlip, linearised
from attackcheck.attacks._crossing import between
from attackcheck.attacks._rows import Noise


def rows(*perturbations: list[float]) -> Tensor:
    """Perturbations (N, 1, 1, 1, C) of one row."""
    return torch.tensor(perturbations, dtype=torch.float64).reshape(len(perturbations), 1, 1, 1, -1)


def noise(found: Tensor) -> Noise:
    return Noise(found[0], None)


def test_the_shortest_is_mixed_with_the_next_ones_of_other_directions() -> None:
    found = rows([0.0, 3.0, 0.0], [1.0, 0.0, 0.0], [1.9, 0.1, 0.0], [0.0, 0.0, 4.0], [0.1, 3.1, 0.0])
    first, second = between(found, found.flatten(1).norm(dim=1)[:, None], 2, noise(found))
    assert first.flatten().tolist() == pytest.approx([10**-0.5, 3 * 10**-0.5, 0])
    assert second.flatten().tolist() == pytest.approx([17**-0.5, 0, 4 * 17**-0.5])


def test_similar_directions_are_mixed_if_there_is_nothing_else() -> None:
    found = rows([1.0, 0.0, 0.0], [1.0, 0.2, 0.0])
    for way in between(found, found.flatten(1).norm(dim=1)[:, None], 2, noise(found)):
        assert way.flatten().tolist() == pytest.approx([2 / 4.04**0.5, 0.2 / 4.04**0.5, 0])


def test_a_single_success_is_mixed_with_itself() -> None:
    found = rows([0.0, 1.0, 0.0], [0.0, 0.0, 2.0], [5.0, 0.0, 0.0])
    distance = torch.tensor([[torch.inf], [2.0], [torch.inf]], dtype=torch.float64)
    for way in (*between(found, distance, 2, noise(found)), *between(found[1:2], distance[1:2], 2, noise(found))):
        assert way.flatten().tolist() == [0, 0, 1]


def test_each_row_has_partners_of_its_own() -> None:
    one, other = rows([1.0, 0, 0], [0, 2.0, 0], [0, 0, 3.0]), rows([0, 0, 3.0], [0, 2.0, 0], [0, 2.0, 0.1])
    both = torch.cat([one, other], 1)
    together = between(both, both.flatten(2).norm(dim=2), 2, noise(both))
    for i, single in enumerate((one, other)):
        alone = between(single, single.flatten(2).norm(dim=2), 2, noise(single))
        assert torch.equal(together[:, i : i + 1], alone)


def test_opposite_minima_give_a_direction_of_length_one() -> None:
    found = rows([1.0, 0, 0], [-1.0, 0, 0])
    for way in between(found, torch.ones(2, 1, dtype=torch.float64), 1, noise(found)):
        assert float(way.norm()) == pytest.approx(1)


class Corner(nn.Module):
    """Boundaries ahead at 1.16 and to the side at 1.32; one between them, at `near`, shows only where both are near."""

    def __init__(self, near: float) -> None:
        super().__init__()
        self.near = near

    def forward(self, images: Tensor) -> Tensor:
        ahead, side = images[:, 0] - 0.5, images[:, 1] - 0.5
        first = torch.where(ahead > 0.7, 0.7 + 0.65 * (ahead - 0.7), ahead) - 1
        second = torch.where(side > 0.8, 0.8 + 0.65 * (side - 0.8), side) - 1.14
        third = torch.where((ahead > 0.35) & (side > 0.35), 6 * ((ahead + side) / 2**0.5 - self.near), 0.01 * side - 4)
        return torch.stack([torch.zeros_like(first), first, second, third], 1)


@pytest.mark.parametrize("near", [0.6, 0.8, 1.0])
def test_crossing_finds_the_boundary_between_two_that_rays_know(near: float) -> None:
    images, where = torch.full((2, 3, 6, 6), 0.5, dtype=torch.float64), torch.tensor([2, 3])
    model, objective = Corner(near), PixelFlip(where, where)
    options = {"rays": 2, "search": 2, "refine": 3}
    for crossings, truth in ((0, 0.7 + 0.3 / 0.65), (1, near), (3, near)):
        found = linearised(model, images, objective, crossings=crossings, **options)  # type: ignore[arg-type]
        assert (found - images).flatten(1).norm(dim=1).tolist() == pytest.approx([truth] * 2, rel=2e-3)
        assert (model(found)[[0, 1], :, where, where].argmax(1) != 0).all()
