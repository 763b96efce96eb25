"""Attacks along linearised decision boundaries."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._newton import Outlook, outlook
from ._refine import Track, shoot, shrink
from ._rows import Box, Generators, Model, across, clip, dot, gaussian, lengths, loss_and_gradient, of_rows, polar
from .objectives import Objective

__all__ = ["linearised"]

_FIRST_TURN, _MIDDLE_TURN, _LEAST_TURN = 0.7, 0.2, 0.02
_OPENING = 0.375  # share of the turns in which all rays take part and step far beyond the boundary
_FIRST_OVERSHOOT = 0.3
_OVERSHOOT = 2e-3  # iterates just beyond the boundary are evidence, those before it are not
_STEP_BACK = 2e-4  # relative; in float32 a point exactly on the boundary flips in one batch and not in another


def linearised(
    model: Model,
    images: Tensor,
    objective: Objective,
    *,
    classes: int = 6,
    rays: int = 1,
    search: int = 4,
    iterations: int = 16,
    refine: int = 6,
    descent: int = 40,
    reach: float = 8.0,
    box: Box = None,
    generator: Generators = None,
) -> Tensor:
    """Minimum-norm attack: rays along margin gradients, then projections of the image onto linearised boundaries.

    1. Margins of `classes` classes are linearised at the image, and a ray is followed to each of the `rays` nearest
       boundaries, `search` points each, up to `reach` times the linearised distance (DeepFool's first step, searched).
    2. `iterations` times the margin is linearised where each ray meets the boundary, the image is projected onto that
       plane, and the ray turns part of the way to the projection (FAB, Croce & Hein 2020, with its bias towards the
       image). That part is annealed from .7 to .02. The first three eighths of the turns look from beyond the boundary,
       by up to .3 of the distance, which leads out of narrow dents; then the best ray goes on alone.
    3. The best direction is searched again, `refine` points.
    A joint objective (a region) has no single ray: there the summed hinge is descended by `descent` short steps, and
    the result is bisected back (Xie et al. 2017, DAG).
    Returns (B, C, H, W): the closest success of each row, or its iterate of lowest loss.
    Costs for a pixel 2 + rays * search + turns + refine forward and classes + turns backward passes; turns are
    `iterations` and, for each ray but the first, three eighths of them, rounded.
    """
    images = images.detach()
    noise = gaussian(images, generator)
    view = outlook(model, images, objective, classes, noise)
    if objective.joint:
        return _descend(model, images, view, rays, descent, search + refine, box)
    count = min(rays, view.direction.shape[0])
    batch = images.shape[0]
    column = torch.arange(batch, device=images.device)
    index = column.repeat(count)
    margin = view.objective.by_margin().rows(index)
    wide = images[index]  # (R*B, C, H, W)
    guess, start = view.distance[:count].flatten(), view.loss[:count].flatten()
    repeated = of_rows(model, index)
    track = shoot(
        repeated,
        wide,
        view.direction[:count].flatten(0, 1),
        guess * 1.001,
        margin,
        start=start,
        steps=search,
        reach=reach,
        box=box,
    )
    opening = round(_OPENING * iterations) if count > 1 else 0
    schedule = _schedule(opening, iterations)
    bests = _turn(repeated, wide, margin, Bests.of(track, wide), schedule[:opening], box)
    bests = bests.chosen(count)
    bests = _turn(model, images, view.objective.by_margin(), bests, schedule[opening:], box)
    # a ray that never met a boundary is followed from where it ended
    distance = torch.where(bests.distance < torch.inf, bests.distance, bests.track.distance)
    last = shoot(
        model,
        images,
        bests.direction,
        distance * 1.0005,
        view.objective.by_margin(),
        start=view.loss[0],
        steps=refine,
        reach=reach,
        box=box,
    )
    # the linearised length of the best ray may lie: never hand back less than what was seen on the way
    better = last.success & (lengths(last.points - images) <= bests.closest)
    found = torch.where(across(better | ~bests.track.success, images), last.points, bests.track.points)
    beyond = clip(images + (1 + _STEP_BACK) * (found - images), box)
    with torch.no_grad():
        firm = view.objective(model(beyond)).success
    return torch.where(across(firm, images), beyond, found)


class Bests(NamedTuple):
    """Rays on their way (the track: closest success, present direction and distance), and the best that each was."""

    track: Track
    closest: Tensor  # (B,) distance of the closest success
    direction: Tensor  # of the shortest distance measured
    distance: Tensor  # (B,) measured, infinite where there is none

    @staticmethod
    def of(track: Track, images: Tensor) -> Bests:
        closest = torch.where(track.success, lengths(track.points - images), torch.inf)
        return Bests(track, closest, track.direction, closest)

    def chosen(self, count: int) -> Bests:
        """The best of `count` rays of each row, which lie B apart: the shortest, or the least hopeless."""
        if count == 1:
            return self
        track = self.track
        batch = len(self.distance) // count
        column = torch.arange(batch, device=self.distance.device)
        key = torch.minimum(self.distance, self.closest)
        key = torch.where(key < torch.inf, key, 1e9 + track.distance)
        ray = key.reshape(count, batch).argmin(0) * batch + column
        near = self.closest.reshape(count, batch).argmin(0) * batch + column
        kept = Track(track.points[near], track.direction[ray], track.distance[ray], track.success[near])
        return Bests(kept, self.closest[near], self.direction[ray], self.distance[ray])


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
    return [(part, _OVERSHOOT + far * max(0.0, 1 - (i + 1) / back)) for i, part in enumerate(parts)]


def _turn(
    model: Model, images: Tensor, objective: Objective, bests: Bests, schedule: list[tuple[float, float]], box: Box
) -> Bests:
    """Turns rays towards the projections of the image onto the boundaries linearised where the rays meet them."""
    tiny = torch.finfo(images.dtype).tiny
    (points, way, t, success), closest, best, best_distance = bests
    unmeasured = torch.full_like(t, torch.inf)
    for part, overshoot in schedule:
        point = clip(images + across(t, way) * way, box)
        delta = point - images
        goal, gradient = loss_and_gradient(model, objective, point)
        norm = lengths(delta)
        closer = goal.success & (norm < closest)
        points, closest = torch.where(across(closer, points), point, points), torch.where(closer, norm, closest)
        success = success | goal.success
        plane, slope = polar(-gradient, way)
        # to first order the boundary is where plane . delta = offset, and the ray meets it at this distance
        offset = dot(plane, delta) + goal.loss / slope.clamp_min(tiny)
        advance = dot(plane, way)
        sound = (slope > 0) & (advance > 0.05) & (offset > 0.2 * t * advance)
        met = torch.where(sound, offset / advance.clamp_min(0.05), unmeasured)
        # a long extrapolation is no measurement: rays that promise more than they keep would be chosen
        near = sound & (met > 0.75 * t) & (met < 1.05 * t)
        measured = torch.where(near, met, torch.where(goal.success, t, unmeasured))
        shorter = measured < best_distance
        best = torch.where(across(shorter, best), way, best)
        best_distance = torch.where(shorter, measured, best_distance)
        reached = torch.where(sound, met, 1.1 * t)
        projection = across(torch.maximum(offset, 0.2 * t), plane) * plane
        way, _ = polar((1 - part) * across(reached, way) * way + part * projection, way)
        ahead = torch.where(sound, offset / dot(plane, way).clamp_min(0.05), reached)
        t = torch.minimum(torch.maximum((1 + overshoot) * ahead, 0.3 * t), 1.5 * t)
    return Bests(Track(points, way, t, success), closest, best, best_distance)


def _descend(model: Model, images: Tensor, view: Outlook, rays: int, steps: int, refine: int, box: Box) -> Tensor:
    """Short steps down the summed hinge towards each of the nearest variants until it is zero, then straight back."""
    count = min(rays, view.direction.shape[0])
    best, best_norm = images, torch.full_like(view.distance[0], torch.inf)
    objective = view.objective.by_margin()
    for variant in range(count):
        # the linearised distance of the sum is that of the whole set if its pixels do not interact
        size = view.distance[variant] / max(1, steps // 3)
        delta = clip(images + across(size, images) * view.direction[variant], box) - images
        done = torch.zeros_like(best_norm, dtype=torch.bool)
        for _ in range(steps):
            goal, gradient = loss_and_gradient(model, objective, clip(images + delta, box))
            done = done | goal.success
            step, _ = polar(-gradient)
            moved = clip(images + delta + across(size, delta) * step, box) - images
            delta = torch.where(across(done, delta), delta, moved)
            size = size * 1.03
        end = clip(images + delta, box)
        point = shrink(model, images, end, objective, done, refine)
        norm = torch.where(done, lengths(point - images), 1e9 + view.loss[variant])
        shorter = norm < best_norm
        best, best_norm = torch.where(across(shorter, best), point, best), torch.where(shorter, norm, best_norm)
    return best
