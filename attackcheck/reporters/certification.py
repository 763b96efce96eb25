"""The console and CSV of a certification."""

from __future__ import annotations

import csv
import io
import math
import shlex
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from attackcheck.certification_table import CertificationTable, MetricFinding, Row
from attackcheck.errors import printable
from attackcheck.measures.dataset import Smallest
from attackcheck.measures.names import Measure
from attackcheck.recheck import Verdict
from attackcheck.reporters.console import plain_console
from attackcheck.reporters.tables import counted
from attackcheck.smoothing import SmoothedData

__all__ = ["CertificationReporter", "csv_text", "smallest_text"]

PAIRS = ((Measure.ACCURACY, Measure.MEAN_IOU), (Measure.STABILITY, Measure.COMPONENTS))
SHORT = {
    Measure.ACCURACY: "accuracy",
    Measure.MEAN_IOU: "mean IoU",
    Measure.STABILITY: "unchanged",
    Measure.COMPONENTS: "components",
}
SHOWN_EPS = (0.01, 0.05, 0.1, 0.3)
"""Budgets of the tables by class, or the nearest that were asked for."""


class CertificationReporter:
    """Progress on stderr, tables on stdout.

    Args:
        replay: how a replay command starts, with everything but the counterexample's path.
        quiet: no tables and no progress, only broken claims and the last line.
        tables: False leaves stdout to another reporter; everything goes to stderr then.
    """

    def __init__(self, replay: Sequence[str], *, quiet: bool = False, tables: bool = True) -> None:
        self._out = plain_console(sys.stdout if tables else sys.stderr)
        self._err = plain_console(sys.stderr)
        self._replay = replay
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._sampling: TaskID | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def progress(self, table: CertificationTable, done: int, total: int) -> None:
        """What is certified at first, then which image is attacked."""
        if self._quiet:
            return
        if done == 0:
            self._first(table)
            if total and self._err.is_interactive:
                self._bar = self._progress("attacking", "images")
                self._task = self._bar.add_task("", total=total)
                self._bar.start()
        elif self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done)
        elif total:
            self._err.print(f"image {done}/{total} attacked")

    def sampled(self, done: int, total: int) -> None:
        """How many noisy images have been looked at."""
        if self._quiet or not self._err.is_interactive:
            return
        if self._sampling is None:
            if self._bar is not None:
                self._bar.stop()
            self._bar = self._progress("sampling", "samples")
            self._sampling = self._bar.add_task("", total=total)
            self._bar.start()
        if self._bar is not None:
            self._bar.update(self._sampling, completed=done)

    def _progress(self, name: str, unit: str) -> Progress:
        return Progress(
            TextColumn(name),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:.0f}/{task.total:.0f} " + unit),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._err,
            transient=True,
        )

    def finish(self, table: CertificationTable) -> None:
        """The tables, what was broken, and one sentence."""
        if not self._quiet:
            for title, shown in _tables(table):
                self._out.print()
                self._out.print(Text(title, "bold"))
                self._out.print(shown)
            self._out.print()
            self._out.print(_times(table))
        for finding in table.findings:
            self._finding(finding)
        for claim in table.metrics:
            if not any(finding.claim == claim for finding in table.findings):
                self._out.print(f"HELD {claim.describe()}")
        if table.stopped:
            self._out.print(f"The run is incomplete: {table.stopped}.")
        self._out.print(_last_line(table))

    def _first(self, table: CertificationTable) -> None:
        subject = table.subject
        lines = {
            "model": str(subject.get("model", "a callable")),
            "claim": str(subject["claim_text"]),
            "data": f"{subject['data']}, {counted(table.images, 'image')}",
            "device": str(subject["device"]),
        }
        for name, value in lines.items():
            self._out.print(Text.assemble((f"{name:6}", "bold"), " ", printable(value)))
        for measure in (Measure.ACCURACY, Measure.STABILITY):
            rows = [row for row in table.rows if row.measure is measure]
            if rows:
                row = min(rows, key=lambda r: abs(r.eps - 0.1))
                self._err.print(
                    f"certified: {measure.title} {_percent(row.clean)} %, at least {_percent(row.certified)} % at eps "
                    f"{row.eps:g}"
                )
                break

    def _finding(self, finding: MetricFinding) -> None:
        broken = finding.verdict is Verdict.VIOLATED
        self._out.print(
            Text.assemble(
                (finding.verdict.name, "bold red" if broken else "yellow"),
                f" METRIC {finding.claim.describe()} ({printable(finding.claim.source)}): {finding.value:.6g} under "
                f"attack by {finding.attack}, distance {finding.distance:.6g}",
            )
        )
        if finding.counterexample is not None:
            command = [*self._replay[:2], str(finding.counterexample), *self._replay[2:]]
            self._out.print("  " + shlex.join(command), soft_wrap=True)


