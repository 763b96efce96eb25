"""The checker, measured against the catalogue: what it finds, what it misses, where it cries wolf, and how soon."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from attackcheck.attacks.plans import Plan
from attackcheck.engine import INTERRUPTED
from attackcheck.errors import InputError, in_one_line
from attackcheck.events import Event, Finding, Warned
from attackcheck.faults.case import Built, Case, Family
from attackcheck.recheck import Verdict
from attackcheck.verification import verify

__all__ = ["CurvePoint", "Outcome", "Result", "curves", "run_case", "run_selftest", "select"]

AUDIT_REFUTES = ("REFUTED", "PREMISE_REFUTED")


class Outcome(Enum):
    """How a case ended; the value is the sentence."""

    DETECTED = "an unsound claim was found"
    MISSED = "an unsound claim was not found"
    CLEAR = "a sound claim was left alone"
    ALARM = "a sound claim was called unsound, or refused"


@dataclass(frozen=True)
class Result:
    """One case with one seed at one severity.

    Attributes:
        detected_by: kinds of violation, `AC...` of a refusal, `audit ...` verdicts, in the order in which they came.
        ratio: the largest confirmed ratio of a violation, None without one.
        factor: what the catalogue's own proof witnesses, None where it has none.
        first: seconds until the first violation or refusal, None without one.
        verify_alone: whether the attacks suffice, without the audit.
        warnings: codes of preflight.
        remark: what else is to be said: a refusal, an error, other verdicts.
    """

    case: str
    family: Family
    sound: bool
    seed: int
    severity: float
    outcome: Outcome
    detected_by: tuple[str, ...]
    ratio: float | None
    factor: float | None
    first: float | None
    seconds: float
    verify_alone: bool
    warnings: tuple[str, ...] = ()
    remark: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; infinite numbers are None."""
        plain = dict(self.__dict__)
        plain |= {"family": self.family.name, "outcome": self.outcome.name}
        plain |= {"detected_by": list(self.detected_by), "warnings": list(self.warnings)}
        return {key: None if value in (float("inf"),) else value for key, value in plain.items()}


@dataclass
class _Seen:
    """What a run said until it ended or was refused."""

    kinds: list[str] = field(default_factory=list)
    ratio: float | None = None
    first: float | None = None
    warnings: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    refused: str | None = None
    failed: str | None = None


def select(cases: Sequence[Case], names: Iterable[str] = (), family: str | None = None) -> tuple[Case, ...]:
    """The cases of these names, or of one family.

    Raises:
        InputError: for a name or a family that does not exist.
    """
    chosen = tuple(cases)
    wanted = list(names)
    if wanted:
        known = {case.name for case in cases}
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise InputError(f"expected cases of the catalogue (--list shows them), got {', '.join(unknown)}")
        chosen = tuple(case for case in chosen if case.name in wanted)
    if family is not None:
        families = [member.name.lower() for member in Family]
        if family.lower() not in families:
            raise InputError(f"expected a family among {', '.join(families)}, got {family!r}")
        chosen = tuple(case for case in chosen if case.family.name.lower() == family.lower())
    if not chosen:
        raise InputError("expected at least one case, none is in both --case and --family")
    return chosen


def run_selftest(
    cases: Sequence[Case],
    seeds: int = 1,
    plan: str | Plan | None = None,
    *,
    audit: bool = True,
    prove: bool = True,
    all_severities: bool = False,
) -> Iterator[Result]:
    """Check every case and compare with what is known about it.

    Args:
        cases: entries of the catalogue.
        seeds: how many seeds of each.
        plan: a plan for all; each case's own by default.
        audit: also audit the weights, where a claim is about a Lipschitz constant.
        prove: also compute the true factor, for comparison.
        all_severities: every severity of each knob, not the gravest alone.

    Yields:
        One result for each case, severity and seed, in order.
    """
    for case in cases:
        for severity in case.severities if all_severities else case.severities[:1]:
            for seed in range(seeds):
                yield run_case(case, seed, severity, plan, audit=audit, prove=prove)


