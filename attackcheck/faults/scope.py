"""True statements, used where they do not hold: sets for pixels, a neighbourhood for everywhere, before for after."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attackcheck.claims import LipschitzClaim
from attackcheck.faults.case import Built, Family, control, fault, scaled_fault
from attackcheck.faults.certifiers import margin_over_runner_up, stored
from attackcheck.faults.networks import (
    Affine,
    balanced,
    classifier,
    isometric,
    orthogonal_convolution,
    patches,
    pictures,
    random,
    sandwich,
)
from attackcheck.faults.norms import product_of_norms
from attackcheck.faults.proofs import exactly_affine, expanded, flipped, jacobian, pixel_bounded, within_radii
from attackcheck.models.exact import affine_conv
from attackcheck.models.layers import MaxMin

__all__ = ["CASES"]


def _upsampled(seed: int, upsampling: nn.Module, constant: float, scope: str) -> Built:
    g = random(seed, "upsampled")
    images = pictures(g)
    layers = [patches(3, g), MaxMin(), orthogonal_convolution(12, g), MaxMin(), classifier(12, g, 5)]
    coarse = balanced(nn.Sequential(*layers), images)
    bound = product_of_norms(coarse, images[0]) * constant * (1 + 1e-6)
    claim = LipschitzClaim(bound, "joint" if scope == "joint" else "pixel", source="product over the layers")
    return Built(nn.Sequential(*coarse, upsampling).eval(), claim, images)


@fault(
    Family.SCOPE,
    "after a final nearest upsampling every pixel keeps the constant, the map does not: sets share no such budget",
    prove=expanded,
)
def pixel_constant_for_sets(seed: int) -> Built:
    """Joint certificates of regions and accuracies would be twice too large."""
    return _upsampled(seed, nn.Upsample(scale_factor=2, mode="nearest"), 1.0, "joint")


@control(Family.SCOPE, "after a final nearest upsampling the constant holds for single pixels", prove=pixel_bounded)
def pixel_constant_for_pixels(seed: int) -> Built:
    """The twin."""
    return _upsampled(seed, nn.Upsample(scale_factor=2, mode="nearest"), 1.0, "pixel")


@control(Family.SCOPE, "after a final bilinear upsampling the constant holds for single pixels", prove=pixel_bounded)
def bilinear_logits_for_pixels(seed: int) -> Built:
    """The twin with convex combinations."""
    return _upsampled(seed, nn.Upsample(scale_factor=2, mode="bilinear"), 1.0, "pixel")


@fault(
    Family.SCOPE,
    "a final bicubic upsampling is taken for a mean of logits, but some of its weights are negative",
    prove=expanded,
)
def bicubic_logits_for_pixels(seed: int) -> Built:
    """Single pixels gain up to 1.244."""
    return _upsampled(seed, nn.Upsample(scale_factor=2, mode="bicubic"), 1.0, "pixel")


@fault(Family.SCOPE, "the norm of the worst pixel's logits is claimed for the whole map", prove=expanded)
def worst_pixel_for_the_map(seed: int) -> Built:
    """Pixels with common neighbours can all move at once."""
    model = affine_conv(seed=seed).float()
    images = pictures(random(seed, "worst"))
    return Built(model, LipschitzClaim(model.lipschitz_pixel(12, 12)), images)


@control(Family.SCOPE, "the norm of the worst pixel's logits, claimed for single pixels", prove=exactly_affine)
def worst_pixel_for_pixels(seed: int) -> Built:
    """The twin, tight."""
    model = affine_conv(seed=seed).float()
    images = pictures(random(seed, "worst"))
    return Built(model, LipschitzClaim(model.lipschitz_pixel(12, 12) * (1 + 1e-6), "pixel"), images)


class _Steepening(nn.Module):
    """Slope one up to a knee, a larger one beyond."""

    def __init__(self, knee: float, slope: float) -> None:
        super().__init__()
        self.knee, self.slope = knee, slope

    def forward(self, x: Tensor) -> Tensor:
        return x + (self.slope - 1.0) * (x - self.knee).relu()


@scaled_fault(
    Family.SCOPE,
    "the slope at the data is claimed everywhere; a short way off, within many radii, the network is steeper",
    prove=expanded,
    knob="slope beyond the knee",
    severities=(5.0, 2.0, 1.2, 1.05),
)
def local_constant_claimed_everywhere(seed: int, severity: float) -> Built:
    """Local constants are valid in the ball that they were computed for."""
    g = random(seed, "local")
    images = pictures(g)
    middle = _Steepening(1.2, severity)
    model = sandwich(middle, images, g)
    with torch.no_grad():
        hidden = model[:2](images)
        middle.knee = float(hidden.max()) + 0.05
    balanced(model, images)
    _, rows = jacobian(model, images[0])
    local = float(torch.linalg.matrix_norm(rows, 2)) * (1 + 1e-6)
    return Built(model, LipschitzClaim(local, source="Jacobian at the data"), images, steep_at=images[0] * 2 + 1)


class _Sharpened(Affine):
    """Logits plus what a 3x3 mean leaves of them."""

    def __init__(self, amount: float) -> None:
        super().__init__()
        self.amount = amount
        self.mean = nn.AvgPool2d(3, stride=1, padding=1)

    def forward(self, logits: Tensor) -> Tensor:
        result: Tensor = logits + self.amount * (logits - self.mean(logits))
        return result


@scaled_fault(
    Family.SCOPE,
    "logits are sharpened after the network, the constant is that of the network",
    prove=expanded,
    knob="amount of sharpening",
    severities=(1.0, 0.1, 0.01, 0.003),
)
def sharpened_afterwards(seed: int, severity: float) -> Built:
    """Post-processing belongs to the model."""
    g = random(seed, "sharpened")
    images = pictures(g)
    model = isometric(images, g)
    claim = LipschitzClaim(product_of_norms(model, images[0]) * (1 + 1e-6))
    return Built(nn.Sequential(*model, _Sharpened(severity)).eval(), claim, images)


def _smoothed(seed: int, before: bool) -> Built:
    g = random(seed, "smoothed")
    images = pictures(g)
    inner = isometric(images, g)
    model = nn.Sequential(*inner, nn.AvgPool2d(3, stride=1, padding=1)).eval()
    lipschitz = product_of_norms(inner, images[0]) * (1 + 1e-6)
    radii = margin_over_runner_up(inner if before else model, images, lipschitz)
    return Built(model, stored(radii, "margins of the logits"), images)


@fault(Family.SCOPE, "logits are smoothed for the prediction, margins are those before smoothing", prove=flipped)
def smoothed_afterwards(seed: int) -> Built:
    """The prediction is another one, and nearer to its boundary."""
    return _smoothed(seed, before=True)


@control(Family.SCOPE, "margins are those of the smoothed logits", prove=within_radii)
def margins_of_smoothed_logits(seed: int) -> Built:
    """The twin: smoothing has a norm of at most 1."""
    return _smoothed(seed, before=False)


CASES = (
    pixel_constant_for_sets,
    pixel_constant_for_pixels,
    bilinear_logits_for_pixels,
    bicubic_logits_for_pixels,
    worst_pixel_for_the_map,
    worst_pixel_for_pixels,
    local_constant_claimed_everywhere,
    sharpened_afterwards,
    smoothed_afterwards,
    margins_of_smoothed_logits,
)
