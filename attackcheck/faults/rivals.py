"""Margins over the wrong class: which rival a radius is about, and what happens at a tie."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attackcheck.claims import ClassPairClaim, RadiusClaim
from attackcheck.faults.case import Built, Family, control, fault
from attackcheck.faults.certifiers import (
    SQRT2,
    Certifier,
    certified,
    logits_of,
    margin_over,
    margin_over_runner_up,
    of_images,
    stored,
)
from attackcheck.faults.networks import balanced, isometric, last_layer, pictures, pixelwise, random, rotation
from attackcheck.faults.norms import product_of_norms
from attackcheck.faults.proofs import flipped, paired, within_rows
from attackcheck.faults.subjects import certified_by

__all__ = ["CASES"]


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

    def pairwise(images: Tensor) -> Tensor:
        logits = logits_of(model, images)
        if over_all:
            return pairs.radii(images, logits, None)
        top = logits.topk(2, dim=1)
        spread = torch.cdist(rows, rows)[top.indices[:, 0], top.indices[:, 1]]
        return (top.values[:, 0] - top.values[:, 1]) / (features * spread)

    return Built(model, of_images(pairwise, "class-pair radii"), images)


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
    return certified_by(seed, margin_without_void)


@fault(Family.FORMULA, "the runner-up is sought among the classes in the image's labels", prove=flipped)
def absent_classes_are_no_rivals(seed: int) -> Built:
    """A perturbation can make pixels of a class that is nowhere in the image."""
    built = certified_by(seed, margin_over_runner_up)
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
    built = certified_by(seed, margin_over_runner_up)
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
    return certified_by(seed, margin_over_the_last)


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
    runner_up_only,
    minimum_over_classes,
    void_is_no_rival,
    absent_classes_are_no_rivals,
    label_for_prediction,
    least_likely_rival,
    ties_certified,
    ties_not_certified,
)
