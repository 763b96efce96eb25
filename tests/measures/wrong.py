"""Measures that are wrong in one known way; every function has the signature of its sound twin.

All take logits ``(K, 1, n)`` and labels ``(1, n)`` of every image and one eps, for a joint constant of 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from attackcheck import LipschitzClaim
from attackcheck.measures import FlipCosts, ImageBounds, Measure, bounds, dataset

IGNORE = 255
CLAIM = LipschitzClaim(1.0)


def bounded(logits: Sequence[Tensor], labels: Sequence[Tensor], eps: float) -> list[ImageBounds]:
    budget = torch.tensor([eps], dtype=torch.float64)
    return [bounds(FlipCosts(CLAIM, z), t, IGNORE, budget) for z, t in zip(logits, labels, strict=True)]


def iou(logits: Sequence[Tensor], labels: Sequence[Tensor], eps: float, label: int) -> float:
    """Sound: one pair for each image, chosen for the ratio of the sums."""
    return dataset.certified(Measure.IOU, label, bounded(logits, labels, eps), 0)


def iou_from_the_worst_images(logits: Sequence[Tensor], labels: Sequence[Tensor], eps: float, label: int) -> float:
    """Wrong: every image minimises its own IoU, then intersections and unions are summed."""
    hits = unions = 0
    for image in bounded(logits, labels, eps):
        pairs, hit, union = image.joint.pairs[label][0], image.clean.intersection[label], image.clean.union[label]
        with np.errstate(invalid="ignore"):
            own = (hit - pairs.lost) / (union + pairs.made)
        place = int(np.nan_to_num(own, nan=1.0).argmin())
        hits, unions = hits + int(hit - pairs.lost[place]), unions + int(union + pairs.made[place])
    return hits / unions if unions else math.nan


def iou_where_the_class_occurs(logits: Sequence[Tensor], labels: Sequence[Tensor], eps: float, label: int) -> float:
    """Wrong: images without the class are skipped, as if no false positive could be made there."""
    kept = [image for image in bounded(logits, labels, eps) if image.clean.positives[label]]
    return dataset.certified(Measure.IOU, label, kept, 0) if kept else math.nan


def mean_iou(logits: Sequence[Tensor], labels: Sequence[Tensor], eps: float) -> float:
    """Sound: the mean of every class's own optimum."""
    return dataset.certified(Measure.MEAN_IOU, None, bounded(logits, labels, eps), 0)


def mean_iou_charged_twice(logits: Sequence[Tensor], labels: Sequence[Tensor], eps: float) -> float:
    """Wrong: a flipped pixel is charged to the class that it leaves and once more to the one that it joins."""
    return mean_iou(logits, labels, eps / math.sqrt(2.0))


def accuracy(logits: Sequence[Tensor], labels: Sequence[Tensor], eps: float) -> float:
    """Sound: the longest prefix of sorted costs that fits the budget."""
    return dataset.certified(Measure.ACCURACY, None, bounded(logits, labels, eps), 0)


def accuracy_off_by_one(logits: Sequence[Tensor], labels: Sequence[Tensor], eps: float) -> float:
    """Wrong: the prefix ends a pixel too early."""
    images = bounded(logits, labels, eps)
    valid = sum(image.clean.valid for image in images)
    left = sum(image.clean.right - max(0, int(image.joint.right[0]) - 1) for image in images)
    return left / valid if valid else math.nan


def mean_distance(logits: Sequence[Tensor], labels: Sequence[Tensor], drop: int) -> float:
    """Sound: mean over images of the smallest distance that loses a share of the accuracy; ``drop`` numbers it."""
    images = bounded(logits, labels, 1.0)
    return float(np.mean([image.smallest[Measure.ACCURACY, None][drop] for image in images]))


def root_mean_square_distance(logits: Sequence[Tensor], labels: Sequence[Tensor], drop: int) -> float:
    """Wrong: squares are averaged and the root is taken, which exceeds the mean whenever images differ."""
    images = bounded(logits, labels, 1.0)
    squares = [image.smallest[Measure.ACCURACY, None][drop] ** 2 for image in images]
    return float(np.sqrt(np.mean(squares)))
