"""Whole images under attack at fixed budgets, and what each attacked point does to every measure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attackcheck.attacks import registry
from attackcheck.attacks.objectives import ImageFlip
from attackcheck.measures.components import Components, surviving
from attackcheck.measures.image import Counts, counts
from attackcheck.selection import seed_of
from attackcheck.subject import Model

__all__ = ["AttackedImage", "Candidate", "ImageAttack", "Shift", "candidates", "quantised"]

INSIDE = 1.0 - 1e-5
"""Attacks aim at this share of the budget, so that rounding does not carry them out of it."""


class Shift(NamedTuple):
    """A perturbation ``scale * numbers``; ``scale`` is a power of two, ``numbers`` are float16 ``(C, H, W)``."""

    numbers: Tensor
    scale: float

    def added_to(self, image: Tensor) -> Tensor:
        """The perturbed image, the same number for number wherever it is computed."""
        return image + self.numbers.to(image.dtype) * self.scale


@dataclass(frozen=True)
class ImageAttack:
    """One way to attack an image: a registered attack at a fixed budget, with its loss and options.

    ``cls`` goes for the true positives of one class instead of all right pixels.
    """

    name: str = "guided"
    loss: str = "margin"
    steps: int = 15
    cls: int | None = None

    def describe(self) -> str:
        """For reports."""
        return f"{self.name}, {self.steps} steps" + ("" if self.cls is None else f" at class {self.cls}")


@dataclass(frozen=True)
class AttackedImage:
    """What is known of an image before it is attacked."""

    index: int
    image: Tensor  # (C, H, W) on the device
    logits: Tensor  # (K, H, W) on the device
    labels: Tensor | None  # (H * W,) on the device
    valid: Tensor | None  # (H * W,)
    predicted: Tensor  # (H * W,)
    components: Components


@dataclass(frozen=True)
class Candidate:
    """One point that an attack returned; enough to make it again."""

    counts: Counts
    distance: float
    attack: ImageAttack | None
    eps: float


def candidates(
    model: Model,
    image: AttackedImage,
    attacks: Sequence[ImageAttack],
    epsilons: Sequence[float],
    *,
    seed: int,
    box: tuple[float, float] | None,
) -> Iterator[tuple[Candidate, Shift]]:
    """Every attack at every budget: what came out, and the perturbation itself."""
    for attack in attacks:
        weights = _weights(image, attack)
        if not bool(weights.any()):
            continue
        for eps in epsilons:
            if eps <= 0:
                continue
            shift = _attacked(model, image, attack, eps, weights, seed, box)
            point = shift.added_to(image.image)
            with torch.no_grad():
                predicted = model(point[None])[0].flatten(1).argmax(dim=0)
            yield Candidate(_count(image, predicted), _norm(point - image.image), attack, eps), shift


def _weights(image: AttackedImage, attack: ImageAttack) -> Tensor:
    """Pixels to flip: those that are right (of the class), or all of them where there are no labels."""
    if image.labels is None or image.valid is None:
        hit = torch.ones_like(image.predicted, dtype=torch.bool)
    else:
        hit = (image.predicted == image.labels) & image.valid
    if attack.cls is not None:
        hit = hit & (image.predicted == attack.cls)
    return hit.reshape(image.logits.shape[1:]).float()


def _attacked(
    model: Model,
    image: AttackedImage,
    attack: ImageAttack,
    eps: float,
    weights: Tensor,
    seed: int,
    box: tuple[float, float] | None,
) -> Shift:
    function: Any = registry.get(attack.name).function
    number = seed_of(seed, image.index, "image", attack.name, attack.loss, eps)
    found: Tensor = function(
        model,
        image.image[None],
        ImageFlip(1.0, weights, loss=attack.loss),
        eps=eps * INSIDE,
        steps=attack.steps,
        box=box,
        generator=[torch.Generator().manual_seed(number)],
    )[0]
    return quantised(image.image, found.detach(), eps)


def quantised(clean: Tensor, perturbed: Tensor, eps: float) -> Shift:
    """The perturbation in numbers of 11 bits, half as long to store, and no longer than ``eps`` once added."""
    delta = perturbed - clean
    largest = float(delta.abs().max())
    scale = 1.0 if largest == 0.0 else 2.0 ** math.floor(math.log2(largest))
    for shrink in (1.0, 1.0 - 2.0**-10, 1.0 - 2.0**-8):
        shift = Shift((delta * (shrink / scale)).half(), scale)
        if _norm(shift.added_to(clean) - clean) <= eps * (1.0 - 1e-9):
            return shift
    return Shift(torch.zeros_like(delta, dtype=torch.float16), 1.0)


def _norm(delta: Tensor) -> float:
    return float(delta.double().square().sum().sqrt()) * (1.0 + 1e-12)


def _count(image: AttackedImage, predicted: Tensor) -> Counts:
    classes = int(image.logits.shape[0])
    alive = surviving(image.components, predicted != image.predicted)
    return counts(predicted, image.predicted, image.labels, image.valid, classes, image.components, alive)
