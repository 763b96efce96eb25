"""The report as one HTML page; needs the extra `html` (Bokeh)."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from importlib.util import find_spec
from operator import add
from pathlib import Path

from attackcheck.errors import InputError
from attackcheck.events import Event, PartFinished, RunFinished
from attackcheck.report import Report
from attackcheck.reporters.html.content import Content, Curves, Picture, Pixels, Summary
from attackcheck.reporters.html.observing import LEAST, SIDE, observe, smaller
from attackcheck.reporters.json import checked_target, write_whole

__all__ = ["HtmlReporter", "check_html", "fitting"]

LIMIT = 10_000_000
"""Most bytes of a page."""
SHOWN = 60
"""Most images whose maps are shown: those with violations, then those with the largest tightness."""
CELLS = 200_000
"""Most cells of a map."""
WORST = 4
"""Most perturbed images of an image."""


def check_html(target: str) -> Path:
    """The file to write, or an :class:`InputError` before anything is computed."""
    if find_spec("bokeh") is None or find_spec("jinja2") is None:
        raise InputError("the HTML report needs Bokeh, which is not installed: pip install 'attackcheck[html]'")
    path = checked_target(target, "--html") if target != "-" else None
    if path is None:
        raise InputError(f"expected the HTML report to be a file, got {target!r}")
    return path


class HtmlReporter:
    """Consumes events and writes the page at the end, all or nothing.

    Args:
        target: the file.
        classes: names of the classes, where they are known.
        ignore: the label that counts for nothing.
        replay: how a replay command starts, and what follows the path of the counterexample.
        command: the command line of the run, for people.

    Raises:
        InputError: if the file cannot be written as far as that can be seen, or Bokeh is not installed.
    """

    def __init__(
        self,
        target: str,
        *,
        classes: Sequence[str] | None,
        ignore: int,
        replay: tuple[Sequence[str], Sequence[str]] = (("attackcheck", "replay"), ()),
        command: str | None = None,
    ) -> None:
        self._path = check_html(target)
        self._classes, self._ignore = classes, ignore
        self._replay, self._command = replay, command
        self._images: list[Summary] = []
        self._pictures: list[tuple[tuple[int, float], int, Picture]] = []  # a heap, least interesting first
        self._pixels: list[Pixels] = []
        self._curves: list[Curves] = []

    def __call__(self, event: Event) -> None:
        """Keep what the page shows; write it after the last event."""
        match event:
            case PartFinished():
                self._keep(event)
            case RunFinished():
                self._write(event.report)
            case _:
                pass

    def _keep(self, event: PartFinished) -> None:
        part = event.part
        if part.maps is None:
            return
        seen = observe(
            part.maps,
            index=part.number,
            name=part.name,
            ignore=self._ignore,
            cells=CELLS,
            worst=WORST,
            findings=part.tally.findings,
        )
        self._images.append(seen.summary)
        self._pixels.append(seen.pixels)
        self._curves.append(seen.curves)
        entry = (seen.picture.interest, -part.number, seen.picture)
        if len(self._pictures) < SHOWN:
            heapq.heappush(self._pictures, entry)
        else:
            heapq.heappushpop(self._pictures, entry)

    def _write(self, report: Report) -> None:
        content = Content(
            report=report,
            images=sorted(self._images, key=lambda image: image.index),
            pictures=sorted((picture for _, _, picture in self._pictures), key=lambda picture: picture.index),
            pixels=Pixels.joined(self._pixels),
            curves=reduce(add, self._curves) if self._curves else None,
            classes=self._classes,
            replay=self._replay,
            command=self._command,
        )
        try:
            write_whole(self._path, fitting(content))
        except OSError as error:
            raise InputError(f"could not write {self._path}: {error.strerror or error}") from None


def fitting(content: Content, limit: int = LIMIT) -> str:
    """The page in at most ``limit`` bytes: with smaller maps, fewer and smaller perturbed images where it must be.

    Where even the smallest are too many, those of the most interesting images are shown, and at last of none: a page
    is only larger where its tables alone are.
    """
    from attackcheck.reporters.html.page import render

    pictures = content.pictures
    # At least 12 bytes for each cell; where that is too few, the loop puts it right.
    cells = min(CELLS, max(512, int(0.9 * limit / 12 / max(1, len(pictures)))))
    worst, side = WORST if len(pictures) <= 20 else 2, SIDE
    while True:
        text = render(replace(content, pictures=[smaller(picture, cells, worst, side) for picture in pictures]))
        if len(text.encode()) <= limit or not pictures:
            return text
        if cells <= 256 and side <= LEAST:
            kept = sorted(pictures, key=lambda picture: picture.interest)[len(pictures) - len(pictures) // 2 :]
            pictures = [picture for picture in pictures if any(picture is one for one in kept)]
        cells, worst, side = max(256, cells // 2), max(1, worst - 1), max(LEAST, side // 2)
