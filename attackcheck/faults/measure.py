"""Measures of a data set that are put together wrongly, each beside its sound twin.

The network shows two of the image's channels as logits, so that its certificate is tight and every map of classes whose
cost fits the budget is really reached. The claim about the network is true in all cases; the false one is about a
measure. Proofs try every map.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attackcheck.claims import LipschitzClaim
from attackcheck.faults.case import Built, Family, Proof, control, fault
from attackcheck.measures import FlipCosts, ImageBounds, Measure, bounds, dataset
from attackcheck.metrics import MetricClaim

__all__ = [
    "CASES",
    "accuracy_one_flip_short",
    "iou_of_worst_images",
    "iou_where_labelled",
    "mean_iou_charged_twice",
    "root_mean_square",
]

Array = np.ndarray[Any, Any]
IGNORE = 255
ROOM = 1.05
"""Budgets are this much larger than what the planted flips need, so that an attack need not be perfect."""


# The faults -------------------------------------------------------------------------------------------------------


def iou_of_worst_images(images: Sequence[ImageBounds], label: int) -> float:
    """Wrong: every image minimises its own IoU, then intersections and unions are summed."""
    hits = unions = 0
    for image in images:
        pairs, hit, union = image.joint.pairs[label][0], image.clean.intersection[label], image.clean.union[label]
        with np.errstate(invalid="ignore"):
            own = (hit - pairs.lost) / (union + pairs.made)
        place = int(np.nan_to_num(own, nan=1.0).argmin())
        hits, unions = hits + int(hit - pairs.lost[place]), unions + int(union + pairs.made[place])
    return hits / unions


def iou_where_labelled(images: Sequence[ImageBounds], label: int) -> float:
    """Wrong: images without the class are skipped, as if no false positive could be made there."""
    kept = [image for image in images if image.clean.positives[label]]
    return dataset.certified(Measure.IOU, label, kept, 0)


def mean_iou_charged_twice(bound: Callable[[float], list[ImageBounds]], eps: float) -> float:
    """Wrong: a flipped pixel is charged to the class that it leaves and once more to the one that it joins."""
    return dataset.certified(Measure.MEAN_IOU, None, bound(eps / math.sqrt(2.0)), 0)


def accuracy_one_flip_short(images: Sequence[ImageBounds]) -> float:
    """Wrong: the prefix of sorted costs ends a pixel too early."""
    left = sum(image.clean.right - max(0, int(image.joint.right[0]) - 1) for image in images)
    return left / sum(image.clean.valid for image in images)


def root_mean_square(distances: Array) -> float:
    """Wrong: given as the mean of the images' smallest distances, which it exceeds whenever they differ."""
    return float(np.sqrt(np.mean(np.square(distances))))


# Scenes: the two channels of every pixel are given by margin and class ---------------------------------------------


def _built(margins: Sequence[Sequence[float]], classes: Sequence[Sequence[int]], eps: float) -> tuple[Built, float]:
    """Images ``(N, 2, 1, n)`` on which class ``classes[i][j]`` leads by ``margins[i][j]``; all labels are right."""
    lead = torch.tensor(margins, dtype=torch.float32)
    truth = torch.tensor(classes)
    signed = torch.where(truth == 0, lead, -lead)
    images = torch.stack([0.5 + signed / 2, 0.5 - signed / 2], dim=1)[:, :, None, :]
    network = nn.Conv2d(2, 2, 1, bias=False)
    with torch.no_grad():
        network.weight.copy_(torch.eye(2)[:, :, None, None])
    network.requires_grad_(False).eval()
    return Built(network, LipschitzClaim(1.0), images, truth[:, None, :]), eps


def _bounded(built: Built, eps: float) -> list[ImageBounds]:
    if built.labels is None:
        raise ValueError("expected labels")
    budget = torch.tensor([eps], dtype=torch.float64)
    return [
        bounds(FlipCosts(built.claim, built.model(x[None])[0]), t, IGNORE, budget)
        for x, t in zip(built.images, built.labels, strict=True)
    ]


def _claiming(built: Built, measure: Measure, eps: float, value: float, label: int | None = None) -> Built:
    claim = MetricClaim(measure, eps, value, label, "a faulty measure")
    return Built(built.model, built.claim, built.images, built.labels, metrics=(claim,))


