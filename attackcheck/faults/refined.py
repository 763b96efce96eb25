"""Refined certificates a line away from the right one: whose rows, in which order, over which constant.

The network's tail sorts and is not the same at the four pixels of a block; what is wrong is planted in the slopes that
the certificate computes with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from attackcheck.claims import LipschitzClaim, RadiusClaim
from attackcheck.faults.case import Built, Family, Proof, control, fault, scaled_fault
from attackcheck.faults.networks import (
    balanced,
    classifier,
    convolution,
    last_layer,
    orthogonal_convolution,
    patches,
    pictures,
    pixelwise,
    random,
    rotation,
)
from attackcheck.faults.proofs import exactly_affine, flipped, jacobian
from attackcheck.measures import Measure
from attackcheck.measures.ladder import Ladder
from attackcheck.metrics import MetricClaim
from attackcheck.models.layers import MaxMin
from attackcheck.refined.certificate import RefinedCertificate
from attackcheck.refined.slopes import Slopes, measure_slopes
from attackcheck.refined.tail import find_tail

__all__ = ["CASES"]

ROOM = 1.2
"""Budgets of measures are this much larger than what the planted flips need."""


def _sorting(seed: int, *, gain: float = 1.0, affine: bool = False) -> tuple[nn.Sequential, Tensor]:
    """Four channels, patches, sorted, and back into pixels that are sorted once more before the classifier."""
    g = random(seed, "refined")
    images = pictures(g, channels=4)
    # Half of the directions of a block come back: its pixels move together.
    weight = rotation(32, g)[:16].reshape(16, 8, 2, 2) * gain
    layers = [patches(4, g), MaxMin(), orthogonal_convolution(16, g), MaxMin()]
    layers += [convolution(weight, transposed=True, stride=2), MaxMin(), classifier(8, g, 4)]
    if affine:
        layers = [layers[0], layers[4], layers[6]]
    return balanced(nn.Sequential(*layers), images), images


def _certificate(
    model: nn.Sequential, images: Tensor, features: float, wrong: Callable[[Slopes], Slopes] = lambda slopes: slopes
) -> RefinedCertificate:
    tail, shape = find_tail(model), tuple(images.shape[1:])
    with torch.no_grad():
        channels = tail.head(images[:1]).shape[1] if len(tail.head) else images.shape[1]
    slopes = measure_slopes(tail, int(channels), shape[1], shape[2])
    return RefinedCertificate(tail, wrong(slopes), features, shape)


def _claimed(seed: int, wrong: Callable[[Slopes], Slopes], source: str) -> Built:
    model, images = _sorting(seed)
    certificate = _certificate(model, images, 1.0 + 1e-6, wrong)
    return Built(model, RadiusClaim(certificate.radii, source=source), images)


@control(Family.FORMULA, "refined radii: rows of every place, orders of sorted values that can be had by then")
def refined_in_the_tail(seed: int) -> Built:
    """The twin of most cases here."""
    return _claimed(seed, lambda slopes: slopes, "refined")


@control(Family.FORMULA, "refined radii of an affine network, place by place", prove=exactly_affine)
def refined_affine_tail(seed: int) -> Built:
    """Features are an isometry, and so the distances are those of an affine map."""
    model, images = _sorting(seed, affine=True)
    certificate = _certificate(model, images, 1.0 + 1e-6)
    return Built(model, RadiusClaim(certificate.radii, source="refined"), images)


@control(Family.FORMULA, "refined radii behind a 3x3 classifier, with rows of their own at the border",
         prove=exactly_affine)  # fmt: skip
def refined_at_the_border(seed: int) -> Built:
    """A tail that is the whole network."""
    model, images, certificate = _bordered(seed, lambda slopes: slopes)
    return Built(model, RadiusClaim(certificate.radii, source="refined"), images)


def _bordered(seed: int, wrong: Callable[[Slopes], Slopes]) -> tuple[nn.Sequential, Tensor, RefinedCertificate]:
    g = random(seed, "border")
    images = pictures(g)
    model = nn.Sequential(convolution(torch.randn(4, 3, 3, 3, generator=g, dtype=torch.float64), padding=1))
    balanced(model, images)
    return model, images, _certificate(model, images, 1.0, wrong)


@fault(Family.FORMULA, "the corner's rows, which padding cuts short, are used for the refined radii everywhere",
       prove=flipped)  # fmt: skip
def refined_by_the_corner(seed: int) -> Built:
    """Measured on a map that was too small."""
    model, images, certificate = _bordered(
        seed, lambda slopes: replace(slopes, table=slopes.table[:1].expand_as(slopes.table))
    )
    return Built(model, RadiusClaim(certificate.radii, source="refined by the corner"), images)


@fault(Family.FORMULA, "refined radii use the rows of the best place within the stride for all places", prove=flipped)
def refined_by_the_best_place(seed: int) -> Built:
    """The four pixels of a block differ."""

    def best(slopes: Slopes) -> Slopes:
        return replace(slopes, table=slopes.table.amin(dim=0, keepdim=True).expand_as(slopes.table))

    return _claimed(seed, best, "refined by the best place")


def _in_two_orders(seed: int, wrong: Callable[[Slopes], Slopes], source: str) -> Built:
    """Two values of a pixel, sorted; the margin falls faster once they have changed places, and that is never far."""
    g = random(seed, "order")
    images = pictures(g, channels=2)
    first = pixelwise(torch.tensor([[2.0, 0.0], [0.9, 0.44]], dtype=torch.float64), torch.tensor([-0.33, 0.0]))
    last = pixelwise(torch.tensor([[0.1, 0.5], [-0.1, -0.5]], dtype=torch.float64))
    model = balanced(nn.Sequential(first, MaxMin(), last), images)
    last_layer(model)[1][0] += 0.5
    certificate = _certificate(model, images, 1.0, wrong)
    return Built(model, RadiusClaim(certificate.radii, source=source), images)


@fault(Family.SCOPE, "refined radii keep the order of sorted values that the image itself has", prove=flipped)
def refined_in_the_order_of_the_image(seed: int) -> Built:
    """A slope at a point, taken for one in a ball."""

    def kept(slopes: Slopes) -> Slopes:
        return replace(slopes, table=slopes.table[..., :1].expand_as(slopes.table).contiguous())

    return _in_two_orders(seed, kept, "refined in one order")


@fault(Family.FORMULA, "how fast the gap of two sorted values closes is understated, so that they change order late",
       prove=flipped)  # fmt: skip
def refined_with_late_changes_of_order(seed: int) -> Built:
    """The slope of the pair was measured at another place."""
    return _in_two_orders(seed, lambda slopes: replace(slopes, swaps=slopes.swaps.clamp_max(0.3)), "refined, late")


@control(Family.SCOPE, "refined radii follow the margin through every change of order that can come")
def refined_in_every_order(seed: int) -> Built:
    """The twin of both, as tight as it can be."""
    return _in_two_orders(seed, lambda slopes: slopes, "refined in every order")


@scaled_fault(
    Family.CONSTANT,
    "refined radii take the features for 1-Lipschitz, and the layer before them is steeper",
    prove=flipped,
    knob="norm of that layer",
    severities=(4.0, 2.0, 1.5, 1.3),
)
def refined_features_taken_for_one(seed: int, severity: float) -> Built:
    """The row differences alone."""
    model, images = _sorting(seed, affine=True)
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter.mul_(severity)
        balanced(model, images)
    certificate = _certificate(model, images, 1.0)
    return Built(model, RadiusClaim(certificate.radii, source="row differences"), images)


@fault(Family.FORMULA, "refined radii divide by squared norms of row differences", prove=flipped)
def refined_by_squares(seed: int) -> Built:
    """The root was forgotten, and the norms are below one."""
    model, images = _sorting(seed, gain=0.5)
    certificate = _certificate(model, images, 1.0 + 1e-6, lambda slopes: replace(slopes, table=slopes.table.square()))
    return Built(model, RadiusClaim(certificate.radii, source="refined by squares"), images)


# Sets of pixels ------------------------------------------------------------------------------------------------------


def _in_step(seed: int) -> tuple[nn.Sequential, Tensor, Tensor, RefinedCertificate]:
    """A network whose four pixels of a block are one: what flips one flips all."""
    g = random(seed, "blocks")
    images = pictures(g, channels=2, height=8, width=8)
    first = convolution(rotation(8, g)[:2].reshape(2, 2, 2, 2), stride=2)
    weight = (rotation(2, g)[:, :, None, None] / 2).expand(2, 2, 2, 2).contiguous()
    last = convolution(torch.eye(2, dtype=torch.float64)[:, :, None, None])
    model = balanced(nn.Sequential(first, convolution(weight, transposed=True, stride=2), last), images)
    with torch.no_grad():
        labels = model(images).argmax(1)
    return model, images, labels, _certificate(model, images, 1.0 + 1e-6)


def _flipping(model: nn.Sequential, image: Tensor) -> tuple[float, float]:
    """What it takes to flip the weakest pixel of an affine model, and the accuracy once this is done."""
    logits, rows = jacobian(model, image)
    flat, blocks = logits.flatten(1), rows.reshape(2, -1, image.numel())
    own = flat.argmax(0)
    pixels = torch.arange(flat.shape[1])
    gap, way = flat[own, pixels] - flat[1 - own, pixels], blocks[1 - own, pixels] - blocks[own, pixels]
    distance = gap / way.norm(dim=1)
    weakest = int(distance.argmin())
    step = way[weakest] / way[weakest].norm() * float(distance[weakest]) * (1 + 0.5 * (ROOM - 1))
    moved, _ = jacobian(model, image.double() + step.reshape(image.shape))
    kept = float((moved.flatten(1).argmax(0) == own).double().mean())
    return float(distance[weakest]) * ROOM, kept


def _accuracy(built: Built) -> Proof:
    claim = built.metrics[0]
    if not isinstance(built.model, nn.Sequential):
        raise TypeError("expected a chain")
    _, reached = _flipping(built.model, built.images[0])
    return Proof(claim.value / reached, "the weakest pixel is pushed over its boundary, and its block with it")


def _of_blocks(seed: int, costs: Callable[[RefinedCertificate, Tensor, Tensor], Tensor]) -> Built:
    model, images, labels, certificate = _in_step(seed)
    eps, _ = _flipping(model, images[0])
    with torch.no_grad():
        steps = costs(certificate, images[0], model(images)[0])
    lost = int(Ladder(steps, 1.0).together(torch.tensor([eps])))
    claim = MetricClaim(Measure.ACCURACY, eps, 1.0 - lost / len(steps), None, "refined, pixels that share features")
    return Built(model, LipschitzClaim(1.0 + 1e-5), images, labels, metrics=(claim,))


@fault(
    Family.MEASURE, "refined costs of pixels that share features are added up as if each had its own", prove=_accuracy
)
def refined_costs_added_up(seed: int) -> Built:
    """One movement of the features flips four pixels, and is paid once."""
    return _of_blocks(seed, lambda certificate, image, logits: certificate.costs(image, logits).nearest)


@control(Family.MEASURE, "refined costs of pixels that share features are shared by their block", prove=_accuracy)
def refined_costs_shared(seed: int) -> Built:
    """The twin."""

    def steps(certificate: RefinedCertificate, image: Tensor, logits: Tensor) -> Tensor:
        found = certificate.costs(image, logits).counted(torch.ones(logits[0].numel(), dtype=torch.bool))
        if found is None:
            raise ValueError("expected blocks")
        return found

    return _of_blocks(seed, steps)


CASES = (
    refined_in_the_tail,
    refined_affine_tail,
    refined_at_the_border,
    refined_by_the_corner,
    refined_by_the_best_place,
    refined_in_the_order_of_the_image,
    refined_with_late_changes_of_order,
    refined_in_every_order,
    refined_features_taken_for_one,
    refined_by_squares,
    refined_costs_added_up,
    refined_costs_shared,
)
