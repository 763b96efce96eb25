"""Tables, JSON and picture of what the contestants achieved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from .tape import Result

__all__ = ["COLUMNS", "Sheet", "picture", "printed", "written"]

COLUMNS = (
    "attack",
    "settings",
    "found",
    "mean",
    "median",
    "tightness",
    "behind peers' best",
    "of ours",
    "forward",
    "backward",
    "ms",
    "floor",
    "ours as tight",
    "times slower",
)
REFERENCE = "attackcheck standard"


@dataclass
class Sheet:
    """All results on one subject; `radius` of each place (pixel or region), on the [0, 1] pixel scale.

    Where nothing is certified, the smallest distance that anybody found stands in for the radius.
    """

    subject: str
    note: str
    radius: list[float]
    certified: bool
    results: list[Result]
    unit: str = "pixel"
    row: tuple[float, float] | None = None  # milliseconds that a row takes at least, forward and backward
    around: tuple[float, float] | None = None  # of the network around a pixel, which ours have

    def tightness(self) -> np.ndarray[Any, Any]:
        """(R, P) of each contestant and place, 0 where nothing was found."""
        distance = np.array([result.distance for result in self.results])
        radius = np.array(self.radius) if self.certified else distance.min(axis=0)
        tight: np.ndarray[Any, Any] = np.where(np.isfinite(distance), radius / distance, 0.0)
        return tight

    def table(self) -> list[dict[str, Any]]:
        """One row for each contestant: what `COLUMNS` names, numbers as numbers, None where there is none."""
        tight = self.tightness()
        peers = np.array([result.kind != "ours" for result in self.results])
        best = tight[peers].max(axis=0).mean() if peers.any() else math.nan
        mean = tight.mean(axis=1)
        names = [result.contestant for result in self.results]
        reference = mean[names.index(REFERENCE)] if REFERENCE in names else math.nan
        rows = []
        for result, own in zip(self.results, mean, strict=True):
            finite = np.array([d for d in result.distance if math.isfinite(d)])
            rival, slower = self._rival(result, own, mean)
            rows.append(
                {
                    "attack": result.contestant,
                    "settings": result.budget,
                    "found": f"{len(finite)}/{len(result.distance)}",
                    "mean": float(finite.mean()) if len(finite) else None,
                    "median": float(np.median(finite)) if len(finite) else None,
                    "tightness": float(own),
                    "behind peers' best": 1 - own / best if best > 0 else None,
                    "of ours": own / reference if reference > 0 else None,
                    "forward": result.forward,
                    "backward": result.backward,
                    "ms": result.milliseconds,
                    "floor": self._floor(result),
                    "ours as tight": rival,
                    "times slower": slower,
                }
            )
        return rows

    def _floor(self, result: Result) -> float | None:
        row = self.around if self.around is not None and result.around else self.row
        return None if row is None else result.forward * row[0] + result.backward * row[1]

    def _rival(self, result: Result, own: float, mean: np.ndarray[Any, Any]) -> tuple[str | None, float | None]:
        """Our cheapest contestant at least as tight as a peer, and how many times the peer's time is of its."""
        if result.kind == "ours":
            return None, None
        able = [r for r, m in zip(self.results, mean, strict=True) if r.kind == "ours" and m >= own]
        if not able:
            return "none", None
        cheapest = min(able, key=lambda r: r.milliseconds)
        return cheapest.contestant.removeprefix("attackcheck "), result.milliseconds / cheapest.milliseconds

    def summary(self) -> str:
        """The virtual best of all peers, in a sentence."""
        distance = np.array([r.distance for r in self.results if r.kind != "ours"])
        if not len(distance):
            return ""
        best = distance.min(axis=0)
        finite = best[np.isfinite(best)]
        if not len(finite):
            return "No peer found anything."
        found = f"found {len(finite)}/{len(best)}, mean distance {finite.mean():.4f}"
        return f"Best of all peers for each {self.unit}: {found}."

    def wins(self) -> str:
        """On how many places each of ours is shorter than each peer, in a sentence; empty without peers."""
        ours = [result for result in self.results if result.kind == "ours"]
        peers = {r.contestant: np.array(r.distance) for r in self.results if r.kind != "ours"}
        if not ours or not peers:
            return ""
        peers["all peers"] = np.array(list(peers.values())).min(axis=0)
        said = []
        for result in ours:
            counts = [f"{name} on {(np.array(result.distance) < d).sum()}" for name, d in peers.items()]
            said.append(f"{result.contestant.removeprefix('attackcheck ')}: {', '.join(counts)}")
        return f"Shorter, of {len(self.radius)} {self.unit}s, than {'; '.join(said)}."

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data; infinite distances become None."""
        content = asdict(self)
        for result in content["results"]:
            result["distance"] = [d if math.isfinite(d) else None for d in result["distance"]]
        return {**content, "table": self.table()}


_DIGITS = {
    "mean": 4,
    "median": 4,
    "tightness": 4,
    "of ours": 3,
    "forward": 0,
    "backward": 0,
    "ms": 1,
    "floor": 1,
    "times slower": 1,
}


def _cell(column: str, value: object) -> str:
    if value is None:
        return ""
    if column == "behind peers' best":
        return f"{100 * float(value):+.1f} %"  # type: ignore[arg-type]
    return f"{value:.{_DIGITS[column]}f}" if isinstance(value, float) else str(value)


def printed(sheet: Sheet) -> Table:
    """The sheet for a terminal, without the settings."""
    shown = [column for column in COLUMNS if column != "settings"]
    table = Table(title=f"{sheet.subject}: {sheet.note} ({len(sheet.radius)} {sheet.unit}s). {sheet.summary()}")
    for column in shown:
        table.add_column(column, justify="left" if column in ("attack", "ours as tight") else "right")
    for row in sheet.table():
        table.add_row(*[_cell(column, row[column]) for column in shown])
    return table


def written(sheets: Sequence[Sheet], head: Mapping[str, str]) -> str:
    """All sheets as markdown, under a list of how they were made."""
    lines = [f"* {key}: {value}" for key, value in head.items()] + [""]
    for sheet in sheets:
        lines += [f"## {sheet.subject}", "", f"{sheet.note}; {len(sheet.radius)} {sheet.unit}s. {sheet.summary()}", ""]
        lines += ["| " + " | ".join(COLUMNS) + " |", "| " + " | ".join("---" for _ in COLUMNS) + " |"]
        lines += ["| " + " | ".join(_cell(c, row[c]) for c in COLUMNS) + " |" for row in sheet.table()] + [""]
        lines += [sheet.wins(), ""] if sheet.unit == "region" and sheet.wins() else []
        failed = [f"{r.contestant}: {why} ({n} {sheet.unit}s)" for r in sheet.results for why, n in r.failures.items()]
        lines += [f"Raised: {'; '.join(failed)}.", ""] if failed else []
    return "\n".join(lines)


def picture(sheets: Sequence[Sheet], path: Path) -> None:
    """Tightness against CPU milliseconds, one panel for each sheet; ours in colour."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    columns = min(2, len(sheets))
    rows = -(-len(sheets) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(8 * columns, 5.5 * rows), squeeze=False)
    for sheet, axis in zip(sheets, axes.flat, strict=False):
        for result, row in zip(sheet.results, sheet.table(), strict=True):
            ours = result.kind == "ours"
            axis.plot(row["ms"], row["tightness"], "o" if ours else "x", color="tab:red" if ours else "0.35")
        top = max(row["tightness"] for row in sheet.table())
        axis.set_ylim(0.8 * top, 1.02 * top)  # what lies below is in the tables
        axis.set_xscale("log")
        axis.set_title(f"{sheet.subject} ({sheet.unit}s)")
        axis.set_xlabel(f"CPU milliseconds per {sheet.unit}")
        axis.set_ylabel("mean tightness" if sheet.certified else "mean of closest / distance")
    for axis in axes.flat[len(sheets) :]:
        axis.set_visible(False)
    figure.tight_layout()
    for sheet, axis in zip(sheets, axes.flat, strict=False):
        _name(sheet, axis)
    figure.savefig(path, dpi=110)
    plt.close(figure)


_PLACES = ((6, -3), (6, 4), (6, -10), (-6, -3), (-6, 4), (-6, -10))  # of a name beside its mark, in points


def _name(sheet: Sheet, axis: Any) -> None:
    """Names the marks, ours first; a name that would cover another one wherever it stood is left to the tables."""
    from matplotlib.transforms import Bbox

    pairs = sorted(zip(sheet.results, sheet.table(), strict=True), key=lambda pair: pair[0].kind != "ours")
    marks = axis.transData.transform([(row["ms"], row["tightness"]) for _, row in pairs])
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in marks]
    for result, row in pairs:
        point, colour = (row["ms"], row["tightness"]), "tab:red" if result.kind == "ours" else "0.25"
        name = result.contestant.removeprefix("attackcheck ")
        for place in _PLACES:
            side = "left" if place[0] > 0 else "right"
            text = axis.annotate(
                name, point, xytext=place, textcoords="offset points", fontsize=7, color=colour, ha=side
            )
            box = text.get_window_extent(axis.figure.canvas.get_renderer())
            inside = axis.bbox.contains(box.x0, box.y0) and axis.bbox.contains(box.x1, box.y1)
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()
