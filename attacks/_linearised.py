"""Attacks along linearised decision boundaries."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._fmn import descend, polish
from ._lagrangian import leap
from ._newton import Outlook, outlook
from ._refine import Track, shoot, shrink
from ._rows import (
    Box,
    Generators,
    Model,
    Noise,
    across,
    along,
    clip,
    downhill,
    gaussian,
    lengths,
    loss_and_gradient,
    of_rows,
    polar,
    select,
)
from ._turning import OVERSHOOT, Bests, turn
from .objectives import Objective

__all__ = ["linearised"]

_FIRST_TURN, _MIDDLE_TURN, _LEAST_TURN = 0.7, 0.2, 0.02
_OPENING = 0.375  # share of the turns in which all rays take part and step far beyond the boundary
_FIRST_OVERSHOOT = 0.3
_FLAT = (0.98, 1.05)  # distance of a flat boundary over the linearised one, which points of a search overshoot
_EVEN = (0.9, 1.45)  # slope of an even margin at its boundary, whose class may be another one, over that at the image
# Where descents of a bent row start: a whole number is one of the linearised boundaries, nearest first, any other says
# how many times as far away as the best point. The turns came from the first two boundaries, so others are first.
_RANDOM = None
_STARTS: tuple[int | float | None, ...] = (2, 2.0, 0, _RANDOM, 1, 3.0, 4, _RANDOM, 3, 1.5, 5)
_RATE = 1.5  # length of the first step over the distance of the start
_GAMMA = 0.05
_MORE_TURNS, _MORE_REFINE = 10, 3
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
    again: int = 0,
    starts: int = 2,
    leaps: int = 0,
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
    4. Where the distance is more than 2 % below or 5 % above the linearised one, the boundary is bent and may have
       nearer parts that no turning leads to. With `again` > 0 these rows are looked at once more by `again` steps of
       `fmn` from each of `starts` places, at least two: the third linearised boundary, twice as far away as the best
       point, the first boundary, a random direction, the second boundary and so on. Where the margin's slope at the
       boundary is more than a tenth below or .45 above that at the image, as on many pixels of networks without
       constraints, `leaps` steps down an augmented Lagrangian leave local minima that all of these end in.
       Then what they found turns.
    A joint objective (a region) has no single ray: there the summed hinge is descended by `descent` short steps, and
    the result is bisected back (Xie et al. 2017, DAG).
    Returns (B, C, H, W): the closest success of each row, or its iterate of lowest loss.
    Costs for a pixel 2 + rays * search + turns + refine forward and classes + turns backward passes; turns are
    `iterations` and, for each ray but the first, three eighths of them, rounded. With `again`, one each more to look at
    the slope, and for a bent row `starts` times `again` + 13 and `leaps` + 13 forward, and 3 less each backward. With
    search = 1 the first turn looks at that point, and with `refine` below 2 nobody has to look beyond the last one,
    which saves rays and 1 forward passes.
    """
    images = images.detach()
    noise = Noise(images, generator)
    view = outlook(model, images, objective, classes, noise)
    if objective.joint:
        return _descend(model, images, view, rays, descent, search + refine, box)
    count = min(rays, view.direction.shape[0])
    batch = images.shape[0]
    seen, wide, margin = model, images, view.objective.by_margin()
    if count > 1:
        index = torch.arange(batch, device=images.device).repeat(count)
        seen, wide, margin = of_rows(model, index), images[index], margin.rows(index)  # (R*B, C, H, W)
    guess, start = 1.001 * view.distance[:count].flatten(), view.loss[:count].flatten()
    ways = view.direction[:count].flatten(0, 1)
    track = Track(wide, ways, guess, torch.zeros_like(guess, dtype=torch.bool))
    if search > 1 or not iterations:  # the first turn looks at the first point anyway
        track = shoot(seen, wide, ways, guess, margin, start=start, steps=search, reach=reach, box=box)
    opening = round(_OPENING * iterations) if count > 1 else 0
    schedule = _schedule(opening, iterations)
    bests = turn(seen, wide, margin, Bests.of(track, wide), schedule[:opening], box)
    bests = bests.chosen(count)
    bests = turn(model, images, view.objective.by_margin(), bests, schedule[opening:], box)
    margin = view.objective.by_margin()
    found, success = bests.searched(model, images, margin, view.loss[0], refine, reach, box)
    if again:
        _, gradient = loss_and_gradient(model, margin, found)
        ratio, slope = lengths(found - images) / view.distance[0], lengths(gradient) * view.distance[0] / view.loss[0]
        steep = success & ((slope < _EVEN[0]) | (slope > _EVEN[1]))
        bent = steep | success & ((ratio < _FLAT[0]) | (ratio > _FLAT[1]))
        found = _Descents(model, images, view, found, bent, box, noise, generator).descended(
            again, max(2, starts), rays
        )
        if leaps:
            found = _Descents(model, images, view, found, steep, box, noise, generator).leapt(leaps)
    if refine < 2:  # points of turns, and a single one of a search, lie beyond the boundary already
        return found
    beyond = clip(torch.lerp(images, found, 1 + _STEP_BACK), box)
    with torch.no_grad():
        firm = view.objective(model(beyond)).success
    return select(firm, beyond, found)


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