def _margin(cost: float) -> float:
    return math.sqrt(2.0 * cost)


def _fragile(seed: int) -> tuple[Built, float]:
    """One image has one true positive, which costs all of the budget, or four cheap false ones; one is robust."""
    g = np.random.default_rng(seed)
    breaking, making = g.uniform(0.9, 1.0), g.uniform(0.12, 0.15, size=4)
    scale = 0.6
    first = [scale * _margin(breaking), *(scale * np.sqrt(2.0 * making))]
    return _built([first, [1.0] * 5], [[1, 0, 0, 0, 0], [1] * 5], scale * ROOM)


def _absent(seed: int) -> tuple[Built, float]:
    """One image has the class, robustly; the other one has none of it, and five pixels near to it."""
    near = np.random.default_rng(seed).uniform(0.08, 0.1, size=5).tolist()
    return _built([[1.0] * 5, near], [[1, 1, 1, 0, 0], [0] * 5], 0.1 * math.sqrt(2.5) * ROOM)


def _even(seed: int) -> tuple[Built, float]:
    """Three pixels of either class, all alike; the budget is enough for four flips."""
    g = np.random.default_rng(seed)
    lead = g.uniform(0.19, 0.2, size=(2, 6)).tolist()
    return _built(lead, [[0, 0, 0, 1, 1, 1]] * 2, 0.2 * math.sqrt(4 / 2) * ROOM)


# Proofs -----------------------------------------------------------------------------------------------------------


def enumerated(built: Built) -> Proof:
    """The worst of all maps of classes that the budget really reaches, the worst one made and looked at."""
    claim = built.metrics[0]
    if built.labels is None:
        raise ValueError("expected labels")
    choices = []
    for image, labels in zip(built.images.double(), built.labels, strict=True):
        flips = _all_flips(image.shape[2])  # (M, n)
        cost = ((image[0, 0] - image[1, 0]).abs() + 1e-9).square() / 2
        flips = flips[(flips * cost).sum(dim=1) <= claim.eps**2]
        clean = image[:, 0].argmax(dim=0)
        shown = torch.where(flips, 1 - clean, clean)
        table, first = np.unique(_counted(shown, labels[0]), axis=0, return_index=True)
        choices.append((table, flips[torch.from_numpy(first)]))
    places = np.array(np.meshgrid(*[np.arange(len(table)) for table, _ in choices])).reshape(len(choices), -1)
    total = sum(table[place] for (table, _), place in zip(choices, places, strict=True))
    values = _measured(np.asarray(total), claim)
    best = int(values.argmin())
    points = [
        _moved(image, flips[place])
        for image, (_, flips), place in zip(built.images.double(), choices, places[:, best], strict=True)
    ]
    reached = _looked_at(built, torch.stack(points), claim)
    return Proof(
        claim.value / max(reached, 1e-12), f"of {len(values)} maps within reach the worst leaves {reached:.4f}"
    )


def _all_flips(n: int) -> Tensor:
    return (torch.arange(2**n)[:, None] >> torch.arange(n)) % 2 == 1


def _counted(shown: Tensor, labels: Tensor) -> Array:
    """Right pixels, then intersection and union of both classes: (M, 5)."""
    columns = [(shown == labels).sum(dim=1)]
    for k in (0, 1):
        columns += [((shown == k) & (labels == k)).sum(dim=1), ((shown == k) | (labels == k)).sum(dim=1)]
    counted: Array = torch.stack(columns, dim=1).numpy()
    return counted


def _measured(total: Array, claim: MetricClaim) -> Array:
    ratios: Array = total[:, [1, 3]] / total[:, [2, 4]]
    if claim.measure is Measure.ACCURACY:
        accuracy: Array = total[:, 0] / total[:, 0].max()  # nothing moved: every pixel is right
        return accuracy
    one: Array = ratios.mean(axis=1) if claim.cls is None else ratios[:, claim.cls]
    return one


def _moved(image: Tensor, flips: Tensor) -> Tensor:
    """Both channels of flipped pixels to just beyond their mean."""
    middle, over = image.mean(dim=0), 1e-10 * torch.sign(image[1] - image[0])
    there = torch.stack([middle + over, middle - over])
    return torch.where(flips, there, image)


