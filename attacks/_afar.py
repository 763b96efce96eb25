"""Ways to boundaries that no gradient near the image shows: the margin's gradients, seen from afar."""

from __future__ import annotations

import torch
from torch import Tensor

from ._newton import Outlook
from ._rows import Box, Model, Noise, along, downhill, loss_and_gradient, of_rows, polar

__all__ = ["look_from_afar"]

_GUESS = 1.2  # of the distance to the boundary along these ways, over the linearised one
_NOISE = None
# Where to look from: a direction, which is that of a linearised boundary (nearest first), its signs, or a random one,
# and how many linearised distances to go. Sorted by what they add on networks with certificates.
_PLACES: tuple[tuple[int | None, bool, float], ...] = (
    (0, True, -8.0),
    (0, False, 16.0),
    (0, True, 8.0),
    (_NOISE, False, 16.0),
    (1, False, 8.0),
    (0, False, -8.0),
    (_NOISE, False, -16.0),
    (1, True, -8.0),
    (2, False, 8.0),
    (0, True, -16.0),
    (1, True, 8.0),
    (4, False, 8.0),
)


def look_from_afar(
    model: Model, images: Tensor, view: Outlook, rays: int, count: int, box: Box, noise: Noise
) -> Outlook:
    """The view with `rays` candidates of its own and `count` more ways, down the gradients seen from afar.

    A network is much the same function near all its points, but each point sees another piece of it: what is downhill
    eight or sixteen linearised distances away leads to other boundaries than what is downhill at the image.
    There are twelve such places. Costs a forward and a backward pass for each.
    """
    rays, places = min(rays, len(view.direction)), _PLACES[:count]
    if not places:
        return view
    index = torch.arange(len(images), device=images.device).repeat(len(places))
    ways = torch.cat([_way(view, direction, signs, noise) for direction, signs, _ in places])
    far = torch.cat([times * view.distance[0] for _, _, times in places])
    points = along(images[index], far, ways, box)
    margin = view.objective.by_margin().rows(index)
    _, gradient = loss_and_gradient(of_rows(model, index), margin, points)
    seen, _ = downhill(gradient, noise.rows(index))
    return view._replace(
        loss=torch.cat([view.loss[:rays], view.loss[:1].expand(len(places), -1)]),
        direction=torch.cat([view.direction[:rays], seen.reshape(len(places), *images.shape)]),
        distance=torch.cat([view.distance[:rays], _GUESS * view.distance[:1].expand(len(places), -1)]),
    )


def _way(view: Outlook, direction: int | None, signs: bool, noise: Noise) -> Tensor:
    way = noise.unit if direction is None else view.direction[min(direction, len(view.direction) - 1)]
    return polar(way.sign(), noise)[0] if signs else way
