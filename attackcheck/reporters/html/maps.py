"""The maps of one image as linked plots: hover a pixel, zoom into all of them at once."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from bokeh.document import Document
from bokeh.embed.util import standalone_docs_json_and_render_items
from bokeh.models import (
    BoxZoomTool,
    ColumnDataSource,
    CrosshairTool,
    CustomJSHover,
    GridPlot,
    HoverTool,
    LinearColorMapper,
    LogColorMapper,
    PanTool,
    Range1d,
    ResetTool,
    Span,
    Toolbar,
    ToolProxy,
    WheelZoomTool,
)
from bokeh.plotting import figure
from bokeh.settings import settings

from attackcheck.reporters.colours import hexed
from attackcheck.reporters.html.content import Content, Picture
from attackcheck.reporters.html.pictures import rgb
from attackcheck.reporters.html.scales import Scales

__all__ = ["live_maps", "packed"]

Array = np.ndarray[Any, Any]
TOOLS = (PanTool, BoxZoomTool, WheelZoomTool, ResetTool)


def live_maps(picture: Picture, content: Content, scales: Scales) -> str:
    """The plots of one image, compressed JSON for ``page.js``: BokehJS documents, the root of each map, names."""
    height, width = picture.size
    source = ColumnDataSource(_columns(picture, scales))
    x_range, y_range = Range1d(0, width, bounds=(0, width)), Range1d(height, 0, bounds=(0, height))
    across = Span(dimension="width", line_color="#808080", line_width=1)
    down = Span(dimension="height", line_color="#808080", line_width=1)
    cross = CrosshairTool(overlay=[across, down])
    hover = _hover(picture, content, source)
    plots = []
    for name in scales.shown(picture):
        plot = figure(
            x_range=x_range,
            y_range=y_range,
            aspect_ratio=width / height,
            sizing_mode="scale_width",
            min_border=0,
            tools="pan,box_zoom,wheel_zoom,reset",
            active_drag=None,
            active_scroll=None,
            toolbar_location=None,
            background_fill_color=None,
            border_fill_color=None,
            outline_line_color=None,
            name=name,
        )
        plot.axis.visible = False
        plot.grid.visible = False
        where = {"x": 0, "y": 0, "dw": width, "dh": height, "source": source}
        if name == "picture":
            drawn = plot.image_rgba("rgba", **where)
        else:
            drawn = plot.image(name, color_mapper=_mapper(name, scales), **where)
        plot.add_tools(HoverTool(renderers=[drawn], point_policy="follow_mouse", **hover), cross)
        _marks(plot, picture, aimed=name == "tightness")
        plots.append(plot)
    tools = [tool for plot in plots for tool in plot.toolbar.tools if not isinstance(tool, HoverTool)]
    shared = [ToolProxy(tools=[t for t in tools if isinstance(t, kind)]) for kind in TOOLS]
    toolbar = Toolbar(tools=shared, logo=None, active_drag=None, active_scroll=None)
    grid = GridPlot(children=[], toolbar=toolbar, toolbar_location="above", name="tools", width=160)
    document = Document()
    with document.models.freeze():  # or all models would be looked through again for each root
        for root in (*plots, grid):
            document.add_root(root)
    names = [content.class_name(index) for index in range(content.class_count)]
    looked_up = {"classes": names, "attacks": list(picture.attacks), "edge": picture.edge}
    return packed(document, looked_up | {"columns": picture.radius.shape[1]})


def _mapper(name: str, scales: Scales) -> Any:
    colours = hexed(scales.palette(name))
    if name in ("radius", "distance"):  # drawn from the numbers themselves
        return LogColorMapper(palette=colours[:-1], low=scales.low, high=scales.high, nan_color=colours[-1])
    return LinearColorMapper(palette=colours, low=0, high=len(colours))


def packed(document: Document, more: Mapping[str, Any] | None = None) -> str:
    """What BokehJS needs to draw a document: its JSON, and the roots by name; compressed, as text."""
    before = settings.compression_level()
    settings.compression_level = 0  # arrays are compressed with all the rest
    try:
        documents, items = standalone_docs_json_and_render_items(list(document.roots))
        roots = {root.name: root.id for root in document.roots}
        data = {"documents": documents, "docid": items[0].docid, "roots": roots, **(more or {})}
        text = json.dumps(data, separators=(",", ":"))
    finally:
        settings.compression_level = before
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=9, mtime=0)).decode()


def _columns(picture: Picture, scales: Scales) -> dict[str, list[Array]]:
    """What is drawn and what is shown on hovering; row 0 of an image glyph is at y = 0, which is the top here."""
    red, green, blue = (channel.astype(np.uint32) for channel in rgb(picture.image).transpose(2, 0, 1))
    columns = {
        name: scales.indices(picture, name).astype(np.uint8) for name in scales.shown(picture) if name != "picture"
    }
    columns["rgba"] = red | green << 8 | blue << 16 | np.uint32(255) << 24
    columns |= {
        "radius": _short(picture.radius, picture.attacked),
        "distance": _short(picture.distance, picture.attacked),
    }
    columns |= {"to": picture.after.astype(np.int16)}
    columns |= {"by": picture.by.astype(np.int16), "aimed": picture.attacked.astype(np.int16)}
    # What is not known is NaN, of which Bokeh says just that: these, always known, are looked at in its stead.
    columns |= {name: np.zeros(picture.row.shape, np.uint8) for name in ("how_far", "how_near")}
    if picture.edge > 1:
        tall, wide = (np.arange(n) * picture.edge for n in picture.row.shape)
        within = {"row": picture.row - tall[:, None], "column": picture.column - wide}
        columns |= {name: offset.astype(np.uint16) for name, offset in within.items()}
    return {name: [array] for name, array in columns.items()}


def _short(values: Array, exact: Array) -> Array:
    """float32, but for ``exact`` with 11 bits of the mantissa rounded off, which compresses better.

    That is a relative error of 2 ** -13. What is not positive and finite becomes NaN: drawn in grey.
    """
    known = np.isfinite(values) & (values > 0)
    single = np.where(known, values, 1.0).astype(np.float32)
    rounded = ((single.view(np.uint32) + np.uint32(1 << 10)) & np.uint32(0xFFFFF800)).view(np.float32)
    result: Array = np.where(known, np.where(exact, single, rounded), np.float32(np.nan))
    return result


def _hover(picture: Picture, content: Content, source: ColumnDataSource) -> dict[str, Any]:
    """What is said of a pixel."""
    names = [content.class_name(index) for index in range(content.class_count)]
    number, never = (
        CustomJSHover(
            args={"data": source},
            code=f"const found = data.data.{name}[0][special_vars.image_index.flat_index]; "
            f"return found > 0 ? Number(found).toPrecision(4) : '{otherwise}'",
        )
        for name, otherwise in (("radius", "none"), ("distance", "never flipped"))
    )
    ratio = CustomJSHover(
        args={"data": source},
        code="const cell = special_vars.image_index.flat_index; "
        "const ratio = data.data.radius[0][cell] / data.data.distance[0][cell]; "
        "return ratio > 0 ? ratio.toFixed(4) : 'not known'",
    )
    named = CustomJSHover(args={"names": names}, code="return names[value] ?? 'not kept'")
    who = CustomJSHover(args={"names": list(picture.attacks)}, code="return names[value] ?? 'nobody'")
    yes = CustomJSHover(code="return value ? 'yes' : 'no'")
    whole = CustomJSHover(code="return String(Math.floor(value))")
    inside = {
        axis: CustomJSHover(
            args={"edge": picture.edge}, code=f"return String(Math.floor(special_vars.{axis} / edge) * edge + value)"
        )
        for axis in "xy"
    }
    place = ("@row{custom}", "@column{custom}") if picture.edge > 1 else ("$y{custom}", "$x{custom}")
    said = {
        "row, column": ", ".join(place),
        "radius r": "@how_far{custom}",
        "flip distance d": "@how_near{custom}",
        "tightness r / d": "@tightness{custom}",
        "class": "@prediction{custom}",
        "class after": "@to{custom}",
        "flipped by": "@by{custom}",
        "aimed at": "@aimed{custom}",
    }
    formatters = {"@how_far": number, "@how_near": never, "@tightness": ratio, "@prediction": named, "@to": named}
    formatters |= {"@by": who, "@aimed": yes, "$x": whole, "$y": whole, "@row": inside["y"], "@column": inside["x"]}
    return {"tooltips": list(said.items()), "formatters": formatters}


def _marks(plot: Any, picture: Picture, aimed: bool) -> None:
    """Rings around violations, thin ones around pixels that were aimed at."""
    if aimed and picture.attacked.any():
        xs, ys = picture.column[picture.attacked] + 0.5, picture.row[picture.attacked] + 0.5
        plot.scatter(xs, ys, size=7, line_color="#202020", line_width=1, fill_color=None)  # what is inside is seen
    if len(picture.broken):
        xs, ys = picture.broken[:, 1] + 0.5, picture.broken[:, 0] + 0.5
        plot.scatter(xs, ys, size=15, line_color="#ffffff", line_width=4, fill_color=None)
        plot.scatter(xs, ys, size=15, line_color="#e8003f", line_width=2, fill_color=None)
