"""Connected components of a prediction: which survive, and what it costs to destroy one."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import sparse
from scipy.sparse import csgraph
from torch import Tensor

__all__ = ["SMALLEST", "Components", "connected", "prices", "surviving"]

SMALLEST = 16

LARGE = 2**12
"""Components of more pixels are looked at one by one, the others together."""

Array = np.ndarray[Any, Any]


class Components(NamedTuple):
    """Components of a clean prediction; pixels of smaller ones are in none (-1). All on the CPU."""

    member: Tensor  # (H * W,) int64, number of the component or -1
    needed: Tensor  # (M,) int64, so many of its pixels must change before it counts as destroyed
    sizes: Tensor  # (M,) int64
    pixels: Tensor  # (sum of sizes,) int64, one component after the other

    @classmethod
    def none(cls, pixels: int) -> Components:
        """As if an image of so many pixels had no components."""
        nothing = torch.zeros(0, dtype=torch.int64)
        return cls(torch.full((pixels,), -1), nothing, nothing, nothing)


def connected(predicted: Tensor, shape: tuple[int, int], smallest: int = SMALLEST) -> Components:
    """Components with 4 neighbours of a prediction ``(H * W,)``; one is destroyed once less than half of it is left.

    Runs of equal pixels in a row are the nodes of a graph, and two runs that touch have an edge.
    """
    classes = predicted.to(torch.int32).cpu().numpy().reshape(shape)
    begins: Array = np.ones(shape, dtype=bool)
    np.not_equal(classes[:, 1:], classes[:, :-1], out=begins[:, 1:])
    first = np.flatnonzero(begins)
    lengths = np.diff(first, append=classes.size)
    run = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    # Two runs that touch do so first where one of them begins.
    meet = np.flatnonzero((classes[1:] == classes[:-1]) & (begins[1:] | begins[:-1]))
    ends = run[meet], run[meet + shape[1]]
    graph = sparse.coo_matrix((np.ones(len(meet), dtype=np.int8), ends), shape=(len(lengths), len(lengths)))
    count, number = csgraph.connected_components(graph, directed=False)
    sizes = np.bincount(number, weights=lengths, minlength=count).astype(np.int64)
    large = sizes >= smallest
    of_run = np.where(large, np.cumsum(large) - 1, -1)[number]
    # Runs in the order of their components, and their pixels one after the other.
    inside = np.flatnonzero(of_run >= 0)
    narrow = of_run[inside].astype(
        np.uint16 if np.count_nonzero(large) < 2**16 else np.int64
    )  # many times as fast to sort
    order = inside[np.argsort(narrow, kind="stable")]
    long = lengths[order]
    pixels = np.repeat(first[order] - (np.cumsum(long) - long), long)
    pixels += np.arange(len(pixels))
    sizes = sizes[large]
    member = np.repeat(of_run, lengths)
    return Components(*(torch.from_numpy(each) for each in (member, sizes // 2 + 1, sizes, pixels)))


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
    sizes, needed = components.sizes.numpy(), components.needed.numpy()
    total, dearest = np.zeros(len(sizes)), np.zeros(len(sizes))
    cost = nearest.cpu().numpy()[components.pixels.numpy()]
    start = np.cumsum(sizes) - sizes
    large = sizes > LARGE
    for number in np.flatnonzero(large).tolist():
        part = cost[start[number] : start[number] + sizes[number]]
        part.partition(needed[number] - 1)
        total[number] = part[: needed[number]].sum(dtype=np.float64)
        dearest[number] = part[needed[number] - 1]
    small = ~large
    if small.any():
        cost, sizes, needed = cost[np.repeat(small, sizes)], sizes[small], needed[small]
        member = np.repeat(np.arange(len(sizes)), sizes)
        if cost.dtype == np.float32:
            # Numbers that are not negative are in the order of their bits: sorted by component and by cost at once.
            keys = np.sort(member << 32 | cost.view(np.int32))
            cost = keys.astype(np.int32).view(np.float32)
        else:
            cost = cost[np.lexsort((cost, member))]
        start = np.cumsum(sizes) - sizes
        padded = np.append(cost.astype(np.float64), 0.0)  # so that the last end is a place in it, too
        total[small] = np.add.reduceat(padded, np.stack([start, start + needed], axis=1).ravel())[::2]
        dearest[small] = cost[start + needed - 1]
    return torch.from_numpy(total), torch.from_numpy(dearest)


def surviving(components: Components, changed: Tensor) -> int:
    """How many components keep at least half of their pixels; ``changed`` is ``(H * W,)`` bool."""
    hit = components.member[changed.cpu() & (components.member >= 0)]
    lost = torch.bincount(hit, minlength=len(components.needed))
    return int((lost < components.needed).sum())
