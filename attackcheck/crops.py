"""How what attacks find in crops becomes evidence about the whole image.

An attack on one pixel sees the crop that the pixel's logits depend on (:mod:`attackcheck.crop_probe`). The perturbation
is zero outside the crop, so its length is that of the image; yet nothing of it counts until :meth:`Crops.confirm` has
pasted the closest crops into whole images, many into one where they do not overlap, and the whole image showed the same
logits. The most telling crops are then shown to the whole image one by one, as evidence about all of its pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from attackcheck import synchrony
from attackcheck.cones import Cone
from attackcheck.probe import (
    SCALES,
    Kind,
    Probe,
    Slots,
    at_least_float32,
    replaced,
    row_norms,
    worst_by_decade,
)
from attackcheck.receptive import Windows

__all__ = ["Crops", "disjoint", "lead_of"]

Model = Callable[[Tensor], Tensor]

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
        cone: the model computed for one pixel of a crop, None where only all of a crop can be.
    """

    def __init__(self, probe: Probe, windows: Windows, tolerance: Tensor, cone: Cone | None = None) -> None:
        self.windows, self.cone = windows, cone
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

    def around(self, model: Model, rows: Tensor, columns: Tensor) -> tuple[Model, Tensor, Tensor]:
        """What computes the logits of these pixels ``(P,)`` in their crops, and where it puts them."""
        rows, columns = self.windows.inside(rows, columns)
        return (model, rows, columns) if self.cone is None else self.cone.at(rows, columns)

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
        self._show_telling(slots, promise)
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
        for pack in disjoint(top, left, self.windows.height, self.windows.width):
            part = index[pack.to(index.device)]
            rows, columns = slots.rows[part], slots.columns[part]
            image = self.windows.pasted(self._probe.image, rows, columns, slots.point[part])
            name = self._probe.evidence.attacks[int(slots.attack[part[0]])]
            with self._probe.attributed(name), torch.no_grad():
                whole = at_least_float32(self._probe.counted(image[None])[0])
                logits[part] = whole[:, rows, columns].T.to(logits.dtype)
                promise[:, part] = self._promise(whole, rows, columns) / slots.distance[part]
        return logits, promise

    def _promise(self, logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """How far logits ``(K, H, W)`` moved inside these crops, and both radii of what flipped there, ``(2, P)``."""
        z, clean = (self.windows.cut(values, rows, columns) for values in (logits, self._probe.logits))
        label = clean.argmax(dim=1)  # (P, h, w)
        lead = z.amax(dim=1) - z.gather(1, label[:, None])[:, 0]
        radius = self.windows.cut(self._probe.radius[None], rows, columns)[:, 0]
        both = torch.where(lead > 0, self._probe.claim.way_back(lead, z, label) + radius, 0.0)
        moved = z.sub_(clean).square_().flatten(1).sum(dim=1, dtype=torch.float64)
        return torch.stack([moved, both.square_().flatten(1).sum(dim=1, dtype=torch.float64)]).sqrt()

    def _show(self, places: Tensor, crops: Tensor, attacks: Sequence[int]) -> None:
        """Each of these crops ``(P, C, h, w)`` around ``places`` (P, 2) alone in the whole image, for all its pixels.

        Crops so far apart that no window meets two of them share one pass; each is then recorded with its own logits.
        """
        probe, height, width = self._probe, self.windows.height, self.windows.width
        top, left = self.windows.origins(places[:, 0], places[:, 1])
        for pack in disjoint(top, left, 2 * height, 2 * width):
            pack = pack.to(top.device)
            rows, columns = places[pack].unbind(dim=1)
            with probe.attributed(probe.evidence.attacks[attacks[int(pack[0])]]), torch.no_grad():
                together = self.windows.pasted(probe.image, rows, columns, crops[pack])
                logits = at_least_float32(probe.counted(together[None])[0])
            for i in pack.tolist():
                y, x = int(top[i]), int(left[i])
                near = (slice(None), slice(max(0, y - height), y + 2 * height), slice(max(0, x - width), x + 2 * width))
                image, alone = probe.image.clone(), probe.logits.clone()
                image[:, y : y + height, x : x + width] = crops[i]
                alone[near] = logits[near]
                with probe.attributed(probe.evidence.attacks[attacks[i]]):
                    probe.saw(image, alone)

    def _show_telling(self, slots: Slots, promise: Tensor) -> None:
        """The worst crops of the other kinds, and the closest points that promise most, are shown to all pixels."""
        places, crops, attacks = [], [], []
        for worst in self.worst.values():
            new = (worst.ratio > worst.shown).nonzero()[:, 0]
            places.append(worst.place[new])
            crops.append(worst.crop[new])
            attacks += worst.attack[new].tolist()
            worst.shown = worst.ratio.clone()
        best = torch.where(slots.distance.isfinite(), promise, -1.0).topk(min(PROMISING, promise.shape[1]), dim=1)
        chosen = torch.unique(best.indices[best.values > 0])
        places.append(torch.stack([slots.rows[chosen], slots.columns[chosen]], dim=1))
        crops.append(slots.point[chosen])
        self._show(torch.cat(places), torch.cat(crops), attacks + slots.attack[chosen].tolist())

    def _leads(self, slots: Slots, logits: Tensor) -> Tensor:
        clean = self._probe.logits[:, slots.rows, slots.columns].argmax(dim=0)
        return lead_of(logits, clean) > 0

    def _add_to_map(self, slots: Slots) -> None:
        seen = self._probe.evidence
        before = seen.flip_distance[slots.rows, slots.columns]
        closer = slots.distance < before
        seen.flip_distance[slots.rows, slots.columns] = torch.where(closer, slots.distance, before)
        by = seen.flipped_by[slots.rows, slots.columns]
        seen.flipped_by[slots.rows, slots.columns] = torch.where(closer, slots.attack, by)

    def note(
        self, ratios: Mapping[Kind, Tensor], distance: Tensor, crops: Tensor, rows: Tensor, columns: Tensor
    ) -> None:
        """Keep the worst of these crops ``(B, C, h, w)`` of each kind for each decade of distance."""
        kept = [self.worst[kind] for kind in ratios]
        largest, row = worst_by_decade(torch.stack(list(ratios.values())), distance)  # (N, SCALES)
        larger = largest > torch.stack([worst.ratio for worst in kept])
        if synchrony.readable(larger) and not bool(larger.any()):  # asking would cost a synchronisation elsewhere
            return
        place = torch.stack([rows[row], columns[row]], dim=2)
        for i, worst in enumerate(kept):
            worst.ratio = torch.where(larger[i], largest[i], worst.ratio)
            worst.attack = torch.where(larger[i], self._probe.current, worst.attack)
            worst.place = torch.where(larger[i, :, None], place[i], worst.place)
            worst.crop = replaced(worst.crop, larger[i], crops, row[i])


def lead_of(logits: Tensor, label: Tensor) -> Tensor:
    """Of the best other class over the label's ``(B,)``, logits ``(B, K)``; a tie is no flip."""
    own = logits.gather(1, label[:, None])[:, 0]
    return logits.scatter(1, label[:, None], -math.inf).amax(dim=1) - own


def disjoint(top: Tensor, left: Tensor, height: int, width: int) -> list[Tensor]:
    """Crops that begin at ``top``, ``left`` (P,) in packs of which no two overlap, each crop into the first it fits."""
    y, x = top.cpu().numpy(), left.cpu().numpy()
    pack = np.full(len(y), -1)
    for i in np.lexsort((x, y)):
        taken = np.unique(pack[(np.abs(y - y[i]) < height) & (np.abs(x - x[i]) < width)])
        taken = taken[taken >= 0]
        gaps = np.nonzero(taken != np.arange(len(taken)))[0]
        pack[i] = gaps[0] if len(gaps) else len(taken)
    return [torch.from_numpy(np.nonzero(pack == number)[0]) for number in range(pack.max(initial=-1) + 1)]
