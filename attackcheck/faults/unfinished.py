"""Iterations and series that make a layer orthogonal once they have converged, stopped before."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attackcheck.faults.case import Built, Family, control, fault, scaled_fault
from attackcheck.faults.networks import Affine, pictures, pixelwise, random, rotation
from attackcheck.faults.proofs import bounded, expanded
from attackcheck.faults.subjects import CHANNELS, claimed

__all__ = ["CASES"]


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
    return claimed(pixelwise(x), 1.0, images, g, "orthogonal by construction")


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
    return claimed(pixelwise(x), 1.0, images, g, "orthogonal by construction")


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
    return claimed(_Exponential(kernel * (severity / norm), 3), 1.0, images, g, "orthogonal by construction")


@control(Family.CONSTANT, "the exponential of a skew-symmetric convolution after 16 terms", prove=bounded)
def exponential_with_enough_terms(seed: int) -> Built:
    """The twin."""
    g = random(seed, "exponential")
    images = pictures(g)
    kernel = 0.05 * torch.randn(CHANNELS, CHANNELS, 3, 3, generator=g, dtype=torch.float64)
    return claimed(_Exponential(kernel, 16), 1.0, images, g, "orthogonal by construction")


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
    return claimed(_Convex(0.7 * rotation(CHANNELS, g), bias, q, 1e-6), 1.0, images, g, "SDP-based residual layer")


CASES = (
    orthogonalisation_not_converged,
    orthogonalisation_tuned_for_speed,
    truncated_exponential,
    exponential_with_enough_terms,
    epsilon_beside_tiny_scales,
)
