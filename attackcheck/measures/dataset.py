"""Measures of a whole data set: clean, certified, per pixel, under attack, and of the constant predictor.

Every image has a budget of its own. Sums that share a constant denominator (accuracy, stability, components, FNR) add
up image by image; IoU is a ratio of sums and is minimised over all images together
(:mod:`attackcheck.measures.ratios`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attackcheck.measures.image import DROPS, Bounds, Counts, ImageBounds
from attackcheck.measures.names import Measure
from attackcheck.measures.ratios import Pairs, worst_ratio

__all__ = ["Smallest", "attacked", "certified", "clean", "constant", "counted_classes", "per_pixel", "smallest"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Smallest:
    """The smallest distance that can take ``drop`` of an image's measure, over images.

    ``reachable`` of ``images`` have one; the quantiles are over all images, infinite where it is not reachable, and the
    mean (of distances, never of their squares) is over the reachable ones. ``refined`` is the same by the refined
    certificate, None where that says nothing about sets of pixels.
    """

    measure: Measure
    label: int | None
    drop: float
    images: int
    reachable: int
    mean: float
    quantiles: tuple[float, float, float]  # 5, 50, 95 %
    refined: Smallest | None = None


def counted_classes(images: Sequence[Counts]) -> Array:
    """Which classes occur among the labels of the data set, (K,) bool."""
    present: Array = _sum(images, "positives") > 0
    return present


def clean(measure: Measure, label: int | None, images: Sequence[Counts]) -> float:
    """Value of the counts as they are, NaN where the measure has none."""
    match measure:
        case Measure.ACCURACY:
            return _share(sum(c.right for c in images), sum(c.valid for c in images))
        case Measure.STABILITY:
            return _share(sum(c.kept for c in images), sum(c.pixels for c in images))
        case Measure.COMPONENTS:
            return _share(sum(c.alive for c in images), sum(c.components for c in images))
        case Measure.FNR if label is not None:
            positives = int(_sum(images, "positives")[label])
            return _share(positives - int(_sum(images, "intersection")[label]), positives)
        case Measure.IOU if label is not None:
            if not _sum(images, "positives")[label]:
                return math.nan
            return _share(int(_sum(images, "intersection")[label]), int(_sum(images, "union")[label]))
        case Measure.MEAN_IOU:
            return _mean([clean(Measure.IOU, k, images) for k in _present(images)])
    raise ValueError(f"{measure.name} is about one class")


def certified(
    measure: Measure, label: int | None, images: Sequence[ImageBounds], place: int, lost: float = math.inf
) -> float:
    """The worst value at the budget number ``place``; NaN where the measure has none.

    Args:
        measure, label: what is measured; ``label`` for measures of a class.
        images: every image of the data set.
        place: index of the budget.
        lost: for MEAN_IOU, an upper bound of what all classes can lose together (the sum over images of
            :func:`attackcheck.measures.shared.most_lost`); the better of it and the mean of the classes' own optima
            holds.
    """
    value = _bounded(measure, label, [i.clean for i in images], [i.joint for i in images], place)
    if measure is not Measure.MEAN_IOU or math.isnan(value):
        return value
    counts = [i.clean for i in images]
    together = clean(measure, None, counts) - lost / int(counted_classes(counts).sum())
    return max(value, together, 0.0)


def per_pixel(measure: Measure, label: int | None, images: Sequence[ImageBounds], place: int) -> float:
    """What follows from the radii of single pixels alone: every pixel has the whole budget to itself."""
    return _bounded(measure, label, [i.clean for i in images], [i.alone for i in images], place)


def _bounded(measure: Measure, label: int | None, images: Sequence[Counts], worst: Sequence[Bounds], e: int) -> float:
    value = clean(measure, label, images)
    if math.isnan(value):
        return value
    match measure:
        case Measure.ACCURACY:
            lost = sum(int(bound.right[e]) for bound in worst)
            return _share(sum(c.right for c in images) - lost, sum(c.valid for c in images))
        case Measure.STABILITY:
            lost = sum(int(bound.kept[e]) for bound in worst)
            return _share(sum(c.kept for c in images) - lost, sum(c.pixels for c in images))
        case Measure.COMPONENTS:
            lost = sum(int(bound.alive[e]) for bound in worst)
            return _share(sum(c.alive for c in images) - lost, sum(c.components for c in images))
        case Measure.FNR if label is not None:
            positives = int(_sum(images, "positives")[label])
            lost = sum(int(bound.intersection[label][e]) for bound in worst)
            return _share(positives - int(_sum(images, "intersection")[label]) + lost, positives)
        case Measure.IOU if label is not None:
            pairs = [bound.pairs[label][e] for bound in worst]
            hits, union = int(_sum(images, "intersection")[label]), int(_sum(images, "union")[label])
            return worst_ratio(hits, union, pairs).value
    return _mean([_bounded(Measure.IOU, k, images, worst, e) for k in _present(images)])


def attacked(measure: Measure, label: int | None, images: Sequence[Sequence[Counts]]) -> tuple[float, tuple[int, ...]]:
    """The worst value over one prediction of each image, and which; ``images[i]`` are the predictions of image i.

    The first of each image is its clean one. Exact for every measure but MEAN_IOU, where predictions are exchanged
    image by image while that helps: any choice is a possible attack.
    """
    first = [candidates[0] for candidates in images]
    value = clean(measure, label, first)
    if math.isnan(value):
        return value, (0,) * len(images)
    if measure is Measure.MEAN_IOU:
        return _exchange(images)
    if measure is Measure.IOU and label is not None:
        pairs = [
            Pairs(
                np.array([int(c[0].intersection[label]) - int(x.intersection[label]) for x in c]),
                np.array([int(x.union[label]) - int(c[0].union[label]) for x in c]),
            )
            for c in images
        ]
        hits = sum(int(c.intersection[label]) for c in first)
        worst = worst_ratio(hits, sum(int(c.union[label]) for c in first), pairs)
        return worst.value, worst.chosen
    chosen = tuple(int(np.argmin([_left(measure, label, x) for x in candidates])) for candidates in images)
    return clean(measure, label, [c[k] for c, k in zip(images, chosen, strict=True)]), chosen


def _left(measure: Measure, label: int | None, counts: Counts) -> int:
    match measure:
        case Measure.ACCURACY:
            return counts.right
        case Measure.STABILITY:
            return counts.kept
        case Measure.COMPONENTS:
            return counts.alive
    return int(counts.intersection[-1 if label is None else label])


def _exchange(images: Sequence[Sequence[Counts]]) -> tuple[float, tuple[int, ...]]:
    first = [candidates[0] for candidates in images]
    present = _present(first)
    chosen = [0] * len(images)
    hits = _sum(first, "intersection")[present].astype(np.float64)
    unions = _sum(first, "union")[present].astype(np.float64)
    best = float((hits / unions).mean())
    for _ in range(4):
        before = best
        for i, candidates in enumerate(images):
            rest = hits - candidates[chosen[i]].intersection[present], unions - candidates[chosen[i]].union[present]
            new_hits = rest[0] + np.stack([c.intersection[present] for c in candidates])
            new_unions = rest[1] + np.stack([c.union[present] for c in candidates])
            values = (new_hits / new_unions).mean(axis=1)
            place = int(values.argmin())
            if values[place] < best:
                best, chosen[i] = float(values[place]), place
                hits, unions = new_hits[place], new_unions[place]
        if best >= before:
            break
    return best, tuple(chosen)


def constant(measure: Measure, label: int | None, images: Sequence[Counts]) -> float:
    """The value of predicting the commonest label everywhere, which no perturbation changes."""
    if not measure.labelled:
        return math.nan if math.isnan(clean(measure, None, images)) else 1.0
    positives, valid = _sum(images, "positives"), sum(c.valid for c in images)
    if not valid or (measure.per_class and label is not None and not positives[label]) or not positives.any():
        return math.nan
    common = int(positives.argmax())
    share = int(positives[common]) / valid
    match measure:
        case Measure.ACCURACY:
            return share
        case Measure.FNR:
            return 0.0 if label == common else 1.0
        case Measure.IOU:
            return share if label == common else 0.0
    return share / int((positives > 0).sum())


def smallest(images: Sequence[ImageBounds], refined: Sequence[ImageBounds] = ()) -> list[Smallest]:
    """For every measure, class and drop: the smallest distance that can do it, summed up over images.

    Args:
        images: every image of the data set.
        refined: the same by the refined certificate, if it says something about sets of pixels.
    """
    finer = {(entry.measure, entry.label, entry.drop): entry for entry in smallest(refined)} if refined else {}
    keys = sorted({key for image in images for key in image.smallest}, key=lambda k: (k[0].value, k[1] or 0))
    found = []
    for measure, label in keys:
        table = np.stack([image.smallest[measure, label] for image in images if (measure, label) in image.smallest])
        for drop, distances in zip(DROPS, table.T, strict=True):
            reachable = distances[np.isfinite(distances)]
            low, middle, high = (float(np.quantile(distances, q, method="inverted_cdf")) for q in (0.05, 0.5, 0.95))
            mean = float(reachable.mean()) if len(reachable) else math.inf
            count, beside = len(reachable), finer.get((measure, label, drop))
            found.append(Smallest(measure, label, drop, len(distances), count, mean, (low, middle, high), beside))
    return found


def _present(images: Sequence[Counts]) -> list[int]:
    return [int(k) for k in np.flatnonzero(counted_classes(images))]


def _sum(images: Sequence[Counts], name: str) -> Array:
    total: Array = np.sum([getattr(counts, name) for counts in images], axis=0)
    return total


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan
