"""Layers whose constants are right, put together wrongly, or one factor forgotten."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attackcheck.claims import ClassPairClaim, LipschitzClaim
from attackcheck.faults.case import Built, Family, control, fault, scaled_fault
from attackcheck.faults.networks import (
    Affine,
    Concatenated,
    Residual,
    balanced,
    isometric,
    last_layer,
    orthogonal_convolution,
    outer_norm,
    pictures,
    pixelwise,
    product_of_norms,
    random,
    rotation,
    sandwich,
)
from attackcheck.faults.proofs import bounded, expanded, flipped, within_rows

__all__ = ["CASES"]

CHANNELS = 12


def _claimed(middle: nn.Module, constant: float, images: Tensor, g: torch.Generator, *, up: bool = True) -> Built:
    model = sandwich(middle, images, g, up=up)
    claim = LipschitzClaim(outer_norm(model, images[0]) * constant * (1 + 1e-6), source="product over the layers")
    return Built(model, claim, images)


@fault(Family.COMPOSITION, "a residual block counts as the larger of its two paths, not as their sum", prove=expanded)
def residual_as_maximum(seed: int) -> Built:
    """Both paths can push the same way: up to twice."""
    g = random(seed, "residual")
    images = pictures(g)
    return _claimed(Residual(orthogonal_convolution(CHANNELS, g)), 1.0, images, g)


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
    return _claimed(Residual(branch), severity, images, g)


@control(Family.COMPOSITION, "a residual block counts as the sum of its paths", prove=bounded)
def residual_as_sum(seed: int) -> Built:
    """The twin."""
    g = random(seed, "residual")
    images = pictures(g)
    return _claimed(Residual(orthogonal_convolution(CHANNELS, g)), 2.0, images, g)


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
    return _claimed(Concatenated(*_branches(int(severity), g)), 1.0, images, g)


@control(Family.COMPOSITION, "branches side by side count as the root of the sum of their squares", prove=bounded)
def concatenation_as_root_of_squares(seed: int) -> Built:
    """The twin."""
    g = random(seed, "pyramid")
    images = pictures(g)
    return _claimed(Concatenated(*_branches(3, g)), 3**0.5, images, g)


def _branches(number: int, g: torch.Generator) -> list[nn.Module]:
    return [orthogonal_convolution(CHANNELS, g) for _ in range(number)]


@fault(Family.COMPOSITION, "nearest upsampling inside the decoder counts as 1; it copies each pixel four times",
       prove=expanded)  # fmt: skip
def nearest_upsampling_inside(seed: int) -> Built:
    """Its norm is its factor."""
    g = random(seed, "nearest")
    images = pictures(g)
    return _claimed(nn.Upsample(scale_factor=2, mode="nearest"), 1.0, images, g, up=False)


@fault(Family.COMPOSITION, "bilinear upsampling with aligned corners counts as its factor 2; it is 2.1 and more",
       prove=expanded)  # fmt: skip
def bilinear_upsampling_with_aligned_corners(seed: int) -> Built:
    """Pixels of the low resolution are spread over more than twice as many on small maps."""
    g = random(seed, "corners")
    images = pictures(g)
    return _claimed(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), 2.0, images, g, up=False)


@control(Family.COMPOSITION, "nearest upsampling by 2 inside the decoder counts as 2", prove=bounded)
def nearest_upsampling_counted(seed: int) -> Built:
    """The twin."""
    g = random(seed, "nearest")
    images = pictures(g)
    return _claimed(nn.Upsample(scale_factor=2, mode="nearest"), 2.0, images, g, up=False)


@fault(Family.COMPOSITION, "max pooling counts as 1 although its 3x3 windows overlap", prove=expanded)
def overlapping_max_pooling(seed: int) -> Built:
    """One pixel can be the largest of nine windows: up to 3."""
    g = random(seed, "pooling")
    images = pictures(g)
    return _claimed(nn.MaxPool2d(3, stride=1, padding=1), 1.0, images, g)


@control(Family.COMPOSITION, "max pooling over overlapping 3x3 windows counts as 3")
def overlapping_max_pooling_counted(seed: int) -> Built:
    """The twin."""
    g = random(seed, "pooling")
    images = pictures(g)
    return _claimed(nn.MaxPool2d(3, stride=1, padding=1), 3.0, images, g)


@fault(Family.COMPOSITION, "average pooling that leaves the padding out of its means counts as 1", prove=expanded)
def average_pooling_at_the_border(seed: int) -> Built:
    """Border pixels get larger weights."""
    g = random(seed, "average")
    images = pictures(g)
    return _claimed(nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False), 1.0, images, g)


@control(Family.COMPOSITION, "average pooling that counts the padding, as 1", prove=bounded)
def average_pooling_with_padding(seed: int) -> Built:
    """The twin: less than 1 on any finite map."""
    g = random(seed, "average")
    images = pictures(g)
    return _claimed(nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=True), 1.0, images, g)


def _activated(seed: int, activation: nn.Module, constant: float) -> Built:
    g = random(seed, "activation")
    images = pictures(g)
    spread = torch.linspace(-1.0, 3.0, CHANNELS)
    return _claimed(nn.Sequential(pixelwise(rotation(CHANNELS, g), spread), activation), constant, images, g)


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


@fault(Family.COMPOSITION, "instance normalisation counts as 1; where contrast is low it divides by little",
       prove=expanded)  # fmt: skip
def instance_normalisation(seed: int) -> Built:
    """It has no constant at all."""
    g = random(seed, "instance")
    images = 0.5 + 0.2 * (pictures(g) - 0.5)
    return _claimed(nn.InstanceNorm2d(CHANNELS), 1.0, images, g)


class _BatchNorm(nn.BatchNorm2d):
    """Stored statistics and a learnable scale, `largest` the largest quotient of both."""

    def __init__(self, largest: float, g: torch.Generator) -> None:
        super().__init__(CHANNELS)
        with torch.no_grad():
            self.running_var = 0.5 + torch.rand(CHANNELS, generator=g)
            scale = (0.3 + 0.7 * torch.rand(CHANNELS, generator=g)) * largest
            scale[0] = largest
            self.weight.copy_(scale * (self.running_var + self.eps).sqrt())
        self.eval().requires_grad_(False)


@scaled_fault(
    Family.COMPOSITION,
    "batch normalisation counts as 1; in evaluation it multiplies by gamma / sqrt(var + eps)",
    prove=expanded,
    knob="largest multiplier",
    severities=(3.0, 1.2, 1.05, 1.01, 1.003),
)
def batch_normalisation(seed: int, severity: float) -> Built:
    """An unknown layer is taken for a harmless one."""
    g = random(seed, "norm")
    images = pictures(g)
    return _claimed(_BatchNorm(severity, g), 1.0, images, g)


@control(Family.COMPOSITION, "batch normalisation counts as its largest multiplier", prove=bounded)
def batch_normalisation_counted(seed: int) -> Built:
    """The twin."""
    g = random(seed, "norm")
    images = pictures(g)
    return _claimed(_BatchNorm(3.0, g), 3.0, images, g)


class Scaled(Affine):
    """Logits divided by a temperature."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def forward(self, x: Tensor) -> Tensor:
        return x / self.temperature


