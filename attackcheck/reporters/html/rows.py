"""Rows of the page's tables: cells that sort by number where they are numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from attackcheck.lipschitz.findings import AuditReport
from attackcheck.probe import Kind
from attackcheck.report import Report, Violation
from attackcheck.reporters.audits import near
from attackcheck.reporters.html.content import Content
from attackcheck.reporters.tables import counted, short

__all__ = [
    "Cell",
    "Table",
    "attack_table",
    "audit_table",
    "budget_table",
    "class_table",
    "finding_table",
    "image_table",
    "region_table",
]

MOST = 2_000
"""Rows of the table of findings."""


@dataclass(frozen=True)
class Cell:
    """What is written, what it sorts by (None: the text), and where it leads."""

    text: str
    sort: float | None = None
    link: str = ""
    code: str = ""  # a command, to be copied
    tone: str = ""  # bad, warn, good
    swatch: str = ""


@dataclass(frozen=True)
class Table:
    """A table with sortable columns; ``filters`` names columns that a choice narrows down."""

    name: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    filters: Sequence[str] = ()
    numeric: Sequence[str] = ()


def number(value: float | None, text: str | None = None, missing: str = "-", tone: str = "") -> Cell:
    """A cell that sorts as a number; what is missing or not finite comes last."""
    if value is None or math.isnan(value):
        return Cell(missing, math.inf)
    if math.isinf(value):
        return Cell("never flipped" if missing == "-" else missing, math.inf)
    return Cell(short(value) if text is None else text, value, tone=tone)


def finding_table(content: Content) -> Table:
    """Everything that the judge said of a proposal, violations first, each with the command that replays it."""
    columns = ["verdict", "kind", "image", "where", "class", "radius", "distance", "ratio", "attack", "replay"]
    rows = [_finding(finding, content) for finding in content.report.findings[:MOST]]
    return Table(
        "findings",
        "What the judge said of every proposal, largest ratio first",
        columns,
        rows,
        filters=("verdict", "kind", "image", "attack"),
        numeric=("radius", "distance", "ratio"),
    )


def _finding(finding: Violation, content: Content) -> list[Cell]:
    broken = finding.verdict.name == "VIOLATED"
    where = "whole map"
    if finding.kind is Kind.SET:
        where = counted(finding.pixels, "pixel")
    elif finding.kind is Kind.METRIC:
        where = finding.statement or "data set"
    elif finding.pixel is not None:
        where = f"{finding.pixel[0]}, {finding.pixel[1]}"
    shown = any(picture.index == finding.image for picture in content.pictures)
    change = "-"
    if finding.predicted >= 0:
        change = f"{content.class_name(finding.predicted)} → {content.class_name(finding.target)}"
    image = (
        Cell("all", -1.0)
        if finding.kind is Kind.METRIC
        else Cell(
            finding.image_name if finding.kind is Kind.GADGET else f"{finding.image}",
            float(finding.image),
            link=f"#image-{finding.image}" if shown else "",
        )
    )
    command = "" if finding.counterexample is None else content.replay_of(finding.counterexample)
    return [
        Cell(finding.verdict.name, 0.0 if broken else 1.0, tone="bad" if broken else "warn"),
        Cell(finding.kind.name),
        image,
        Cell(where, None if finding.pixel is None else finding.pixel[0] * 1e6 + finding.pixel[1]),
        Cell(change),
        number(finding.radius, f"{finding.radius:.6g}"),
        number(finding.distance, f"{finding.distance:.6g}"),
        number(finding.ratio, f"{finding.ratio:.5f}", missing="∞", tone="bad" if broken else ""),
        Cell(finding.attack),
        Cell("", code=command) if command else Cell("-"),
    ]


def image_table(content: Content) -> Table:
    """One row for each image."""
    shown = {picture.index for picture in content.pictures}
    rows = [
        [
            Cell(f"{image.index}", float(image.index), link=f"#image-{image.index}" if image.index in shown else ""),
            Cell(image.name),
            Cell(f"{image.violations}", float(image.violations), tone="bad" if image.violations else ""),
            number(image.largest, f"{image.largest:.4f}"),
            number(float(image.aimed), f"{image.aimed:,}"),
            number(image.tightness),
            number(image.radius),
            number(image.distance),
        ]
        for image in content.images
    ]
    columns = [
        "image",
        "name",
        "violations",
        "largest r / d",
        "attacked pixels",
        "median r / d",
        "median r",
        "median d",
    ]
    return Table("images", "Images; r / d above 1 contradicts the claim", columns, rows, numeric=columns[2:])


def attack_table(report: Report) -> Table:
    """One row for each attack."""
    rows = []
    for attack in report.attacks:
        quantiles = [attack.tightness[q] for q in (0.05, 0.5, 0.95)] if attack.tightness else [None] * 3
        on_map = attack.objective.startswith("map")
        rows.append(
            [
                Cell(attack.name),
                Cell(attack.objective),
                number(float(attack.attacked), f"{attack.attacked:,}" if attack.attacked else "-"),
                number(float(attack.flipped), f"{attack.flipped:,}" if attack.attacked else "-"),
                number(attack.smallest if attack.flipped else None),
                number(attack.median if attack.attacked else None),
                *(number(q, None if q is None else f"{q:.3f}") for q in quantiles),
                number(attack.lipschitz_slack, f"{attack.lipschitz_slack:.3f}"),
                number(attack.attack_slack, f"{attack.attack_slack:.3f}"),
                number(attack.expansion if on_map else None, f"{attack.expansion:.4f}"),
                number(float(attack.forward), f"{attack.forward:,}"),
                number(float(attack.backward), f"{attack.backward:,}"),
                number(attack.seconds, f"{attack.seconds:.1f}"),
            ]
        )
    columns = [
        "attack", "objective", "attacked", "flipped", "min d", "median d", "r / d 5 %", "r / d 50 %", "r / d 95 %",
        "Lipschitz slack", "attack slack", "share of L", "forward", "backward", "seconds",
    ]  # fmt: skip
    return Table("attacks", "Attacks; distances on the [0, 1] scale", columns, rows, numeric=columns[2:])


def class_table(content: Content, colours: Sequence[str]) -> Table:
    """One row for each predicted class."""
    rows = [
        [
            Cell(row.name, swatch=colours[row.index] if row.index < len(colours) else ""),
            number(float(row.pixels), f"{row.pixels:,}"),
            _percent(row.accuracy),
            number(row.median_radius),
            number(float(row.attacked), f"{row.attacked:,}"),
            number(row.median_flip_distance if row.attacked else None),
        ]
        for row in content.report.classes
    ]
    columns = ["class", "pixels", "accuracy", "median radius", "attacked", "median distance"]
    return Table("classes", "Classes, as predicted", columns, rows, numeric=columns[1:])


def region_table(report: Report) -> Table:
    """One row for each region and attack."""
    rows = []
    for region in report.regions:
        joint, known = region.joint_distance, math.isfinite(region.distance)
        ratio = joint / region.distance if joint is not None and known else None
        share = "" if region.fraction == 1 else f" x {region.fraction:g}"
        rows.append(
            [
                Cell(f"{region.image}", float(region.image), link=f"#image-{region.image}"),
                Cell(region.name + ("" if region.target is None else f" → {region.target}")),
                number(float(region.pixels), f"{region.pixels:,}{share}"),
                number(joint, missing="none claimed"),
                number(region.distance),
                number(ratio, None if ratio is None else f"{ratio:.4f}"),
                Cell(region.attack),
            ]
        )
    columns = ["image", "region", "pixels", "joint distance", "best distance", "ratio", "attack"]
    return Table("regions", "Regions: one perturbation that flips them", columns, rows, numeric=columns[2:6])


def budget_table(report: Report) -> Table:
    """One row for each budget and attack."""
    rows = [
        [
            number(budget.eps, f"{budget.eps:g}"),
            Cell(budget.attack),
            number(float(budget.images), f"{budget.images}"),
            _percent(budget.clean),
            _percent(budget.attacked),
            _percent(budget.stability),
        ]
        for budget in report.budgets
    ]
    columns = ["eps", "attack", "images", "clean accuracy", "attacked accuracy", "unchanged pixels"]
    return Table("budgets", "Fixed budgets: whole images under attack", columns, rows, numeric=columns[2:])


def audit_table(audit: AuditReport) -> Table:
    """One row for each layer."""
    used = any(layer.used is not None for layer in audit.layers)
    columns = ["layer", "operation", "input", "at most", "at least", *(["counted as"] if used else []), "bound from"]
    rows = []
    for layer in audit.layers:
        tone = "bad" if layer.refuted else ""
        lower = number(layer.lower if layer.lower > 0 else None, near(layer.lower) if layer.lower > 0 else None)
        rows.append(
            [
                Cell(layer.name, tone=tone),
                Cell(f"{layer.kind} {layer.detail}".rstrip()),
                Cell("x".join(map(str, layer.shape))),
                number(layer.upper, near(layer.upper) if math.isfinite(layer.upper) else None, "no bound", tone),
                lower,
                *([number(layer.used, None if layer.used is None else f"{layer.used:.6g}")] if used else []),
                Cell(layer.method),
            ]
        )
    caption = f"{counted(len(audit.layers), 'layer')}: Lipschitz constants at the size at which they work"
    return Table("layers", caption, columns, rows, numeric=("at most", "at least", "counted as"))


def _percent(value: float | None) -> Cell:
    return number(value, None if value is None else f"{100 * value:.1f} %")
