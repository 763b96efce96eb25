"""What the page shows, as plain arrays: it may come from a run in memory or from a run folder."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attackcheck.report import Report

__all__ = ["EPSILONS", "Content", "Curves", "Picture", "Pixels", "Summary", "Worst"]

Array = np.ndarray[Any, Any]
EPSILONS = np.geomspace(1e-3, 10.0, 81)
"""Budgets at which accuracies are counted."""


@dataclass(frozen=True)
class Worst:
    """One perturbed image worth a look, or the part of it that differs.

    Attributes:
        kind: what it is about: ``pixel``, ``region`` or the name of a violation's kind.
        name: of the region, else of nothing.
        clean, perturbed: ``(C, h, w)``, what was cut out at ``top``, ``left`` of the image, perhaps reduced.
        size: rows and columns that were cut out.
        pixel: row and column in the image, None where it is about no single pixel.
        before, after: classes of that pixel, -1 where unknown.
        predicted: ``(h, w)`` classes under the perturbation, or None.
        radius: what the claim says the perturbation must at least measure, None where nothing is claimed.
        distance: what it measures.
    """

    kind: str
    name: str
    clean: Array
    perturbed: Array
    top: int
    left: int
    size: tuple[int, int]
    pixel: tuple[int, int] | None
    before: int
    after: int
    predicted_clean: Array
    predicted: Array | None
    radius: float | None
    distance: float
    attack: str
    violated: bool

    @property
    def ratio(self) -> float:
        """``radius / distance``, 0 where nothing is claimed."""
        if self.radius is None:
            return 0.0
        return self.radius / self.distance if self.distance > 0 else math.inf


@dataclass(frozen=True)
class Picture:
    """One image of the data set with what was seen of it; maps are ``(h, w)``, perhaps smaller than the image.

    Attributes:
        size: rows and columns of the image itself.
        edge: edge of the block of pixels that each cell of the maps stands for.
        image: ``(C, h, w)`` in [0, 1].
        row, column: which pixel of the image the numbers of a cell belong to.
        labels: classes, or None.
        predicted: classes as predicted.
        radius, distance: certified radius, smallest distance at which a flip was seen (inf: never).
        attacked: which pixels were aimed at.
        by: index into ``attacks`` of who saw that flip, -1 where never flipped.
        after: class after the flip, -1 where unknown.
        worst: perturbed images.
        broken: ``(V, 2)`` pixels with a confirmed violation.
        flipped: how many pixels of the whole image were seen flipped, ``aimed`` how many were attacked.
    """

    index: int
    name: str
    size: tuple[int, int]
    edge: int
    image: Array
    row: Array
    column: Array
    labels: Array | None
    predicted: Array
    radius: Array
    distance: Array
    attacked: Array
    by: Array
    after: Array
    attacks: Sequence[str]
    worst: Sequence[Worst]
    broken: Array
    aimed: int
    flipped: int

    @property
    def interest(self) -> tuple[int, float]:
        """Larger for what is more worth a look."""
        return len(self.broken), float(self.tightness.max(initial=0.0))

    @property
    def tightness(self) -> Array:
        """``(h, w)`` radius / distance, 0 where no flip was seen."""
        return ratios(self.radius, self.distance)


@dataclass(frozen=True)
class Summary:
    """One image in a few numbers; medians are None where there is nothing."""

    index: int
    name: str
    violations: int
    largest: float
    aimed: int
    tightness: float | None
    radius: float | None
    distance: float | None


@dataclass(frozen=True)
class Pixels:
    """Attacked pixels, one entry for each."""

    image: Array
    row: Array
    column: Array
    radius: Array
    distance: Array
    predicted: Array
    after: Array
    by: Array  # of str

    @property
    def tightness(self) -> Array:
        """radius / distance, 0 where never flipped."""
        return ratios(self.radius, self.distance)

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, chosen: Array) -> Pixels:
        return Pixels(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    @classmethod
    def joined(cls, parts: Sequence[Pixels]) -> Pixels:
        """All of several images."""
        names = cls.__dataclass_fields__
        if not parts:
            return cls(*(np.zeros(0, dtype=str if name == "by" else float) for name in names))
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class Curves:
    """Counts of pixels by budget; of labelled pixels where there are labels, else of all, compared with the prediction.

    Attributes:
        valid: how many pixels.
        right: how many are right on the clean image.
        certified: ``(E,)`` right, with a certified radius of at least each of ``EPSILONS``.
        aimed: how many of ``valid`` were attacked.
        certified_aimed: ``(E,)`` as ``certified``, of these.
        unbroken: ``(E,)`` of these: right, and not seen flipped within each of ``EPSILONS``.
    """

    labelled: bool
    valid: int
    right: int
    certified: Array
    aimed: int
    certified_aimed: Array
    unbroken: Array

    def __add__(self, other: Curves) -> Curves:
        if self.labelled != other.labelled:
            return self if self.labelled else other
        return Curves(
            self.labelled,
            self.valid + other.valid,
            self.right + other.right,
            self.certified + other.certified,
            self.aimed + other.aimed,
            self.certified_aimed + other.certified_aimed,
            self.unbroken + other.unbroken,
        )


@dataclass(frozen=True)
class Content:
    """Everything on the page.

    Attributes:
        report: the result.
        images: all images that were done.
        pictures: those of them that are shown.
        pixels: the attacked pixels of all.
        curves: accuracies by budget, None without images.
        classes: names of classes.
        replay: how a replay command starts, and what follows the path of the counterexample.
        command: the command line of the run, where it is known.
    """

    report: Report
    images: Sequence[Summary]
    pictures: Sequence[Picture]
    pixels: Pixels
    curves: Curves | None
    classes: Sequence[str] | None
    replay: tuple[Sequence[str], Sequence[str]] = (("attackcheck", "replay"), ())
    command: str | None = None

    @property
    def subject(self) -> Mapping[str, Any]:
        """Model, claim, data, device."""
        return self.report.subject

    def replay_of(self, counterexample: Path) -> str:
        """The command that judges it again."""
        before, after = self.replay
        return shlex.join([*before, str(counterexample), *after])

    def class_name(self, index: int) -> str:
        """For people."""
        if index < 0:
            return "unknown"
        return self.classes[index] if self.classes is not None and index < len(self.classes) else f"class {index}"

    @property
    def class_count(self) -> int:
        """How many classes need a colour."""
        largest = max((int(max(p.predicted.max(), p.after.max())) for p in self.pictures), default=0)
        return max(largest + 1, len(self.classes or ()))


def ratios(radius: Array, distance: Array) -> Array:
    """radius / distance, 0 where no flip was seen."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio: Array = np.where(np.isfinite(distance), radius / distance, 0.0)
    return ratio
