"""What is examined and how: a model with its claim, images, settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from attackcheck.attacks.plans import Plan
from attackcheck.claims import Claim
from attackcheck.metrics import MetricClaim
from attackcheck.regions import RegionRequest
from attackcheck.selection import Choose, PixelChoice

__all__ = ["Images", "Model", "Sample", "Settings", "Subject"]

Model = Callable[[Tensor], Tensor]


class Sample(Protocol):
    """One image of a data set."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def image(self) -> Tensor:
        """``(C, H, W)`` float32 in [0, 1]."""

    @property
    def labels(self) -> Tensor | None:
        """``(H, W)`` int64, or None."""


class Images(Protocol):
    """A data set, read one image at a time."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def classes(self) -> Sequence[str] | None:
        """Names of the classes, where they are known."""

    @property
    def ignore(self) -> int:
        """The label that counts for nothing."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Sample: ...


@dataclass(frozen=True)
class Subject:
    """A model, what is claimed about it, and where both come from (``meta``, plain values for reports)."""

    model: Model
    claim: Claim
    meta: Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """How to attack.

    Args:
        plan: the attacks.
        pixels: how many per image, "all", or ``(M, 3)`` integers (image, row, column).
        choose: what a number of pixels is drawn by.
        regions: regions for the plan's region stages.
        target: class that attacks aim at, None for any other.
        seed: every random number depends on it, the image, the pixel and the attack, and on nothing else.
        tolerance: relative excess of a radius over a distance that still counts as rounding.
        strict: ROUNDING and DEPLOYED_ONLY also fail.
        maxfail: stop after so many violations.
        budget: stop after so many seconds.
        batch: rows per attack call on pixels; None fits it to the image.
        box: keep perturbed images in this range; None lets them leave it, as L2 certificates permit.
        counterexamples: folder for counterexamples, None to save none.
        device: where the model runs.
        crops: attack pixels on crops where their receptive field is small enough.
        workers: images examined side by side, each on a copy of the model; 1 where it cannot be copied or on a GPU.
        audit: look at the weights first.
        metrics: claims about the data set as a whole, attacked once the images are done.
        shard: ``(i, n)``, examine every n-th image from the i-th on, counted from 1; None: all.
        image: examine this image alone, under its own number.
        deterministic: operations have one result, whatever their threads do; slower on a GPU.
    """

    plan: Plan
    pixels: PixelChoice = 64
    choose: Choose = "radius"
    regions: Sequence[RegionRequest] = (RegionRequest("components", "1"),)
    target: int | None = None
    seed: int = 0
    tolerance: float = 1e-5
    strict: bool = False
    maxfail: int | None = None
    budget: float | None = None
    batch: int | None = None
    box: tuple[float, float] | None = None
    counterexamples: Path | None = None
    device: str = "cpu"
    crops: bool = True
    workers: int = 1
    audit: bool = True
    metrics: tuple[MetricClaim, ...] = ()
    shard: tuple[int, int] | None = None
    image: int | None = None
    deterministic: bool = False
