"""Radii and costs that follow from logits, sorted values and the slopes of a network's tail."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attackcheck.claims import RadiusClaim
from attackcheck.errors import InputError
from attackcheck.lipschitz.composition import compose
from attackcheck.lipschitz.promises import taken_whole
from attackcheck.lipschitz.rules import OutOfTime, read
from attackcheck.measures.costs import top_two
from attackcheck.measures.sharing import in_order
from attackcheck.refined.costs import CHUNK, RefinedCosts
from attackcheck.refined.slopes import Slopes, measure_slopes
from attackcheck.refined.tail import Tail, find_tail
from attackcheck.tracing import Untraceable, trace

__all__ = ["RefinedCertificate", "refine"]

Model = Callable[[Tensor], Tensor]

ERROR_MARGIN = 8.0
"""Sorted values and logits count as wrong by so many times the largest error of float32 seen on one image."""

ROUNDINGS = 64.0
"""Distances are results of fewer operations on positive numbers, each right to half a unit in the last place."""

FAR = 1e12
"""Distances at which orders may change are cut off here: no budget is as large."""

STEEP = 1e-30
"""Slopes are at least this, so that nothing is divided by zero."""


def refine(
    model: Model, input_shape: Sequence[int], *, features: float | None = None, budget: float | None = None
) -> RefinedCertificate:
    """The refined certificate of a network, from its weights alone.

    Args:
        model: the network; copied, never changed.
        input_shape: ``(C, H, W)``.
        features: Lipschitz constant of everything before the tail, on the [0, 1] scale of images; None proves one.
        budget: seconds of work after which the proof is given up; None takes its time.

    Raises:
        InputError: if the network's last layers are not known, or no constant can be proved for those before them.
    """
    if not isinstance(model, nn.Module):
        raise InputError("expected a module with weights to refine the certificate of, got a function")
    tail = find_tail(model)
    shape = tuple(int(size) for size in input_shape)
    channels, cells = _features(tail, shape)
    constant = _constant(tail, shape, budget) if features is None else float(features)
    if not (math.isfinite(constant) and constant > 0):
        raise InputError(f"expected a positive, finite constant of the features, got {constant!r}")
    slopes = measure_slopes(tail, channels, cells[0] * tail.scale, cells[1] * tail.scale)
    return RefinedCertificate(tail, slopes, constant, shape)


def _features(tail: Tail, shape: tuple[int, ...]) -> tuple[int, tuple[int, int]]:
    weight = _sample_weight(tail)
    image = torch.full((1, *shape), 0.5, dtype=weight.dtype, device=weight.device)
    with torch.no_grad():
        features = tail.head(image)
        values = tail.affine(features)
    if features.dim() != 4 or values.shape[2:] != torch.Size([n * tail.scale for n in features.shape[2:]]):
        raise InputError(f"expected features (1, C, h, w) before the last layers, got {tuple(features.shape)}")
    return int(features.shape[1]), (int(features.shape[2]), int(features.shape[3]))


def _sample_weight(tail: Tail) -> Tensor:
    """Some weight of the network, for its type and device."""
    layers = nn.ModuleList([tail.head, tail.affine, *([] if tail.last is None else [tail.last])])
    return next((parameter.data for parameter in layers.parameters()), torch.zeros(1))


def _constant(tail: Tail, shape: tuple[int, ...], budget: float | None) -> float:
    if len(tail.head) == 0:
        return 1.0
    try:
        graph = trace(tail.head, shape, taken_whole)
        if graph.output is None:
            raise InputError("expected features that depend on the image")
        reading = read(graph, None if budget is None else time.thread_time() + budget)
    except (Untraceable, OutOfTime) as reason:
        raise InputError(f"expected a network whose constant can be proved, to refine it: {reason}") from None
    found = compose(reading.relations, reading.image, reading.number(graph.output))
    if isinstance(found, str):
        raise InputError(f"expected a network whose constant can be proved, to refine it: {found}")
    return found


@dataclass(frozen=True, eq=False)
class _Part:
    """What is computed with on one device."""

    tail: Tail
    table: Tensor  # (K, T * K * S * M), of the class to move to first
    largest: Tensor  # (K, T * K)
    contrasts: Tensor  # (K, K * P)
    swaps: Tensor  # (P, T)


class RefinedCertificate:
    """What the last layers of a network say beyond one constant for everything.

    Args:
        tail: the network, cut in three.
        slopes: of the tail.
        features: Lipschitz constant of the features.
        shape: of the images, ``(C, H, W)``; the slopes hold for this size alone.

    Attributes:
        features: as given.
    """

    def __init__(self, tail: Tail, slopes: Slopes, features: float, shape: tuple[int, ...]) -> None:
        self.features = features
        self._tail, self._slopes, self._shape = tail, slopes, shape
        self._parts: dict[torch.device, _Part] = {}
        self._narrow: dict[tuple[torch.device, torch.dtype], _Part] = {}
        self._loose, self._loose_logits = self._measured_errors()

    @property
    def pairs(self) -> int:
        """How many sorted pairs of each pixel are followed, 0 where all orders are taken to be possible."""
        return self._slopes.pairs

    @property
    def joint(self) -> bool:
        """Whether anything is said about sets of pixels."""
        return self._slopes.block is not None

    def describe(self) -> str:
        """What it rests on."""
        sorted_pairs = f", {self.pairs} sorted pairs per pixel" if self.pairs else ""
        return f"refined in the last layers: L = {self.features:.6g} up to there{sorted_pairs}"

    def claim(self) -> RadiusClaim:
        """The radii as a claim to verify: it can be evaluated at any image of this size."""
        return RadiusClaim(self.radii, source=self.describe())

    def radii(self, images: Tensor) -> Tensor:
        """Certified radii ``(B, H, W)`` float64 of images ``(B, C, H, W)``, on the [0, 1] scale; 0 at a tie."""
        found = []
        for image in images:
            self._check_shape(image)
            logits, values = self._evaluate(image[None])
            error = 2.0 * self._loose_logits * float(logits.abs().max())
            doubled = None if values is None else values[0].double()
            distances = self.distances(logits[0].double(), doubled, error=error)
            predicted = top_two(logits[0].flatten(1))[2]
            nearest = distances.scatter_(0, predicted[None], math.inf).amin(dim=0)
            found.append(nearest.reshape(logits.shape[2:]))
        return torch.stack(found)

    def costs(self, image: Tensor, logits: Tensor, *, error: float = 0.0, values: Tensor | None = None) -> RefinedCosts:
        """What flips of one image cost.

        Args:
            image: ``(C, H, W)``.
            logits: ``(K, H, W)`` of the network as deployed.
            error: bound of the error of a difference of two logits; margins are taken that much smaller.
            values: ``(2P, H, W)`` that were sorted to make these logits, if they were kept
                (:func:`attackcheck.refined.tail.sorted_values`); None computes them.

        Raises:
            InputError: for an image of another size.
        """
        self._check_shape(image)
        if values is None and self.pairs:
            found = self._evaluate(image[None])[1]
            values = None if found is None else found[0]
        single = logits.detach() if logits.element_size() >= 4 else logits.detach().float()
        distances = self.distances(single, None if values is None else values.to(single.dtype), error=error)
        return RefinedCosts(
            single, distances, self.features if self.block is None else self.block,
            scale=None if self.block is None else self.scale, error=error,
        )  # fmt: skip

    def _check_shape(self, image: Tensor) -> None:
        if tuple(image.shape) != self._shape:
            raise InputError(f"expected images of shape {self._shape} for this certificate, got {tuple(image.shape)}")

    @property
    def scale(self) -> int:
        """Pixels of a block along each axis."""
        return self._slopes.scale

    @property
    def block(self) -> float | None:
        """Bound of the squared change of a block's logits over that of the image, as a norm; None: not known."""
        return None if self._slopes.block is None else self._slopes.block * self.features

    def _on(self, device: torch.device) -> _Part:
        """The network and its slopes on a device."""
        if device not in self._parts:
            tail = self._tail
            tail = Tail(
                copy.deepcopy(tail.head).to(device), copy.deepcopy(tail.affine).to(device),
                None if tail.last is None else copy.deepcopy(tail.last).to(device),
                tail.scale, tail.reach, tail.terms,
            )  # fmt: skip
            slopes = self._slopes
            self._parts[device] = _Part(
                tail, slopes.table.movedim(2, 0).flatten(1).to(device),
                slopes.largest.movedim(2, 0).flatten(1).to(device),
                slopes.contrasts.movedim(1, 0).flatten(1).to(device), slopes.swaps.T.contiguous().to(device),
            )  # fmt: skip
        return self._parts[device]

    def _rounded(self, device: torch.device, kind: torch.dtype) -> _Part:
        """The slopes as numbers of this type, rounded upwards."""
        part = self._on(device)
        if (device, kind) not in self._narrow:
            numbers = [_upwards(t, kind) for t in (part.table, part.largest, part.contrasts, part.swaps)]
            self._narrow[device, kind] = _Part(part.tail, *numbers)
        return self._narrow[device, kind]

    def _evaluate(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Logits, and the values that are sorted."""
        tail = self._on(images.device).tail
        with torch.no_grad():
            values = tail.affine(tail.head(images))
            if tail.last is None:
                return values, None
            return tail.last(_sorted(values)), values

    def _measured_errors(self) -> tuple[float, float]:
        """Errors of sorted values and of logits relative to the largest, as deployed on one image, times a margin."""
        image = torch.rand(1, *self._shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        weight = _sample_weight(self._tail)
        shown = self._evaluate(image.to(weight.device, weight.dtype))
        layers = [self._tail.head, self._tail.affine, *([] if self._tail.last is None else [self._tail.last])]
        exact = [copy.deepcopy(layer).cpu().double() for layer in layers]
        with torch.no_grad():
            values = exact[1](exact[0](image.to(weight.dtype).double()))
            logits = values if self._tail.last is None else exact[2](_sorted(values))
        pairs = ((shown[1], values), (shown[0], logits))
        wrong = [0.0 if s is None else float((s.cpu().double() - t).abs().max() / t.abs().max()) for s, t in pairs]
        floor = 8.0 * torch.finfo(weight.dtype).eps
        return ERROR_MARGIN * wrong[0] + floor, ERROR_MARGIN * wrong[1] + floor

    def distances(self, logits: Tensor, values: Tensor | None, *, error: float = 0.0) -> Tensor:
        """How far every pixel is from every class, as a distance in the image: 0 from the class that it has.

        Args:
            logits: ``(K, H, W)``, float32 or float64; computed with in this type.
            values: ``(2P, H, W)`` that were sorted, of the same type; None without pairs.
            error: as for :meth:`costs`.

        Returns:
            ``(K, H * W)``.
        """
        device, height, width = logits.device, int(logits.shape[1]), int(logits.shape[2])
        flat = logits.detach().flatten(1)
        places = self._slopes.places(height, width, device)
        loose, pairs = 0.0, flat.new_zeros(0, flat.shape[1])
        if values is not None:
            pairs = values.detach().flatten(1)
            loose = 2.0 * self._loose * float(pairs.abs().max())
        found = torch.empty_like(flat)
        chunk = CHUNK.get(device.type, CHUNK["cpu"])
        for start in range(0, flat.shape[1], chunk):
            some = slice(start, start + chunk)
            best, _, predicted = top_two(flat[:, some])
            margins = (best - flat[:, some] - error).clamp_min_(0.0)
            found[:, some] = self._distances(margins, predicted, pairs[:, some], places[some], loose)
        return found

    def _distances(self, margins: Tensor, predicted: Tensor, values: Tensor, place: Tensor, loose: float) -> Tensor:
        """The same of some pixels, ``(K, n)``, by their margins over all classes.

        The margin falls no faster than the slope over all orders of values that can be had by then. That slope never
        falls, so the margin's worst course is concave: it ends where the first of its tangents does.
        """
        part, classes = self._rounded(margins.device, margins.dtype), len(margins)
        if len(part.table) != classes:
            raise InputError(f"expected logits of {len(part.table)} classes, got {classes}")
        where = place * classes + predicted
        at, pair, entries = self._orders(part, where, values, place, loose)
        swaps = []
        if self._slopes.masks == 1:
            swaps = [part.swaps.flatten().index_select(0, number * part.swaps.shape[1] + place) for number in pair]
        found = torch.empty_like(margins)
        for label in range(classes):
            table, margin = part.table[label], margins[label]
            slope = table.index_select(0, entries[0])
            distance = margin / slope
            for step, start in enumerate(at):
                # Left of the margin where this pair may have changed its order; no tangent starts below zero.
                room = start if step == 0 else start - at[step - 1]
                margin = torch.addcmul(margin, slope, room, value=-1.0).clamp_min_(0.0)
                if swaps:
                    added = part.contrasts[label].index_select(0, predicted * self.pairs + pair[step])
                    slope = torch.addcmul(slope, added, swaps[step])
                    slope = torch.minimum(slope, part.largest[label].index_select(0, where))
                else:
                    slope = table.index_select(0, entries[step + 1])
                distance = torch.minimum(distance, (margin / slope).add_(start))
            found[label] = distance
        return found.mul_(_rounding(found.dtype) / self.features)

    def _orders(
        self, part: _Part, where: Tensor, values: Tensor, place: Tensor, loose: float
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """At which distances pairs may change their orders, ascending; which; entries of the table up to there."""
        entry = where * (part.table.shape[1] // part.largest.shape[1])
        if not self.pairs:
            return [], [], [entry]
        first, second = values.chunk(2, 0)  # (P, n)
        bits = 1 << torch.arange(self.pairs - 1, -1, -1, device=values.device)
        swapped = (first < second).long()
        for number in range(self.pairs):
            entry = entry.add(swapped[number], alpha=(1 << (self.pairs - 1 - number)) * self._slopes.masks)
        gap = ((first - second).abs_() - loose).clamp_min_(0.0)
        reached = (gap / part.swaps.index_select(1, place)).clamp_max_(FAR).mul_(_rounding(gap.dtype))
        # A pair's number takes the place of the last bits: numbers that are not negative are in the order of these.
        whole = torch.int32 if reached.element_size() == 4 else torch.int64
        tagged = (reached.view(whole) & ~15) | torch.arange(self.pairs, device=gap.device, dtype=whole)[:, None]
        tagged = torch.stack(in_order(tagged.unbind()))
        pair, at = (tagged & 15).long(), (tagged & ~15).view(reached.dtype)
        entries = [entry]
        if self._slopes.masks > 1:
            flips = bits.index_select(0, pair.flatten()).reshape(pair.shape)
            for number in range(self.pairs):
                entries.append(entries[-1] + flips[number])
        return list(at), list(pair), entries


def _rounding(kind: torch.dtype) -> float:
    return 1.0 - ROUNDINGS * torch.finfo(kind).eps


def _upwards(values: Tensor, kind: torch.dtype) -> Tensor:
    rounded = values.to(kind)
    if kind != values.dtype:
        rounded = torch.nextafter(rounded, torch.full_like(rounded, math.inf))
    return rounded.clamp_min(STEEP)


def _sorted(values: Tensor) -> Tensor:
    first, second = values.chunk(2, 1)
    return torch.cat([torch.maximum(first, second), torch.minimum(first, second)], 1)
