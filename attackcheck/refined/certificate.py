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
from attackcheck.lipschitz.tracing import Untraceable, trace
from attackcheck.measures.costs import FlipCosts
from attackcheck.refined.sets import steps_of_blocks
from attackcheck.refined.slopes import Slopes, measure_slopes
from attackcheck.refined.tail import Tail, find_tail

__all__ = ["RefinedCertificate", "RefinedCosts", "refine"]

Model = Callable[[Tensor], Tensor]

ERROR_MARGIN = 8.0
"""Sorted values and logits count as wrong by so many times the largest error of float32 seen on one image."""

ROUNDED = 1.0 - 2.0**-40
"""Distances are results of at most a hundred float64 operations, all of positive numbers."""


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
class _Scene:
    """One image as the slopes see it; all flat over pixels."""

    logits: Tensor  # (K, n) float64
    predicted: Tensor  # (n,)
    best: Tensor  # (n,)
    place: Tensor  # (n,) place and predicted class as one index
    order: Tensor  # (n,) which pairs are swapped
    distance: Tensor  # (P, n) at which pairs may change their order, ascending
    pair: Tensor  # (P, n) which pairs those are
    swap: Tensor  # (P, n) their slopes


@dataclass(frozen=True, eq=False)
class _Part:
    """What is computed with on one device."""

    tail: Tail
    table: Tensor  # (T * K, K, S * M)
    largest: Tensor  # (T * K, K)
    contrasts: Tensor  # (K, K, P)
    swaps: Tensor  # (T, P)


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
            logits = self._evaluate(image[None])[0][0]
            costs = self.costs(image, logits, error=2.0 * self._loose_logits * float(logits.abs().max()))
            found.append(costs.distance().reshape(costs.shape))
        return torch.stack(found)

    def costs(self, image: Tensor, logits: Tensor, *, error: float = 0.0) -> RefinedCosts:
        """What flips of one image cost.

        Args:
            image: ``(C, H, W)``.
            logits: ``(K, H, W)`` of the network as deployed.
            error: bound of the error of a difference of two logits; margins are taken that much smaller.

        Raises:
            InputError: for an image of another size.
        """
        if tuple(image.shape) != self._shape:
            raise InputError(f"expected images of shape {self._shape} for this certificate, got {tuple(image.shape)}")
        return RefinedCosts(self, self._scene(image, logits), logits, error)

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
                tail, slopes.table.flatten(3).flatten(0, 1).to(device), slopes.largest.flatten(0, 1).to(device),
                slopes.contrasts.to(device), slopes.swaps.to(device),
            )  # fmt: skip
        return self._parts[device]

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

    def _scene(self, image: Tensor, logits: Tensor) -> _Scene:
        part = self._on(image.device)
        height, width = int(logits.shape[1]), int(logits.shape[2])
        flat = logits.double().flatten(1)
        best, predicted = flat.max(dim=0)
        place = self._slopes.places(height, width, flat.device)
        order = torch.zeros_like(predicted)
        distance, pair = flat.new_zeros(0, flat.shape[1]), order.new_zeros(0, flat.shape[1])
        swap, pairs = distance, self.pairs
        if pairs:
            values = self._evaluate(image[None])[1]
            if values is None:
                raise RuntimeError("expected sorted values")
            first, second = values[0].double().flatten(1).chunk(2, 0)  # (P, n)
            order = ((first < second).long() * self._bits(flat.device)[:, None]).sum(dim=0)
            gap = ((first - second).abs() - 2.0 * self._loose * values.abs().max().double()).clamp_min(0.0)
            slope = part.swaps[place].T
            reached = torch.where(gap > 0, gap / slope, 0.0) * ROUNDED
            distance, pair = reached.sort(dim=0)
            swap = slope.gather(0, pair)
        classes = flat.shape[0]
        if part.table.shape[1] != classes:
            raise InputError(f"expected logits of {part.table.shape[1]} classes, got {classes}")
        return _Scene(flat, predicted, best, place * classes + predicted, order, distance, pair, swap)

    def _bits(self, device: torch.device) -> Tensor:
        """The bit of every pair in the number of an order."""
        return 1 << torch.arange(self.pairs - 1, -1, -1, device=device)

    def _towards(self, scene: _Scene, label: int, error: float) -> Tensor:
        """Distance in the image ``(n,)`` of every pixel from class ``label``; 0 where it is that class.

        The margin falls no faster than the slope over all orders of values that can be had by then: it is followed
        outwards from one distance at which a pair may change its order to the next.
        """
        part = self._on(scene.logits.device)
        table, largest, contrast = part.table[:, label], part.largest[:, label], part.contrasts[:, label]
        exact, bits = self._slopes.masks > 1, self._bits(scene.logits.device)
        left = (scene.best - scene.logits[label] - error).clamp_min(0.0)
        done = torch.zeros_like(left)  # distance so far
        mask = torch.zeros_like(scene.order)
        ended = torch.zeros_like(mask, dtype=torch.bool)
        slope = table[scene.place, scene.order * self._slopes.masks]
        for step in range(self.pairs + 1):
            need = torch.where(left > 0, left / slope, 0.0)  # infinite for a slope of zero
            if step == self.pairs:
                done = torch.where(ended, done, done + need)
                break
            room = (scene.distance[step] - done).clamp_min(0.0)
            last = ~ended & (need <= room)
            done = torch.where(ended, done, done + torch.minimum(need, room))
            left = torch.where(ended, left, (left - slope * room * (1.0 + 2.0**-50)).clamp_min(0.0))
            ended = ended | last
            if exact:
                mask = mask | bits[scene.pair[step]]
                slope = table[scene.place, scene.order * self._slopes.masks + mask]
            else:
                added = contrast[scene.predicted, scene.pair[step]] * scene.swap[step]
                slope = torch.minimum(slope + added, largest[scene.place])
        return done * (ROUNDED / self.features)


