"""The frequency grid of `symbols`: cells of the torus of frequencies, split where the bound is largest."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .symbols import Symbol

__all__ = ["Grid", "Peak", "frequency_grid", "glance"]

_FINE, _COARSE = 16, 8  # cells around the circle per degree, in the first grid


class Peak(NamedTuple):
    """Where a symbol was seen largest, and its square there (not rounded)."""

    group: int
    frequency: tuple[float, float]
    square: float


class Grid(NamedTuple):
    """What a grid proves: |K|^2 <= `square` for all groups and frequencies; and the number of frequencies it used."""

    square: float
    peak: Peak
    points: int


class _Cells(NamedTuple):
    """Rectangles of frequencies."""

    group: Tensor  # (F,)
    centre: Tensor  # (F, 2)
    radius: Tensor  # (F, 2), half of the sides


def glance(symbol: Symbol) -> Peak:
    """The largest of a few frequencies, where smooth and alternating kernels have their peaks."""
    angles = torch.tensor([(0, 0), (0, 1), (1, 0), (1, 1), (0, 0.5), (0.5, 0), (0.5, 0.5), (0.3, 0.7)]) * math.pi
    groups = len(symbol.error)
    frequency = angles.double().repeat(groups, 1)
    group = torch.arange(groups).repeat_interleave(len(angles))
    seen = symbol.extremes(group, frequency)[2]
    return _peak(group, frequency, seen)


def _peak(group: Tensor, frequency: Tensor, seen: Tensor) -> Peak:
    best = int(seen.argmax())
    return Peak(int(group[best]), (float(frequency[best, 0]), float(frequency[best, 1])), float(seen[best]))


def frequency_grid(symbol: Symbol, tolerance: float, budget: float) -> Grid | None:
    """Bounds |K|^2 to within a relative `tolerance` of the largest value seen, or as well as `budget` ns allow.

    None when even a coarse grid would take longer.
    """
    cells = _first(symbol, _FINE)
    if symbol.cost * len(cells.group) > budget / 2:
        cells = _first(symbol, _COARSE)
        if symbol.cost * len(cells.group) > budget:
            return None
    low, high, seen = symbol.extremes(cells.group, cells.centre)
    peak = _peak(cells.group, cells.centre, seen)
    points = len(seen)
    centre = float(high.max() + low.min()) / 2
    # The uniform grid, with its product of cosines.
    degrees = torch.tensor(symbol.degrees, dtype=torch.float64)
    angles = [float(a) for a in degrees * cells.radius[0]]
    plain = float(high.max()) / math.prod(_cosine(a) for a in angles) ** 2
    shifted = math.inf
    if 2 * max(angles) < math.pi / 2:
        shifted = centre + float(_deviation(low, high, centre).max()) / math.prod(_cosine(2 * a) for a in angles)
    best = min(plain, shifted)
    by_deviation = shifted < plain

    closed = 0.0
    while True:
        sums = cells.radius @ degrees
        if by_deviation:
            bounds = centre + _deviation(low, high, centre) / _cosines(2 * sums)
        else:
            bounds = high / _cosines(sums) ** 2
        best = min(best, max(closed, float(bounds.max())))
        open_ = bounds > peak.square * (1 + tolerance)
        if not bool(open_.all()):
            closed = max(closed, float(bounds[~open_].max()))
        cells = _split(_Cells(*(part[open_] for part in cells)), symbol.degrees)
        points += len(cells.group)
        if not len(cells.group) or symbol.cost * points > budget:
            return Grid(best * (1 + 1e-14), peak, points)
        low, high, seen = symbol.extremes(cells.group, cells.centre)
        if float(seen.max()) > peak.square:
            peak = _peak(cells.group, cells.centre, seen)


def _deviation(low: Tensor, high: Tensor, centre: float) -> Tensor:
    """Upper bounds of the norms of Gram matrices minus `centre` times the identity."""
    return torch.maximum(high - centre, centre - low)


def _cosine(angle: float) -> float:
    return math.cos(angle * (1 + 1e-15)) * (1 - 1e-15) if angle < math.pi / 2 else 0.0


def _cosines(angles: Tensor) -> Tensor:
    """Cosines rounded down; beyond pi / 2 so small that nothing is claimed."""
    return torch.where(angles < math.pi / 2, (angles * (1 + 1e-15)).cos() * (1 - 1e-15), 0.0).clamp_min(1e-30)


def _first(symbol: Symbol, fineness: int) -> _Cells:
    """A uniform grid of cells for every group: half of the torus, since K(-w) is the conjugate of K(w)."""
    counts = [2 * math.ceil(fineness * degree / 2) if degree else 1 for degree in symbol.degrees]
    radii = [math.pi / count if count > 1 else math.pi for count in counts]
    halved = next((axis for axis, count in enumerate(counts) if count > 1), None)
    shown = [count // 2 if axis == halved else count for axis, count in enumerate(counts)]
    lines = [(2 * torch.arange(n, dtype=torch.float64) + 1) * r for n, r in zip(shown, radii, strict=True)]
    centre = torch.cartesian_prod(*lines)  # (F, 2)
    groups = len(symbol.error)
    group = torch.arange(groups).repeat_interleave(len(centre))
    # Centres are rounded, so cells are a trifle larger than they seem.
    radius = torch.tensor(radii, dtype=torch.float64) * (1 + 1e-13)
    return _Cells(group, centre.repeat(groups, 1), radius.expand(groups * len(centre), 2))


def _split(cells: _Cells, degrees: tuple[float, float]) -> _Cells:
    """Halves along every axis that has a degree."""
    group, centre, radius = cells
    for axis, degree in enumerate(degrees):
        if degree:
            half = radius.clone()
            half[:, axis] /= 2
            step = torch.zeros_like(half)
            step[:, axis] = half[:, axis]
            group, centre, radius = group.repeat(2), torch.cat([centre - step, centre + step]), half.repeat(2, 1)
    return _Cells(group, centre, radius)
