"""Networks that hide: no gradient to follow, flat where the data are, other rows of a batch, chance."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attackcheck.claims import LipschitzClaim
from attackcheck.faults.case import Built, Family, control, fault, scaled_fault
from attackcheck.faults.networks import isometric, last_layer, pictures, random
from attackcheck.faults.norms import product_of_norms
from attackcheck.faults.proofs import expanded, jacobian, paired, steepest_way
from attackcheck.faults.subjects import ROUNDED_UP, behind

__all__ = ["CASES"]


class _Levels(nn.Module):
    """Numbers rounded to so many levels per unit: a step function without a gradient."""

    def __init__(self, levels: float) -> None:
        super().__init__()
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.levels).round() / self.levels


class _StraightThrough(torch.autograd.Function):
    """Rounding forward, the identity backward."""

    @staticmethod
    def forward(ctx: object, x: Tensor, levels: float) -> Tensor:  # noqa: ARG004
        return (x * levels).round() / levels

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        return gradient, None


class _LevelsStraightThrough(_Levels):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = _StraightThrough.apply(x, self.levels)  # type: ignore[no-untyped-call]
        return result


def _parts(built: Built) -> nn.Sequential:
    if not isinstance(built.model, nn.Sequential):
        raise TypeError("expected a chain")
    return built.model


def _isometry(model: nn.Sequential, images: Tensor) -> LipschitzClaim:
    """The constant of all but the first layer."""
    return LipschitzClaim(product_of_norms(model[1:], images[0]) * ROUNDED_UP)


def _across_a_threshold(image: Tensor, levels: float) -> Tensor:
    """The image with its number next to a rounding threshold moved just beyond it."""
    values = image.double().flatten()
    threshold = ((values * levels).floor() + 0.5) / levels
    gap = threshold - values
    nearest = int(torch.where(gap == 0, 1.0, gap.abs()).argmin())
    values[nearest] += 1.5 * gap[nearest]
    return values.reshape(image.shape)


@scaled_fault(
    Family.NETWORK,
    "images are rounded to few levels first: gradients are zero, and next to a threshold a hair moves a whole level",
    prove=paired,
    knob="levels",
    severities=(4, 16, 64),
)
def image_quantised(seed: int, severity: float) -> Built:
    """A defence, or the fixed-point input of an accelerator."""
    built = behind(_Levels(severity), seed, "levels")
    return replace(built, pair=(built.images[0], _across_a_threshold(built.images[0], severity)))


@fault(
    Family.NETWORK,
    "images are rounded to few levels first, and a straight-through estimator makes up a gradient",
    prove=paired,
)
def image_quantised_straight_through(seed: int) -> Built:
    """The gradient is that of another network."""
    built = behind(_LevelsStraightThrough(8.0), seed, "levels")
    return replace(built, pair=(built.images[0], _across_a_threshold(built.images[0], 8.0)))


@scaled_fault(
    Family.NETWORK,
    "logits are rounded to few levels: gradients are zero, and a hair moves a logit by a whole level",
    prove=paired,
    knob="levels per unit",
    severities=(4, 16),
)
def logits_quantised(seed: int, severity: float) -> Built:
    """Fixed-point output."""
    built = behind(nn.Identity(), seed, "output", after=_Levels(severity))
    image = built.images[0]
    logits, rows = jacobian(_parts(built)[:-1], image)
    scaled = logits.flatten() * severity
    gap = (scaled.floor() + 0.5 - scaled) / severity
    place = int((gap.abs() / rows.norm(dim=1).clamp_min(1e-9)).argmin())
    step = 1.5 * gap[place] / rows[place].square().sum() * rows[place]
    return replace(built, pair=(image, image.double() + step.reshape(image.shape)))


class _Saturated(nn.Module):
    """A steep sigmoid around a threshold: flat, as float32 knows it, everywhere else."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(4 * self.slope * (x - 0.5))


