"""Attacks along linearised decision boundaries."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._afar import look_from_afar
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

_EVEN = (0.6, 1.45)  # slope of an even margin, whose class may be another one, over that at the image
_LOOKS = (1.0, 2.0, 4.0)  # distances at which slopes are looked at: those of networks without constraints differ more
_STRAIGHT = (0.65, 1.5)  # slope at the boundary over that half-way: a kink near the image alone leaves them equal
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
    scouts: int = 0,
    leaps: Sequence[int] = (),
    strides: Sequence[float] = (2.0, 4.0, 8.0),
    crossings: int = 0,
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
       below or 15 % above the linearised one begin again with two rays and so many turns.
    4. `scouts` more rays, at most twelve, go down gradients of the margin that are seen from afar, eight or sixteen
       linearised distances away: to boundaries that no gradient near the image shows. They turn with the others.
    5. Local minima that were found have much in common, and between them are nearer ones: with `crossings` > 0, ten
       steps of `fmn` go from halfway between the closest success and the next one of another direction, at the distance
       of the closest, and turn; what they find takes part in the next generation, of a third of `crossings`.
    6. Where the margin's slope, at the boundary or twice or four times as far away, is below .6 or above 1.45 of that
       at the image, or at the boundary below .65 or above 1.5 of that half-way, as on most pixels of networks without
       constraints and hardly any of those with a certificate, there are many local minima. There as many steps down an
       augmented Lagrangian as each number in `leaps` says lead into others, by first steps as long as `strides` say,
       again from the beginning, in linearised distances: paths of other lengths and strides end elsewhere. Then
       `crossings` generations of two follow.
    A joint objective (a region) has no single ray: there the summed hinge is descended by `descent` short steps, and
    the result is bisected back (Xie et al. 2017, DAG).
    Returns (B, C, H, W): the closest success of each row, or its iterate of lowest loss.
    Costs for a pixel 2 + scouts + rays * search + turns + refine forward and classes + scouts + turns backward passes,
    where scouts count as rays; turns are `iterations` and, for each ray but the first, three eighths of them, rounded.
    With search = 1 the first turn looks at that point, and with `refine` below 2 nobody has to look beyond the last
    one, which saves rays and 1 forward passes. A row that begins again costs turns for two rays and `refine` more. With
    `leaps` or `crossings`, four each more to look at slopes; 23 forward for a crossing, and for a row of many minima
    each of `leaps` + 13 and `crossings` times 46; 3 less each backward.
    """
    images = images.detach()
    noise = Noise(images, generator)
    view = outlook(model, images, objective, classes, noise)
    if objective.joint:
        return _descend(model, images, view, rays, descent, search + refine, box)
    course = Course(rays + scouts, search, iterations, refine, reach, box)
    ends = follow(model, images, look_from_afar(model, images, view, rays, scouts, box, noise), course)
    found = ends.found
    if anew:
        found = begin_anew(model, images, view, found, ends.success, course, anew)
    if leaps or crossings:
        uneven = _uneven(model, images, view, found, box)
        descents = Descents(model, images, view, ends._replace(found=found), box=box, noise=noise)
        descents.cross(-(-crossings // 3), 1)
        many = descents.only(uneven)
        many.leap(leaps, strides, rays + scouts)
        many.cross(crossings, 2)
        found = many.closest(descents.closest(found))
    if refine < 2:  # points of turns, and a single one of a search, lie beyond the boundary already
        return found
    beyond = clip(torch.lerp(images, found, 1 + _STEP_BACK), box)
    with torch.no_grad():
        firm = view.objective(model(beyond)).success
    return select(firm, beyond, found)


def _uneven(model: Model, images: Tensor, view: Outlook, found: Tensor, box: Box) -> Tensor:
    """Rows (B,) whose margin's slope is not the same at the image, half-way, at the boundary and beyond."""
    margin, slope = view.objective.by_margin(), view.loss[0] / view.distance[0]
    halfway, *slopes = (_slope(model, margin, clip(torch.lerp(images, found, far), box)) for far in (0.5, *_LOOKS))
    uneven = _outside(slopes[0] / halfway, _STRAIGHT)
    for seen in slopes:
        uneven |= _outside(seen / slope, _EVEN)
    return uneven


def _slope(model: Model, margin: Objective, points: Tensor) -> Tensor:
    return lengths(loss_and_gradient(model, margin, points)[1])


def _outside(values: Tensor, limits: tuple[float, float]) -> Tensor:
    return (values < limits[0]) | (values > limits[1])


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
