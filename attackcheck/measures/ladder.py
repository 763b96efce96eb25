"""Sorted flip costs: how many pixels a budget buys, and what so many pixels cost.

Comparisons are rounded in the adversary's favour, so that a certified value is never too good: sums of n costs run in
float64, where their relative error is below ``n * 2^-53``, and budgets are enlarged by more than that.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

__all__ = ["Ladder"]


class Ladder:
    """Flips in the order of their costs.

    Args:
        costs: ``(n,)`` squared distances, at least 0; infinite ones can never be bought.
        share: pixels share a budget: a set costs ``share^2`` times the sum of its costs, and none of its pixels more
            than the budget itself. None: every pixel has the whole budget for itself.
        added: at least ``(n,)``, what is added up instead of the costs themselves where those must not be.
    """

    def __init__(self, costs: Tensor, share: float | None, added: Tensor | None = None) -> None:
        self.single = _sorted(costs)
        self.share = share
        self.total: Tensor | None = None
        if share is not None:
            steps = self.single if added is None else _sorted(added)[: len(self.single)]
            self.total = torch.zeros(len(steps) + 1, dtype=torch.float64, device=costs.device)
            torch.cumsum(steps, dim=0, dtype=torch.float64, out=self.total[1:])
            if share != 1.0:
                self.total.mul_(share * share)
        self.slack = 1.0 + 1e-12 + 8.0 * len(self.single) * 2.0**-53

    def __len__(self) -> int:
        return len(self.single)

    def alone(self, eps: Tensor) -> Tensor:
        """How many pixels each certificate alone lets flip at ``eps`` (E,): (E,) int64."""
        budget = (eps.double().square() * self.slack).to(self.single.device)
        if self.single.dtype == torch.float32:
            budget = torch.nextafter(budget.float(), torch.tensor(math.inf, device=budget.device))
        return torch.searchsorted(self.single, budget, right=True)

    def together(self, eps: Tensor) -> Tensor:
        """How many can flip at once on the shared budget ``eps`` (E,): (E,) int64."""
        alone = self.alone(eps)
        if self.total is None:
            return alone
        budget = (eps.double().square() * self.slack).to(self.total.device)
        return torch.minimum(alone, torch.searchsorted(self.total[1:], budget, right=True))

    def price(self, count: int) -> float:
        """The smallest distance at which ``count`` pixels can flip at once, infinite if there are not so many."""
        if count <= 0:
            return 0.0
        if count > len(self.single):
            return math.inf  # as it is where the costs are infinite
        price = float(self.single[count - 1])
        if self.total is not None:
            price = max(price, float(self.total[count]))
        return math.sqrt(price / self.slack)


def _sorted(values: Tensor) -> Tensor:
    if values.device.type != "cpu":
        return values.sort().values
    return torch.from_numpy(np.sort(values.numpy()))  # more than ten times as fast on a CPU
