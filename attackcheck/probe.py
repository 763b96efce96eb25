"""Every forward pass is evidence: the probe stands between attacks and model and remembers what it saw.

An attack calls the :class:`Probe` as if it were the model. For every point that it visits the probe compares the
prediction with the clean one and keeps, for every pixel of the image, the smallest distance at which it was seen
flipped; for the pixels under attack also the point itself; and the worst point of each kind of claim violation. Nothing
here decides anything: see :mod:`attackcheck.recheck`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from functools import cache

import torch
from torch import Tensor

from attackcheck import synchrony
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
    "replaced",
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
        place = torch.arange(self._clean.numel(), device=image.device)
        self._own = self._clean.flatten() * len(place) + place  # where the clean classes are among K * H * W logits
        self._radius_here = radius.to(logits.dtype)
        self._claim = claim
        self._current = -1
        device = image.device
        none = torch.zeros(0, dtype=torch.int64, device=device)
        self._aimed = none  # (M,) of the slots' pixels
        self.evidence = Evidence(
            flip_distance=torch.full(radius.shape, math.inf, dtype=radius.dtype, device=device),
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
        rows, columns = rows.to(self._image.device), columns.to(self._image.device)
        self.evidence.slots = _empty(self._image, rows, columns, len(self.evidence.attacks), windows)
        self._aimed = rows * self._image.shape[2] + columns
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

    def counted(self, images: Tensor, model: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The model's logits, whose cost is noted and nothing else; crops may be given.

        ``model`` stands for it where it is known to compute the same.
        """
        logits = (self._model if model is None else model)(images)
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
        self._keep([self.evidence.pairs], expansion[None], distance, end, start)

    def _record(self, images: Tensor, logits: Tensor) -> None:
        # On a CPU this must stay far below the cost of a forward pass: argmax over classes alone would exceed it.
        distance = row_norms(images - self._image)  # (B,)
        # the clean image and broken points are no evidence: at an infinite distance nothing counts
        distance = torch.where(distance > 0, distance, math.inf)
        lead = logits.amax(dim=1).flatten(1)  # (B, H * W)
        # of the best other class where it is above 0; a tie is no flip
        lead = lead.sub_(logits.flatten(1).index_select(1, self._own))
        slots = self.evidence.slots
        if len(slots.rows) and slots.windows is None:
            self._record_slots(images, distance, lead, logits)
        ratios = {}
        expansion = self._claim.expansions(logits - self._logits, distance) if self._claim.cheap else None
        if expansion is not None:
            ratios[Kind.LIPSCHITZ] = expansion
        place = self._flipped_somewhere(lead)
        if place is None or len(place):
            ratios |= self._record_flips(distance, lead, logits.flatten(2), place)
        if ratios:
            kept = [self.evidence.witnesses[kind] for kind in ratios]
            self._keep(kept, torch.stack(list(ratios.values())), distance, images)

    def _flipped_somewhere(self, lead: Tensor) -> Tensor | None:
        """Indices of the pixels that may be flipped in any row, ``(P,)``; None where looking at all is cheaper."""
        if not synchrony.readable(lead):  # how many there are would cost a synchronisation elsewhere
            return None
        place = (~(lead.amax(dim=0) <= 0)).nonzero()[:, 0]  # NaN in one row must not hide another's flip
        return place if SPARSE * len(place) <= lead.shape[1] else None

    def _record_flips(self, distance: Tensor, lead: Tensor, logits: Tensor, place: Tensor | None) -> dict[Kind, Tensor]:
        """Record flips of all pixels, or of those at ``place`` (P,) only, and the ratios ``(B,)`` that depend on them.

        Args:
            distance: ``(B,)`` float64.
            lead: ``(B, H * W)``.
            logits: ``(B, K, H * W)``.
            place: which pixels to look at.
        """
        seen = self.evidence
        radius, clean = self._radius_here.flatten(), self._clean.flatten()
        if place is not None:
            lead, logits = lead.index_select(1, place), logits.index_select(2, place)
            radius, clean = radius[place], clean[place]
        flipped = (lead > 0) & (lead < math.inf)  # (B, P)
        nearest = torch.where(flipped, distance[:, None], math.inf).amin(dim=0)
        before = seen.flip_distance.view(-1)
        closer = nearest < (before if place is None else before[place])
        if place is None:
            shape = seen.flip_distance.shape
            seen.flip_distance = torch.where(closer, nearest, before).view(shape)
            seen.flipped_by = torch.where(closer.view(shape), self._current, seen.flipped_by)
        else:
            closer = closer.nonzero()[:, 0]
            before[place[closer]] = nearest[closer]
            seen.flipped_by.view(-1)[place[closer]] = self._current
        ratios = {Kind.PIXEL: torch.where(flipped, radius, 0.0).amax(dim=1) / distance}
        # A certifier that is a function of images may be costly: it is asked about the final points only.
        if not self._claim.cheap:
            return ratios
        back = self._claim.way_back(lead[:, None], logits[:, :, None], clean[None])[:, 0]
        sums = torch.where(flipped, back + radius, 0.0)  # (B, P)
        ratios[Kind.TWO_BALL] = sums.amax(dim=1) / distance
        factor = self._claim.joint_factor
        if factor is not None:
            ratios[Kind.SET] = factor * torch.linalg.vector_norm(sums, dim=1) / distance
        return ratios

    def _record_slots(self, images: Tensor, distance: Tensor, lead: Tensor, logits: Tensor) -> None:
        slots = self.evidence.slots
        there = lead.index_select(1, self._aimed)  # (B, M)
        nearest, row = torch.where((there > 0) & (there < math.inf), distance[:, None], math.inf).min(dim=0)  # (M,)
        if self._current >= 0:
            slots.per_attack[self._current] = torch.minimum(slots.per_attack[self._current], nearest)
        closer = nearest < slots.distance
        if synchrony.readable(closer):  # copying only what changed would cost a synchronisation elsewhere
            closer = closer.nonzero()[:, 0]
            if not len(closer):
                return
            row = row[closer]
            slots.distance[closer] = nearest[closer]
            slots.attack[closer] = self._current
            slots.target[closer] = logits[row, :, slots.rows[closer], slots.columns[closer]].argmax(dim=1)
            slots.point[closer] = images[row]
        else:
            slots.distance = torch.where(closer, nearest, slots.distance)
            slots.attack = torch.where(closer, self._current, slots.attack)
            predicted = logits[row, :, slots.rows, slots.columns].argmax(dim=1)  # (M,)
            slots.target = torch.where(closer, predicted, slots.target)
            slots.point = torch.where(closer[:, None, None, None], images[row], slots.point)

    def _keep(
        self,
        kept: Sequence[Witnesses],
        ratio: Tensor,
        distance: Tensor,
        images: Tensor,
        base: Tensor | None = None,
    ) -> None:
        """Keep the rows that are worse than what was kept; ``ratio`` (N, B) is that of each kind of witnesses."""
        largest, row = worst_by_decade(ratio, distance)
        worse = largest > torch.stack([witnesses.ratio for witnesses in kept])  # (N, SCALES)
        if synchrony.readable(worse) and not bool(worse.any()):  # asking would cost a synchronisation elsewhere
            return
        for witnesses, largest_, row_, worse_ in zip(kept, largest, row, worse, strict=True):
            witnesses.ratio = torch.where(worse_, largest_, witnesses.ratio)
            witnesses.attack = torch.where(worse_, self._current, witnesses.attack)
            witnesses.point = replaced(witnesses.point, worse_, images, row_)
            if witnesses.base is not None and base is not None:
                witnesses.base = replaced(witnesses.base, worse_, base, row_)


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


