"""Attacks along linearised decision boundaries."""

from __future__ import annotations

import torch
from torch import Tensor

from ._newton import Outlook, outlook
from ._refine import shoot, shrink
from ._rows import Box, Generators, Model, across, clip, dot, gaussian, lengths, loss_and_gradient, polar
from .objectives import Objective

__all__ = ["linearised"]


def linearised(
    model: Model,
    images: Tensor,
    objective: Objective,
    *,
    classes: int = 6,
    rays: int = 2,
    search: int = 6,
    iterations: int = 8,
    refine: int = 4,
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
       image). The part grows after a shorter distance and shrinks, back at the best ray, after a longer one.
    3. The best ray is searched again, `refine` points.
    A joint objective (a region) has no single ray: there the summed hinge is descended by `descent` short steps, and
    the result is bisected back (Xie et al. 2017, DAG).
    Returns (B, C, H, W): the closest success of each row, or its iterate of lowest loss.
    Costs for a pixel 1 + rays * (search + iterations) + refine forward and classes + rays * iterations backward passes.
    """
    images = images.detach()
    noise = gaussian(images, generator)
    view = outlook(model, images, objective, classes, noise)
    if objective.joint:
        return _descend(model, images, view, rays, descent, search + refine, box)
    count = min(rays, view.direction.shape[0])
    batch = images.shape[0]
    index = torch.arange(batch, device=images.device).repeat(count)
    margin = view.objective.by_margin().rows(index)
    wide = images[index]  # (R*B, C, H, W)
    direction = view.direction[:count].flatten(0, 1)
    guess, start = view.distance[:count].flatten(), view.loss[:count].flatten()
    _, distance, success = shoot(
        model, wide, direction, guess * 1.001, margin, start=start, steps=search, reach=reach, box=box
    )
    if iterations:
        direction, distance, flipped = _turn(model, wide, margin, direction, distance, success, iterations, box)
        success = success | flipped
    # the ray that is shortest, among those that succeeded if any did
    key = torch.where(success, distance, 1e9 + distance).reshape(count, batch)
    chosen = key.argmin(0) * batch + torch.arange(batch, device=images.device)
    margin = margin.rows(chosen)
    point, _, _ = shoot(
        model,
        images,
        direction[chosen],
        distance[chosen] * (1 + 1e-3 * (iterations > 0)),
        margin,
        start=start[chosen],
        steps=refine,
        reach=reach,
        box=box,
    )
    return point


def _turn(
    model: Model,
    images: Tensor,
    objective: Objective,
    direction: Tensor,
    distance: Tensor,
    success: Tensor,
    iterations: int,
    box: Box,
) -> tuple[Tensor, Tensor, Tensor]:
    """Turns rays towards the projections of the image onto the boundaries linearised where the rays meet them."""
    best, best_distance = direction, torch.full_like(distance, torch.inf)
    best_plane, best_offset = direction, distance
    flipped = success
    part = torch.full_like(distance, 0.7)
    t, way = distance, direction
    for _ in range(iterations):
        delta = clip(images + across(t, way) * way, box) - images
        goal, gradient = loss_and_gradient(model, objective, images + delta)
        plane, norm = polar(-gradient)
        norm = norm.clamp_min(torch.finfo(norm.dtype).tiny)
        # the boundary is where plane . delta = offset, to first order
        offset = dot(plane, delta) + goal.loss / norm
        advance = dot(plane, way)
        # Newton along the ray: where the ray meets that plane
        met = torch.where(advance > 0.05, offset / advance.clamp_min(0.05), torch.inf)
        met = torch.where(met > 0.2 * t, met, torch.inf)
        shorter = met < best_distance
        best = torch.where(across(shorter, best), way, best)
        best_plane = torch.where(across(shorter, best), plane, best_plane)
        best_offset = torch.where(shorter, offset, best_offset)
        best_distance = torch.where(shorter, met, best_distance)
        flipped = flipped | goal.success
        part = torch.where(shorter, (part * 1.4).clamp_max(1), part * 0.4)
        aim = across(best_offset, best_plane) * best_plane  # projection of the image
        mixed = across((1 - part) * best_distance, best) * best + across(part, aim) * aim
        way, _ = polar(mixed, best)
        t = best_offset / dot(best_plane, way).clamp_min(0.05)
    unseen = best_distance == torch.inf
    return torch.where(across(unseen, best), direction, best), torch.where(unseen, distance, best_distance), flipped


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
            goal, gradient = loss_and_gradient(model, objective, images + delta)
            done = done | goal.success
            step, _ = polar(-gradient)
            moved = clip(images + delta + across(size, delta) * step, box) - images
            delta = torch.where(across(done, delta), delta, moved)
            size = size * 1.03
        end = images + delta
        point = shrink(model, images, end, objective, done, refine)
        norm = torch.where(done, lengths(point - images), 1e9 + view.loss[variant])
        shorter = norm < best_norm
        best, best_norm = torch.where(across(shorter, best), point, best), torch.where(shorter, norm, best_norm)
    return best
