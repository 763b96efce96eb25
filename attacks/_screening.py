"""Short pairs of points that stretch most, of thousands: for images so small that rows cost next to nothing."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._rows import Box, Generators, Model, across, clip, gaussian, lengths, of_rows, parts, polar
from ._walks import DEEPEST, corners

__all__ = ["FAR", "Pool", "screened", "stretched", "usual"]

_NUMBERS, _CANDIDATES = 2**16, 2**15  # numbers in all candidates of an image; candidates at most
_TINY = 2**8  # numbers of images up to which there are twice as many: there calls cost more than rows
FAR = 100.0  # reach of candidates, in lengths of the longest pair: out there piecewise linear networks are cones
_SHORT = 1e-3  # length of a candidate, relative to its distance
_GENERATIONS, _PARENTS = 6, 32  # of the children of candidates, and how many have any
_NEAR, _WIDE = 0.01, 30.0  # how far children are thrown, in distances of their parents from the image
_RUNGS = 64  # of ratios between 0 and the largest: parents are the best of each, or all would lie on one linear piece
_CORNERED = 16  # numbers of images up to which half of the candidates lie near corners
_ROUNDS, _EACH = 6, 4  # of walks, and candidates at each kink
_CLOSE = 0.03  # length of a candidate near a kink, relative to how far it was thrown


class Pool(NamedTuple):
    """Short pairs, those of an image side by side; lengths are relative to `reach`, the distance from the image."""

    middle: Tensor  # (B * P, C, H, W)
    way: Tensor
    pair: Tensor  # (B * P, 2, C, H, W)
    ratio: Tensor  # (B * P,)
    reach: Tensor  # (B * P,)

    def chosen(self, index: Tensor) -> Pool:
        """The pairs (Q,) of this index."""
        return Pool(*(part[index] for part in self))


def usual(images: Tensor) -> int:
    """How many candidates are worth while."""
    numbers = max(1, images[0].numel())
    return min((2 if numbers <= _TINY else 1) * _NUMBERS // numbers, _CANDIDATES)


def screened(
    model: Model,
    images: Tensor,
    candidates: int,
    count: int,
    scales: tuple[float, float],
    box: Box,
    generator: Generators,
) -> Pool:
    """The `count` short pairs of each image that stretch most, of `candidates` and their children.

    Half of the candidates is drawn around the image, at distances of all orders of magnitude; the others are the
    children of the best so far in several generations, thrown off over distances of all orders of magnitude as well:
    a steep piece of the network that is too rare to be met by chance has neighbours that are nearly as steep. Of images
    of a few numbers these are a quarter each, and the other half lies near corners.
    """
    batch = len(images)
    row = torch.arange(batch, device=images.device)
    cornered = images[0].numel() <= _CORNERED
    share = candidates // (4 if cornered else 2)
    first = max(count, share)
    away, way = _directions(images, first, generator)
    exponent = torch.linspace(math.log(scales[0]), math.log(scales[1]), first, dtype=torch.float64)
    reach = exponent.exp().to(images).repeat(batch)
    middle = clip(images.repeat_interleave(first, 0) + across(reach, away) * away, box)
    pool = _measured(model, middle, way, reach, _SHORT * reach, row.repeat_interleave(first), 2, box)
    if cornered:
        pool = _cornered(model, images, pool, candidates - first - share, scales, box, generator)
    parents = min(_PARENTS, first)
    each = min(share, candidates - first) // (_GENERATIONS * parents)
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
        pool = _joined(pool, _measured(model, middle, pool.way[parent], reach, length, owner, 1, box), batch)
    ratio = pool.ratio.reshape(batch, -1)
    return pool.chosen((ratio.topk(count, dim=1).indices + ratio.shape[1] * row[:, None]).flatten())


def _cornered(
    model: Model,
    images: Tensor,
    pool: Pool,
    candidates: int,
    scales: tuple[float, float],
    box: Box,
    generator: Generators,
) -> Pool:
    """The pool with so many pairs near corners of linear pieces; walks begin anywhere, then at the best so far."""
    batch, depth = len(images), min(DEEPEST, images[0].numel())
    walks = candidates // (_ROUNDS * depth * _EACH) // 2 * 2
    parents = min(_PARENTS, walks)
    row = torch.arange(batch, device=images.device)
    for number in range(_ROUNDS if walks else 0):
        ratio = pool.ratio.reshape(batch, -1)
        if number:
            start = _foremost(ratio, parents).reshape(batch, -1).repeat(1, -(-walks // parents))[:, :walks]
        else:  # the candidates so far, by distance
            start = (
                torch.linspace(0, ratio.shape[1] - 1, walks, device=ratio.device).long() + ratio.shape[1] * row[:, None]
            )
        spots, thrown = corners(model, images, pool.middle[start.flatten()], _EACH, scales[1], box, generator)
        owner = row.repeat_interleave(len(spots) // batch)
        reach = lengths(spots - images[owner]).clamp_min(scales[0])
        way, _ = _directions(images, len(spots) // batch, generator)
        pool = _joined(pool, _measured(model, spots, way, reach, _CLOSE * thrown, owner, 2, box), batch)
    return pool


def _joined(pool: Pool, other: Pool, batch: int) -> Pool:
    parts = zip(pool, other, strict=True)
    return Pool(*(torch.cat([_of_images(a, batch), _of_images(b, batch)], 1).flatten(0, 1) for a, b in parts))


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
) -> Pool:
    """Pairs of this length across these middles after so many rounds of power iteration; `owner` (P,): their images."""
    owner = owner.repeat_interleave(2)
    length = torch.maximum(length, _sharp(middle) * reach)
    for step in range(rounds + 1):
        half = across(length / 2, way) * way
        ends = clip(torch.stack([middle - half, middle + half], 1).flatten(0, 1), box)
        moved, gradient = stretched(model, ends, owner, gradients=step < rounds)
        if step < rounds:
            way, _ = polar(gradient[1::2] - gradient[::2], way)
    pair = _of_images(ends, len(middle))
    apart = lengths((pair[:, 1] - pair[:, 0]).double())
    ratio = torch.where(apart > 0, moved / apart.clamp_min(1e-30), 0).nan_to_num(nan=0, posinf=0)
    return Pool(middle, way, pair, ratio.to(middle), reach)


def _sharp(images: Tensor) -> float:
    """The shortest length, relative to the distance, whose ratio rounding leaves alone."""
    return float(torch.finfo(images.dtype).eps ** 0.5)


def stretched(model: Model, ends: Tensor, owner: Tensor, *, gradients: bool) -> tuple[Tensor, Tensor]:
    """How far the logits of pairs (a0, b0, a1, b1, ...) are apart, (R,) float64, less what rounding may have added, and
    the gradient of half its square at all ends (2R, C, H, W), left empty if nobody asks. `owner` (2R,): their images.
    """
    moved = torch.empty(len(ends) // 2, dtype=torch.float64, device=ends.device)
    gradient = torch.empty_like(ends) if gradients else ends[:0]
    for part in parts(model, len(ends), together=2):
        with torch.set_grad_enabled(gradients):
            some = ends[part].detach().requires_grad_(gradients)
            logits = of_rows(model, owner[part])(some)
            change = (logits[1::2] - logits[::2]).flatten(1).double()
            if gradients:
                (gradient[part],) = torch.autograd.grad((change.square().sum(1) / 2).sum(), some)
        # far from the data short pairs would win by rounding alone
        rounding = torch.finfo(logits.dtype).eps * lengths(logits.detach()[::2])
        moved[part.start // 2 : part.stop // 2] = (change.detach().norm(dim=1) - rounding).clamp_min(0)
    return moved, gradient.nan_to_num(nan=0, posinf=0, neginf=0)  # far from the data a network may overflow
