"""Connected components of a prediction: which survive, and what it costs to destroy one."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

__all__ = ["SMALLEST", "Components", "connected", "prices", "surviving"]

SMALLEST = 16


class Components(NamedTuple):
    """Components of a clean prediction; pixels of smaller ones are in none (-1)."""

    member: Tensor  # (H * W,) int64 on the CPU, number of the component or -1
    needed: Tensor  # (M,) int64, so many of its pixels must change before it counts as destroyed


def connected(predicted: Tensor, shape: tuple[int, int], smallest: int = SMALLEST) -> Components:
    """Components with 4 neighbours of a prediction ``(H * W,)``; one is destroyed once less than half of it is left."""
    classes = predicted.cpu().numpy().reshape(shape)
    numbers: np.ndarray[Any, Any] = np.zeros(shape, dtype=np.int64)
    count = 0
    for value in np.unique(classes).tolist():
        labelled, found = ndimage.label(classes == value)
        numbers += np.where(labelled > 0, labelled + count, 0)
        count += int(found)
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)
    sizes[0] = 0
    large = sizes >= smallest
    renamed = np.where(large, np.cumsum(large) - 1, -1)
    needed = torch.from_numpy(sizes[large] // 2 + 1)
    return Components(torch.from_numpy(renamed[numbers.ravel()]), needed)


def prices(components: Components, nearest: Tensor) -> tuple[Tensor, Tensor]:
    """What destroying each component costs: ``(M,)`` sums of its cheapest flips, ``(M,)`` the dearest of these.

    Args:
        components: of the clean prediction.
        nearest: ``(H * W,)`` cost of the cheapest flip of each pixel.
    """
    count = len(components.needed)
    if count == 0:
        nothing = torch.zeros(0, dtype=torch.float64)
        return nothing, nothing.clone()
    cost, member = nearest.double().cpu(), components.member
    inside = (member >= 0).nonzero()[:, 0]
    order = inside[cost[inside].argsort()]
    order = order[member[order].argsort(stable=True)]  # by component, then by cost
    sizes = torch.bincount(member[order], minlength=count)
    start = torch.cumsum(sizes, dim=0) - sizes
    sorted_cost = cost[order]
    rank = torch.arange(len(order)) - start[member[order]]
    taken = rank < components.needed[member[order]]
    total = torch.zeros(count, dtype=torch.float64)
    total.index_add_(0, member[order][taken], sorted_cost[taken])
    return total, sorted_cost[start + components.needed - 1]


def surviving(components: Components, changed: Tensor) -> int:
    """How many components keep at least half of their pixels; ``changed`` is ``(H * W,)`` bool."""
    hit = components.member[changed.cpu() & (components.member >= 0)]
    lost = torch.bincount(hit, minlength=len(components.needed))
    return int((lost < components.needed).sum())
