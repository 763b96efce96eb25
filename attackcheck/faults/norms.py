"""Norms of the catalogue's layers from explicit matrices, and what they make together."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from attackcheck.faults.networks import Affine, Concatenated, Residual
from attackcheck.models.layers import MaxMin, Normalise

__all__ = ["operator_norm", "outer_norm", "product_of_norms"]


@torch.no_grad()
def operator_norm(layer: nn.Module, shape: tuple[int, ...]) -> float:
    """Largest singular value of an affine layer as an explicit matrix at inputs of `shape` (C, H, W), in float64.

    Rounded up, so that it is never below the true norm of the layer as it is stored. Convolutions whose windows tile
    the map are the same small matrix at each window.
    """
    twin = _double(layer)
    if isinstance(twin, nn.Conv2d | nn.ConvTranspose2d) and _tiles(twin, shape):
        return float(torch.linalg.matrix_norm(twin.weight.flatten(1), 2)) * (1 + 1e-12)
    size = int(torch.Size(shape).numel())
    basis = torch.eye(size, dtype=torch.float64).reshape(size, *shape)
    offset = twin(basis[:1] * 0)
    return float(torch.linalg.matrix_norm((twin(basis) - offset).flatten(1), 2)) * (1 + 1e-12)


def _tiles(layer: nn.Conv2d | nn.ConvTranspose2d, shape: tuple[int, ...]) -> bool:
    plain = layer.groups == 1 and set(layer.dilation) == {1} and layer.kernel_size == layer.stride
    fits = all(size % step == 0 for size, step in zip(shape[1:], layer.stride, strict=True))
    exact = (isinstance(layer, nn.Conv2d) and fits) or isinstance(layer, nn.ConvTranspose2d)
    return plain and exact and layer.padding == (0, 0) and not any(getattr(layer, "output_padding", ()))


def _double(layer: nn.Module) -> nn.Module:
    return copy.deepcopy(layer).double().eval()


NORM_ONE = (MaxMin, nn.ReLU, nn.Identity, nn.Dropout)
AFFINE = (
    Affine, Normalise, nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.AvgPool2d, nn.Upsample, nn.PixelShuffle,
)  # fmt: skip


@torch.no_grad()
def product_of_norms(model: nn.Module, image: Tensor) -> float:
    """An upper bound of a network's constant at the size of `image` (C, H, W).

    Affine layers by their explicit matrices, activations as 1, chains as products, residuals as sums, concatenations as
    roots of sums of squares.
    """
    return _bound(model.eval(), image[None])


def _bound(module: nn.Module, x: Tensor) -> float:
    if isinstance(module, nn.Sequential):
        product = 1.0
        for child in module:
            product *= _bound(child, x)
            x = child(x)
        return product
    if isinstance(module, Residual):
        return 1.0 + _bound(module.inner, x)
    if isinstance(module, Concatenated):
        return float(sum(_bound(branch, x) ** 2 for branch in module.branches) ** 0.5)
    if isinstance(module, NORM_ONE):
        return 1.0
    if isinstance(module, AFFINE):
        return operator_norm(module, tuple(x.shape[1:]))
    raise TypeError(f"no bound is known for a {type(module).__name__}")


def outer_norm(model: nn.Sequential, image: Tensor) -> float:
    """The product for all layers of a sandwich except the one in the middle."""
    x, product = image[None], 1.0
    for place, child in enumerate(model):
        if place != 2:
            product *= _bound(child, x)
        with torch.no_grad():
            x = child(x)
    return product
