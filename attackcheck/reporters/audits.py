"""An audit for people: a table of layers, the verdict with both numbers."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from attackcheck.errors import printable
from attackcheck.lipschitz.findings import AuditReport, AuditVerdict, Layer

__all__ = ["audit_lines", "replay_command", "show_audit"]

SHOWN = 20
STYLES = {
    AuditVerdict.PROVED: "bold green",
    AuditVerdict.REFUTED: "bold red",
    AuditVerdict.PREMISE_REFUTED: "bold red",
    AuditVerdict.UNDECIDED: "bold yellow",
}


def show_audit(
    console: Console, report: AuditReport, model: str, *, replay: Sequence[str] = (), every: bool = False
) -> None:
    """Print a report; without `every`, the twenty layers with the largest bounds of a long list.

    Args:
        replay: how a replay command starts, with everything but the counterexample's path.
    """
    size = "x".join(map(str, report.input_shape))
    for name, text in (("model", model), ("claim", report.claim_text), ("input", size)):
        console.print(Text.assemble((f"{name:6}", "bold"), " ", printable(text)))
    if report.layers:
        console.print()
        console.print(_table(report, every, console.width))
        if len(report.layers) > SHOWN and not every:
            console.print(f"{len(report.layers) - SHOWN} more with smaller bounds: --all shows them")
    console.print()
    for line in audit_lines(report):
        console.print(line)
    if report.counterexample is not None:
        console.print("Replay it with:")
        console.print("  " + replay_command(replay, report.counterexample), soft_wrap=True)


def audit_lines(report: AuditReport) -> list[Text]:
    """Two lines: the verdict and what it hangs on; the numbers from above and from below."""
    verdict = Text.assemble((report.verdict.name, STYLES[report.verdict]), f" {printable(report.sentence)}")
    above = "none" if report.bound is None else near(report.bound)
    if report.pixel_bound is not None and report.bound is not None and report.pixel_bound < report.bound * (1 - 1e-6):
        above += f" (per pixel {near(report.pixel_bound)})"
    below = "" if report.lower is None else f", seen at least {near(report.lower)}"
    parts = [f"Lipschitz constant: proved at most {above}{below}"]
    worst = report.worst
    if worst is not None and worst.upper > 1.0001 and report.verdict is not AuditVerdict.PREMISE_REFUTED:
        parts.append(f"largest layer {printable(worst.name)}: {near(worst.upper)}")
    parts.append(f"{report.seconds:.1f} s")
    return [verdict, Text("; ".join(parts))]


def replay_command(start: Sequence[str], path: Path) -> str:
    """The command that judges a counterexample again; `start` has everything but its path."""
    return shlex.join([*start[:2], str(path), *start[2:]])


def near(value: float) -> str:
    """A constant; close to one, by how much it differs."""
    if value != 1.0 and abs(value - 1.0) < 1e-4:
        return f"1 {'+' if value > 1.0 else '-'} {abs(value - 1.0):.1e}"
    return f"{value:.6g}"


def _table(report: AuditReport, every: bool, width: int) -> Table:
    table = Table(
        title=Text("Layers: Lipschitz constants at the size at which they work"),
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    wide = width >= 110
    table.add_column("layer", overflow="ellipsis", no_wrap=True, max_width=None if wide else 20)
    table.add_column("operation", overflow="fold" if wide else "ellipsis", no_wrap=not wide)
    table.add_column("input", justify="right", no_wrap=True)
    for name in ("at most", "at least") + (("counted as",) if _counted(report) else ()):
        table.add_column(name, justify="right", no_wrap=True)
    if wide:
        table.add_column("bound from", no_wrap=True)
    shown = list(report.layers)
    if len(shown) > SHOWN and not every:
        chosen = sorted(shown, key=lambda layer: (not layer.refuted, -layer.upper))[:SHOWN]
        shown = [layer for layer in shown if any(layer is other for other in chosen)]
    for layer in shown:
        table.add_row(*_row(layer, _counted(report), wide))
    return table


def _counted(report: AuditReport) -> bool:
    return any(layer.used is not None for layer in report.layers)


def _row(layer: Layer, counted: bool, wide: bool) -> list[Text]:
    name = printable(layer.name)
    if not wide and len(name) > 20:
        name = "…" + name[-19:]
    kind = layer.kind if wide else _SHORT.get(layer.kind, layer.kind)
    cells = [
        name,
        f"{kind} {layer.detail}".rstrip(),
        "x".join(map(str, layer.shape)),
        near(layer.upper),
        near(layer.lower) if layer.lower > 0 else "-",
    ]
    if counted:
        cells.append("-" if layer.used is None else f"{layer.used:.6g}")
    if wide:
        cells.append(layer.method)
    return [Text(cell, style="bold red" if layer.refuted else "") for cell in cells]


_SHORT = {
    "convolution": "conv",
    "transposed convolution": "conv^T",
    "average pooling": "avg pool",
    "max pooling": "max pool",
    "linear": "linear",
}
