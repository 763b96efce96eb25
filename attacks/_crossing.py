"""Crossing: what two local minima have in common with each other leads to nearer ones between them."""

from __future__ import annotations

import torch
from torch import Tensor

from ._rows import Noise, polar

__all__ = ["between"]

_ALIKE = 0.9  # cosine of perturbations that are the same minimum, reached twice


def between(found: Tensor, distance: Tensor, count: int, noise: Noise) -> Tensor:
    """Directions (K, B, C, H, W) halfway between the shortest perturbation of each row and its `count` partners.

    `found` (N, B, C, H, W) are perturbations of norm `distance` (N, B), infinite where they do not succeed. Partners
    are the next shortest ones of other directions than all shorter ones; if there are none, of similar directions; a
    row without another success gets the direction of its only one.
    """
    known, batch = distance.shape
    column = torch.arange(batch, device=distance.device)
    order = distance.sort(dim=0, stable=True).indices
    found, distance = found[order, column], distance.gather(0, order)
    ways = polar(found.flatten(0, 1))[0].reshape(found.shape)
    other = torch.ones_like(distance, dtype=torch.bool)
    for i in range(1, known):
        cosine = (ways[:i] * ways[i]).flatten(2).sum(2)
        other[i] = ~((cosine > _ALIKE) & other[:i]).any(0)
    rank = (~other).long().sort(dim=0, stable=True).indices
    partners = [rank[min(1 + partner, known - 1)] for partner in range(count)]
    mixed = []
    for partner in partners:
        fails = distance[partner, column] == torch.inf
        partner = torch.where(fails, 0, partner)
        mixed.append(polar(found[0] + found[partner, column], noise)[0])
    return torch.stack(mixed)
