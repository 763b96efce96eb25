"""Sound subjects that tempt a false alarm: exact tightness, ties, rounding, odd shapes, odd types, other layouts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attackcheck.attacks.plans import Plan, Stage
from attackcheck.claims import LipschitzClaim, RadiusClaim
from attackcheck.faults.case import Built, Family, control
from attackcheck.faults.certifiers import SQRT2, certified, margin_over_runner_up, stored
from attackcheck.faults.networks import (
    isometric,
    last_layer,
    orthogonal_convolution,
    pictures,
    product_of_norms,
    random,
    rescale,
    rotation,
    sandwich,
    true_radii,
)
from attackcheck.faults.proofs import bounded, exactly_affine, within_rows
from attackcheck.models import exact

__all__ = ["CASES"]


_RAY = Plan("ray", (Stage("linearised", options={"classes": 1, "search": 2, "iterations": 1, "refine": 1}),))
"""One ray for each pixel, for images so large that a forward pass takes a second."""


def _network(seed: int, name: str, **size: int) -> tuple[nn.Sequential, Tensor, float]:
    g = random(seed, name)
    images = pictures(g, **size)
    model = isometric(images, g)
    return model, images, product_of_norms(model, images[0]) * (1 + 1e-6)


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
    model, images, lipschitz = _network(seed, "scaled")
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
    model, images, lipschitz = _network(seed, "one")
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


class _InType(nn.Module):
    """A network that computes in another type inside."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = inner, dtype

    def forward(self, x: Tensor) -> Tensor:
        weights = {name: value.to(self.dtype) for name, value in self.inner.state_dict().items()}
        result: Tensor = torch.func.functional_call(self.inner, weights, (x.to(self.dtype),))
        return result.to(x.dtype)


@control(Family.SOUND, "a network that computes in float64")
def double_model(seed: int) -> Built:
    """The certificate's logits are exact."""
    model, images, lipschitz = _network(seed, "double")
    return Built(_InType(model, torch.float64).eval(), LipschitzClaim(lipschitz), images)


@control(Family.SOUND, "a network that computes in bfloat16; a claim about real numbers does not speak of its steps")
def bfloat16_model(seed: int) -> Built:
    """Flips inside the radius are at most DEPLOYED_ONLY."""
    model, images, lipschitz = _network(seed, "bfloat")
    return Built(_InType(model, torch.bfloat16).eval(), LipschitzClaim(lipschitz), images)


class _Shifted(nn.Module):
    """A huge number is added and taken away again."""

    def __init__(self, inner: nn.Module, offset: float) -> None:
        super().__init__()
        self.inner, self.offset = inner, offset

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = (self.inner(x) + self.offset) - self.offset
        return result


@control(Family.SOUND, "huge biases that compensate each other: float32 logits are wrong by up to 0.06")
def compensating_biases(seed: int) -> Built:
    """DEPLOYED_ONLY or ROUNDING at most."""
    model, images, lipschitz = _network(seed, "biases")
    return Built(_Shifted(model, 2.0**20).eval(), LipschitzClaim(lipschitz), images)


class _Clamped(nn.Module):
    """Brings images back into [0, 1] first: a projection, of norm one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x.clamp(0.0, 1.0))
        return result


@control(Family.SOUND, "the model clamps its input to [0, 1]")
def clamped_input(seed: int) -> Built:
    """Some gradients are zero at the edge of the cube."""
    model, images, lipschitz = _network(seed, "clamped")
    return Built(_Clamped(model).eval(), LipschitzClaim(lipschitz), images.round())


class _Permuted(nn.Module):
    """Classes in another order."""

    def __init__(self, inner: nn.Module, order: tuple[int, ...]) -> None:
        super().__init__()
        self.inner, self.order = inner, order

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x)[:, list(self.order)]
        return result


@control(Family.SOUND, "classes in another order")
def classes_permuted(seed: int) -> Built:
    """Nothing else."""
    model, images, lipschitz = _network(seed, "order")
    return Built(_Permuted(model, (2, 0, 3, 1)).eval(), LipschitzClaim(lipschitz), images)


@control(Family.SOUND, "a certifier that abstains almost everywhere: radius 0", prove=within_rows)
def radius_zero(seed: int) -> Built:
    """Only two rows are certified."""
    model, images, lipschitz = _network(seed, "abstains")
    radii = true_radii(model, images, lipschitz)
    radii[:, 2:] = 0.0
    return Built(model, stored(radii, "abstains"), images)


@control(Family.SOUND, "infinite radii at pixels whose label is to be ignored", prove=within_rows)
def ignored_pixels(seed: int) -> Built:
    """What is said there binds nobody."""
    model, images, lipschitz = _network(seed, "ignored")
    radii, labels = true_radii(model, images, lipschitz), torch.zeros(1, 12, 12, dtype=torch.int64)
    labels[:, :4], radii[:, :4] = 255, torch.inf
    return Built(model, stored(radii, "stored"), images, labels)


def margin_over_twice_the_constant(model: nn.Module, images: Tensor, lipschitz: float) -> Tensor:
    """`m / (2 L)`."""
    return margin_over_runner_up(model, images, lipschitz) / SQRT2


@control(Family.SOUND, "`m / (2 L)`, more careful than need be", prove=within_rows)
def twice_the_constant(seed: int) -> Built:
    """For logits that are each L-Lipschitz."""
    model, images, lipschitz = _network(seed, "twice")
    return Built(model, certified(margin_over_twice_the_constant, model, lipschitz), images)


class _MirrorMean(nn.Module):
    """The mean of the logits of an image and of its mirror image, mirrored back."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = (self.inner(x) + self.inner(x.flip(3)).flip(3)) / 2
        return result


