"""Where the tail of a network begins: its last affine layers, and a layer before them that sorts pairs of channels.

Only what is known line by line is recognised: chains of torch's own layers and this package's networks, without hooks.
Everything before the tail may be anything.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attackcheck.arithmetic import frozen
from attackcheck.errors import InputError
from attackcheck.models.isounet import IsoUNet
from attackcheck.models.layers import MaxMin
from attackcheck.models.lipnet import LipNet

__all__ = ["Tail", "find_tail", "linear_part", "sorted_values"]


@dataclass(frozen=True, eq=False)
class Tail:
    """A network cut in three: ``logits = last(sort(affine(head(images))))``, or ``affine(head(images))``.

    Attributes:
        head: images to features ``(B, C, h, w)``, anything.
        affine: features to ``(B, O, H, W)`` values with ``H = scale h``, affine, of this float type.
        last: the 1x1 layer that makes logits of sorted values; None where `affine` makes them, and nothing is sorted.
        scale: pixels per place of the features, along each axis.
        reach: so many pixels next to a border have rows of their own; 0 means that every place of the features makes
            a block of ``scale x scale`` pixels, and no other place has a part in it.
        terms: so many products at most are added up in one value of `affine`, layer after layer.
    """

    head: nn.Sequential
    affine: nn.Sequential
    last: nn.Conv2d | None
    scale: int
    reach: int
    terms: int


def find_tail(model: nn.Module) -> Tail:
    """Cut a network; it is copied and frozen, with parametrisations resolved.

    Raises:
        InputError: if it is no chain of layers, or its last layer is of no kind that is known.
    """
    twin = frozen(model)
    if not isinstance(twin, nn.Module) or twin is model:
        raise InputError("expected a network that can be copied, to refine its certificate")
    layers = _chain(twin.eval())
    start, scale, reach, terms = _affine_part(layers)
    if start == len(layers):
        raise InputError(
            "expected a network that ends in convolutions or upsampling to refine its certificate, "
            f"got a {type(layers[-1]).__name__} at the end"
        )
    last = layers[start]
    pointwise = isinstance(last, nn.Conv2d) and last.kernel_size == (1, 1) and start == len(layers) - 1
    if start > 0 and pointwise and isinstance(last, nn.Conv2d) and last.groups == 1 and _is(layers[start - 1], MaxMin):
        begin, scale, reach, terms = _affine_part(layers[: start - 1])
        return Tail(
            nn.Sequential(*layers[:begin]), nn.Sequential(*layers[begin : start - 1]), last, scale, reach, terms
        )
    return Tail(nn.Sequential(*layers[:start]), nn.Sequential(*layers[start:]), None, scale, reach, terms)


@contextmanager
def sorted_values(model: object) -> Iterator[list[Tensor]]:
    """While this is open, the values that the model's last layer but one sorts are kept, call after call.

    The list stays empty for a model whose layers are not known, or that does not end in a sort.
    """
    kept: list[Tensor] = []
    try:
        layers = _chain(model) if isinstance(model, nn.Module) else []
    except InputError:
        layers = []
    if len(layers) < 2 or not _is(layers[-2], MaxMin):
        yield kept
        return
    hook = layers[-2].register_forward_pre_hook(lambda _, given: kept.append(given[0].detach()))
    try:
        yield kept
    finally:
        hook.remove()


def _chain(model: nn.Module) -> list[nn.Module]:
    """The layers whose composition the network is."""
    if _hooked(model):
        raise InputError("expected a network without hooks to refine its certificate")
    if type(model) is LipNet:
        layers = _chain(model.layers)
        factor = model.config.upsample
        return [*layers, nn.Upsample(scale_factor=factor, mode="bilinear")] if factor > 1 else layers
    if type(model) is IsoUNet:
        return _chain(model.layers)
    if isinstance(model, nn.Sequential) and type(model).forward is nn.Sequential.forward:
        layers = []
        for part in model:
            plain = isinstance(part, nn.Sequential) and type(part).forward is nn.Sequential.forward
            layers += _chain(part) if plain and not _hooked(part) else [part]
        if layers:
            return layers
    raise InputError(f"expected a chain of layers to refine the certificate of, got a {type(model).__name__}")


def _affine_part(layers: Sequence[nn.Module]) -> tuple[int, int, int, int]:
    """Where the affine layers at the end begin, their scale, their reach, and how many products they add up."""
    start = len(layers)
    while start > 0 and _affine(layers[start - 1]) is not None:
        start -= 1
    scale, reach, terms = 1, 0, 0
    for layer in layers[start:]:
        found = _affine(layer)
        if found is not None:
            factor, border, products = found
            scale, reach, terms = scale * factor, reach * factor + border, terms + products
    return start, scale, reach, terms


def _affine(layer: nn.Module) -> tuple[int, int, int] | None:
    """Scale, reach of the border in pixels of the output, and products per value; None for other layers."""
    if _hooked(layer):
        return None
    if _is(layer, nn.Identity) or _is(layer, nn.Dropout) or _is(layer, nn.Dropout2d):
        return 1, 0, 0
    if isinstance(layer, nn.Conv2d) and type(layer) is nn.Conv2d:
        kernel = [d * (k - 1) for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
        if layer.stride != (1, 1) or isinstance(layer.padding, str) or layer.padding_mode != "zeros":
            return None
        if [2 * p for p in layer.padding] != kernel:
            return None
        return 1, max(kernel), layer.in_channels // layer.groups * math.prod(layer.kernel_size)
    if isinstance(layer, nn.ConvTranspose2d) and type(layer) is nn.ConvTranspose2d:
        stride = layer.stride[0]
        tiling = layer.kernel_size == layer.stride == (stride, stride) and tuple(layer.padding) == (0, 0)
        if not tiling or tuple(layer.output_padding) != (0, 0) or layer.dilation != (1, 1):
            return None
        return stride, 0, layer.in_channels // layer.groups
    if isinstance(layer, nn.PixelShuffle) and type(layer) is nn.PixelShuffle:
        return layer.upscale_factor, 0, 0
    if isinstance(layer, nn.Upsample) and type(layer) is nn.Upsample and layer.size is None:
        factor = layer.scale_factor
        if isinstance(factor, tuple) or factor is None or int(factor) != factor or factor < 1:
            return None
        if layer.mode == "nearest":
            return int(factor), 0, 0
        # Weights of a power of two are exact.
        if layer.mode == "bilinear" and not layer.align_corners and math.log2(factor).is_integer():
            return int(factor), 2 * int(factor), 4
    return None


def _is(layer: nn.Module, kind: type[nn.Module]) -> bool:
    return type(layer) is kind and not _hooked(layer)


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks) or "forward" in module.__dict__


def linear_part(layers: nn.Sequential) -> nn.Sequential:
    """A float64 copy without biases, on the CPU."""
    twin: nn.Sequential = copy.deepcopy(layers).cpu().double()
    for layer in twin:
        bias = getattr(layer, "bias", None)
        if isinstance(bias, Tensor):
            with torch.no_grad():
                bias.zero_()
    return twin
