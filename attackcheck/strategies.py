"""Hypothesis strategies: images, perturbations, regions, and networks whose Lipschitz constants are known.

Random numbers come from a seed that hypothesis draws and a :class:`torch.Generator` of its own: torch's global state
would make failures that do not come back. Everything shrinks to something small: the smallest image, a black one, one
changed pixel, the shortest network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from attackcheck.models.layers import MaxMin, OrthogonalConv2d, OrthogonalUp2d, orthonormal

__all__ = ["Network", "generators", "images", "layers", "networks", "perturbations", "regions", "seeds"]


def seeds() -> st.SearchStrategy[int]:
    """Seeds for a :class:`torch.Generator`."""
    return st.integers(min_value=0, max_value=2**32 - 1)


def generators() -> st.SearchStrategy[torch.Generator]:
    """Generators with a drawn seed: hand one over wherever torch takes ``generator=``."""
    return seeds().map(lambda seed: torch.Generator().manual_seed(seed))


@st.composite
def images(
    draw: st.DrawFn,
    *,
    channels: int = 3,
    batch: int = 1,
    height: tuple[int, int] = (1, 8),
    width: tuple[int, int] = (1, 8),
    multiple: int = 1,
) -> Tensor:
    """Images ``(batch, channels, H, W)`` float32 in [0, 1]: black, white, grey, one bright pixel, stripes, noise.

    Args:
        channels, batch: sizes.
        height, width: least and largest size.
        multiple: sizes are multiples of this.
    """
    sizes = [draw(st.integers(-(-low // multiple), high // multiple)) * multiple for low, high in (height, width)]
    shape = (batch, channels, *sizes)
    kind = draw(st.sampled_from(["black", "pixel", "grey", "white", "stripes", "noise", "faint noise"]))
    if kind in ("black", "grey", "white"):
        return torch.full(shape, {"black": 0.0, "grey": 0.5, "white": 1.0}[kind])
    picture = torch.zeros(shape)
    if kind == "pixel":
        picture[..., draw(st.integers(0, sizes[0] - 1)), draw(st.integers(0, sizes[1] - 1))] = 1.0
        return picture
    if kind == "stripes":
        picture[..., :: draw(st.integers(2, 3))] = 1.0
        return picture
    noise = torch.rand(shape, generator=draw(generators()))
    return 0.5 + (noise - 0.5) * 0.1 if kind == "faint noise" else noise


@st.composite
def perturbations(draw: st.DrawFn, shape: Sequence[int], *, largest: float = 1.0) -> Tensor:
    """Perturbations of shape ``(B, C, H, W)``, each row of L2 norm at most ``largest``, at few pixels or all.

    Args:
        shape: of the images.
        largest: bound of each row's norm.
    """
    batch, channels, height, width = shape
    pixels = draw(st.integers(1, height * width))
    generator = draw(generators())
    norm = draw(st.floats(min_value=0.0, max_value=largest))
    places = torch.stack([torch.randperm(height * width, generator=generator)[:pixels] for _ in range(batch)])
    noise = torch.randn(batch, channels, pixels, generator=generator)
    noise = noise / noise.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None] * norm * (1.0 - 1e-6)
    flat = torch.zeros(batch, channels, height * width)
    flat.scatter_(2, places[:, None].expand(-1, channels, -1), noise)
    return flat.view(batch, channels, height, width)


@st.composite
def regions(draw: st.DrawFn, height: int, width: int) -> Tensor:
    """Rectangles ``(H, W)`` bool with at least one pixel."""
    top, left = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    rows, columns = draw(st.integers(1, height - top)), draw(st.integers(1, width - left))
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[top : top + rows, left : left + columns] = True
    return mask


class Network(NamedTuple):
    """A module with a Lipschitz constant that is known to hold, the channels that it makes, and its total stride."""

    module: nn.Module
    lipschitz: float
    channels: int
    stride: int


FLOAT32 = 1.0 + 2e-6
"""What rounding weights to float32 adds to the constant of an orthogonal layer, at most."""


class _Scale(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, values: Tensor) -> Tensor:
        return values * self.factor


class _Repeat(nn.Module):
    """Nearest upsampling by two: every number comes four times, so the norm is two."""

    def forward(self, values: Tensor) -> Tensor:
        return F.interpolate(values, scale_factor=2, mode="nearest")


class _Beside(nn.Module):
    """[x, x]: the norm is the root of two."""

    def forward(self, values: Tensor) -> Tensor:
        return torch.cat([values, values], dim=1)


@st.composite
def layers(draw: st.DrawFn, channels: int, *, stride: int = 1) -> Network:
    """One layer on ``channels`` channels at a size that ``stride`` divides into, with its constant.

    Orthogonal convolutions with and without stride and their adjoints, MaxMin, ReLU, a scale, upsampling, average
    pooling, a concatenation.
    """
    kinds = ["scale", "relu", "conv 1x1", "conv 3x3", "beside"]
    kinds += ["maxmin"] * (channels % 2 == 0) + ["down", "pool"] + ["up", "repeat"] * (stride > 1)
    kind = draw(st.sampled_from(kinds))
    generator = draw(generators())
    match kind:
        case "scale":
            factor = draw(st.sampled_from([1.0, 0.5, -1.0, 3.0]))
            return Network(_Scale(factor), abs(factor), channels, 1)
        case "relu":
            return Network(nn.ReLU(), 1.0, channels, 1)
        case "maxmin":
            return Network(MaxMin(), 1.0, channels, 1)
        case "beside":
            return Network(_Beside(), math.sqrt(2.0), 2 * channels, 1)
        case "pool":
            return Network(nn.AvgPool2d(2), 0.5, channels, 2)
        case "repeat":
            return Network(_Repeat(), 2.0, channels, -2)
        case "down":
            return Network(_plain(OrthogonalConv2d(channels, 2 * channels, 2, stride=2, generator=generator)), FLOAT32,
                           2 * channels, 2)  # fmt: skip
        case "up":
            return Network(_plain(OrthogonalUp2d(channels, channels, generator=generator)), FLOAT32, channels, -2)
    outputs = draw(st.integers(1, 4))
    kernel = 3 if kind == "conv 3x3" else 1
    return Network(_plain(OrthogonalConv2d(channels, outputs, kernel, generator=generator)), FLOAT32, outputs, 1)


@st.composite
def networks(
    draw: st.DrawFn, *, channels: int = 3, classes: int = 3, depth: int = 3, most_channels: int = 16
) -> Network:
    """Networks from images ``(B, channels, H, W)`` to logits of the same size, whose constants are products.

    Args:
        channels, classes: of images and logits.
        depth: most layers between.
        most_channels: layers that would make more are left out.

    Returns:
        A network with its joint constant and the number that H and W must be multiples of.
    """
    parts: list[nn.Module] = []
    width, scale, largest, constant = channels, 1, 1, 1.0
    for _ in range(draw(st.integers(0, depth))):
        made = draw(layers(width, stride=scale))
        if made.channels > most_channels:
            continue
        parts.append(made.module)
        width, constant = made.channels, constant * made.lipschitz
        scale = scale * made.stride if made.stride > 0 else scale // -made.stride
        largest = max(largest, scale)
    while scale > 1:
        up = OrthogonalUp2d(width, width, generator=draw(generators()))
        parts.append(_plain(up))
        scale, constant = scale // 2, constant * FLOAT32
    generator = draw(generators())
    last = nn.Conv2d(width, classes, 1)
    with torch.no_grad():
        square = torch.randn(classes, width, generator=generator, dtype=torch.float64)
        last.weight.copy_(orthonormal(square)[:, :, None, None])
        last.bias = nn.Parameter(torch.randn(classes, generator=generator) * 0.1)
    return Network(nn.Sequential(*parts, last).eval(), constant * FLOAT32, classes, largest)


def _plain(layer: OrthogonalConv2d | OrthogonalUp2d) -> nn.Module:
    """The plain convolution that a layer amounts to."""
    frozen = layer.double().freeze()
    weight, bias = frozen.weight.detach().float(), frozen.bias.detach().float()
    plain: nn.Module
    if isinstance(layer, OrthogonalUp2d):
        plain = nn.ConvTranspose2d(layer.inputs, layer.outputs, 2, 2)
    else:
        pad = layer.dilation if layer.kernel_size == 3 else 0
        plain = nn.Conv2d(layer.inputs, layer.outputs, layer.kernel_size, layer.stride, pad, layer.dilation)
    plain.load_state_dict({"weight": weight, "bias": bias})
    return plain
