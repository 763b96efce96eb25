"""Metric claims: a measure of a data set cannot fall below a value while every image moves by at most eps.

The judge of such a claim takes one perturbed image for each image, measures every distance exactly and counts the
float64 predictions in the claim's favour: a pixel counts as lost only if its label (or its clean class) surely does
not lead there, and as a false positive only if the wrong class surely does.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attackcheck.arithmetic import Reference, exact_distance
from attackcheck.errors import InputError, in_one_line
from attackcheck.measures.components import connected, surviving
from attackcheck.measures.dataset import clean as value_of
from attackcheck.measures.image import Counts, counts
from attackcheck.measures.names import Measure
from attackcheck.recheck import Verdict

__all__ = ["MetricClaim", "MetricJudgement", "Pictures", "judge_metric", "read_metrics"]


@dataclass(frozen=True)
class MetricClaim:
    """``measure`` cannot fall below ``value`` (FNR: rise above it) when every image moves by at most ``eps``.

    Args:
        measure: a :class:`~attackcheck.measures.names.Measure` or its value, such as ``"accuracy"`` or ``"iou"``.
        eps: L2 norm for each image, on the [0, 1] pixel scale.
        value: what is claimed, in [0, 1].
        cls: the class, for measures of one class.
        source: where the value comes from, for the reader of a report.

    Raises:
        InputError: for an unknown measure, numbers out of range, or a class that is missing or too much.
    """

    measure: Measure
    eps: float
    value: float
    cls: int | None = None
    source: str = "given"

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "measure", Measure(self.measure))
        except ValueError:
            known = ", ".join(measure.value for measure in Measure)
            raise InputError(f"expected a measure among {known}, got {self.measure!r}") from None
        for name, number, high in (("eps", self.eps, 1e6), ("value", self.value, 1.0)):
            if isinstance(number, bool) or not isinstance(number, int | float) or not 0 <= number <= high:
                raise InputError(f"expected a metric claim's {name} from 0 to {high:g}, got {number!r}")
        if self.measure.per_class != (self.cls is not None):
            wanted = "a class" if self.measure.per_class else "no class"
            raise InputError(f"expected {wanted} for the measure {self.measure.value}, got {self.cls!r}")
        if self.cls is not None and (isinstance(self.cls, bool) or not isinstance(self.cls, int) or self.cls < 0):
            raise InputError(f"expected a class number of at least 0, got {self.cls!r}")

    def excess(self, value: float) -> float:
        """By how much a measured value breaks the claim, negative where it holds, NaN where there is no value."""
        return self.value - value if self.measure.falls else value - self.value

    def describe(self) -> str:
        """One line."""
        what = self.measure.title + ("" if self.cls is None else f" of class {self.cls}")
        return f"{what} {'>=' if self.measure.falls else '<='} {self.value:.6g} at eps {self.eps:g}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "measure": self.measure.value,
            "eps": float(self.eps),
            "value": float(self.value),
            "class": self.cls,
            "source": self.source,
        }


def read_metrics(path: str | Path) -> tuple[MetricClaim, ...]:
    """Read claims from TOML (``[[metric]]`` tables) or JSON (a list, or ``{"metric": [...]}``).

    Each has ``measure``, ``eps``, ``value`` and, for a measure of one class, ``class``.

    Raises:
        InputError: for anything else.
    """
    path = Path(path)
    if path.is_fifo():  # its writer would be waited for
        raise InputError(f"expected metric claims in {path}, which is not a regular file")
    try:
        text = path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise InputError(f"expected metric claims in {path}, got: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # both parsers, and Unicode
        raise InputError(f"expected TOML or JSON in {path}, got: {in_one_line(error)}") from error
    tables = content.get("metric") if isinstance(content, dict) else content
    if not isinstance(tables, list) or not tables or not all(isinstance(table, dict) for table in tables):
        raise InputError(f"expected [[metric]] tables in {path}, each with measure, eps and value")
    claims = []
    for table in tables:
        unknown = set(table) - {"measure", "eps", "value", "class", "source"}
        if unknown or not {"measure", "eps", "value"} <= set(table):
            got = ", ".join(sorted(map(str, table)))
            raise InputError(f"expected measure, eps, value and perhaps class of a metric in {path}, got {got}")
        source = str(table.get("source", path.name))
        claims.append(MetricClaim(table["measure"], table["eps"], table["value"], table.get("class"), source))
    return tuple(claims)


@dataclass(frozen=True)
class Pictures:
    """One image as it takes part in a metric claim: exact numbers before and after, and what is known of it."""

    name: str
    clean: Tensor  # (C, H, W)
    perturbed: Tensor  # (C, H, W)
    labels: Tensor | None  # (H, W)
    predicted: Tensor  # (H, W) the certifier's own prediction


@dataclass(frozen=True)
class MetricJudgement:
    """``value``: the measure counted in the claim's favour; ``plain``: by float64 argmax; ``distance``: the longest."""

    verdict: Verdict
    value: float
    plain: float
    distance: float


