"""Carlini and Wagner's attack."""

from __future__ import annotations

import torch
from torch import Tensor

from ._newton import outlook
from ._refine import shrink
from ._rows import Box, Generators, Model, Noise, across, along, clip, lengths, loss_and_gradient, select
from .objectives import Objective

__all__ = ["cw"]


def cw(
    model: Model,
    images: Tensor,
    objective: Objective,
    *,
    steps: int = 25,
    searches: int = 4,
    init_const: float = 8.0,
    rate: float = 0.05,
    classes: int = 6,
    refine: int = 8,
    box: Box = None,
    generator: Generators = None,
) -> Tensor:
    """Minimises `||delta||^2 + c * max(0, loss)` with Adam, and searches c by row (Carlini & Wagner 2017, section 6).

    Everything is measured in the row's own units, since logits of Lipschitz networks are small: delta in linearised
    distances of the nearest of `classes` classes (which is also where it starts), the loss in clean margins; c = 2 is
    then critical for an affine model. c is multiplied by 10 until a row succeeds, then bisected. Adam's `rate` is the
    length of a first step in these units. Instead of the published tanh, iterates are cut off at the box.
    Returns (B, C, H, W): the closest success of each row, bisected towards the image, or its iterate of lowest loss.
    Costs 1 + searches * steps + refine forward and classes + searches * steps backward passes.
    """
    images = images.detach()
    view = outlook(model, images, objective, classes, Noise(images, generator))
    objective = view.objective
    unit, margin = view.distance[0], view.loss[0].clamp_min(torch.finfo(images.dtype).tiny)
    start = clip(images + across(unit, images) * view.direction[0], box) - images
    # Adam moves all entries alike: the length of a step is rate * root of the number of entries that matter
    first = view.direction[0].flatten(1)
    entries = first.abs().sum(1).square() / first.square().sum(1).clamp_min(torch.finfo(images.dtype).tiny)
    length = rate / entries.clamp_min(1).sqrt()

    c = torch.full_like(unit, init_const)
    low, high = torch.zeros_like(c), torch.full_like(c, torch.inf)
    best, best_norm = clip(images + start, box), torch.full_like(c, torch.inf)
    lowest = torch.full_like(c, torch.inf)
    ever = torch.zeros_like(c, dtype=torch.bool)
    for search in range(searches):
        # one class first: the margin over the runner-up may lead away from a nearer class with a smaller logit
        aim = view.nearest if search % 2 == 0 or objective.joint else objective
        v = start / across(unit, start)
        first_moment, second_moment = torch.zeros_like(v), torch.zeros_like(c)
        found = torch.zeros_like(ever)
        for step in range(1, steps + 1):
            point = along(images, unit, v, box)
            goal, gradient = loss_and_gradient(model, aim, point)
            norm = lengths(point - images)
            better = torch.where(goal.success, norm < best_norm, ~ever & (goal.loss < lowest))
            best = select(better, point, best)
            best_norm = torch.where(goal.success & better, norm, best_norm)
            lowest = torch.minimum(lowest, goal.loss)
            found, ever = found | goal.success, ever | goal.success
            slope = torch.where(goal.loss > 0, c * unit / margin, 0)
            total = gradient.nan_to_num().mul_(across(slope, gradient)).add_(v, alpha=2)
            first_moment = first_moment.lerp_(total, 0.1)
            second_moment = 0.99 * second_moment + 0.01 * lengths(total).square() / total[0].numel()
            root = (second_moment / (1 - 0.99**step)).sqrt().clamp_min(torch.finfo(images.dtype).tiny)
            decay = 1 - 0.9 * (step - 1) / steps
            v = torch.addcmul(v, across(-decay * length / root / (1 - 0.9**step), v), first_moment)
            if box is not None:
                v = (along(images, unit, v, box) - images) / across(unit, v)
        low, high = torch.where(found, low, c), torch.where(found, c, high)
        c = torch.where(high < torch.inf, (low + high) / 2, 10 * c)
    return shrink(model, images, best, objective, ever, refine)
