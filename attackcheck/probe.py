"""Every forward pass is evidence: the probe stands between attacks and model and remembers what it saw.

An attack calls the :class:`Probe` as if it were the model. For every point that it visits the probe compares the
prediction with the clean one and keeps, for every pixel of the image, the smallest distance at which it was seen
flipped; for the pixels under attack also the point itself; and the worst point of each kind of claim violation. Nothing
here decides anything: see :mod:`attackcheck.recheck`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import Tensor

from attackcheck.claims import Claim
from attackcheck.receptive import Windows

__all__ = [
    "SCALES",
    "Cost",
    "Evidence",
    "Kind",
    "Probe",
    "Slots",
    "Witnesses",
    "at_least_float32",
    "row_norms",
    "worst_by_decade",
]


SPARSE = 4
"""Where fewer than this share of the pixels are flipped in any row, only those are looked at closely."""


class Kind(Enum):
    """Ways to break a claim; the value is the sentence that says what was seen."""

    PIXEL = "a pixel changed its class inside its certified radius"
    TWO_BALL = "certified balls of two different classes overlap"
    SET = "a set of pixels changed class on less than its joint budget"
    LIPSCHITZ = "the logits moved further than the Lipschitz constant permits"
    METRIC = "a measure of the data set fell below its certified worst case"
    RATE = "more pixels changed class inside their radius than its confidence permits"
    GADGET = "on a network with known distances the certifier's radius is beyond the distance"


@dataclass
class Cost:
    """What an attack spent: rows sent forward and backward through the model, and seconds."""

    forward: int = 0
    backward: int = 0
    seconds: float = 0.0


SCALES = 8
"""Distances are told apart by decades, from below 1e-5 to above 10."""


@dataclass
class Witnesses:
    """The worst points seen of one kind, one for each decade of distance.

    A ratio above 1 contradicts the claim in the deployed arithmetic. Rounding fakes large ratios at tiny distances;
    with one place for each decade they cannot crowd out the real ones.
    """

    ratio: Tensor  # (SCALES,) float64
    point: Tensor  # (SCALES, C, H, W)
    attack: Tensor  # (SCALES,) int64
    base: Tensor | None = None  # (SCALES, C, H, W) where the distance is from, None: the clean image


@dataclass
class Slots:
    """The pixels under attack, with the closest point at which each was seen flipped."""

    rows: Tensor  # (M,)
    columns: Tensor  # (M,)
    distance: Tensor  # (M,) float64, inf while not flipped
    point: Tensor  # (M, C, H, W), or the crops (M, C, h, w) of ``windows``; meaningless while not flipped
    target: Tensor  # (M,) class there, -1
    attack: Tensor  # (M,) index into the attacks, -1
    per_attack: list[Tensor]  # of (M,), smallest distance by attack
    windows: Windows | None = None  # where points are crops
    logits: Tensor | None = None  # (M, K) of each slot's pixel at its point, where points are crops
    confirmed: bool | None = None  # whether the whole image showed what crops did; None: not asked since the last one


@dataclass
class Evidence:
    """What was seen of one image. Distances are float64 on the [0, 1] pixel scale, inf where no flip was seen."""

    flip_distance: Tensor  # (H, W)
    flipped_by: Tensor  # (H, W) int64, index into ``attacks``, -1 where never flipped
    slots: Slots
    witnesses: dict[Kind, Witnesses]
    pairs: Witnesses | None = None  # of LIPSCHITZ, between two free points
    attacks: list[str] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)


class Probe:
    """The model under test, seen by attacks as a callable ``(B, C, H, W) -> (B, K, H, W)``.

    Args:
        model: the model as deployed.
        image: ``(C, H, W)``, the clean image.
        logits: ``(K, H, W)``, the model's logits there.
        radius: ``(H, W)`` float64, the certified radii there.
        claim: the claim, asked for radii and expansions at the points visited.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        image: Tensor,
        logits: Tensor,
        radius: Tensor,
        claim: Claim,
    ) -> None:
        logits = at_least_float32(logits)
        self._model = model
        self._image = image
        self._logits = logits
        self._clean = logits.argmax(dim=0)  # (H, W)
        self._radius_here = radius.to(logits.dtype)
        self._claim = claim
        self._current = -1
        device = image.device
        none = torch.zeros(0, dtype=torch.int64, device=device)
        self.evidence = Evidence(
            flip_distance=torch.full_like(radius, math.inf),
            flipped_by=torch.full(radius.shape, -1, dtype=torch.int64, device=device),
            slots=_empty(image, none, none, 0),
            # metrics and rates are no single point, and gadgets are other networks
            witnesses={kind: self._nobody() for kind in Kind if kind not in (Kind.METRIC, Kind.RATE, Kind.GADGET)},
        )

    def _nobody(self) -> Witnesses:
        device = self._image.device
        zeros = torch.zeros(SCALES, dtype=torch.float64, device=device)
        point = self._image.new_empty(SCALES, *self._image.shape)  # memory is taken by what is written only
        return Witnesses(zeros, point, torch.full((SCALES,), -1, dtype=torch.int64, device=device))

    @property
    def image(self) -> Tensor:
        """The clean image ``(C, H, W)``."""
        return self._image

    @property
    def logits(self) -> Tensor:
        """Its logits ``(K, H, W)``."""
        return self._logits

    @property
    def radius(self) -> Tensor:
        """The certified radii there, ``(H, W)`` in the precision of the logits."""
        return self._radius_here

    @property
    def claim(self) -> Claim:
        """What is claimed."""
        return self._claim

    @property
    def current(self) -> int:
        """Index of the attack that points are credited to, -1 for none."""
        return self._current

    def aim(self, rows: Tensor, columns: Tensor, windows: Windows | None = None) -> None:
        """Keep the closest points of these pixels ``(M,)`` from now on; those of earlier ones are dropped.

        With ``windows`` points are kept as crops, and only those that a crop probe hands in.
        """
        device = self._image.device
        self.evidence.slots = _empty(
            self._image, rows.to(device), columns.to(device), len(self.evidence.attacks), windows
        )
        if windows is not None:
            self.evidence.slots.logits = self._logits.new_zeros(len(rows), len(self._logits))

    def closest(self, slot: int) -> Tensor:
        """The closest point ``(C, H, W)`` of a slot, as a whole image."""
        slots = self.evidence.slots
        if slots.windows is None:
            return slots.point[slot]
        here = slice(slot, slot + 1)
        return slots.windows.pasted(self._image, slots.rows[here], slots.columns[here], slots.point[here])

    @contextmanager
    def attributed(self, attack: str) -> Iterator[Cost]:
        """Points visited inside are credited to ``attack``, and so is the time."""
        seen = self.evidence
        if attack not in seen.attacks:
            seen.attacks.append(attack)
            seen.costs.append(Cost())
            seen.slots.per_attack.append(torch.full_like(seen.slots.distance, math.inf))
        before, self._current = self._current, seen.attacks.index(attack)
        cost, start = seen.costs[self._current], time.perf_counter()
        try:
            yield cost
        finally:
            cost.seconds += time.perf_counter() - start
            self._current = before

    def __call__(self, images: Tensor) -> Tensor:
        """Logits ``(B, K, H, W)``, differentiable in the images; the points are recorded on the way."""
        images = images.to(self._image.dtype)
        logits = self.counted(images)
        with torch.no_grad():
            self._record(images.detach(), at_least_float32(logits.detach()))
        return logits

    def saw(self, image: Tensor, logits: Tensor) -> None:
        """Record a point ``(C, H, W)`` whose logits ``(K, H, W)`` are known."""
        with torch.no_grad():
            self._record(image[None], logits[None])

    def counted(self, images: Tensor) -> Tensor:
        """The model's logits, whose cost is noted and nothing else; crops may be given."""
        logits = self._model(images)
        if self._current >= 0:
            cost = self.evidence.costs[self._current]
            cost.forward += images.shape[0]
            if logits.requires_grad:
                logits.register_hook(_count(cost, images.shape[0]))  # type: ignore[no-untyped-call]
        return logits

    def pairs(self, images: Tensor) -> Tensor:
        """Logits as of a call; the movement between neighbours (0 and 1, 2 and 3, ...) is recorded as well."""
        images = images.to(self._image.dtype)
        logits = self(images)
        with torch.no_grad():
            self._record_pairs(images.detach(), at_least_float32(logits.detach()))
        return logits

    def _record_pairs(self, images: Tensor, logits: Tensor) -> None:
        start, end = images[::2], images[1::2]
        distance = row_norms(end - start)
        distance = torch.where(distance.isfinite() & (distance > 0), distance, math.inf)
        expansion = self._claim.expansions(logits[1::2] - logits[::2], distance)
        if expansion is None:
            return
        if self.evidence.pairs is None:
            self.evidence.pairs = self._nobody()
            self.evidence.pairs.base = torch.empty_like(self.evidence.pairs.point)
        self._keep(self.evidence.pairs, expansion, distance, end, start)

    def _record(self, images: Tensor, logits: Tensor) -> None:
        # On a CPU this must stay far below the cost of a forward pass: argmax over classes alone would exceed it.
        seen = self.evidence
        distance = row_norms(images - self._image)  # (B,)
        usable = distance.isfinite() & (distance > 0)
        distance = torch.where(usable, distance, math.inf)
        own = logits.gather(1, self._clean.expand(len(logits), 1, *self._clean.shape)).squeeze(1)
        lead = logits.amax(dim=1) - own  # (B, H, W), of the best other class where it is above 0; a tie is no flip
        flipped = (lead > 0) & (lead < math.inf) & usable[:, None, None]
        if len(seen.slots.rows) and seen.slots.windows is None:
            self._record_slots(images, distance, flipped, logits)
        expansion = self._claim.expansions(logits - self._logits, distance) if self._claim.cheap else None
        if expansion is not None:
            self._keep(seen.witnesses[Kind.LIPSCHITZ], expansion, distance, images)
        place = self._flipped_somewhere(flipped)
        if place is None:
            self._record_flips(images, distance, flipped, lead, logits)
        elif len(place):
            self._record_flips(images, distance, _at(flipped, place), _at(lead, place), _at(logits, place), place)

    def _flipped_somewhere(self, flipped: Tensor) -> Tensor | None:
        """Indices of the pixels that are flipped in any row, ``(P,)``; None where looking at all of them is cheaper."""
        if flipped.device.type != "cpu":  # how many there are would cost a synchronisation elsewhere
            return None
        place = flipped.any(dim=0).flatten().nonzero()[:, 0]
        return place if SPARSE * len(place) <= self._clean.numel() else None

    def _record_flips(
        self,
        images: Tensor,
        distance: Tensor,
        flipped: Tensor,
        lead: Tensor,
        logits: Tensor,
        place: Tensor | None = None,
    ) -> None:
        """Record what depends on flips; with ``place`` (P,) all maps are of those pixels only, ``(..., 1, P)``."""
        seen = self.evidence
        radius, clean = self._radius_here, self._clean
        if place is not None:
            radius, clean = _at(radius, place), _at(clean, place)
        nearest = torch.where(flipped, distance[:, None, None], math.inf).amin(dim=0)
        if place is None:
            closer = nearest < seen.flip_distance
            seen.flip_distance = torch.where(closer, nearest, seen.flip_distance)
            seen.flipped_by = torch.where(closer, self._current, seen.flipped_by)
        else:
            row, column = place // self._clean.shape[1], place % self._clean.shape[1]
            before = seen.flip_distance[row, column]
            closer = nearest[0] < before
            seen.flip_distance[row, column] = torch.where(closer, nearest[0], before)
            seen.flipped_by[row[closer], column[closer]] = self._current
        broken = torch.where(flipped, radius, 0.0).flatten(1).amax(dim=1)
        self._keep(seen.witnesses[Kind.PIXEL], broken / distance, distance, images)
        # A certifier that is a function of images may be costly: it is asked about the final points only.
        if not self._claim.cheap:
            return
        back = self._claim.way_back(lead, logits, clean)
        sums = torch.where(flipped, back + radius, 0.0).flatten(1)  # (B, H * W)
        self._keep(seen.witnesses[Kind.TWO_BALL], sums.amax(dim=1) / distance, distance, images)
        factor = self._claim.joint_factor
        if factor is not None:
            self._keep(
                seen.witnesses[Kind.SET], factor * torch.linalg.vector_norm(sums, dim=1) / distance, distance, images
            )

    def _record_slots(self, images: Tensor, distance: Tensor, flipped: Tensor, logits: Tensor) -> None:
        slots = self.evidence.slots
        reached = flipped[:, slots.rows, slots.columns]  # (B, M)
        nearest, row = torch.where(reached, distance[:, None], math.inf).min(dim=0)  # (M,)
        if self._current >= 0:
            slots.per_attack[self._current] = torch.minimum(slots.per_attack[self._current], nearest)
        closer = nearest < slots.distance
        slots.distance = torch.where(closer, nearest, slots.distance)
        slots.attack = torch.where(closer, self._current, slots.attack)
        predicted = logits[row, :, slots.rows, slots.columns].argmax(dim=1)  # (M,)
        slots.target = torch.where(closer, predicted, slots.target)
        if closer.device.type == "cpu":  # copying only what changed would cost a synchronisation elsewhere
            slots.point[closer] = images[row[closer]]
        else:
            slots.point = torch.where(closer[:, None, None, None], images[row], slots.point)

    def _keep(
        self, witnesses: Witnesses, ratio: Tensor, distance: Tensor, images: Tensor, base: Tensor | None = None
    ) -> None:
        largest, row = worst_by_decade(ratio, distance)
        worse = largest > witnesses.ratio
        witnesses.ratio = torch.where(worse, largest, witnesses.ratio)
        witnesses.attack = torch.where(worse, self._current, witnesses.attack)
        witnesses.point = _replaced(witnesses.point, worse, images, row)
        if witnesses.base is not None and base is not None:
            witnesses.base = _replaced(witnesses.base, worse, base, row)


