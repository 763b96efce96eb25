"""What it costs to flip many pixels whose features are shared.

The pixels of a block see one place of the features. Flipping a set S of them moves that place by at least

    F(S)^2 = max(max_{i in S} R_i^2, sum_{i in S} m_i^2 / (2 t^2)),

where R_i is the pixel's own refined distance, and t the norm of the map from a place of the features to the logits of
its block. Places share the budget: the squares of their movements add up. So at most as many pixels flip as the
greatest convex functions below the smallest F of each number of pixels, one for each block, allow: their steps, sorted
over all blocks, are what a further flip costs.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["steps_of_blocks"]


def steps_of_blocks(own: Tensor, shared: Tensor, height: int, scale: int) -> Tensor:
    """What each further flip costs at least, so that the sum over the cheapest is a lower bound for any set.

    Args:
        own: ``(H * W,)`` squared distance of every pixel alone; infinite where it is not for sale.
        shared: ``(H * W,)`` what it adds where a block pays for all that flip; infinite likewise.
        height: H.
        scale: pixels of a block along each axis.

    Returns:
        ``(H * W,)``, in no particular order; infinite where there is nothing to flip.
    """
    own, shared = _blocks(own, height, scale).sort(dim=1).values, _blocks(shared, height, scale).sort(dim=1).values
    least = torch.maximum(own, shared.cumsum(dim=1))  # (N, n): the least F of 1, 2, ... pixels
    if least.shape[1] == 1:
        return least.flatten()
    return _slopes_of_minorant(least).flatten()


def _blocks(values: Tensor, height: int, scale: int) -> Tensor:
    down, right = height // scale, len(values) // height // scale
    return values.reshape(down, scale, right, scale).permute(0, 2, 1, 3).reshape(down * right, scale * scale)


def _slopes_of_minorant(values: Tensor) -> Tensor:
    """Slopes of the greatest convex minorant of 0, values[:, 0], values[:, 1], ..., ascending: (N, n).

    By the formula of Robertson, Wright and Dykstra ("Order restricted statistical inference", 1988, section 1.4):
    slope i is the largest over a < i of the smallest over b >= i of the mean slope from a to b.
    """
    count = values.shape[1]
    padded = torch.cat([torch.zeros_like(values[:, :1]), values], dim=1)
    slopes = []
    for i in range(1, count + 1):
        best = torch.zeros_like(values[:, 0])
        for a in range(i):
            # From an infinite value on, all slopes are infinite.
            start = padded[:, a]
            means = torch.stack([(padded[:, b] - start) / (b - a) for b in range(i, count + 1)], 1)
            least = torch.where(start.isfinite()[:, None], means, torch.inf).amin(dim=1)
            best = torch.maximum(best, least)
        slopes.append(best)
    return torch.stack(slopes, dim=1)
