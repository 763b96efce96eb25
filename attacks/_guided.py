"""The attack at a fixed budget that follows the joint certificate."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import threshold

from attackcheck import synchrony
from attackcheck.errors import InputError
from attackcheck.sorting import ascending

from ._rows import Box, Generators, Model, across, clip, gaussian, lengths, per_row, polar
from .objectives import Objective, SetFlip

__all__ = ["guided"]

_FIRST = 0.02  # share of the pixels that the first step aims at, before any movement was measured
_WIDE, _NARROW = 0.25, 0.025  # of the budget, in the first and the last step
_FLIPPED = 8.0  # how much faster than for unflipped pixels the weight falls behind the boundary
_NOTHING = 1e-12  # weights that change no sum of single precision, but whose products processors compute slowly


def guided(
    model: Model,
    images: Tensor,
    objective: Objective,
    *,
    eps: float | Tensor,
    steps: int = 15,
    step_size: float = 0.5,
    momentum: float = 0.75,
    box: Box = None,
    generator: Generators = None,
) -> Tensor:
    """Flips as many pixels as it can within `||x - images|| <= eps`, cheapest first, as the joint certificate counts.

    A joint Lipschitz certificate fears the set of smallest margins m whose sum of m^2 / 2 stays below the squared
    movement of the logits that eps permits. Here the movement is the one measured at the point reached, and a part of
    it (annealed from .25 to .025 of its norm) buys a prefix of the margins still open there; flipped pixels cost
    nothing, so the prefix grows as flips happen. Its largest margin is the width of the weights: exp(-m / width) for
    pixels still to flip, falling eight times as fast behind the boundary. The weighted sum of margins is descended by
    normalised steps with momentum, each `step_size * eps` long and halved when a fifth of the steps brought no further
    flip, going on from the best point (after Auto-PGD, Croce & Hein 2020, section 3).
    `eps` is a number, or one for each row (B,).
    Returns for each row (B, C, H, W) the point with the most of its weight flipped. Costs 2 + steps forward and
    steps backward passes. Raises InputError for an objective that is no set of pixels.
    """
    if not isinstance(objective, SetFlip):
        raise InputError(f"guided attacks regions and images, got {type(objective).__name__}: use pgd")
    images = images.detach()
    otherwise, _ = polar(gaussian(images, generator))
    with torch.no_grad():
        clean = model(images).detach()
    objective = objective.bind(clean)
    everything = objective.weight_map(clean)
    none = everything == 0
    void = None if synchrony.readable(none) and not bool(none.any()) else none
    delta = velocity = torch.zeros_like(images)
    budgets = per_row(eps, images)
    size = step_size * budgets
    best, best_share, best_margin = delta, torch.full_like(size, -1), torch.full_like(size, torch.inf)
    before, period = best_share, max(1, steps // 5)
    for step in range(steps + 1):
        with torch.enable_grad():
            point = clip(images + delta, box).requires_grad_()
            logits = model(point)
            margins = objective.margins(logits)
            missing = margins.detach()
            share = (everything * (missing < 0)).flatten(1).sum(1)
            budget = (logits.detach() - clean).flatten(1).norm(dim=1) * _part(step / steps)
            ordered = _ordered(missing, void)
            width = _bought(ordered, budget) if step else _quantile(ordered)
            weight = torch.exp(-torch.maximum(missing, -_FLIPPED * missing) / width)
            weight = everything * threshold(weight, _NOTHING, 0)
            nearest = (weight * missing).flatten(1).sum(1)
            if step < steps:
                (gradient,) = torch.autograd.grad(margins, point, weight)
        better = (share > best_share) | ((share == best_share) & (nearest < best_margin))
        best = torch.where(across(better, best), point.detach(), best)
        best_margin = torch.where(better, nearest, best_margin)
        best_share = torch.maximum(share, best_share)
        if step == steps:
            break
        if step and step % period == 0:
            stuck = ~(best_share > before)
            size = torch.where(stuck, size / 2, size)
            delta = torch.where(across(stuck, delta), best - images, delta)
            velocity = torch.where(across(stuck, delta), 0, velocity)
            before = best_share
        downhill, _ = polar(-gradient, otherwise)
        velocity = momentum * velocity + (1 - momentum) * downhill
        move, _ = polar(velocity)
        # the first step goes all the way
        delta = delta + across(size if step else budgets, delta) * move
        delta = delta * across((budgets / lengths(delta).clamp_min(1e-30)).clamp_max(1), delta)
        delta = clip(images + delta, box) - images
    return best


def _part(done: float) -> float:
    return float(_WIDE * (_NARROW / _WIDE) ** done)


def _bought(ordered: Tensor, budget: Tensor) -> Tensor:
    """The largest margin (B, 1, 1) of the cheapest open pixels whose sum of m^2 / 2 stays within budget^2."""
    spent = (ordered.double().square() / 2).cumsum(1)
    place = torch.searchsorted(spent, budget.double().square().unsqueeze(1), right=True)
    return _positive(ordered.gather(1, place.clamp_max(ordered.shape[1] - 1)))


def _quantile(ordered: Tensor) -> Tensor:
    """The margin (B, 1, 1) below which the first step's share of the pixels lies."""
    count = (ordered < torch.inf).sum(1, keepdim=True)
    return _positive(ordered.gather(1, (_FIRST * count).long().clamp_max(ordered.shape[1] - 1)))


def _ordered(margins: Tensor, void: Tensor | None) -> Tensor:
    """What each pixel still lacks, ascending (B, H * W), 0 where it is flipped and infinite where it is `void`."""
    lacking = margins.clamp_min(0)
    return ascending((lacking if void is None else lacking.masked_fill(void, torch.inf)).flatten(1))


def _positive(width: Tensor) -> Tensor:
    finite = torch.where(torch.isfinite(width), width, torch.finfo(width.dtype).max ** 0.5)
    return finite.clamp_min(torch.finfo(width.dtype).tiny ** 0.5).unsqueeze(2)
