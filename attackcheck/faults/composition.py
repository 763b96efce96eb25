"""Layers whose constants are right, put together wrongly, or one factor forgotten."""

from __future__ import annotations

import torch
from torch import nn

from attackcheck.faults.case import Built, Family, control, fault, scaled_fault
from attackcheck.faults.networks import (
    Concatenated,
    Residual,
    orthogonal_convolution,
    pictures,
    pixelwise,
    random,
    rotation,
)
from attackcheck.faults.proofs import bounded, expanded
from attackcheck.faults.subjects import CHANNELS, claimed

__all__ = ["CASES"]


@fault(Family.COMPOSITION, "a residual block counts as the larger of its two paths, not as their sum", prove=expanded)
def residual_as_maximum(seed: int) -> Built:
    """Both paths can push the same way: up to twice."""
    g = random(seed, "residual")
    images = pictures(g)
    return claimed(Residual(orthogonal_convolution(CHANNELS, g)), 1.0, images, g, "product over the layers")


@scaled_fault(
    Family.COMPOSITION,
    "a residual block counts as the product of its paths' constants, which is that of the branch alone",
    prove=expanded,
    knob="norm of the branch",
    severities=(1.5, 4.0, 20.0, 100.0),
)
def residual_as_product(seed: int, severity: float) -> Built:
    """What hooks on layers see when the sum is an operator and not a module."""
    g = random(seed, "residual")
    images = pictures(g)
    branch = pixelwise(severity * torch.eye(CHANNELS, dtype=torch.float64))
    return claimed(Residual(branch), severity, images, g, "product over the layers")


@control(Family.COMPOSITION, "a residual block counts as the sum of its paths", prove=bounded)
def residual_as_sum(seed: int) -> Built:
    """The twin."""
    g = random(seed, "residual")
    images = pictures(g)
    return claimed(Residual(orthogonal_convolution(CHANNELS, g)), 2.0, images, g, "product over the layers")


@scaled_fault(
    Family.COMPOSITION,
    "branches side by side count as the largest of them, not as the root of the sum of their squares",
    prove=expanded,
    knob="number of branches",
    severities=(3, 2),
)
def concatenation_as_maximum(seed: int, severity: float) -> Built:
    """A pyramid of dilated convolutions, each of norm one."""
    g = random(seed, "pyramid")
    images = pictures(g)
    return claimed(Concatenated(*_branches(int(severity), g)), 1.0, images, g, "product over the layers")


@control(Family.COMPOSITION, "branches side by side count as the root of the sum of their squares", prove=bounded)
def concatenation_as_root_of_squares(seed: int) -> Built:
    """The twin."""
    g = random(seed, "pyramid")
    images = pictures(g)
    return claimed(Concatenated(*_branches(3, g)), 3**0.5, images, g, "product over the layers")


def _branches(number: int, g: torch.Generator) -> list[nn.Module]:
    return [orthogonal_convolution(CHANNELS, g) for _ in range(number)]


@fault(Family.COMPOSITION, "nearest upsampling inside the decoder counts as 1; it copies each pixel four times",
       prove=expanded)  # fmt: skip
def nearest_upsampling_inside(seed: int) -> Built:
    """Its norm is its factor."""
    g = random(seed, "nearest")
    images = pictures(g)
    return claimed(nn.Upsample(scale_factor=2, mode="nearest"), 1.0, images, g, "product over the layers", up=False)


@fault(Family.COMPOSITION, "bilinear upsampling with aligned corners counts as its factor 2; it is 2.1 and more",
       prove=expanded)  # fmt: skip
def bilinear_upsampling_with_aligned_corners(seed: int) -> Built:
    """Pixels of the low resolution are spread over more than twice as many on small maps."""
    g = random(seed, "corners")
    images = pictures(g)
    return claimed(
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        2.0,
        images,
        g,
        "product over the layers",
        up=False,
    )


@control(Family.COMPOSITION, "nearest upsampling by 2 inside the decoder counts as 2", prove=bounded)
def nearest_upsampling_counted(seed: int) -> Built:
    """The twin."""
    g = random(seed, "nearest")
    images = pictures(g)
    return claimed(nn.Upsample(scale_factor=2, mode="nearest"), 2.0, images, g, "product over the layers", up=False)


@fault(Family.COMPOSITION, "max pooling counts as 1 although its 3x3 windows overlap", prove=expanded)
def overlapping_max_pooling(seed: int) -> Built:
    """One pixel can be the largest of nine windows: up to 3."""
    g = random(seed, "pooling")
    images = pictures(g)
    return claimed(nn.MaxPool2d(3, stride=1, padding=1), 1.0, images, g, "product over the layers")


@control(Family.COMPOSITION, "max pooling over overlapping 3x3 windows counts as 3")
def overlapping_max_pooling_counted(seed: int) -> Built:
    """The twin."""
    g = random(seed, "pooling")
    images = pictures(g)
    return claimed(nn.MaxPool2d(3, stride=1, padding=1), 3.0, images, g, "product over the layers")


@fault(Family.COMPOSITION, "average pooling that leaves the padding out of its means counts as 1", prove=expanded)
def average_pooling_at_the_border(seed: int) -> Built:
    """Border pixels get larger weights."""
    g = random(seed, "average")
    images = pictures(g)
    return claimed(
        nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False), 1.0, images, g, "product over the layers"
    )


@control(Family.COMPOSITION, "average pooling that counts the padding, as 1", prove=bounded)
def average_pooling_with_padding(seed: int) -> Built:
    """The twin: less than 1 on any finite map."""
    g = random(seed, "average")
    images = pictures(g)
    return claimed(
        nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=True), 1.0, images, g, "product over the layers"
    )


def _activated(seed: int, activation: nn.Module, constant: float) -> Built:
    g = random(seed, "activation")
    images = pictures(g)
    spread = torch.linspace(-1.0, 3.0, CHANNELS)
    return claimed(
        nn.Sequential(pixelwise(rotation(CHANNELS, g), spread), activation),
        constant,
        images,
        g,
        "product over the layers",
    )


@fault(Family.COMPOSITION, "GELU counts as 1; its slope reaches 1.129", prove=expanded)
def gelu(seed: int) -> Built:
    """At 1.41."""
    return _activated(seed, nn.GELU(), 1.0)


@fault(Family.COMPOSITION, "SiLU counts as 1; its slope reaches 1.0998", prove=expanded)
def silu(seed: int) -> Built:
    """At 2.4."""
    return _activated(seed, nn.SiLU(), 1.0)


@fault(Family.COMPOSITION, "Hardswish counts as 1; its slope reaches 1.5", prove=expanded)
def hardswish(seed: int) -> Built:
    """Just below 3."""
    return _activated(seed, nn.Hardswish(), 1.0)


@control(Family.COMPOSITION, "GELU counts as its largest slope, 1.129")
def gelu_counted(seed: int) -> Built:
    """The twin."""
    return _activated(seed, nn.GELU(), 1.12906)


CASES = (
    residual_as_maximum,
    residual_as_product,
    residual_as_sum,
    concatenation_as_maximum,
    concatenation_as_root_of_squares,
    nearest_upsampling_inside,
    bilinear_upsampling_with_aligned_corners,
    nearest_upsampling_counted,
    overlapping_max_pooling,
    overlapping_max_pooling_counted,
    average_pooling_at_the_border,
    average_pooling_with_padding,
    gelu,
    silu,
    hardswish,
    gelu_counted,
)
