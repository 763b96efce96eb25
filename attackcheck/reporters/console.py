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
from attackcheck.events import Advanced, Event, Finding, ImageFinished, ImageStarted, RunFinished, RunStarted, Warned
from attackcheck.probe import Kind
from attackcheck.recheck import Verdict
from attackcheck.report import AttackSummary, Report, Violation

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
                        f"image {event.image + 1}/{self._images}: {_count(event.attacked, 'pixel')} attacked, "
                        f"{_count(event.violations, 'violation')}"
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
            "data": f"{subject['data']}, {_count(event.images, 'image')}; {event.selection}",
            "device": f"{subject['device']}, {_count(int(subject['threads']), 'thread')}",
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
            worst=_short(self._worst),
            violations=self._violations,
        )

    def _finding(self, violation: Violation) -> None:
        if violation.verdict is not Verdict.VIOLATED:
            return
        self._violations += 1
        if self._violations <= 5:
            where = "the logit map" if violation.pixel is None else f"pixel {violation.pixel}"
            self._say(
                Text.assemble(
                    ("VIOLATED ", "bold red"),
                    f"{violation.kind.name} image {violation.image} {where}: radius {_short(violation.radius)}, "
                    f"distance {_short(violation.distance)} ({violation.attack})",
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
            for table in self._attack_tables(report):
                self._print(table)
            if report.regions:
                self._print(self._region_table(report))
            if report.budgets:
                self._print(self._budget_table(report))
            self._print(self._class_table(report))
        if report.findings:
            self._finding_tables(report)
        if not self._quiet:
            self._out.print()
            for line in _sentences(report):
                self._out.print(line)
        self._out.print(_last_line(report))

    def _print(self, table: Table) -> None:
        self._out.print()
        self._out.print(table)

    def _attack_tables(self, report: Report) -> list[Table]:
        """One table where it fits, else distances and costs apart."""
        title = "Attacks: distances on the [0, 1] scale, tightness = radius / distance"
        rows = [_attack_row(attack) for attack in report.attacks]
        if self._out.width >= 90:
            return [_attack_table(title, _REACH + _COST, rows)]
        return [
            _attack_table(title, _REACH, [row[: len(_REACH)] for row in rows]),
            _attack_table("Slack and cost", _REACH[:1] + _COST, [row[:1] + row[len(_REACH) :] for row in rows]),
        ]

    def _region_table(self, report: Report) -> Table:
        table = _table("Regions: one perturbation that flips them")
        table.add_column("image", justify="right", no_wrap=True)
        table.add_column("region", overflow="fold")
        for name in ("pixels", "joint distance", "best distance", "ratio"):
            table.add_column(name, justify="right")
        table.add_column("attack", no_wrap=True)
        best: dict[tuple[int, str], int] = {}
        for number, region in enumerate(report.regions):
            key = (region.image, region.name)
            if key not in best or region.distance < report.regions[best[key]].distance:
                best[key] = number
        for number in best.values():
            region = report.regions[number]
            joint = region.joint_distance
            table.add_row(
                str(region.image),
                Text(region.name + ("" if region.target is None else f" -> {region.target}")),
                f"{region.pixels}" + ("" if region.fraction == 1 else f" x {region.fraction:g}"),
                "-" if joint is None else _short(joint),
                _distance(region.distance),
                "-" if joint is None or math.isinf(region.distance) else f"{joint / region.distance:.3f}",
                region.attack if math.isfinite(region.distance) else "not flipped",
            )
        return table

    def _budget_table(self, report: Report) -> Table:
        table = _table("Fixed budgets: whole images under attack")
        table.add_column("eps", justify="right")
        table.add_column("attack", no_wrap=True)
        for name in ("clean accuracy", "attacked accuracy", "unchanged pixels"):
            table.add_column(name, justify="right")
        for result in report.budgets:
            clean, attacked = _percent(result.clean), _percent(result.attacked)
            table.add_row(f"{result.eps:g}", result.attack, clean, attacked, _percent(result.stability))
        return table

    def _class_table(self, report: Report) -> Table:
        table = _table("Classes, as predicted")
        table.add_column("class", overflow="fold")
        for name in ("pixels", "accuracy", "median radius", "attacked", "median distance"):
            table.add_column(name, justify="right")
        for row in report.classes:
            table.add_row(
                Text(printable(row.name)),
                f"{row.pixels:,}",
                _percent(row.accuracy),
                _short(row.median_radius),
                f"{row.attacked:,}",
                _distance(row.median_flip_distance) if row.attacked else "-",
            )
        return table

    def _finding_tables(self, report: Report) -> None:
        broken = report.violations
        if broken:
            title = f"Violations, worst first ({len(broken)})"
            self._print(_violation_table(title, broken[:SHOWN], self._out.width))
            for kind in Kind:
                if any(violation.kind is kind for violation in broken):
                    self._out.print(f"{kind.name}: {kind.value}")
            if len(broken) > SHOWN:
                self._out.print(f"{len(broken) - SHOWN} more are in --json and in the folder of counterexamples")
            self._replays(broken)
        others = [finding for finding in report.findings if finding.verdict is not Verdict.VIOLATED]
        if others and not self._quiet:
            title = f"Proposals that are no violations ({len(others)})"
            self._print(_violation_table(title, others[:SHOWN], self._out.width))
            for verdict in sorted({finding.verdict.name for finding in others}):
                self._out.print(f"{verdict}: {Verdict[verdict].value}")

    def _replays(self, broken: Sequence[Violation]) -> None:
        """The replay command of the worst violation of each kind."""
        examples = [next((v for v in broken if v.kind is kind and v.counterexample), None) for kind in Kind]
        paths = [str(violation.counterexample) for violation in examples if violation is not None]
        if paths:
            self._out.print("Replay the worst of each kind (the others likewise, their files lie in the same folder):")
        for path in paths:
            self._out.print("  " + shlex.join([*self._replay[:2], path, *self._replay[2:]]), soft_wrap=True)


def _violation_table(title: str, findings: Sequence[Violation], width: int) -> Table:
    table = _table(title, gap=1)
    table.add_column("kind", no_wrap=True)
    table.add_column("image", justify="right", no_wrap=True)
    table.add_column("where", no_wrap=True)
    table.add_column("class", no_wrap=True)
    for name in ("radius", "distance", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    wide = width >= 78
    if wide:
        table.add_column("attack", no_wrap=True)
    alike = len({finding.verdict for finding in findings}) == 1 and not wide
    if not alike:
        table.add_column("verdict", no_wrap=True)
    for finding in findings:
        where = _count(finding.pixels, "pixel") if finding.kind is Kind.SET else "map"
        if finding.pixel is not None:
            where = "{}, {}".format(*finding.pixel)
        if finding.kind is Kind.TWO_BALL and finding.pixels > 1:
            where += f" (+{finding.pixels - 1})"
        row: list[str | Text] = [
            finding.kind.name,
            str(finding.image),
            where,
            "-" if finding.predicted < 0 else f"{finding.predicted} -> {finding.target}",
            _short(finding.radius),
            _short(finding.distance),
            f"{finding.ratio:.4f}",
        ]
        if wide:
            row.append(finding.attack)
        if not alike:
            style = "bold red" if finding.verdict is Verdict.VIOLATED else "yellow"
            row.append(Text(finding.verdict.name, style=style))
        table.add_row(*row)
    return table


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
    if report.unchecked:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in report.unchecked.items())
        lines.append(f"Not attacked: {reasons}.")
    if report.stopped:
        lines.append(f"The run is incomplete: {printable(report.stopped)}.")
    return lines


def _last_line(report: Report) -> Text:
    broken = report.violations
    pixels = f"{report.attacked_count:,} attacked {'pixel' if report.attacked_count == 1 else 'pixels'}"
    names = ", ".join(attack.name for attack in report.attacks)
    ran = f"({names or 'nothing ran'}; seed {report.seed})"
    count = f"{_count(len(broken), 'violation')} in {pixels} {ran}"
    if broken:
        kinds = Counter(violation.kind for violation in broken)
        parts = ", ".join(f"{kinds[kind]} {kind.name}" for kind in Kind if kinds[kind])
        ratio = f"by up to x {broken[0].ratio:.4f}"
        found = f"{_count(len(broken), 'violation')} ({parts}) {ratio} in {pixels} {ran}"
        return Text.assemble(("UNSOUND ", "bold red"), found)
    if not report.attacked_count:
        return Text.assemble(("NOTHING CHECKED ", "bold yellow"), "no pixel was attacked")
    return Text(count)


_REACH = ("attack", "flipped", "min d", "median d", "tightness 5 50 95 %")
_COST = ("slack: L x attack", "forward", "backward", "seconds")


def _attack_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = _table(title)
    table.add_column(columns[0], no_wrap=True)
    for name in columns[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def _attack_row(attack: AttackSummary) -> list[str]:
    tightness = [attack.tightness[q] for q in (0.05, 0.5, 0.95)] if attack.tightness else []
    slack = "-"
    if math.isfinite(attack.lipschitz_slack):
        slack = f"{attack.lipschitz_slack:.2f} x {attack.attack_slack:.2f}"
    if attack.objective.startswith("map"):
        flipped, middle = "map", f"{attack.expansion:.3f} of L"
    else:
        flipped = f"{attack.flipped}/{attack.attacked}" if attack.attacked else attack.objective
        middle = " ".join(f"{value:.2f}" for value in tightness) or "-"
    return [
        attack.name,
        flipped,
        _distance(attack.smallest) if attack.flipped else "-",
        _distance(attack.median) if attack.attacked else "-",
        middle,
        slack,
        _thousands(attack.forward),
        _thousands(attack.backward),
        f"{attack.seconds:.1f}",
    ]


def _table(title: str, gap: int = 2) -> Table:
    return Table(
        title=Text(title), title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, gap, 0, 0)
    )


def _short(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"


def _distance(value: float) -> str:
    return "not flipped" if math.isinf(value) else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _thousands(count: int) -> str:
    return f"{count}" if count < 10_000 else f"{count / 1000:.0f}k" if count < 10_000_000 else f"{count / 1e6:.0f}M"


def _up(value: float) -> str:
    """Rounded up, so that the sentence stays true."""
    digits = 2 if value >= 1.1 else 4
    return f"{math.ceil(value * 10**digits) / 10**digits:.{digits}f}"


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")
