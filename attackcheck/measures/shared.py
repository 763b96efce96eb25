"""Mean IoU when all classes draw on one budget and every pixel flips once: an upper bound of what can be lost.

Over a data set class k has the intersection ``T_k`` and the union ``U_k``; an adversary that breaks ``a_k`` of its true
positives and makes ``b_k`` false positives leaves ``f(a, b) = (T_k - a) / (U_k + b)``. For all ``a, b >= 0``

    f(a, b) >= T_k / U_k - a / U_k - T_k b / U_k^2,

since the difference of both sides is ``a b / (U (U + b)) + T b^2 / (U^2 (U + b))``. So a right pixel of class c that
becomes class k loses at most ``1 / U_c + T_k / U_k^2`` of the sum of IoUs, a wrong one at most ``T_k / U_k^2`` (that it
no longer is a false positive elsewhere only helps the defender), and the most that one image can lose is a
multiple-choice knapsack: every pixel makes one choice, all costs share the budget. Its Lagrangian is an upper bound
for every price mu >= 0,

    budget mu + sum_i max(0, max_k (v_ik - mu c_ik)),

and the least over a grid of prices is taken, for each image by itself, since each has its own budget.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attackcheck.measures.costs import FlipCosts

__all__ = ["Weights", "most_lost"]

PRICES = 24
REFINED = 6
CHUNK = {"cpu": 2**14, "cuda": 2**22}
"""Pixels at a time: on a CPU so many stay in its cache."""


class Weights:
    """What a broken or a made pixel takes from the sum of IoUs.

    Args:
        intersections, unions: ``(K,)`` of the clean predictions over the whole data set.
        counted: ``(K,)`` bool, the classes that the mean is over (their unions are positive).
    """

    def __init__(self, intersections: Tensor, unions: Tensor, counted: Tensor) -> None:
        union = unions.double().clamp_min(1.0)
        self.broken = torch.where(counted, 1.0 / union, 0.0)
        self.made = torch.where(counted, intersections.double() / union.square(), 0.0)


def most_lost(costs: FlipCosts, labels: Tensor, valid: Tensor, weights: Weights, eps: Tensor) -> Tensor:
    """Upper bound of what one image can take from the sum of IoUs at each budget ``eps`` (E,): (E,) float64.

    Args:
        costs: of this image; must be a joint claim (``share`` known).
        labels, valid: ``(H * W,)``; pixels that are not valid count for nothing.
        weights: of the data set.

    Single pixels' own, tighter constants are not used here.
    """
    if costs.share is None:
        raise ValueError("expected a claim about sets of pixels")
    cost, value = _choices(costs, labels, valid, weights)  # (K, n)
    budgets = (eps.double() / costs.share).square() * (1.0 + 1e-9)
    device = cost.device
    if cost.shape[1] == 0:
        return torch.zeros(len(eps), dtype=torch.float64)
    everything = float(value.amax(dim=0).sum(dtype=torch.float64))
    best = torch.full((len(eps),), everything, dtype=torch.float64)
    if everything == 0.0:
        return best
    positive = budgets[budgets > 0]
    low = 1e-3 * everything / float(positive.max()) if len(positive) else 1.0
    high = everything / float(positive.min()) if len(positive) else 1.0
    prices = torch.logspace(0, 1, PRICES, base=high / low, dtype=torch.float64) * low
    bounds = budgets[:, None] * prices + _surplus(cost, value, prices.to(device))  # (E, PRICES)
    place = bounds.argmin(dim=1)
    best = torch.minimum(best, bounds.amin(dim=1))
    # Once more around the best price of each budget.
    ratio = (high / low) ** (1.0 / (PRICES - 1))
    steps = torch.linspace(-1, 1, REFINED + 2, dtype=torch.float64)[1:-1]
    finer = prices[sorted(set(place.tolist()))][:, None] * ratio**steps  # (P, REFINED)
    surplus = _surplus(cost, value, finer.flatten().to(device))
    bounds = budgets[:, None] * finer.flatten() + surplus
    best = torch.minimum(best, bounds.amin(dim=1))
    # Every gain is rounded by less than 2^-22 of its value.
    return torch.minimum(best + 2.0**-21 * everything, torch.full_like(best, everything))


def _choices(costs: FlipCosts, labels: Tensor, valid: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """Costs and values ``(K, n)`` of turning every valid pixel into every class."""
    predicted = costs.predicted[valid]
    truth = labels[valid]
    right = predicted == truth
    kind = weights.broken.dtype
    broken, made = weights.broken.to(labels.device), weights.made.to(labels.device)
    start = torch.where(right, broken[predicted], torch.zeros((), dtype=kind, device=labels.device))
    cost = torch.stack([costs.towards(label)[valid] for label in range(costs.classes)])
    value = torch.empty_like(cost)
    for label in range(costs.classes):
        gain = start + made[label]
        # Turning right costs the adversary; staying is no choice.
        value[label] = gain.masked_fill_((truth == label) | (predicted == label), 0.0).to(cost.dtype)
    return cost, value


def _surplus(cost: Tensor, value: Tensor, prices: Tensor) -> Tensor:
    """``sum_i max(0, max_k (v_ik - mu c_ik))`` for every price ``mu``: (P,) float64 on the CPU."""
    total = torch.zeros(len(prices), dtype=torch.float64, device=cost.device)
    chunk = CHUNK.get(cost.device.type, CHUNK["cpu"])
    chosen = prices.to(cost.dtype)
    for start in range(0, cost.shape[1], chunk):
        c, v = cost[:, start : start + chunk], value[:, start : start + chunk]
        for number in range(len(prices)):
            gain = torch.addcmul(v, c, chosen[number], value=-1.0).amax(dim=0).clamp_min_(0.0)
            total[number] += gain.sum(dtype=torch.float64)
    return total.cpu()
