"""The normalisation of the input, whose `1 / min(std)` belongs to the constant of a claim about images in [0, 1]."""

from __future__ import annotations

from torch import nn

from attackcheck.claims import LipschitzClaim
from attackcheck.faults.case import Built, Family, control, fault, scaled_fault
from attackcheck.faults.networks import isometric, pictures, random
from attackcheck.faults.norms import product_of_norms
from attackcheck.faults.proofs import bounded, expanded
from attackcheck.models.layers import Normalise

__all__ = ["CASES"]

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def _normalised(seed: int, std: tuple[float, ...], factor: float, times: int = 1) -> Built:
    g = random(seed, "normalise")
    images = pictures(g)
    normalise = nn.Sequential(*[Normalise(MEAN, std) for _ in range(times)])
    seen = normalise(images)
    inner = isometric(seen, g)
    model = nn.Sequential(*normalise, *inner).eval()
    claim = LipschitzClaim(product_of_norms(inner, seen[0]) * factor * (1 + 1e-6), source="product over the layers")
    return Built(model, claim, images)


def _spread(severity: float) -> tuple[float, ...]:
    return (severity, severity * 1.02, severity * 1.04)


@scaled_fault(
    Family.COMPOSITION,
    "the division by the standard deviation at the input is left out of the constant",
    prove=expanded,
    knob="smallest standard deviation",
    severities=(0.224, 0.5, 0.9, 0.98, 0.995),
)
def normalisation_left_out(seed: int, severity: float) -> Built:
    """It sits in the data loader's code, or in a module without weights."""
    return _normalised(seed, _spread(severity), 1.0)


@scaled_fault(
    Family.COMPOSITION,
    "the constant is multiplied by the smallest standard deviation instead of divided",
    prove=expanded,
    knob="smallest standard deviation",
    severities=(0.224, 0.9, 0.99),
)
def normalisation_inverted(seed: int, severity: float) -> Built:
    """Wrong by its square."""
    return _normalised(seed, _spread(severity), severity)


@fault(Family.COMPOSITION, "images are normalised by the pipeline and by the model, and counted once", prove=expanded)
def normalisation_twice(seed: int) -> Built:
    """Predictions suffer little, the constant much."""
    return _normalised(seed, STD, 1 / min(STD), times=2)


@scaled_fault(
    Family.COMPOSITION,
    "the constant is divided by the mean of the standard deviations, not by the smallest",
    prove=expanded,
    knob="largest over smallest standard deviation",
    severities=(1.5, 1.1, 1.022, 1.005),
)
def normalisation_by_the_mean(seed: int, severity: float) -> Built:
    """Little is wrong with the usual three numbers, which differ by 2 %."""
    std = (0.224, 0.224 * (1 + severity) / 2, 0.224 * severity)
    return _normalised(seed, std, 3 / sum(std))


@control(Family.COMPOSITION, "the constant is divided by the smallest standard deviation", prove=bounded)
def normalisation_counted(seed: int) -> Built:
    """The twin."""
    return _normalised(seed, STD, 1 / min(STD))


CASES = (
    normalisation_left_out,
    normalisation_inverted,
    normalisation_twice,
    normalisation_by_the_mean,
    normalisation_counted,
)
