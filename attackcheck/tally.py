"""Sums over images: what the report needs, and no more than a few numbers for every attacked pixel."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attackcheck.confidence import Attacked
from attackcheck.medians import Median
from attackcheck.probe import Cost, Kind
from attackcheck.recheck import Verdict
from attackcheck.report import (
    QUANTILES,
    AttackSummary,
    BudgetResult,
    ClassSummary,
    DetectionLimit,
    RegionResult,
    Violation,
)

__all__ = ["AttackedPixels", "Tally"]

Array = np.ndarray[Any, Any]
LARGE = 1e38
"""Medians of radii are taken in float32, of infinite ones as this."""

LOOSE = 256
"""Groups of attacked pixels that are kept before they are joined."""


@dataclass(frozen=True)
class AttackedPixels:
    """Pixels of one image under attack, and how far each attack came."""

    radius: Array  # (M,)
    distance: Array  # (M,) inf where not flipped
    confirmed: Array  # (M,) bool, False where the judge did not agree
    lipschitz_slack: Array  # (M,)
    predicted: Array  # (M,)
    pixels: Array  # (M, 2) row and column
    aimed: dict[str, Array]  # attack -> (M,) bool: this attack was aimed at the pixel
    by_attack: dict[str, Array]  # attack -> (M,) distance


def _together(groups: Sequence[AttackedPixels]) -> AttackedPixels:
    """All groups as one: an attack that was not yet there for a group was not aimed at it and flipped nothing."""
    names = list(dict.fromkeys(name for group in groups for name in group.by_attack))
    aimed = [name for name in names if any(name in group.aimed for group in groups)]

    def joined(name: str) -> Array:
        return np.concatenate([getattr(group, name) for group in groups])

    def by(name: str, attack: str, missing: float | bool) -> Array:
        return np.concatenate([getattr(g, name).get(attack, np.full(len(g.radius), missing)) for g in groups])

    plain = ("radius", "distance", "confirmed", "lipschitz_slack", "predicted", "pixels")
    return AttackedPixels(
        **{name: joined(name) for name in plain},
        aimed={name: by("aimed", name, False) for name in aimed},
        by_attack={name: by("by_attack", name, math.inf) for name in names},
    )


@dataclass
class _Spent:
    objective: str
    cost: Cost = field(default_factory=Cost)


@dataclass
class _PerClass:
    pixels: int = 0
    labelled: int = 0
    correct: int = 0
    radii: Median = field(default_factory=Median)

    def extend(self, other: _PerClass) -> None:
        self.pixels += other.pixels
        self.labelled += other.labelled
        self.correct += other.correct
        self.radii.extend(other.radii)


@dataclass
class _Budget:
    images: int = 0
    valid: int = 0
    clean: int = 0
    attacked: int = 0
    stable: int = 0
    pixels: int = 0

    def extend(self, other: _Budget) -> None:
        for name in self.__dataclass_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Tally:
    """Collects results image by image.

    Args:
        ignore: the label that counts for nothing.
    """

    def __init__(self, ignore: int) -> None:
        self._ignore = ignore
        self.images = 0
        self.examined = 0  # pixels of these images
        self.aimed = 0  # of them attacked
        self.radii: list[Array] = []
        self.flip_distances: list[Array] = []
        self.attacked: list[Array] = []
        self.findings: list[Violation] = []
        self.regions: list[RegionResult] = []
        self.verdicts: Counter[str] = Counter()
        self.unchecked: Counter[str] = Counter()
        self._ratios: dict[Kind, float] = {}
        self._expansions: dict[str, float] = {}
        self.rates: list[Attacked] = []  # of claims with a confidence
        self.unsaved = 0  # counterexamples that could not be written
        self.warnings: list[tuple[str, str]] = []  # code and message
        self._pixels: list[AttackedPixels] = []
        self._loose = 0  # of them, at the end
        self._spent: dict[str, _Spent] = {}
        self._classes: dict[int, _PerClass] = {}
        self._budgets: dict[tuple[float, str], _Budget] = {}

    @property
    def violations(self) -> int:
        """How many findings are VIOLATED."""
        return sum(1 for finding in self.findings if finding.verdict is Verdict.VIOLATED)

    @property
    def pixels(self) -> Sequence[AttackedPixels]:
        """What :meth:`add_pixels` was given, in order."""
        return self._pixels

    def extend(self, other: Tally) -> None:
        """Add another tally's images after one's own."""
        self.images += other.images
        self.examined += other.examined
        self.aimed += other.aimed
        self.radii += other.radii
        self.flip_distances += other.flip_distances
        self.attacked += other.attacked
        self.findings += other.findings
        self.regions += other.regions
        self.verdicts.update(other.verdicts)
        self.unchecked.update(other.unchecked)
        self.unsaved += other.unsaved
        self.rates += other.rates
        self.warnings += other.warnings
        self._pixels += other._pixels
        for name, spent in other._spent.items():
            self.add_cost(name, spent.objective, spent.cost)
        for kind, ratio in other._ratios.items():
            self._ratios[kind] = max(self._ratios.get(kind, 0.0), ratio)
        for name, ratio in other._expansions.items():
            self._expansions[name] = max(self._expansions.get(name, 0.0), ratio)
        for index, entry in other._classes.items():
            self._classes.setdefault(index, _PerClass()).extend(entry)
        for key, budget in other._budgets.items():
            self._budgets.setdefault(key, _Budget()).extend(budget)

    def without_maps(self, to: Tally) -> Tally:
        """The same without maps; what else takes memory, and may be added up in any order, is handed over."""
        for index, entry in self._classes.items():
            to._classes.setdefault(index, _PerClass()).extend(entry)
        to._pixels += self._pixels
        to._loose += len(self._pixels)
        if to._loose > LOOSE:
            to._pixels[-to._loose :] = [_together(to._pixels[-to._loose :])]
            to._loose = 0
        rest = copy.copy(self)
        rest._classes, rest._pixels, rest._loose = {}, [], 0
        rest.radii, rest.flip_distances, rest.attacked = [], [], []
        return rest

    def add_maps(self, radius: Array, flip_distance: Array, attacked: Array) -> None:
        """Of one image, ``(H, W)`` each."""
        self.images += 1
        self.examined += radius.size
        self.aimed += int(attacked.sum())
        self.radii.append(radius)
        self.flip_distances.append(flip_distance)
        self.attacked.append(attacked)

    def add_pixels(self, pixels: AttackedPixels) -> None:
        """Results of pixels that were aimed at."""
        self._pixels.append(pixels)

    def add_cost(self, attack: str, objective: str, cost: Cost) -> None:
        """What an attack spent on one image."""
        spent = self._spent.setdefault(attack, _Spent(objective))
        spent.cost.forward += cost.forward
        spent.cost.backward += cost.backward
        spent.cost.seconds += cost.seconds

    def add_ratio(self, kind: Kind, attack: str | None, ratio: float) -> None:
        """A confirmed ratio of what the claim demands to what an attack needed, for sets and maps."""
        self._ratios[kind] = max(self._ratios.get(kind, 0.0), ratio)
        if kind is Kind.LIPSCHITZ and attack is not None:
            self._expansions[attack] = max(self._expansions.get(attack, 0.0), ratio)

    def add_classes(self, predicted: Array, radius: Array, labels: Array | None) -> None:
        """Prediction, radii and labels (or None) of one image, ``(H, W)`` each."""
        for index in np.unique(predicted).tolist():
            mask = predicted == index
            entry = self._classes.setdefault(index, _PerClass())
            entry.pixels += int(mask.sum())
            entry.radii.add(np.minimum(radius[mask], LARGE).astype(np.float32))
            if labels is not None:
                valid = mask & (labels != self._ignore)
                entry.labelled += int(valid.sum())
                entry.correct += int((labels[valid] == index).sum())

    def add_budget(self, eps: float, attack: str, clean: Array, attacked: Array, labels: Array | None) -> None:
        """Predictions ``(H, W)`` of one image before and under an attack at ``eps``."""
        entry = self._budgets.setdefault((eps, attack), _Budget())
        entry.images += 1
        entry.pixels += clean.size
        entry.stable += int((clean == attacked).sum())
        if labels is not None:
            valid = labels != self._ignore
            entry.valid += int(valid.sum())
            entry.clean += int((clean == labels)[valid].sum())
            entry.attacked += int((attacked == labels)[valid].sum())

    def limit(self) -> DetectionLimit:
        """What this run's evidence would have caught: confirmed ratios only, so that rounding promises nothing."""
        pixel = max(
            (float(_ratio(p.radius, p.distance)[p.confirmed].max(initial=0.0)) for p in self._pixels), default=0.0
        )
        sets = max(self._ratios.get(Kind.SET, 0.0), self._ratios.get(Kind.TWO_BALL, 0.0))
        return DetectionLimit(
            _inverse(pixel),
            _inverse(sets),
            _inverse(self._ratios.get(Kind.LIPSCHITZ, 0.0)),
            _inverse(self._ratios.get(Kind.GADGET, 0.0)),
        )

    def attacks(self, order: Sequence[str]) -> tuple[AttackSummary, ...]:
        """One summary per attack that ran, in this order; attacks beyond it come last."""
        names = [name for name in dict.fromkeys([*order, *self._spent]) if name in self._spent]
        return tuple(self._summary(name, self._spent[name]) for name in names)

    def _summary(self, name: str, spent: _Spent) -> AttackSummary:
        chosen = [p for p in self._pixels if name in p.aimed]
        radius = _joined([p.radius[p.aimed[name]] for p in chosen])
        distance = _joined([p.by_attack[name][p.aimed[name]] for p in chosen])
        slack = _joined([p.lipschitz_slack[p.aimed[name]] for p in chosen])
        flipped = np.isfinite(distance)
        tightness = _ratio(radius, distance)
        known = flipped & np.isfinite(slack) & (slack > 0)
        return AttackSummary(
            name=name,
            objective=spent.objective,
            attacked=len(radius),
            flipped=int(flipped.sum()),
            smallest=float(distance.min()) if len(distance) else math.inf,
            median=float(np.median(distance)) if len(distance) else math.inf,
            tightness=_quantiles(tightness),
            lipschitz_slack=float(np.median(slack[known])) if known.any() else math.nan,
            attack_slack=float(np.median(tightness[known] / slack[known])) if known.any() else math.nan,
            forward=spent.cost.forward,
            backward=spent.cost.backward,
            seconds=spent.cost.seconds,
            expansion=self._expansions.get(name, 0.0),
        )

    def classes(self, names: Sequence[str] | None) -> tuple[ClassSummary, ...]:
        """One summary per predicted class."""
        predicted = _joined([p.predicted for p in self._pixels])
        distance = _joined([p.distance for p in self._pixels])
        summaries = []
        for index, entry in sorted(self._classes.items()):
            reached = distance[predicted == index]
            summaries.append(
                ClassSummary(
                    index=index,
                    name=names[index] if names is not None and index < len(names) else str(index),
                    pixels=entry.pixels,
                    accuracy=entry.correct / entry.labelled if entry.labelled else None,
                    median_radius=entry.radii.value(),
                    attacked=len(reached),
                    median_flip_distance=float(np.median(reached)) if len(reached) else math.inf,
                )
            )
        return tuple(summaries)

    def budgets(self) -> tuple[BudgetResult, ...]:
        """One result per eps and attack, smallest eps first."""
        return tuple(
            BudgetResult(
                eps=eps,
                attack=attack,
                images=entry.images,
                clean=entry.clean / entry.valid if entry.valid else None,
                attacked=entry.attacked / entry.valid if entry.valid else None,
                stability=entry.stable / entry.pixels if entry.pixels else 1.0,
            )
            for (eps, attack), entry in sorted(self._budgets.items())
        )

    def sums(self) -> dict[str, Any]:
        """What :meth:`add_sums` takes: costs, budgets and ratios as plain values."""
        return {
            "costs": {name: {"objective": s.objective, **vars(s.cost)} for name, s in self._spent.items()},
            "budgets": [{"eps": eps, "attack": name, **vars(b)} for (eps, name), b in self._budgets.items()],
            "ratios": {kind.name: ratio for kind, ratio in self._ratios.items()},
            "expansions": dict(self._expansions),
        }

    def add_sums(self, sums: Mapping[str, Any]) -> None:
        """Add what :meth:`sums` gave; numbers that are not finite may be words."""
        for name, spent in sums["costs"].items():
            cost = Cost(int(spent["forward"]), int(spent["backward"]), float(spent["seconds"]))
            self.add_cost(name, spent["objective"], cost)
        for entry in sums["budgets"]:
            counts = {name: int(entry[name]) for name in _Budget.__dataclass_fields__}
            self._budgets.setdefault((float(entry["eps"]), entry["attack"]), _Budget()).extend(_Budget(**counts))
        for kind, ratio in sums["ratios"].items():
            self.add_ratio(Kind[kind], None, float(ratio))
        for name, ratio in sums["expansions"].items():
            self._expansions[name] = max(self._expansions.get(name, 0.0), float(ratio))


def _quantiles(tightness: Array) -> dict[float, float]:
    # Without interpolation: between infinite radii there is nothing to interpolate.
    return {q: float(np.quantile(tightness, q, method="inverted_cdf")) for q in QUANTILES if len(tightness)}


def _inverse(ratio: float) -> float:
    return 1.0 / ratio if ratio > 0 else math.inf


def _joined(parts: list[Array]) -> Array:
    return np.concatenate(parts) if parts else np.zeros(0)


def _ratio(radius: Array, distance: Array) -> Array:
    with np.errstate(invalid="ignore"):
        ratio: Array = np.where(np.isfinite(distance), radius / distance, 0.0)
    return ratio