def _tempered(seed: int, temperature: float, constant: float) -> Built:
    g = random(seed, "temperature")
    images = pictures(g)
    model = isometric(images, g)
    bound = product_of_norms(model, images[0])
    return Built(
        nn.Sequential(*model, Scaled(temperature)).eval(), LipschitzClaim(bound * constant * (1 + 1e-6)), images
    )


@scaled_fault(
    Family.COMPOSITION,
    "the temperature that the logits are divided by is left out of the constant",
    prove=expanded,
    knob="inverse temperature",
    severities=(10.0, 2.0, 1.1, 1.01, 1.003, 1.001),
)
def temperature_left_out(seed: int, severity: float) -> Built:
    """Learnt with the classifier, and not a layer of its own."""
    return _tempered(seed, 1 / severity, 1.0)


@control(Family.COMPOSITION, "logits and constant are scaled together", prove=bounded)
def temperature_counted(seed: int) -> Built:
    """The twin: radii stay as they are."""
    return _tempered(seed, 1 / 64, 64.0)


def _loose_classifier(seed: int) -> tuple[nn.Sequential, Tensor]:
    g = random(seed, "classifier")
    images = pictures(g)
    model = isometric(images, g)
    model[-1] = pixelwise(torch.randn(5, 3, generator=g, dtype=torch.float64))
    return balanced(model, images), images


@fault(Family.COMPOSITION, "the classifier's norm is left out: the constant is that of the features", prove=expanded)
def classifier_left_out(seed: int) -> Built:
    """The last layer was left unconstrained for accuracy."""
    model, images = _loose_classifier(seed)
    return Built(model, LipschitzClaim(product_of_norms(model[:-1], images[0])), images)


@control(Family.COMPOSITION, "the classifier's rows enter class by class", prove=within_rows)
def classifier_by_class_pairs(seed: int) -> Built:
    """The twin."""
    model, images = _loose_classifier(seed)
    rows = last_layer(model)[0]
    return Built(model, ClassPairClaim(product_of_norms(model[:-1], images[0]), rows), images)


@fault(Family.COMPOSITION, "class-pair radii use the classifier's rows of an earlier epoch", prove=flipped)
def classifier_of_another_epoch(seed: int) -> Built:
    """Rows were shorter then."""
    model, images = _loose_classifier(seed)
    rows = 0.7 * last_layer(model)[0]
    return Built(model, ClassPairClaim(product_of_norms(model[:-1], images[0]), rows), images)


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
    instance_normalisation,
    batch_normalisation,
    batch_normalisation_counted,
    temperature_left_out,
    temperature_counted,
    classifier_left_out,
    classifier_by_class_pairs,
    classifier_of_another_epoch,
)
