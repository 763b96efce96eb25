"""Rays towards linearised boundaries: searched, turned, and begun again where that was too short."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._newton import Outlook
from ._refine import Track, shoot
from ._rows import Box, Model, lengths, of_rows, select
from ._turning import OVERSHOOT, Bests, turn

__all__ = ["Course", "Ends", "begin_anew", "follow"]

_FIRST_TURN, _MIDDLE_TURN, _LEAST_TURN = 0.7, 0.2, 0.02
_OPENING = 0.375  # share of the turns in which all rays take part and step far beyond the boundary
_FIRST_OVERSHOOT = 0.3
# distance over the linearised one, at boundaries that a few turns do not follow: rare on networks with certificates
_CURVED = (0.95, 1.15)


class Course(NamedTuple):
    """How rays go: the numbers of `linearised` with these names."""

    rays: int
    search: int
    iterations: int
    refine: int
    reach: float
    box: Box


class Ends(NamedTuple):
    """Where rays ended: the best of each row, and each of them where the others were given up."""

    found: Tensor  # (B, C, H, W) closest point, or where the ray ended
    success: Tensor  # (B,) whether it succeeds
    points: Tensor  # (R, B, C, H, W) closest of each ray
    distance: Tensor  # (R, B) of them, infinite where they do not succeed


def follow(model: Model, images: Tensor, view: Outlook, course: Course, rows: Tensor | None = None) -> Ends:
    """Follows the rays to the first candidates of the view, then the best of them, through all turns.

    If these are only some `rows` of the attack, `images` and `view` are theirs; the model is always that of the attack.
    """
    rays, search, iterations, refine, reach, box = course
    count, batch = min(rays, view.direction.shape[0]), images.shape[0]
    margin = view.objective.by_margin()
    alone = seen = model if rows is None else of_rows(model, rows)
    wide, wide_margin = images, margin
    if count > 1:
        index = torch.arange(batch, device=images.device).repeat(count)
        seen = of_rows(model, index if rows is None else rows[index])
        wide, wide_margin = images[index], margin.rows(index)  # (R*B, C, H, W)
    guess, start = 1.001 * view.distance[:count].flatten(), view.loss[:count].flatten()
    ways = view.direction[:count].flatten(0, 1)
    track = Track(wide, ways, guess, torch.zeros_like(guess, dtype=torch.bool))
    if search > 1 or not iterations:  # the first turn looks at the first point anyway
        track = shoot(seen, wide, ways, guess, wide_margin, start=start, steps=search, reach=reach, box=box)
    opening = round(_OPENING * iterations) if count > 1 else 0
    schedule = _schedule(opening, iterations)
    each = turn(seen, wide, wide_margin, Bests.of(track, wide), schedule[:opening], box)
    bests = turn(alone, images, margin, each.chosen(count), schedule[opening:], box)
    found, success = bests.searched(alone, images, margin, view.loss[0], refine, reach, box)
    ends = each.track.points.reshape(count, *images.shape)
    return Ends(found, success, ends, each.closest.reshape(count, batch))


def begin_anew(
    model: Model, images: Tensor, view: Outlook, found: Tensor, success: Tensor, course: Course, turns: int
) -> Tensor:
    """The closest successes known, once rows whose boundary is far from flat have begun again with two rays."""
    ratio = lengths(found - images) / view.distance[0]
    index = (success & ((ratio < _CURVED[0]) | (ratio > _CURVED[1]))).nonzero().flatten()  # a device is waited for here
    if not len(index):
        return found
    index = index if len(index) > 1 else index.repeat(2)  # libraries compute a batch of one by another algorithm
    own, before = images[index], found[index]
    again = course._replace(rays=2, search=1, iterations=turns)
    closest, met, *_ = follow(model, own, view.rows(index), again, index)
    nearer = met & (lengths(closest - own) < lengths(before - own))
    return found.index_copy(0, index, select(nearer, closest, before))


def _schedule(opening: int, iterations: int) -> list[tuple[float, float]]:
    """Part of the way to turn and overshoot, turn by turn; `opening` turns with all rays, the others with the best.

    Both are annealed, the first like DDN's step size, from .7 to .2 in the opening and on to .02: the kinks of
    piecewise linear networks average out, and no row gets stuck. Up to eight turns have no time to come back from far
    beyond the boundary, and stay at it.
    """
    strides = [(_FIRST_TURN, _MIDDLE_TURN, opening), (_MIDDLE_TURN, _LEAST_TURN, iterations - opening)]
    if not opening:
        strides = [(_FIRST_TURN, _LEAST_TURN, iterations)]
    parts = []
    for first, last, count in strides:
        parts += [last + (first - last) * (1 + math.cos(math.pi * (i + 1) / count)) / 2 for i in range(count)]
    far = _FIRST_OVERSHOOT * min(1.0, max(0.0, iterations / 8 - 1))
    back = max(1, round(_OPENING * iterations))
    return [(part, OVERSHOOT + far * max(0.0, 1 - (i + 1) / back)) for i, part in enumerate(parts)]
