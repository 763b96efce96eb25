"""The worst over every possible output: all class maps of tiny images, priced by exact projection.

Nothing here is shared with what is tested: costs come from the active-set projection of one pixel's logits onto the set
where a class wins, measures from their definitions, minima from enumeration.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


def projection(z: Array, label: int) -> float:
    """Squared distance of the logits z (K,) of one pixel to those where ``label`` is a largest one."""
    others = np.delete(z, label)
    best = math.inf
    for size in range(len(others) + 1):
        for chosen in itertools.combinations(range(len(others)), size):
            moved = np.append(others[list(chosen)], z[label])
            level = moved.mean()
            rest = np.delete(others, list(chosen))
            if (rest <= level + 1e-15).all() and (np.append(others[list(chosen)], level) >= level - 1e-15).all():
                best = min(best, float(((moved - level) ** 2).sum()))
    return best


class Image(NamedTuple):
    """Every class map of one image and its price."""

    maps: Array  # (M, n)
    joint: Array  # (M,) squared distances, all pixels on one budget
    alone: Array  # (M,) squared distances, each pixel with the whole budget
    clean: Array  # (n,)
    labels: Array  # (n,)


def image(logits: Array, labels: Array, joint: float, pixel: float) -> Image:
    """Price every class map of logits (K, n) under the constants ``joint`` and ``pixel``."""
    classes, n = logits.shape
    cost = np.array([[projection(logits[:, i], k) for i in range(n)] for k in range(classes)])  # (K, n)
    maps = np.array(list(itertools.product(range(classes), repeat=n)))
    single = cost[maps, np.arange(n)]  # (M, n)
    alone = single.max(axis=1) / pixel**2
    return Image(maps, np.maximum(single.sum(axis=1) / joint**2, alone), alone, logits.argmax(axis=0), labels)


def outcomes(picture: Image, price: Array, eps: float, classes: int, ignore: int) -> Array:
    """Distinct counts of all affordable maps: right, kept, then intersection and union of each class."""
    maps = picture.maps[price <= eps * eps]
    valid = picture.labels != ignore
    shown, truth = maps[:, valid], picture.labels[valid]
    columns = [(shown == truth).sum(axis=1), (maps == picture.clean).sum(axis=1)]
    for k in range(classes):
        columns += [((shown == k) & (truth == k)).sum(axis=1), ((shown == k) | (truth == k)).sum(axis=1)]
    return np.unique(np.stack(columns, axis=1), axis=0)


def worst(pictures: list[Image], eps: float, classes: int, ignore: int, *, alone: bool = False) -> dict[str, Any]:
    """The worst of every measure over all combinations of affordable maps; NaN where a measure has no value."""
    found = [outcomes(p, p.alone if alone else p.joint, eps, classes, ignore) for p in pictures]
    total = found[0]
    for more in found[1:]:
        total = np.unique((total[:, None] + more[None]).reshape(-1, total.shape[1]), axis=0)
    labels = np.concatenate([p.labels for p in pictures])
    labels = labels[labels != ignore]
    present = [k for k in range(classes) if (labels == k).any()]
    result: dict[str, Any] = {
        "accuracy": total[:, 0].min() / len(labels) if len(labels) else math.nan,
        "stability": total[:, 1].min() / sum(p.maps.shape[1] for p in pictures),
        "fnr": {k: 1 - (total[:, 2 + 2 * k] / (labels == k).sum()).min() for k in present},
        "iou": {k: (total[:, 2 + 2 * k] / total[:, 3 + 2 * k]).min() for k in present},
    }
    ratios = [total[:, 2 + 2 * k] / total[:, 3 + 2 * k] for k in present]
    result["miou"] = np.mean(ratios, axis=0).min() if present else math.nan
    return result
