"""Boundary refinement along segments and rays."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._rows import Box, Model, across, along, select
from .objectives import Goal, Objective

__all__ = ["Track", "bisect", "shoot", "shrink"]


class Track(NamedTuple):
    """Points (B, C, H, W), the unit directions of their rays, distances along them (B,), and which of them succeed."""

    points: Tensor
    direction: Tensor
    distance: Tensor
    success: Tensor


@torch.no_grad()
def bisect(model: Model, images: Tensor, adversarial: Tensor, objective: Objective, *, steps: int = 12) -> Tensor:
    """The first boundary met by bisection of the segment from `images` to `adversarial` (B, C, H, W).

    Rows whose adversarial point does not reach the objective come back unchanged; the others come back on the
    successful side. Costs `steps` + 2 forward passes, or + 1 if the objective is bound already.
    """
    objective = objective.bind(model(images))
    success = objective(model(adversarial)).success
    return shrink(model, images, adversarial, objective, success, steps)


@torch.no_grad()
def shrink(
    model: Model, images: Tensor, adversarial: Tensor, objective: Objective, success: Tensor, steps: int
) -> Tensor:
    """Bisection of the segments of the rows that are known to succeed at `adversarial`; `objective` is bound."""
    delta = adversarial
    low, high = torch.zeros_like(success, dtype=images.dtype), torch.ones_like(success, dtype=images.dtype)
    best = adversarial
    for _ in range(steps):
        middle = (low + high) / 2
        point = torch.lerp(images, adversarial, across(middle, delta))
        inside = objective(model(point)).success & success
        best = select(inside, point, best)
        high = torch.where(inside, middle, high)
        low = torch.where(inside, low, middle)
    return best


@torch.no_grad()
def shoot(
    model: Model,
    images: Tensor,
    direction: Tensor,
    guess: Tensor,
    objective: Objective,
    *,
    start: Tensor,
    steps: int,
    reach: float,
    box: Box,
) -> Track:
    """The boundary along rays from `images` in unit `direction`, first tried at distance `guess` (B,).

    A ray that has not flipped grows by secant steps, at most doubling, up to `reach` times its guess; once flipped, its
    bracket shrinks by false position kept inside the bracket, and every third step by bisection, since losses of sets
    have no usable slope. `start` (B,) is the loss at the image.
    Returns the closest success on each ray, or the farthest point tried.
    """
    low, low_loss = torch.zeros_like(guess), start
    high = torch.full_like(guess, torch.inf)
    high_loss = torch.zeros_like(start)
    t = guess
    limit = guess * reach
    for step in range(steps):
        goal: Goal = objective(model(along(images, t, direction, box)))
        shorter = goal.success & (t < high)
        high, high_loss = torch.where(shorter, t, high), torch.where(shorter, goal.loss, high_loss)
        further = ~goal.success & (t > low) & (t < high)
        slope_low, slope_loss = low, low_loss
        low, low_loss = torch.where(further, t, low), torch.where(further, goal.loss, low_loss)
        # beyond: extrapolate the last two points on the near side, aiming a little past the boundary
        drop = (slope_loss - low_loss) / (low - slope_low).clamp_min(torch.finfo(t.dtype).tiny)
        ahead = torch.where(drop > 0, low + 1.02 * low_loss / drop, torch.inf)
        ahead = torch.maximum(torch.minimum(ahead, 2 * low), 1.05 * low)
        # between: false position, kept off the ends
        width = high - low
        part = low_loss / (low_loss - high_loss)
        usable = (low_loss > 0) & (high_loss < 0)
        part = torch.where(usable, part, 0.5) if step % 3 < 2 else torch.full_like(part, 0.5)
        inner = low + width * part.clamp(0.02, 0.98)
        t = torch.where(high < torch.inf, inner, torch.minimum(ahead, limit))
        t = torch.where(torch.isfinite(t), t, limit)
    success = high < torch.inf
    distance = torch.where(success, high, low)
    return Track(along(images, distance, direction, box), direction, distance, success)
