"""What can be said for sure of float64 logits with an error bound for every class."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attackcheck.receptive import Field

__all__ = ["Point", "Scene", "relative_error", "share", "sure_lead", "sure_rival"]


@dataclass(frozen=True)
class Scene:
    """One clean image as the judge sees it: exact image, deployed and float64 logits, radii, their rounding."""

    index: int
    image: Tensor  # (C, H, W) as stored
    deployed: Tensor  # (K, H, W)
    reference: Tensor  # (K, H, W) float64
    error: Tensor  # (K,) of a float64 logit of each class
    norm_error: float  # of the norm of the float64 logit map
    predicted: Tensor  # (H, W) the certifier's own prediction
    radius: Tensor  # (H, W) float64
    rounding: Tensor  # (H, W) rho: rounding of the certifier's own number
    field: Field | None = None  # what a pixel's logits depend on, as far as known


@dataclass(frozen=True)
class Point:
    """A perturbed image in float64; the leads are lower bounds, positive where they are beyond the error."""

    logits: Tensor  # (K, H, W) float64
    predicted: Tensor  # (H, W)
    own_here: Tensor  # (H, W) lead of the clean class at the clean image
    other_here: Tensor  # (H, W) lead of another class there
    own_there: Tensor  # (H, W) lead of the clean class at the perturbed image
    other_there: Tensor  # (H, W) lead of another class there
    error: Tensor  # (K,)
    norm_error: float
    distance: float

    @property
    def flipped(self) -> Tensor:
        """Pixels that are of their clean class here and of another there, both beyond error, (H, W) bool."""
        return (self.own_here > 0) & (self.other_there > 0)


def sure_lead(logits: Tensor, error: Tensor, own: Tensor) -> Tensor:
    """Lower bound of the lead of class ``own`` (H, W) over all others."""
    allowance = error[:, None, None]
    rest = (logits + allowance).scatter(0, own[None], -math.inf).amax(dim=0)
    return (logits - allowance).gather(0, own[None])[0] - rest


def sure_rival(logits: Tensor, error: Tensor, own: Tensor) -> Tensor:
    """Lower bound of the lead of the best other class over ``own`` (H, W)."""
    allowance = error[:, None, None]
    rest = (logits - allowance).scatter(0, own[None], -math.inf).amax(dim=0)
    return rest - (logits + allowance).gather(0, own[None])[0]


def relative_error(deployed: Tensor, exact: Tensor, error: Tensor, own: Tensor) -> Tensor:
    """Largest relative error of a margin of class ``own`` (H, W), and so of any radius made of margins.

    A radius is monotone and homogeneous of degree one in the margins that it is computed from, whatever the claim.
    """
    truth = exact.gather(0, own[None]) - exact
    shown = deployed.double().gather(0, own[None]) - deployed.double()
    wrong = (shown - truth).abs() + error[:, None, None] + error[own][None]
    relative = torch.where(truth > 0, wrong / truth.clamp_min(1e-300), math.inf).scatter(0, own[None], 0.0)
    return relative.amax(dim=0) + 4.0 * 2.0**-24


def share(radius: Tensor, relative: Tensor) -> Tensor:
    """``radius * relative`` where the radius is positive and finite, else 0."""
    return torch.where((radius > 0) & radius.isfinite(), radius * relative, 0.0)
