"""What an adversary pays for a flip: squared distances that follow from a claim and the logits of one image.

A perturbation ``delta`` after which pixel i is predicted as class k satisfies ``||delta||^2 >= towards(k)_i``. Under a
joint claim the pixels share: flipping a set S, pixel i to class k_i, takes
``||delta||^2 >= share^2 * sum_{i in S} towards(k_i)_i`` (``share`` is 1 where one constant covers map and pixels).

A pixel whose logits must change order costs, in logit units, the squared distance from its logits ``z`` to those where
class k wins. Against the predicted class y alone that is ``(z_y - z_k)^2 / 2``; where the runner-up j also lies above
the common value a = (z_y + z_j + z_k) / 3 at which the three would meet, all three have to move, and the cost is
``(z_y - a)^2 + (z_j - a)^2 + (z_k - a)^2``. Both are distances to supersets of the wanted set, so both are sound.

Rounding: differences, squares and quotients of numbers of the logits' type are each within half a unit in the last
place; every cost is multiplied by ``1 - 64 u`` at the end, so that it is never too large.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from attackcheck.claims import Claim, ClassPairClaim, LipschitzClaim
from attackcheck.errors import InputError

__all__ = ["ALL", "FlipCosts", "pieces", "top_two"]

ALL = slice(None)
"""All pixels."""

PIECE = {"cpu": 2**15, "cuda": 2**24}
"""Pixels at a time: on a CPU so many stay in its cache, with all their classes."""


def pieces(count: int, device: torch.device) -> Iterator[slice]:
    """So many pixels, a few at a time."""
    step = PIECE.get(device.type, PIECE["cpu"])
    return (slice(start, min(start + step, count)) for start in range(0, count, step))


class FlipCosts:
    """Costs of one image's flips.

    Args:
        claim: what is claimed about the model; distances are L2 norms on the [0, 1] pixel scale.
        logits: ``(K, H, W)``, ``K >= 1``, on any device; computed with in their own type, float32 at least.
        radius: ``(H, W)``, certified radii of this image, for claims that do not follow from logits.
        error: bound of the error of a difference of two logits; margins are taken that much smaller.

    Attributes:
        predicted: ``(H * W,)`` int64, the first of the largest logits.
        nearest: ``(H * W,)`` cost of the cheapest flip to any other class, infinite where there is none.
        share: see above; None where nothing is claimed about sets of pixels.
        adds_up: whether that is so of `nearest` and `towards` themselves (or of nothing).
        scale: pixels of so many rows and columns share what they cost; 1 where every pixel pays for itself.

    Raises:
        InputError: if the claim needs radii and has none, or fits another number of classes.
    """

    def __init__(self, claim: Claim, logits: Tensor, radius: Tensor | None = None, *, error: float = 0.0) -> None:
        if logits.dim() != 3 or not logits.is_floating_point():
            raise InputError(f"expected logits of shape (K, H, W), got {logits.dtype} of {tuple(logits.shape)}")
        self.shape = (int(logits.shape[1]), int(logits.shape[2]))
        self.classes = int(logits.shape[0])
        self.scale, self.adds_up = 1, True
        flat = (logits if logits.element_size() >= 4 else logits.float()).detach().flatten(1)
        self._logits = flat
        self._error = error
        self._safety = 1.0 - 64.0 * torch.finfo(flat.dtype).eps
        self._best, self._lead = torch.empty_like(flat[0]), torch.empty_like(flat[0])
        self.predicted = torch.empty(flat.shape[1:], dtype=torch.int64, device=flat.device)
        for some in pieces(flat.shape[1], flat.device):
            best, second, self.predicted[some] = top_two(flat[:, some])
            self._best[some] = best
            torch.sub(best, second, out=self._lead[some])  # over the runner-up
        self.share = claim.joint_factor if getattr(claim, "norm", 2) == 2 else None
        self._unit, self._spread, self._radius = 0.0, None, None
        if isinstance(claim, LipschitzClaim):
            self._unit = claim.slope**2 * 2.0  # squared distance per squared change of logits
        elif isinstance(claim, ClassPairClaim):
            self._spread = _allowed(claim, self.classes, flat.device)
        elif radius is None:
            raise InputError("expected certified radii beside a claim that does not follow from logits")
        else:
            self._radius = _squares(radius.to(flat.device).flatten())
        self.nearest = self._nearest()

    def towards(self, label: int, some: slice | Tensor = ALL) -> Tensor:
        """Cost ``(H * W,)`` of turning every pixel (or some) into class ``label``; 0 where it is that class."""
        if self._radius is not None:
            cost = torch.where(self.predicted[some] == label, 0.0, self._radius[some])
        elif self._spread is not None:
            cost = self._pairwise(label, some)
        else:
            cost = self._meeting(label, some)
        return cost.mul_(self._safety)

    def towards_all(self, some: slice | Tensor = ALL) -> Tensor:
        """Costs ``(K, n)`` of turning some pixels into each class; a tensor has their numbers."""
        if self._radius is None and self._spread is None:
            return self._meeting(ALL, some).mul_(self._safety)
        return torch.stack([self.towards(label, some) for label in range(self.classes)])

    def together_all(self, some: slice | Tensor = ALL) -> Tensor:
        """What that adds ``(K, n)`` where many flip; `towards_all`, unless pixels share."""
        return self.towards_all(some)

    def nearest_together(self) -> Tensor:
        """The least of it ``(H * W,)`` over the classes that a pixel is not of."""
        return self.nearest

    def counted(self, for_sale: Tensor) -> Tensor | None:  # noqa: ARG002
        """Costs whose n smallest add up to at most what any n flips of the pixels for sale ``(H * W,)`` cost.

        None where that is so of `nearest` itself, or where nothing is claimed about sets.
        """
        return None

    def paired(self, label: int, broken: Tensor, made: Tensor) -> tuple[Tensor, Tensor] | None:  # noqa: ARG002
        """Costs that add up, of changing the pixels `broken` and of turning those `made` into class ``label``.

        Args:
            label: the class.
            broken, made: ``(H * W,)`` bool, disjoint.

        Returns:
            Both in no order, with infinite ones that do not count; None where `nearest` and `towards` add up.
        """
        return None

    def adding_up(self) -> Tensor:
        """Costs ``(H * W,)`` of changing pixels, whose sum over any set is at most what the set costs."""
        return self.nearest

    def _nearest(self) -> Tensor:
        if self.classes == 1:
            return torch.full_like(self._best, math.inf)
        if self._radius is not None:
            return self._radius * self._safety
        if self._spread is None:
            nearest = torch.empty_like(self._lead)
            for some in pieces(len(nearest), nearest.device):
                gap = (self._lead[some] - self._error).clamp_min_(0.0)
                torch.mul(gap.square_(), self._unit * self._safety / 2.0, out=nearest[some])
            return nearest
        nearest = torch.full_like(self._best, math.inf)
        for label in range(self.classes):
            cost = self._pairwise(label, ALL).masked_fill_(self.predicted == label, math.inf)
            nearest = torch.minimum(nearest, cost)
        return nearest.mul_(self._safety)

    def _meeting(self, label: int | slice, some: slice | Tensor) -> Tensor:
        logits = self._logits[label, some] if isinstance(some, slice) else self._logits[label].index_select(-1, some)
        first = self._best[some] - logits  # of the predicted class over this one
        if self._error:
            first.sub_(self._error).clamp_min_(0.0)
        # With gaps f and s of the predicted class and the runner-up, the three meet at (f + s) / 3 above this class,
        # which is below the runner-up if 2 s > f; the squares then add up to f^2 / 2 + (2 s - f)^2 / 6.
        beyond = torch.sub(first, self._lead[some], alpha=2.0).clamp_min_(0.0).square_()
        return first.square_().mul_(self._unit / 2.0).add_(beyond, alpha=self._unit / 6.0)

    def _pairwise(self, label: int, some: slice | Tensor) -> Tensor:
        if self._spread is None:
            raise RuntimeError("no class pairs are known")
        gap = (self._best[some] - self._logits[label, some]).sub_(self._error).clamp_min_(0.0)
        allowed = self._spread[label].to(gap.dtype)[self.predicted[some]]
        return torch.where(gap > 0, gap / allowed, torch.zeros_like(gap)).square_()


def top_two(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Largest and second largest logit and the first class that has the largest, each ``(n,)``.

    Class by class, and without masks: on a CPU that is several times faster than max or topk over a short dimension.
    """
    best = logits[0].clone()
    second = torch.full_like(best, -math.inf)
    narrow = torch.uint8 if len(logits) <= 256 else torch.int16
    predicted = torch.zeros(best.shape, dtype=narrow, device=best.device)
    for label in range(1, logits.shape[0]):
        z = logits[label]
        # The last class that exceeds all before it is the first of the largest.
        predicted = torch.maximum(predicted, _above(z, best).to(narrow).mul_(label))
        second = torch.maximum(second, torch.minimum(z, best))
        best = torch.maximum(best, z)
    return best, second, predicted.long()


def _above(a: Tensor, b: Tensor) -> Tensor:
    if a.device.type != "cpu" or a.dtype == torch.bfloat16:
        return a > b
    return torch.from_numpy(np.greater(a.detach().numpy(), b.detach().numpy()))  # several times as fast on a CPU


def _allowed(claim: ClassPairClaim, classes: int, device: torch.device) -> Tensor:
    """``L_features ||w_i - w_j||``, (K, K) float64."""
    weight = claim.weight
    if weight.shape[0] != classes:
        raise InputError(f"expected logits of {weight.shape[0]} classes for these rows, got {classes}")
    spread: Tensor = (weight[:, None] - weight[None]).norm(dim=2) * claim.lipschitz_features
    return spread.to(device)


def _squares(radius: Tensor) -> Tensor:
    return radius.double().square()
