"""Descents to boundaries that rays from the image do not lead to, for rows whose boundary is not flat."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor

from ._crossing import between
from ._fmn import descend, polish
from ._lagrangian import Leap
from ._newton import Outlook
from ._rows import Box, Generators, Model, Noise, across, gaussian, lengths, of_rows, polar
from .objectives import Objective

__all__ = ["Descents"]

# Where descents of a bent row start: a whole number is one of the linearised boundaries, nearest first, any other says
# how many times as far away as the best point. Sorted by what they add on networks with certificates.
_RANDOM = None
_STARTS: tuple[int | float | None, ...] = (0, 4, 2, _RANDOM, 2.0, 3.0, _RANDOM, 1, 3, 1.5, 5)
_RATE = 1.5  # length of the first step over the distance of the start
_GAMMA = 0.05
_CROSSED_STEPS, _CROSSED_RATE = 10, 0.75  # of descents from between two minima, at the nearer one's distance
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
    """Descents of some `rows` (B,) bool, which succeed at `found` (B, C, H, W), and all that they have found."""

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
        self._model, self._images, self._view = model, images, view
        self._box, self._noise, self._generator = box, noise, generator
        self._index = rows.nonzero().flatten()  # here the host waits for the device, once for each kind of descent
        self._so_far = (found - images)[self._index]
        self._shortest = lengths(self._so_far)
        self._known = [found[self._index][None]]  # points (n, b, C, H, W)
        self._distance = [self._shortest[None]]  # of them, (n, b), infinite where they do not succeed

    def only(self, rows: Tensor) -> Descents:
        """Those of the rows that are among `rows` (B,) bool, with all that they have found."""
        kept = rows[self._index].nonzero().flatten()  # and here
        part = copy(self)
        part._index = self._index[kept]
        part._so_far, part._shortest = self._so_far[kept], self._shortest[kept]
        part._known = [known[:, kept] for known in self._known]
        part._distance = [distance[:, kept] for distance in self._distance]
        return part

    def closest(self, points: Tensor) -> Tensor:
        """Those points (B, C, H, W) of the whole attack, with the closest successes known in these rows."""
        if not len(self._index):
            return points
        known, distance = torch.cat(self._known), torch.cat(self._distance)
        best = known[distance.argmin(0), torch.arange(len(self._index), device=known.device)]
        return points.index_copy(0, self._index, best)

    def shortened(self, part: float) -> Tensor:
        """Rows (B,) bool whose distance is below this part of what it was."""
        shorter = torch.zeros(len(self._images), dtype=torch.bool, device=self._images.device)
        return shorter.index_copy(0, self._index, torch.cat(self._distance).amin(0) < part * self._shortest)

    def descend(self, steps: int, starts: int, together: int) -> None:
        """By `fmn` from several places; `together` of them, at least two, at once."""
        if not len(self._index):
            return
        together = min(max(2, together), starts)
        for begin in range(0, starts, together):
            # never a single row: libraries compute a batch of one by another algorithm
            number = min(begin, starts - together)
            self._descend(steps, [self._start(number + i) for i in range(together)])

    def leap(self, paths: Sequence[int], strides: Sequence[float], together: int) -> None:
        """By paths of so many steps that leave local minima, with first steps of `strides`, again and again.

        As many at once as make no more than `together` rows for each row of the attack.
        """
        rows = len(self._index)
        if not rows:
            return
        tasks = [(steps, strides[number % len(strides)]) for number, steps in enumerate(paths)]
        size = max(1, together * len(self._images) // rows)
        for begin in range(0, len(tasks), size):
            chosen = sorted(tasks[begin : begin + size], reverse=True)  # paths that end first come last
            least = 1 if rows > 1 else 2  # never a single row: libraries compute a batch of one by another algorithm
            chosen += chosen[:1] * (least - len(chosen))
            part = self._rows(len(chosen))
            steps, stride = torch.tensor(chosen, dtype=self._shortest.dtype).repeat_interleave(rows, 0).T.to(part.loss)
            walk = Leap.of(part.images, self._view.distance[0][part.origin], part.loss, stride, steps)
            found, norm = torch.empty_like(part.images), torch.empty_like(part.loss)
            done = 0
            for number in reversed(range(len(chosen))):
                going = self._rows(max(number + 1, least))
                walk = walk.first(len(going.origin)).gone(
                    *going.attacked, range(done, chosen[number][0]), box=self._box, noise=going.noise
                )
                done = chosen[number][0]
                own = slice(number * rows, (number + 1) * rows)
                found[own], norm[own] = walk.best[own], walk.norm[own]
            self._learn(part, found, norm)

    def cross(self, generations: int, children: int) -> None:
        """By short descents from between the closest success known and so many others, again and again."""
        if not len(self._index):
            return
        for _ in range(generations):
            known, distance = torch.cat(self._known), torch.cat(self._distance)
            ways = between(known - self._images[self._index], distance, children, self._noise.rows(self._index))
            nearest = distance.amin(0)
            free, first = torch.full_like(nearest, torch.inf), _CROSSED_RATE * nearest
            places = [(across(nearest, way) * way, free, first) for way in ways]
            self._descend(_CROSSED_STEPS, places * 2 if len(nearest) * children == 1 else places)

    def _descend(self, steps: int, places: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
        part = self._rows(len(places))
        start, epsilon, first = (torch.cat(values) for values in zip(*places, strict=True))
        found, norm = descend(
            *part.attacked, start, epsilon, first, steps=steps, gamma=_GAMMA, box=self._box, noise=part.noise
        )
        self._learn(part, found, norm)

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

    def _learn(self, part: _Part, found: Tensor, norm: Tensor) -> None:
        """Keeps what was found at distances `norm` (b,), once its rays have turned."""
        found, success = polish(
            *part.attacked, found, norm, part.loss, turns=_MORE_TURNS, refine=_MORE_REFINE, box=self._box,
            noise=part.noise,
        )  # fmt: skip
        distance = torch.where(success, lengths(found - part.images), torch.inf)
        self._known.append(found.reshape(-1, *self._so_far.shape))
        self._distance.append(distance.reshape(-1, len(self._index)))


def _fresh(given: torch.Generator, number: int) -> torch.Generator:
    """The generator of this number that belongs to one, whatever that has drawn."""
    return torch.Generator(given.device).manual_seed((given.initial_seed() + number + 1) % 2**63)
