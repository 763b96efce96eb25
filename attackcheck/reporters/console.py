"""The console: header and tables on stdout, live progress on stderr."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from attackcheck.errors import printable
from attackcheck.events import (
    Advanced,
    Audited,
    Event,
    Finding,
    ImageFinished,
    ImageStarted,
    RunFinished,
    RunStarted,
    Warned,
)
from attackcheck.probe import Kind
from attackcheck.recheck import Verdict
from attackcheck.report import STUCK, Report, Violation
from attackcheck.reporters.audits import audit_lines
from attackcheck.reporters.tables import (
    attack_tables,
    budget_table,
    class_table,
    counted,
    region_table,
    short,
    violation_table,
)

__all__ = ["ConsoleReporter", "plain_console"]

PIPED_WIDTH = 160
SHOWN = 20


class _PatientConsole(Console):
    """Goes on in silence when its reader has gone away (`| head`): that changes no verdict."""

    def on_broken_pipe(self) -> None:
        silence = open(os.devnull, "w")  # noqa: SIM115  stays open for what is still to come
        if self.file is sys.stdout:
            os.dup2(silence.fileno(), sys.stdout.fileno())
        self.file = silence


def plain_console(file: TextIO | None) -> Console:
    """A console that never reads markup in data and is not cut at 80 columns when it is piped."""
    if file is None:  # closed before we started
        file = open(os.devnull, "w")  # noqa: SIM115
    console = _PatientConsole(file=file, markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console = _PatientConsole(file=file, markup=False, highlight=False, emoji=False, width=PIPED_WIDTH)
    return console


class ConsoleReporter:
    """Consumes events.

    Args:
        replay: how a replay command starts, with everything but the counterexample's path.
        quiet: no tables and no progress, only violations and the last line.
        tables: False leaves stdout to another reporter; everything goes to stderr then.
    """

    def __init__(self, replay: Sequence[str] = ("attackcheck", "replay"), *, quiet: bool = False, tables: bool = True):
        self._out = plain_console(sys.stdout if tables else sys.stderr)
        self._err = plain_console(sys.stderr)
        self._replay = replay
        self._quiet = quiet
        self._violations = 0
        self._images = 0
        self._done: dict[int, float] = {}  # share of each image's work; several may be under way
        self._worst = 0.0
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop_progress()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case RunStarted():
                self._header(event)
            case Audited():
                if not self._quiet or event.audit.refuted:
                    for line in audit_lines(event.audit):
                        self._out.print(Text.assemble(("audit ", "bold"), " ", line))
            case Warned():
                self._say(Text.assemble(("warning ", "yellow"), f"{event.code}: {printable(event.message)}"))
            case ImageStarted():
                self._start_progress()
            case Advanced():
                self._advance(event)
            case Finding():
                self._finding(event.violation)
            case ImageFinished():
                if self._progress is None and not self._quiet:
                    self._err.print(
                        f"image {event.image + 1}/{self._images}: {counted(event.attacked, 'pixel')} attacked, "
                        f"{counted(event.violations, 'violation')}"
                    )
            case RunFinished():
                self._stop_progress()
                self._report(event.report)

    # While it runs -----------------------------------------------------------------------------------------------

    def _header(self, event: RunStarted) -> None:
        self._images = event.images
        if self._quiet:
            return
        subject = event.subject
        model = str(subject.get("model", "a callable"))
        if subject.get("sha256"):
            model += f" (SHA-256 {str(subject['sha256'])[:12]})"
        lines = {
            "model": model,
            "claim": str(subject["claim_text"]),
            "data": f"{subject['data']}, {counted(event.images, 'image')}; {event.selection}",
            "device": f"{subject['device']}, {counted(int(subject['threads']), 'thread')}",
            "plan": f"{event.plan}, seed {event.seed}",
        }
        for name, value in lines.items():
            self._out.print(Text.assemble((f"{name:6}", "bold"), " ", printable(value)))

    def _start_progress(self) -> None:
        if self._quiet or not self._err.is_terminal:
            return
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:>3.0f}%"),
                TextColumn("worst r/d {task.fields[worst]}"),
                TextColumn("{task.fields[violations]} violations"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self._err,
                transient=True,
            )
            self._task = self._progress.add_task("", total=float(self._images), worst="-", violations=0)
            self._progress.start()

    def _advance(self, event: Advanced) -> None:
        if self._progress is None or self._task is None:
            return
        self._done[event.image] = event.done / max(1, event.work)
        self._worst = max(self._worst, event.worst)
        self._progress.update(
            self._task,
            description=f"image {event.image + 1}/{self._images} {event.attack}",
            completed=sum(self._done.values()),
            worst=short(self._worst),
            violations=self._violations,
        )

    def _finding(self, violation: Violation) -> None:
        if violation.verdict is not Verdict.VIOLATED:
            return
        self._violations += 1
        if self._violations <= 5:
            where = "the logit map" if violation.pixel is None else f"pixel {violation.pixel}"
            if violation.statement is not None:
                where = violation.statement
            if violation.kind is Kind.GADGET:
                where = f"of {violation.image_name}, {where}"
            self._say(
                Text.assemble(
                    ("VIOLATED ", "bold red"),
                    f"{violation.kind.name} image {violation.image} {where}: radius {short(violation.radius)}, "
                    f"distance {short(violation.distance)} ({violation.attack})",
                )
            )
        elif self._violations == 6:
            self._say(Text("further violations are in the table at the end"))

    def _say(self, text: Text) -> None:
        (self._progress.console if self._progress is not None else self._err).print(text)

    def _stop_progress(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    # At the end --------------------------------------------------------------------------------------------------

    def _report(self, report: Report) -> None:
        if not self._quiet and report.attacked_count:
            for table in attack_tables(report, self._out.width):
                self._print(table)
            if report.regions:
                self._print(region_table(report))
            if report.budgets:
                self._print(budget_table(report))
            self._print(class_table(report))
        if report.findings:
            self._finding_tables(report)
        if not self._quiet:
            self._out.print()
            for line in _sentences(report):
                self._out.print(line)
        if report.stopped:
            self._out.print(f"The run is incomplete: {printable(report.stopped)}.")
        self._out.print(_last_line(report))

    def _print(self, table: Table) -> None:
        self._out.print()
        self._out.print(table)

    def _finding_tables(self, report: Report) -> None:
        broken = report.violations
        if broken:
            title = f"Violations, worst first ({len(broken)})"
            self._print(violation_table(title, broken[:SHOWN], self._out.width))
            for kind in Kind:
                if any(violation.kind is kind for violation in broken):
                    self._out.print(f"{kind.name}: {kind.value}")
            for violation in broken[:SHOWN]:
                if violation.statement is not None:
                    self._out.print(f"claimed: {violation.statement}, reached by {printable(violation.attack)}")
            if len(broken) > SHOWN:
                self._out.print(f"{len(broken) - SHOWN} more are in --json and in the folder of counterexamples")
            self._replays(broken[:SHOWN])
        others = [finding for finding in report.findings if finding.verdict is not Verdict.VIOLATED]
        if others and not self._quiet:
            title = f"Proposals that are no violations ({len(others)})"
            self._print(violation_table(title, others[:SHOWN], self._out.width))
            for verdict in sorted({finding.verdict.name for finding in others}):
                self._out.print(f"{verdict}: {Verdict[verdict].value}")

    def _replays(self, broken: Sequence[Violation]) -> None:
        """The replay command of every violation shown, in the same order."""
        paths = [str(violation.counterexample) for violation in broken if violation.counterexample is not None]
        if paths:
            self._out.print("Replay them, in this order, with:")
        for path in paths:
            self._out.print("  " + shlex.join([*self._replay[:2], path, *self._replay[2:]]), soft_wrap=True)


def _sentences(report: Report) -> list[str]:
    lines = []
    limit = report.limit
    if math.isfinite(limit.least) and report.sound:
        parts = [
            f"{name} {value:.4g}"
            for name, value in (("flips", limit.pixel), ("sets", limit.set), ("slopes", limit.map))
            if math.isfinite(value)
        ]
        lines.append(
            f"Detection limit: any uniform inflation of the radii above x {_up(limit.least)} would have been found "
            f"({', '.join(parts)})."
        )
    if math.isfinite(limit.gadget) and report.sound:
        lines.append(
            f"The certifier held on gadgets, networks with known distances: its radii reach {1 / limit.gadget:.5f} of "
            "the distance."
        )
    if report.rate is not None:
        lines.append(f"Rate: {report.rate.sentence()}.")
    if report.unchecked:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in report.unchecked.items())
        lines.append(f"Not attacked: {reasons}.")
    return lines


def _last_line(report: Report) -> Text:
    broken = report.violations
    pixels = f"{report.attacked_count:,} attacked {'pixel' if report.attacked_count == 1 else 'pixels'}"
    names = ", ".join(attack.name for attack in report.attacks)
    ran = f"({names or 'nothing ran'}; seed {report.seed})"
    count = f"{counted(len(broken), 'violation')} in {pixels} {ran}"
    if broken:
        kinds = Counter(violation.kind for violation in broken)
        parts = ", ".join(f"{kinds[kind]} {kind.name}" for kind in Kind if kinds[kind])
        ratio = f"by up to x {broken[0].ratio:.4f}"
        found = f"{counted(len(broken), 'violation')} ({parts}) {ratio} in {pixels} {ran}"
        return Text.assemble(("UNSOUND ", "bold red"), found)
    if report.audit is not None and report.audit.refuted:
        return Text.assemble(("UNSOUND ", "bold red"), f"by the audit of the weights; {count}")
    if not report.attacked_count and report.unchecked.get(STUCK):
        why = "gradients are zero or misleading and no search found any flip: this says nothing about the radii"
        return Text.assemble(("COULD NOT CHECK ", "bold yellow"), f"{why} {ran}")
    if not report.attacked_count:
        return Text.assemble(("NOTHING CHECKED ", "bold yellow"), "no pixel was attacked")
    return Text(count)


def _up(value: float) -> str:
    """Rounded up, so that the sentence stays true."""
    digits = 2 if value >= 1.1 else 4
    return f"{math.ceil(value * 10**digits) / 10**digits:.{digits}f}"
