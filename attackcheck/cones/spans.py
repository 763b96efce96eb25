"""Parts of an axis, relative to where the cell of a pixel begins.

The output is divided into cells as wide as the network's total stride. A value inside the network that has ``unit``
entries for each cell begins its part of the cell of a pixel at ``unit * cell``, and a span says which entries around
there are meant. Near a border a span is shifted until it lies inside the axis, and keeps its length.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Box", "Span", "boxed"]


@dataclass(frozen=True)
class Span:
    """``length`` entries from ``first`` on, relative to the cell; ``size`` entries are all there are."""

    first: int
    length: int
    size: int
    unit: int

    @property
    def whole(self) -> bool:
        """Whether it is the whole axis, for all cells."""
        return self.length >= self.size

    def start(self, cell: Tensor) -> Tensor:
        """Where it begins for these cells."""
        if self.whole:
            return torch.zeros_like(cell)
        return (cell * self.unit + self.first).clamp(0, self.size - self.length)

    def holds(self, other: Span) -> bool:
        """Whether the other one lies inside, for all cells."""
        end, last = self.first + self.length, other.first + other.length
        return self.whole or (not other.whole and self.first <= other.first and last <= end)

    def union(self, other: Span) -> Span:
        """The shortest span that holds both."""
        first = min(self.first, other.first)
        end = max(self.first + self.length, other.first + other.length)
        return _span(first, end, self)

    def aligned(self, step: int) -> Span:
        """The shortest span around it that begins and ends at multiples of ``step``."""
        first = self.first // step * step
        end = -(-(self.first + self.length) // step) * step
        return _span(first, end, self)

    def scaled(self, by: int, over: int, like: Span) -> Span:
        """The same places of ``like``'s axis, which has ``by`` entries for ``over`` of this one."""
        if self.whole:
            return like
        return _span(self.first * by // over, -(-(self.first + self.length) * by // over), like)


def _span(first: int, end: int, like: Span) -> Span:
    if end - first >= like.size:
        return Span(0, like.size, like.size, like.unit)
    return Span(first, end - first, like.size, like.unit)


@dataclass(frozen=True)
class Box:
    """Rows and columns."""

    rows: Span
    columns: Span

    @property
    def area(self) -> int:
        """Entries of one channel."""
        return self.rows.length * self.columns.length

    @property
    def whole(self) -> bool:
        """Whether nothing is left out."""
        return self.rows.whole and self.columns.whole

    def holds(self, other: Box) -> bool:
        """Whether the other one lies inside, for all cells."""
        return self.rows.holds(other.rows) and self.columns.holds(other.columns)

    def union(self, other: Box) -> Box:
        """The smallest box that holds both."""
        return Box(self.rows.union(other.rows), self.columns.union(other.columns))

    def aligned(self, steps: tuple[int, int]) -> Box:
        """The smallest box around it that begins and ends at multiples of these steps."""
        return Box(self.rows.aligned(steps[0]), self.columns.aligned(steps[1]))

    def scaled(self, by: tuple[int, int], over: tuple[int, int], like: Box) -> Box:
        """The same places of a value of which ``like`` is all, with ``by`` entries for ``over`` of this one."""
        rows = self.rows.scaled(by[0], over[0], like.rows)
        return Box(rows, self.columns.scaled(by[1], over[1], like.columns))


def boxed(first: tuple[int, int], end: tuple[int, int], like: Box) -> Box:
    """The box from ``first`` up to ``end``, of a value of which ``like`` is a box."""
    return Box(_span(first[0], end[0], like.rows), _span(first[1], end[1], like.columns))
