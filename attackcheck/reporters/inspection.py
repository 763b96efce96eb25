"""One image or one pixel of a run, for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from attackcheck.errors import printable
from attackcheck.events import Event, PartFinished, RunFinished
from attackcheck.parts import Maps, Part
from attackcheck.recheck import Verdict
from attackcheck.reporters.console import plain_console
from attackcheck.reporters.mosaic import legend, tightness_map
from attackcheck.reporters.tables import counted, short

__all__ = ["CaseReporter", "show_image", "show_images", "show_pixel"]

Array = np.ndarray[Any, Any]
WORST = 10
AROUND = 24
"""Pixels shown on each side of one."""


class CaseReporter:
    """Consumes events, and shows one image, or one pixel of it, at the end of a run.

    Args:
        stream: where to.
        image: its number.
        pixel: row and column, None for the whole image.
        classes: names of the classes, where they are known.
    """

    def __init__(
        self, stream: TextIO | None, image: int, pixel: tuple[int, int] | None, classes: Sequence[str] | None
    ) -> None:
        self._stream, self._image, self._pixel, self._classes = stream, image, pixel, classes
        self._part: Part | None = None

    def __call__(self, event: Event) -> None:
        """Keep the image's part; show it after the last event."""
        match event:
            case PartFinished() if event.part.number == self._image:
                self._part = event.part
            case RunFinished() if self._part is not None and self._part.maps is not None:
                out = plain_console(self._stream)
                out.print()
                if self._pixel is None:
                    show_image(out, self._part, self._part.maps, self._classes)
                else:
                    show_pixel(out, self._part, self._part.maps, self._classes, self._pixel)
            case _:
                pass


def show_images(out: Console, parts: Iterable[Part]) -> None:
    """A line for every image, one in memory at a time."""
    table = _table("image", "name", "attacked", "flipped", "worst r/d", "where", "violations")
    for part in parts:
        if part.maps is None:
            continue
        ratio = _tightness(part.maps)
        row, column = np.unravel_index(int(ratio.argmax()), ratio.shape)
        broken = sum(finding.verdict is Verdict.VIOLATED for finding in part.tally.findings)
        worst = float(ratio[row, column])
        table.add_row(
            str(part.number),
            printable(part.name) + ("" if part.complete else " (not done)"),
            f"{int(part.maps.attacked.sum()):,}",
            f"{int(part.maps.flip_distance.isfinite().sum()):,}",
            f"{worst:.4f}" if worst else "-",
            f"{row},{column}" if worst else "-",
            Text(str(broken), "bold red" if broken else ""),
        )
    out.print(table)


