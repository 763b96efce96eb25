"""Ascent on the ratio that a Lipschitz constant bounds, over pairs of free points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._rows import Box, Generators, Model, across, clip, gaussian, lengths, of_rows, parts, polar

__all__ = ["lipschitz_pairs"]

_NUMBERS, _CANDIDATES = 2**16, 2**15  # numbers in all candidates of an image; candidates at most
_TINY = 2**8  # numbers of images up to which there are twice as many: there calls cost more than rows
_FAR = 100.0  # reach of candidates, in lengths of the longest pair: out there piecewise linear networks are cones
_SHORT = 1e-3  # length of a candidate, relative to its distance
_FIRST = 0.5
_GENERATIONS, _PARENTS = 6, 32  # of the children of candidates, and how many have any
_NEAR, _WIDE = 0.01, 30.0  # how far children are thrown, in distances of their parents from the image
_RUNGS = 64  # of ratios between 0 and the largest: parents are the best of each, or all would lie on one linear piece
_SCATTER = 3.0  # how far, in lengths of its pair, a start is thrown from the better one whose place it takes


def lipschitz_pairs(
    model: Model,
    images: Tensor,
    *,
    radii: Sequence[float] = (0.3, 1.0, 10.0),
    starts: int = 1,
    steps: int = 40,
    rounds: int = 8,
    shortest: float = 0.01,
    candidates: int | None = None,
    box: Box = None,
    generator: Generators = None,
) -> Tensor:
    """Maximises `||f(b) - f(a)|| / ||b - a||` over both points: the ratio need not be largest anywhere near the data.

    For each of `radii` a pair of this length is laid across the image, and `starts` - 1 across points that far from it.
    Its direction follows the gradient of the squared change, as in power iteration on the Jacobian (momentum as in
    lipschitz_ascent); its middle moves to where the function is steeper, up the difference of the gradients at both
    ends; and its length shrinks to `shortest` of the first one, so that it crosses many kinks of a piecewise linear
    network at first and none at the end. After each of `rounds` the worse half of an image's pairs goes on near the
    better half. The model is called with the ends of a pair side by side (a0, b0, a1, b1, ...).
    Where images are small, rows cost next to nothing, and steep pieces of a small network may be rare: of `candidates`
    short pairs (by default as many as make 2^16 numbers, or 2^17 of tiny images), at distances of all orders of
    magnitude from the image and then from the best so far, those that stretch most take the place of half of the
    starts.
    Returns for each image the best pair, (B, 2, C, H, W). With R = starts * len(radii) it costs 2 * R * steps forward
    and as many backward passes, and at most 6 and 4 for a candidate. Points leave [0, 1] unless there is a box: the
    claim is about all of them.
    """
    images = images.detach()
    batch, count = images.shape[0], len(radii) * starts
    numel = max(1, images[0].numel())
    usual = min((2 if numel <= _TINY else 1) * _NUMBERS // numel, _CANDIDATES)
    screened = usual if candidates is None else candidates
    if generator is None:  # one for each row that goes on, or every draw would give the same numbers
        generator = [torch.Generator().manual_seed(0) for _ in images]
    draws = _Draws(images, count, generator)
    row = torch.arange(batch, device=images.device)
    owner = row.repeat_interleave(2 * count)
    first = images.new_tensor(list(radii)).repeat_interleave(starts).repeat(batch)  # the rows of an image side by side
    moved = (torch.arange(batch * count, device=images.device) % starts > 0).to(first) * first
    middle = images.repeat_interleave(count, 0)
    middle = clip(middle + across(moved, middle) * draws(), box)
    way = draws()
    previous = torch.zeros_like(way)
    best = torch.stack([middle, middle], 1)
    best_ratio = torch.full_like(first, -1.0)
    if count > 1 and screened >= 4 * count:
        chosen = _screened(model, images, screened, count // 2, (min(radii), _FAR * max(radii)), box, generator)
        place = (
            count * torch.arange(batch, device=images.device)[:, None] + torch.arange(1, count, 2).to(row)
        ).flatten()
        middle[place], way[place], best[place], best_ratio[place], scale = chosen
        first[place] = scale
    largest = torch.zeros_like(first)
    period = max(1, steps // rounds)
    for step in range(steps):
        length = first * shortest ** (step / max(1, steps - 1))
        half = across(length / 2, way) * way
        ends = clip(torch.stack([middle - half, middle + half], 1).flatten(0, 1), box)
        moved, gradient = _stretched(model, ends, owner, gradients=True)
        pair = ends.reshape(-1, 2, *images.shape[1:])  # (R, 2, C, H, W)
        distance = lengths((pair[:, 1] - pair[:, 0]).double())
        ratio = torch.where(distance > 0, moved / distance.clamp_min(1e-30), 0)
        ratio = ratio.nan_to_num(nan=0, posinf=0).to(first)
        better = ratio > best_ratio
        best, best_ratio = torch.where(across(better, best), pair, best), torch.where(better, ratio, best_ratio)
        largest = torch.maximum(0.9 * largest, ratio)  # the middle moves on: what was seen elsewhere fades
        back, ahead = -gradient[::2], gradient[1::2]  # J(a)^T change and J(b)^T change
        beta = (0.95 * largest.square() / 2).square()
        following = (back + ahead) / 2 / across(length, way) - across(beta, previous) * previous
        direction, norm = polar(following, way)
        scale = torch.where(norm > 0, norm, 1)
        previous, way = way / across(scale, way), direction
        # no step where both ends lie on one linear piece
        part = length / (lengths(ahead) + lengths(back)).clamp_min(torch.finfo(length.dtype).tiny)
        middle = clip(middle + across(part, ahead) * (ahead - back), box)
        if count > 1 and (step + 1) % period == 0 and step + 1 < steps:
            order = ratio.reshape(batch, count).argsort(dim=1, descending=True, stable=True)
            order = order + count * torch.arange(batch, device=images.device).unsqueeze(1)
            parent, child = order[:, : count // 2].flatten(), order[:, -(count // 2) :].flatten()
            thrown = across(_SCATTER * length[child], way[child]) * draws()[child]
            middle[child] = clip(pair[parent].mean(1) + thrown, box)
            way[child], previous[child], largest[child] = way[parent], previous[parent], largest[parent]
    choice = best_ratio.reshape(batch, count).argmax(1)
    return best.reshape(batch, count, *best.shape[1:])[row, choice]


class _Pool(NamedTuple):
    """Short pairs, those of an image side by side; lengths are relative to `reach`, the distance from the image."""

    middle: Tensor  # (B * P, C, H, W)
    way: Tensor
    pair: Tensor  # (B * P, 2, C, H, W)
    ratio: Tensor  # (B * P,)
    reach: Tensor  # (B * P,)

    def chosen(self, index: Tensor) -> _Pool:
        """The pairs (Q,) of this index."""
        return _Pool(*(part[index] for part in self))


def _screened(
    model: Model,
    images: Tensor,
    candidates: int,
    count: int,
    scales: tuple[float, float],
    box: Box,
    generator: Generators,
) -> _Pool:
    """The `count` short pairs of each image that stretch most, of `candidates` and their children.

    A quarter of the candidates is drawn around the image, at distances of all orders of magnitude; the others are the
    children of the best so far in several generations, thrown off over distances of all orders of magnitude as well:
    a steep piece of the network that is too rare to be met by chance has neighbours that are nearly as steep.
    """
    batch = len(images)
    row = torch.arange(batch, device=images.device)
    first = max(count, int(_FIRST * candidates))
    away, way = _directions(images, first, generator)
    exponent = torch.linspace(math.log(scales[0]), math.log(scales[1]), first, dtype=torch.float64)
    reach = exponent.exp().to(images).repeat(batch)
    middle = clip(images.repeat_interleave(first, 0) + across(reach, away) * away, box)
    pool = _measured(model, middle, way, reach, _SHORT * reach, row.repeat_interleave(first), 2, box)
    parents = min(_PARENTS, first)
    each = (candidates - first) // (_GENERATIONS * parents)
    for _ in range(_GENERATIONS if each else 0):
        pool = pool.chosen(_foremost(pool.ratio.reshape(batch, -1), parents))
        parent = torch.arange(batch * parents, device=images.device).repeat_interleave(each)
        owner = row.repeat_interleave(parents * each)
        exponent = torch.linspace(math.log(_NEAR), math.log(_WIDE), each, dtype=torch.float64)
        thrown = (pool.reach[parent] * exponent.exp().to(images).repeat(batch * parents)).clamp_max(scales[1])
        away, _ = _directions(images, parents * each, generator)
        middle = clip(pool.middle[parent] + across(thrown, away) * away, box)
        reach = lengths(middle - images[owner]).clamp_min(scales[0])
        length = 0.1 * torch.minimum(thrown, pool.reach[parent])
        children = _measured(model, middle, pool.way[parent], reach, length, owner, 1, box)
        parts = zip(pool, children, strict=True)
        sides = [torch.cat([_of_images(old, batch), _of_images(new, batch)], 1) for old, new in parts]
        pool = _Pool(*(side.flatten(0, 1) for side in sides))
    ratio = pool.ratio.reshape(batch, -1)
    return pool.chosen((ratio.topk(count, dim=1).indices + ratio.shape[1] * row[:, None]).flatten())


def _of_images(rows: Tensor, batch: int) -> Tensor:
    """Rows (B * P, ...) by image, (B, P, ...)."""
    return rows.reshape(batch, -1, *rows.shape[1:])


def _directions(images: Tensor, count: int, generator: Generators) -> tuple[Tensor, Tensor]:
    """Two random unit vectors for each of `count` pairs of an image, (B * count, C, H, W)."""
    noise = gaussian(images.new_empty(len(images), 2 * count, *images.shape[1:]), generator)
    return polar(noise[:, 1::2].flatten(0, 1))[0], polar(noise[:, ::2].flatten(0, 1))[0]


def _foremost(ratio: Tensor, count: int) -> Tensor:
    """Indices (B * count,) of the best of each rung of ratios (B, P) of an image, then of the others; flat in B * P."""
    ordered, order = ratio.sort(dim=1, descending=True, stable=True)
    rung = (_RUNGS * ordered / ordered[:, :1].clamp_min(1e-30)).round()
    best = torch.ones_like(rung, dtype=torch.bool)
    best[:, 1:] = rung[:, 1:] != rung[:, :-1]
    place = torch.where(best, ordered, ordered - ordered[:, :1] - 1).topk(count, dim=1).indices
    row = torch.arange(len(ratio), device=ratio.device)[:, None]
    return (order.gather(1, place) + ratio.shape[1] * row).flatten()


def _measured(
    model: Model, middle: Tensor, way: Tensor, reach: Tensor, length: Tensor, owner: Tensor, rounds: int, box: Box
) -> _Pool:
    """Pairs of this length across these middles after so many rounds of power iteration; `owner` (P,): their images."""
    owner = owner.repeat_interleave(2)
    for step in range(rounds + 1):
        half = across(length / 2, way) * way
        ends = clip(torch.stack([middle - half, middle + half], 1).flatten(0, 1), box)
        moved, gradient = _stretched(model, ends, owner, gradients=step < rounds)
        if step < rounds:
            way, _ = polar(gradient[1::2] - gradient[::2], way)
    pair = _of_images(ends, len(middle))
    apart = lengths((pair[:, 1] - pair[:, 0]).double())
    ratio = torch.where(apart > 0, moved / apart.clamp_min(1e-30), 0).nan_to_num(nan=0, posinf=0)
    return _Pool(middle, way, pair, ratio.to(middle), reach)


def _stretched(model: Model, ends: Tensor, owner: Tensor, *, gradients: bool) -> tuple[Tensor, Tensor]:
    """How far the logits of pairs (a0, b0, a1, b1, ...) are apart, (R,) float64, and the gradient of half its square at
    all ends (2R, C, H, W), which is left empty if it is not asked for. `owner` (2R,): the images they belong to."""
    moved = torch.empty(len(ends) // 2, dtype=torch.float64, device=ends.device)
    gradient = torch.empty_like(ends) if gradients else ends[:0]
    for part in parts(model, len(ends), together=2):
        with torch.set_grad_enabled(gradients):
            some = ends[part].detach().requires_grad_(gradients)
            logits = of_rows(model, owner[part])(some)
            change = (logits[1::2] - logits[::2]).flatten(1).double()
            if gradients:
                (gradient[part],) = torch.autograd.grad((change.square().sum(1) / 2).sum(), some)
        moved[part.start // 2 : part.stop // 2] = change.detach().norm(dim=1)
    return moved, gradient.nan_to_num(nan=0, posinf=0, neginf=0)  # far from the data a network may overflow


class _Draws:
    """Unit vectors in random directions, (B * count, C, H, W); those of an image come from its own generator."""

    def __init__(self, images: Tensor, count: int, generator: Generators) -> None:
        self._images, self._count, self._generator = images, count, generator

    def __call__(self) -> Tensor:
        drawn = [gaussian(self._images, self._generator) for _ in range(self._count)]
        unit, _ = polar(torch.stack(drawn, 1).flatten(0, 1))
        return unit
