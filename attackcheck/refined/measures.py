"""Worst cases of one image by the refined certificate."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from attackcheck.measures.image import ImageBounds, bounds
from attackcheck.measures.ladder import Ladder
from attackcheck.refined.certificate import RefinedCosts

__all__ = ["refined_bounds"]


def refined_bounds(costs: RefinedCosts, labels: Tensor | None, ignore: int, eps: Tensor) -> ImageBounds:
    """Worst cases at every budget ``eps`` (E,).

    `alone` rests on the refined radii of single pixels. `joint` is the same for IoU and components; of pixels that
    change, that stop being right, and that a class loses, it is what a budget allows that all of them share.

    Args:
        costs: of the image.
        labels: ``(H, W)`` on the costs' device, or None.
        ignore: the label that counts for nothing.
        eps: at least 0.
    """
    found = bounds(costs, labels, ignore, eps, smallest=False)
    every = torch.ones_like(costs.predicted, dtype=torch.bool)
    kept = _fewer(costs, every, found.alone.kept, eps)
    right, intersection = found.alone.right, found.alone.intersection
    if labels is not None:
        flat = labels.flatten().to(costs.predicted.device)
        hit = (costs.predicted == flat) & (flat != ignore)
        right = _fewer(costs, hit, right, eps)
        rows = [
            _fewer(costs, hit & (costs.predicted == label), alone, eps) if bool(alone.any()) else alone
            for label, alone in enumerate(intersection)
        ]
        intersection = np.stack(rows) if rows else intersection
    return replace(found, joint=replace(found.alone, right=right, kept=kept, intersection=intersection))


def _fewer(
    costs: RefinedCosts, for_sale: Tensor, alone: np.ndarray[tuple[int], np.dtype[np.int64]], eps: Tensor
) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    steps = costs.steps(for_sale)
    if steps is None:
        return alone
    together = Ladder(steps, 1.0).together(eps).cpu().numpy()
    least: np.ndarray[tuple[int], np.dtype[np.int64]] = np.minimum(alone, together)
    return least
