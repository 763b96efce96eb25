"""The median of any number of values in bounded memory, whatever the order in which they come."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["Median"]

Array = np.ndarray[Any, Any]

EXACT = 1 << 21
"""Up to so many values the median is exact; of more it is within 0.025 %."""

DROPPED = 12
"""Bits of a float32 that are then left away: 11 of the mantissa's 23 stay, and values are counted by the rest."""

LOOSE = 256
"""Arrays that are kept before they are joined."""


class Median:
    """Values are kept as they are as long as there are few, and counted in bins of equal relative width from then on.

    The bins are those of the float32 format without its last bits. Which values there are decides alone about the
    result, so that several of these can be joined in any order.
    """

    def __init__(self) -> None:
        self.count = 0
        self._values: list[Array] = []
        self._bins: Array = np.zeros(0, np.int32)  # ascending
        self._counts: Array = np.zeros(0, np.int64)

    def add(self, values: Array) -> None:
        """Take in values of at least 0, float32."""
        self.count += len(values)
        self._values.append(values)
        self._tidy()

    def extend(self, other: Median) -> None:
        """Take in what another one has."""
        self.count += other.count
        self._values += other._values
        self._join(other._bins, other._counts)
        self._tidy()

    def value(self) -> float:
        """The median; NaN of nothing."""
        if not self.count:
            return float("nan")
        if not len(self._bins):
            return float(np.median(np.concatenate(self._values)))
        reached = self._counts.cumsum()
        places = [(self.count - 1) // 2, self.count // 2]
        middle = np.searchsorted(reached, places, side="right")
        inside = (self._bins[middle].astype(np.int32) << DROPPED) + (1 << (DROPPED - 1))
        return float(inside.view(np.float32).astype(np.float64).mean())

    def _tidy(self) -> None:
        if self.count > EXACT:
            for values in self._values:
                bins, counts = np.unique(values.view(np.int32) >> DROPPED, return_counts=True)
                self._join(bins, counts)
            self._values = []
        elif len(self._values) > LOOSE:
            self._values = [np.concatenate(self._values)]

    def _join(self, bins: Array, counts: Array) -> None:
        if not len(bins):
            return
        joined, places = np.unique(np.concatenate([self._bins, bins]), return_inverse=True)
        total = np.bincount(places, weights=np.concatenate([self._counts, counts]), minlength=len(joined))
        self._bins, self._counts = joined, total.astype(np.int64)
