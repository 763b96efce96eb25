"""Static pictures: what a page shows without script, on paper and to a screen reader."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from attackcheck.reporters.html.content import Content, Picture, Worst
from attackcheck.reporters.html.pictures import data_uri, magnified, palette_uri, rgb
from attackcheck.reporters.html.scales import Scales
from attackcheck.reporters.tables import counted, short

__all__ = ["Figure", "WorstCard", "map_figures", "worst_card"]

Array = np.ndarray[Any, Any]
STEPS = 31
"""Colours of a scale in a static picture: few, for the sake of its size."""


@dataclass(frozen=True)
class Figure:
    """A picture with its size in pixels of the image, what it shows in words, and rings at ``(x, y)``."""

    name: str
    title: str
    width: int
    height: int
    uri: str
    alt: str
    rings: list[tuple[float, float]]
    outline: str = ""  # a path

    @property
    def ring(self) -> float:
        """Radius of a ring."""
        return max(2.5, 0.03 * max(self.width, self.height))


@dataclass(frozen=True)
class WorstCard:
    """One perturbed image: what it shows, and its pictures."""

    title: str
    change: str
    radius: str
    distance: str
    ratio: str
    attack: str
    violated: bool
    figures: list[Figure]


def map_figures(picture: Picture, content: Content, scales: Scales) -> list[Figure]:
    """The maps of one image."""
    height, width = picture.size
    rings = [(column + 0.5, row + 0.5) for row, column in picture.broken.tolist()]
    figures = []
    for name, title in scales.shown(picture).items():
        if name == "picture":
            uri = data_uri(rgb(picture.image))
        else:
            uri = palette_uri(scales.indices(picture, name, STEPS), scales.palette(name, STEPS))
        alt = f"{title} of image {picture.index}: {_said(picture, content, name)}"
        figures.append(Figure(name, title, width, height, uri, alt, rings))
    return figures


def worst_card(worst: Worst, content: Content, scales: Scales) -> WorstCard:
    """Clean, perturbation, perturbed, and the prediction before and after."""
    height, width = worst.size
    rings = []
    if worst.pixel is not None:
        rings = [(worst.pixel[1] - worst.left + 0.5, worst.pixel[0] - worst.top + 0.5)]
    amplified, factor = magnified(worst.clean, worst.perturbed)
    parts = [
        ("clean", data_uri(rgb(worst.clean)), "the clean image"),
        (f"perturbation x {factor:.3g}", data_uri(amplified), f"the perturbation, magnified {factor:.3g} times"),
        ("perturbed", data_uri(rgb(worst.perturbed)), "the perturbed image"),
        ("prediction", _classes(worst.predicted_clean, scales), "the prediction of the clean image"),
    ]
    if worst.predicted is not None:
        changed = int((worst.predicted != worst.predicted_clean).sum())
        said = f"the prediction of the perturbed image: {counted(changed, 'pixel')} of those shown changed"
        parts.append(("prediction after", _classes(worst.predicted, scales), said))
    figures = [Figure("", title, width, height, uri, alt, rings) for title, uri, alt in parts]
    what = f"region {worst.name}" if worst.pixel is None else f"pixel {worst.pixel[0]}, {worst.pixel[1]}"
    change = f"{content.class_name(worst.before)} → {content.class_name(worst.after)}" if worst.before >= 0 else ""
    claimed = worst.radius is not None
    return WorstCard(
        title=what,
        change=change,
        radius=short(worst.radius) if worst.radius is not None else "none",
        distance=short(worst.distance),
        ratio=f"{worst.ratio:.4f}" if claimed else "none",
        attack=worst.attack,
        violated=worst.violated,
        figures=figures,
    )


def _classes(predicted: Array, scales: Scales) -> str:
    return palette_uri(predicted, scales.classes)


def _said(picture: Picture, content: Content, name: str) -> str:
    if name == "picture":
        rows, columns = picture.size
        return f"{picture.name}, {rows} rows, {columns} columns"
    if name in ("prediction", "labels"):
        values = picture.predicted if name == "prediction" or picture.labels is None else picture.labels
        counts = np.bincount(values[(values >= 0) & (values < content.class_count)].ravel(), minlength=1)
        largest = np.argsort(-counts, kind="stable")[:4].tolist()
        shares = [
            f"{content.class_name(k)} {100 * counts[k] / max(1, counts.sum()):.0f} %" for k in largest if counts[k]
        ]
        return ", ".join(shares)
    values = {"radius": picture.radius, "distance": picture.distance, "tightness": picture.tightness}[name]
    known = values[np.isfinite(values) & (values > 0)]
    if not len(known):
        return "nothing known"
    low, middle, high = np.quantile(known, [0.05, 0.5, 0.95]).tolist()
    text = f"median {short(middle)}, from {short(low)} (5 %) to {short(high)} (95 %)"
    if name == "tightness":
        row, column = divmod(int(np.argmax(picture.tightness)), picture.tightness.shape[1])
        where = f"{picture.row[row, column]}, {picture.column[row, column]}"
        text += f", largest {picture.tightness.max():.4f} at pixel {where}; "
        text += counted(len(picture.broken), "violation")
    elif len(known) < values.size:
        text += f"; {100 * (1 - len(known) / values.size):.0f} % of the pixels without"
    return text
