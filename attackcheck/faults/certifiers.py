"""Certifiers as functions of model, images and constant, and the right one that the wrong ones resemble."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attackcheck.claims import RadiusClaim

__all__ = [
    "SQRT2",
    "Certifier",
    "certified",
    "logits_of",
    "margin_over",
    "margin_over_runner_up",
    "of_images",
    "stored",
]

Certifier = Callable[[nn.Module, Tensor, float], Tensor]
"""Images `(B, C, H, W)` -> radii `(B, H, W)`."""

SQRT2 = 2.0**0.5


def certified(certifier: Certifier, model: nn.Module, lipschitz: float) -> RadiusClaim:
    """The claim that a certifier makes about a model, at any image; it can be tried on other models, too."""
    name = getattr(certifier, "__name__", "a certifier").replace("_", " ")
    return RadiusClaim(certifier, lipschitz=lipschitz, source=name).of(model)


def of_images(radii: Callable[[Tensor], Tensor], source: str) -> RadiusClaim:
    """The claim of a certifier that knows one model alone."""
    return RadiusClaim(radii, source=source)


def stored(radii: Tensor, source: str) -> RadiusClaim:
    """The claim that `(N, H, W)` radii make about the images in their order."""
    return RadiusClaim(radii.double(), source=source)


@torch.no_grad()
def logits_of(model: nn.Module, images: Tensor) -> Tensor:
    """`(B, K, H, W)` float64."""
    logits: Tensor = model(images)
    return logits.double()


def margin_over(logits: Tensor, rivals: Tensor) -> Tensor:
    """Predicted logit less the largest of `rivals` `(B, K, H, W)`, in which the predicted class is left out."""
    best, predicted = logits.max(1, keepdim=True)
    return (best - rivals.scatter(1, predicted, -torch.inf).amax(1, keepdim=True))[:, 0]


def margin_over_runner_up(model: nn.Module, images: Tensor, lipschitz: float) -> Tensor:
    """The right one: `m / (sqrt(2) L)`."""
    logits = logits_of(model, images)
    return margin_over(logits, logits) / (SQRT2 * lipschitz)