def _sorted(values: Tensor) -> Tensor:
    first, second = values.chunk(2, 1)
    return torch.cat([torch.maximum(first, second), torch.minimum(first, second)], 1)


class RefinedCosts(FlipCosts):
    """Costs of one image's flips by the refined certificate: squared distances, each pixel by itself.

    Made by :meth:`RefinedCertificate.costs`. Sets of pixels: :meth:`steps`.
    """

    def __init__(self, certificate: RefinedCertificate, scene: _Scene, logits: Tensor, error: float) -> None:
        self._certificate, self._scene, self._margin_error = certificate, scene, error
        classes = int(logits.shape[0])
        distance = torch.full_like(scene.best, math.inf)
        for label in range(classes):
            there = certificate._towards(scene, label, error).masked_fill_(scene.predicted == label, math.inf)
            distance = torch.minimum(distance, there)
        self._distance = distance
        second = scene.logits.scatter(0, scene.predicted[None], -math.inf).amax(dim=0)
        self._margin = (scene.best - second - error).clamp_min_(0.0)
        super().__init__(certificate.claim(), logits, distance.reshape(logits.shape[1:]), error=error)

    def distance(self) -> Tensor:
        """Certified radius ``(H * W,)``."""
        return self._distance

    def towards(self, label: int) -> Tensor:
        """Cost ``(H * W,)`` of turning every pixel into class ``label``; 0 where it is that class."""
        return self._certificate._towards(self._scene, label, self._margin_error).square_().mul_(self._safety)

    def steps(self, for_sale: Tensor) -> Tensor | None:
        """What each further flip of the pixels for sale ``(H * W,)`` costs on a shared budget; None: not known."""
        block = self._certificate._slopes.block
        if block is None:
            return None
        shared = (self._margin / (block * self._certificate.features)).square_().mul_(0.5 * self._safety)
        own = self.nearest.masked_fill(~for_sale, math.inf)
        return steps_of_blocks(
            own, shared.masked_fill(~for_sale, math.inf), self.shape[0], self._certificate._slopes.scale
        )
