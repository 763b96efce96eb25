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
    numbers: np.ndarray[Any, Any] = np.zeros(shape, dtype=np.int32)
    labelled: np.ndarray[Any, Any] = np.empty(shape, dtype=np.int32)
    count = 0
    for value in np.flatnonzero(np.bincount(classes.ravel())).tolist():
        mine = classes == value
        found = int(ndimage.label(mine, output=labelled))
        labelled += np.int32(count)
        np.copyto(numbers, labelled, where=mine)
        count += found
    sizes = np.bincount(numbers.ravel(), minlength=count + 1)
    sizes[0] = 0
    large = sizes >= smallest
    renamed = np.where(large, np.cumsum(large) - 1, -1)
    needed = torch.from_numpy(sizes[large] // 2 + 1)
    return Components(torch.from_numpy(renamed[numbers.ravel()]), needed)


def prices(components: Components, nearest: Tensor, added: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What destroying each component costs: ``(M,)`` sums of its cheapest flips, ``(M,)`` the dearest of these.

    Args:
        components: of the clean prediction.
        nearest: ``(H * W,)`` cost of the cheapest flip of each pixel.
        added: ``(H * W,)`` what is added up, where that is something else.
    """
    if added is not None and added is not nearest:
        return _cheapest(components, added)[0], _cheapest(components, nearest)[1]
    return _cheapest(components, nearest)


def _cheapest(components: Components, nearest: Tensor) -> tuple[Tensor, Tensor]:
    count = len(components.needed)
    if count == 0:
        nothing = torch.zeros(0, dtype=torch.float64)
        return nothing, nothing.clone()
    member = components.member.numpy()
    cost = nearest.cpu().numpy()
    inside = member >= 0
    member, cost = member[inside], cost[inside]
    sizes = np.bincount(member, minlength=count)
    start = np.cumsum(sizes) - sizes
    if cost.dtype == np.float32:
        # Numbers that are not negative are in the order of their bits: sorted by component and by cost at once.
        keys = np.sort(member << 32 | cost.view(np.int32))
        cost = keys.astype(np.int32).view(np.float32)
    else:
        cost = cost[np.lexsort((cost, member))]
    end = start + components.needed.numpy()
    padded = np.append(cost.astype(np.float64), 0.0)  # so that the last end is a place in it, too
    total = np.add.reduceat(padded, np.stack([start, end], axis=1).ravel())
    return torch.from_numpy(total[::2].copy()), torch.from_numpy(cost[end - 1].astype(np.float64))


def surviving(components: Components, changed: Tensor) -> int:
    """How many components keep at least half of their pixels; ``changed`` is ``(H * W,)`` bool."""
    hit = components.member[changed.cpu() & (components.member >= 0)]
    lost = torch.bincount(hit, minlength=len(components.needed))
    return int((lost < components.needed).sum())