def csv_text(table: CertificationTable) -> str:
    """One line for each measure, class and eps; empty cells where there is no value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ["clean", "certified", "per_pixel", "attacked", "constant", "refined", "refined_per_pixel"]
    writer.writerow(["measure", "class", "name", "eps", *names])
    for row in table.rows:
        numbers = [getattr(row, name) for name in names]
        cells = ["" if value is None or math.isnan(value) else repr(float(value)) for value in numbers]
        title = "" if row.cls is None else _class_name(table, row.cls)
        writer.writerow([row.measure.value, "" if row.cls is None else row.cls, title, repr(row.eps), *cells])
    return text.getvalue()


def smallest_text(table: CertificationTable) -> str:
    """CSV of the smallest eps: a line for each measure, class and loss; empty cells where nothing can be lost so."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = ["reachable", "mean", "q05", "median", "q95"]
    writer.writerow(["measure", "class", "name", "loss", "images", *names, *(f"refined_{name}" for name in names)])
    for entry in table.smallest:
        title = "" if entry.label is None else _class_name(table, entry.label)
        start = [entry.measure.value, "" if entry.label is None else entry.label, title, repr(entry.drop), entry.images]
        writer.writerow([*start, *_distances(entry), *_distances(entry.refined)])
    return text.getvalue()


def _distances(entry: Smallest | None) -> list[str]:
    if entry is None:
        return [""] * 5
    numbers = ["" if math.isinf(value) else repr(value) for value in (entry.mean, *entry.quantiles)]
    return [str(entry.reachable), *numbers]


def _tables(table: CertificationTable) -> list[tuple[str, Table]]:
    title = "Worst case over every perturbation up to eps, in percent"
    shown = [(title, _curves(table, pair)) for pair in PAIRS if any(row.measure in pair for row in table.rows)]
    finer = _refined(table)
    if finer is not None:
        shown.append((f"The same, {table.refinement}", finer))
    for entry in table.smoothing:
        title = f"Randomized smoothing at the same radius {entry.smoothing.radius:.4g}: {entry.smoothing.describe()}"
        shown.append((title, _smoothing(table, entry)))
    beside = ": certified / attacked" if table.attacks else ": certified"
    for measure in (Measure.IOU, Measure.FNR):
        if any(row.measure is measure for row in table.rows):
            shown.append((f"{measure.title} of each class, in percent{beside}", _by_class(table, measure)))
    if any(entry.label is None for entry in table.smallest):
        shown.append(("Smallest eps that could take so much of an image's measure", _smallest(table)))
    return shown


def _curves(table: CertificationTable, pair: Sequence[Measure]) -> Table:
    present = [measure for measure in pair if any(row.measure is measure for row in table.rows)]
    made = _table()
    made.add_column("\neps", justify="right", no_wrap=True)
    attacked = bool(table.attacks)
    columns = ("certified", "per pixel", *(("attacked",) if attacked else ()))
    for measure in present:
        for place, name in enumerate(columns):
            made.add_column(f"{SHORT[measure] if place == 0 else ''}\n{name}", justify="right", no_wrap=True)
    rows = {(row.measure, row.eps): row for row in table.rows}
    first = [rows[measure, table.epsilons[0]] for measure in present]
    blank = [""] * (len(columns) - 1)
    made.add_row("clean", *[cell for row in first for cell in (_percent(row.clean), *blank)])
    for eps in table.epsilons:
        cells = []
        for measure in present:
            row = rows[measure, eps]
            values = (row.certified, row.per_pixel, row.attacked)[: len(columns)]
            cells += [_percent(value) for value in values]
        made.add_row(f"{eps:g}", *cells)
    made.add_row("constant", *[cell for row in first for cell in (_percent(row.constant), *blank)])
    return made


def _refined(table: CertificationTable) -> Table | None:
    """The refined certificate beside the other one: pixels right (or unchanged) at every eps."""
    for measure in (Measure.ACCURACY, Measure.STABILITY):
        rows = [row for row in table.rows if row.measure is measure and row.refined_per_pixel is not None]
        if rows:
            break
    else:
        return None
    made = _table()
    made.add_column("\neps", justify="right", no_wrap=True)
    for name in (f"{SHORT[measure]}\ncertified", "\nrefined", "\nmore", "\nper pixel", "\nrefined", "\nmore"):
        made.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        pairs = ((row.certified, row.refined), (row.per_pixel, row.refined_per_pixel))
        cells = [
            cell
            for old, new in pairs
            for cell in (_percent(old), _percent(new), "-" if new is None else f"{100 * (new - old):+.1f}")
        ]
        made.add_row(f"{row.eps:g}", *cells)
    return made


