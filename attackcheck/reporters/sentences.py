"""What every reporter says of a report in words."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from attackcheck.probe import Kind
from attackcheck.report import STUCK, Report
from attackcheck.reporters.tables import counted

__all__ = ["Closing", "closing", "limits", "remarks", "rounded_up"]


@dataclass(frozen=True)
class Closing:
    """The last line: ``label`` is UNSOUND, COULD NOT CHECK, NOTHING CHECKED or empty, ``text`` the rest."""

    label: str
    text: str

    @property
    def unsound(self) -> bool:
        """Whether something is broken."""
        return self.label == "UNSOUND"


def closing(report: Report) -> Closing:
    """One line that says how it ended; never that something is verified."""
    broken = report.violations
    pixels = f"{report.attacked_count:,} attacked {'pixel' if report.attacked_count == 1 else 'pixels'}"
    names = ", ".join(attack.name for attack in report.attacks)
    ran = f"({names or 'nothing ran'}; seed {report.seed})"
    count = f"{counted(len(broken), 'violation')} in {pixels} {ran}"
    if broken:
        kinds = Counter(violation.kind for violation in broken)
        parts = ", ".join(f"{kinds[kind]} {kind.name}" for kind in Kind if kinds[kind])
        ratio = f"by up to x {broken[0].ratio:.4f}"
        return Closing("UNSOUND", f"{counted(len(broken), 'violation')} ({parts}) {ratio} in {pixels} {ran}")
    if report.audit is not None and report.audit.refuted:
        return Closing("UNSOUND", f"by the audit of the weights; {count}")
    if not report.attacked_count and report.unchecked.get(STUCK):
        why = "gradients are zero or misleading and no search found any flip: this says nothing about the radii"
        return Closing("COULD NOT CHECK", f"{why} {ran}")
    if not report.attacked_count:
        return Closing("NOTHING CHECKED", "no pixel was attacked")
    return Closing("", count)


def limits(report: Report) -> list[str]:
    """What the run would have found: the detection limit, and that of gadgets."""
    lines = []
    limit = report.limit
    if math.isfinite(limit.least) and report.sound:
        parts = [
            f"{name} {value:.4g}"
            for name, value in (("flips", limit.pixel), ("sets", limit.set), ("slopes", limit.map))
            if math.isfinite(value)
        ]
        lines.append(
            f"Detection limit: any uniform inflation of the radii above x {rounded_up(limit.least)} would have been "
            f"found ({', '.join(parts)})."
        )
    if math.isfinite(limit.gadget) and report.sound:
        lines.append(
            f"The certifier held on gadgets, networks with known distances: its radii reach {1 / limit.gadget:.5f} of "
            "the distance."
        )
    return lines


def remarks(report: Report) -> list[str]:
    """The limits, and what was not attacked."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in report.unchecked.items())
    rate = [] if report.rate is None else [f"Rate: {report.rate.sentence()}."]
    return [*limits(report), *rate, *([f"Not attacked: {reasons}."] if reasons else [])]


def rounded_up(value: float) -> str:
    """Rounded up, so that the sentence stays true."""
    digits = 2 if value >= 1.1 else 4
    return f"{math.ceil(value * 10**digits) / 10**digits:.{digits}f}"
