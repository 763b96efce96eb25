"""The report as one HTML file that needs nothing else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata, resources
from typing import Any

import bokeh
import jinja2
import numpy as np
from bokeh.resources import Resources
from markupsafe import Markup

from attackcheck.lipschitz.findings import AuditReport, AuditVerdict
from attackcheck.probe import Kind
from attackcheck.recheck import Verdict
from attackcheck.report import Report
from attackcheck.reporters.audits import near
from attackcheck.reporters.colours import hexed
from attackcheck.reporters.html import rows
from attackcheck.reporters.html.charts import SHOWN, charts
from attackcheck.reporters.html.content import Content, Picture
from attackcheck.reporters.html.figures import Figure, WorstCard, map_figures, worst_card
from attackcheck.reporters.html.maps import live_maps, packed
from attackcheck.reporters.html.scales import MAPS, Scales
from attackcheck.reporters.html.words import WORDS, verdict_of
from attackcheck.reporters.sentences import limits, rounded_up
from attackcheck.reporters.tables import counted, short

__all__ = ["render"]


@dataclass(frozen=True)
class _Tile:
    value: str
    name: str
    note: str
    tone: str = ""


@dataclass(frozen=True)
class _Image:
    index: int
    name: str
    said: str
    figures: list[Figure]
    worst: list[WorstCard]
    violated: bool
    data: str
    row: int
    column: int


def render(content: Content) -> str:
    """The page.

    Args:
        content: what is shown.
    """
    report = content.report
    scales = Scales.of(content)
    drawn = charts(content)
    findings = rows.finding_table(content)
    tables = [
        rows.attack_table(report),
        rows.class_table(content, hexed(scales.classes)),
        rows.region_table(report),
        rows.budget_table(report),
    ]
    audit = None if report.audit is None else _audit(report.audit, content)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    folder = resources.files(__package__)
    examples = [row[-1].code for row in findings.rows if row[-1].code][:3]
    return environment.from_string(folder.joinpath("page.html").read_text()).render(
        version=metadata.version("attackcheck"),
        bokeh=bokeh.__version__,
        report=report,
        verdict=verdict_of(report),
        model=_model(content),
        remarks=limits(report),
        warnings=report.warnings,
        tiles=list(_tiles(report)),
        facts=list(_facts(content)),
        findings=findings,
        hidden_findings=max(0, len(report.findings) - len(findings.rows)),
        meanings=_meanings(report),
        charts={root.name for root in drawn.roots},
        scatter_said=_scatter_said(content),
        accuracy_said=_accuracy_said(content),
        tables=tables,
        images=[_image(picture, content, scales) for picture in content.pictures],
        image_table=rows.image_table(content),
        reduced=any(picture.edge > 1 for picture in content.pictures),
        scales=[
            {"title": title, "gradient": Markup(scales.gradient(name)), "ticks": scales.ticks(name)}
            for name, title in (("radius", "radius r and flip distance d"), ("tightness", MAPS["tightness"]))
        ],
        legend=list(zip(map(content.class_name, range(content.class_count)), hexed(scales.classes), strict=True)),
        audit=audit,
        command=content.command,
        examples=examples,
        words=WORDS,
        sections=list(_sections(content, audit is not None)),
        css=Markup(folder.joinpath("page.css").read_text()),
        js=Markup(folder.joinpath("page.js").read_text()),
        bokehjs=Markup(_bokehjs()),
        charts_data=packed(drawn) if drawn.roots else "",
    )


def _bokehjs() -> str:
    """The library itself; without widgets, tables and the rest."""
    scripts = Resources(mode="inline", components=["bokeh"], log_level="warn").js_raw
    return "\n".join(scripts).replace("</script", "<\\/script")


def _sections(content: Content, audited: bool) -> Iterator[tuple[str, str]]:
    yield "numbers", "Numbers"
    yield "findings", "Violations"
    if content.report.attacks:
        yield "tightness", "Tightness"
    if content.pictures:
        yield "images", "Images"
    if audited:
        yield "audit", "Audit"
    yield "replay", "Replay"
    yield "words", "Words"


def _tiles(report: Report) -> Iterator[_Tile]:
    broken = len(report.violations)
    yield _Tile(f"{broken:,}", "violations", "confirmed in float64", "bad" if broken else "")
    share = 100 * report.attacked_count / report.examined if report.examined else 0.0
    yield _Tile(
        f"{report.attacked_count:,}",
        "attacked pixels",
        f"{share:.1f} % of {report.examined:,} in {counted(report.images, 'image')}",
    )
    pixel = report.limit.pixel
    if math.isfinite(pixel):
        yield _Tile(
            f"{1 / pixel:.4f}",
            "largest r / d",
            "of a confirmed flip; above 1 is a violation",
            "bad" if pixel < 1 else "",
        )
    medians = [a.tightness[0.5] for a in report.attacks if 0.5 in a.tightness and a.attacked]
    if medians:
        yield _Tile(f"{max(medians):.3f}", "median r / d", "of the best attack; 1 is a perfectly tight certificate")
    least = report.limit.least
    if report.sound and math.isfinite(least):
        yield _Tile(
            f"× {rounded_up(least)}", "detection limit", "radii inflated by more than this would have been found"
        )
    if report.audit is not None:
        tone = "good" if report.audit.verdict is AuditVerdict.PROVED else "bad" if report.audit.refuted else "warn"
        bound = "no bound" if report.audit.bound is None else f"L ≤ {near(report.audit.bound)}"
        yield _Tile(report.audit.verdict.name.replace("_", " "), "audit of the weights", bound, tone)
    yield _Tile(_duration(report.seconds), "time", f"{sum(a.forward for a in report.attacks):,} rows forward")


def _facts(content: Content) -> Iterator[tuple[str, str]]:
    report, subject = content.report, content.subject
    yield "model", _model(content)
    for name, key in (("SHA-256", "sha256"), ("factory", "factory"), ("claim", "claim_text"), ("data", "data")):
        if subject.get(key):
            yield name, str(subject[key])
    yield "pixels", report.selection
    yield "plan", f"{report.plan}, seed {report.seed}"
    yield "attacks", ", ".join(attack.name for attack in report.attacks) or "none"
    yield (
        "device",
        f"{subject.get('device', '?')}, {subject.get('dtype') or 'unknown type'}, torch {subject.get('torch', '?')}",
    )
    if report.counts:
        yield "verdicts", ", ".join(f"{count:,} {name}" for name, count in report.counts.items())
    if report.unchecked:
        yield "not attacked", ", ".join(f"{count:,} {reason}" for reason, count in report.unchecked.items())


def _model(content: Content) -> str:
    return str(content.subject.get("model", "a callable"))


def _meanings(report: Report) -> list[tuple[str, str]]:
    kinds = {finding.kind for finding in report.findings}
    verdicts = {finding.verdict for finding in report.findings} - {Verdict.VIOLATED}
    return [(k.name, k.value) for k in Kind if k in kinds] + [(v.name, v.value) for v in Verdict if v in verdicts]


def _scatter_said(content: Content) -> str:
    pixels = content.pixels
    flipped = np.isfinite(pixels.distance)
    below = int((pixels.tightness > 1).sum())
    text = f"{counted(int(flipped.sum()), 'attacked pixel')} flipped, one dot each by who came closest"
    if int(flipped.sum()) > SHOWN:
        text += f" ({SHOWN:,} shown: the tightest, and a sample of the rest)"
    text += f"; {below:,} below the line d = r."
    if (~flipped).any():
        text += f" {counted(int((~flipped).sum()), 'attacked pixel')} never flipped and not shown."
    return text


def _accuracy_said(content: Content) -> str:
    curves = content.curves
    if curves is None or not curves.valid:
        return ""
    what = "labelled pixels that are right" if curves.labelled else "pixels that keep their class"
    text = f"Share of {what}: on the clean images; certified, with a radius of at least eps; "
    if curves.aimed:
        text += (
            f"under attack, of the {curves.aimed:,} attacked pixels, each with its own perturbation of at most eps, "
            "beside what is certified of these. "
        )
    if content.report.budgets:
        text += "Diamonds: whole images under one perturbation."
    return text.rstrip(" ;") + ("" if text.rstrip().endswith(".") else ".")


def _audit(audit: AuditReport, content: Content) -> dict[str, Any]:
    above = "no bound" if audit.bound is None else f"proved at most {near(audit.bound)}"
    if audit.missing:
        above += f" ({audit.missing})"
    below = "" if audit.lower is None else f", seen at least {near(audit.lower)}"
    size = " x ".join(map(str, audit.input_shape))
    tone = "good" if audit.verdict is AuditVerdict.PROVED else "bad" if audit.refuted else "warn"
    return {
        "verdict": audit.verdict.name.replace("_", " "),
        "sentence": audit.sentence,
        "tone": tone,
        "numbers": f"Lipschitz constant for images of {size}: {above}{below}; {audit.seconds:.1f} s. "
        f"Claimed: {audit.claim_text}.",
        "table": rows.audit_table(audit),
        "replay": "" if audit.counterexample is None else content.replay_of(audit.counterexample),
    }


def _image(picture: Picture, content: Content, scales: Scales) -> _Image:
    tightness = picture.tightness
    worst = int(np.argmax(tightness))
    row, column = int(picture.row.flat[worst]), int(picture.column.flat[worst])
    height, width = picture.size
    said = f"{height} x {width} pixels, {picture.aimed:,} attacked, {picture.flipped:,} seen flipped"
    if tightness.flat[worst] > 0:
        said += (
            f"; largest r / d {tightness.flat[worst]:.4f} at {row}, {column} "
            f"(r {short(float(picture.radius.flat[worst]))}, d {short(float(picture.distance.flat[worst]))})"
        )
    if picture.edge > 1:
        said += f". Maps show one pixel for each block of {picture.edge} x {picture.edge}"
    return _Image(
        index=picture.index,
        name=picture.name,
        said=said + ".",
        figures=map_figures(picture, content, scales),
        worst=[worst_card(worst, content, scales) for worst in picture.worst],
        violated=any(worst.violated for worst in picture.worst),
        data=live_maps(picture, content, scales),
        row=row,
        column=column,
    )


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return str(timedelta(seconds=round(seconds)))
