"""Radii that do not follow from margin and constant. Each fault is a certifier a line away from the right one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attackcheck.claims import ClassPairClaim, RadiusClaim
from attackcheck.faults.case import Built, Family, control, fault, scaled_fault
from attackcheck.faults.certifiers import (
    SQRT2,
    Certifier,
    certified,
    logits_of,
    margin_over,
    margin_over_runner_up,
    stored,
)
from attackcheck.faults.networks import (
    balanced,
    classifier,
    isometric,
    last_layer,
    orthogonal_convolution,
    patches,
    pictures,
    pixelwise,
    product_of_norms,
    random,
    rescale,
    rotation,
    unpatch,
)
from attackcheck.faults.proofs import flipped, flipped_elsewhere, paired, within_rows

__all__ = ["CASES"]


def _certified(seed: int, certifier: Certifier, *, scale: float = 1.0, offset: float = 0.0) -> Built:
    """A certifier on an isometric network whose logits are multiplied by `scale`, class 0 ahead by `offset`."""
    g = random(seed, "formula")
    images = pictures(g)
    model = isometric(images, g)
    rescale(model, scale)
    last_layer(model)[1][0] += offset
    return Built(model, certified(certifier, model, product_of_norms(model, images[0])), images)


@control(Family.FORMULA, "`m / (sqrt(2) L)`, by a certifier that can be called", prove=within_rows)
def margin_formula(seed: int) -> Built:
    """The twin of most cases here."""
    return _certified(seed, margin_over_runner_up)


def margin_without_sqrt2(model: nn.Module, images: Tensor, lipschitz: float) -> Tensor:
    """`m / L`."""
    logits = logits_of(model, images)
    return margin_over(logits, logits) / lipschitz


@fault(Family.FORMULA, "`m / L`: the sqrt(2) of two logits that move against each other is forgotten", prove=flipped)
def sqrt2_forgotten(seed: int) -> Built:
    """The most frequent of all."""
    return _certified(seed, margin_without_sqrt2)


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
    return Built(model, claim, images, elsewhere=_certified(seed, margin_without_sqrt2))


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


def _unequal_rows(seed: int, over_all: bool) -> Built:
    g = random(seed, "rows")
    images = pictures(g)
    model = isometric(images, g)
    rows = rotation(3, g)
    rows = torch.cat([rows, rows[:1] + 0.15 * rotation(3, g)[:1]])
    model[-1] = pixelwise(rows)
    balanced(model, images)
    features = product_of_norms(model[:-1], images[0])
    pairs = ClassPairClaim(features, last_layer(model)[0])

    def pairwise(model: nn.Module, images: Tensor, lipschitz: float) -> Tensor:
        logits = logits_of(model, images)
        if over_all:
            return pairs.radii(images, logits, None)
        top = logits.topk(2, dim=1)
        spread = torch.cdist(rows, rows)[top.indices[:, 0], top.indices[:, 1]]
        return (top.values[:, 0] - top.values[:, 1]) / (lipschitz * spread)

    return Built(model, certified(pairwise, model, features), images)


@fault(
    Family.FORMULA,
    "class-pair radii look at the runner-up alone; another class with a smaller logit may be nearer",
    prove=flipped,
)
def runner_up_only(seed: int) -> Built:
    """Two classes with almost the same row are far apart in the image."""
    return _unequal_rows(seed, over_all=False)


@control(Family.FORMULA, "class-pair radii are the minimum over all classes", prove=within_rows)
def minimum_over_classes(seed: int) -> Built:
    """The twin."""
    return _unequal_rows(seed, over_all=True)


def margin_without_void(model: nn.Module, images: Tensor, lipschitz: float) -> Tensor:
    """The last class, void, is no rival."""
    logits = logits_of(model, images)
    void = logits.shape[1] - 1
    rivals = torch.cat([logits[:, :void], torch.full_like(logits[:, void:], -torch.inf)], 1)
    margin = margin_over(logits, rivals) / (SQRT2 * lipschitz)
    return torch.where(logits.argmax(1) == void, 0.0, margin)


@fault(Family.FORMULA, "the runner-up is sought among all classes but void, which can be predicted", prove=flipped)
def void_is_no_rival(seed: int) -> Built:
    """It is ignored in every measure, and so in the margin."""
    return _certified(seed, margin_without_void)


@fault(Family.FORMULA, "the runner-up is sought among the classes in the image's labels", prove=flipped)
def absent_classes_are_no_rivals(seed: int) -> Built:
    """A perturbation can make pixels of a class that is nowhere in the image."""
    built = _certified(seed, margin_over_runner_up)
    logits = logits_of(built.model, built.images)
    labels = logits[:, :2].argmax(1)
    present = torch.zeros_like(logits, dtype=torch.bool)
    present[:, :2] = True
    margin = margin_over(logits, logits.masked_fill(~present, -torch.inf))
    lipschitz = product_of_norms(built.model, built.images[0])
    return Built(built.model, stored(margin / (SQRT2 * lipschitz), "margins"), built.images, labels)


@fault(Family.FORMULA, "the margin is that of the label, not of the prediction", prove=flipped)
def label_for_prediction(seed: int) -> Built:
    """Where the prediction is wrong, its distance to the label's class is no distance to all others."""
    built = _certified(seed, margin_over_runner_up)
    logits = logits_of(built.model, built.images)
    labels = torch.randint(logits.shape[1], logits[:, 0].shape, generator=random(seed, "labels"))
    labels = torch.where(torch.rand(labels.shape, generator=random(seed, "noise")) < 0.7, logits.argmax(1), labels)
    own = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1, keepdim=True)
    lipschitz = product_of_norms(built.model, built.images[0])
    radii = (own - others).abs()[:, 0] / (SQRT2 * lipschitz)
    return Built(built.model, stored(radii, "margins of labels"), built.images, labels)


