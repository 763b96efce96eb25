"""Fast minimum-norm attack."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._newton import outlook
from ._refine import Track, shrink
from ._rows import (
    Box,
    Generators,
    Model,
    Noise,
    across,
    clip,
    falling,
    lengths,
    loss_and_gradient,
    polar,
    rescaled,
    select,
)
from ._turning import OVERSHOOT, Bests, turn
from .objectives import Objective

__all__ = ["descend", "fmn", "polish"]

_LAST_STEP, _LAST_GAMMA = 0.01, 0.001
_FIRST_TURN, _LAST_TURN = 0.2, 0.02


def fmn(
    model: Model,
    images: Tensor,
    objective: Objective,
    *,
    steps: int = 40,
    rate: float = 1.5,
    gamma: float = 0.05,
    turns: int = 12,
    classes: int = 6,
    refine: int = 6,
    box: Box = None,
    generator: Generators = None,
) -> Tensor:
    """Minimum-norm attack that steps along the gradient on a sphere of changing radius (Pintor et al. 2021, FMN in L2).

    The sphere's radius epsilon goes to the linearised boundary until a row has succeeded; from then on it shrinks by
    1 - gamma after a success, to the closest success at most, and grows by 1 + gamma otherwise. Steps, at first of
    `rate` times the linearised distance of the nearest of `classes` classes, and gamma are annealed by a cosine, to a
    hundredth and to .001. The first step is the one to that linearised boundary. What is left of the distance, which
    the published attack leaves to more steps, `turns` turns of the ray through the closest success take (as in
    `linearised`); on sets of pixels there are none. Then the ray is searched, `refine` points.
    Long steps on a sphere beyond the boundary lead past local minima that rays from the image end in.
    Returns (B, C, H, W): the closest success of each row, or its iterate of lowest loss.
    Costs 1 + steps + turns + refine forward and classes + steps + turns backward passes.
    """
    images = images.detach()
    noise = Noise(images, generator)
    view = outlook(model, images, objective, classes, noise)
    objective = view.objective.by_margin()
    start = across(view.distance[0], images) * view.direction[0]
    free = torch.full_like(view.distance[0], torch.inf)
    first = rate * view.distance[0]
    best, norm = descend(model, images, objective, start, free, first, steps=steps, gamma=gamma, box=box, noise=noise)
    if objective.joint:
        return shrink(model, images, best, objective, norm < torch.inf, refine)
    points, _ = polish(
        model, images, objective, best, norm, view.loss[0], turns=turns, refine=refine, box=box, noise=noise
    )
    return points


def descend(
    model: Model,
    images: Tensor,
    objective: Objective,
    start: Tensor,
    epsilon: Tensor,
    first: Tensor,
    *,
    steps: int,
    gamma: float,
    box: Box,
    noise: Noise,
) -> tuple[Tensor, Tensor]:
    """The steps of :func:`fmn` from `images` + `start` (B, C, H, W); `first` (B,) is the length of the first step.

    `epsilon` (B,) is the radius of the first sphere, infinite where the boundary is to be looked for.
    Returns the closest success of each row with its distance, or its iterate of lowest loss and an infinite one.
    """
    tiny = torch.finfo(images.dtype).tiny
    started = epsilon < torch.inf
    point = clip(images + start, box)
    delta = point - images
    best, best_norm = point, torch.full_like(first, torch.inf)
    lowest = torch.full_like(first, torch.inf)
    for step in range(steps):
        annealed = (1 + math.cos(math.pi * step / steps)) / 2
        part = _LAST_GAMMA + (gamma - _LAST_GAMMA) * annealed
        goal, gradient = loss_and_gradient(model, objective, point)
        norm = lengths(delta)
        found = best_norm < torch.inf
        better = torch.where(goal.success, norm < best_norm, ~found & (goal.loss < lowest))
        best = select(better, point, best)
        best_norm = torch.where(goal.success & better, norm, best_norm)
        lowest = torch.minimum(lowest, goal.loss)
        started = started | goal.success
        down, unit, slope = falling(gradient, noise)
        ahead = norm + torch.where(slope > 0, goal.loss.abs() / slope.clamp_min(tiny), norm)
        # the linearised boundary may lie anywhere where gradients nearly vanish
        outwards = torch.where(started, epsilon * (1 + part), torch.minimum(ahead, 4 * norm + first))
        epsilon = torch.where(goal.success, torch.minimum(epsilon * (1 - part), best_norm), outwards)
        # a success with a flat loss (a hinge at zero) needs no step, only a smaller norm
        length = (_LAST_STEP + (1 - _LAST_STEP) * annealed) * first
        move = torch.where(goal.success & (slope == 0), 0, length)
        delta.addcmul_(across(move * unit, delta), down)
        point, delta = rescaled(images, delta, epsilon, box, noise)
    return best, best_norm


def polish(
    model: Model,
    images: Tensor,
    objective: Objective,
    points: Tensor,
    norm: Tensor,
    start: Tensor,
    *,
    turns: int,
    refine: int,
    box: Box,
    noise: Noise,
) -> tuple[Tensor, Tensor]:
    """Turns the rays through `points`, at distance `norm` (B,), infinite where they do not succeed; then searches them.

    `start` (B,) is the loss at the image. Returns the closest point of each row and whether it succeeds (B,).
    Costs `turns` forward and backward and `refine` forward passes.
    """
    direction, distance = polar(points - images, noise)
    bests = Bests.of(Track(points, direction, distance, norm < torch.inf), images)
    schedule = []
    for i in range(turns):
        annealed = (1 + math.cos(math.pi * (i + 1) / turns)) / 2
        schedule.append((_LAST_TURN + (_FIRST_TURN - _LAST_TURN) * annealed, OVERSHOOT))
    bests = turn(model, images, objective, bests, schedule, box)
    return bests.searched(model, images, objective, start, refine, 4.0, box)
