"""JUnit XML: one test suite for each image, one test case for each attack on it."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from xml.etree.ElementTree import Element, SubElement, fromstring, indent, tostring
from zlib import compress, decompress

from attackcheck.errors import InputError, printable
from attackcheck.events import Event, PartFinished, RunFinished
from attackcheck.parts import Part
from attackcheck.recheck import Verdict
from attackcheck.report import Report, Violation
from attackcheck.reporters.json import checked_target, write_whole
from attackcheck.reporters.tables import counted

__all__ = ["JunitReporter"]

LOOSE = 256
"""Suites that are kept as they are before they are compressed."""


class JunitReporter:
    """Writes what continuous integration shows as tests; all or nothing, at the end.

    A violation is a failure of the attack that found it, on the image that it is about. An attack that could attack no
    pixel is skipped, a run that could not go on is an error.

    Raises:
        InputError: at once, if the file cannot be written as far as that can be seen before the run.
    """

    def __init__(self, target: str) -> None:
        path = checked_target(target, "--junit")
        if path is None:
            raise InputError("expected --junit to name a file, got '-'")
        self._path = path
        self._suites = _Suites()

    def __call__(self, event: Event) -> None:
        """Keep a suite for each part; write at the end."""
        if isinstance(event, PartFinished):
            self._suites.add(event.part.number, tostring(_suite_of(event.part)))
        elif isinstance(event, RunFinished):
            self._write(event.report)

    def _write(self, report: Report) -> None:
        root = Element("testsuites", name="attackcheck")
        if report.audit is not None:
            suite = _suite("weights")
            case = _case(suite, "weights", "audit", report.audit.seconds)
            if report.audit.refuted:
                failure = SubElement(case, "failure", type=report.audit.verdict.name)
                failure.set("message", printable(report.audit.sentence))
            root.append(_counted(suite))
        root.extend(map(fromstring, self._suites.in_order()))
        if report.stopped is not None:
            suite = _suite("run")
            case = _case(suite, "run", "complete", 0.0)
            SubElement(case, "error", type="stopped", message=printable(report.stopped))
            root.append(_counted(suite))
        for count in ("tests", "failures", "errors", "skipped"):
            root.set(count, str(sum(int(suite.get(count, "0")) for suite in root)))
        root.set("time", f"{report.seconds:.3f}")
        indent(root)
        text = '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode") + "\n"
        try:
            write_whole(self._path, text)
        except OSError as error:
            raise InputError(f"could not write {self._path}: {error.strerror or error}") from None


class _Suites:
    """Texts by number, compressed where they are many: each is much like the others."""

    def __init__(self) -> None:
        self._numbers = array("q")
        self._loose: list[bytes] = []
        self._blocks: list[bytes] = []

    def add(self, number: int, text: bytes) -> None:
        self._numbers.append(number)
        self._loose.append(text)
        if len(self._loose) >= LOOSE:
            self._blocks.append(compress(b"\0".join(self._loose)))  # which no XML contains
            self._loose = []

    def in_order(self) -> Iterator[bytes]:
        """The last one of each number."""
        texts = [text for block in self._blocks for text in decompress(block).split(b"\0")] + self._loose
        last = dict(zip(self._numbers, texts, strict=True))
        return (last[number] for number in sorted(last))


def _suite_of(part: Part) -> Element:
    suite = _suite(part.name)
    by_attack: dict[str, list[Violation]] = {}
    for found in part.tally.findings:
        by_attack.setdefault(found.attack, []).append(found)
    costs = part.tally.sums()["costs"]
    for attack in dict.fromkeys([*costs, *by_attack]):
        case = _case(suite, part.name, attack, costs.get(attack, {}).get("seconds", 0.0))
        broken = [found for found in by_attack.get(attack, []) if found.verdict is Verdict.VIOLATED]
        others = [found for found in by_attack.get(attack, []) if found.verdict is not Verdict.VIOLATED]
        aimed = sum(int(group.aimed[attack].sum()) for group in part.tally.pixels if attack in group.aimed)
        if broken:
            worst = max(broken, key=lambda found: found.ratio)
            message = f"{counted(len(broken), 'violation')}, by up to x {worst.ratio:.4f}"
            SubElement(case, "failure", type="VIOLATED", message=message).text = _lines(broken)
        elif not aimed and costs.get(attack, {}).get("objective") == "pixel":
            SubElement(case, "skipped", message="no pixel of this image was attacked")
        if others:
            SubElement(case, "system-out").text = _lines(others)
    if not len(suite):
        case = _case(suite, part.name, "gadgets" if part.maps is None else "attacks", part.seconds)
        if part.maps is not None:
            SubElement(case, "skipped", message="nothing of this image was attacked")
    return _counted(suite)


def _lines(findings: Sequence[Violation]) -> str:
    lines = []
    for found in sorted(findings, key=lambda found: -found.ratio):
        where = "the map" if found.pixel is None else "pixel {}, {}".format(*found.pixel)
        where = where if found.statement is None else found.statement
        classes = "" if found.pixel is None else f"classes {found.predicted} -> {found.target}, "
        lines.append(
            f"{found.verdict.name} {found.kind.name} at {where}: radius {found.radius!r}, distance {found.distance!r}, "
            f"{classes}counterexample {found.counterexample}"
        )
    return printable("\n".join(lines)).replace("\\n", "\n")


def _suite(name: str) -> Element:
    return Element("testsuite", name=printable(name))


def _case(suite: Element, where: str, name: str, seconds: float) -> Element:
    return SubElement(suite, "testcase", classname=f"attackcheck.{printable(where)}", name=name, time=f"{seconds:.3f}")


def _counted(suite: Element) -> Element:
    suite.set("tests", str(len(suite)))
    for tag, count in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(count, str(sum(case.find(tag) is not None for case in suite)))
    suite.set("time", f"{sum(float(case.get('time', '0')) for case in suite):.3f}")
    return suite