def _smoothing(table: CertificationTable, entry: SmoothedData) -> Table:
    """Sampling beside the certificates that come from weights: at one radius, on the same images."""
    made = _table()
    made.add_column("certificate", no_wrap=True)
    for name in ("accuracy", "mean IoU", "abstained", "s per image"):
        made.add_column(name, justify="right", no_wrap=True)
    rows = {row.measure: row for row in table.rows if row.eps == entry.smoothing.radius and row.cls is None}
    ours = [rows.get(measure) for measure in (Measure.ACCURACY, Measure.MEAN_IOU)]
    seconds = table.seconds
    plain = (seconds["model"] + seconds["certificate"]) / table.images
    finer = (seconds["model"] + seconds.get("refined", 0.0)) / table.images
    kinds = (
        ("each pixel", "per_pixel", plain), ("each pixel, refined", "refined_per_pixel", finer),
        ("one budget", "certified", plain), ("one budget, refined", "refined", finer),
    )  # fmt: skip
    for name, column, time in kinds:
        values = [None if row is None else getattr(row, column) for row in ours]
        if any(value is not None for value in values):
            made.add_row(name, *[_percent(value) for value in values], "0.0", f"{time:.3g}")
    numbers = [_percent(value) for value in (entry.accuracy, entry.mean_iou, entry.abstained)]
    made.add_row("smoothed network", *numbers, f"{entry.seconds:.3g}")
    return made


def _by_class(table: CertificationTable, measure: Measure) -> Table:
    budgets = list(dict.fromkeys(min(table.epsilons, key=lambda e: abs(e - want)) for want in SHOWN_EPS))
    attacked = bool(table.attacks)
    made = _table()
    made.add_column("class", overflow="fold")
    made.add_column("clean", justify="right", no_wrap=True)
    for eps in budgets:
        made.add_column(f"eps {eps:g}", justify="right", no_wrap=True)
    rows = {(row.cls, row.eps): row for row in table.rows if row.measure is measure}
    for cls in dict.fromkeys(cls for cls, _ in rows):
        cells = [_cell(rows[cls, eps], attacked) for eps in budgets]
        name = _class_name(table, cls if cls is not None else 0)
        made.add_row(Text(printable(name)), _percent(rows[cls, budgets[0]].clean), *cells)
    return made


def _cell(row: Row, attacked: bool) -> str:
    return _percent(row.certified) + (f" / {_percent(row.attacked)}" if attacked else "")


def _smallest(table: CertificationTable) -> Table:
    made = _table()
    made.add_column("measure", no_wrap=True)
    finer = any(entry.refined is not None for entry in table.smallest)
    names = ("mean", "5 %", "median") if finer else ("mean", "5 %", "median", "95 %")  # no more in 80 columns
    columns = [column for name in names for column in ((name, "refined") if finer else (name,))]
    for name in ("loss", *columns, "reached"):
        made.add_column(name, justify="right", no_wrap=True)
    for entry in table.smallest:
        if entry.label is not None:
            continue
        cells = [_distance(value) for value in (entry.mean, *entry.quantiles)][: len(names)]
        if finer:
            beside = [] if entry.refined is None else [entry.refined.mean, *entry.refined.quantiles]
            again = [_distance(value) for value in beside] or ["-"] * len(names)
            cells = [cell for pair in zip(cells, again, strict=False) for cell in pair]
        made.add_row(SHORT[entry.measure], f"{100 * entry.drop:g} %", *cells, f"{entry.reachable}/{entry.images}")
    return made


def _class_name(table: CertificationTable, cls: int) -> str:
    return table.classes[cls] if table.classes is not None and cls < len(table.classes) else str(cls)


def _times(table: CertificationTable) -> str:
    seconds = table.seconds
    return (
        f"Seconds: model {seconds['model']:.1f}, certificates {seconds['certificate']:.1f}, "
        f"refined {seconds.get('refined', 0.0):.1f}, "
        f"attacks {seconds['attacks']:.1f}.\n"
        f"All margins are taken {table.logit_error:.1e} smaller than float32 says."
    )


def _last_line(table: CertificationTable) -> Text:
    certified = sum(not math.isnan(row.certified) for row in table.rows)
    if table.violations:
        broken = counted(len(table.violations), "violation")
        return Text.assemble(("UNSOUND ", "bold red"), f"{broken} of metric claims on {counted(table.images, 'image')}")
    if not table.attacks:
        return Text(f"{certified:,} values certified on {counted(table.images, 'image')}, nothing attacked")
    names = ", ".join(table.attacks)
    return Text(f"0 violations of {certified:,} certified values on {counted(table.images, 'image')} ({names})")


def _table() -> Table:
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))


def _percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{100 * value:.1f}"


def _distance(value: float) -> str:
    return "-" if math.isinf(value) else f"{value:.4g}"