class _Part(NamedTuple):
    """Rows that descend at once."""

    origin: Tensor  # (b,) rows of the attack
    model: Model
    images: Tensor
    objective: Objective
    loss: Tensor  # at the image
    noise: Noise

    @property
    def attacked(self) -> tuple[Model, Tensor, Objective]:
        return self.model, self.images, self.objective


class _Descents:
    """Descents of some `rows` (B,) bool, which succeed at `found` (B, C, H, W)."""

    def __init__(
        self,
        model: Model,
        images: Tensor,
        view: Outlook,
        found: Tensor,
        rows: Tensor,
        box: Box,
        noise: Noise,
        generator: Generators,
    ) -> None:
        self._model, self._images, self._view, self._found = model, images, view, found
        self._box, self._noise, self._generator = box, noise, generator
        self._index = rows.nonzero().flatten()  # here the host waits for the device, once for each kind of descent
        self._so_far = (found - images)[self._index]
        self._shortest = lengths(self._so_far)

    def descended(self, steps: int, starts: int, together: int) -> Tensor:
        """The closest successes known, after `fmn` from several places; `together` of them, at least two, at once."""
        points = self._found
        if not len(self._index):
            return points
        together = min(max(2, together), starts)
        for begin in range(0, starts, together):
            # never a single row: libraries compute a batch of one by another algorithm
            number = min(begin, starts - together)
            part = self._rows(together)
            places = [self._start(number + i) for i in range(together)]
            start, epsilon, first = (torch.cat(values) for values in zip(*places, strict=True))
            found, norm = descend(
                *part.attacked, start, epsilon, first, steps=steps, gamma=_GAMMA, box=self._box, noise=part.noise
            )
            points = self._closer(points, part, found, norm)
        return points

    def leapt(self, steps: int) -> Tensor:
        """The closest successes known, after a descent that leaves local minima."""
        if not len(self._index):
            return self._found
        part = self._rows(1 if len(self._index) > 1 else 2)
        found, norm = leap(
            *part.attacked, self._view.distance[0][part.origin], part.loss, steps=steps, box=self._box, noise=part.noise
        )
        return self._closer(self._found, part, found, norm)

    def _start(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Perturbation (b, C, H, W), radius of the first sphere (b,), infinite for a search, length of a step (b,)."""
        place = _STARTS[number] if number < len(_STARTS) else _RANDOM
        free = torch.full_like(self._shortest, torch.inf)
        if isinstance(place, float):
            radius = place * self._shortest
            return place * self._so_far, radius, _RATE * radius
        if place is None or place >= len(self._view.distance):
            way, distance = self._random(number), self._shortest
        else:
            way = self._view.direction[place][self._index]
            # where gradients vanish, the linearised boundary is anywhere
            distance = torch.minimum(self._view.distance[place][self._index], 2 * self._shortest)
        return across(distance, way) * way, free, _RATE * distance

    def _random(self, number: int) -> Tensor:
        """By fresh generators: how many numbers the given ones have drawn may depend on other rows of the batch."""
        given = self._generator
        if isinstance(given, torch.Generator):
            return polar(gaussian(self._so_far, _fresh(given, number)))[0]
        rows = self._index.tolist()
        fresh = [torch.Generator().manual_seed(number) if given is None else _fresh(given[row], number) for row in rows]
        return polar(gaussian(self._so_far, fresh))[0]

    def _rows(self, count: int) -> _Part:
        """Each of the rows `count` times."""
        index = self._index.repeat(count)
        margin, loss = self._view.objective.by_margin().rows(index), self._view.loss[0][index]
        return _Part(index, of_rows(self._model, index), self._images[index], margin, loss, self._noise.rows(index))

    def _closer(self, points: Tensor, part: _Part, found: Tensor, norm: Tensor) -> Tensor:
        """The closest of `points` (B, C, H, W) and of `found`, at distances `norm`, once its rays have turned."""
        found, success = polish(
            *part.attacked, found, norm, part.loss, turns=_MORE_TURNS, refine=_MORE_REFINE, box=self._box,
            noise=part.noise,
        )  # fmt: skip
        count = len(part.origin) // len(self._index)
        length, end = torch.where(success, lengths(found - part.images), torch.inf).reshape(count, -1).min(0)
        found = found.reshape(count, -1, *found.shape[1:])[end, torch.arange(len(end), device=end.device)]
        before = points[self._index]
        nearer = length < lengths(before - self._images[self._index])
        return points.index_copy(0, self._index, select(nearer, found, before))


def _fresh(given: torch.Generator, number: int) -> torch.Generator:
    """The generator of this number that belongs to one, whatever that has drawn."""
    return torch.Generator(given.device).manual_seed((given.initial_seed() + number + 1) % 2**63)


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
