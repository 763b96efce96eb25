"""Colours: classes, a sequential scale for distances, a diverging one around 1 for tightness."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["NEVER", "class_colours", "diverging", "hexed", "log_scale", "sequential"]

Array = np.ndarray[Any, Any]
NEVER = (128, 128, 128)
"""Where nothing is known: never seen flipped, or no certificate."""

# Familiar from road scenes, where the classes have these names.
_FAMILIAR = {
    "road": (128, 64, 128),
    "sidewalk": (244, 35, 232),
    "building": (92, 92, 92),
    "wall": (102, 102, 156),
    "fence": (190, 153, 153),
    "pole": (153, 153, 153),
    "traffic light": (250, 170, 30),
    "traffic sign": (220, 220, 0),
    "vegetation": (107, 142, 35),
    "tree": (107, 142, 35),
    "terrain": (152, 251, 152),
    "sky": (70, 130, 180),
    "person": (220, 20, 60),
    "rider": (255, 80, 0),
    "car": (0, 0, 190),
    "truck": (0, 0, 70),
    "bus": (0, 60, 100),
    "train": (0, 80, 100),
    "motorcycle": (0, 0, 230),
    "bicycle": (119, 11, 32),
}
# Distinct for most eyes; repeated in lighter shades where there are more classes.
_PLAIN = (
    (0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0), (240, 228, 66),
    (117, 112, 179), (102, 166, 30), (166, 118, 29),
)  # fmt: skip


def class_colours(names: Sequence[str] | None, count: int) -> Array:
    """``(count, 3)`` uint8."""
    colours = np.zeros((count, 3), dtype=np.uint8)
    familiar = names is not None and sum(name.lower() in _FAMILIAR for name in names) * 2 >= len(names)
    for index in range(count):
        name = names[index].lower() if names is not None and index < len(names) else ""
        plain = np.array(_PLAIN[index % len(_PLAIN)], dtype=np.float64)
        fade = (index // len(_PLAIN)) % 4 * 0.25
        colour = plain + (255 - plain) * fade
        colours[index] = _FAMILIAR[name] if familiar and name in _FAMILIAR else colour.round()
    return colours


def sequential(steps: int = 256) -> Array:
    """``(steps, 3)`` uint8, dark to bright, even to the eye and for colour-blind ones (after cividis)."""
    stops = [(0, 34, 78), (53, 69, 108), (102, 105, 112), (148, 142, 119), (200, 184, 102), (254, 232, 56)]
    return _between(stops, steps)


def diverging(steps: int = 256) -> Array:
    """``(steps, 3)`` uint8, blue below the middle, red above it."""
    stops = [
        (5, 48, 97),
        (67, 147, 195),
        (209, 229, 240),
        (247, 247, 247),
        (253, 219, 199),
        (214, 96, 77),
        (103, 0, 31),
    ]
    return _between(stops, steps)


def hexed(colours: Array) -> list[str]:
    """``#rrggbb`` for each row."""
    return ["#{:02x}{:02x}{:02x}".format(*colour) for colour in colours.tolist()]


def log_scale(values: Array, low: float, high: float, steps: int = 256) -> Array:
    """Indices 0 ... steps - 1 on a logarithmic scale from ``low`` to ``high``; steps where not finite and positive."""
    known = np.isfinite(values) & (values > 0)
    where = np.log(np.where(known, values, low) / low) / np.log(high / low)
    index = np.clip((where * steps).astype(np.int64), 0, steps - 1)
    return np.where(known, index, steps)


def _between(stops: Sequence[tuple[int, int, int]], steps: int) -> Array:
    points = np.linspace(0, len(stops) - 1, steps)
    table = np.array(stops, dtype=np.float64)
    columns = [np.interp(points, np.arange(len(stops)), table[:, channel]) for channel in range(3)]
    mixed: Array = np.stack(columns, axis=1).round().astype(np.uint8)
    return mixed
