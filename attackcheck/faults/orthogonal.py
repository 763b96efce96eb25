"""Layers that are orthogonal on paper and were not built so: padding, odd sizes, unfinished iterations.

Each claims norm 1, and what it has instead is in its explicit matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attackcheck.claims import LipschitzClaim
from attackcheck.faults.case import Built, Family, control, fault, scaled_fault
from attackcheck.faults.networks import (
    Affine,
    convolution,
    orthogonal_convolution,
    outer_norm,
    pictures,
    pixelwise,
    random,
    rotation,
    sandwich,
)
from attackcheck.faults.proofs import bounded, expanded
from attackcheck.models.layers import MaxMin

__all__ = ["CASES"]

CHANNELS = 12


def _of_norm_one(middle: nn.Module, images: Tensor, g: torch.Generator, source: str, constant: float = 1.0) -> Built:
    model = sandwich(middle, images, g)
    return Built(model, LipschitzClaim(outer_norm(model, images[0]) * constant, source=source), images)


@fault(Family.CONSTANT, "an orthogonal kernel under reflecting padding counts border pixels twice", prove=expanded)
def orthogonal_under_reflection(seed: int) -> Built:
    """Orthogonality is a statement about zero or circular padding; libraries accept the mode silently."""
    g = random(seed, "reflect")
    images = pictures(g)
    return _of_norm_one(orthogonal_convolution(CHANNELS, g, mode="reflect"), images, g, "orthogonal by construction")


@fault(Family.CONSTANT, "an orthogonal kernel under replicating padding counts border pixels twice", prove=expanded)
def orthogonal_under_replication(seed: int) -> Built:
    """The same with the border's own value."""
    g = random(seed, "replicate")
    images = pictures(g)
    return _of_norm_one(orthogonal_convolution(CHANNELS, g, mode="replicate"), images, g, "orthogonal by construction")


@control(Family.CONSTANT, "an orthogonal kernel under circular padding", prove=bounded)
def orthogonal_under_circular_padding(seed: int) -> Built:
    """The twin, tight up to the rounding of its weights."""
    g = random(seed, "circular")
    images = pictures(g)
    layer = orthogonal_convolution(CHANNELS, g, mode="circular")
    return _of_norm_one(layer, images, g, "orthogonal by construction", 1.0 + 1e-6)


@control(Family.CONSTANT, "an orthogonal kernel under zero padding", prove=bounded)
def orthogonal_under_zero_padding(seed: int) -> Built:
    """The other twin: a part of the operator on the infinite grid."""
    g = random(seed, "zeros")
    images = pictures(g)
    return _of_norm_one(orthogonal_convolution(CHANNELS, g), images, g, "orthogonal by construction", 1.0 + 1e-6)


