"""Costs of flips by the refined certificate, of single pixels and of sets."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from attackcheck.claims import LipschitzClaim
from attackcheck.measures.costs import ALL, FlipCosts
from attackcheck.measures.sharing import BARRED, adding_up, blocks, steps, unblocked

__all__ = ["CHUNK", "RefinedCosts"]

CHUNK = {"cpu": 2**15, "cuda": 2**22}
"""Pixels at a time: on a CPU so many stay in its cache."""


class RefinedCosts(FlipCosts):
    """Costs of one image's flips by the refined certificate: squared distances, of pixels and of sets.

    Pixels by themselves cost `nearest` and `towards`; those are no costs to be added up, which `counted` and `paired`
    give. Made by :meth:`attackcheck.refined.RefinedCertificate.costs`.

    Args:
        logits: ``(K, H, W)``, float32 or float64.
        distances: ``(K, H * W)`` of every pixel from every class, 0 from its own; taken over.
        constant: of the map from the image to the logits of a block.
        scale: pixels of a block along each axis; None where there are no blocks, and nothing is said about sets.
        error: bound of the error of a difference of two logits.
    """

    def __init__(
        self, logits: Tensor, distances: Tensor, constant: float, *, scale: int | None, error: float = 0.0
    ) -> None:
        super().__init__(LipschitzClaim(constant), logits, error=error)
        self._adding_up: Tensor | None = None
        self._shared = self.nearest  # where the pixels of a block pay together
        self._distance = _nearest(distances, self.predicted)
        self._own = distances.square_().mul_(self._safety)  # (K, H * W)
        self.nearest = self._distance.square().mul_(self._safety)
        self.share = None if scale is None else 1.0
        self.scale, self.adds_up = 1 if scale is None else scale, scale is None

    def distance(self) -> Tensor:
        """Certified radius ``(H * W,)``."""
        return self._distance

    def towards(self, label: int, some: slice | Tensor = ALL) -> Tensor:
        """Cost of turning every pixel (of some) into class ``label``; 0 where it is that class."""
        return self._own[label, some].clone()

    def together(self, label: int, some: slice = ALL) -> Tensor:
        """What turning pixels into class ``label`` adds where the pixels of a block pay together."""
        return super().towards(label, some)

    def towards_all(self, some: slice | Tensor = ALL) -> Tensor:
        """The same for every class, ``(K, n)``."""
        return self._own[:, some].clone()

    def together_all(self, some: slice | Tensor = ALL) -> Tensor:
        """What that adds, ``(K, n)``."""
        return super().towards_all(some)

    def nearest_together(self) -> Tensor:
        """The least of it ``(H * W,)`` over the classes that a pixel is not of."""
        return self._shared

    def counted(self, for_sale: Tensor) -> Tensor | None:
        """What each further flip of the pixels for sale ``(H * W,)`` costs on a shared budget, in no order."""
        if self.share is None:
            return None
        found = []
        for some, rows in self._strips():
            if _any(for_sale[some]):
                barred = _barred(for_sale[some])
                own, shared = (self._blocks(v[some], barred, rows) for v in (self.nearest, self._shared))
                found.append(steps(own, shared).flatten())
        return torch.cat(found) if found else self.nearest[:0]

    def paired(self, label: int, broken: Tensor, made: Tensor) -> tuple[Tensor, Tensor] | None:
        """Costs that add up: of changing the pixels `broken`, and of turning those `made` into class ``label``."""
        if self.share is None:
            return None
        breaking, making = [], []
        for some, rows in self._strips():
            there, barred = broken[some], _barred(made[some])
            own = self._blocks(self._own[label, some], barred, rows)
            shared = self._blocks(self.together(label, some), barred, rows)
            if not _any(there):
                making.append(adding_up(own, shared)[0].flatten())
                continue
            barred = _barred(there)
            own = torch.minimum(own, self._blocks(self.nearest[some], barred, rows))
            shared = torch.minimum(shared, self._blocks(self._shared[some], barred, rows))
            costs, kind = adding_up(own, shared, blocks(there, rows, self.scale).long())
            costs, kind = costs.flatten(), kind.flatten()
            breaking.append(costs[kind == 1])
            making.append(torch.maximum(costs, kind * BARRED))
        return torch.cat([*breaking, self.nearest[:0].float()]), torch.cat([*making, self.nearest[:0].float()])

    def adding_up(self) -> Tensor:
        """Costs ``(H * W,)`` of changing pixels, whose sum over any set is at most what the set costs."""
        if self._adding_up is None:
            self._adding_up = self.nearest if self.share is None else self._added_up()
        return self._adding_up

    def _added_up(self) -> Tensor:
        found = []
        for some, rows in self._strips():
            own, shared = (self._blocks(values[some], None, rows) for values in (self.nearest, self._shared))
            costs, number = adding_up(own, shared)
            found.append(unblocked(torch.empty_like(costs).scatter_(0, number.long(), costs), rows, self.scale))
        return torch.cat(found)

    def _strips(self) -> Iterator[tuple[slice, int]]:
        """Rows of whole blocks, a chunk at a time: their pixels, and how many rows there are."""
        height, width = self.shape
        chunk = 2 * CHUNK.get(self.nearest.device.type, CHUNK["cpu"])
        rows = max(1, chunk // (width * self.scale)) * self.scale
        for start in range(0, height, rows):
            count = min(rows, height - start)
            yield slice(start * width, (start + count) * width), count

    def _blocks(self, values: Tensor, barred: Tensor | None, rows: int) -> Tensor:
        wide = values if barred is None else torch.maximum(values, barred)
        return _downwards(blocks(wide.clamp_max(BARRED), rows, self.scale))


def _nearest(distances: Tensor, predicted: Tensor) -> Tensor:
    """The smallest over classes but the predicted one, ``(n,)``."""
    nearest = torch.full_like(distances[0], math.inf)
    for label in range(len(distances)):
        # Arithmetic is many times faster than masks on a CPU; the own class is 0 far.
        nearest = torch.minimum(nearest, distances[label] + (predicted == label).to(distances.dtype).mul_(BARRED))
    return nearest


def _any(mask: Tensor) -> bool:
    # Many times as fast as `any` on a CPU.
    return bool(mask.view(torch.uint8).max())


def _barred(for_sale: Tensor) -> Tensor:
    """BARRED where not for sale."""
    return (1.0 - for_sale.float()).mul_(BARRED)


def _downwards(values: Tensor) -> Tensor:
    if values.dtype == torch.float32:
        return values
    return values.mul(1.0 - 2.0**-23).float()
