"""From the maps of one image, at whatever size, to what the page keeps of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from attackcheck.parts import Example, Maps
from attackcheck.probe import Kind
from attackcheck.recheck import Verdict
from attackcheck.report import Violation
from attackcheck.reporters.blocks import blocks
from attackcheck.reporters.html.content import EPSILONS, Curves, Picture, Pixels, Summary, Worst, ratios
from attackcheck.reporters.html.pictures import averaged

__all__ = ["Observed", "observe", "smaller"]

Array = np.ndarray[Any, Any]
MARGIN = 8
"""Pixels shown around what a perturbation touches."""
SMALL = 160
"""Images up to this height and width are shown whole where a region was attacked."""
SIDE = 320
"""Pixels at most in each direction of a perturbed image."""
LEAST = 40
"""Pixels shown at least in each direction."""


@dataclass(frozen=True)
class Observed:
    """One image: in numbers, its picture, its attacked pixels, its counts."""

    summary: Summary
    picture: Picture
    pixels: Pixels
    curves: Curves


def observe(
    maps: Maps, *, index: int, name: str, ignore: int, cells: int, worst: int, findings: Sequence[Violation]
) -> Observed:
    """Keep of one image what the page shows.

    Args:
        maps: its arrays.
        index, name: of the image.
        ignore: the label that counts for nothing.
        cells: largest number of cells of a map.
        worst: largest number of perturbed images.
        findings: of this image; pixels VIOLATED are said to be so.
    """
    image, radius, distance = np.asarray(maps.image), np.asarray(maps.radius), np.asarray(maps.flip_distance)
    edge, row, column = blocks(ratios(radius, distance), radius, cells)
    labels = None if maps.labels is None else np.asarray(maps.labels)
    predicted, after = np.asarray(maps.predicted), np.asarray(maps.class_after)
    by, attacked = np.asarray(maps.flipped_by), np.asarray(maps.attacked)
    confirmed = [f for f in findings if f.verdict is Verdict.VIOLATED]
    broken = {f.pixel for f in confirmed if f.kind in (Kind.PIXEL, Kind.TWO_BALL) and f.pixel is not None}
    sets = any(f.kind is Kind.SET for f in confirmed)
    picture = Picture(
        index=index,
        name=name,
        size=radius.shape,
        edge=edge,
        image=averaged(image, edge),
        row=row,
        column=column,
        labels=None if labels is None else labels[row, column],
        predicted=predicted[row, column],
        radius=radius[row, column],
        distance=distance[row, column],
        attacked=attacked[row, column],
        by=by[row, column],
        after=after[row, column],
        attacks=tuple(maps.attacks),
        worst=[
            _worst(example, image, predicted, _violated(example, broken, sets)) for example in maps.examples[:worst]
        ],
        broken=np.array(sorted(broken), dtype=np.int64).reshape(-1, 2),
        aimed=int(attacked.sum()),
        flipped=int(np.isfinite(distance).sum()),
    )
    pixels = _pixels(index, attacked, radius, distance, predicted, after, by, maps.attacks)
    summary = Summary(
        index=index,
        name=name,
        violations=len(confirmed),
        largest=picture.interest[1],
        aimed=picture.aimed,
        tightness=_median(pixels.tightness),
        radius=_median(radius.ravel()),
        distance=_median(pixels.distance),
    )
    return Observed(
        summary,
        picture,
        pixels,
        _curves(labels, ignore, predicted, radius, distance, attacked),
    )


def smaller(picture: Picture, cells: int, worst: int, side: int = SIDE) -> Picture:
    """The picture with maps of at most ``cells`` cells and at most ``worst`` perturbed images, ``side`` pixels long."""
    edge, row, column = blocks(picture.tightness, picture.radius, cells)
    maps = ("row", "column", "predicted", "radius", "distance", "attacked", "by", "after")
    return replace(
        picture,
        edge=picture.edge * edge,
        image=averaged(picture.image, edge),
        labels=None if picture.labels is None else picture.labels[row, column],
        worst=[_shrunk(example, side) for example in picture.worst[:worst]],
        **{name: getattr(picture, name)[row, column] for name in maps},
    )


def _shrunk(example: Worst, side: int) -> Worst:
    edge = -(-max(example.clean.shape[1:]) // side)
    if edge <= 1:
        return example
    return replace(
        example,
        clean=averaged(example.clean, edge),
        perturbed=averaged(example.perturbed, edge),
        predicted_clean=example.predicted_clean[::edge, ::edge],
        predicted=None if example.predicted is None else example.predicted[::edge, ::edge],
    )


def _median(values: Array) -> float | None:
    return float(np.median(values)) if len(values) else None


def _violated(example: Example, broken: set[tuple[int, int]], sets: bool) -> bool:
    if example.pixel is not None:
        return tuple(example.pixel) in broken
    return sets and example.radius is not None and example.radius > example.distance


def _pixels(
    index: int,
    attacked: Array,
    radius: Array,
    distance: Array,
    predicted: Array,
    after: Array,
    by: Array,
    attacks: Sequence[str],
) -> Pixels:
    row, column = np.nonzero(attacked)
    names = np.array([*attacks, "never flipped"], dtype=str)
    return Pixels(
        image=np.full(len(row), index),
        row=row,
        column=column,
        radius=radius[row, column],
        distance=distance[row, column],
        predicted=predicted[row, column],
        after=after[row, column],
        by=names[by[row, column]],  # -1: the last
    )


def _curves(
    labels: Array | None, ignore: int, predicted: Array, radius: Array, distance: Array, attacked: Array
) -> Curves:
    valid = np.ones(predicted.shape, dtype=bool) if labels is None else labels != ignore
    right = valid if labels is None else valid & (labels == predicted)
    certified, aimed = np.sort(radius[right]), np.sort(radius[right & attacked])
    distances = np.sort(distance[right & attacked])
    return Curves(
        labelled=labels is not None,
        valid=int(valid.sum()),
        right=int(right.sum()),
        certified=len(certified) - np.searchsorted(certified, EPSILONS, side="left"),
        aimed=int((valid & attacked).sum()),
        certified_aimed=len(aimed) - np.searchsorted(aimed, EPSILONS, side="left"),
        unbroken=len(distances) - np.searchsorted(distances, EPSILONS, side="right"),
    )


def _worst(example: Example, image: Array, predicted: Array, violated: bool) -> Worst:
    perturbed = np.asarray(example.perturbed)
    after = None if example.after is None else np.asarray(example.after)
    top, left, bottom, right = _window(image, perturbed, after, predicted, example.pixel)
    here = np.s_[top:bottom, left:right]
    edge = max(1, -(-max(bottom - top, right - left) // SIDE))
    return Worst(
        kind=example.kind,
        name=example.name,
        clean=averaged(image[:, *here], edge),
        perturbed=averaged(perturbed[:, *here], edge),
        top=top,
        left=left,
        size=(bottom - top, right - left),
        pixel=None if example.pixel is None else (int(example.pixel[0]), int(example.pixel[1])),
        before=int(example.predicted),
        after=int(example.target),
        predicted_clean=predicted[here][::edge, ::edge],
        predicted=None if after is None else after[here][::edge, ::edge],
        radius=example.radius,
        distance=float(example.distance),
        attack=example.attack,
        violated=violated,
    )


def _window(
    image: Array, perturbed: Array, after: Array | None, predicted: Array, pixel: tuple[int, int] | None
) -> tuple[int, int, int, int]:
    """Top, left, bottom, right of what is shown: what differs noticeably, and for regions all of a small image."""
    height, width = predicted.shape
    delta = np.abs(perturbed - image).max(axis=0)
    touched = delta > 0.02 * delta.max()
    if pixel is not None:
        touched[pixel[0], pixel[1]] = True
    elif max(height, width) <= SMALL:
        return 0, 0, height, width
    elif after is not None:
        touched |= after != predicted
    top, bottom = _extent(touched.any(axis=1))
    left, right = _extent(touched.any(axis=0))
    return top, left, bottom, right


def _extent(touched: Array) -> tuple[int, int]:
    """First and one past the last, with a margin, and not too few."""
    where = np.nonzero(touched)[0]
    missing = max(0, LEAST - (int(where[-1]) - int(where[0]) + 1)) // 2
    margin = max(MARGIN, missing)
    return max(0, int(where[0]) - margin), min(len(touched), int(where[-1]) + 1 + margin)
