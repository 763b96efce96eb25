"""Pairs of free points against true Lipschitz constants: affine maps, and small networks enumerated piece by piece."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

import attackcheck as ac
from attackcheck.attacks import Plan, Stage, lipschitz_ascent, lipschitz_pairs
from attackcheck.counterexample import Outcome, load_counterexample, replay
from attackcheck.models import exact
from attackcheck.probe import Kind


def picture(seed: int, channels: int = 3, side: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand((channels, side, side), generator=generator, dtype=torch.float64)


def slopes(model: nn.Module, pairs: Tensor) -> Tensor:
    change = (model(pairs[:, 1]) - model(pairs[:, 0])).flatten(1).norm(dim=1)
    return change / (pairs[:, 1] - pairs[:, 0]).flatten(1).norm(dim=1)


@dataclass
class Part:
    """A linear piece on its way through the layers: `matrix @ x + shift`, where `normal @ x + offset > 0`."""

    matrix: np.ndarray
    shift: np.ndarray
    normal: np.ndarray
    offset: np.ndarray

    def where(self, normal: np.ndarray, offset: float) -> "Part":
        return Part(self.matrix, self.shift, np.vstack([self.normal, normal]), np.append(self.offset, offset))

    def inhabited(self) -> bool:
        """Whether a ball fits into the piece (Chebyshev centre, radius at most 1)."""
        count, dims = self.normal.shape
        size = np.linalg.norm(self.normal, axis=1, keepdims=True)
        bounds = [(None, None)] * dims + [(0.0, 1.0)]
        goal = np.r_[np.zeros(dims), -1.0]
        found = linprog(goal, A_ub=np.hstack([-self.normal, size]), b_ub=self.offset, bounds=bounds)
        return count == 0 or (found.status == 0 and -found.fun > 1e-6)


class Small(nn.Module):
    """A random fully connected network on the channels of one pixel, (B, C, 1, 1) -> (B, K, 1, 1)."""

    def __init__(self, widths: tuple[int, ...], activation: str, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.activation = activation
        shapes = list(zip(widths[1:], widths[:-1], strict=True))
        normal = {"generator": generator, "dtype": torch.float64}
        self.weights = [torch.randn(shape, **normal) / shape[1] ** 0.5 for shape in shapes]
        self.biases = [torch.randn(shape[0], **normal) / 2 for shape in shapes]
        self.biases[0] -= self.weights[0].sum(1) / 2  # kinks near the middle of the unit cube

    def forward(self, images: Tensor) -> Tensor:
        x = images.flatten(1)
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = x @ weight.to(x).T + bias.to(x)
            if layer + 1 < len(self.weights):
                if self.activation == "relu":
                    x = x.relu()
                else:
                    even, odd = x[:, ::2], x[:, 1::2]
                    x = torch.cat([torch.maximum(even, odd), torch.minimum(even, odd)], 1)
        return x[:, :, None, None]

    def pieces(self) -> Iterator[np.ndarray]:
        """The matrices of all linear pieces, from every pattern of active units that some ball shows."""
        dims = self.weights[0].shape[1]
        parts = [Part(np.eye(dims), np.zeros(dims), np.zeros((0, dims)), np.zeros(0))]
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            following = []
            for part in parts:
                part.matrix, part.shift = weight.numpy() @ part.matrix, weight.numpy() @ part.shift + bias.numpy()
                following += [part] if layer + 1 == len(self.weights) else self._split(part)
            parts = following
        return (part.matrix for part in parts)

    def _split(self, part: Part) -> list[Part]:
        relu = self.activation == "relu"
        units = len(part.matrix) if relu else len(part.matrix) // 2
        branches: list[tuple[Part, list[bool]]] = [(part, [])]
        for unit in range(units):
            row, edge = part.matrix[unit], part.shift[unit]
            if not relu:
                row = part.matrix[2 * unit] - part.matrix[2 * unit + 1]
                edge = part.shift[2 * unit] - part.shift[2 * unit + 1]
            branches = [
                (narrower, [*signs, sign > 0])
                for whole, signs in branches
                for sign in (1, -1)
                if (narrower := whole.where(sign * row, sign * edge)).inhabited()
            ]
        found = []
        for branch, signs in branches:
            on = np.array(signs)
            if relu:
                matrix, shift = on[:, None] * branch.matrix, on * branch.shift
            else:
                first = 2 * np.arange(units)
                order = np.r_[np.where(on, first, first + 1), np.where(on, first + 1, first)]
                matrix, shift = branch.matrix[order], branch.shift[order]
            found.append(Part(matrix, shift, branch.normal, branch.offset))
        return found

    def supremum(self) -> float:
        return max(float(np.linalg.norm(matrix, 2)) for matrix in self.pieces())


def test_the_enumeration_itself_agrees_with_jacobians_at_random_points() -> None:
    for activation in ("relu", "maxmin"):
        model = Small((3, 4, 4, 3), activation, 0)
        norms = {round(float(np.linalg.norm(matrix, 2)), 9) for matrix in model.pieces()}
        points = 3 * torch.randn((50, 3, 1, 1), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        for point in points:
            jacobian = torch.autograd.functional.jacobian(model, point[None]).reshape(3, 3)
            assert round(float(torch.linalg.matrix_norm(jacobian, 2)), 9) in norms


@pytest.mark.parametrize("seed", [0, 1, 8, 18, 20])
@pytest.mark.parametrize("widths", [(3, 4, 3), (4, 6, 3), (3, 4, 4, 3)], ids=str)
def test_the_supremum_of_small_relu_networks_is_reached_within_three_percent(
    widths: tuple[int, ...], seed: int
) -> None:
    model = Small(widths, "relu", seed)
    truth = model.supremum()
    found = lipschitz_pairs(model, picture(seed, widths[0], 1)[None], starts=32)
    ratio = float(slopes(model, found)) / truth
    assert 0.97 <= ratio <= 1 + 1e-9


@pytest.mark.parametrize("seed", [*range(4), 8, 16, 21, 23])
@pytest.mark.parametrize("widths", [(3, 6, 6, 3), (4, 4, 4, 4, 3)], ids=str)
def test_the_supremum_of_small_maxmin_networks_is_reached_within_three_percent(
    widths: tuple[int, ...], seed: int
) -> None:
    """Their steepest pieces may lie a hundred times as far away as the data, a thousandth of that wide."""
    model = Small(widths, "maxmin", seed)
    truth = model.supremum()
    found = lipschitz_pairs(model, picture(seed, widths[0], 1)[None], starts=32)
    assert 0.97 <= float(slopes(model, found)) / truth <= 1 + 1e-9


@pytest.mark.parametrize(
    ("widths", "seed"), [((3, 4, 4, 4, 3), 103), ((5, 6, 6, 3), 108), ((5, 6, 6, 3), 100)], ids=str
)
def test_in_single_precision_short_pairs_far_away_do_not_win_by_rounding(widths: tuple[int, ...], seed: int) -> None:
    model = Small(widths, "maxmin", seed)
    found = lipschitz_pairs(model, picture(seed, widths[0], 1)[None].float(), starts=32)
    assert 0.97 <= float(slopes(model, found.double())) / model.supremum() <= 1 + 1e-6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
@pytest.mark.parametrize("seed", range(3))
def test_the_norm_of_an_affine_map_is_reached(seed: int, dtype: torch.dtype) -> None:
    for model in (exact.affine_conv(seed=seed), exact.affine_pixel(seed=seed)):
        truth = model.lipschitz_joint(8, 8)
        images = torch.stack([picture(s) for s in range(2)]).to(dtype)
        ratio = slopes(model, lipschitz_pairs(model, images, steps=60).double())
        assert (ratio <= truth * (1 + 1e-9)).all()
        assert (ratio >= 0.99 * truth).all()


def test_rows_are_independent_and_the_box_is_kept() -> None:
    model, images = exact.folded_pixel(seed=4), torch.stack([picture(s) for s in range(3)])

    def run(part: slice) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in range(3)[part]]
        return lipschitz_pairs(model, images[part], starts=3, steps=20, generator=generators, box=(0.0, 1.0))

    together = run(slice(0, 3))
    assert together.min() >= 0
    assert together.max() <= 1
    for i in range(3):
        torch.testing.assert_close(run(slice(i, i + 1)), together[i : i + 1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("box", [None, (0.0, 1.0)], ids=["free", "box"])
def test_rows_of_few_numbers_are_independent_and_shown_in_pairs(box: tuple[float, float] | None) -> None:
    model, images = Small((3, 4, 4, 3), "relu", 8), torch.stack([picture(s, 3, 1) for s in range(3)])

    def shown(points: Tensor) -> Tensor:
        assert len(points) % 2 == 0
        assert torch.isfinite(points).all()
        assert box is None or bool(((points >= 0) & (points <= 1)).all())
        return model(points)  # type: ignore[no-any-return]

    def run(part: slice) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in range(3)[part]]
        return lipschitz_pairs(shown, images[part], starts=2, generator=generators, box=box)

    together = run(slice(0, 3))
    for i in range(3):
        # on a linear piece all pairs are as steep: which of them is returned may hang on a rounding
        alone = run(slice(i, i + 1))
        torch.testing.assert_close(slopes(model, alone), slopes(model, together[i : i + 1]), rtol=1e-6, atol=0)


def test_a_constant_map_gives_finite_points() -> None:
    assert torch.isfinite(lipschitz_pairs(lambda x: 0 * x[:, :2], picture(0)[None], steps=5)).all()


def test_a_model_that_overflows_far_from_the_data_gives_finite_points() -> None:
    found = lipschitz_pairs(lambda x: (x * 100).exp().log(), picture(0)[None].float(), radii=(0.1, 10.0), steps=10)
    assert torch.isfinite(found).all()


class SteepElsewhere(nn.Module):
    """Slope 1 for channel means up to 2, slope 1.5 beyond: no ball around data in [0, 1] of radius 1 sees it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(3, 3, 1, bias=False)
        with torch.no_grad():
            self.inner.weight.copy_(torch.eye(3)[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 0.5 * (self.inner(x) - 2.0).relu()


PAIRS = Plan("pairs", (Stage("linearised", options={"iterations": 2}), Stage("pairs", "map", options={"starts": 4})))


def test_a_constant_that_fails_far_from_the_data_is_refuted_by_a_pair_that_replays(tmp_path) -> None:
    model = SteepElsewhere().eval().requires_grad_(False)
    images = torch.rand((1, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    near = lipschitz_ascent(model, images, radii=(0.01, 0.1))
    assert float((model(near) - model(images)).norm() / (near - images).norm()) < 1 + 1e-5
    report = ac.verify(model, images, ac.LipschitzClaim(1.4), plan=PAIRS, pixels=1, counterexamples=tmp_path)
    (violation,) = [v for v in report.violations if v.kind is Kind.LIPSCHITZ]
    assert violation.attack == "pairs"
    assert violation.radius / violation.distance > 1.05
    example = load_counterexample(violation.counterexample)
    assert not torch.equal(example.clean, images[0])
    assert replay(example, model).outcome is Outcome.REPRODUCED
    assert replay(example, model, ac.LipschitzClaim(1.5)).outcome is Outcome.FIXED
    assert report.exit_code() == 1


def test_a_sound_constant_survives_pairs_and_the_limit_counts_them() -> None:
    images = torch.rand((1, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    report = ac.verify(SteepElsewhere().eval(), images, ac.LipschitzClaim(1.5), plan=PAIRS, pixels=1)
    assert report.sound
    assert not report.findings
    assert report.limit.map == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("seed", range(2))
def test_pixel_claims_are_pursued_at_single_pixels(seed: int) -> None:
    model = exact.affine_conv(seed=seed).float()
    truth = model.lipschitz_pixel(6, 6)
    images = torch.rand((1, 3, 6, 6), generator=torch.Generator().manual_seed(seed))
    stages = (Stage("linearised", options={"iterations": 2}), Stage("pairs", "pixel", options={"starts": 2}))
    for factor, sound in ((1.0001, True), (0.99, False)):
        claim = ac.LipschitzClaim(truth * factor, "pixel")
        report = ac.verify(model, images, claim, plan=Plan("pixelwise", stages), pixels=np.array([[0, 3, 3]]))
        assert report.sound is sound
