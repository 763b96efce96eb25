"""Seconds and bytes of this network on this machine: passes in its own precision and in float64, and recording."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attackcheck.arithmetic import Reference
from attackcheck.claims import Claim
from attackcheck.cones import Cone
from attackcheck.errors import InputError
from attackcheck.memory import Meter
from attackcheck.passes import Clock
from attackcheck.probe import Probe
from attackcheck.recheck import Judge

__all__ = ["Exact", "Pass", "Timing", "Watch"]

Model = Callable[[Tensor], Tensor]

PART = 256
"""Rows and columns of the part of a large image that float64 is timed on."""

BATCHED = 2**18
"""Pixels in a batch that is timed; larger ones take as long for each row."""


@dataclass
class Watch:
    """How long the block of a ``with`` took."""

    seconds: float = 0.0


@dataclass(frozen=True)
class Exact:
    """Seconds in float64: logits, their error, and finding out whether the model runs in it; bytes."""

    logits: float
    error: float
    setup: float
    bytes: int


@dataclass(frozen=True)
class Pass:
    """Seconds of one row, forward and backward, and bytes that a row takes until its backward pass."""

    forward: float
    backward: float
    bytes: int


class Timing:
    """Times one model at one image.

    Args:
        model: as attacks call it.
        frozen: the copy that is taken to float64.
        image: ``(C, H, W)`` on the device.
        claim: whose radii are recorded.
        clock: seconds.
    """

    def __init__(self, model: Model, frozen: Model, image: Tensor, claim: Claim, clock: Clock) -> None:
        self._model, self._frozen, self._image, self._claim, self._clock = model, frozen, image, claim, clock
        self._size = int(image.shape[1]), int(image.shape[2])
        self._known: dict[tuple[int, int, int], Pass] = {}
        self._cones: dict[tuple[int, int], Cone] = {}

    def around_pixels(self, place: tuple[int, int], cone: Cone) -> None:
        """Passes of crops of this size are those of the cone from now on."""
        self._cones[place] = cone

    @contextmanager
    def timed(self) -> Iterator[Watch]:
        """As a context: its ``seconds`` are known afterwards."""
        watch = Watch()
        self._wait()
        start = self._clock()
        yield watch
        self._wait()
        watch.seconds = self._clock() - start

    def _wait(self) -> None:
        if self._image.device.type == "cuda":
            torch.cuda.synchronize(self._image.device)

    def one(self, place: tuple[int, int], rows: int) -> Pass:
        """Passes of so many rows at once, of whole images or of crops of this size."""
        rows = max(1, min(rows, BATCHED // math.prod(place)))
        key = (*place, rows)
        if key not in self._known:
            top, left = (self._size[0] - place[0]) // 2, (self._size[1] - place[1]) // 2
            part = self._image[:, top : top + place[0], left : left + place[1]]
            model = self._model
            if place in self._cones:
                middle = [torch.full((rows,), side // 2, device=part.device) for side in place]
                model = self._cones[place].at(*middle)[0]
            self._known[key] = self._measured(model, part.expand(rows, *part.shape).contiguous())
        return self._known[key]

    def _measured(self, model: Model, images: Tensor) -> Pass:
        forward: list[float] = []
        both: list[float] = []
        rows = len(images)
        with Meter(images.device) as meter:  # also to warm up
            begun = self._clock()
            _forward_and_back(model, images)
            slow = self._clock() - begun > 4.0
        while len(both) < (1 if slow else 2) or (sum(forward) + sum(both) < 0.4 and len(both) < 30):
            with torch.no_grad(), self.timed() as alone:
                model(images)
            with self.timed() as together:
                _forward_and_back(model, images)
            forward.append(alone.seconds)
            both.append(together.seconds)
        once, twice = float(np.median(forward)), float(np.median(both))
        return Pass(once / rows, max(0.0, twice - once) / rows, (meter.bytes or 0) // rows)

    def recording(self, logits: Tensor, radius: Tensor) -> float:
        """Seconds to record one whole image with these logits ``(K, H, W)`` and radii ``(H, W)``."""
        height, width = min(PART, self._size[0]), min(PART, self._size[1])
        cut = (slice(None), slice(height), slice(width))
        image, logits = self._image[cut], logits[cut]
        probe = Probe(self._model, image, logits, radius[:height, :width], self._claim)
        moved = image + 1e-3
        with self.timed() as watch:
            probe.saw(moved.clone(), logits.clone())
        return watch.seconds * math.prod(self._size) / (height * width)

    def exact(self, logits: Tensor) -> Exact:
        """Float64 on a part of the image, taken to the whole of it; ``logits`` (K, H, W) are those of the whole."""
        part = [side if side <= 1.5 * PART else PART + side % 32 for side in self._size]
        image = self._image[:, : part[0], : part[1]]
        try:
            with torch.no_grad():
                part_logits = self._model(image[None])
        except (RuntimeError, ValueError, TypeError, IndexError, InputError):
            image, part_logits = self._image, logits[None]  # a model of one size
        with self.timed() as setup:
            reference = Reference(self._frozen, image[None])
        with self.timed() as values:
            exact = reference(image[None])
        with self.timed() as errors:
            reference.error(image[None], exact)
        with Meter() as meter:
            judge = Judge(self._model, reference, self._claim, device=image.device)
            judge.scene(0, image, part_logits[0], torch.ones(image.shape[1:], dtype=torch.float64))
        area = math.prod(self._size) / (image.shape[1] * image.shape[2])
        # Large images take longer for each pixel: they are further from the caches.
        grow = area
        if area > 1:
            whole = self.one(self._size, 1)
            grow = max(area, whole.forward / self.one((image.shape[1], image.shape[2]), 1).forward)
        return Exact(values.seconds * grow, errors.seconds * grow, setup.seconds * grow, int((meter.bytes or 0) * area))


def _forward_and_back(model: Model, images: Tensor) -> None:
    points = images.clone().requires_grad_(True)
    logits = model(points)
    if logits.requires_grad:
        torch.autograd.grad(logits[:, 0].sum(), points)
