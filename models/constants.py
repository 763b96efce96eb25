"""Proven upper bounds of the spectral norms of plain convolutions, in float64.

The kernel of a convolution with stride s is rearranged into one with stride 1 over s*s times the channels. With C_o the
autocorrelation of that kernel at offset o, the operator's Gram matrix at frequency w is sum_o C_o exp(i o w), so that
sigma^2 <= c + sum_o ||C_o - [o = 0] c I||_F for every c and every frequency: on the infinite grid, hence also with zero
padding (a restriction of it) and on the torus (a subset of the frequencies).
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import Normalise

__all__ = ["Constants", "kernel_norm", "layer_norm", "outward"]


class Constants(NamedTuple):
    """Upper bounds of a network's Lipschitz constant: over the whole logit map, and of each pixel's logit vector."""

    joint: float
    pixel: float


def outward(value: float) -> float:
    """`value` enlarged by far more than the float64 rounding of the few thousand operations that computed it."""
    return math.nextafter(value * (1 + 1e-12), math.inf)


def kernel_norm(weight: Tensor, stride: int = 1) -> float:
    """An upper bound of the spectral norm of the convolution with `weight` (O, I, k, k), any size and dilation.

    Exact up to rounding when the kernel is one block of the stride (1x1, or 2x2 with stride 2); otherwise within about
    the distance of the kernel from an orthogonal one.
    """
    weight = weight.detach().to("cpu", torch.float64)
    reach = -(-weight.shape[-1] // stride)
    missing = reach * stride - weight.shape[-1]
    weight = F.pixel_unshuffle(F.pad(weight, (0, missing, 0, missing)), stride)  # (O, I s s, reach, reach)
    if reach == 1:
        return outward(float(torch.linalg.matrix_norm(weight[:, :, 0, 0], 2)))
    if weight.shape[0] > weight.shape[1]:
        weight = weight.transpose(0, 1)
    side = weight.shape[0]
    wide = F.pad(weight, (reach - 1,) * 4)
    offsets = 2 * reach - 1
    shifted = torch.stack(
        [wide[:, :, a : a + reach, b : b + reach] for a in range(offsets) for b in range(offsets)]
    )  # (offsets^2, side, M, reach, reach)
    gram = shifted.flatten(2) @ weight.flatten(1).mT  # (offsets^2, side, side)
    centre = gram[offsets**2 // 2]
    level = float(centre.diagonal().mean())
    gram[offsets**2 // 2] = centre - level * torch.eye(side, dtype=torch.float64)
    return outward(math.sqrt(level + float(torch.linalg.matrix_norm(gram).sum())))


def layer_norm(layer: nn.Module) -> float:
    """An upper bound of the Lipschitz constant of one plain layer; 1 for layers that only permute, sort or shuffle."""
    if isinstance(layer, nn.Conv2d):
        return kernel_norm(layer.weight, layer.stride[0])
    if isinstance(layer, nn.ConvTranspose2d):
        return kernel_norm(layer.weight, layer.stride[0])  # the adjoint has the same norm
    if isinstance(layer, Normalise):
        return outward(1 / float(layer.std.min())) if layer.divides else 1.0
    if isinstance(layer, nn.Sequential):
        product = 1.0
        for part in layer:
            product = outward(product * layer_norm(part))
        return product
    own = getattr(layer, "constant", None)
    if own is not None:
        return float(own())
    if any(True for _ in layer.parameters()):
        raise TypeError(f"no norm is known for {type(layer).__name__}")
    return 1.0
