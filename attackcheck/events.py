"""What the engine says while it works. Reporters consume these and know nothing of each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attackcheck.lipschitz.findings import AuditReport
from attackcheck.parts import Part
from attackcheck.report import Report, Violation

__all__ = [
    "TIGHTNESS_STEP",
    "Advanced",
    "Audited",
    "Event",
    "Finding",
    "ImageFinished",
    "ImageStarted",
    "PartFinished",
    "RunFinished",
    "RunStarted",
    "Warned",
]


@dataclass(frozen=True)
class RunStarted:
    """Nothing has been attacked yet. ``subject`` describes model, claim, data and device."""

    subject: Mapping[str, Any]
    images: int
    plan: str
    seed: int
    selection: str
    numbers: tuple[int, ...] = ()  # of the images that this run examines: of a shard, not all
    shard: tuple[int, int] | None = None


@dataclass(frozen=True)
class Audited:
    """What the weights prove, before anything is attacked."""

    audit: AuditReport


@dataclass(frozen=True)
class Warned:
    """A health check has something to say; ``code`` is stable."""

    code: str
    message: str


@dataclass(frozen=True)
class ImageStarted:
    """``work`` is the number of attack calls planned for this image, ``attacks`` names the attack of each, in order."""

    image: int
    name: str
    pixels: int
    work: int
    attacks: tuple[str, ...] = ()


TIGHTNESS_STEP = 0.05
"""Width of the bins of :attr:`Advanced.tightness`."""


@dataclass(frozen=True)
class Advanced:
    """One attack call is done. ``worst`` is the largest radius / distance of the pixels aimed at so far.

    ``tightness`` counts the pixels aimed at just now that were seen flipped by radius / distance: bins of
    ``TIGHTNESS_STEP`` from 0, the last one for everything above 1.
    """

    image: int
    attack: str
    done: int
    work: int
    worst: float
    tightness: tuple[int, ...] = ()


@dataclass(frozen=True)
class Finding:
    """The judge has spoken about a proposal."""

    violation: Violation


@dataclass(frozen=True)
class ImageFinished:
    """``attacked`` pixels of this image, ``violations`` among its findings."""

    image: int
    attacked: int
    violations: int


@dataclass(frozen=True)
class PartFinished:
    """All that was found about an image, the gadgets or the data set; ``restored``: an earlier run did it."""

    part: Part
    restored: bool = False


@dataclass(frozen=True)
class RunFinished:
    """The last event, also after an interruption (``report.stopped`` says why)."""

    report: Report


Event = RunStarted | Audited | Warned | ImageStarted | Advanced | Finding | ImageFinished | PartFinished | RunFinished
