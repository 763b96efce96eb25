"""The model on crops: what attacks on single pixels call, and what notes the points that they visit.

Where the crops have a cone, only the logits around each row's pixel are computed. It notes what the
:class:`~attackcheck.probe.Probe` notes of whole images, but about the pixels aimed at only: a crop says nothing about
pixels whose receptive field it does not hold.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attackcheck.cones import Spot
from attackcheck.crops import Crops, lead_of
from attackcheck.probe import Kind, Probe, at_least_float32, replaced, row_norms

__all__ = ["CropProbe"]


@dataclass
class _Found:
    """The closest flip of each pixel that one attack call has visited."""

    distance: Tensor  # (P,) float64
    point: Tensor  # (P, C, h, w)
    logits: Tensor  # (P, K)

    def add(self, distance: Tensor, images: Tensor, logits: Tensor, pixel: Tensor | None) -> None:
        """Rows (B,) with their distances, infinite where not flipped; ``pixel`` says whose they are."""
        row = torch.arange(len(distance), device=distance.device)
        if pixel is None:
            nearest = distance
        else:
            nothing = torch.full_like(self.distance, math.inf)
            nearest = nothing.scatter_reduce(0, pixel, distance, "amin")  # (P,)
            # the first row of each pixel that has this distance
            own = torch.where(distance == nearest[pixel], row, len(row) - 1)
            row = torch.full_like(nearest, len(row) - 1, dtype=torch.int64).scatter_reduce(0, pixel, own, "amin")
        closer = nearest < self.distance
        self.distance = torch.where(closer, nearest, self.distance)
        self.logits = torch.where(closer[:, None], logits[row], self.logits)
        self.point = replaced(self.point, closer, images, row)


class CropProbe:
    """The model on crops ``(B, C, h, w) -> (B, K, h, w)``, one pixel for each row; what it sees is noted by pixel.

    The pixels' logits are at ``inner_rows`` and ``inner_columns`` of what comes back; with a cone that is the pixels'
    cells alone, ``(B, K, stride, stride)``. A call must have one row for every pixel, in order. Attacks that repeat,
    choose or reorder rows call the probe that :meth:`for_rows` gives them; that of a single pixel takes any number of
    rows.

    Args:
        crops: the image's crops.
        probe: the image's probe: counts costs, and receives what is committed.
        rows, columns: ``(P,)``, the pixels.
    """

    def __init__(self, crops: Crops, probe: Probe, rows: Tensor, columns: Tensor) -> None:
        self._crops, self._probe = crops, probe
        self.rows, self.columns = rows, columns
        self.inner_rows, self.inner_columns = crops.windows.inside(rows, columns)
        self._spot: Spot | None = None
        if crops.cone is not None:
            self._spot = Spot(crops.cone, self.inner_rows, self.inner_columns)
            self.inner_rows, self.inner_columns = self._spot.inside
        self.clean = crops.cut(rows, columns)  # (P, C, h, w)
        self.logits = probe.logits[:, rows, columns].T.contiguous()  # (P, K) of the whole image
        self._label = self.logits.argmax(dim=1)
        self._radius = probe.radius[rows, columns]
        pixels = len(rows)
        self._found = _Found(
            torch.full((pixels,), math.inf, dtype=torch.float64, device=rows.device),
            torch.empty_like(self.clean),
            self.logits.clone(),
        )
        self._pixel: Tensor | None = None  # (B,) which pixel a row belongs to; None: one row for each

    def for_rows(self, index: Tensor) -> CropProbe:
        """The same probe for calls whose rows belong to the pixels ``index`` (B,)."""
        part = object.__new__(CropProbe)
        part.__dict__.update(self.__dict__)
        index = index.to(self.rows.device)
        for name in ("rows", "columns", "inner_rows", "inner_columns", "clean", "logits", "_label", "_radius"):
            setattr(part, name, getattr(self, name)[index])
        part._spot = None if self._spot is None else self._spot.rows(index)
        part._pixel = index if self._pixel is None else self._pixel[index]
        return part

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of crops, differentiable; raises ValueError for rows that belong to no pixel."""
        if len(images) != len(self.rows):
            if len(self.rows) != 1:
                raise ValueError(f"expected {len(self.rows)} rows, one for each pixel, got {len(images)}")
            return self.for_rows(torch.zeros(len(images), dtype=torch.int64))(images)
        images = images.to(self._probe.image.dtype)
        logits = self._probe.counted(images, self._around())
        with torch.no_grad():
            self._record(images.detach(), at_least_float32(logits.detach()))
        return logits

    def _around(self) -> Callable[[Tensor], Tensor] | None:
        cone, spot = self._crops.cone, self._spot
        return None if cone is None or spot is None else lambda images: cone(images, spot)

    def _record(self, images: Tensor, logits: Tensor) -> None:
        distance = row_norms(images - self.clean)
        distance = torch.where(distance > 0, distance, math.inf)  # at which nothing counts
        row = torch.arange(len(images), device=images.device)
        z = logits[row, :, self.inner_rows, self.inner_columns]  # (B, K)
        lead = lead_of(z, self._label)
        flipped = (lead > 0) & (lead < math.inf)
        self._found.add(torch.where(flipped, distance, math.inf), images, z, self._pixel)
        claim = self._probe.claim
        if not claim.cheap:
            return
        wide = z[:, :, None, None]
        back = claim.way_back(lead[:, None, None], wide, self._label[:, None, None])[:, 0, 0]
        ratios = {Kind.TWO_BALL: torch.where(flipped, back + self._radius, 0.0) / distance}
        # One pixel moves no further than the whole map does.
        expansion = claim.expansions(wide - self.logits[:, :, None, None], distance)
        if expansion is not None:
            ratios[Kind.LIPSCHITZ] = expansion
        self._crops.note(ratios, distance, images, self.rows, self.columns)

    def commit(self) -> None:
        """Hand the closest flips to the slots of the image's probe, credited to the attack under way."""
        slots, found, attack = self._probe.evidence.slots, self._found, self._probe.current
        slots.confirmed = None
        if slots.logits is None:
            raise ValueError("expected slots that keep crops: aim with windows first")
        same = (self.rows[:, None] == slots.rows) & (self.columns[:, None] == slots.columns)  # (P, M)
        known = same.any(dim=1)
        slot, distance = same.int().argmax(dim=1)[known], found.distance[known]
        own = slots.per_attack[attack]
        own[slot] = torch.minimum(own[slot], distance)
        closer = distance < slots.distance[slot]
        slot, chosen = slot[closer], known.nonzero()[:, 0][closer]
        slots.distance[slot] = found.distance[chosen]
        slots.point[slot] = found.point[chosen]
        slots.logits[slot] = found.logits[chosen]
        slots.target[slot] = found.logits[chosen].argmax(dim=1)
        slots.attack[slot] = attack
