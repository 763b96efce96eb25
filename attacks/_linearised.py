"""Attacks along linearised decision boundaries."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._newton import Outlook, outlook
from ._refine import Track, shoot, shrink
from ._rows import Box, Generators, Model, across, clip, dot, gaussian, lengths, loss_and_gradient, of_rows, polar
from .objectives import Objective

__all__ = ["linearised"]

_FIRST_TURN, _LEAST_TURN = 0.7, 0.02
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
       image). That part is annealed from .7 to .02.
    3. The best ray is searched again, `refine` points.
    A joint objective (a region) has no single ray: there the summed hinge is descended by `descent` short steps, and
    the result is bisected back (Xie et al. 2017, DAG).
    Returns (B, C, H, W): the closest success of each row, or its iterate of lowest loss.
    Costs for a pixel 2 + rays * (search + iterations) + refine forward and classes + rays * iterations backward passes.
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
    if iterations:
        direction, distance, track = _turn(repeated, wide, margin, track, iterations, box)
    else:
        direction, distance = track.direction, torch.where(track.success, track.distance, torch.inf)
    length = torch.where(track.success, lengths(track.points - wide), torch.inf)
    # one ray per row: the shortest, and the least hopeless if none was ever near a boundary
    key = torch.minimum(distance, length)
    key = torch.where(key < torch.inf, key, 1e9 + track.distance)
    chosen = key.reshape(count, batch).argmin(0) * batch + column
    distance = torch.where(distance < torch.inf, distance, track.distance)
    last = shoot(
        model,
        images,
        direction[chosen],
        distance[chosen] * 1.0005,
        margin.rows(chosen),
        start=start[chosen],
        steps=refine,
        reach=reach,
        box=box,
    )
    # the linearised length of the best ray may lie: never hand back less than what was seen on the way
    length = length.reshape(count, batch)
    seen = length.argmin(0) * batch + column
    better = last.success & (lengths(last.points - images) <= length.amin(0))
    found = torch.where(across(better | ~track.success[seen], images), last.points, track.points[seen])
    beyond = clip(images + (1 + _STEP_BACK) * (found - images), box)
    with torch.no_grad():
        firm = view.objective(model(beyond)).success
    return torch.where(across(firm, images), beyond, found)


def _turn(
    model: Model, images: Tensor, objective: Objective, track: Track, iterations: int, box: Box
) -> tuple[Tensor, Tensor, Track]:
    """Turns rays towards the projections of the image onto the boundaries linearised where the rays meet them.

    Returns the directions with the shortest distance measured (infinite where there is none), and the closest success.
    """
    tiny = torch.finfo(images.dtype).tiny
    points, success = track.points, track.success
    closest = torch.where(success, lengths(points - images), torch.inf)
    way, t = track.direction, track.distance
    unmeasured = torch.full_like(t, torch.inf)
    best, best_distance = way, unmeasured
    for iteration in range(iterations):
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
        near = sound & (met > 0.8 * t) & (met < 1.05 * t)
        measured = torch.where(near, met, torch.where(goal.success, t, unmeasured))
        shorter = measured < best_distance
        best = torch.where(across(shorter, best), way, best)
        best_distance = torch.where(shorter, measured, best_distance)
        # a step size annealed like DDN's: the kinks of piecewise linear networks average out, and no row gets stuck
        annealed = (1 + math.cos(math.pi * (iteration + 1) / iterations)) / 2
        part = _LEAST_TURN + (_FIRST_TURN - _LEAST_TURN) * annealed
        reached = torch.where(sound, met, 1.1 * t)
        projection = across(torch.maximum(offset, 0.2 * t), plane) * plane
        way, _ = polar((1 - part) * across(reached, way) * way + part * projection, way)
        ahead = torch.where(sound, offset / dot(plane, way).clamp_min(0.05), reached)
        t = torch.minimum(torch.maximum((1 + _OVERSHOOT) * ahead, 0.3 * t), 1.5 * t)
    return best, best_distance, Track(points, way, t, success)


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
