"""What a run found, as data."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from attackcheck.confidence import RateTest
from attackcheck.lipschitz.findings import AuditReport
from attackcheck.probe import Kind
from attackcheck.recheck import Verdict

__all__ = ["AttackSummary", "BudgetResult", "ClassSummary", "DetectionLimit", "RegionResult", "Report", "Violation"]

Array = np.ndarray[Any, Any]
STUCK = "gradient masked and never flipped"
"""Why a pixel under attack counts as not checked: no attack could move it."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True, slots=True)  # there may be several for each of very many images
class Violation:
    """One finding of the judge: a violation, or what a proposal came to instead.

    ``radius`` is what the claim says the perturbation must at least measure, ``distance`` what it measures.
    ``pixel`` is the (worst) pixel, None for SET and LIPSCHITZ; ``pixels`` counts all that the point breaks. A METRIC is
    about the whole data set (``image`` -1, ``pixels`` counts the images): ``radius`` is what the ``statement`` claims
    at least, ``distance`` what is left (of a rate that rises: the complement of both). A RATE is about all attacked
    pixels: ``radius`` is the share of them (or of images) that broke, ``distance`` the share that the claim permits.
    """

    kind: Kind
    verdict: Verdict
    image: int
    image_name: str
    pixel: tuple[int, int] | None
    pixels: int
    predicted: int
    target: int
    radius: float
    distance: float
    attack: str
    counterexample: Path | None = None
    statement: str | None = None

    @property
    def ratio(self) -> float:
        """``radius / distance``, above 1 for a violation."""
        return self.radius / self.distance if self.distance > 0 else math.inf


@dataclass(frozen=True)
class AttackSummary:
    """One attack over the whole run. Slacks are medians; their product is the tightness of a pixel."""

    name: str
    objective: str
    attacked: int
    flipped: int
    smallest: float
    median: float
    tightness: Mapping[float, float]  # quantile -> radius / distance over attacked pixels, 0 where not flipped
    lipschitz_slack: float
    attack_slack: float
    forward: int
    backward: int
    seconds: float
    expansion: float  # largest ratio of the logits' movement to what the claim permits


@dataclass(frozen=True, slots=True)
class RegionResult:
    """A region under attack: its joint distance (inf: not claimed) against the best perturbation found."""

    image: int
    name: str
    pixels: int
    fraction: float
    target: int | None
    joint_distance: float | None
    distance: float
    attack: str


@dataclass(frozen=True)
class BudgetResult:
    """All images under an attack at a fixed budget; accuracies are shares of valid pixels."""

    eps: float
    attack: str
    images: int
    clean: float | None
    attacked: float | None
    stability: float


@dataclass(frozen=True)
class ClassSummary:
    """One predicted class over all images."""

    index: int
    name: str
    pixels: int
    accuracy: float | None
    median_radius: float
    attacked: int
    median_flip_distance: float


@dataclass(frozen=True)
class DetectionLimit:
    """The factors by which the radii could grow before this run's evidence would have broken the claim."""

    pixel: float = math.inf
    set: float = math.inf
    map: float = math.inf
    gadget: float = math.inf  # of the certifier's formula alone: a wrong constant does not show on gadgets

    @property
    def least(self) -> float:
        """Any uniform inflation of the radii above this factor would have been found."""
        return min(self.pixel, self.set, self.map)