def show_image(out: Console, part: Part, maps: Maps, classes: Sequence[str] | None) -> None:
    """The map of tightness, and the tightest pixels."""
    ratio = _tightness(maps)
    height, width = ratio.shape
    flipped = int(maps.flip_distance.isfinite().sum())
    out.print(
        f"image {part.number} ({printable(part.name)}): {height}x{width}, "
        f"{counted(int(maps.attacked.sum()), 'pixel')} attacked, {flipped:,} seen flipped"
    )
    out.print(
        tightness_map(
            out, ratio, maps.radius.numpy(), max(8, min(40, out.height - 16)) if out.is_terminal else 40, None
        ),
        end="",
    )
    out.print(legend(out))
    order = np.argsort(-ratio, axis=None, kind="stable")[:WORST]
    chosen = [(int(i) // width, int(i) % width) for i in order if ratio.flat[i] > 0]
    if not chosen:
        return
    table = _table("pixel", "class", "radius", "distance", "r/d", "attack", "verdict")
    for row, column in chosen:
        table.add_row(
            f"{row},{column}",
            f"{_name(classes, maps.predicted[row, column])} > {_name(classes, maps.class_after[row, column])}",
            short(float(maps.radius[row, column])),
            short(float(maps.flip_distance[row, column])),
            f"{ratio[row, column]:.4f}",
            _attack(maps, row, column),
            _verdict(maps, row, column),
        )
    out.print()
    out.print(table)


def show_pixel(out: Console, part: Part, maps: Maps, classes: Sequence[str] | None, pixel: tuple[int, int]) -> None:
    """What is around a pixel, and all that is known of it."""
    row, column = pixel
    ratio, radius = _tightness(maps), maps.radius.numpy()
    here = _around(ratio > 0, row, column)
    top, left = here[0].start, here[1].start
    out.print(f"image {part.number} ({printable(part.name)}), pixel {row}, {column}, and what is around it")
    out.print(tightness_map(out, ratio[here], radius[here], AROUND + 1, (row - top, column - left)), end="")
    out.print(legend(out))
    distance = float(maps.flip_distance[row, column])
    label = None if maps.labels is None else int(maps.labels[row, column])
    lines = {
        "class": _name(classes, maps.predicted[row, column]),
        "label": "none" if label is None else _name(classes, label),
        "radius": f"{float(maps.radius[row, column]):.9g}",
        "distance": "never seen flipped" if np.isinf(distance) else f"{distance:.9g}",
        "r/d": f"{ratio[row, column]:.6f}" if ratio[row, column] else "-",
        "class after": _name(classes, maps.class_after[row, column]),
        "flipped by": _attack(maps, row, column),
        "verdict": _verdict(maps, row, column),
    }
    out.print()
    reached = dict(_by_attack(part, pixel))
    wide = max(map(len, [*lines, *reached])) + 1
    for name, value in [*lines.items(), *reached.items()]:
        out.print(Text.assemble((f"{name:{wide}}", "bold"), printable(str(value))))
    for finding in part.tally.findings:
        if finding.pixel is not None and tuple(finding.pixel) == pixel:
            out.print(
                Text.assemble(
                    (finding.verdict.name, "bold red" if finding.verdict is Verdict.VIOLATED else "yellow"),
                    f" {finding.kind.name}: {finding.kind.value}; radius {short(finding.radius)}, distance "
                    f"{short(finding.distance)}, by {printable(finding.attack)}",
                )
            )


def _around(known: Array, row: int, column: int) -> tuple[slice, slice]:
    """What is near a pixel, without the edges of which nothing is known."""
    top, left = max(0, row - AROUND // 2), max(0, column - AROUND)
    near = known[top : row + AROUND // 2 + 1, left : column + AROUND + 1].copy()
    near[row - top, column - left] = True
    rows, columns = (np.nonzero(near.any(axis=axis))[0] for axis in (1, 0))
    return slice(top + rows[0], top + rows[-1] + 1), slice(left + columns[0], left + columns[-1] + 1)


def _by_attack(part: Part, pixel: tuple[int, int]) -> Iterator[tuple[str, str]]:
    """How far each attack came that was aimed at the pixel."""
    for pixels in part.tally.pixels:
        for number in np.nonzero((pixels.pixels == np.array(pixel)).all(axis=1))[0].tolist():
            for name, aimed in pixels.aimed.items():
                if aimed[number]:
                    distance = float(pixels.by_attack[name][number])
                    yield f"by {printable(name)}", "not flipped" if np.isinf(distance) else f"{distance:.9g}"


def _tightness(maps: Maps) -> Array:
    radius, distance = maps.radius.numpy(), maps.flip_distance.numpy()
    with np.errstate(invalid="ignore"):
        ratio: Array = np.where(np.isfinite(distance), radius / distance, 0.0)
    return ratio


def _name(classes: Sequence[str] | None, index: Any) -> str:
    number = int(index)
    if number < 0:
        return "?"
    return printable(classes[number]) if classes is not None and number < len(classes) else str(number)


def _attack(maps: Maps, row: int, column: int) -> str:
    number = int(maps.flipped_by[row, column])
    return printable(maps.attacks[number]) if number >= 0 else "-"


def _verdict(maps: Maps, row: int, column: int) -> str:
    number = int(maps.verdict[row, column])
    return list(Verdict)[number].name if number >= 0 else "not attacked"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for name in columns:
        left = name in ("name", "class", "attack", "verdict")
        table.add_column(name, justify="left" if left else "right", no_wrap=name != "name", overflow="fold")
    return table
