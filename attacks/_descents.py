"""Descents to boundaries that rays from the image do not lead to."""

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
from ._rays import Ends
from ._rows import Box, Model, Noise, across, lengths, of_rows
from .objectives import Objective

__all__ = ["Descents"]

_STEPS, _RATE, _GAMMA = 10, 0.75, 0.05  # of descents from between two minima, at the nearer one's distance
_TURNS, _REFINE = 10, 3


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
    """Descents of the rows that rays found a boundary for, and all that was found for them."""

    def __init__(self, model: Model, images: Tensor, view: Outlook, ends: Ends, *, box: Box, noise: Noise) -> None:
        self._model, self._images, self._view = model, images, view
        self._box, self._noise = box, noise
        self._index = ends.success.nonzero().flatten()  # here the host waits for the device
        self._known = [ends.found[self._index][None], ends.points[:, self._index]]  # points (n, b, C, H, W)
        first = lengths(ends.found - images)[None]
        self._distance = [first[:, self._index], ends.distance[:, self._index]]  # (n, b), infinite without success

    def only(self, rows: Tensor) -> Descents:
        """Those of the rows that are among `rows` (B,) bool, with all that they have found."""
        kept = rows[self._index].nonzero().flatten()  # and here
        part = copy(self)
        part._index = self._index[kept]
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
            steps, stride = torch.tensor(chosen, dtype=torch.float64).repeat_interleave(rows, 0).T.to(part.loss)
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
            if len(self._index) * children == 1:  # never a single row: libraries compute a batch of one in another way
                ways = ways.repeat_interleave(2, 0)
            part, nearest = self._rows(len(ways)), distance.amin(0).repeat(len(ways))
            found, norm = descend(
                *part.attacked,
                across(nearest, part.images) * ways.flatten(0, 1),
                torch.full_like(nearest, torch.inf),
                _RATE * nearest,
                steps=_STEPS,
                gamma=_GAMMA,
                box=self._box,
                noise=part.noise,
            )
            self._learn(part, found, norm)

    def _rows(self, count: int) -> _Part:
        """Each of the rows `count` times."""
        index = self._index.repeat(count)
        margin, loss = self._view.objective.by_margin().rows(index), self._view.loss[0][index]
        return _Part(index, of_rows(self._model, index), self._images[index], margin, loss, self._noise.rows(index))

    def _learn(self, part: _Part, found: Tensor, norm: Tensor) -> None:
        """Keeps what was found at distances `norm` (b,), once its rays have turned."""
        found, success = polish(
            *part.attacked, found, norm, part.loss, turns=_TURNS, refine=_REFINE, box=self._box,
            noise=part.noise,
        )  # fmt: skip
        distance = torch.where(success, lengths(found - part.images), torch.inf)
        self._known.append(found.reshape(-1, *self._known[0].shape[1:]))
        self._distance.append(distance.reshape(-1, len(self._index)))
