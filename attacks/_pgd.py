"""Projected gradient descent in an L2 ball."""

from __future__ import annotations

import torch
from torch import Tensor

from ._newton import outlook
from ._rows import Box, Generators, Model, Noise, across, clip, lengths, loss_and_gradient, per_row, polar
from .objectives import Objective

__all__ = ["pgd"]


def pgd(
    model: Model,
    images: Tensor,
    objective: Objective,
    *,
    eps: float | Tensor,
    steps: int = 20,
    restarts: int = 1,
    step_size: float = 0.5,
    momentum: float = 0.75,
    classes: int = 6,
    box: Box = None,
    generator: Generators = None,
) -> Tensor:
    """Minimises the objective's loss over `||x - images|| <= eps` by normalised gradient steps (Madry et al. 2018).

    The step is `step_size * eps` at first and is halved for a row whose best loss did not improve over a checkpoint of
    a fifth of the steps, which then goes on from its best point (after Auto-PGD, Croce & Hein 2020, section 3).
    Start r lies towards the r-th nearest class at distance eps, because the loss has local minima inside the ball;
    starts beyond the number of classes are random. `eps` is a number, or one for each row (B,).
    Returns for each row (B, C, H, W) the point of lowest loss, successful ones first. Costs 1 + restarts * (steps + 1)
    forward passes and one backward pass more per class.
    """
    images = images.detach()
    noise = Noise(images, generator)
    view = outlook(model, images, objective, min(classes, restarts), noise)
    objective = view.objective
    random, budgets = noise.unit, per_row(eps, images)
    best = images
    best_key = torch.full_like(view.loss[0], torch.inf)
    best_success = torch.zeros_like(best_key, dtype=torch.bool)
    variants = view.direction.shape[0]
    period = max(1, steps // 5)
    for restart in range(restarts):
        if restart < variants:
            start = view.direction[restart]
        else:
            # turned by one place each time: new directions without new numbers
            start = random.flatten(1).roll(restart - variants, dims=1).reshape(images.shape)
        delta = clip(images + across(budgets, images) * start, box) - images
        size = step_size * budgets
        own, own_loss = delta, torch.full_like(best_key, torch.inf)
        before = own_loss
        velocity = torch.zeros_like(delta)
        for step in range(steps + 1):
            point = clip(images + delta, box)
            goal, gradient = loss_and_gradient(model, objective, point)
            better = (goal.success & ~best_success) | ((goal.success == best_success) & (goal.loss < best_key))
            best = torch.where(across(better, best), point, best)
            best_key = torch.where(better, goal.loss, best_key)
            best_success = best_success | goal.success
            lower = goal.loss < own_loss
            own, own_loss = torch.where(across(lower, own), delta, own), torch.where(lower, goal.loss, own_loss)
            if step and step % period == 0:
                stuck = ~(own_loss < before)
                size = torch.where(stuck, size / 2, size)
                delta = torch.where(across(stuck, delta), own, delta)
                velocity = torch.where(across(stuck, delta), 0, velocity)
                before = own_loss
            direction, _ = polar(gradient)
            velocity = momentum * velocity - (1 - momentum) * direction
            move, _ = polar(velocity)
            delta = delta + across(size, delta) * move
            delta = delta * across((budgets / lengths(delta).clamp_min(1e-30)).clamp_max(1), delta)
            delta = clip(images + delta, box) - images
    return best
