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

and the least over a few prices is taken, for each image by itself, since each has its own budget. Where the best prices
are is guessed on a part of the image; any other would only be less tight.

Under the refined certificate the pixels of a block share what they cost (docs/refined.md): a block gains no more than
if each choice cost its change of logits alone, and no more than if only its dearest choice were paid. The smaller of
the two counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from attackcheck.measures.costs import FlipCosts
from attackcheck.measures.sharing import blocks

__all__ = ["Weights", "most_lost"]

PRICES = 24
"""Prices tried on a part of the image, over all magnitudes."""

AROUND = 1.3 ** torch.arange(-3.0, 4.0, dtype=torch.float64)
"""Prices tried on the image, as multiples of the best on its part."""

CLOSER = torch.tensor([0.85, 0.92, 1.08, 1.15], dtype=torch.float64)
"""And once more, as multiples of the best so far."""

PART = 8
"""One row in so many is the part that is looked at first."""

SMALL = 2**15
"""Images of fewer pixels are looked at as a whole."""

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
        costs: of this image; ``share`` must be known.
        labels, valid: ``(H * W,)``; pixels that are not valid count for nothing.
        weights: of the data set.

    Single pixels' own, tighter constants are not used here.
    """
    if costs.share is None:
        raise ValueError("expected a claim about sets of pixels")
    budgets = (eps.double() / costs.share).square() * (1.0 + 1e-9)
    whole = _whole(costs)
    share = PART if len(costs.predicted) > SMALL else 1
    part = _offers(costs, labels, valid, weights, _part(costs, share), 0.0, exact=share == 1)
    positive = budgets[budgets > 0]
    if part.most == 0.0 and share > 1:
        share, part = 1, _offers(costs, labels, valid, weights, whole, 0.0)
    if part.most == 0.0:
        return torch.zeros(len(eps), dtype=torch.float64)
    low = 1e-3 * part.most * share / float(positive.max()) if len(positive) else 1.0
    high = part.most * share / float(positive.min()) if len(positive) else 1.0
    prices = torch.logspace(0, 1, PRICES, base=high / low, dtype=torch.float64) * low
    place = (budgets[:, None] * prices + share * _surplus(part, prices)).argmin(dim=1)
    prices = _distinct(prices[place], AROUND)
    offers = part if share == 1 else _offers(costs, labels, valid, weights, whole, float(prices.min()))
    bounds = budgets[:, None] * prices + _surplus(offers, prices)
    best, place = bounds.min(dim=1)
    prices = _distinct(prices[place], CLOSER)
    # What was left out is worth nothing at any price from the least on.
    prices = prices.clamp_min(offers.price)
    best = torch.minimum(best, (budgets[:, None] * prices + _surplus(offers, prices)).amin(dim=1))
    # Every gain is rounded by less than 2^-22 of its value.
    return torch.minimum(best + 2.0**-21 * offers.most, torch.full_like(best, offers.most))


class _Offers(NamedTuple):
    """What pixels can be turned into, at which costs; g pixels of a block, N blocks."""

    cost: Tensor  # (K, g, N)
    value: Tensor  # (K, g, N)
    dearest: Tensor | None  # (K, g, N) what it costs if this choice is the dearest of its block, and alone is paid
    gained: Tensor | None  # (K, g, N) what all choices of the block are worth then
    most: float  # sum of the largest values, also of what was left out
    price: float  # blocks that gain nothing at this price were left out


def _whole(costs: FlipCosts) -> list[tuple[slice, int]]:
    """All rows of blocks, a chunk at a time."""
    height, width = costs.shape
    rows = max(1, CHUNK.get(costs.predicted.device.type, CHUNK["cpu"]) // (width * costs.scale)) * costs.scale
    return [_rows(start, min(rows, height - start), width) for start in range(0, height, rows)]


def _part(costs: FlipCosts, share: int) -> list[tuple[slice, int]]:
    """One row of blocks in so many."""
    height, width = costs.shape
    if share == 1:
        return _whole(costs)
    step = share * costs.scale
    return [_rows(start, costs.scale, width) for start in range(step // 2 // costs.scale * costs.scale, height, step)]


def _rows(start: int, count: int, width: int) -> tuple[slice, int]:
    return slice(start * width, (start + count) * width), count


def _offers(
    costs: FlipCosts,
    labels: Tensor,
    valid: Tensor,
    weights: Weights,
    strips: Sequence[tuple[slice, int]],
    price: float,
    *,
    exact: bool = True,
) -> _Offers:
    """What some rows offer, without blocks that gain nothing at a price; inexact: without their dearest choices."""
    kind, device, classes = costs.nearest.dtype, labels.device, costs.classes
    broken, made = weights.broken.to(device, kind), weights.made.to(device, kind)
    numbers = torch.arange(len(costs.predicted), device=device)
    found: list[tuple[Tensor, ...]] = []
    most = 0.0
    for some, rows in strips:
        predicted, counted = costs.predicted[some], valid[some]
        # Labels that are no class, or do not count, are one class more.
        truth = labels[some].clamp(-1, classes).add_(classes + 1).remainder_(classes + 1)
        start = broken.index_select(0, predicted).mul_((predicted == truth).to(kind))
        cost = torch.stack([costs.together(label, some) for label in range(classes)])
        # Turning right costs the adversary; staying is no choice.
        value = torch.cat([start + made[:, None], start[None]])
        value.scatter_(0, truth[None], 0.0).scatter_(0, predicted[None], 0.0)
        value = value[:classes].mul_(counted.to(kind))
        most += float(value.amax(dim=0).sum(dtype=torch.float64))
        places = blocks(numbers[some] - some.start, rows, costs.scale)  # (g, N)
        if price > 0.0:
            gain = torch.addcmul(value, cost, torch.full((), price, dtype=kind, device=device), value=-1.0)
            gain = blocks(gain.amax(dim=0), rows, costs.scale).amax(dim=0)
            places = places.index_select(1, (gain > 0).nonzero()[:, 0])
        parts = [cost, value]
        if exact and costs.scale > 1:
            parts.append(torch.stack([costs.towards(label, some) for label in range(classes)]))
        chosen = places.flatten()
        found.append(tuple(each.index_select(1, chosen).reshape(classes, *places.shape) for each in parts))
    cost, value, *rest = (torch.cat(each, dim=-1) for each in zip(*found, strict=True))
    dearest = rest[0] if rest else None
    return _Offers(cost, value, dearest, None if dearest is None else _gained(value, dearest), most, price)


def _gained(value: Tensor, dearest: Tensor) -> Tensor:
    """What a block's choices are worth at most if none costs more than a given one of them, ``(K, g, N)``."""
    total = value.clone()
    pixels = torch.arange(value.shape[1], device=value.device)
    for pixel in range(value.shape[1]):
        best = torch.zeros_like(value)
        for label in range(len(value)):
            within = (dearest[label, pixel] <= dearest).to(value.dtype)
            best = torch.maximum(best, within.mul_(value[label, pixel]))
        total.addcmul_(best, (pixels != pixel).to(value.dtype)[None, :, None])
    return total


