"""Rays that turn towards projections onto linearised boundaries."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._refine import Track, shoot
from ._rows import Box, Model, across, along, dot, falling, lengths, loss_and_gradient, replaced, select, travelled
from .objectives import Objective

__all__ = ["OVERSHOOT", "Bests", "turn"]

OVERSHOOT = 2e-3
"""Iterates just beyond the boundary are evidence, those before it are not."""

_FARTHEST = (1.5, 2.0)  # that a step leads, in present distances: of rays that have flipped, and of others
_RELAXATION = 1.5  # of the steps of rays that have not flipped yet


class Bests(NamedTuple):
    """Rays on their way (the track: closest success, present direction and distance), and the best that each was."""

    track: Track
    closest: Tensor  # (B,) distance of the closest success
    direction: Tensor  # of the shortest distance measured
    distance: Tensor  # (B,) measured, infinite where there is none

    @staticmethod
    def of(track: Track, images: Tensor) -> Bests:
        closest = torch.where(track.success, lengths(track.points - images), torch.inf)
        return Bests(track, closest, track.direction, closest)

    def chosen(self, count: int) -> Bests:
        """The best of `count` rays of each row, which lie B apart: the shortest, or the least hopeless."""
        if count == 1:
            return self
        track = self.track
        batch = len(self.distance) // count
        column = torch.arange(batch, device=self.distance.device)
        key = torch.minimum(self.distance, self.closest)
        key = torch.where(key < torch.inf, key, 1e9 + track.distance)
        ray = key.reshape(count, batch).argmin(0) * batch + column
        near = self.closest.reshape(count, batch).argmin(0) * batch + column
        kept = Track(track.points[near], track.direction[ray], track.distance[ray], track.success[near])
        return Bests(kept, self.closest[near], self.direction[ray], self.distance[ray])

    def searched(
        self, model: Model, images: Tensor, objective: Objective, start: Tensor, steps: int, reach: float, box: Box
    ) -> tuple[Tensor, Tensor]:
        """The closest point of each row and whether it succeeds, the best ray searched by `steps` points.

        `start` (B,) is the loss at the image.
        """
        # a ray that never met a boundary is followed from where it ended
        distance = torch.where(self.distance < torch.inf, self.distance, self.track.distance)
        guess = distance * 1.0005
        last = shoot(model, images, self.direction, guess, objective, start=start, steps=steps, reach=reach, box=box)
        # the linearised length of the best ray may lie: never hand back less than what was seen on the way
        better = last.success & (lengths(last.points - images) <= self.closest)
        points = select(better | ~self.track.success, last.points, self.track.points)
        return points, last.success | self.track.success


def turn(
    model: Model, images: Tensor, objective: Objective, bests: Bests, schedule: list[tuple[float, float]], box: Box
) -> Bests:
    """Turns rays towards the projections of the image onto the boundaries linearised where the rays meet them."""
    tiny = torch.finfo(images.dtype).tiny
    (points, way, t, success), closest, best, best_distance = bests
    points, best, unmeasured = points.clone(), best.clone(), torch.full_like(t, torch.inf)
    for part, overshoot in schedule:
        point = along(images, t, way, box)
        goal, gradient = loss_and_gradient(model, objective, point)
        down, unit, slope = falling(gradient, way)  # unit * down is the normal of the plane
        advance = dot(down, way)
        norm, covered = travelled(images, point, t, down, advance, box)
        advance, covered = unit * advance, unit * covered
        closer = goal.success & (norm < closest)
        points, closest = replaced(points, closer, point), torch.where(closer, norm, closest)
        success = success | goal.success
        # to first order the boundary is so far along the normal, and the ray meets it at this distance
        offset = covered + goal.loss / slope.clamp_min(tiny)
        sound = (slope > 0) & (advance > 0.05) & (offset > 0.2 * t * advance)
        met = torch.where(sound, offset / advance.clamp_min(0.05), unmeasured)
        # a long extrapolation is no measurement: rays that promise more than they keep would be chosen
        near = sound & (met > 0.75 * t) & (met < 1.05 * t)
        measured = torch.where(near, met, torch.where(goal.success, t, unmeasured))
        shorter = measured < best_distance
        best = replaced(best, shorter, way)
        best_distance = torch.where(shorter, measured, best_distance)
        reached = torch.where(sound, met, 1.1 * t)
        way, advance = _between(way, (1 - part) * reached, down, unit, part * torch.maximum(offset, 0.2 * t), advance)
        ahead = torch.where(sound, offset / advance.clamp_min(0.05), reached)
        # where the margin flattens out towards the boundary, Newton's steps end before it, again and again
        ahead = torch.where(success | (ahead < t), ahead, t + _RELAXATION * (ahead - t))
        farthest = torch.where(success, _FARTHEST[0] * t, _FARTHEST[1] * t)
        t = torch.minimum(torch.maximum((1 + overshoot) * ahead, 0.3 * t), farthest)
    return Bests(Track(points, way, t, success), closest, best, best_distance)


def _between(
    way: Tensor, share: Tensor, down: Tensor, unit: Tensor, other: Tensor, cosine: Tensor
) -> tuple[Tensor, Tensor]:
    """The direction of `share` * way + `other` * normal, both units (B, ...), and its cosine with the normal.

    The normal is `unit` (B,) * `down`. `cosine` (B,) is that of the two, from which the length follows without another
    look at them; where they nearly cancel, or are not finite, the way stays.
    """
    largest = torch.maximum(share, other)
    share, other = share / largest, other / largest
    length = (share * share + other * other + 2 * share * other * cosine).sqrt()
    usable = (length > 0.1) & (length < torch.inf)
    share, other = torch.where(usable, share / length, 1), torch.where(usable, other / length, 0)
    turned = (across(other * unit, down) * down).addcmul_(across(share, way), way)
    return turned, torch.where(usable, share * cosine + other, cosine)
