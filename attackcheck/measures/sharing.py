"""What it costs to flip many pixels whose features are shared.

The pixels of a block see one place of the features. Flipping a set S of them moves that place by at least

    F(S)^2 = max(max_{i in S} R_i^2, sum_{i in S} s_i),

where R_i is the pixel's own refined distance, and s_i its squared change of logits over that of the map from a place of
the features to the logits of its block. Places share the budget: the squares of their movements add up. Two things are
made of this, both per block: steps, for counting flips, and costs that may be added up, for everything else (the proofs
are in docs/refined.md).

Blocks are columns here, ``(n, N)`` for N blocks of n pixels. A pixel that is not for sale costs BARRED.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["BARRED", "adding_up", "blocks", "in_order", "steps", "unblocked"]

BARRED = 1e30
"""More than any budget's square (1e12), and differences of it are no NaN."""

DEAR = 1e24
"""What costs more cannot be bought."""

ROUNDED = 1.0 - 2.0**-18
"""Costs are results of fewer than fifty float32 operations; this takes off more than those can add to any sum."""


def blocks(values: Tensor, height: int, scale: int) -> Tensor:
    """Values ``(H * W,)`` of pixels by block: ``(scale^2, H * W / scale^2)``."""
    down, right = height // scale, len(values) // height // scale
    return values.reshape(down, scale, right, scale).permute(1, 3, 0, 2).reshape(scale * scale, down * right)


def unblocked(values: Tensor, height: int, scale: int) -> Tensor:
    """The inverse of :func:`blocks`."""
    down = height // scale
    return values.reshape(scale, scale, down, -1).permute(2, 0, 3, 1).flatten()


def in_order(keys: Sequence[Tensor]) -> list[Tensor]:
    """Values of every column by ascending size, given and returned row by row.

    Batcher's exchange network (Knuth, "The art of computer programming", section 5.2.2, algorithm M): for a few rows it
    is much faster than sorting columns one by one.
    """
    rows, count = list(keys), len(keys)
    power = 1 << max(0, count - 1).bit_length()
    p = power >> 1
    while p:
        q, r, d = power >> 1, 0, p
        while True:
            for i in range(count - d):
                if i & p == r:
                    rows[i], rows[i + d] = torch.minimum(rows[i], rows[i + d]), torch.maximum(rows[i], rows[i + d])
            if q == p:
                break
            d, q, r = q - p, q >> 1, p
        p >>= 1
    return rows


def steps(own: Tensor, shared: Tensor) -> Tensor:
    """What each further flip costs at least: sums of the cheapest, over all blocks, bound any set of so many flips.

    Args:
        own: ``(n, N)`` float32, squared distance of every pixel alone, at most BARRED.
        shared: ``(n, N)`` what it adds where a block pays for all that flip.

    Returns:
        ``(n, N)``, ascending in every block; at least DEAR where there is nothing to flip.
    """
    return torch.stack(_minorant(_least(in_order(own.unbind()), shared))).mul_(ROUNDED)


def adding_up(own: Tensor, shared: Tensor, tags: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Costs of pixels whose sum over any set is at most what the set costs.

    Args:
        own, shared: as for :func:`steps`.
        tags: ``(n, N)`` integers below 16 that stay with their pixels; None: the rows that they are in.

    Returns:
        Costs ``(n, N)`` in the order of `own`, at least DEAR where nothing is for sale, and the tags in this order.
    """
    if tags is None:
        tags = torch.arange(len(own), device=own.device)[:, None]
    bits = 15 if len(own) <= 16 else (1 << (len(own) - 1).bit_length()) - 1
    # Numbers that are not negative are in the order of their bits: two of them and a tag are exchanged as one.
    packed = (own.view(torch.int32).long() << 32) | (shared.view(torch.int32) & ~bits).long() | tags
    ordered = in_order(packed.unbind())
    alone = [(row >> 32).int().view(torch.float32) for row in ordered]
    low = [row.int() for row in ordered]
    together = [(row & ~bits).view(torch.float32) for row in low]
    spent = torch.zeros_like(alone[0])  # sum of the costs so far
    above = torch.zeros_like(spent)  # by how much they are above `shared`, where they are
    found = []
    for radius, change, slope in zip(alone, together, _minorant(_least(alone, shared)), strict=True):
        # Sound is a sum of all costs so far below the dearest radius, and one that takes back what others have more.
        allowed = torch.maximum(radius - spent, change - above).clamp_min_(0.0)
        cost = torch.minimum(slope, allowed)
        spent, above = spent + cost, (cost - change).clamp_min_(0.0).add_(above)
        # What is not for sale comes last, so that nothing depends on its cost, which is BARRED.
        found.append(cost)
    return torch.stack(found).mul_(ROUNDED), torch.stack(low) & bits


def _least(alone: list[Tensor], shared: Tensor) -> list[Tensor]:
    """The least F^2 of 1, 2, ... pixels of every block, given their own squared distances in order."""
    sums = in_order(shared.unbind())
    for row in range(1, len(sums)):
        sums[row] = sums[row] + sums[row - 1]
    return [torch.maximum(a, b) for a, b in zip(alone, sums, strict=True)]


def _minorant(values: list[Tensor]) -> list[Tensor]:
    """Slopes of the greatest convex minorant of 0, values[0], values[1], ...: ascending.

    By the formula of Robertson, Wright and Dykstra ("Order restricted statistical inference", 1988, section 1.4):
    slope i is the largest over a < i of the smallest over b >= i of the mean slope from a to b.
    """
    slopes: list[Tensor] = []
    for a in range(len(values)):
        least = None
        for b in range(len(values), a, -1):
            mean = values[b - 1] - values[a - 1] if a else values[b - 1]
            if b > a + 1:
                mean = mean * (1.0 / (b - a))
            least = mean if least is None else torch.minimum(least, mean)
            if a == 0:
                slopes.insert(0, least)
            else:
                slopes[b - 1] = torch.maximum(slopes[b - 1], least)
    return slopes
