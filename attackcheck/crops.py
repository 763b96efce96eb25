"""Attacks on crops, and how what they find becomes evidence about the whole image.

An attack on one pixel sees the crop that the pixel's logits depend on, one crop per row. A :class:`CropProbe` notes
what the attack visits, as the :class:`~attackcheck.probe.Probe` does for whole images, but about the pixels aimed at
only: the perturbation is zero outside the crop, so its length is that of the image. Nothing of it counts until
:meth:`Crops.confirm` has pasted the closest crops into whole images, many into one where they do not overlap, and the
whole image showed the same logits; the worst crops of the other kinds are shown to the whole image one by one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attackcheck.probe import SCALES, Kind, Probe, Slots, at_least_float32, row_norms, worst_by_decade
from attackcheck.receptive import Windows

__all__ = ["CropProbe", "Crops"]

PUSH = 1.0 + 1e-4
"""How much longer a perturbation is tried where the whole image just misses the flip that its crop has shown."""

PROMISING = 2
"""Closest points that are also shown to the whole image alone, for each of SET and LIPSCHITZ."""


@dataclass
class _Worst:
    """The worst crops seen of one kind, one for each decade of distance, and the ratio of those already shown."""

    ratio: Tensor  # (SCALES,) float64
    shown: Tensor  # (SCALES,) float64
    crop: Tensor  # (SCALES, C, h, w)
    place: Tensor  # (SCALES, 2) row and column of the pixel
    attack: Tensor  # (SCALES,) int64


class Crops:
    """The crops of one image, and what attacks have seen in them.

    Args:
        probe: the image's probe, whose evidence is added to.
        windows: where crops lie.
        tolerance: ``(K,)``, what rounding may change in the logits of each class.
    """

    def __init__(self, probe: Probe, windows: Windows, tolerance: Tensor) -> None:
        self.windows = windows
        self._probe = probe
        self._tolerance = tolerance.to(probe.image.device)
        shape = (SCALES, probe.image.shape[0], windows.height, windows.width)
        image = probe.image

        def nothing() -> _Worst:
            zeros = torch.zeros(SCALES, dtype=torch.float64, device=image.device)
            place = torch.zeros(SCALES, 2, dtype=torch.int64, device=image.device)
            return _Worst(zeros, zeros.clone(), image.new_empty(shape), place, place[:, 0].clone())

        self.worst = {kind: nothing() for kind in (Kind.TWO_BALL, Kind.LIPSCHITZ)}

    def cut(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The clean crops ``(P, C, h, w)`` of these pixels ``(P,)``."""
        return self.windows.cut(self._probe.image, rows, columns)

    def confirm(self) -> bool:
        """Show the closest points of the pixels aimed at to the whole image, and count those that flip there.

        Returns:
            False if the whole image's logits are not those of the crops: then nothing was counted.
        """
        slots = self._probe.evidence.slots
        if slots.confirmed is None:
            slots.confirmed = self._confirm(slots)
        return slots.confirmed

    def _confirm(self, slots: Slots) -> bool:
        expected, found = slots.logits, slots.distance.isfinite()
        if slots.windows is not self.windows or expected is None or not bool(found.any()):
            return True
        seen, promise = self._in_the_whole_image(slots, found)
        allowed = self._tolerance + 1e-5 * expected.abs()
        if not bool(((seen - expected)[found].abs() <= allowed[found]).all()):
            return False
        flipped = found & self._leads(slots, seen)
        late = found & ~flipped
        if bool(late.any()):
            clean = self.cut(slots.rows[late], slots.columns[late])
            slots.point[late] = clean + PUSH * (slots.point[late] - clean)
            slots.distance[late] = row_norms(slots.point[late] - clean)
            flipped = flipped | (late & self._leads(slots, self._in_the_whole_image(slots, late)[0]))
        slots.distance = torch.where(flipped, slots.distance, math.inf)
        slots.per_attack = [torch.where(flipped, one, math.inf) for one in slots.per_attack]
        self._add_to_map(slots)
        self._show_worst()
        self._show_promising(slots, promise)
        return True

    def _in_the_whole_image(self, slots: Slots, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """The chosen slots on whole images into which their crops were pasted.

        Returns the logits of their pixels ``(M, K)``, and ``(2, M)`` by how much the logits inside each crop moved and
        what the flips there are worth, over the distance: about the ratios of LIPSCHITZ and SET, were it alone.
        """
        logits = torch.zeros(len(chosen), len(self._tolerance), device=chosen.device)
        promise = torch.zeros(2, len(chosen), dtype=torch.float64, device=chosen.device)
        index = chosen.nonzero()[:, 0]
        top, left = self.windows.origins(slots.rows[index], slots.columns[index])
        for pack in _disjoint(top, left, self.windows.height, self.windows.width):
            part = index[pack.to(index.device)]
            rows, columns = slots.rows[part], slots.columns[part]
            image = self.windows.pasted(self._probe.image, rows, columns, slots.point[part])
            name = self._probe.evidence.attacks[int(slots.attack[part[0]])]
            with self._probe.attributed(name), torch.no_grad():
                whole = at_least_float32(self._probe.counted(image[None])[0])
                logits[part] = whole[:, rows, columns].T.to(logits.dtype)
                inside = self.windows.cut(self._squares(whole), rows, columns).flatten(2).sum(2, dtype=torch.float64)
                promise[:, part] = inside.T.sqrt() / slots.distance[part]
        return logits, promise

    def _squares(self, logits: Tensor) -> Tensor:
        """Squared movement of each pixel's logits, and squared sum of both radii where it flipped, ``(2, H, W)``."""
        clean = self._probe.logits
        moved = (logits - clean).square().sum(dim=0)
        label = clean.argmax(dim=0)
        own = logits.gather(0, label[None])[0]
        lead = logits.scatter(0, label[None], -math.inf).amax(dim=0) - own
        back = self._probe.claim.way_back(lead[None], logits[None], label)[0]
        return torch.stack([moved, torch.where(lead > 0, back + self._probe.radius, 0.0).square()])

    def _show_promising(self, slots: Slots, promise: Tensor) -> None:
        best = promise.topk(min(PROMISING, promise.shape[1]), dim=1).indices
        for i in sorted(set(best.flatten().tolist())):
            if int(slots.attack[i]) >= 0 and bool(slots.distance[i].isfinite()):
                self._show(self._probe.closest(i), int(slots.attack[i]))

    def _show(self, image: Tensor, attack: int) -> None:
        with self._probe.attributed(self._probe.evidence.attacks[attack]), torch.no_grad():
            self._probe(image[None])

    def _leads(self, slots: Slots, logits: Tensor) -> Tensor:
        clean = self._probe.logits[:, slots.rows, slots.columns].argmax(dim=0)
        return _lead(logits, clean) > 0

    def _add_to_map(self, slots: Slots) -> None:
        seen = self._probe.evidence
        before = seen.flip_distance[slots.rows, slots.columns]
        closer = slots.distance < before
        seen.flip_distance[slots.rows, slots.columns] = torch.where(closer, slots.distance, before)
        by = seen.flipped_by[slots.rows, slots.columns]
        seen.flipped_by[slots.rows, slots.columns] = torch.where(closer, slots.attack, by)

    def _show_worst(self) -> None:
        """The worst crops of the other kinds as whole images, which know about every pixel."""
        for worst in self.worst.values():
            for i in (worst.ratio > worst.shown).nonzero()[:, 0].tolist():
                place = worst.place[i : i + 1]
                crop = worst.crop[i : i + 1]
                image = self.windows.pasted(self._probe.image, place[:, 0], place[:, 1], crop)
                self._show(image, int(worst.attack[i]))
            worst.shown = worst.ratio.clone()

    def note(self, kind: Kind, ratio: Tensor, distance: Tensor, crops: Tensor, rows: Tensor, columns: Tensor) -> None:
        """Keep the worst of these crops ``(B, C, h, w)`` for each decade of distance."""
        worst = self.worst[kind]
        largest, row = worst_by_decade(ratio, distance)
        larger = largest > worst.ratio
        worst.ratio = torch.where(larger, largest, worst.ratio)
        worst.attack = torch.where(larger, self._probe.current, worst.attack)
        worst.place = torch.where(larger[:, None], torch.stack([rows[row], columns[row]], dim=1), worst.place)
        if larger.device.type == "cpu":
            worst.crop[larger] = crops[row[larger]]
        else:
            worst.crop = torch.where(larger[:, None, None, None], crops[row], worst.crop)


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
        if closer.device.type == "cpu":  # copying only what changed would cost a synchronisation elsewhere
            self.point[closer] = images[row[closer]]
        else:
            self.point = torch.where(closer[:, None, None, None], images[row], self.point)


class CropProbe:
    """The model on crops ``(B, C, h, w) -> (B, K, h, w)``, one pixel for each row; what it sees is noted by pixel.

    A call must have one row for every pixel, in order. Attacks that repeat, choose or reorder rows call the probe that
    :meth:`for_rows` gives them; that of a single pixel takes any number of rows.

    Args:
        crops: the image's crops.
        probe: the image's probe: counts costs, and receives what is committed.
        rows, columns: ``(P,)``, the pixels.
    """

    def __init__(self, crops: Crops, probe: Probe, rows: Tensor, columns: Tensor) -> None:
        self._crops, self._probe = crops, probe
        self.rows, self.columns = rows, columns
        self.inner_rows, self.inner_columns = crops.windows.inside(rows, columns)
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
        part._pixel = index if self._pixel is None else self._pixel[index]
        return part

    def __call__(self, images: Tensor) -> Tensor:
        """Logits of crops, differentiable; raises ValueError for rows that belong to no pixel."""
        if len(images) != len(self.rows):
            if len(self.rows) != 1:
                raise ValueError(f"expected {len(self.rows)} rows, one for each pixel, got {len(images)}")
            return self.for_rows(torch.zeros(len(images), dtype=torch.int64))(images)
        images = images.to(self._probe.image.dtype)
        logits = self._probe.counted(images)
        with torch.no_grad():
            self._record(images.detach(), at_least_float32(logits.detach()))
        return logits

    def _record(self, images: Tensor, logits: Tensor) -> None:
        distance = row_norms(images - self.clean)
        usable = distance.isfinite() & (distance > 0)
        distance = torch.where(usable, distance, math.inf)
        row = torch.arange(len(images), device=images.device)
        z = logits[row, :, self.inner_rows, self.inner_columns]  # (B, K)
        lead = _lead(z, self._label)
        flipped = (lead > 0) & lead.isfinite() & usable
        self._found.add(torch.where(flipped, distance, math.inf), images, z, self._pixel)
        claim = self._probe.claim
        if not claim.cheap:
            return
        wide, lead = z[:, :, None, None], lead[:, None, None]
        back = claim.way_back(lead, wide, self._label[:, None, None])[:, 0, 0]
        ratio = torch.where(flipped, back + self._radius, 0.0) / distance
        self._crops.note(Kind.TWO_BALL, ratio, distance, images, self.rows, self.columns)
        # One pixel moves no further than the whole map does.
        expansion = claim.expansions(wide - self.logits[:, :, None, None], distance)
        if expansion is not None:
            self._crops.note(Kind.LIPSCHITZ, expansion, distance, images, self.rows, self.columns)

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


def _lead(logits: Tensor, label: Tensor) -> Tensor:
    """Of the best other class over the label's ``(B,)``, logits ``(B, K)``; a tie is no flip."""
    own = logits.gather(1, label[:, None])[:, 0]
    return logits.scatter(1, label[:, None], -math.inf).amax(dim=1) - own


def _disjoint(top: Tensor, left: Tensor, height: int, width: int) -> list[Tensor]:
    """Crops that begin at ``top``, ``left`` (P,) in packs of which no two overlap, each crop into the first it fits."""
    y, x = top.cpu().numpy(), left.cpu().numpy()
    pack = np.full(len(y), -1)
    for i in np.lexsort((x, y)):
        taken = np.unique(pack[(np.abs(y - y[i]) < height) & (np.abs(x - x[i]) < width)])
        taken = taken[taken >= 0]
        gaps = np.nonzero(taken != np.arange(len(taken)))[0]
        pack[i] = gaps[0] if len(gaps) else len(taken)
    return [torch.from_numpy(np.nonzero(pack == number)[0]) for number in range(pack.max(initial=-1) + 1)]