def run_case(
    case: Case,
    seed: int = 0,
    severity: float | None = None,
    plan: str | Plan | None = None,
    *,
    audit: bool = True,
    prove: bool = True,
) -> Result:
    """Check one case with one seed; see :func:`run_selftest`."""
    severity = case.severities[0] if severity is None else severity
    built = case.build(seed, severity)
    factor = case.prove(case.build(seed, severity)).factor if prove and case.prove is not None else None
    start = time.perf_counter()
    seen = _verified(built, case, plan, seed, start)
    by_verify = tuple(dict.fromkeys(seen.kinds))
    refused_rightly = seen.refused is not None and case.refusable
    if refused_rightly and seen.refused is not None:
        by_verify = (*by_verify, seen.refused[:5])
    by_audit = _audited(built) if audit else None
    detected_by = by_verify if by_audit not in AUDIT_REFUTES else (*by_verify, f"audit {by_audit}")
    if case.sound:
        quiet = not detected_by and seen.refused is None and seen.failed is None
        outcome = Outcome.CLEAR if quiet else Outcome.ALARM
    else:
        outcome = Outcome.DETECTED if detected_by else Outcome.MISSED
    remarks = [seen.refused or "", seen.failed or "", ", ".join(sorted(set(seen.others)))]
    return Result(
        case=case.name,
        family=case.family,
        sound=case.sound,
        seed=seed,
        severity=severity,
        outcome=outcome,
        detected_by=detected_by,
        ratio=seen.ratio,
        factor=factor,
        first=seen.first,
        seconds=time.perf_counter() - start,
        verify_alone=bool(by_verify),
        warnings=tuple(dict.fromkeys(seen.warnings)),
        remark="; ".join(remark for remark in remarks if remark),
    )


def _verified(built: Built, case: Case, plan: str | Plan | None, seed: int, start: float) -> _Seen:
    seen = _Seen()

    def hear(event: Event) -> None:
        if isinstance(event, Warned):
            seen.warnings.append(event.code)
        elif isinstance(event, Finding):
            found = event.violation
            if found.verdict is not Verdict.VIOLATED:
                seen.others.append(found.verdict.name)
                return
            seen.kinds.append(found.kind.name)
            seen.ratio = max(found.ratio, seen.ratio or 0.0)
            seen.first = seen.first or time.perf_counter() - start

    try:
        report = verify(
            built.model, built.images, built.claim, built.labels, plan=plan or case.plan, pixels=case.pixels,
            seed=seed, metrics=built.metrics, audit=False, on_event=hear,
        )  # fmt: skip
        if report.stopped == INTERRUPTED:
            raise KeyboardInterrupt  # a run keeps what it has; the measurement is to end
        seen.failed = report.stopped
    except InputError as error:
        seen.refused, seen.first = str(error), seen.first or time.perf_counter() - start
    except Exception as error:  # a crash of the checker is a result too: a miss, or an alarm
        seen.failed = in_one_line(error)
    return seen


def _audited(built: Built) -> str | None:
    """The audit's verdict by name, None without an audit or where it does not apply."""
    import attackcheck

    audit: Callable[..., Any] | None = getattr(attackcheck, "audit", None)
    if audit is None:
        return None
    try:
        report = audit(built.model, built.claim, tuple(built.images.shape[1:]))
    except InputError:
        return None
    return str(report.verdict.name)


@dataclass(frozen=True)
class CurvePoint:
    """One severity of a knob over all seeds: share found, and the mean of the true factors."""

    case: str
    knob: str
    severity: float
    factor: float
    detected: int
    seeds: int

    @property
    def share(self) -> float:
        """Share of the seeds in which it was found."""
        return self.detected / self.seeds


def curves(results: Iterable[Result], cases: Sequence[Case]) -> Iterator[CurvePoint]:
    """Detection against severity, for cases with a knob, gravest first."""
    knobs = {case.name: case.knob for case in cases if case.knob}
    groups: dict[tuple[str, float], list[Result]] = {}
    for result in results:
        if result.case in knobs:
            groups.setdefault((result.case, result.severity), []).append(result)
    for (name, severity), group in groups.items():
        factors = [result.factor for result in group if result.factor is not None]
        mean = sum(factors) / len(factors) if factors else float("nan")
        detected = sum(result.outcome is Outcome.DETECTED for result in group)
        yield CurvePoint(name, knobs[name], severity, mean, detected, len(group))
