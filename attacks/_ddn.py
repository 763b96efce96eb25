"""Decoupled direction and norm."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._newton import outlook
from ._refine import shrink
from ._rows import (
    Box,
    Generators,
    Model,
    Noise,
    across,
    along,
    falling,
    lengths,
    loss_and_gradient,
    rescaled,
    select,
)
from .objectives import Objective

__all__ = ["ddn"]


def ddn(
    model: Model,
    images: Tensor,
    objective: Objective,
    *,
    steps: int = 40,
    init_norm: float | None = None,
    gamma: float = 0.05,
    classes: int = 6,
    refine: int = 8,
    box: Box = None,
    generator: Generators = None,
) -> Tensor:
    """Minimum-norm attack that steps along the gradient and sets the norm apart (Rony et al. 2019, algorithm 1).

    The norm epsilon shrinks by 1 - gamma after a success and grows by 1 + gamma otherwise; gamma and the step length
    are annealed by a cosine (gamma as in FMN, Pintor et al. 2021), nothing is quantised, and the best point is bisected
    back towards the image. epsilon starts at `init_norm`, by default at the linearised distance of the nearest of
    `classes` classes, in whose direction the first step goes: radii of Lipschitz networks are far below the published
    1.
    Returns (B, C, H, W): the closest success of each row, or its iterate of lowest loss.
    Costs 1 + steps + refine forward and classes + steps backward passes.
    """
    images = images.detach()
    otherwise = Noise(images, generator)
    view = outlook(model, images, objective, classes, otherwise)
    objective = view.objective
    epsilon = view.distance[0] if init_norm is None else torch.full_like(view.distance[0], init_norm)
    alpha = epsilon
    point = along(images, epsilon, view.direction[0], box)
    delta = point - images

    found = torch.zeros_like(epsilon, dtype=torch.bool)
    best, best_norm = point, torch.full_like(epsilon, torch.inf)
    lowest = torch.full_like(epsilon, torch.inf)
    for step in range(steps):
        annealed = (1 + math.cos(math.pi * step / steps)) / 2
        goal, gradient = loss_and_gradient(model, objective, point)
        norm = lengths(delta)
        better = torch.where(goal.success, norm < best_norm, ~found & (goal.loss < lowest))
        best = select(better, point, best)
        best_norm = torch.where(goal.success & better, norm, best_norm)
        lowest = torch.minimum(lowest, goal.loss)
        ever, found = found, found | goal.success
        down, unit, length = falling(gradient, otherwise)
        # a success with a flat loss (a hinge at zero) needs no step, only a smaller norm
        move = torch.where(goal.success & (length == 0), 0, (0.01 + 0.99 * annealed) * alpha)
        delta.addcmul_(across(move * unit, delta), down)
        # until the first success the norm may grow faster, or a bad first guess would cost all steps
        growth = torch.where(ever, 1 + (0.001 + (gamma - 0.001) * annealed), 1 + 4 * gamma)
        shrinkage = 1 - (0.001 + (gamma - 0.001) * annealed)
        epsilon = torch.where(goal.success, torch.minimum(epsilon, norm) * shrinkage, epsilon * growth)
        point, delta = rescaled(images, delta, epsilon, box, otherwise)
    return shrink(model, images, best, objective, found, refine)
