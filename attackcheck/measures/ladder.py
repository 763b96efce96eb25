"""Sorted flip costs: how many pixels a budget buys, and what so many pixels cost.

Comparisons are rounded in the adversary's favour, so that a certified value is never too good: sums of n costs run in
float64, where their relative error is below ``n * 2^-53``, and budgets are enlarged by more than that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from attackcheck.sorting import ascending

__all__ = ["Ladder", "Listed", "budgets", "slack"]


class Listed(NamedTuple):
    """Which part of all flips a ladder lists: those that cost at most ``limit``; all finite ones are ``size``."""

    limit: float
    size: int
    eps: Tensor  # (E,)
    within: Tensor  # (E,) how many flips cost no more than a budget does, of all
    rest: Callable[[], Tensor]  # the costs of all


class Ladder:
    """Flips in the order of their costs.

    Args:
        costs: ``(n,)`` squared distances, at least 0; infinite ones can never be bought.
        share: pixels share a budget: a set costs ``share^2`` times the sum of its costs, and none of its pixels more
            than the budget itself. None: every pixel has the whole budget for itself.
        added: at least ``(n,)``, what is added up instead of the costs themselves where those must not be.
        part: where `costs` are not all, of which they are a part. Nothing that is said depends on it: the rest is
            asked for once it matters.
    """

    def __init__(
        self, costs: Tensor, share: float | None, added: Tensor | None = None, part: Listed | None = None
    ) -> None:
        self.single = ascending(costs)
        self.share = share
        self.total: Tensor | None = None
        if share is not None:
            steps = self.single if added is None else ascending(added)[: len(self.single)]
            self.total = torch.zeros(len(steps) + 1, dtype=torch.float64, device=costs.device)
            torch.cumsum(steps, dim=0, dtype=torch.float64, out=self.total[1:])
            if share != 1.0:
                self.total.mul_(share * share)
        self._part = part
        self._whole: Ladder | None = None
        self.size = len(self.single) if part is None else part.size
        self.slack = slack(self.size)

    def __len__(self) -> int:
        return self.size

    @property
    def share_squared(self) -> float:
        """By what sums of costs are multiplied."""
        return 1.0 if self.share is None else self.share * self.share

    @property
    def limit(self) -> float:
        """What is not listed costs more than this, by itself."""
        return math.inf if self._part is None else self._part.limit

    def whole(self) -> Ladder:
        """The same with all flips listed."""
        if self._part is None:
            return self
        if self._whole is None:
            self._whole = Ladder(self._part.rest(), self.share)
        return self._whole

    def up_to(self, cost: float) -> Ladder:
        """The same, where so little can buy no flip that is not listed, else the whole."""
        if self._part is None or (self.total is not None and float(self.total[-1]) > cost):
            return self
        return self.whole()

    def alone(self, eps: Tensor) -> Tensor:
        """How many pixels each certificate alone lets flip at ``eps`` (E,): (E,) int64."""
        budget = budgets(eps, self.slack, self.single)
        found = torch.searchsorted(self.single, budget, right=True)
        if self._part is None:
            return found
        if not torch.equal(eps, self._part.eps):
            return self.whole().alone(eps)
        return torch.where(budget <= self._part.limit, found, self._part.within)

    def together(self, eps: Tensor) -> Tensor:
        """How many can flip at once on the shared budget ``eps`` (E,): (E,) int64."""
        alone = self.alone(eps)
        if self.total is None:
            return alone
        budget = (eps.double().square() * self.slack).to(self.total.device)
        listed = self.up_to(float(budget.max()))
        if listed is not self:
            return listed.together(eps)
        return torch.minimum(alone, torch.searchsorted(self.total[1:], budget, right=True))

    def price(self, count: int) -> float:
        """The smallest distance at which ``count`` pixels can flip at once, infinite if there are not so many."""
        if count <= 0:
            return 0.0
        if count > self.size:
            return math.inf  # as it is where the costs are infinite
        if count > len(self.single):
            return self.whole().price(count)
        price = float(self.single[count - 1])
        if self.total is not None:
            price = max(price, float(self.total[count]))
        return math.sqrt(price / self.slack)


def slack(size: int) -> float:
    """By how much budgets are enlarged before they are compared with sums of so many costs at most."""
    return 1.0 + 1e-12 + 8.0 * size * 2.0**-53


def budgets(eps: Tensor, slack: float, costs: Tensor) -> Tensor:
    """Squares of ``eps`` (E,), enlarged, to compare costs with: of their type and device."""
    budget = (eps.double().square() * slack).to(costs.device)
    if costs.dtype == torch.float32:
        budget = torch.nextafter(budget.float(), torch.tensor(math.inf, device=budget.device))
    return budget
