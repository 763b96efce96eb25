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

for each image by itself, since each has its own budget. The best price follows from the pixels' steps: on the upper
hull of a pixel's choices (costs to the right, values upwards) each further step gains less for what it costs, and the
price is that of the step at which the cheapest of all pixels use the budget up (Sinha and Zoltners, "The
multiple-choice knapsack problem", 1979). Which pixels matter at all is guessed on a part of the image. Any other price
holds as well and would only be less tight.

Under the refined certificate the pixels of a block share what they cost (docs/refined.md): a block gains no more than
if each choice cost its change of logits alone, and no more than if only its dearest choice were paid. The smaller of
the two counts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from attackcheck.measures.costs import FlipCosts, pieces
from attackcheck.measures.counting import truths
from attackcheck.measures.sharing import blocks

__all__ = ["Weights", "most_lost"]

AROUND = ((0.5, 0.6, 0.72, 0.86, 1.0, 1.16, 1.35, 1.6), (0.93, 0.97, 1.03, 1.07))
"""Prices tried where blocks share, as multiples of what is best where they do not, and then of the best of these."""

LOWER = 0.8
"""What gains nothing at so much of the least price of the sample is left out."""

SAMPLED = 2**14
"""So many pixels are looked at to guess the least price; images of fewer are looked at as a whole."""

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

    def of_choices(self, like: Tensor) -> Tensor:
        """What turning pixels into each class takes, ``(K, (K + 2) K)``, by their truth times K plus their prediction.

        Truths are as from :func:`attackcheck.measures.counting.truths`; turning right costs the adversary, and staying
        is no choice. Of the type and on the device of ``like``.
        """
        classes = len(self.broken)
        start = torch.cat([torch.diag(self.broken), self.broken.new_zeros(2, classes)])  # (K + 2, K)
        value = start[None].to(like) + self.made.to(like)[:, None, None]
        same = torch.arange(classes)
        value[same, same] = 0.0
        value[same, :, same] = 0.0
        value[:, classes + 1] = 0.0
        return value.flatten(1)


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
    table = weights.of_choices(costs.nearest)
    code, most = _codes(costs, truths(labels, valid, costs.classes), table.amax(dim=0))
    if most == 0.0 or not len(eps):
        return torch.zeros(len(eps), dtype=torch.float64)
    price = 0.0
    if len(code) > SAMPLED:
        step = len(code) // SAMPLED
        few = _offers(costs, code, table, torch.arange(step // 2, len(code), step, device=code.device)[None], 0.0)
        price = LOWER * float(_prices(few, budgets / step, 0.0, steps=1).min())
    offers = _offers(costs, code, table, _worthwhile(costs, code, table, price), price)
    prices = _prices(offers, budgets, price)
    best = torch.full_like(budgets, most)
    for factors in AROUND if offers.dearest is not None else ((1.0,),):
        # What was left out is worth nothing at any price from this one on; none is 0, since costs may be infinite.
        tried = sorted({max(factor * mu, price, 1e-30) for factor in factors for mu in prices.tolist()})
        grid = torch.tensor(tried, dtype=torch.float64)
        found, place = (budgets[:, None] * grid + _surplus(offers, grid)).min(dim=1)
        best, prices = torch.minimum(best, found), grid[place]
    # Every gain is rounded, and what is left out for gaining nothing gains at most, less than 2^-20 of its value.
    return torch.minimum(best + 2.0**-20 * most, torch.full_like(best, most))


class _Offers(NamedTuple):
    """What pixels can be turned into, at which costs; g pixels of a block, N blocks, the most rewarding first."""

    cost: Tensor  # (K, g, N)
    value: Tensor  # (K, g, N)
    reward: Tensor  # (N,) largest value over cost in the block, descending
    dearest: Tensor | None  # (K, g, N) what it costs if this choice is the dearest of its block, and alone is paid
    gained: Tensor | None  # (K, g, N) what all choices of the block are worth then


def _codes(costs: FlipCosts, truth: Tensor, top: Tensor) -> tuple[Tensor, float]:
    """Truth and prediction of every pixel as one number, and the sum of the largest values of all pixels."""
    found = torch.empty(truth.shape, dtype=torch.int32, device=truth.device)
    most = torch.zeros((), dtype=torch.float64, device=truth.device)
    for some in pieces(len(truth), truth.device):
        found[some] = truth[some].int().mul_(costs.classes).add_(costs.predicted[some].int())
        most += top.index_select(0, found[some]).sum(dtype=torch.float64)
    return found, float(most)


def _worthwhile(costs: FlipCosts, code: Tensor, table: Tensor, price: float) -> Tensor:
    """Numbers ``(g, N)`` of the pixels of all blocks but some that gain nothing at a price."""
    numbers = torch.arange(len(code), device=code.device)
    if price == 0.0:
        return blocks(numbers, costs.shape[0], costs.scale)
    # No choice costs less than the nearest, and none is worth more than the best.
    top = table.amax(dim=0)
    nearest, gains = costs.nearest_together(), torch.empty(code.shape, dtype=torch.bool, device=code.device)
    factor = nearest.new_tensor(-price)
    for some in pieces(len(code), code.device):
        gain = torch.addcmul(top.index_select(0, code[some]), nearest[some], factor)
        torch.gt(gain, 0.0, out=gains[some])
    if costs.scale == 1:
        return numbers[None, gains]
    kept = blocks(gains, costs.shape[0], costs.scale).any(dim=0)
    return blocks(numbers, costs.shape[0], costs.scale)[:, kept]


def _offers(costs: FlipCosts, code: Tensor, table: Tensor, places: Tensor, price: float) -> _Offers:
    """What blocks of pixels ``(g, N)`` offer, without those that gain nothing at a price."""
    size = len(places)
    found: list[tuple[Tensor, ...]] = []
    for some in pieces(places.shape[1], code.device):
        chosen = places[:, some].flatten()
        cost = costs.together_all(chosen)
        value = table.index_select(1, code.index_select(0, chosen))
        # What costs nothing is worth taking at any price.
        reward = (value / cost.clamp_min(1e-30)).amax(dim=0).reshape(size, -1).amax(dim=0)
        kept = (reward > price).nonzero()[:, 0]
        parts = [cost, value, *([] if size == 1 else [costs.towards_all(chosen)])]
        # Choosing along the last of two dimensions is many times as fast as along that of three.
        parts = [part.reshape(costs.classes * size, -1).index_select(1, kept) for part in parts]
        found.append((reward.index_select(0, kept), *parts))
    reward, *parts = (torch.cat(each, dim=-1) for each in zip(*found, strict=True))
    order = _descending(reward)
    reward = reward.index_select(0, order)
    cost, value, *rest = (part.index_select(1, order).reshape(costs.classes, size, -1) for part in parts)
    dearest = rest[0] if rest else None
    return _Offers(cost, value, reward, dearest, None if dearest is None else _gained(value, dearest))


def _prices(offers: _Offers, budgets: Tensor, least: float, steps: int | None = None) -> Tensor:
    """The price ``(E,)`` at which the pixels use each budget up, in float64 on the CPU, as if none shared.

    Steps of pixels that gain no more than ``least`` for their cost are left out, and so are all but the first `steps`.
    """
    cost, value = offers.cost.flatten(1), offers.value.flatten(1)
    paid, had = torch.zeros_like(cost[0]), torch.zeros_like(cost[0])
    gains, spent = [], []
    for _ in range(len(cost) if steps is None else steps):
        best, label = ((value - had) / (cost - paid).clamp_min(1e-30)).max(dim=0)
        price, worth = cost.gather(0, label[None])[0], value.gather(0, label[None])[0]
        on = (best > least).nonzero()[:, 0]
        if not len(on):
            break
        gains.append(best.index_select(0, on))
        spent.append((price - paid).index_select(0, on))
        paid, had = price.index_select(0, on), worth.index_select(0, on)
        cost, value = cost.index_select(1, on), value.index_select(1, on)
    if not gains:
        return torch.zeros_like(budgets)
    gain = torch.cat(gains)
    order = _descending(gain)
    gain = gain.index_select(0, order)
    used = torch.cat(spent).index_select(0, order).double().cumsum(dim=0)
    place = torch.searchsorted(used, budgets.to(used.device))
    found = torch.cat([gain, gain.new_zeros(1)]).index_select(0, place)
    return found.double().cpu()


def _descending(values: Tensor) -> Tensor:
    if values.device.type != "cpu":
        return values.argsort(descending=True)
    return torch.from_numpy(np.argsort(-values.numpy()))  # several times as fast on a CPU


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


def _surplus(offers: _Offers, prices: Tensor) -> Tensor:
    """What blocks gain at most at every price ``mu``, ``sum_i max(0, max_k (v_ik - mu c_ik))``: (P,) on the CPU."""
    cost, value, dearest, gained = offers.cost, offers.value, offers.dearest, offers.gained
    total = torch.zeros(len(prices), dtype=torch.float64, device=cost.device)
    chunk = max(1, CHUNK.get(cost.device.type, CHUNK["cpu"]) // cost.shape[1])
    chosen = prices.to(cost.device, cost.dtype)
    # Blocks that are not worth a price gain nothing at it.
    ends = torch.searchsorted(-offers.reward, -chosen).tolist()
    for number, end in enumerate(ends):
        mu = chosen[number]
        for start in range(0, end, chunk):
            some = slice(start, min(start + chunk, end))
            gain = torch.addcmul(value[..., some], cost[..., some], mu, value=-1.0)
            gain = gain.amax(dim=0).clamp_min_(0.0).sum(dim=0)
            if dearest is not None and gained is not None:
                alone = torch.addcmul(gained[..., some], dearest[..., some], mu, value=-1.0)
                gain = torch.minimum(gain, alone.flatten(0, 1).amax(dim=0).clamp_min_(0.0))
            total[number] += gain.sum(dtype=torch.float64)
    return total.cpu()