@scaled_fault(
    Family.NETWORK,
    "inputs are saturated by a steep sigmoid, whose slope at the data is next to zero and counts as 1",
    prove=expanded,
    knob="slope at the threshold",
    severities=(100.0, 20.0, 5.0, 2.0),
)
def saturated_input(seed: int, severity: float) -> Built:
    """The gradient vanishes in float32, the slope at 0.5 does not."""
    g = random(seed, "saturated")
    images = pictures(g)
    images = 0.5 + (images - 0.5).sign() * (images - 0.5).abs().clamp_min(0.15)
    first = _Saturated(severity)
    inner = isometric(first(images), g)
    model = nn.Sequential(first, *inner).eval()
    return Built(model, _isometry(model, images), images, steep_at=torch.full_like(images[0], 0.5))


class _DeadZone(nn.Module):
    """Nothing happens up to a distance from one half, everything beyond."""

    def __init__(self, width: float, slope: float) -> None:
        super().__init__()
        self.width, self.slope = width, slope

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * F.softshrink(x - 0.5, self.width)


@fault(
    Family.NETWORK,
    "all data lie in a dead zone of the first layer: flat there, of slope 5 outside, counted as 1",
    prove=expanded,
)
def dead_zone(seed: int) -> Built:
    """No gradient and no flip near the data, and radii that reach far beyond."""
    g = random(seed, "dead")
    images = pictures(g)
    images = 0.5 + 0.4 * (images - 0.5)
    inner = isometric(images, g)
    last_layer(inner)[1].add_(0.4 * torch.randn(4, generator=g))
    model = nn.Sequential(_DeadZone(0.25, 5.0), *inner).eval()
    return Built(model, _isometry(model, images), images, steep_at=images[0] * 0 + 2.0)


@control(Family.NETWORK, "the same dead zone, its slope outside counted")
def dead_zone_counted(seed: int) -> Built:
    """The twin: flat at all the data, with certificates that hold."""
    built = dead_zone.build(seed)
    constant = getattr(built.claim, "lipschitz", 1.0)
    return Built(built.model, LipschitzClaim(5.0 * constant), built.images)


class _Detached(nn.Module):
    """The input plus a multiple of it whose gradient is cut off."""

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return x + self.slope * x.detach()


@scaled_fault(
    Family.NETWORK,
    "a part of the input is detached from the graph: its slope counts, its gradient is not seen",
    prove=paired,
    knob="slope of the detached part",
    severities=(4.0, 1.0, 0.1, 0.01),
)
def detached_path(seed: int, severity: float) -> Built:
    """A constant taken from gradients is too small, and so is every gradient that an attack gets."""
    built = behind(_Detached(severity), seed, "detached")
    image = built.images[0]
    way = steepest_way(_parts(built)[1:], image * (1 + severity))
    return replace(built, pair=(image, image.double() + 1e-3 * way))


class _Edges(nn.Module):
    """Twice the length of the difference of neighbours; as a root its gradient is NaN where both are the same."""

    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * (x - x.roll(1, 3)).square().sqrt()


@fault(
    Family.NETWORK,
    "a root of squares has a NaN gradient where it is zero, as in flat areas; its slope of 4 counts as 1",
    prove=paired,
)
def nan_gradients(seed: int) -> Built:
    """One NaN is enough to spoil a whole perturbation."""
    g = random(seed, "edges")
    images = pictures(g)
    images[:, :, 4:8] = 0.5
    first = _Edges()
    inner = isometric(first(images), g)
    model = nn.Sequential(first, *inner).eval()
    stripes = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(6)
    away = (images[0].double() - images[0].double().roll(1, 2)).abs().amin(0).argmax() // 12
    perturbed = images[0].double()
    perturbed[:, away] += 1e-6 * stripes
    return Built(model, _isometry(model, images), images, pair=(images[0], perturbed))


CASES = (
    image_quantised,
    image_quantised_straight_through,
    logits_quantised,
    saturated_input,
    dead_zone,
    dead_zone_counted,
    detached_path,
    nan_gradients,
)
