"""Subjects that several families build: a network with the claim that somebody makes about it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attackcheck.claims import LipschitzClaim
from attackcheck.faults.case import Built
from attackcheck.faults.certifiers import Certifier, certified
from attackcheck.faults.networks import isometric, last_layer, pictures, random, rescale, sandwich
from attackcheck.faults.norms import outer_norm, product_of_norms

__all__ = ["CHANNELS", "ROUNDED_UP", "SHAPE", "behind", "certified_by", "claimed", "network"]

SHAPE = (12, 6, 6)
"""What the layer in the middle of a sandwich sees of a 3x12x12 image."""

CHANNELS = SHAPE[0]

ROUNDED_UP = 1.0 + 1e-6
"""Room for float32 in constants that are right."""


def claimed(
    middle: nn.Module, constant: float, images: Tensor, g: torch.Generator, source: str, *, up: bool = True
) -> Built:
    """A sandwich around `middle`, whose constant is claimed to be `constant`."""
    model = sandwich(middle, images, g, up=up)
    claim = LipschitzClaim(outer_norm(model, images[0]) * constant * ROUNDED_UP, source=source)
    return Built(model, claim, images)


def network(seed: int, name: str, scale: float = 1.0, **size: int) -> tuple[nn.Sequential, Tensor, float]:
    """An isometric network with logits times `scale`, its images, and a constant that holds."""
    g = random(seed, name)
    images = pictures(g, **size)
    model = rescale(isometric(images, g), scale)
    return model, images, product_of_norms(model, images[0]) * ROUNDED_UP


def certified_by(seed: int, certifier: Certifier, *, scale: float = 1.0, offset: float = 0.0) -> Built:
    """A certifier on an isometric network whose logits are multiplied by `scale`, class 0 ahead by `offset`."""
    model, images, _ = network(seed, "certified", scale)
    last_layer(model)[1][0] += offset
    return Built(model, certified(certifier, model, product_of_norms(model, images[0])), images)


def behind(
    first: nn.Module, seed: int, name: str, *, after: nn.Module | None = None, count: int = 1, balance: bool = True
) -> Built:
    """An isometric network behind another layer, perhaps with one after it; claimed is the constant of the isometry.

    Its classes are balanced on what `first` makes of the images, or without `balance` on the images.
    """
    g = random(seed, name)
    images = pictures(g, count)
    inner = isometric(first(images) if balance else images, g)
    claim = LipschitzClaim(product_of_norms(inner, images[0]) * ROUNDED_UP)
    return Built(nn.Sequential(first, *inner, *([] if after is None else [after])).eval(), claim, images)