@control(Family.SOUND, "logits are averaged over mirrored images: a mean keeps the constant")
def mirror_mean(seed: int) -> Built:
    """Test-time augmentation done right."""
    model, images, lipschitz = _network(seed, "mirror")
    return Built(_MirrorMean(model).eval(), LipschitzClaim(lipschitz), images)


@control(Family.SOUND, "dropout, switched off in evaluation", prove=bounded)
def dropout_switched_off(seed: int) -> Built:
    """A module, not a function."""
    model, images, lipschitz = _network(seed, "dropout")
    return Built(nn.Sequential(nn.Dropout(0.5), *model).eval(), LipschitzClaim(lipschitz), images)


@control(Family.SOUND, "a strided convolution under the bound of stride 1", prove=bounded)
def strided_under_the_bound_of_stride_one(seed: int) -> Built:
    """Leaving rows out cannot increase a norm."""
    g = random(seed, "strided")
    images = pictures(g)
    dense = orthogonal_convolution(12, g)
    strided = nn.Conv2d(12, 12, 3, stride=2, padding=1).requires_grad_(False)
    strided.load_state_dict(dense.state_dict())
    model = sandwich(nn.Sequential(strided, nn.Upsample(scale_factor=2, mode="nearest")), images, g)
    return Built(model, LipschitzClaim(2.0 * (1 + 1e-5)), images)


@control(Family.SOUND, "weights and images in channels-last layout", prove=bounded)
def channels_last(seed: int) -> Built:
    """Other kernels, other order of sums."""
    model, images, lipschitz = _network(seed, "layout")
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Built(model, LipschitzClaim(lipschitz), images.contiguous(memory_format=torch.channels_last))


class _Masked(nn.Module):
    """A class that is never to be predicted."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        return torch.cat([logits, torch.full_like(logits[:, :1], -1e30)], 1)


@control(Family.SOUND, "a class is masked by a logit of -1e30")
def masked_class(seed: int) -> Built:
    """Beside it all other logits look like rounding."""
    model, images, lipschitz = _network(seed, "masked")
    return Built(_Masked(model).eval(), LipschitzClaim(lipschitz), images)


class _Rotated(nn.Module):
    """A layer whose weight is recomputed from a parametrisation at each call."""

    def __init__(self, g: torch.Generator) -> None:
        super().__init__()
        layer = nn.Conv2d(12, 12, 1, bias=False)
        with torch.no_grad():
            layer.weight.copy_(rotation(12, g)[:, :, None, None])
        self.inner = nn.utils.parametrizations.weight_norm(layer)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x)
        return result


@control(Family.SOUND, "a parametrised layer, recomputed at every call")
def parametrised_layer(seed: int) -> Built:
    """Its copy must not lose it."""
    g = random(seed, "parametrised")
    images = pictures(g)
    model = sandwich(_Rotated(g), images, g)
    return Built(model, LipschitzClaim(1.0 + 1e-5), images)


@control(Family.SOUND, "radii of a network after the fact, in float32", prove=within_rows)
def radii_in_float32(seed: int) -> Built:
    """Their own rounding is no violation."""
    model, images, lipschitz = _network(seed, "float32")
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
    double_model,
    bfloat16_model,
    compensating_biases,
    clamped_input,
    classes_permuted,
    radius_zero,
    ignored_pixels,
    twice_the_constant,
    mirror_mean,
    dropout_switched_off,
    strided_under_the_bound_of_stride_one,
    channels_last,
    masked_class,
    parametrised_layer,
    radii_in_float32,
)
