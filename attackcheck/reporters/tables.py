"""Tables of a report; distances are on the [0, 1] scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from attackcheck.errors import printable
from attackcheck.probe import Kind
from attackcheck.recheck import Verdict
from attackcheck.report import AttackSummary, Report, Violation

__all__ = [
    "attack_tables",
    "budget_table",
    "class_table",
    "counted",
    "plain_table",
    "region_table",
    "short",
    "violation_table",
]

_REACH = ("attack", "flipped", "min d", "median d", "tightness 5 50 95 %")
_COST = ("slack: L x attack", "forward", "backward", "seconds")


def attack_tables(report: Report, width: int) -> list[Table]:
    """One table where it fits, else distances and costs apart."""
    title = "Attacks: distances on the [0, 1] scale, tightness = radius / distance"
    rows = [_attack_row(attack) for attack in report.attacks]
    whole = _attack_table(title, _REACH + _COST, rows)
    if Console(width=10_000, height=1).measure(whole).maximum <= width:
        return [whole]
    return [
        _attack_table(title, _REACH, [row[: len(_REACH)] for row in rows]),
        _attack_table("Slack and cost", _REACH[:1] + _COST, [row[:1] + row[len(_REACH) :] for row in rows]),
    ]


def region_table(report: Report) -> Table:
    table = plain_table("Regions: one perturbation that flips them")
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
            "-" if joint is None else short(joint),
            _distance(region.distance),
            "-" if joint is None or math.isinf(region.distance) else f"{joint / region.distance:.3f}",
            region.attack if math.isfinite(region.distance) else "not flipped",
        )
    return table


def budget_table(report: Report) -> Table:
    table = plain_table("Fixed budgets: whole images under attack")
    table.add_column("eps", justify="right")
    table.add_column("attack", no_wrap=True)
    for name in ("clean accuracy", "attacked accuracy", "unchanged pixels"):
        table.add_column(name, justify="right")
    for result in report.budgets:
        clean, attacked = _percent(result.clean), _percent(result.attacked)
        table.add_row(f"{result.eps:g}", result.attack, clean, attacked, _percent(result.stability))
    return table


def class_table(report: Report) -> Table:
    table = plain_table("Classes, as predicted")
    table.add_column("class", overflow="fold")
    for name in ("pixels", "accuracy", "median radius", "attacked", "median distance"):
        table.add_column(name, justify="right")
    for row in report.classes:
        table.add_row(
            Text(printable(row.name)),
            f"{row.pixels:,}",
            _percent(row.accuracy),
            short(row.median_radius),
            f"{row.attacked:,}",
            _distance(row.median_flip_distance) if row.attacked else "-",
        )
    return table


def violation_table(title: str, findings: Sequence[Violation], width: int) -> Table:
    table = plain_table(title, gap=1)
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
        where = counted(finding.pixels, "pixel") if finding.kind is Kind.SET else "map"
        if finding.kind is Kind.METRIC:
            where = counted(finding.pixels, "image")
        if finding.kind is Kind.RATE:
            where = counted(finding.pixels, "pixel")
        if finding.pixel is not None:
            where = "{}, {}".format(*finding.pixel)
        if finding.kind is Kind.GADGET:
            where = f"{finding.image_name.partition(':')[2]} {where}"
        if finding.kind is Kind.TWO_BALL and finding.pixels > 1:
            where += f" (+{finding.pixels - 1})"
        row: list[str | Text] = [
            finding.kind.name,
            "all" if finding.image < 0 else str(finding.image),
            where,
            "-" if finding.predicted < 0 else f"{finding.predicted} -> {finding.target}",
            short(finding.radius),
            short(finding.distance),
            f"{finding.ratio:.4f}",
        ]
        if wide:
            row.append(finding.attack)
        if not alike:
            style = "bold red" if finding.verdict is Verdict.VIOLATED else "yellow"
            row.append(Text(finding.verdict.name, style=style))
        table.add_row(*row)
    return table


def _attack_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = plain_table(title)
    table.add_column(columns[0], overflow="fold")  # where a terminal is too narrow, this gives way first
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


def plain_table(title: str, gap: int = 2) -> Table:
    return Table(
        title=Text(title), title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, gap, 0, 0)
    )


def short(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"


def _distance(value: float) -> str:
    return "not flipped" if math.isinf(value) else f"{value:.4g}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _thousands(count: int) -> str:
    return f"{count}" if count < 10_000 else f"{count / 1000:.0f}k" if count < 10_000_000 else f"{count / 1e6:.0f}M"


def counted(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")
