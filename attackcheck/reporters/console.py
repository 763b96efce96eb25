"""The console: header and tables on stdout, live progress on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
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
    PartFinished,
    RunFinished,
    RunStarted,
    Warned,
)
from attackcheck.parts import Part
from attackcheck.probe import Kind
from attackcheck.recheck import Verdict
from attackcheck.report import Report, Violation
from attackcheck.reporters.audits import audit_lines, replay_command
from attackcheck.reporters.live import LiveView
from attackcheck.reporters.sentences import closing, remarks
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
        verbose: every attack call where there is no terminal, all violations at once, all findings in the tables.
        tables: False leaves stdout to another reporter; everything goes to stderr then.
    """

    def __init__(
        self,
        replay: Sequence[str] = ("attackcheck", "replay"),
        *,
        quiet: bool = False,
        verbose: bool = False,
        tables: bool = True,
    ) -> None:
        self._out = plain_console(sys.stdout if tables else sys.stderr)
        self._err = plain_console(sys.stderr)
        self._replay = replay
        self._quiet = quiet
        self._verbose = verbose
        self._shown = SHOWN if not verbose else sys.maxsize
        self._violations = 0
        self._images = 0
        self._own = 0  # of these, the images of this shard
        self._before = 0  # images that an earlier run did
        self._live: LiveView | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def __call__(self, event: Event) -> None:
        """Show one event."""
        match event:
            case RunStarted():
                self._header(event)
            case Audited():
                if not self._quiet or event.audit.refuted:
                    for line in audit_lines(event.audit):
                        self._out.print(Text.assemble(("audit ", "bold"), " ", line))
                    if event.audit.counterexample is not None:
                        command = replay_command(self._replay, event.audit.counterexample)
                        self._out.print(Text.assemble(("audit ", "bold"), " replay: ", command), soft_wrap=True)
            case Warned():
                self._say(Text.assemble(("warning ", "yellow"), f"{event.code}: {printable(event.message)}"))
            case ImageStarted() | Advanced() | ImageFinished():
                self._look(event)
            case Finding():
                self._finding(event.violation)
            case PartFinished() if event.restored:
                self._restored(event.part)
            case RunFinished():
                self._stop()
                self._report(event.report)

    # While it runs -----------------------------------------------------------------------------------------------

    def _header(self, event: RunStarted) -> None:
        self._images = event.images
        self._own = len(event.numbers) or event.images
        if self._quiet:
            return
        subject = event.subject
        model = str(subject.get("model", "a callable"))
        if subject.get("sha256"):
            model += f" (SHA-256 {str(subject['sha256'])[:12]})"
        shard = "" if event.shard is None else ", shard {}/{} of them".format(*event.shard)
        lines = {
            "model": model,
            "claim": str(subject["claim_text"]),
            "data": f"{subject['data']}, {counted(event.images, 'image')}{shard}; {event.selection}",
            "device": f"{subject['device']}, {counted(int(subject['threads']), 'thread')}",
            "plan": f"{event.plan}, seed {event.seed}",
        }
        for name, value in lines.items():
            self._out.print(Text.assemble((f"{name:6}", "bold"), " ", printable(value)))

    def _restored(self, part: Part) -> None:
        if part.maps is None:
            return
        self._before += 1
        if not self._quiet and not self._err.is_interactive:
            self._err.print(f"image {part.number + 1}/{self._images}: done before")

    def _look(self, event: ImageStarted | Advanced | ImageFinished) -> None:
        """The live view on a terminal that can redraw lines (TERM=dumb cannot), plain lines elsewhere."""
        if self._quiet:
            return
        if self._err.is_interactive:
            if self._live is None:
                self._live = LiveView(self._err, self._own)
                for _ in range(self._before):
                    self._live.skipped()
                self._live.__enter__()
            self._live(event)
            return
        match event:
            case Advanced() if self._verbose:
                self._err.print(
                    f"image {event.image + 1}/{self._images}: {event.attack}, call {event.done}/{event.work}, "
                    f"worst r/d {short(event.worst)}"
                )
            case ImageFinished():
                self._err.print(
                    f"image {event.image + 1}/{self._images}: {counted(event.attacked, 'pixel')} attacked, "
                    f"{counted(event.violations, 'violation')}"
                )

    def _finding(self, violation: Violation) -> None:
        if violation.verdict is not Verdict.VIOLATED:
            return
        self._violations += 1
        if self._live is not None:
            self._live.violations = self._violations
        if self._violations <= 5 or self._verbose:
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
        self._err.print(text)

    def _stop(self) -> None:
        if self._live is not None:
            self._live.__exit__()
            self._live = None

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
            for line in remarks(report):
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
            self._print(violation_table(title, broken[: self._shown], self._out.width))
            for kind in Kind:
                if any(violation.kind is kind for violation in broken):
                    self._out.print(f"{kind.name}: {kind.value}")
            for violation in broken[: self._shown]:
                if violation.statement is not None:
                    self._out.print(f"claimed: {violation.statement}, reached by {printable(violation.attack)}")
            if len(broken) > self._shown:
                self._out.print(f"{len(broken) - self._shown} more are in --json and in the folder of counterexamples")
            self._replays(broken[: self._shown])
        others = [finding for finding in report.findings if finding.verdict is not Verdict.VIOLATED]
        if others and not self._quiet:
            title = f"Proposals that are no violations ({len(others)})"
            self._print(violation_table(title, others[: self._shown], self._out.width))
            for verdict in sorted({finding.verdict.name for finding in others}):
                self._out.print(f"{verdict}: {Verdict[verdict].value}")

    def _replays(self, broken: Sequence[Violation]) -> None:
        """The replay command of every violation shown, in the same order."""
        paths = [violation.counterexample for violation in broken if violation.counterexample is not None]
        if paths:
            self._out.print("Replay them, in this order, with:")
        for path in paths:
            self._out.print("  " + replay_command(self._replay, path), soft_wrap=True)


def _last_line(report: Report) -> Text:
    end = closing(report)
    style = "bold red" if end.unsound else "bold yellow"
    return Text.assemble((f"{end.label} ", style), end.text) if end.label else Text(end.text)
