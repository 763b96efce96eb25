"""Who flipped what at which distance: the recorder between contestants and network, and the judge."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attackcheck.cones import Cone, Spot
from attackcheck.probe import Probe

from .subjects import Pixel, Subject

__all__ = ["Result", "Tape", "judged"]


class Tape:
    """The model on windows (B, C, h, w), one per pixel under attack; keeps the closest flip of each that it was shown.

    Any number of rows may be asked for at once. Row r belongs to pixel r modulo B, as our attacks lay them out unless
    they ask for the tape of certain rows, or, for libraries that drop and reorder rows, to the
    pixel whose clean window is nearest (`ordered=False`). With a cone only the logits around the pixels are computed.
    The pixels' logits are at `rows` and `columns` (B,) of what comes back.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        windows: Tensor,
        rows: Tensor,
        columns: Tensor,
        cone: Cone | None = None,
    ) -> None:
        self._model, self._windows, self._cone = model, windows, cone
        self._spot = None if cone is None else Spot(cone, rows, columns)
        self._spots: dict[int, Spot] = {}
        self.rows, self.columns = (rows, columns) if self._spot is None else self._spot.inside
        with torch.no_grad():
            self.clean = model(windows)[torch.arange(len(windows)), :, rows, columns]  # (B, K)
        self._label = self.clean.argmax(1)
        self.distance = torch.full((len(windows),), math.inf, dtype=torch.float64)
        self.point = windows.clone()
        self.forward, self.backward = 0, 0
        self.ordered = True

    def __call__(self, images: Tensor) -> Tensor:
        count, batch = len(images), len(self._windows)
        if not self.ordered and batch > 1:
            owner = torch.cdist(images.detach().flatten(1), self._windows.flatten(1)).argmin(1)
            return self._shown(images, owner, self._spot and self._spot.rows(owner))
        owner = torch.arange(count) % batch
        if self._spot is not None and count not in self._spots:
            self._spots[count] = self._spot.rows(owner)
        return self._shown(images, owner, self._spots.get(count))

    def _shown(self, images: Tensor, owner: Tensor, spot: Spot | None) -> Tensor:
        images = images.to(self._windows.dtype)
        logits = self._model(images) if self._cone is None or spot is None else self._cone(images, spot)
        self.forward += len(images)
        if logits.requires_grad:
            logits.register_hook(self._count)
        with torch.no_grad():
            self._record(images.detach(), logits.detach(), owner)
        return logits

    def for_rows(self, index: Tensor) -> Callable[[Tensor], Tensor]:
        """The tape for calls whose rows belong to the pixels `index` (R,) of our attacks."""
        spot = None if self._spot is None else self._spot.rows(index)
        return lambda images: self._shown(images, index, spot)

    def _count(self, gradient: Tensor) -> None:
        self.backward += len(gradient)

    def _record(self, images: Tensor, logits: Tensor, owner: Tensor) -> None:
        z = logits[torch.arange(len(images)), :, self.rows[owner], self.columns[owner]]
        flipped = z.argmax(1) != self._label[owner]
        distance = (images - self._windows[owner]).flatten(1).norm(dim=1).double()
        distance = torch.where(flipped & distance.isfinite() & (distance > 0), distance, math.inf)
        nearest = torch.full_like(self.distance, math.inf).scatter_reduce(0, owner, distance, "amin")
        closer = nearest < self.distance
        mine = closer[owner] & (distance == nearest[owner])
        self.point[owner[mine]] = images[mine]
        self.distance = torch.where(closer, nearest, self.distance)


@dataclass
class Result:
    """What one contestant achieved on one subject; one entry per pixel, distances inf where nothing flipped."""

    contestant: str
    kind: str  # "ours" or the library
    budget: str
    distance: list[float]
    forward: float
    backward: float
    milliseconds: float  # CPU, per pixel
    failures: dict[str, int] = field(default_factory=dict)
    around: bool = False  # the network was computed around the pixels only


class Clock:
    """CPU milliseconds of this process."""

    def __init__(self) -> None:
        self._start = time.process_time()

    def milliseconds(self) -> float:
        return 1e3 * (time.process_time() - self._start)


def judged(subject: Subject, pixels: Sequence[Pixel], points: Sequence[Tensor | None]) -> list[float]:
    """The distances of windows (C, h, w) on whole images, by the package's probe; inf for None and where none flips.

    Points a little beyond are shown as well (by 1e-4 and 1e-3), for a point on the boundary flips in one batch and not
    in another; the smallest distance at which the probe saw the flip counts.
    """
    found = []
    for pixel, window in zip(pixels, points, strict=True):
        if window is None:
            found.append(math.inf)
            continue
        image = subject.images[pixel.image]
        with torch.no_grad():
            logits = subject.model(image[None])[0]
        probe = Probe(subject.model, image, logits, subject.radii[pixel.image], subject.claim)
        delta = torch.zeros_like(image)
        pixel.crop.cut(delta).copy_(window - pixel.crop.cut(image))
        with torch.no_grad():
            probe(image + torch.tensor([1.0, 1.0001, 1.001])[:, None, None, None] * delta)
        found.append(float(probe.evidence.flip_distance[pixel.row, pixel.column]))
    return found
