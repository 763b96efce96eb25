"""The scales that all maps of a page share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attackcheck.reporters.colours import NEVER, class_colours, diverging, hexed, log_scale, sequential
from attackcheck.reporters.html.content import Content, Picture

__all__ = ["MAPS", "Scales"]

Array = np.ndarray[Any, Any]
STEPS = 255

MAPS = {
    "picture": "picture",
    "labels": "labels",
    "prediction": "prediction",
    "radius": "certified radius r",
    "distance": "flip distance d",
    "tightness": "tightness r / d",
}
"""The maps of an image, and their titles; labels only where there are some."""


@dataclass(frozen=True)
class Scales:
    """Distances from ``low`` to ``high``, tightness from ``1 / spread`` to ``spread``, both logarithmic; classes."""

    low: float
    high: float
    spread: float
    classes: Array  # (K, 3)

    @classmethod
    def of(cls, content: Content) -> Scales:
        """Wide enough for nearly all pixels that were aimed at; what was flipped in passing may be far beyond."""
        pictures = content.pictures
        values = _known([p.radius for p in pictures] + [p.distance[p.attacked] for p in pictures])
        low, high = np.quantile(values, [0.02, 0.98]) if len(values) else (0.01, 1.0)
        high = max(high, low * 4)
        ratios = _known([p.tightness[p.attacked] for p in pictures])
        far = float(np.quantile(np.abs(np.log2(ratios)), 0.95)) if len(ratios) else 1.0
        spread = 2.0 ** float(np.clip(np.ceil(far), 1, 4))
        return cls(float(low), float(high), spread, class_colours(content.classes, content.class_count))

    def shown(self, picture: Picture) -> dict[str, str]:
        """Names and titles of the maps of this image."""
        return {name: title for name, title in MAPS.items() if name != "labels" or picture.labels is not None}

    def indices(self, picture: Picture, name: str, steps: int = STEPS) -> Array:
        """Indices ``(h, w)`` into :meth:`palette` of one of the maps with a palette."""
        if name in ("prediction", "labels"):
            values = picture.predicted if name == "prediction" or picture.labels is None else picture.labels
            inside = (values >= 0) & (values < len(self.classes))
            return np.where(inside, values, len(self.classes))
        if name == "tightness":
            return log_scale(picture.tightness, 1 / self.spread, self.spread, steps)
        values = picture.radius if name == "radius" else picture.distance
        return log_scale(values, self.low, self.high, steps)

    def palette(self, name: str, steps: int = STEPS) -> Array:
        """Colours ``(n, 3)``; the last one of a scale is for what is unknown."""
        if name in ("prediction", "labels"):
            return np.vstack([self.classes, NEVER])
        return np.vstack([diverging(steps) if name == "tightness" else sequential(steps), NEVER])

    def ticks(self, name: str) -> list[tuple[float, str]]:
        """Places from 0 to 1 along a scale, with what is written there."""
        if name == "tightness":
            powers = np.arange(-np.log2(self.spread), np.log2(self.spread) + 1)
            step = 1 if len(powers) <= 7 else 2
            kept = [p for p in powers if int(p) % step == 0]
            return [(0.5 + 0.5 * p / np.log2(self.spread), f"{2.0**p:g}" if p >= 0 else f"1/{2.0**-p:g}") for p in kept]
        marks = [m * 10.0**e for e in range(-6, 7) for m in (1, 2, 5)]
        inside = [m for m in marks if self.low <= m <= self.high]
        while len(inside) > 7:
            inside = inside[::2]
        return [(float(np.log(m / self.low) / np.log(self.high / self.low)), f"{m:g}") for m in inside]

    def gradient(self, name: str) -> str:
        """The scale as a CSS gradient."""
        return "linear-gradient(to right," + ",".join(hexed(self.palette(name)[:STEPS:18])) + ")"


def _known(parts: Sequence[Array]) -> Array:
    values = np.concatenate([part.ravel() for part in parts]) if parts else np.zeros(0)
    known: Array = values[np.isfinite(values) & (values > 0)]
    return known