def judge_metric(
    reference: Reference,
    claim: MetricClaim,
    pictures: Sequence[Pictures],
    *,
    classes: int,
    ignore: int,
    tolerance: float,
) -> MetricJudgement:
    """Examine one perturbed image for each image of the data set.

    Args:
        reference: the model in float64.
        claim: what is claimed.
        pictures: all images; one that moved further than ``eps`` makes the verdict NOT_REPRODUCED.
        classes: of the model.
        ignore: the label that counts for nothing.
        tolerance: relative excess that still counts as rounding of the claimed value.
    """
    sure: list[Counts] = []
    plain: list[Counts] = []
    longest = 0.0
    for picture in pictures:
        longest = max(longest, exact_distance(picture.clean, picture.perturbed))
        favourable, shown = _counted(reference, picture, classes, ignore, claim.measure)
        sure.append(favourable)
        plain.append(shown)
    value, argmax = value_of(claim.measure, claim.cls, sure), value_of(claim.measure, claim.cls, plain)
    excess = claim.excess(value)
    if longest > claim.eps or math.isnan(value):
        verdict = Verdict.NOT_REPRODUCED
    elif excess > tolerance * claim.value:
        verdict = Verdict.VIOLATED
    elif excess > 0:
        verdict = Verdict.ROUNDING
    elif claim.excess(argmax) > 0:
        verdict = Verdict.UNDECIDED
    else:
        verdict = Verdict.HELD
    return MetricJudgement(verdict, value, argmax, longest)


def _counted(
    reference: Reference, picture: Pictures, classes: int, ignore: int, measure: Measure
) -> tuple[Counts, Counts]:
    """Counts in the claim's favour, and counts of the float64 argmax."""
    there = reference(picture.perturbed[None])
    possible = _possible(there[0], reference.error(picture.perturbed[None], there)[0])  # (K, n)
    own = picture.predicted.flatten()
    labels = None if picture.labels is None else picture.labels.flatten().cpu()
    valid = None if labels is None else labels != ignore
    argmax = there[0].flatten(1).argmax(dim=0)
    changed, shown = torch.zeros_like(own, dtype=torch.bool), argmax != own
    if not measure.labelled:
        here = reference(picture.clean[None])
        before = _possible(here[0], reference.error(picture.clean[None], here)[0])
        changed = ~(before & possible).any(dim=0)
    components = connected(own, (int(picture.predicted.shape[0]), int(picture.predicted.shape[1])))
    # The only class that is possible, or none; but the label wherever that is possible.
    favoured = torch.where(possible.sum(dim=0) == 1, possible.int().argmax(dim=0), -1)
    if labels is not None:
        truth = labels.clamp(0, classes - 1)
        likely = possible.gather(0, truth[None])[0] & (labels >= 0) & (labels < classes)
        favoured = torch.where(likely, labels, favoured)
    stays = torch.where(changed, -1, own)
    sure = counts(favoured, own, labels, valid, classes, components, surviving(components, changed))
    kept = counts(stays, own, None, None, classes, components, 0).kept
    plain = counts(argmax, own, labels, valid, classes, components, surviving(components, shown))
    return _with_kept(sure, kept), plain


def _with_kept(given: Counts, kept: int) -> Counts:
    values = {name: getattr(given, name) for name in given.__dataclass_fields__}
    return Counts(**(values | {"kept": kept}))


def _possible(logits: Tensor, error: Tensor) -> Tensor:
    """Classes that may lead, given an error for each: (K, H * W) bool."""
    flat, allowance = logits.flatten(1), error[:, None]
    best: Tensor = (flat - allowance).amax(dim=0)
    return flat + allowance >= best
