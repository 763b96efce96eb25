"""What a run has of one unit of work: an image with its maps, the gadgets, or the claims about the whole data set."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from attackcheck.tally import Tally

__all__ = ["METRICS", "TRIAL", "Example", "Maps", "Part"]

TRIAL = -1
"""Number of the part about gadgets: before every image."""

METRICS = 1 << 40
"""Number of the part about the whole data set: after every image."""


@dataclass(frozen=True)
class Example:
    """A perturbed image worth looking at.

    ``radius`` is the certified radius of the pixel, or the joint distance of the region (None: none is claimed).
    """

    kind: str  # pixel or region
    name: str
    pixel: tuple[int, int] | None
    predicted: int  # class before, -1 for a region
    target: int  # class after, -1 for a region
    radius: float | None
    distance: float
    attack: str
    perturbed: Tensor = field(repr=False)  # (C, H, W)
    after: Tensor = field(repr=False)  # (H, W) int16, the classes of that image


@dataclass(frozen=True)
class Maps:
    """What is known of every pixel of one image, on the CPU."""

    image: Tensor = field(repr=False)  # (C, H, W) float32
    labels: Tensor | None = field(repr=False)  # (H, W) int32
    predicted: Tensor = field(repr=False)  # (H, W) int16
    radius: Tensor = field(repr=False)  # (H, W) float64
    flip_distance: Tensor = field(repr=False)  # (H, W) float64, inf: never seen flipped
    flipped_by: Tensor = field(repr=False)  # (H, W) int16, index into attacks, -1: never
    class_after: Tensor = field(repr=False)  # (H, W) int16, -1 where not known
    attacked: Tensor = field(repr=False)  # (H, W) bool
    verdict: Tensor = field(repr=False)  # (H, W) int8, index into list(Verdict), -1: not attacked
    attacks: tuple[str, ...]
    examples: tuple[Example, ...] = ()


@dataclass(frozen=True)
class Part:
    """One unit of work; ``complete`` is False where the run was stopped meanwhile."""

    number: int  # of the image, or TRIAL, or METRICS
    name: str
    complete: bool
    seconds: float
    tally: Tally = field(repr=False)
    sha256: str | None = None  # of the image
    maps: Maps | None = field(default=None, repr=False)