def _distinct(prices: Tensor, factors: Tensor) -> Tensor:
    distinct = torch.tensor(sorted(set(prices.tolist())), dtype=torch.float64)
    return (distinct[:, None] * factors).flatten()


def _surplus(offers: _Offers, prices: Tensor) -> Tensor:
    """What blocks gain at most at every price ``mu``, ``sum_i max(0, max_k (v_ik - mu c_ik))``: (P,) on the CPU."""
    cost, value, dearest, gained = offers.cost, offers.value, offers.dearest, offers.gained
    total = torch.zeros(len(prices), dtype=torch.float64, device=cost.device)
    chunk = max(1, CHUNK.get(cost.device.type, CHUNK["cpu"]) // cost.shape[1])
    chosen = prices.to(cost.device, cost.dtype)
    for start in range(0, cost.shape[2], chunk):
        some = slice(start, start + chunk)
        c, v = cost[..., some].contiguous(), value[..., some].contiguous()
        d = g = None
        if dearest is not None and gained is not None:
            d, g = dearest[..., some].flatten(0, 1), gained[..., some].flatten(0, 1)
        for number in range(len(prices)):
            mu = chosen[number]
            gain = torch.addcmul(v, c, mu, value=-1.0).amax(dim=0).clamp_min_(0.0).sum(dim=0)
            if d is not None and g is not None:
                gain = torch.minimum(gain, torch.addcmul(g, d, mu, value=-1.0).amax(dim=0).clamp_min_(0.0))
            total[number] += gain.sum(dtype=torch.float64)
    return total.cpu()