def _looked_at(built: Built, points: Tensor, claim: MetricClaim) -> float:
    """The measure at these points by the network itself, in float64."""
    if built.labels is None or float((points - built.images.double()).flatten(1).norm(dim=1).max()) > claim.eps:
        raise ValueError("expected points within the budget")
    with torch.no_grad():
        shown = built.model.double()(points).argmax(dim=1)
    built.model.float()
    labels = built.labels
    if claim.measure is Measure.ACCURACY:
        return float((shown == labels).double().mean())
    ratios = [float(((shown == k) & (labels == k)).sum()) / float(((shown == k) | (labels == k)).sum()) for k in (0, 1)]
    return sum(ratios) / 2 if claim.cls is None else ratios[claim.cls]


# Cases ------------------------------------------------------------------------------------------------------------


@fault(Family.MEASURE, "IoU over a data set as the sums of the images' own worst cases", prove=enumerated)
def iou_summed_over_worst_images(seed: int) -> Built:
    """Breaking the only true positive is worst for its image, making false positives for the data set."""
    built, eps = _fragile(seed)
    return _claiming(built, Measure.IOU, eps, iou_of_worst_images(_bounded(built, eps), 1), 1)


@control(
    Family.MEASURE, "the same data set with one choice for each image, made for the ratio of sums", prove=enumerated
)
def iou_of_sums(seed: int) -> Built:
    """By Dinkelbach's iteration."""
    built, eps = _fragile(seed)
    return _claiming(built, Measure.IOU, eps, dataset.certified(Measure.IOU, 1, _bounded(built, eps), 0), 1)


@fault(Family.MEASURE, "images in which a class does not occur are left out of its IoU", prove=enumerated)
def images_without_the_class_skipped(seed: int) -> Built:
    """False positives can be made there."""
    built, eps = _absent(seed)
    return _claiming(built, Measure.IOU, eps, iou_where_labelled(_bounded(built, eps), 1), 1)


@control(Family.MEASURE, "every image counts in the IoU of a class, whether it occurs there or not", prove=enumerated)
def every_image_counts(seed: int) -> Built:
    """The sound twin."""
    built, eps = _absent(seed)
    return _claiming(built, Measure.IOU, eps, dataset.certified(Measure.IOU, 1, _bounded(built, eps), 0), 1)


@fault(Family.MEASURE, "the cost of a flip is charged to both classes that it touches", prove=enumerated)
def one_flip_charged_twice(seed: int) -> Built:
    """Half of the budget is lost."""
    built, eps = _even(seed)
    return _claiming(built, Measure.MEAN_IOU, eps, mean_iou_charged_twice(lambda e: _bounded(built, e), eps))


@control(Family.MEASURE, "mean IoU as the mean of what every class can lose on the whole budget", prove=enumerated)
def one_flip_charged_once(seed: int) -> Built:
    """The sound twin, which is a bound and not the truth."""
    built, eps = _even(seed)
    return _claiming(built, Measure.MEAN_IOU, eps, dataset.certified(Measure.MEAN_IOU, None, _bounded(built, eps), 0))


@fault(
    Family.MEASURE, "the prefix of sorted costs that fits the budget is read off a place too early", prove=enumerated
)
def prefix_one_too_short(seed: int) -> Built:
    """One flip fewer in every image."""
    built, eps = _even(seed)
    return _claiming(built, Measure.ACCURACY, eps, accuracy_one_flip_short(_bounded(built, eps)))


@control(Family.MEASURE, "the whole prefix of sorted costs that fits the budget", prove=enumerated)
def whole_prefix(seed: int) -> Built:
    """The sound twin, exact to the last pixel."""
    built, eps = _even(seed)
    return _claiming(built, Measure.ACCURACY, eps, dataset.certified(Measure.ACCURACY, None, _bounded(built, eps), 0))


CASES = (
    iou_summed_over_worst_images,
    iou_of_sums,
    images_without_the_class_skipped,
    every_image_counts,
    one_flip_charged_twice,
    one_flip_charged_once,
    prefix_one_too_short,
    whole_prefix,
)
