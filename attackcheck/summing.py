"""From what each image gave to one report: the same whether one run, several, or several machines gave it."""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from attackcheck.confidence import Confidence, RateTest, rate_test
from attackcheck.lipschitz.findings import AuditReport
from attackcheck.probe import Kind
from attackcheck.recheck import Verdict
from attackcheck.report import Report, Violation
from attackcheck.tally import Tally

__all__ = ["Header", "Sums", "sum_up"]


@dataclass(frozen=True)
class Header:
    """What a report says before anything was found; plain values."""

    subject: Mapping[str, Any]
    plan: str
    seed: int
    tolerance: float
    attacks: tuple[str, ...]  # in the order of the plan
    classes: tuple[str, ...] | None
    ignore: int
    selection: str
    images: int  # of the whole data set
    shard: tuple[int, int] | None = None


class Sums:
    """Tallies of the parts of a run, without maps, of which no more is kept than what the report shows.

    A part is added up, and its own tally forgotten, as soon as every image before it is: the sums are those of
    :func:`sum_up`, to the last bit, in whatever order the parts come.

    Args:
        ignore: the label that counts for nothing.
        order: numbers of the images that are to come, ascending. Other parts are kept.
    """

    def __init__(self, ignore: int, order: Iterable[int]) -> None:
        self._left = deque(order)
        self._ready: set[int] = set()
        self.released = Tally(ignore)  # of all parts: what may be added up in any order
        self.begun = Tally(ignore)  # of the first images
        self.numbers = array("q")  # of these that were examined

    def release(self, number: int, tallies: dict[int, Tally]) -> None:
        """A part was reported: its tally loses its maps, and goes out of ``tallies`` where its turn has come."""
        tallies[number] = tallies[number].without_maps(self.released)
        self._ready.add(number)
        while self._left and self._left[0] in self._ready:
            following = self._left.popleft()
            self._ready.remove(following)
            tally = tallies.pop(following)
            if tally.images:
                self.numbers.append(following)
            self.begun.extend(tally)


def sum_up(
    header: Header,
    tallies: Mapping[int, Tally],
    *,
    seconds: float,
    stopped: str | None = None,
    failed: bool = False,
    audit: AuditReport | None = None,
    sums: Sums | None = None,
) -> Report:
    """One report over the tallies of all parts, in the order of their numbers, and what was added up of them before."""
    tally, first = Tally(header.ignore), Sums(header.ignore, ()) if sums is None else sums
    tally.extend(first.released)
    for number in sorted(tallies):
        if number < 0:  # what comes before all images
            tally.extend(tallies[number])
    tally.extend(first.begun)
    for number in sorted(tallies):
        if number >= 0:
            tally.extend(tallies[number])
    rate = _rate(header, tally)
    broken = [] if rate is None or not rate.refuted else [_broken(header, rate)]
    return Report(
        subject=header.subject,
        plan=header.plan,
        seed=header.seed,
        tolerance=header.tolerance,
        findings=tuple(sorted([*tally.findings, *broken], key=lambda f: (f.verdict is not Verdict.VIOLATED, -f.ratio))),
        radii=tally.radii,
        flip_distances=tally.flip_distances,
        attacked_pixels=tally.attacked,
        images=tally.images,
        examined=tally.examined,
        attacked_count=tally.aimed,
        counts={verdict: count for verdict, count in tally.verdicts.items() if count},
        unchecked={reason: count for reason, count in tally.unchecked.items() if count},
        attacks=tally.attacks(header.attacks),
        regions=tuple(tally.regions),
        budgets=tally.budgets(),
        classes=tally.classes(header.classes),
        limit=tally.limit(),
        seconds=seconds,
        selection=header.selection,
        stopped=stopped,
        failed=failed,
        audit=audit,
        numbers=(*first.numbers, *(number for number in sorted(tallies) if tallies[number].images)),
        shard=header.shard,
        warnings=tuple(tally.warnings),
        rate=rate,
    )


def _rate(header: Header, tally: Tally) -> RateTest | None:
    """Radii that hold with a probability are broken by a rate of violations, not by one."""
    claim = header.subject.get("claim")
    told = claim.get("confidence") if isinstance(claim, Mapping) else None
    return None if not isinstance(told, Mapping) else rate_test(Confidence(**told), tally.rates)


def _broken(header: Header, rate: RateTest) -> Violation:
    return Violation(
        kind=Kind.RATE,
        verdict=Verdict.VIOLATED,
        image=-1,
        image_name=str(header.subject.get("data", "")),
        pixel=None,
        pixels=rate.broken,
        predicted=-1,
        target=-1,
        radius=rate.rate,
        distance=rate.permitted,
        attack="all",
        statement=rate.sentence(),
    )
