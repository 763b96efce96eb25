"""The worst that each budget can do to the counts of one image."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attackcheck.measures.components import Components, connected, prices
from attackcheck.measures.costs import FlipCosts
from attackcheck.measures.counting import Counts, counts, truths
from attackcheck.measures.ladder import Ladder
from attackcheck.measures.ladders import DROPS, Ladders, needed
from attackcheck.measures.names import Measure
from attackcheck.measures.ratios import Pairs, frontier

__all__ = ["DROPS", "Bounds", "Counts", "ImageBounds", "bounds", "counts"]

Array = np.ndarray[Any, Any]

LOOKED_INTO = 256
"""Stretches of numbers of lost true positives, where those of false positives beside them are sought."""


@dataclass(frozen=True)
class Bounds:
    """At most how much each budget can take, ``(E,)`` or ``(K, E)``; ``pairs[k][e]`` as in ``ratios``."""

    right: Array
    kept: Array
    alive: Array
    intersection: Array
    pairs: tuple[tuple[Pairs, ...], ...]


@dataclass(frozen=True)
class ImageBounds:
    """One image: its clean counts, what a shared budget can take, and what the pixels' own radii alone allow.

    ``smallest`` gives for a measure (and class, or None) the smallest distance at which it can lose each of
    :data:`DROPS`, ``(len(DROPS),)``, infinite where it cannot.
    """

    clean: Counts
    joint: Bounds
    alone: Bounds
    smallest: dict[tuple[Measure, int | None], Array] = field(default_factory=dict)


def bounds(
    costs: FlipCosts, labels: Tensor | None, ignore: int, eps: Tensor, *, smallest: bool = True, islands: bool = True
) -> ImageBounds:
    """Worst cases of one image at every budget.

    Args:
        costs: what its flips cost.
        labels: ``(H, W)`` integers on the costs' device, or None.
        ignore: the label that counts for nothing.
        eps: ``(E,)`` budgets, at least 0.
        smallest: also the smallest distances at which a measure can lose something.
        islands: also the components, which are found on the CPU.
    """
    pixels = len(costs.predicted)
    components = connected(costs.predicted, costs.shape) if islands else Components.none(pixels)
    flat = valid = truth = None
    if labels is not None:
        flat = labels.flatten().to(costs.predicted.device)
        valid = flat != ignore
        truth = truths(flat, valid, costs.classes)
    survivors = len(components.needed)
    clean = counts(costs.predicted, costs.predicted, flat, valid, costs.classes, components, survivors, truth)
    ladders = Ladders(costs, truth, clean, eps, smallest=smallest)
    islands_cost = prices(components, costs.nearest, costs.adding_up() if islands else None)
    joint = _bounds(ladders, islands_cost, costs.share, eps)
    alone = joint if costs.share is None else _alone(ladders, islands_cost, eps)
    found = _smallest(ladders, clean, islands_cost, costs.share) if smallest else {}
    return ImageBounds(clean, joint, alone, found)


def _bounds(ladders: Ladders, islands: tuple[Tensor, Tensor], share: float | None, eps: Tensor) -> Bounds:
    destroyed = [_destroyed(*islands, share, float(budget)) for budget in eps]
    broken = [ladder.together(eps) for ladder in ladders.missing]
    return Bounds(
        right=_numbers(ladders.right, eps, together=True),
        kept=_numbers(ladders.change, eps, together=True),
        alive=np.array(destroyed, dtype=np.int64),
        intersection=_stack(broken, len(eps)),
        pairs=tuple(
            tuple(frontier(breaking, making, eps))
            for breaking, making in zip(ladders.breaking, ladders.making, strict=True)
        ),
    )


def _alone(ladders: Ladders, islands: tuple[Tensor, Tensor], eps: Tensor) -> Bounds:
    """The same for pixels that each have the whole budget to themselves."""
    lost = [ladder.alone(eps) for ladder in ladders.breaking]
    made = [ladder.alone(eps).tolist() for ladder in ladders.making]
    return Bounds(
        right=_numbers(ladders.right, eps, together=False),
        kept=_numbers(ladders.change, eps, together=False),
        alive=np.array([_destroyed(*islands, None, float(budget)) for budget in eps], dtype=np.int64),
        intersection=_stack(lost, len(eps)),
        pairs=tuple(
            tuple(Pairs(np.array([a]), np.array([b])) for a, b in zip(broken.tolist(), new, strict=True))
            for broken, new in zip(lost, made, strict=True)
        ),
    )


def _destroyed(total: Tensor, dearest: Tensor, share: float | None, eps: float) -> int:
    """How many components a budget destroys, cheapest first among those within reach."""
    budget = eps * eps * (1.0 + 1e-9)
    within = dearest <= budget
    if share is None:
        return int(within.sum())
    sums = torch.cumsum(total[within].sort().values, dim=0) * share * share
    return int((sums <= budget).sum())


def _numbers(ladder: Ladder | None, eps: Tensor, *, together: bool) -> Array:
    if ladder is None:
        return np.zeros(len(eps), dtype=np.int64)
    return (ladder.together(eps) if together else ladder.alone(eps)).cpu().numpy()


def _stack(rows: list[Tensor], width: int) -> Array:
    return torch.stack(rows).cpu().numpy() if rows else np.zeros((0, width), dtype=np.int64)


def _smallest(
    ladders: Ladders, clean: Counts, islands: tuple[Tensor, Tensor], share: float | None
) -> dict[tuple[Measure, int | None], Array]:
    found: dict[tuple[Measure, int | None], Array] = {
        (Measure.STABILITY, None): _falls(ladders.change, clean.kept, clean.pixels)
    }
    if clean.components:
        reach = _island_distances(*islands, share)
        wanted = [needed(drop, clean.components) for drop in DROPS]
        found[Measure.COMPONENTS, None] = np.array([reach[n - 1] if n <= len(reach) else np.inf for n in wanted])
    if ladders.right is not None and clean.valid:
        found[Measure.ACCURACY, None] = _falls(ladders.right, clean.right, clean.valid)
    for label in np.flatnonzero(clean.positives).tolist():
        breaking, making = ladders.breaking[label], ladders.making[label]
        positives, hits = int(clean.positives[label]), int(clean.intersection[label])
        found[Measure.FNR, label] = _falls(ladders.missing[label], hits, positives)
        found[Measure.IOU, label] = np.array(
            [_ratio_falls(breaking, making, hits, int(clean.union[label]), drop) for drop in DROPS]
        )
    return found


def _falls(ladder: Ladder, count: int, total: int) -> Array:
    wanted = [needed(drop, total) for drop in DROPS]
    return np.array([ladder.price(n) if n <= count else np.inf for n in wanted])


def _island_distances(total: Tensor, dearest: Tensor, share: float | None) -> Array:
    """Smallest distance that destroys 1, 2, ... components."""
    if share is None:
        distances: Array = dearest.sort().values.sqrt().numpy()
        return distances
    # Never more than it takes: the dearest single flip only adds to this.
    together: Array = (torch.cumsum(total.sort().values, dim=0).sqrt() * share * (1.0 - 1e-9)).numpy()
    return together


def _ratio_falls(breaking: Ladder, making: Ladder, hits: int, union: int, drop: float) -> float:
    """Smallest distance at which ``(hits - a) / (union + b)`` can be ``drop`` below ``hits / union``."""
    level = hits / union - drop
    if level < -1e-12:
        return np.inf
    if making.total is None:
        making = making.whole()
    device = breaking.single.device

    def made(lost: Array) -> Array:
        """How many false positives are needed beside so many lost true ones; more than there are if none suffices."""
        if level > 1e-12:
            wanted = np.ceil(((hits - lost) / level) * (1.0 - 1e-12) - union).clip(min=0)
        else:
            wanted = np.where(lost == hits, 0, np.inf)
        number: Array = np.minimum(wanted, len(making) + 1).astype(np.int64)
        return number

    def price(lost: Array, new: Array) -> Array:
        """Cost of losing so many and making so many: both only rise."""
        a = torch.from_numpy(lost).to(device)
        listed = len(making.single)
        b = torch.from_numpy(new.clip(max=listed)).to(device)
        if breaking.total is None or making.total is None:
            zero = torch.zeros(1, dtype=breaking.single.dtype, device=device)
            cost = torch.maximum(torch.cat([zero, breaking.single])[a], torch.cat([zero, making.single])[b]).double()
        else:
            cost = breaking.total[a] + making.total[b]
        found: Array = np.where(new > len(making), np.inf, cost.cpu().numpy())
        if making.limit < math.inf:
            # At least so much, where they are not listed.
            found += np.maximum(new - listed, 0) * (making.limit * making.share_squared)
        return found

    # Stretches of `lost` first, each priced at its cheaper ends: only those that can hold the least are looked into.
    stretch = max(1, hits // LOOKED_INTO)
    first = np.arange(0, hits + 1, stretch)
    last = np.minimum(first + stretch - 1, hits)
    best = price(first, made(first)).min()
    inside = first[price(first, made(last)) <= best]
    lost = (inside[:, None] + np.arange(stretch)).ravel()
    lost = lost[lost <= hits]
    new = made(lost)
    costs = price(lost, new)
    if len(costs) and new[costs.argmin()] > len(making.single) and making.limit < math.inf:
        return _ratio_falls(breaking, making.whole(), hits, union, drop)
    best = min(best, costs.min(initial=np.inf))
    return float(np.sqrt(best / max(breaking.slack, making.slack) ** 2))
