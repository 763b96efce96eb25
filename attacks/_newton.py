"""First-order look at the clean images: the nearest classes and the way to them. Every optimiser starts here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._rows import Model, Noise, downhill
from .objectives import Goal, Objective

__all__ = ["Outlook", "outlook"]


class _Nearest:
    """The margin of each row's own nearest class; any success of the objective counts."""

    def __init__(self, variants: Sequence[Objective], choice: Tensor) -> None:
        self.variants, self.choice = variants, choice

    def __call__(self, logits: Tensor) -> Goal:
        goals = [variant(logits) for variant in self.variants]
        loss = torch.stack([goal.loss for goal in goals]).gather(0, self.choice.unsqueeze(0)).squeeze(0)
        return Goal(loss, goals[0].success)

    def rows(self, index: Tensor) -> _Nearest:
        """That of the rows `index`."""
        return _Nearest([variant.rows(index) for variant in self.variants], self.choice[index])


class Outlook(NamedTuple):
    """What the clean images tell, V candidates sorted by linearised distance, nearest first."""

    objective: Objective  # bound
    loss: Tensor  # (V, B) margins at the image
    direction: Tensor  # (V, B, C, H, W) unit, downhill
    distance: Tensor  # (V, B) Newton steps: margin / norm of its gradient
    nearest: _Nearest  # the margin of each row's first candidate alone

    def rows(self, index: Tensor) -> Outlook:
        """That of the rows `index`."""
        parts = (self.loss[:, index], self.direction[:, index], self.distance[:, index])
        return Outlook(self.objective.rows(index), *parts, self.nearest.rows(index))


def outlook(model: Model, images: Tensor, objective: Objective, classes: int, noise: Noise) -> Outlook:
    """One forward and up to `classes` backward passes at the clean images (B, C, H, W).

    A row without a gradient gets the direction of `noise` and distance 1.
    """
    with torch.enable_grad():
        points = images.detach().requires_grad_()
        logits = model(points)
        bound = objective.bind(logits.detach())
        variants = bound.candidates(logits.detach(), classes)
        goals = [variant(logits) for variant in variants]
        gradients = [
            torch.autograd.grad(goal.loss.sum(), points, retain_graph=i + 1 < len(goals))[0]
            for i, goal in enumerate(goals)
        ]
    parts = [downhill(gradient, noise) for gradient in gradients]
    direction = torch.stack([part[0] for part in parts])
    norm = torch.stack([part[1] for part in parts])  # (V, B)
    loss = torch.stack([goal.loss.detach() for goal in goals])
    floor = torch.finfo(images.dtype).tiny
    distance = torch.where(norm > 0, loss.clamp_min(0) / norm.clamp_min(floor), 1)
    # a tie at the image leaves no step to scale by; the smallest one that moves the image in this dtype
    distance = distance.nan_to_num(nan=1.0, posinf=1.0).clamp(4 * torch.finfo(images.dtype).eps, 1e6)
    order = distance.sort(dim=0, stable=True).indices  # (V, B)
    nearest = _Nearest(variants, order[0])
    if len(goals) > 1:
        direction = direction[order, torch.arange(len(images), device=images.device)]
    return Outlook(bound, loss.gather(0, order), direction, distance.gather(0, order), nearest)