def _at(maps: Tensor, place: Tensor) -> Tensor:
    """Maps ``(..., H, W)`` at pixels ``(P,)``, as ``(..., 1, P)``."""
    return maps.flatten(-2).index_select(-1, place).unsqueeze(-2)


def _empty(image: Tensor, rows: Tensor, columns: Tensor, attacks: int, windows: Windows | None = None) -> Slots:
    pixels, device = len(rows), image.device
    size = image.shape[1:] if windows is None else (windows.height, windows.width)
    infinite = torch.full((pixels,), math.inf, dtype=torch.float64, device=device)
    nobody = torch.full((pixels,), -1, dtype=torch.int64, device=device)
    return Slots(
        rows=rows,
        columns=columns,
        distance=infinite,
        point=image.new_empty(pixels, image.shape[0], *size),
        target=nobody,
        attack=nobody.clone(),
        per_attack=[infinite.clone() for _ in range(attacks)],
        windows=windows,
    )


def worst_by_decade(ratio: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
    """The largest ratio ``(SCALES,)`` float64 among the rows ``(B,)`` of each decade of distance, and their indices."""
    scale = (distance.log10().floor() + 6).clamp(0, SCALES - 1)  # (B,)
    places = torch.arange(SCALES, device=distance.device)
    ratio = torch.where(ratio.isnan() | distance.isinf(), 0.0, ratio.double())
    return torch.where(scale[:, None] == places, ratio[:, None], 0.0).max(dim=0)


def _replaced(points: Tensor, worse: Tensor, images: Tensor, row: Tensor) -> Tensor:
    """``points`` (SCALES, ...) with ``images[row]`` where ``worse``."""
    if worse.device.type == "cpu":
        points[worse] = images[row[worse]]
        return points
    return torch.where(worse[:, None, None, None], images[row], points)


def at_least_float32(logits: Tensor) -> Tensor:
    return logits.float() if logits.element_size() < 4 else logits


def row_norms(x: Tensor) -> Tensor:
    """L2 norm of each row in float64, short sums in the data's own precision, long ones in float64; overwrites x."""
    # Much faster on a CPU than vector_norm over a dimension of a few hundred numbers.
    return x.square_().sum(dim=3).flatten(1).sum(dim=1, dtype=torch.float64).sqrt()


def _count(cost: Cost, rows: int) -> Callable[[Tensor], None]:
    def hook(gradient: Tensor) -> None:  # noqa: ARG001
        cost.backward += rows

    return hook
