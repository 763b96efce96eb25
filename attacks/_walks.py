"""Walks along the kinks of piecewise linear networks, to where their small pieces meet."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ._rows import Box, Generators, Model, across, clip, gaussian, lengths, of_rows, parts, polar

__all__ = ["DEEPEST", "corners"]

DEEPEST = 6
"""Kinks that a walk meets at most, one for each dimension of small images."""

_STRIDES, _SPAN = 24, 1e3  # points on a line where the network is looked at first; the farthest, and 1 over the nearest
_HALVINGS = 14
_NEAREST = 1e-4  # to a kink, in distances from the image; what floats cannot resolve is left out
_CHANGED = 1e-3  # relative, of a gradient beyond a kink


def corners(
    model: Model,
    images: Tensor,
    starts: Tensor,
    each: int,
    farthest: float,
    box: Box,
    generator: Generators,
) -> tuple[Tensor, Tensor]:
    """Points near kinks, where several of them meet: a steep piece too small to be met by chance has corners, too.

    From each start a walk follows a random line to the first kink on it, turns into that kink and follows a random line
    in it to the next, and so on, until as many kinks meet as there are dimensions, or `DEEPEST`. The normal of a kink
    is what the gradient of a combination of logits gains there. At every kink `each` points are thrown off, over
    distances of all orders of magnitude. A line without a kink is followed far: out there pieces are cones.

    Args:
        images: (B, C, H, W), of few numbers each.
        starts: (B * W, C, H, W), those of an image side by side; an even number.
        farthest: from the image that a line is followed.

    Returns:
        (B * W * depth * each, C, H, W), those of an image side by side, and how far each of them was thrown.
    """
    batch, walks, shape = len(images), len(starts), images.shape[1:]
    center = images.flatten(1).repeat_interleave(walks // batch, 0)
    slopes = _Slopes(model, batch, generator)
    point = starts.flatten(1)
    normals: list[Tensor] = []
    strides = torch.logspace(-math.log10(_SPAN), math.log10(_SPAN), _STRIDES, dtype=torch.float64).to(images)
    golden = torch.arange(walks, dtype=torch.float64).mul(0.6180339887498949).frac().to(images)  # evenly spread
    shares = ((torch.arange(each).to(images) + golden[:, None]) / each).flatten()
    nearest = max(_NEAREST, 3 * float(torch.finfo(images.dtype).eps ** 0.5))
    spots, thrown = [], []
    for _ in range(min(DEEPEST, point.shape[1])):
        way, _ = polar(_beside(_drawn(images, walks // batch, generator).flatten(1), normals))
        reach = lengths(point - center).clamp_min(torch.finfo(images.dtype).tiny)
        far = (reach[:, None] * strides).clamp_max(farthest)

        def at(distance: Tensor, point: Tensor = point, way: Tensor = way) -> Tensor:
            line = point[:, None] + distance[..., None] * way[:, None]  # (B * W, points, C * H * W)
            return slopes(clip(line, box).flatten(0, 1).reshape(-1, *shape), walks)

        here = at(torch.zeros_like(reach)[:, None])
        least = _CHANGED * lengths(here)[:, None]
        beyond = (at(far) - here).norm(dim=2) > least
        met, place = beyond.any(1), beyond.to(torch.uint8).argmax(1, keepdim=True)
        low = torch.where(place > 0, far.gather(1, (place - 1).clamp_min(0)), 0)
        high = far.gather(1, place)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            crossed = (at(middle) - here).norm(dim=2) > least
            low, high = torch.where(crossed, low, middle), torch.where(crossed, middle, high)
        gained = _beside((at(high) - here)[:, 0], normals)
        normals.append(torch.where(met[:, None], polar(gained)[0], 0).to(point))
        point = point + torch.where(met, low[:, 0], golden * far[:, -1])[:, None] * way
        throw = lengths(point - center).repeat_interleave(each) * nearest**shares
        away, _ = polar(_drawn(images, walks // batch * each, generator).flatten(1))
        spot = clip(point.repeat_interleave(each, 0) + across(throw, away) * away, box)
        spots.append(spot.reshape(batch, -1, *shape))
        thrown.append(throw.reshape(batch, -1))
    return torch.cat(spots, 1).flatten(0, 1), torch.cat(thrown, 1).flatten()


class _Slopes:
    """Gradients of one random combination of logits for each walk: they change where the linear piece does."""

    def __init__(self, model: Model, batch: int, generator: Generators) -> None:
        self._model, self._batch, self._generator = model, batch, generator
        self._weights: Tensor | None = None  # (B * W, K, H, W)

    def __call__(self, points: Tensor, walks: int) -> Tensor:
        """At points (B * W * n, C, H, W), those of a walk side by side; (B * W, n, C * H * W) in float64."""
        gradient, rows = torch.empty_like(points), torch.arange(len(points), device=points.device)
        walk = rows // (len(points) // walks)
        for part in parts(self._model, len(points), together=2):
            with torch.enable_grad():
                some = points[part].detach().requires_grad_()
                logits = of_rows(self._model, walk[part] // (walks // self._batch))(some)
                if self._weights is None:
                    each = logits.new_empty(self._batch, walks // self._batch, *logits.shape[1:])
                    self._weights = gaussian(each, self._generator).flatten(0, 1)
                (gradient[part],) = torch.autograd.grad((logits * self._weights[walk[part]]).sum(), some)
        gradient = gradient.double().nan_to_num(nan=0, posinf=0, neginf=0)  # float32 cannot square small logits' slopes
        return gradient.reshape(walks, len(points) // walks, -1)


def _drawn(images: Tensor, count: int, generator: Generators) -> Tensor:
    """Standard normal numbers in the shape of `count` points for each image, (B * count, C, H, W)."""
    return gaussian(images.new_empty(len(images), count, *images.shape[1:]), generator).flatten(0, 1)


def _beside(ways: Tensor, normals: list[Tensor]) -> Tensor:
    """What of these vectors (R, D) is orthogonal to all normals, which are units or 0; twice, for rounding's sake."""
    for normal in [*normals, *normals]:
        ways = ways - (ways * normal).sum(1, keepdim=True) * normal
    return ways
