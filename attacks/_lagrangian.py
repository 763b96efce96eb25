"""Descents that climb out of local minima: an augmented Lagrangian, in steps as long for every value."""

from __future__ import annotations

import torch
from torch import Tensor

from ._rows import Box, Model, Noise, across, clip, downhill, lengths, loss_and_gradient, select
from .objectives import Objective

__all__ = ["leap"]

_LAST_RATE = 1e-3  # of the steps' rate after the last one, over the first
_MEMORY = 0.9  # of all averages, and the momentum
_PATIENCE, _IMPROVED, _GROWTH = 10, 0.95, 1.2
_LEAST, _MOST = 1e-6, 1e12  # multiplier, and the penalty's part of a step, which is divided by its own average


def leap(
    model: Model,
    images: Tensor,
    objective: Objective,
    distance: Tensor,
    start: Tensor,
    stride: Tensor,
    *,
    steps: int,
    box: Box,
    noise: Noise,
) -> tuple[Tensor, Tensor]:
    """Descends length + penalty of the margin from the image (Rony et al. 2021, ALMA, with the penalty P2 of Birgin).

    Lengths are counted in linearised distances `distance` (B,), margins in those at the image, `start` (B,). The
    published attack starts with a step to the boundary and anneals a hundredfold; here the first step has a length of
    `stride` (B,), better several times as far, and rates are annealed a thousandfold in a fifth of its steps, for
    others may polish what it finds. RMSProp moves all values of the window, so that rows see far more of it than along
    gradients, and with momentum they leave local minima.
    Returns the closest success of each row (B, C, H, W) with its distance (B,), or the image and infinity.
    Costs `steps` forward and backward passes.
    """
    unit, margin = distance, start.clamp_min(torch.finfo(start.dtype).tiny)
    delta, momentum, squares = torch.zeros_like(images), torch.zeros_like(images), torch.ones_like(images)
    multiplier, weight = torch.ones_like(unit), torch.ones_like(unit)
    best, best_norm = images, torch.full_like(unit, torch.inf)
    found_at = torch.full_like(unit, steps)
    before = torch.ones_like(unit)
    # at the image the slope is one margin per unit
    rate = stride / _slope(before, weight, multiplier) * unit
    for step in range(steps):
        goal, gradient = loss_and_gradient(model, objective, images + delta)
        norm, loss = lengths(delta), (goal.loss / margin).nan_to_num()
        closer = goal.success & (norm < best_norm)
        found_at = torch.where(goal.success & (best_norm == torch.inf), step, found_at)
        best, best_norm = select(closer, images + delta, best), torch.where(closer, norm, best_norm)
        if (step + 1) % _PATIENCE == 0:
            weight = torch.where((best_norm < torch.inf) | (loss < _IMPROVED * before), weight, _GROWTH * weight)
            before = loss
        way, slope = downhill(gradient, noise)
        if step:
            multiplier = torch.lerp(_slope(loss, weight, multiplier), multiplier, _MEMORY).clamp(_LEAST, _MOST)
        push = _slope(loss, weight, multiplier) * slope * unit / margin
        push = push.nan_to_num(nan=0.0).clamp_max(_MOST)
        move = across(push, way) * way
        if step:
            move = move.addcmul_(across(1 / norm.clamp_min(torch.finfo(norm.dtype).tiny), delta), delta, value=-1)
        else:  # without a slope the first step goes anywhere
            move = select(push > 0, move, way)
        part = (step - found_at).clamp_min(0) / (steps - found_at).clamp_min(1)
        squares = squares.mul_(_MEMORY).addcmul_(move, move, value=1 - _MEMORY)
        momentum = momentum.mul_(_MEMORY).addcdiv_(move, squares.sqrt().add_(1e-8))
        delta = clip(torch.addcmul(images + delta, across(rate * _LAST_RATE**part, delta), momentum), box) - images
    return best, best_norm


def _slope(loss: Tensor, weight: Tensor, multiplier: Tensor) -> Tensor:
    """Derivative of the penalty by the loss."""
    outside, inside = loss.clamp_min(0), loss.clamp_max(0)
    rising = multiplier * (1 + 2 * weight * outside) + (weight * outside).square() / 2
    return torch.where(loss >= 0, rising, multiplier / (1 - weight * inside).square())
