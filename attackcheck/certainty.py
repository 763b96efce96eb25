"""What can be said for sure of float64 logits with an error bound for every class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

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

    @cached_property
    def own_lead(self) -> Tensor:
        """Lower bound of the lead of the clean class, (H, W)."""
        return sure_lead(self.reference, self.error, self.predicted)

    @cached_property
    def other_lead(self) -> Tensor:
        """Lower bound of the lead of another class, (H, W)."""
        return sure_rival(self.reference, self.error, self.predicted)


@dataclass(frozen=True)
class Point:
    """A perturbed image in float64; the leads are lower bounds, positive where they are beyond the error."""

    scene: Scene
    logits: Tensor  # (K, H, W) float64
    error: Tensor  # (K,)
    norm_error: float
    distance: float

    @cached_property
    def predicted(self) -> Tensor:
        """Classes (H, W)."""
        return self.logits.argmax(dim=0)

    @cached_property
    def own_lead(self) -> Tensor:
        """Lower bound of the lead of the clean image's class, (H, W)."""
        return sure_lead(self.logits, self.error, self.scene.predicted)

    @cached_property
    def other_lead(self) -> Tensor:
        """Lower bound of the lead of another class than the clean image's, (H, W)."""
        return sure_rival(self.logits, self.error, self.scene.predicted)

    @cached_property
    def flipped(self) -> Tensor:
        """Pixels that are of their clean class at the clean image and of another here, both beyond error, (H, W)."""
        return (self.scene.own_lead > 0) & (self.other_lead > 0)


# Class by class: the logits of a full-size image are large, and copies of them larger than anything else here.


def sure_lead(logits: Tensor, error: Tensor, own: Tensor) -> Tensor:
    """Lower bound of the lead of class ``own`` (H, W) over all others."""
    rest = torch.full(own.shape, -math.inf, dtype=logits.dtype)
    for label, (z, allowance) in enumerate(zip(logits, error, strict=True)):
        rest = torch.maximum(rest, (z + allowance).masked_fill_(own == label, -math.inf))
    return logits.gather(0, own[None])[0] - error[own] - rest


def sure_rival(logits: Tensor, error: Tensor, own: Tensor) -> Tensor:
    """Lower bound of the lead of the best other class over ``own`` (H, W)."""
    rest = torch.full(own.shape, -math.inf, dtype=logits.dtype)
    for label, (z, allowance) in enumerate(zip(logits, error, strict=True)):
        rest = torch.maximum(rest, (z - allowance).masked_fill_(own == label, -math.inf))
    return rest - (logits.gather(0, own[None])[0] + error[own])


def relative_error(deployed: Tensor, exact: Tensor, error: Tensor, own: Tensor) -> Tensor:
    """Largest relative error of a margin of class ``own`` (H, W), and so of any radius made of margins.

    A radius is monotone and homogeneous of degree one in the margins that it is computed from, whatever the claim.
    """
    led, shown_lead = exact.gather(0, own[None])[0], deployed.gather(0, own[None])[0].double()
    largest = torch.zeros_like(led)
    for label, (there, z, allowance) in enumerate(zip(deployed, exact, error, strict=True)):
        truth = led - z
        wrong = (shown_lead - there.double()).sub_(truth).abs_().add_(allowance).add_(error[own])
        relative = torch.where(truth > 0, wrong / truth.clamp_min(1e-300), math.inf).masked_fill_(own == label, 0.0)
        largest = torch.maximum(largest, relative)
    return largest + 4.0 * 2.0**-24


def share(radius: Tensor, relative: Tensor) -> Tensor:
    """``radius * relative`` where the radius is positive and finite, else 0."""
    return torch.where((radius > 0) & radius.isfinite(), radius * relative, 0.0)
