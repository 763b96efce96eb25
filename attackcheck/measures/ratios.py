"""Ratios of sums over a data set: the worst intersection over union under a budget for each image.

Of one image, ``a`` true positives of the class can be broken and ``b`` false positives made if together they cost no
more than the budget: a set of pairs (a, b) whose upper hull is kept. Over a data set the adversary picks one pair for
every image and minimises ``sum (TP - a) / sum (U + b)``; that is not made of the images' own worst ratios. Dinkelbach
(1967, On nonlinear fractional programming): with lambda the best ratio so far, every image maximises ``a + lambda b``
by itself; repeat until lambda no longer falls. The maximum of ``a + lambda b`` for lambda >= 0 is always on the upper
hull.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from attackcheck.measures.ladder import Ladder

__all__ = ["Pairs", "Worst", "frontier", "upper_hull", "worst_ratio"]

Array = np.ndarray[Any, Any]

FINEST = 4096
"""Steps of ``a`` on a frontier; beyond it, blocks of a are all given the b of their smallest a, which is sound."""


class Pairs(NamedTuple):
    """What an image's budget allows for one class: true positives lost and false positives made."""

    lost: Array  # (V,) int64
    made: Array  # (V,) int64


class Worst(NamedTuple):
    """The smallest ratio and which of each image's pairs reaches it."""

    value: float
    chosen: tuple[int, ...]


def frontier(breaking: Ladder, making: Ladder, eps: Tensor) -> list[Pairs]:
    """The upper hull of what is possible at each budget ``eps`` (E,).

    Args:
        breaking: costs of this class's true positives.
        making: costs of turning pixels of other classes into this one.
    """
    budgets = (eps.double().square() * (max(breaking.slack, making.slack) ** 2)).tolist()
    making = making.up_to(max(budgets, default=0.0))
    most_lost = breaking.together(eps)  # (E,)
    most_made = making.together(eps)
    if breaking.total is None or making.total is None:
        return [
            Pairs(np.array([lost]), np.array([made]))
            for lost, made in zip(most_lost.tolist(), most_made.tolist(), strict=True)
        ]
    spent, prices = breaking.total, making.total[1:]
    found = []
    for budget, limit, cap in zip(budgets, most_lost.tolist(), most_made.tolist(), strict=True):
        step = limit // FINEST + 1
        rest = (budget - spent[: limit + 1 : step]).clamp_min(0.0)
        made = torch.searchsorted(prices, rest, right=True).clamp_max(cap).cpu().numpy()
        lost = np.minimum(np.arange(len(made), dtype=np.int64) * step + (step - 1), limit)
        found.append(upper_hull(lost, made))
    return found


def upper_hull(lost: Array, made: Array) -> Pairs:
    """A few points that contain every vertex of the upper hull; ``lost`` ascends strictly, ``made`` never does.

    Points on or below the line between their neighbours are dropped, all at once, until none is: one that is dropped
    lies on or below a segment between two points of the set, so it is no vertex.
    """
    for _ in range(len(lost)):
        if len(lost) < 3:
            break
        forward = np.diff(lost), np.diff(made)
        bend = forward[0][:-1] * forward[1][1:] - forward[1][:-1] * forward[0][1:]
        kept = np.concatenate([[True], bend < 0, [True]])
        if kept.all():
            break
        lost, made = lost[kept], made[kept]
    # The left end may be beaten by a later point in both numbers.
    return Pairs(lost, made)


def worst_ratio(intersection: int, union: int, images: Sequence[Pairs]) -> Worst:
    """Minimise ``(intersection - sum a) / (union + sum b)`` over one pair (a, b) of each image.

    Args:
        intersection, union: of the class over the data set before the attack, ``union > 0``.
        images: the pairs of every image; each is to contain one with ``a, b`` that leaves the union positive.
    """
    lost = np.concatenate([pairs.lost for pairs in images])
    made = np.concatenate([pairs.made for pairs in images])
    start = np.concatenate([[0], np.cumsum([len(pairs.lost) for pairs in images])[:-1]]).astype(np.int64)
    number = np.repeat(np.arange(len(images)), [len(pairs.lost) for pairs in images])
    value = intersection / union
    best = Worst(value, ())
    while True:
        gain = lost + value * made
        largest = np.maximum.reduceat(gain, start)
        reached = np.flatnonzero(gain == largest[number])
        chosen = reached[np.searchsorted(number[reached], np.arange(len(images)))]  # the first of each image
        ratio = (intersection - int(lost[chosen].sum())) / (union + int(made[chosen].sum()))
        if best.chosen and ratio >= best.value:
            return best
        best = Worst(ratio, tuple((chosen - start).tolist()))
        value = ratio
