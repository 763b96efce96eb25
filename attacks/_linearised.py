"""Attacks along linearised decision boundaries."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ._descents import Descents
from ._newton import Outlook, outlook
from ._rays import Course, begin_anew, follow
from ._refine import shrink
from ._rows import (
    Box,
    Generators,
    Model,
    Noise,
    along,
    clip,
    downhill,
    lengths,
    loss_and_gradient,
    select,
)
from .objectives import Objective

__all__ = ["linearised"]

_FLAT = (0.98, 1.05)  # distance of a flat boundary over the linearised one, which points of a search overshoot
_GAIN, _LONGER = 0.9, 2.5  # where few steps shortened the distance that much, many more may lead on
_EVEN = (0.6, 1.45)  # slope of an even margin, whose class may be another one, over that at the image
_LOOKS = (1.0, 2.0, 4.0)  # distances at which slopes are looked at: those of networks without constraints differ more
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
    anew: int = 0,
    again: int = 0,
    starts: int = 2,
    leaps: Sequence[int] = (),
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
    3. The best direction is searched again, `refine` points. With `anew` > 0, rows whose distance is more than 5 %
       below or 50 % above the linearised one begin again with two rays and so many turns.
    4. Where the distance is more than 2 % below or 5 % above the linearised one, the boundary is bent and may have
       nearer parts that no turning leads to. With `again` > 0 these rows are looked at once more by `again` steps of
       `fmn` from each of `starts` places, at least two: the nearest linearised boundary, the fifth, the third, a random
       direction, twice as far away as the best point and so on. Then what they found turns. Where that was
       10 % nearer, few steps may not have been enough: two and a half times as many go from two of these places.
    5. Where the margin's slope, at the boundary or twice or four times as far away, is below .6 or above 1.45 of that
       at the image, as on most pixels of networks without constraints and hardly any of those with a certificate, all
       of these may end in the same local minimum. There two more starts are tried, and as many steps down an augmented
       Lagrangian as each number in `leaps` says leave that minimum: paths of other lengths end elsewhere.
    A joint objective (a region) has no single ray: there the summed hinge is descended by `descent` short steps, and
    the result is bisected back (Xie et al. 2017, DAG).
    Returns (B, C, H, W): the closest success of each row, or its iterate of lowest loss.
    Costs for a pixel 2 + rays * search + turns + refine forward and classes + turns backward passes; turns are
    `iterations` and, for each ray but the first, three eighths of them, rounded. With search = 1 the first turn looks
    at that point, and with `refine` below 2 nobody has to look beyond the last one, which saves rays and 1 forward
    passes. A row that begins again costs turns for two rays and `refine` more. With `again` or `leaps`, three each more
    to look at slopes; for a bent row `starts` times `again` + 13 forward, and rarely twice 2.5 times `again` + 13, for
    one of uneven slope two starts more and each of `leaps` + 13; and 3 less each backward.
    """
    images = images.detach()
    noise = Noise(images, generator)
    view = outlook(model, images, objective, classes, noise)
    if objective.joint:
        return _descend(model, images, view, rays, descent, search + refine, box)
    course = Course(rays, search, iterations, refine, reach, box)
    found, success = follow(model, images, view, course)
    if anew:
        found = begin_anew(model, images, view, found, success, course, anew)
    if again or leaps:
        margin = view.objective.by_margin()
        bent, uneven = _shape(model, images, view, margin, found, success, box)
        descents = partial(Descents, model, images, view, box=box, noise=noise, generator=generator)
        if again:
            starts = max(2, starts)
            before, even = lengths(found - images), bent & ~uneven
            found = descents(found, even).descended(again, starts, rays)
            unfinished = even & (lengths(found - images) < _GAIN * before)
            found = descents(found, unfinished).descended(round(_LONGER * again), 2, rays)
            found = descents(found, uneven).descended(again, starts + 2, rays)
        if leaps:
            found = descents(found, uneven).leapt(leaps)
    if refine < 2:  # points of turns, and a single one of a search, lie beyond the boundary already
        return found
    beyond = clip(torch.lerp(images, found, 1 + _STEP_BACK), box)
    with torch.no_grad():
        firm = view.objective(model(beyond)).success
    return select(firm, beyond, found)


def _shape(
    model: Model, images: Tensor, view: Outlook, margin: Objective, found: Tensor, success: Tensor, box: Box
) -> tuple[Tensor, Tensor]:
    """Rows (B,) that succeed at `found` where the boundary is bent, and where the margin's slope is uneven."""
    ratio = lengths(found - images) / view.distance[0]
    slope = view.loss[0] / view.distance[0]
    uneven = torch.zeros_like(success)
    for far in _LOOKS:
        _, gradient = loss_and_gradient(model, margin, clip(torch.lerp(images, found, far), box))
        change = lengths(gradient) / slope
        uneven |= (change < _EVEN[0]) | (change > _EVEN[1])
    return success & ((ratio < _FLAT[0]) | (ratio > _FLAT[1])), success & uneven


def _descend(model: Model, images: Tensor, view: Outlook, rays: int, steps: int, refine: int, box: Box) -> Tensor:
    """Short steps down the summed hinge towards each of the nearest variants until it is zero, then straight back."""
    count = min(rays, view.direction.shape[0])
    best, best_norm = images, torch.full_like(view.distance[0], torch.inf)
    objective = view.objective.by_margin()
    for variant in range(count):
        # the linearised distance of the sum is that of the whole set if its pixels do not interact
        size = view.distance[variant] / max(1, steps // 3)
        delta = along(images, size, view.direction[variant], box) - images
        done = torch.zeros_like(best_norm, dtype=torch.bool)
        for _ in range(steps):
            goal, gradient = loss_and_gradient(model, objective, clip(images + delta, box))
            done = done | goal.success
            step, _ = downhill(gradient, None)
            moved = along(images + delta, size, step, box) - images
            delta = select(done, delta, moved)
            size = size * 1.03
        end = clip(images + delta, box)
        point = shrink(model, images, end, objective, done, refine)
        norm = torch.where(done, lengths(point - images), 1e9 + view.loss[variant])
        shorter = norm < best_norm
        best, best_norm = select(shorter, point, best), torch.where(shorter, norm, best_norm)
    return best
