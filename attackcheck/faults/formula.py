"""Radii that do not follow from margin and constant. Each fault is a certifier a line away from the right one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attackcheck.faults.case import Built, Family, control, fault, scaled_fault
from attackcheck.faults.certifiers import (
    SQRT2,
    certified,
    logits_of,
    margin_over,
    margin_over_runner_up,
)
from attackcheck.faults.networks import (
    balanced,
    classifier,
    isometric,
    orthogonal_convolution,
    patches,
    pictures,
    pixelwise,
    random,
    rotation,
    unpatch,
)
from attackcheck.faults.norms import product_of_norms
from attackcheck.faults.proofs import flipped, flipped_elsewhere, within_rows
from attackcheck.faults.subjects import certified_by

__all__ = ["CASES"]


@control(Family.FORMULA, "`m / (sqrt(2) L)`, by a certifier that can be called", prove=within_rows)
def margin_formula(seed: int) -> Built:
    """The twin of most cases here."""
    return certified_by(seed, margin_over_runner_up)


def margin_without_sqrt2(model: nn.Module, images: Tensor, lipschitz: float) -> Tensor:
    """`m / L`."""
    logits = logits_of(model, images)
    return margin_over(logits, logits) / lipschitz


@fault(Family.FORMULA, "`m / L`: the sqrt(2) of two logits that move against each other is forgotten", prove=flipped)
def sqrt2_forgotten(seed: int) -> Built:
    """The most frequent of all."""
    return certified_by(seed, margin_without_sqrt2)


def _loose(images: Tensor, g: torch.Generator) -> nn.Sequential:
    """Half of the signal is lost at every ReLU: no attack comes near the radii."""
    channels = 4 * images.shape[1]
    layers: list[nn.Module] = [patches(images.shape[1], g)]
    for _ in range(3):
        layers += [nn.ReLU(), orthogonal_convolution(channels, g)]
    return balanced(nn.Sequential(*layers, unpatch(channels, g), classifier(3, g)), images)


@fault(
    Family.FORMULA,
    "`m / L` on a network so loose that no perturbation shows it; the formula is wrong all the same",
    prove=flipped_elsewhere,
)
def sqrt2_forgotten_on_a_loose_network(seed: int) -> Built:
    """To be found by calling the certifier on networks whose distances are known."""
    g = random(seed, "loose")
    images = pictures(g)
    model = _loose(images, g)
    claim = certified(margin_without_sqrt2, model, product_of_norms(model, images[0]))
    return Built(model, claim, images, elsewhere=certified_by(seed, margin_without_sqrt2))


def _opposite(seed: int, factor: float) -> Built:
    g = random(seed, "opposite")
    images = pictures(g)
    model = isometric(images, g)
    row = rotation(3, g)[:1]
    model[-1] = pixelwise(torch.cat([row, -row]))
    balanced(model, images)

    def classwise(model: nn.Module, images: Tensor, lipschitz: float) -> Tensor:
        logits = logits_of(model, images)  # every logit alone is L-Lipschitz: rows have norm 1
        return margin_over(logits, logits) / (factor * lipschitz)

    return Built(model, certified(classwise, model, product_of_norms(model[:-1], images[0])), images)


@fault(Family.FORMULA, "constants of single classes are combined by sqrt(2), not by their sum", prove=flipped)
def classwise_constants_with_sqrt2(seed: int) -> Built:
    """The rows of two classes may be opposite: then the margin moves twice as fast as each logit."""
    return _opposite(seed, SQRT2)


@control(Family.FORMULA, "constants of single classes are added", prove=within_rows)
def classwise_constants_added(seed: int) -> Built:
    """The twin, tight."""
    return _opposite(seed, 2.0)


def budget_over_constant(model: nn.Module, images: Tensor, lipschitz: float) -> Tensor:
    """`sqrt(m^2 / 2 / L)`."""
    logits = logits_of(model, images)
    return (margin_over(logits, logits).square() / 2 / lipschitz).sqrt()


@scaled_fault(
    Family.FORMULA,
    "the squared budget is divided by L instead of its square",
    prove=flipped,
    knob="the constant L",
    severities=(9.0, 3.0, 1.5, 1.1, 1.02),
)
def budget_over_unsquared_constant(seed: int, severity: float) -> Built:
    """Unseen as long as L is 1."""
    return certified_by(seed, budget_over_constant, scale=severity)


def squared_radius(model: nn.Module, images: Tensor, lipschitz: float) -> Tensor:
    """`m^2 / (2 L^2)`."""
    return margin_over_runner_up(model, images, lipschitz).square()


@fault(Family.FORMULA, "the root of the squared radius is forgotten", prove=flipped)
def root_forgotten(seed: int) -> Built:
    """Too small below 1 and too large above."""
    return certified_by(seed, squared_radius, offset=3.5)


@scaled_fault(
    Family.FORMULA,
    "margins of scaled logits are divided by the constant of the unscaled ones",
    prove=flipped,
    knob="scale",
    severities=(10.0, 2.0, 1.1, 1.01, 1.003, 1.001),
)
def scaled_logits(seed: int, severity: float) -> Built:
    """A temperature that the loss needs."""

    def of_scaled_logits(model: nn.Module, images: Tensor, lipschitz: float) -> Tensor:
        return severity * margin_over_runner_up(model, images, lipschitz)

    return certified_by(seed, of_scaled_logits)


@scaled_fault(
    Family.FORMULA,
    "margins of probabilities are divided by the constant of the logits",
    prove=flipped,
    knob="inverse temperature of the softmax",
    severities=(30.0, 10.0, 4.0),
)
def probabilities_for_logits(seed: int, severity: float) -> Built:
    """A softmax at temperature 1 happens to be 1-Lipschitz, a sharper one is not."""

    def of_probabilities(model: nn.Module, images: Tensor, lipschitz: float) -> Tensor:
        shares = (severity * logits_of(model, images)).softmax(1)
        return margin_over(shares, shares) / (SQRT2 * lipschitz)

    return certified_by(seed, of_probabilities)


def _times(seed: int, factor: float, name: str) -> Built:
    def rescaled(model: nn.Module, images: Tensor, lipschitz: float) -> Tensor:
        return factor * margin_over_runner_up(model, images, lipschitz)

    rescaled.__name__ = name
    return certified_by(seed, rescaled)


@fault(Family.FORMULA, "radii are given in steps of 1 / 255 to a reader of [0, 1]", prove=flipped)
def units_of_255(seed: int) -> Built:
    """The network divides by 255 itself."""
    return _times(seed, 255.0, "radii in 0 to 255")


@fault(Family.FORMULA, "a norm per number is taken for a norm over the image", prove=flipped)
def root_mean_square(seed: int) -> Built:
    """`sqrt(mean(delta^2))` is smaller than the L2 norm by the root of 3 x 12 x 12."""
    return _times(seed, 432.0**0.5, "root mean square")


@scaled_fault(
    Family.FORMULA,
    "radii of normalised images are divided by the standard deviation instead of multiplied",
    prove=flipped,
    knob="standard deviation",
    severities=(0.224, 0.9, 0.99),
)
def normalisation_undone_the_wrong_way(seed: int, severity: float) -> Built:
    """Here the constant contains the normalisation already, so that once would be too much."""
    return _times(seed, 1 / severity, "radii over std")


def joint_distance(model: nn.Module, images: Tensor, lipschitz: float) -> Tensor:
    """`sqrt(sum m^2 / 2) / L`: what it takes to flip all pixels."""
    radii = margin_over_runner_up(model, images, lipschitz)
    joint: Tensor = radii.flatten(1).norm(dim=1)[:, None, None].expand_as(radii)
    return joint


@fault(Family.FORMULA, "the distance at which the whole image flips is given to each of its pixels", prove=flipped)
def image_radius_for_pixels(seed: int) -> Built:
    """Right as a statement on sets."""
    return certified_by(seed, joint_distance)


CASES = (
    margin_formula,
    sqrt2_forgotten,
    sqrt2_forgotten_on_a_loose_network,
    classwise_constants_with_sqrt2,
    classwise_constants_added,
    budget_over_unsquared_constant,
    root_forgotten,
    scaled_logits,
    probabilities_for_logits,
    units_of_255,
    root_mean_square,
    normalisation_undone_the_wrong_way,
    image_radius_for_pixels,
)