@cache
def _edges(device: torch.device) -> tuple[Tensor, Tensor]:
    """Where decades of distance begin, and their numbers, kept on each device."""
    edges = [10.0**power for power in range(2 - SCALES + 1, 2)]
    return torch.tensor(edges, dtype=torch.float64, device=device), torch.arange(SCALES, device=device)[:, None]


def worst_by_decade(ratio: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
    """The largest of the ratios ``(..., B)`` in each decade of the rows' distances ``(B,)`` float64, and their rows.

    Returns:
        ``(..., SCALES)`` float64, 0 where there is none, and as many indices.
    """
    edges, places = _edges(distance.device)
    scale = torch.bucketize(distance, edges, right=True)  # (B,)
    ratio = torch.where((ratio > 0) & (distance < math.inf), ratio.double(), 0.0)  # NaN is no evidence
    return torch.where(scale == places, ratio.unsqueeze(-2), 0.0).max(dim=-1)


def replaced(points: Tensor, worse: Tensor, images: Tensor, row: Tensor) -> Tensor:
    """``points`` (M, C, H, W) with ``images[row]`` where ``worse`` (M,); in place on a CPU."""
    if synchrony.readable(worse):  # copying only what changed would cost a synchronisation elsewhere
        index = worse.nonzero()[:, 0]
        points[index] = images[row[index]]
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
