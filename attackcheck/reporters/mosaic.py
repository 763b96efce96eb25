"""A map in a terminal: two pixels for every character, in colours around 1 where there are colours."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from attackcheck.reporters.blocks import blocks
from attackcheck.reporters.colours import NEVER, diverging, log_scale

__all__ = ["legend", "tightness_map"]

Array = np.ndarray[Any, Any]
SPREAD = 4.0
"""Colours go from 1 / SPREAD to SPREAD."""
STEPS = 63
RED = 54
"""The palest colour of a violation."""
SHADES = ".:-=+*%@#"
"""Without colours: tightness from 0 to 1, then above 1; a blank where nothing is known."""


def tightness_map(console: Console, tightness: Array, radius: Array, rows: int, mark: tuple[int, int] | None) -> Text:
    """The tightness ``(H, W)`` of an image, 0 where no flip was seen; every cell is the tightest pixel of its block.

    Args:
        console: says how wide it may be and whether there are colours.
        tightness, radius: ``(H, W)``.
        rows: most lines.
        mark: a pixel to point at.
    """
    coloured = console.color_system is not None and not console.no_color
    height, width = tightness.shape
    columns = max(8, console.width - 1)
    edge = max(-(-width // columns), -(-height // (2 * rows if coloured else rows)))
    _, row, column = blocks(tightness, radius, (-(-height // edge)) * (-(-width // edge)))
    values = tightness[row, column]
    at = None if mark is None else (mark[0] // edge, mark[1] // edge)
    return _coloured(values, at) if coloured else _plain(values, at)


def legend(console: Console) -> Text:
    """What the colours or characters mean."""
    if console.color_system is None or console.no_color:
        return Text(f"r/d: 0 {SHADES[:-1]} 1, {SHADES[-1]} above 1 (a violation), blank never seen flipped")
    indices = np.arange(0, STEPS, 3)
    bar = Text("")
    for colour in diverging(STEPS)[indices].tolist():
        bar.append("█", _rgb(colour))
    grey = Text("█", _rgb(NEVER))
    return Text.assemble(
        f"r/d: 1/{SPREAD:g} ", bar, f" {SPREAD:g}, 1 in the middle, red above it; ", grey, " never seen flipped"
    )


def _coloured(values: Array, mark: tuple[int, int] | None) -> Text:
    palette = np.vstack([diverging(STEPS), NEVER])
    steps = log_scale(values, 1 / SPREAD, SPREAD, STEPS)
    steps = np.where(values > 1.0, np.maximum(steps, RED), steps)  # a violation is never mistaken for a tight pixel
    colours = palette[steps]  # (h, w, 3)
    if len(colours) % 2:
        colours = np.concatenate([colours, np.zeros_like(colours[:1])])
    text = Text(no_wrap=True)
    for top in range(0, len(colours), 2):
        for column in range(colours.shape[1]):
            upper, lower = colours[top, column].tolist(), colours[top + 1, column].tolist()
            here = mark is not None and mark[1] == column and mark[0] // 2 == top // 2
            text.append("◆" if here else "▀", f"{'bold black' if here else _rgb(upper)} on {_rgb(lower)}")
        text.append("\n")
    return text


def _plain(values: Array, mark: tuple[int, int] | None) -> Text:
    shades = np.array(list(SHADES))
    index = np.clip((values * (len(SHADES) - 1)).astype(np.int64), 0, len(SHADES) - 2)
    index = np.where(values > 1.0, len(SHADES) - 1, index)
    letters = np.where(values > 0, shades[index], " ")
    if mark is not None:
        letters[mark] = "X"
    return Text("\n".join("".join(line) for line in letters.tolist()) + "\n", no_wrap=True)


def _rgb(colour: tuple[int, int, int] | list[int]) -> str:
    return "rgb({},{},{})".format(*colour)
