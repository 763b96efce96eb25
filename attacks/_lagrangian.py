"""Descents that climb out of local minima: an augmented Lagrangian, in steps as long for every value."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._rows import Box, Model, Noise, across, clip, downhill, lengths, loss_and_gradient, select
from .objectives import Objective

__all__ = ["Leap"]

_LAST_RATE = 1e-3  # of the steps' rate after the last one, over the first
_MEMORY = 0.9  # of all averages, and the momentum
_PATIENCE, _IMPROVED, _GROWTH = 10, 0.95, 1.2
_LEAST, _MOST = 1e-6, 1e12  # multiplier, and the penalty's part of a step, which is divided by its own average


class Leap(NamedTuple):
    """Paths that descend length + penalty of the margin from the image (Rony et al. 2021, ALMA, with Birgin's P2).

    Lengths are counted in linearised distances, margins in those at the image. The published attack starts with a step
    to the boundary and anneals a hundredfold; here the first step is several linearised distances long, and rates are
    annealed a thousandfold in a fifth of its steps, for others may polish what it finds. RMSProp moves all values of
    the window, so that rows see far more of it than along gradients, and with momentum they leave local minima.
    """

    unit: Tensor  # (B,) linearised distance
    margin: Tensor  # at the image
    steps: Tensor  # of the whole path
    rate: Tensor  # of the first step
    delta: Tensor  # (B, C, H, W)
    momentum: Tensor
    squares: Tensor
    multiplier: Tensor  # (B,)
    weight: Tensor
    before: Tensor  # loss when the weight was last looked at
    found_at: Tensor  # step
    best: Tensor  # (B, C, H, W), the image without a success
    norm: Tensor  # (B,) of it, then infinite

    @staticmethod
    def of(images: Tensor, distance: Tensor, start: Tensor, stride: Tensor, steps: Tensor) -> Leap:
        """Paths of `steps` (B,) steps, the first of length `stride` in `distance`; `start` is the loss at the image."""
        one = torch.ones_like(distance)
        # at the image the slope is one margin per unit
        rate = stride / _slope(one, one, one) * distance
        free, zero = torch.full_like(distance, torch.inf), torch.zeros_like(images)
        margin = start.clamp_min(torch.finfo(start.dtype).tiny)
        steps = steps.to(distance)
        return Leap(
            distance,
            margin,
            steps,
            rate,
            zero,
            zero.clone(),
            torch.ones_like(images),
            one,
            one,
            one,
            steps,
            images,
            free,
        )

    def first(self, rows: int) -> Leap:
        """Those of the first rows."""
        return Leap(*(value[:rows] for value in self))

    def gone(self, model: Model, images: Tensor, objective: Objective, steps: range, *, box: Box, noise: Noise) -> Leap:
        """After these steps, a forward and a backward pass each."""
        unit, margin, length, rate, delta, momentum, squares, multiplier, weight, before, found_at, best, closest = self
        squares, momentum = squares.clone(), momentum.clone()
        for step in steps:
            goal, gradient = loss_and_gradient(model, objective, images + delta)
            norm, loss = lengths(delta), (goal.loss / margin).nan_to_num()
            closer = goal.success & (norm < closest)
            found_at = torch.where(goal.success & (closest == torch.inf), step, found_at)
            best, closest = select(closer, images + delta, best), torch.where(closer, norm, closest)
            if (step + 1) % _PATIENCE == 0:
                weight = torch.where((closest < torch.inf) | (loss < _IMPROVED * before), weight, _GROWTH * weight)
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
            part = (step - found_at).clamp_min(0) / (length - found_at).clamp_min(1)
            squares = squares.mul_(_MEMORY).addcmul_(move, move, value=1 - _MEMORY)
            momentum = momentum.mul_(_MEMORY).addcdiv_(move, squares.sqrt().add_(1e-8))
            delta = clip(torch.addcmul(images + delta, across(rate * _LAST_RATE**part, delta), momentum), box) - images
        return Leap(
            unit, margin, length, rate, delta, momentum, squares, multiplier, weight, before, found_at, best, closest
        )


def _slope(loss: Tensor, weight: Tensor, multiplier: Tensor) -> Tensor:
    """Derivative of the penalty by the loss."""
    outside, inside = loss.clamp_min(0), loss.clamp_max(0)
    rising = multiplier * (1 + 2 * weight * outside) + (weight * outside).square() / 2
    return torch.where(loss >= 0, rising, multiplier / (1 - weight * inside).square())