def _two_by_two(g: torch.Generator) -> Tensor:
    """An orthogonal 2x2 kernel of stride 1 from two projectors (block convolution orthogonal parametrisation)."""
    kernel = torch.zeros(CHANNELS, CHANNELS, 2, 2, dtype=torch.float64)
    onto = []
    for _ in range(2):
        basis = rotation(CHANNELS, g)[:, : CHANNELS // 2]
        onto.append(basis @ basis.T)
    one = torch.eye(CHANNELS, dtype=torch.float64)
    for row, first in enumerate((onto[0], one - onto[0])):
        for column, second in enumerate((onto[1], one - onto[1])):
            kernel[:, :, row, column] = first @ second
    return kernel


@fault(
    Family.CONSTANT,
    "an even kernel is padded circularly by half its width on both sides, so that one row and one column count twice",
    prove=expanded,
)
def even_kernel_padded_on_both_sides(seed: int) -> Built:
    """`padding = k // 2` suits odd kernels; a 2x2 kernel without padding made room for the extra row and column."""
    g = random(seed, "even")
    images = pictures(g)
    wide = convolution(_two_by_two(g), padding=1, padding_mode="circular")
    return _of_norm_one(nn.Sequential(convolution(_two_by_two(g)), wide), images, g, "orthogonal by construction")


class _Trimmed(Affine):
    """A transposed convolution whose last row and column are cut off."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x)[:, :, :-1, :-1]
        return result


@fault(
    Family.CONSTANT,
    "a strided circular convolution on an odd number of rows wraps one of them into two blocks",
    prove=expanded,
)
def odd_size_under_a_circular_stride(seed: int) -> Built:
    """The blocks no longer tile the image: 7 rows are read as 8."""
    g = random(seed, "odd")
    images = pictures(g, height=14, width=14)
    weight = rotation(4 * CHANNELS, g).reshape(4 * CHANNELS, CHANNELS, 2, 2)
    down = nn.Sequential(nn.CircularPad2d((0, 1, 0, 1)), convolution(weight, stride=2))
    back = rotation(4 * CHANNELS, g).reshape(4 * CHANNELS, CHANNELS, 2, 2)
    up = _Trimmed(convolution(back, transposed=True, stride=2))
    return _of_norm_one(nn.Sequential(down, MaxMin(), up), images, g, "orthogonal by construction")


@fault(
    Family.CONSTANT,
    "a transposed convolution whose 4x4 windows overlap is orthogonalised as a matrix",
    prove=expanded,
)
def transposed_windows_overlap(seed: int) -> Built:
    """Right for windows that do not overlap; here every pixel belongs to four."""
    g = random(seed, "overlap")
    images = pictures(g)
    weight = rotation(16 * 3, g)[:CHANNELS].reshape(CHANNELS, 3, 4, 4)
    up = convolution(weight, transposed=True, stride=2, padding=1)
    down = convolution(rotation(CHANNELS, g).reshape(CHANNELS, 3, 2, 2), stride=2)
    return _of_norm_one(nn.Sequential(up, down), images, g, "orthogonal by construction")


def _transposed(seed: int, wrong_axis: bool) -> Built:
    g = random(seed, "axis")
    images = pictures(g)
    spread = torch.full((CHANNELS,), 0.1, dtype=torch.float64)
    spread[0] = 1.0
    kernel = (rotation(CHANNELS, g) @ torch.diag(spread) @ rotation(CHANNELS, g)).reshape(
        CHANNELS, 3, 2, 2
    )  # (I, O, 2, 2), as torch stores it
    matrix = kernel.transpose(0, 1).flatten(1) if wrong_axis else kernel.flatten(1)
    up = convolution(kernel, transposed=True, stride=2)
    down = convolution(rotation(CHANNELS, g).reshape(CHANNELS, 3, 2, 2), stride=2)
    constant = float(torch.linalg.matrix_norm(matrix, 2))
    return _of_norm_one(nn.Sequential(up, down), images, g, "norm of the kernel's matrix", constant * (1 + 1e-6))


@fault(Family.CONSTANT, "a transposed convolution's kernel is flattened along the wrong axis", prove=expanded)
def transposed_flattened_wrongly(seed: int) -> Built:
    """torch stores it as inputs first."""
    return _transposed(seed, wrong_axis=True)


@control(Family.CONSTANT, "a transposed convolution's kernel is flattened with inputs first", prove=bounded)
def transposed_flattened_rightly(seed: int) -> Built:
    """The twin."""
    return _transposed(seed, wrong_axis=False)


@scaled_fault(
    Family.CONSTANT,
    "Newton's iteration for the orthogonal polar factor is stopped before it has converged, from above",
    prove=expanded,
    knob="steps of Newton's iteration",
    severities=(3, 4, 5),
)
def orthogonalisation_not_converged(seed: int, severity: float) -> Built:
    """`X <- (X + X^-T) / 2` takes a singular value s to (s + 1 / s) / 2, at least 1."""
    g = random(seed, "newton")
    images = pictures(g)
    spread = torch.logspace(-0.5, 1.0, CHANNELS, dtype=torch.float64)
    x = rotation(CHANNELS, g) @ torch.diag(spread) @ rotation(CHANNELS, g)
    for _ in range(int(severity)):
        x = (x + torch.linalg.inv(x).T) / 2
    return _of_norm_one(pixelwise(x), images, g, "orthogonal by construction")


@fault(
    Family.CONSTANT,
    "a quintic Newton-Schulz iteration tuned for speed leaves singular values between 0.7 and 1.2",
    prove=expanded,
)
def orthogonalisation_tuned_for_speed(seed: int) -> Built:
    """Coefficients that optimisers use, where orthogonality need not be exact."""
    g = random(seed, "quintic")
    images = pictures(g)
    x = torch.randn(CHANNELS, CHANNELS, generator=g, dtype=torch.float64)
    x = x / x.norm()
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return _of_norm_one(pixelwise(x), images, g, "orthogonal by construction")


class _Exponential(Affine):
    """The exponential series of a skew-symmetric convolution, cut off after `terms` terms."""

    weight: Tensor

    def __init__(self, kernel: Tensor, terms: int) -> None:
        super().__init__()
        skew = kernel - kernel.transpose(0, 1).flip(2, 3)
        self.register_buffer("weight", skew.float())
        self.terms = terms

    def forward(self, x: Tensor) -> Tensor:
        total, term = x, x
        for order in range(1, self.terms):
            term = F.conv2d(term, self.weight.to(x.dtype), padding=1) / order
            total = total + term
        return total


@scaled_fault(
    Family.CONSTANT,
    "the exponential of a skew-symmetric convolution is orthogonal, its series after three terms is not",
    prove=expanded,
    knob="norm of the convolution in the exponent, about",
    severities=(1.5, 1.0, 0.6, 0.4),
)
def truncated_exponential(seed: int, severity: float) -> Built:
    """`|1 + i t - t^2 / 2| = sqrt(1 + t^4 / 4)`; kernels grow in training."""
    g = random(seed, "exponential")
    images = pictures(g)
    kernel = torch.randn(CHANNELS, CHANNELS, 3, 3, generator=g, dtype=torch.float64)
    layer = _Exponential(kernel, 2)
    eye = torch.eye(CHANNELS * 36, dtype=torch.float64).reshape(-1, CHANNELS, 6, 6)
    norm = float(torch.linalg.matrix_norm((layer(eye) - eye).flatten(1), 2))
    return _of_norm_one(_Exponential(kernel * (severity / norm), 3), images, g, "orthogonal by construction")


@control(Family.CONSTANT, "the exponential of a skew-symmetric convolution after 16 terms", prove=bounded)
def exponential_with_enough_terms(seed: int) -> Built:
    """The twin."""
    g = random(seed, "exponential")
    images = pictures(g)
    kernel = 0.05 * torch.randn(CHANNELS, CHANNELS, 3, 3, generator=g, dtype=torch.float64)
    return _of_norm_one(_Exponential(kernel, 16), images, g, "orthogonal by construction", 1.0 + 1e-6)


class _Convex(nn.Module):
    """`x - 2 W T^-1 relu(W' x + b)` with T the row sums of `|W' W| q_j / q_i`: of norm one if T is right."""

    weight: Tensor
    bias: Tensor
    rescale: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, q: Tensor, eps: float) -> None:
        super().__init__()
        rows = (weight.T @ weight).abs() * q[None] / (q[:, None] + eps)
        for name, value in (("weight", weight), ("bias", bias), ("rescale", 2 / rows.sum(1))):
            self.register_buffer(name, value.float())

    def forward(self, x: Tensor) -> Tensor:
        weight, scale = self.weight.to(x.dtype), self.rescale.to(x.dtype)
        hidden = F.conv2d(x, weight.T[:, :, None, None], self.bias.to(x.dtype)).relu()
        return x - F.conv2d(scale[:, None, None] * hidden, weight[:, :, None, None])


@scaled_fault(
    Family.CONSTANT,
    "an epsilon beside the free scales of an SDP-based residual layer is not small once training has shrunk them",
    prove=expanded,
    knob="the scales q, beside an epsilon of 1e-6",
    severities=(1e-6, 1e-5, 1e-4, 1e-3),
)
def epsilon_beside_tiny_scales(seed: int, severity: float) -> Built:
    """Only quotients of the q matter, so nothing keeps them from shrinking (Araujo et al. 2023, appendix)."""
    g = random(seed, "scales")
    images = pictures(g)
    q = severity * (1 + 0.05 * torch.rand(CHANNELS, generator=g, dtype=torch.float64))
    bias = 0.3 * torch.randn(CHANNELS, generator=g, dtype=torch.float64)
    return _of_norm_one(_Convex(0.7 * rotation(CHANNELS, g), bias, q, 1e-6), images, g, "SDP-based residual layer")


CASES = (
    orthogonal_under_reflection,
    orthogonal_under_replication,
    orthogonal_under_circular_padding,
    orthogonal_under_zero_padding,
    even_kernel_padded_on_both_sides,
    odd_size_under_a_circular_stride,
    transposed_windows_overlap,
    transposed_flattened_wrongly,
    transposed_flattened_rightly,
    orthogonalisation_not_converged,
    orthogonalisation_tuned_for_speed,
    truncated_exponential,
    exponential_with_enough_terms,
    epsilon_beside_tiny_scales,
)
