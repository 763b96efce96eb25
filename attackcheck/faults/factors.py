"""Factors that multiply everything and are left out: normalisation layers, temperature, the classifier."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attackcheck.claims import ClassPairClaim, LipschitzClaim
from attackcheck.faults.case import Built, Family, control, fault, scaled_fault
from attackcheck.faults.networks import Affine, balanced, isometric, last_layer, pictures, pixelwise, random
from attackcheck.faults.norms import product_of_norms
from attackcheck.faults.proofs import bounded, expanded, flipped, within_rows
from attackcheck.faults.subjects import CHANNELS, claimed

__all__ = ["CASES"]


@fault(Family.COMPOSITION, "instance normalisation counts as 1; where contrast is low it divides by little",
       prove=expanded)  # fmt: skip
def instance_normalisation(seed: int) -> Built:
    """It has no constant at all."""
    g = random(seed, "instance")
    images = 0.5 + 0.2 * (pictures(g) - 0.5)
    return claimed(nn.InstanceNorm2d(CHANNELS), 1.0, images, g, "product over the layers")


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
    return claimed(_BatchNorm(severity, g), 1.0, images, g, "product over the layers")


@control(Family.COMPOSITION, "batch normalisation counts as its largest multiplier", prove=bounded)
def batch_normalisation_counted(seed: int) -> Built:
    """The twin."""
    g = random(seed, "norm")
    images = pictures(g)
    return claimed(_BatchNorm(3.0, g), 3.0, images, g, "product over the layers")


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
    instance_normalisation,
    batch_normalisation,
    batch_normalisation_counted,
    temperature_left_out,
    temperature_counted,
    classifier_left_out,
    classifier_by_class_pairs,
    classifier_of_another_epoch,
)
