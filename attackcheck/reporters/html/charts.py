"""The plots of the whole run: tightness of every attacked pixel, by attack and by class; accuracy against eps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.models import ColumnDataSource, HoverTool, InlineStyleSheet, Range1d
from bokeh.plotting import figure

from attackcheck.report import QUANTILES
from attackcheck.reporters.html.content import EPSILONS, Content, Pixels

__all__ = ["SHOWN", "accuracy_chart", "charts", "scatter_sample"]

Array = np.ndarray[Any, Any]
SHOWN = 4_000
"""Most points in the scatter plot."""
COLOURS = ("#3b82c4", "#e08a1e", "#2ca58d", "#b565a7", "#7a8a2e", "#c0504d", "#5b5ea6", "#8c6d46")
BROKEN = "#e8003f"


def charts(content: Content) -> Document:
    """All plots that there is something to show in; the roots bear their names."""
    document = Document()
    if len(content.pixels) and np.isfinite(content.pixels.distance).any():
        document.add_root(_scatter(content))
    if content.curves is not None and content.curves.valid:
        document.add_root(accuracy_chart(content))
    rows = [(a.name, [a.tightness[q] for q in QUANTILES], a.attacked) for a in content.report.attacks if a.tightness]
    if rows:
        document.add_root(_boxes("by-attack", rows))
    rows = _by_class(content)
    if rows:
        document.add_root(_boxes("by-class", rows))
    for plot in document.roots:
        plot.toolbar.logo = None
        plot.toolbar.autohide = True
    return document


def scatter_sample(pixels: Pixels, most: int = SHOWN) -> Pixels:
    """Attacked pixels that were flipped; of very many, the tightest half of what is shown and a sample of the rest."""
    flipped = np.nonzero(np.isfinite(pixels.distance))[0]
    if len(flipped) > most:
        order = flipped[np.argsort(-pixels.tightness[flipped], kind="stable")]
        rest = np.random.default_rng(0).permutation(order[most // 2 :])[: most - most // 2]
        flipped = np.sort(np.concatenate([order[: most // 2], rest]))
    return pixels[flipped]


def _scatter(content: Content) -> Any:
    pixels = scatter_sample(content.pixels)
    names = {picture.index: picture.name for picture in content.pictures}
    lo = float(min(pixels.radius[pixels.radius > 0].min(initial=1.0), pixels.distance.min())) / 1.4
    finite = pixels.radius[np.isfinite(pixels.radius)]
    hi = float(max(finite.max(initial=0.0), pixels.distance.max())) * 1.4
    lo = max(lo, hi * 1e-6)
    plot = figure(
        name="scatter",
        x_axis_type="log",
        y_axis_type="log",
        x_range=Range1d(lo, hi),
        y_range=Range1d(lo, hi),
        x_axis_label="certified radius r",
        y_axis_label="flip distance d",
        height=430,
        **_LOOK,
    )
    ends = [lo, hi]
    plot.varea(ends, [lo, lo], ends, fill_color=BROKEN, fill_alpha=0.09, legend_label="d < r: a violation")
    plot.line(ends, ends, line_color="#808080", line_width=1.5, line_dash="dashed", legend_label="d = r")
    for number, name in enumerate(dict.fromkeys(pixels.by.tolist())):
        chosen = pixels[pixels.by == name]
        source = ColumnDataSource(
            {
                "r": chosen.radius,
                "d": chosen.distance,
                "t": chosen.tightness,
                "where": [
                    f"{names.get(int(i), i)}: {r}, {c}"
                    for i, r, c in zip(chosen.image, chosen.row, chosen.column, strict=True)
                ],
                "change": [
                    f"{content.class_name(int(a))} → {content.class_name(int(b))}"
                    for a, b in zip(chosen.predicted, chosen.after, strict=True)
                ],
                "by": chosen.by.tolist(),
            }
        )
        colour = COLOURS[number % len(COLOURS)]
        dots = plot.scatter(
            "r", "d", source=source, size=6, fill_color=colour, fill_alpha=0.55, line_color=None, legend_label=name
        )
        dots.hover_glyph = None
        said = [("pixel", "@where"), ("radius r", "@r{0.0000}"), ("flip distance d", "@d{0.0000}")]
        said += [("tightness r / d", "@t{0.000}"), ("class", "@change"), ("flipped by", "@by")]
        plot.add_tools(HoverTool(renderers=[dots], tooltips=said))
    _legend(plot, "bottom_right")
    return plot


def _by_class(content: Content) -> list[tuple[str, list[float], int]]:
    rows = []
    tightness = content.pixels.tightness
    for index in np.unique(content.pixels.predicted).astype(int).tolist():
        chosen = tightness[content.pixels.predicted == index]
        values = [float(np.quantile(chosen, q, method="inverted_cdf")) for q in QUANTILES]
        rows.append((content.class_name(index), values, len(chosen)))
    return rows


def _boxes(name: str, rows: Sequence[tuple[str, Sequence[float], int]]) -> Any:
    """Boxes from the first to the third quartile, whiskers from 5 to 95 percent, one row for each name."""
    labels = list(dict.fromkeys(label for label, _, _ in rows))[::-1]
    table = np.minimum(np.array([values for _, values, _ in rows]), 1e6)
    source = ColumnDataSource(
        {"name": [label for label, _, _ in rows], "count": [count for _, _, count in rows]}
        | {f"q{number}": table[:, number] for number in range(len(QUANTILES))}
    )
    plot = figure(
        name=name,
        y_range=labels,
        x_range=Range1d(0.0, max(1.15, float(table.max()) * 1.08)),
        x_axis_label="tightness r / d",
        height=90 + 30 * len(labels),
        **_LOOK,
    )
    plot.segment("q0", "name", "q4", "name", source=source, line_color="#808080", line_width=1.5)
    boxes = plot.hbar(
        y="name", left="q1", right="q3", height=0.55, source=source, fill_color=COLOURS[0], line_color=None
    )
    plot.scatter(
        "q2", "name", source=source, marker="dash", angle=np.pi / 2, size=17, line_color="#ffffff", line_width=3
    )
    plot.vspan(x=1.0, line_color=BROKEN, line_width=1.5, line_dash="dashed")
    said = [("", "@name"), ("attacked pixels", "@count"), ("5 %", "@q0{0.000}"), ("25 %", "@q1{0.000}")]
    said += [("median", "@q2{0.000}"), ("75 %", "@q3{0.000}"), ("95 %", "@q4{0.000}")]
    plot.add_tools(HoverTool(renderers=[boxes], tooltips=said))
    plot.ygrid.visible = False
    return plot


def accuracy_chart(content: Content) -> Any:
    """Clean, certified and attacked share of right pixels against eps."""
    curves = content.curves
    assert curves is not None
    plot = figure(
        name="accuracy",
        x_axis_type="log",
        y_range=Range1d(0, 102),
        x_range=Range1d(*_interesting(content)),
        x_axis_label="eps (L2, [0, 1] scale)",
        y_axis_label="accuracy, %" if curves.labelled else "unchanged pixels, %",
        height=380,
        **_LOOK,
    )
    clean, certified = 100 * curves.right / curves.valid, 100 * curves.certified / curves.valid
    source = ColumnDataSource({"eps": EPSILONS, "certified": certified})
    ends = EPSILONS[[0, -1]]
    plot.line(ends, [clean, clean], line_color="#808080", line_dash="dotted", line_width=2, legend_label="clean")
    said = [("eps", "@eps{0.0000}"), ("certified", "@certified{0.0} %")]
    if curves.aimed:
        # Beside all pixels: of the attacked ones alone, so that one curve is above the other unless a claim is broken.
        sample, unbroken = 100 * curves.certified_aimed / curves.aimed, 100 * curves.unbroken / curves.aimed
        source.add(sample, "sample")
        source.add(unbroken, "unbroken")
        plot.varea(EPSILONS, sample, unbroken, fill_color="#808080", fill_alpha=0.12)
        line = {"line_color": COLOURS[1], "line_width": 2, "legend_label": "under attack, attacked pixels"}
        plot.line("eps", "unbroken", source=source, **line)
        line = {"line_color": COLOURS[0], "line_dash": "dashed", "legend_label": "certified, attacked pixels"}
        plot.line("eps", "sample", source=source, **line)
        said += [("certified, of the attacked pixels", "@sample{0.0} %"), ("under attack", "@unbroken{0.0} %")]
    line = {"line_color": COLOURS[0], "line_width": 2, "legend_label": "certified, all pixels"}
    lower = plot.line("eps", "certified", source=source, **line)
    plot.add_tools(HoverTool(renderers=[lower], tooltips=said, mode="vline"))
    budgets = [b for b in content.report.budgets if b.attacked is not None or not curves.labelled]
    if budgets:
        shown = ColumnDataSource(
            {
                "eps": [b.eps for b in budgets],
                "value": [100 * (b.attacked if b.attacked is not None else b.stability) for b in budgets],
                "attack": [b.attack for b in budgets],
            }
        )
        dots = plot.scatter(
            "eps", "value", source=shown, marker="diamond", size=13, fill_color=BROKEN, line_color="#ffffff",
            legend_label="one perturbation for the whole image",
        )  # fmt: skip
        said = [("eps", "@eps"), ("under attack", "@value{0.0} %"), ("attack", "@attack")]
        plot.add_tools(HoverTool(renderers=[dots], tooltips=said))
    _legend(plot, "bottom_left")
    return plot


def _interesting(content: Content) -> tuple[float, float]:
    """From where the first pixels lose their certificate to well beyond where the last ones do."""
    curves = content.curves
    assert curves is not None
    falling = np.nonzero((curves.certified < 0.995 * curves.right) & (curves.certified > 0.002 * curves.right))[0]
    low, high = (int(falling[0]), int(falling[-1])) if len(falling) else (0, len(EPSILONS) - 1)
    budgets = [b.eps for b in content.report.budgets]
    ends = [EPSILONS[low] / 1.5, EPSILONS[high] * 3.0, *(b * 1.2 for b in budgets)]
    return float(max(min(ends), EPSILONS[0])), float(min(max(ends), EPSILONS[-1]))


_LOOK: dict[str, Any] = {
    "sizing_mode": "stretch_width",
    "tools": "pan,box_zoom,wheel_zoom,reset,save",
    "active_drag": None,
    "active_scroll": None,
    "toolbar_location": "above",
    "background_fill_color": None,
    "border_fill_color": None,
    "outline_line_color": None,
    "min_border_left": 60,
}


def _legend(plot: Any, place: str) -> None:
    plot.legend.location = place
    plot.legend.click_policy = "hide"
    plot.legend.background_fill_alpha = 0.0
    plot.legend.border_line_color = None
    plot.legend.label_text_font_size = "12px"
    plot.legend.spacing = 0
    plot.legend[0].stylesheets = [InlineStyleSheet(css=".bk-item .bk-label { color: var(--ink) !important; }")]