@dataclass(frozen=True)
class Report:
    """The result of :func:`attackcheck.verify`.

    ``radius``, ``flip_distance`` (inf: never seen flipped) and ``attacked`` are ``(N, H, W)``; for images of different
    sizes they are object arrays of ``(H, W)`` maps.
    """

    subject: Mapping[str, Any]
    plan: str
    seed: int
    tolerance: float
    findings: tuple[Violation, ...]
    radii: Sequence[Array] = field(repr=False)
    flip_distances: Sequence[Array] = field(repr=False)
    attacked_pixels: Sequence[Array] = field(repr=False)
    images: int  # examined
    examined: int  # pixels of these images
    attacked_count: int  # pixels that were aimed at
    counts: Mapping[str, int]  # verdicts of pixels
    unchecked: Mapping[str, int]  # reasons
    attacks: tuple[AttackSummary, ...]
    regions: tuple[RegionResult, ...]
    budgets: tuple[BudgetResult, ...]
    classes: tuple[ClassSummary, ...]
    limit: DetectionLimit
    seconds: float
    selection: str
    stopped: str | None = None
    failed: bool = False  # whether an error stopped it
    audit: AuditReport | None = None  # of the weights, where one was made
    rate: RateTest | None = None  # of radii that hold with a probability
    numbers: tuple[int, ...] = ()  # of the images that the maps belong to
    shard: tuple[int, int] | None = None  # which part of the work this was, None: all
    warnings: tuple[tuple[str, str], ...] = ()  # code and message

    @property
    def violations(self) -> tuple[Violation, ...]:
        """Everything VIOLATED, worst ratio first."""
        return tuple(finding for finding in self.findings if finding.verdict is Verdict.VIOLATED)

    @property
    def sound(self) -> bool:
        """Whether nothing was VIOLATED, and no audit refuted: not a proof, see :attr:`limit`."""
        return not self.violations and not self.refuted_by_audit

    @property
    def refuted_by_audit(self) -> bool:
        """Whether the audit of the weights refuted the claim, or a constant that it rests on."""
        return self.audit is not None and self.audit.refuted

    @property
    def radius(self) -> Array:
        """Certified radii, float64."""
        return _stacked(self.radii)

    @property
    def flip_distance(self) -> Array:
        """Smallest distance at which each pixel was seen flipped, float64."""
        return _stacked(self.flip_distances)

    @property
    def attacked(self) -> Array:
        """Which pixels were aimed at, bool."""
        return _stacked(self.attacked_pixels)

    def exit_code(self, strict: bool = False) -> int:
        """0, 1 or 2 of the command line (130 is for interruptions, decided by the caller)."""
        if not self.sound:
            return 1
        serious = (Verdict.ROUNDING, Verdict.DEPLOYED_ONLY)
        if strict and any(finding.verdict in serious for finding in self.findings):
            return 1
        return 0 if self.attacked_count and not self.failed else 2

    def to_dict(self) -> dict[str, Any]:
        """The JSON document: numbers as numbers, None where a number is infinite or unknown."""
        kinds = Counter((finding.kind.name, finding.verdict.name) for finding in self.findings)
        return {
            "schema_version": 1,
            "subject": dict(self.subject),
            "plan": self.plan,
            "seed": self.seed,
            "tolerance": self.tolerance,
            "selection": self.selection,
            "stopped": self.stopped,
            "seconds": self.seconds,
            "images": self.images,
            "numbers": list(self.numbers),
            "shard": None if self.shard is None else list(self.shard),
            "attacked_pixels": self.attacked_count,
            "sound": self.sound,
            "audit": None if self.audit is None else self.audit.to_dict(),
            "rate": None if self.rate is None else self.rate.to_dict(),
            "counts": {
                "pixels": dict(self.counts),
                "unchecked": dict(self.unchecked),
                "findings": {
                    kind.name: {v.name: kinds[kind.name, v.name] for v in Verdict if kinds[kind.name, v.name]}
                    for kind in Kind
                },
            },
            "detection_limit": {
                "pixel": _number(self.limit.pixel),
                "set": _number(self.limit.set),
                "map": _number(self.limit.map),
                "gadget": _number(self.limit.gadget),
                "least": _number(self.limit.least),
            },
            "tightness": {a.name: {str(q): _number(v) for q, v in a.tightness.items()} for a in self.attacks},
            "attacks": [_plain(attack, skip=("tightness",)) for attack in self.attacks],
            "regions": [_plain(region) for region in self.regions],
            "budgets": [_plain(budget) for budget in self.budgets],
            "classes": [_plain(summary) for summary in self.classes],
            "warnings": [list(warning) for warning in self.warnings],
            "violations": [_plain(v) | {"ratio": _number(v.ratio)} for v in self.violations],
            "findings": [
                _plain(f) | {"ratio": _number(f.ratio)} for f in self.findings if f.verdict is not Verdict.VIOLATED
            ],
        }


def _stacked(maps: Sequence[Array]) -> Array:
    if len({m.shape for m in maps}) <= 1:
        return np.stack(maps) if maps else np.zeros((0, 0, 0))
    ragged = np.empty(len(maps), dtype=object)
    ragged[:] = list(maps)
    return ragged


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _plain(record: Any, skip: Sequence[str] = ()) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for name in record.__dataclass_fields__:
        value = getattr(record, name)
        if name in skip:
            continue
        if isinstance(value, (Kind, Verdict)):
            value = value.name
        elif isinstance(value, Path):
            value = str(value)
        elif isinstance(value, float):
            value = _number(value)
        plain[name] = value
    return plain
