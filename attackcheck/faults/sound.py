"""Sound subjects that tempt a false alarm: exact tightness, ties, rounding, odd shapes, odd types, other layouts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attackcheck.attacks.plans import Plan, Stage
from attackcheck.claims import LipschitzClaim, RadiusClaim
from attackcheck.faults.case import Built, Family, control
from attackcheck.faults.certifiers import SQRT2, certified, margin_over_runner_up, stored
from attackcheck.faults.networks import last_layer, pictures, random, rescale, true_radii
from attackcheck.faults.proofs import bounded, exactly_affine, within_rows
from attackcheck.faults.subjects import network
from attackcheck.models import exact

__all__ = ["CASES"]


_RAY = Plan("ray", (Stage("linearised", options={"classes": 1, "search": 2, "iterations": 1, "refine": 1}),))
"""One ray for each pixel, for images so large that a forward pass takes a second."""


@control(Family.SOUND, "an affine map and its exact norm", prove=exactly_affine)
def affine_and_exactly_tight(seed: int) -> Built:
    """The least slack possible."""
    model = exact.affine_conv(seed=seed).float()
    images = pictures(random(seed, "affine"), 2)
    return Built(model, LipschitzClaim(model.lipschitz_joint(12, 12)), images)


@control(Family.SOUND, "an affine map and the exact distance of every pixel to its boundary", prove=exactly_affine)
def exact_radii(seed: int) -> Built:
    """Every flip is at its radius, to the last bit."""
    model = exact.affine_conv(seed=seed).float()
    images = pictures(random(seed, "affine"), 2)
    radii = torch.stack([model.flip_distance(image.double()) for image in images])
    return Built(model, RadiusClaim(radii, source="closed form"), images)


@control(Family.SOUND, "radii of exactly tight logits, written with >= for >")
def greater_or_equal(seed: int) -> Built:
    """At distance r a tie is allowed to flip; that is no violation."""
    model = exact.orthonormal_rows(seed=seed).float()
    images = pictures(random(seed, "equal"))
    return Built(model, LipschitzClaim(1.0), (images * 64).round() / 64)


@control(Family.SOUND, "many pixels are exact ties: the image has few levels, and two classes the same row",
         prove=exactly_affine)  # fmt: skip
def exact_ties(seed: int) -> Built:
    """The prediction there is the first of the best."""
    rows = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float64)
    images = (pictures(random(seed, "levels")) * 4).round() / 4
    return Built(exact.AffinePixel(rows).float(), LipschitzClaim(SQRT2 * (1 + 1e-6)), images)


@control(Family.SOUND, "all margins are next to the rounding of float32 logits", prove=exactly_affine)
def margins_at_rounding_level(seed: int) -> Built:
    """Rows differ by a millionth, on top of a common part."""
    g = random(seed, "rounding")
    common = torch.randn(1, 3, generator=g, dtype=torch.float64)
    rows = common + 1e-6 * torch.randn(4, 3, generator=g, dtype=torch.float64)
    model = exact.AffinePixel(rows.float())
    return Built(model, LipschitzClaim(model.lipschitz_joint(12, 12) * (1 + 1e-6)), pictures(g))


def _scaled(seed: int, scale: float) -> Built:
    model, images, lipschitz = network(seed, "scaled")
    rescale(model, scale)
    return Built(model, LipschitzClaim(lipschitz * scale * (1 + 1e-6)), images)


@control(Family.SOUND, "logits reach ten thousand", prove=bounded)
def large_logits(seed: int) -> Built:
    """Absolute tolerances fail here."""
    return _scaled(seed, 1e4)


@control(Family.SOUND, "all logits are below 1e-12", prove=bounded)
def tiny_logits(seed: int) -> Built:
    """And here."""
    return _scaled(seed, 1e-12)


@control(Family.SOUND, "an image of 1024x2048 pixels in float32", plan=_RAY, pixels=1)
def large_image(seed: int) -> Built:
    """A float32 norm of six million differences can be 1.5e-4 too small."""
    model = exact.orthonormal_rows(seed=seed).float()
    images = torch.rand(1, 3, 1024, 2048, generator=random(seed, "large"))
    return Built(model, LipschitzClaim(1.0 + 1e-6), images)


@control(Family.SOUND, "a constant predictor, whose radii are large and never broken", prove=exactly_affine)
def constant_predictor(seed: int) -> Built:
    """No gradient, no flip, and nothing wrong."""
    bias = torch.randn(4, generator=random(seed, "constant"), dtype=torch.float64)
    return Built(
        exact.AffinePixel(torch.zeros(4, 3).double(), bias).float(), LipschitzClaim(1.0), pictures(random(seed, "c"))
    )


@control(Family.SOUND, "one class is predicted everywhere, by far", prove=bounded)
def one_class_everywhere(seed: int) -> Built:
    """Radii reach beyond the unit cube."""
    model, images, lipschitz = network(seed, "one")
    last_layer(model)[1][0] += 30.0
    return Built(model, LipschitzClaim(lipschitz), images)


@control(Family.SOUND, "the image is a single pixel", prove=exactly_affine)
def one_pixel(seed: int) -> Built:
    """No neighbours, no region."""
    model = exact.affine_pixel(seed=seed).float()
    images = torch.rand(2, 3, 1, 1, generator=random(seed, "pixel"))
    return Built(model, LipschitzClaim(model.lipschitz_joint(1, 1) * (1 + 1e-6)), images)


@control(Family.SOUND, "an image of 7x13 pixels with five channels", prove=exactly_affine)
def odd_size(seed: int) -> Built:
    """Neither square nor even nor RGB."""
    model = exact.affine_conv(channels=5, seed=seed).float()
    images = pictures(random(seed, "odd"), channels=5, height=7, width=13)
    return Built(model, LipschitzClaim(model.lipschitz_joint(7, 13) * (1 + 1e-6)), images)


@control(Family.SOUND, "a certifier that abstains almost everywhere: radius 0", prove=within_rows)
def radius_zero(seed: int) -> Built:
    """Only two rows are certified."""
    model, images, lipschitz = network(seed, "abstains")
    radii = true_radii(model, images, lipschitz)
    radii[:, 2:] = 0.0
    return Built(model, stored(radii, "abstains"), images)


@control(Family.SOUND, "infinite radii at pixels whose label is to be ignored", prove=within_rows)
def ignored_pixels(seed: int) -> Built:
    """What is said there binds nobody."""
    model, images, lipschitz = network(seed, "ignored")
    radii, labels = true_radii(model, images, lipschitz), torch.zeros(1, 12, 12, dtype=torch.int64)
    labels[:, :4], radii[:, :4] = 255, torch.inf
    return Built(model, stored(radii, "stored"), images, labels)


def margin_over_twice_the_constant(model: nn.Module, images: Tensor, lipschitz: float) -> Tensor:
    """`m / (2 L)`."""
    return margin_over_runner_up(model, images, lipschitz) / SQRT2


@control(Family.SOUND, "`m / (2 L)`, more careful than need be", prove=within_rows)
def twice_the_constant(seed: int) -> Built:
    """For logits that are each L-Lipschitz."""
    model, images, lipschitz = network(seed, "twice")
    return Built(model, certified(margin_over_twice_the_constant, model, lipschitz), images)


@control(Family.SOUND, "radii of a network after the fact, in float32", prove=within_rows)
def radii_in_float32(seed: int) -> Built:
    """Their own rounding is no violation."""
    model, images, lipschitz = network(seed, "float32")
    return Built(model, stored(true_radii(model, images, lipschitz).float(), "float32"), images)


CASES = (
    affine_and_exactly_tight,
    exact_radii,
    greater_or_equal,
    exact_ties,
    margins_at_rounding_level,
    large_logits,
    tiny_logits,
    large_image,
    constant_predictor,
    one_class_everywhere,
    one_pixel,
    odd_size,
    radius_zero,
    ignored_pixels,
    twice_the_constant,
    radii_in_float32,
)