def margin_over_the_last(model: nn.Module, images: Tensor, lipschitz: float) -> Tensor:
    """Sorted the other way: best logit less the worst."""
    ordered = logits_of(model, images).sort(dim=1).values
    return (ordered[:, -1] - ordered[:, 0]) / (SQRT2 * lipschitz)


@fault(Family.FORMULA, "logits are sorted the other way, and the least likely class is the rival", prove=flipped)
def least_likely_rival(seed: int) -> Built:
    """Right for two classes."""
    return _certified(seed, margin_over_the_last)


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
    return _certified(seed, budget_over_constant, scale=severity)


def squared_radius(model: nn.Module, images: Tensor, lipschitz: float) -> Tensor:
    """`m^2 / (2 L^2)`."""
    return margin_over_runner_up(model, images, lipschitz).square()


@fault(Family.FORMULA, "the root of the squared radius is forgotten", prove=flipped)
def root_forgotten(seed: int) -> Built:
    """Too small below 1 and too large above."""
    return _certified(seed, squared_radius, offset=3.5)


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

    return _certified(seed, of_scaled_logits)


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

    return _certified(seed, of_probabilities)


def _times(seed: int, factor: float, name: str) -> Built:
    def rescaled(model: nn.Module, images: Tensor, lipschitz: float) -> Tensor:
        return factor * margin_over_runner_up(model, images, lipschitz)

    rescaled.__name__ = name
    return _certified(seed, rescaled)


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
    return _certified(seed, joint_distance)


def margin_over_smaller(model: nn.Module, images: Tensor, lipschitz: float) -> Tensor:
    """The largest logit that is strictly smaller."""
    logits = logits_of(model, images)
    smaller = torch.where(logits < logits.amax(1, keepdim=True), logits, -torch.inf)
    return (logits.amax(1) - smaller.amax(1)) / (SQRT2 * lipschitz)


def _with_a_black_patch(seed: int, certifier: Certifier) -> Built:
    g = random(seed, "ties")
    images = pictures(g)
    model = isometric(images, g)
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.bias is not None:
            layer.bias.data.zero_()
    images[:, :, 2:10, 2:10] = 0.0
    perturbed = images[0].clone()
    perturbed[:, 2:10, 2:10] += 1e-3 * torch.randn(3, 8, 8, generator=g)
    claim: RadiusClaim = certified(certifier, model, product_of_norms(model, images[0]))
    return Built(model, claim, images, pair=(images[0], perturbed))


@fault(Family.FORMULA, "the runner-up must be strictly smaller, so that pixels at a tie are certified", prove=paired)
def ties_certified(seed: int) -> Built:
    """Without biases a black patch ties all classes; their radius comes out infinite."""
    return _with_a_black_patch(seed, margin_over_smaller)


@control(Family.FORMULA, "pixels at a tie have radius 0", prove=within_rows)
def ties_not_certified(seed: int) -> Built:
    """The twin."""
    return _with_a_black_patch(seed, margin_over_runner_up)


CASES = (
    margin_formula,
    sqrt2_forgotten,
    sqrt2_forgotten_on_a_loose_network,
    classwise_constants_with_sqrt2,
    classwise_constants_added,
    runner_up_only,
    minimum_over_classes,
    void_is_no_rival,
    absent_classes_are_no_rivals,
    label_for_prediction,
    least_likely_rival,
    budget_over_unsquared_constant,
    root_forgotten,
    scaled_logits,
    probabilities_for_logits,
    units_of_255,
    root_mean_square,
    normalisation_undone_the_wrong_way,
    image_radius_for_pixels,
    ties_certified,
    ties_not_certified,
)
