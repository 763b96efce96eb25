"""What a certification found, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attackcheck.measures.dataset import Smallest
from attackcheck.measures.names import Measure
from attackcheck.metrics import MetricClaim
from attackcheck.probe import Kind
from attackcheck.recheck import Verdict
from attackcheck.report import Violation
from attackcheck.smoothing import SmoothedData

__all__ = ["CertificationTable", "MetricFinding", "Row"]


@dataclass(frozen=True)
class Row:
    """One measure at one eps; NaN where it has no value, ``attacked`` None where nothing was attacked.

    ``refined`` and ``refined_per_pixel`` are what the refined certificate says instead of ``certified`` and
    ``per_pixel``, None where it says nothing.
    """

    measure: Measure
    cls: int | None
    eps: float
    clean: float
    certified: float
    per_pixel: float
    attacked: float | None
    constant: float
    refined: float | None = None
    refined_per_pixel: float | None = None


@dataclass(frozen=True)
class MetricFinding:
    """A metric claim that an attack contradicted, and what float64 says of it."""

    claim: MetricClaim
    verdict: Verdict
    value: float
    distance: float
    attack: str
    counterexample: Path | None = None

    def as_violation(self, data: str, images: int) -> Violation:
        """The same as a finding of a report on ``images`` images of the data set ``data``."""
        falls = self.claim.measure.falls
        return Violation(
            kind=Kind.METRIC,
            verdict=self.verdict,
            image=-1,
            image_name=data,
            pixel=None,
            pixels=images,
            predicted=-1,
            target=-1 if self.claim.cls is None else self.claim.cls,
            radius=self.claim.value if falls else 1.0 - self.claim.value,
            distance=self.value if falls else 1.0 - self.value,
            attack=self.attack,
            counterexample=self.counterexample,
            statement=self.claim.describe(),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "kind": Kind.METRIC.name,
            "verdict": self.verdict.name,
            "claim": self.claim.to_dict(),
            "statement": self.claim.describe(),
            "value": self.value,
            "distance": self.distance,
            "attack": self.attack,
            "counterexample": None if self.counterexample is None else str(self.counterexample),
        }


@dataclass(frozen=True)
class CertificationTable:
    """The result of :func:`attackcheck.certify`.

    ``rows`` hold every measure (and class) at every eps; ``smallest`` the distances that can take a given share of an
    image's measure; ``findings`` the metric claims, the table's own and those given, that an attack contradicted;
    ``refinement`` says what the refined certificate rests on, or why there is none;
    ``smoothing`` what randomized smoothing of the same network says of the same images, if that was asked for.
    """

    subject: Mapping[str, Any]
    epsilons: tuple[float, ...]
    images: int
    rows: tuple[Row, ...]
    smallest: tuple[Smallest, ...]
    classes: tuple[str, ...] | None
    attacks: tuple[str, ...]
    metrics: tuple[MetricClaim, ...] = ()
    findings: tuple[MetricFinding, ...] = ()
    logit_error: float = 0.0
    seconds: Mapping[str, float] = field(default_factory=dict)
    stopped: str | None = None
    refinement: str = ""
    smoothing: tuple[SmoothedData, ...] = ()

    def row(self, measure: Measure | str, eps: float, cls: int | None = None) -> Row:
        """The row of a measure at one of the budgets; raises KeyError for anything else."""
        for row in self.rows:
            if row.measure is Measure(measure) and row.cls == cls and row.eps == eps:
                return row
        raise KeyError(f"no row for {measure}, class {cls}, eps {eps}")

    @property
    def violations(self) -> tuple[MetricFinding, ...]:
        """Metric claims that are broken."""
        return tuple(finding for finding in self.findings if finding.verdict is Verdict.VIOLATED)

    @property
    def sound(self) -> bool:
        """Whether no metric claim was broken: not a proof."""
        return not self.violations

    def exit_code(self, strict: bool = False) -> int:
        """0 or 1 of the command line."""
        serious = {Verdict.VIOLATED, Verdict.ROUNDING} if strict else {Verdict.VIOLATED}
        return int(any(finding.verdict in serious for finding in self.findings))

    def to_dict(self) -> dict[str, Any]:
        """The JSON document: numbers as numbers, None where a number is infinite or there is no value."""
        return {
            "schema_version": 1,
            "subject": dict(self.subject),
            "epsilons": list(self.epsilons),
            "images": self.images,
            "classes": None if self.classes is None else list(self.classes),
            "attacks": list(self.attacks),
            "logit_error": self.logit_error,
            "seconds": dict(self.seconds),
            "stopped": self.stopped,
            "sound": self.sound,
            "refinement": self.refinement,
            "smoothing": [entry.to_dict() for entry in self.smoothing],
            "rows": [
                {
                    "measure": row.measure.value,
                    "class": row.cls,
                    "eps": row.eps,
                    "clean": _number(row.clean),
                    "certified": _number(row.certified),
                    "per_pixel": _number(row.per_pixel),
                    "attacked": _number(row.attacked),
                    "constant": _number(row.constant),
                    "refined": _number(row.refined),
                    "refined_per_pixel": _number(row.refined_per_pixel),
                }
                for row in self.rows
            ],
            "smallest": [
                {
                    "measure": entry.measure.value,
                    "class": entry.label,
                    "drop": entry.drop,
                    "images": entry.images,
                    **_distances(entry),
                    "refined": None if entry.refined is None else _distances(entry.refined),
                }
                for entry in self.smallest
            ],
            "metrics": [claim.to_dict() for claim in self.metrics],
            "findings": [finding.to_dict() for finding in self.findings],
        }


def _distances(entry: Smallest) -> dict[str, Any]:
    quantiles = {str(q): _number(v) for q, v in zip((0.05, 0.5, 0.95), entry.quantiles, strict=True)}
    return {"reachable": entry.reachable, "mean": _number(entry.mean), "quantiles": quantiles}


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
