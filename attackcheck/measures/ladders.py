"""The ladders of one image: every kind of flip, in the order of what it costs.

Sorting all costs of making false positives, of every class, would take most of the time of a certification, and almost
none of them matters: a budget buys the cheapest, and the smallest distance that takes a given share of an IoU mixes
cheap false positives with broken true ones. So only costs up to a limit are listed. The limit is a guess that decides
about time alone: a ladder that turns out too short is made whole (:class:`attackcheck.measures.ladder.Ladder`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from attackcheck.measures.costs import FlipCosts, pieces
from attackcheck.measures.counting import Counts, number
from attackcheck.measures.ladder import Ladder, Listed, budgets, slack
from attackcheck.sorting import ascending

__all__ = ["DROPS", "Ladders", "needed"]

DROPS = (0.01, 0.05, 0.1, 0.2, 0.5)
"""How much of a measure is to be lost, for the smallest distance that can do it."""

SAMPLED = 2**14
"""So many pixels are looked at to guess which costs a budget can buy."""

SAFETY = 1.5
"""The guess is made for so many times the largest budget."""


class Ladders:
    """Sorted costs of every kind of flip of an image.

    Args:
        costs: of one flip each.
        truth: ``(H * W,)`` as from :func:`attackcheck.measures.counting.truths`; None without labels.
        clean: the counts.
        eps: ``(E,)`` the budgets that will be asked for.
        smallest: whether smallest distances will be asked for.
    """

    def __init__(
        self, costs: FlipCosts, truth: Tensor | None, clean: Counts, eps: Tensor, *, smallest: bool = True
    ) -> None:
        share = costs.share
        everywhere = torch.ones_like(costs.predicted, dtype=torch.bool)
        self.change = Ladder(costs.nearest, share, costs.counted(everywhere))
        self.right: Ladder | None = None
        self.missing: list[Ladder] = []  # a class's true positives, counted
        self.breaking: list[Ladder] = []  # the same beside what is made of the class
        self.making: list[Ladder] = []
        if truth is None:
            return
        if costs.adds_up:
            broken = _by_class(costs, truth)
            self.right = Ladder(torch.cat(broken), share)
            self.missing = self.breaking = [Ladder(each, share) for each in broken]
            self.making = _making(costs, truth, clean, eps, self._limits(costs, truth, clean, eps, smallest=smallest))
            return
        hit = costs.predicted == truth
        self.right = Ladder(costs.nearest[hit], share, costs.counted(hit))
        for label in range(costs.classes):
            broken_here = hit & (costs.predicted == label)
            made = _made(costs, truth, label)
            added = costs.paired(label, broken_here, made < math.inf)
            own = costs.nearest[broken_here]
            self.breaking.append(Ladder(own, share, None if added is None else added[0]))
            self.making.append(Ladder(made, share, None if added is None else added[1]))
            self.missing.append(Ladder(own, share, costs.counted(broken_here)))

    def _limits(self, costs: FlipCosts, truth: Tensor, clean: Counts, eps: Tensor, *, smallest: bool) -> list[float]:
        """Which costs of making each class to list."""
        if costs.share is None or len(truth) <= SAMPLED or not len(eps):
            return [math.inf] * costs.classes
        limits = _bought(costs, truth, SAFETY * float(eps.max()) ** 2)
        if smallest:
            for label in np.flatnonzero(clean.positives).tolist():
                own, hits, union = self.breaking[label].single, clean.intersection[label], clean.union[label]
                for drop in DROPS:
                    level = float(hits / union) - drop
                    count = min(math.ceil(hits - level * union), len(own))
                    if level > 0 and count > 0:
                        # Breaking one more does as much as `1 / level` that were made: most of these cost no more.
                        limits[label] = max(limits[label], float(own[count - 1]) / max(1, math.floor(1.0 / level)))
        return limits


def needed(drop: float, total: int) -> int:
    """Least number of flips that take at least this share, never counted too high because of rounding."""
    return math.ceil(drop * total * (1.0 - 1e-12))


def _by_class(costs: FlipCosts, truth: Tensor) -> list[Tensor]:
    """Costs of the true positives of every class, in no order."""
    found: list[list[Tensor]] = [[] for _ in range(costs.classes)]
    for some in pieces(len(truth), truth.device):
        predicted, nearest = costs.predicted[some].to(torch.int16), costs.nearest[some]
        own = torch.where(predicted == truth[some], predicted, -1)
        for label, listed in enumerate(found):
            listed.append(_where(nearest, own, label))
    return [torch.cat(listed) for listed in found]


# On a CPU NumPy compares and chooses several times as fast as torch.


def _where(values: Tensor, kinds: Tensor, kind: int) -> Tensor:
    """The values of one kind."""
    if values.device.type != "cpu":
        return values[kinds == kind]
    return torch.from_numpy(np.compress(kinds.numpy() == kind, values.numpy()))


def _up_to(values: Tensor, limit: float) -> Tensor:
    """Those that are no larger."""
    if values.device.type != "cpu":
        return values[values <= limit]
    array = values.numpy()
    return torch.from_numpy(np.compress(array <= limit, array))


def _number_up_to(values: Tensor, limit: float) -> int:
    """How many are no larger."""
    if values.device.type != "cpu":
        return int((values <= limit).sum())
    return int(np.count_nonzero(values.numpy() <= limit))


def _making(costs: FlipCosts, truth: Tensor, clean: Counts, eps: Tensor, limits: list[float]) -> list[Ladder]:
    """For every class what it costs to make false positives of it."""
    limits = torch.tensor(limits, dtype=costs.nearest.dtype).tolist()
    largest = torch.finfo(costs.nearest.dtype).max
    sizes = [clean.valid - int(union) for union in clean.union]
    bought = [budgets(eps, slack(size), costs.nearest).tolist() for size in sizes]
    within = np.zeros((costs.classes, len(eps)), dtype=np.int64)
    found: list[list[Tensor]] = [[] for _ in limits]
    for some in pieces(len(truth), truth.device):
        for label, row in enumerate(_offered(costs, truth, some)):
            limit = limits[label]
            found[label].append(_up_to(row, min(limit, largest)))
            for place, budget in enumerate(bought[label]):
                if budget > limit:
                    within[label, place] += _number_up_to(row, budget)
    making = []
    for label, limit in enumerate(limits):
        part = None
        if limit < math.inf:
            counted = torch.from_numpy(within[label]).to(truth.device)
            part = Listed(limit, sizes[label], eps, counted, _rest(costs, truth, label))
        making.append(Ladder(torch.cat(found[label]), costs.share, part=part))
    return making


def _rest(costs: FlipCosts, truth: Tensor, label: int) -> Callable[[], Tensor]:
    def rest() -> Tensor:
        made = _made(costs, truth, label)
        return made[made < math.inf]

    return rest


def _bought(costs: FlipCosts, truth: Tensor, budget: float) -> list[float]:
    """What the dearest false positive of each class may cost that a budget buys, by a few pixels."""
    step = len(truth) // SAMPLED + 1
    few = torch.arange(step // 2, len(truth), step, device=truth.device)
    steps = ascending(_offered(costs, truth, few))
    share = 1.0 if costs.share is None else costs.share
    enough = steps.double().cumsum(dim=1).mul_(step * share * share) > budget
    first = enough.to(torch.uint8).argmax(dim=1, keepdim=True)
    dearest = torch.where(enough.any(dim=1), steps.gather(1, first)[:, 0], math.inf)
    bought: list[float] = dearest.tolist()
    return bought


def _offered(costs: FlipCosts, truth: Tensor, some: slice | Tensor) -> Tensor:
    """Costs ``(K, n)`` of making some pixels false positives of each class, infinite where there is none to make."""
    offered, predicted, true = costs.towards_all(some), costs.predicted[some], truth[some].long()
    offered.scatter_(0, predicted[None], math.inf)
    offered.scatter_(0, torch.where(true < costs.classes, true, predicted)[None], math.inf)
    left_out = true > costs.classes
    if number(left_out):
        offered.masked_fill_(left_out, math.inf)
    return offered


def _made(costs: FlipCosts, truth: Tensor, label: int) -> Tensor:
    """The same of one class and the whole image, ``(H * W,)``."""
    found = torch.empty_like(costs.nearest)
    for some in pieces(len(found), found.device):
        barred = (truth[some] == label) | (costs.predicted[some] == label) | (truth[some] > costs.classes)
        found[some] = costs.towards(label, some).masked_fill_(barred, math.inf)
    return found
