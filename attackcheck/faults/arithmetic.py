"""Numbers that are rounded the wrong way, overflow, saturate or cancel on their way into a certificate."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from attackcheck.claims import LipschitzClaim
from attackcheck.faults.case import Built, Family, control, fault, scaled_fault
from attackcheck.faults.certifiers import (
    SQRT2,
    certified,
    logits_of,
    margin_over,
    margin_over_runner_up,
    of_images,
    stored,
)
from attackcheck.faults.networks import balanced, last_layer, true_radii
from attackcheck.faults.norms import product_of_norms
from attackcheck.faults.proofs import bounded, expanded, flipped, within_rows
from attackcheck.faults.subjects import network

__all__ = ["CASES"]


def _stored(seed: int, bits: int, up: bool) -> Built:
    model, images, lipschitz = network(seed, "arithmetic")
    radii = true_radii(model, images, lipschitz)
    step = radii.max() / (2**bits - 1)
    levels = (radii / step).ceil() if up else (radii / step).floor()
    return Built(model, stored(levels * step, f"stored in {bits} bits"), images)


@scaled_fault(
    Family.ARITHMETIC,
    "radii are rounded up when they are stored in few bits",
    prove=flipped,
    knob="bits",
    severities=(8, 10, 12, 14),
)
def radii_rounded_up(seed: int, severity: float) -> Built:
    """The smallest suffer most."""
    return _stored(seed, int(severity), up=True)


@control(Family.ARITHMETIC, "radii are rounded down when they are stored in 8 bits", prove=within_rows)
def radii_rounded_down(seed: int) -> Built:
    """The twin."""
    return _stored(seed, 8, up=False)


@fault(Family.ARITHMETIC, "radii are stored as 8-bit floating-point numbers, to nearest", prove=flipped)
def radii_in_eight_bit_floats(seed: int) -> Built:
    """Three bits of mantissa: up to 1/16 too large."""
    model, images, lipschitz = network(seed, "arithmetic")
    radii = true_radii(model, images, lipschitz)
    coarse = radii.float().to(torch.float8_e4m3fn).double()
    return Built(model, stored(coarse, "stored as float8"), images)


@scaled_fault(
    Family.ARITHMETIC,
    "the constant is cut off after some decimals in a configuration file",
    prove=expanded,
    knob="decimals",
    severities=(0, 1, 2),
)
def constant_cut_off(seed: int, severity: float) -> Built:
    """Rounded down it is no bound any more."""
    model, images, lipschitz = network(seed, "arithmetic", 1.5678)
    digits = 10.0 ** int(severity)
    return Built(model, LipschitzClaim(math.floor(lipschitz * digits) / digits, source="configuration file"), images)


@control(Family.ARITHMETIC, "the constant is rounded up to two decimals", prove=bounded)
def constant_rounded_up(seed: int) -> Built:
    """The twin."""
    model, images, lipschitz = network(seed, "arithmetic", 1.5678)
    return Built(model, LipschitzClaim(math.ceil(lipschitz * 100) / 100, source="configuration file"), images)


@fault(Family.ARITHMETIC, "margins are formed in float16, where large logits overflow and radii become infinite",
       prove=flipped)  # fmt: skip
def margins_overflow(seed: int) -> Built:
    """The rest of the network ran in float32."""
    model, images, lipschitz = network(seed, "arithmetic", 4e5)

    def in_half_precision(model: nn.Module, images: Tensor, lipschitz: float) -> Tensor:
        half = logits_of(model, images).to(torch.float16).double()
        return margin_over(half, half).nan_to_num(nan=0.0, posinf=torch.inf) / (SQRT2 * lipschitz)

    return Built(model, certified(in_half_precision, model, lipschitz), images)


@fault(
    Family.ARITHMETIC,
    "0 / 0 between classes with the same row is NaN, and a NaN radius is taken for an infinite one",
    prove=flipped,
)
def nan_taken_for_infinity(seed: int) -> Built:
    """`min` passes NaN on; somebody replaced it so that plots work."""
    model, images, _ = network(seed, "arithmetic")
    rows, bias = last_layer(model)
    rows[1], bias[1] = rows[0], bias[0]
    balanced(model, images)
    lipschitz = product_of_norms(model[:-1], images[0])

    def by_pairs(images: Tensor) -> Tensor:
        logits = logits_of(model, images)
        spread = torch.cdist(rows.flatten(1).double(), rows.flatten(1).double())
        best, predicted = logits.max(1, keepdim=True)
        allowed = spread[predicted[:, 0]].movedim(-1, 1)
        radius = ((best - logits) / (lipschitz * allowed)).scatter(1, predicted, torch.inf)
        return radius.amin(1).nan_to_num(nan=torch.inf)

    return Built(model, of_images(by_pairs, "class-pair radii"), images)


@fault(
    Family.ARITHMETIC,
    "margins are recovered from probabilities that have saturated: log p - log(1 - p) with p rounded to 1",
    prove=flipped,
)
def saturated_probabilities(seed: int) -> Built:
    """What is left is the epsilon under the logarithm."""
    model, images, lipschitz = network(seed, "arithmetic", 100.0)

    def from_probabilities(model: nn.Module, images: Tensor, lipschitz: float) -> Tensor:
        shares = logits_of(model, images).float().softmax(1)
        top = shares.topk(2, 1).values
        margin = (top[:, 0] + 1e-30).log() - (1 - top[:, 0] + 1e-30).log()
        return margin.clamp_min(0.0).double() / (SQRT2 * lipschitz)

    return Built(model, certified(from_probabilities, model, lipschitz), images)


@control(Family.ARITHMETIC, "margins of large logits, in float64", prove=within_rows)
def margins_of_large_logits(seed: int) -> Built:
    """The twin of the three before."""
    model, images, lipschitz = network(seed, "arithmetic", 4e5)
    return Built(model, certified(margin_over_runner_up, model, lipschitz), images)


@fault(
    Family.ARITHMETIC,
    "weights are rounded to bfloat16 for inference, radii are those of the float32 network",
    prove=flipped,
)
def radii_of_the_unrounded_weights(seed: int) -> Built:
    """Pixels with small margins are nearer to their boundary than before, or beyond it."""
    model, images, lipschitz = network(seed, "arithmetic")
    radii = true_radii(model, images, lipschitz)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.to(torch.bfloat16).float())
    return Built(model, stored(radii, "of the float32 network"), images)


CASES = (
    radii_rounded_up,
    radii_rounded_down,
    radii_in_eight_bit_floats,
    constant_cut_off,
    constant_rounded_up,
    margins_overflow,
    nan_taken_for_infinity,
    saturated_probabilities,
    margins_of_large_logits,
    radii_of_the_unrounded_weights,
)
