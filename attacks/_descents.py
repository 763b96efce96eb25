"""Descents to boundaries that rays from the image do not lead to, for rows whose boundary is not flat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ._fmn import descend, polish
from ._lagrangian import leap
from ._newton import Outlook
from ._rows import Box, Generators, Model, Noise, across, gaussian, lengths, of_rows, polar, select
from .objectives import Objective

__all__ = ["Descents"]

# Where descents of a bent row start: a whole number is one of the linearised boundaries, nearest first, any other says
# how many times as far away as the best point. Sorted by what they add on networks with certificates.
_RANDOM = None
_STARTS: tuple[int | float | None, ...] = (0, 4, 2, _RANDOM, 2.0, 3.0, _RANDOM, 1, 3, 1.5, 5)
_RATE = 1.5  # length of the first step over the distance of the start
_GAMMA = 0.05
_STRIDES = (4.0, 8.0, 8.0, 2.0)  # lengths of the first step of leaps in linearised distances, again from the beginning
_MORE_TURNS, _MORE_REFINE = 10, 3


class _Part(NamedTuple):
    """Rows that descend at once."""

    origin: Tensor  # (b,) rows of the attack
    model: Model
    images: Tensor
    objective: Objective
    loss: Tensor  # at the image
    noise: Noise

    @property
    def attacked(self) -> tuple[Model, Tensor, Objective]:
        return self.model, self.images, self.objective


class Descents:
    """Descents of some `rows` (B,) bool, which succeed at `found` (B, C, H, W)."""

    def __init__(
        self,
        model: Model,
        images: Tensor,
        view: Outlook,
        found: Tensor,
        rows: Tensor,
        *,
        box: Box,
        noise: Noise,
        generator: Generators,
    ) -> None:
        self._model, self._images, self._view, self._found = model, images, view, found
        self._box, self._noise, self._generator = box, noise, generator
        self._index = rows.nonzero().flatten()  # here the host waits for the device, once for each kind of descent
        self._so_far = (found - images)[self._index]
        self._shortest = lengths(self._so_far)

    def descended(self, steps: int, starts: int, together: int) -> Tensor:
        """The closest successes known, after `fmn` from several places; `together` of them, at least two, at once."""
        points = self._found
        if not len(self._index):
            return points
        together = min(max(2, together), starts)
        for begin in range(0, starts, together):
            # never a single row: libraries compute a batch of one by another algorithm
            number = min(begin, starts - together)
            part = self._rows(together)
            places = [self._start(number + i) for i in range(together)]
            start, epsilon, first = (torch.cat(values) for values in zip(*places, strict=True))
            found, norm = descend(
                *part.attacked, start, epsilon, first, steps=steps, gamma=_GAMMA, box=self._box, noise=part.noise
            )
            points = self._closer(points, part, found, norm)
        return points

    def leapt(self, paths: Sequence[int]) -> Tensor:
        """The closest successes known, after descents of so many steps each that leave local minima."""
        points = self._found
        if not len(self._index):
            return points
        for number, steps in enumerate(paths):
            part = self._rows(1 if len(self._index) > 1 else 2)
            unit = self._view.distance[0][part.origin]
            first = torch.full_like(unit, _STRIDES[number % len(_STRIDES)])
            found, norm = leap(*part.attacked, unit, part.loss, first, steps=steps, box=self._box, noise=part.noise)
            points = self._closer(points, part, found, norm)
        return points

    def _start(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Perturbation (b, C, H, W), radius of the first sphere (b,), infinite for a search, length of a step (b,)."""
        place = _STARTS[number] if number < len(_STARTS) else _RANDOM
        free = torch.full_like(self._shortest, torch.inf)
        if isinstance(place, float):
            radius = place * self._shortest
            return place * self._so_far, radius, _RATE * radius
        if place is None or place >= len(self._view.distance):
            way, distance = self._random(number), self._shortest
        else:
            way = self._view.direction[place][self._index]
            # where gradients vanish, the linearised boundary is anywhere
            distance = torch.minimum(self._view.distance[place][self._index], 2 * self._shortest)
        return across(distance, way) * way, free, _RATE * distance

    def _random(self, number: int) -> Tensor:
        """By fresh generators: how many numbers the given ones have drawn may depend on other rows of the batch."""
        given = self._generator
        if isinstance(given, torch.Generator):
            return polar(gaussian(self._so_far, _fresh(given, number)))[0]
        rows = self._index.tolist()
        fresh = [torch.Generator().manual_seed(number) if given is None else _fresh(given[row], number) for row in rows]
        return polar(gaussian(self._so_far, fresh))[0]

    def _rows(self, count: int) -> _Part:
        """Each of the rows `count` times."""
        index = self._index.repeat(count)
        margin, loss = self._view.objective.by_margin().rows(index), self._view.loss[0][index]
        return _Part(index, of_rows(self._model, index), self._images[index], margin, loss, self._noise.rows(index))

    def _closer(self, points: Tensor, part: _Part, found: Tensor, norm: Tensor) -> Tensor:
        """The closest of `points` (B, C, H, W) and of `found`, at distances `norm`, once its rays have turned."""
        found, success = polish(
            *part.attacked, found, norm, part.loss, turns=_MORE_TURNS, refine=_MORE_REFINE, box=self._box,
            noise=part.noise,
        )  # fmt: skip
        count = len(part.origin) // len(self._index)
        length, end = torch.where(success, lengths(found - part.images), torch.inf).reshape(count, -1).min(0)
        found = found.reshape(count, -1, *found.shape[1:])[end, torch.arange(len(end), device=end.device)]
        before = points[self._index]
        nearer = length < lengths(before - self._images[self._index])
        return points.index_copy(0, self._index, select(nearer, found, before))


def _fresh(given: torch.Generator, number: int) -> torch.Generator:
    """The generator of this number that belongs to one, whatever that has drawn."""
    return torch.Generator(given.device).manual_seed((given.initial_seed() + number + 1) % 2**63)
