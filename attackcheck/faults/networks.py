"""Small networks that are exactly as steep as their constant says, so that nothing can hide behind slack.

Everything around the layer under test is an isometry: patches of 2x2 pixels are rotated into channels, sorted, handed
to the layer, sorted again, rotated back into pixels, and compared with the corners of a regular simplex. Sorting
permutes, so its Jacobian is orthogonal wherever it exists, and the network's constant is that of the layer in the
middle.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attackcheck.claims import margins
from attackcheck.models.layers import MaxMin, OrthogonalConv2d
from attackcheck.selection import seed_of

__all__ = [
    "Affine",
    "Concatenated",
    "Residual",
    "Tiled",
    "balanced",
    "classifier",
    "convolution",
    "isometric",
    "last_layer",
    "orthogonal_convolution",
    "patches",
    "pictures",
    "pixelwise",
    "random",
    "rescale",
    "rotation",
    "sandwich",
    "simplex",
    "true_radii",
    "unpatch",
]


def random(seed: int, name: str) -> torch.Generator:
    """A generator that depends on the seed and the case."""
    return torch.Generator().manual_seed(seed_of("catalogue", seed, name))


def rotation(size: int, g: torch.Generator) -> Tensor:
    """A random orthogonal matrix `(size, size)`, float64."""
    q, r = torch.linalg.qr(torch.randn(size, size, generator=g, dtype=torch.float64))
    turned: Tensor = q * torch.diagonal(r).sign()
    return turned


def simplex(channels: int) -> Tensor:
    """The corners of a regular simplex, `(channels + 1, channels)`: spectral norm 1, all distances sqrt(2)."""
    size = channels + 1
    centred = torch.eye(size, dtype=torch.float64) - 1.0 / size
    corners: Tensor = torch.linalg.eigh(centred)[1][:, 1:]  # without the direction that all classes share
    return corners


def pictures(g: torch.Generator, count: int = 1, channels: int = 3, height: int = 12, width: int = 12) -> Tensor:
    """Random blobs with a little texture, `(count, channels, height, width)` float32 in [0.1, 0.9]."""
    rough = torch.rand(count, channels, 4, 4, generator=g)
    blobs = F.interpolate(rough, size=(height, width), mode="bicubic", align_corners=False)
    texture = torch.rand(count, channels, height, width, generator=g) - 0.5
    return (0.5 + 0.9 * (blobs - 0.5) + 0.15 * texture).clamp(0.1, 0.9)


def convolution(
    weight: Tensor, bias: Tensor | None = None, *, transposed: bool = False, **options: object
) -> nn.Module:
    """A plain convolution layer with these numbers, rounded to float32; options as of the torch module."""
    outputs, inputs = weight.shape[0], weight.shape[1]
    groups = int(str(options.get("groups", 1)))
    size = (weight.shape[2], weight.shape[3])
    layer: nn.Conv2d | nn.ConvTranspose2d
    if transposed:
        layer = nn.ConvTranspose2d(outputs, inputs * groups, size, **options)  # type: ignore[arg-type]
    else:
        layer = nn.Conv2d(inputs * groups, outputs, size, **options)  # type: ignore[arg-type]
    if layer.bias is None:
        raise ValueError("expected a layer with a bias")
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.zero_() if bias is None else layer.bias.copy_(bias)
    return layer.requires_grad_(False)


def patches(channels: int, g: torch.Generator) -> nn.Module:
    """2x2 pixels into `4 * channels` channels, rotated: an isometry onto half the resolution."""
    size = 4 * channels
    weight = rotation(size, g).reshape(size, channels, 2, 2)
    return convolution(weight, 0.1 * torch.randn(size, generator=g), stride=2)


def unpatch(channels: int, g: torch.Generator) -> nn.Module:
    """`channels` rotated into 2x2 pixels of a quarter as many channels: an isometry onto twice the resolution."""
    weight = rotation(channels, g).reshape(channels, channels // 4, 2, 2)
    return convolution(weight, transposed=True, stride=2)


def pixelwise(matrix: Tensor, bias: Tensor | None = None) -> nn.Module:
    """A 1x1 convolution."""
    return convolution(matrix[:, :, None, None], bias)


def orthogonal_convolution(channels: int, g: torch.Generator, *, scale: float = 1.0, mode: str = "zeros") -> nn.Module:
    """A 3x3 convolution of norm `scale` under zero or circular padding; other paddings are the caller's risk."""
    kernel = OrthogonalConv2d(channels, channels, 3, generator=g).double().kernel().detach()
    bias = 0.1 * torch.randn(channels, generator=g)
    return convolution(scale * kernel, bias, padding=1, padding_mode=mode)


def classifier(channels: int, g: torch.Generator, classes: int | None = None) -> nn.Module:
    """A 1x1 convolution of norm 1 onto simplex corners, or onto fewer `classes` with orthonormal rows."""
    turned = rotation(channels, g)
    return pixelwise(simplex(channels) @ turned if classes is None else turned[:classes])


class Affine(nn.Module):
    """Layers of the catalogue's own that are affine, so that their norm is that of an explicit matrix."""


class Residual(nn.Module):
    """`x + inner(x)`, whose constant is at most one more than the inner one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.inner(x)
        return result


class Concatenated(nn.Module):
    """All branches' channels side by side; the constant is the root of the sum of the branches' squares."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Tiled(nn.Module):
    """Two tiles side by side that overlap; where they do, the mean of their logits."""

    def __init__(self, inner: nn.Module, width: int, overlap: int) -> None:
        super().__init__()
        self.inner, self.width, self.overlap = inner, width, overlap

    def tiles(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of both tiles, each as wide as the image and zero outside."""
        missing = images.shape[3] - self.width
        left = F.pad(self.inner(images[..., : self.width]), (0, missing))
        right = F.pad(self.inner(images[..., -self.width :]), (missing, 0))
        return left, right

    def forward(self, images: Tensor) -> Tensor:
        left, right = self.tiles(images)
        total = left + right
        start, stop = images.shape[3] - self.width, self.width
        return torch.cat([total[..., :start], total[..., start:stop] / 2, total[..., stop:]], 3)


def sandwich(middle: nn.Module, images: Tensor, g: torch.Generator, *, up: bool = True) -> nn.Sequential:
    """A network with the constant of `middle`, which sees `4 C` channels at half the images' resolution.

    Args:
        middle: the layer under test.
        images: `(N, C, H, W)`, for the sizes and for balanced classes.
        g: draws the weights.
        up: whether `middle` leaves the resolution halved.
    """
    down = patches(images.shape[1], g)
    with torch.no_grad():
        channels = middle(down(images[:1])).shape[1]
    layers = [down, MaxMin(), middle]
    if channels % 2 == 0:
        layers.append(MaxMin())
    if up:
        layers.append(unpatch(channels, g))
        channels //= 4
    layers.append(classifier(channels, g, None if channels < 8 else 5))
    return balanced(nn.Sequential(*layers), images)


def isometric(images: Tensor, g: torch.Generator) -> nn.Sequential:
    """The sandwich around a 3x3 orthogonal convolution: two sorted hidden layers, constant 1."""
    return sandwich(orthogonal_convolution(4 * images.shape[1], g), images, g)


@torch.no_grad()
def balanced(model: nn.Sequential, images: Tensor) -> nn.Sequential:
    """Shifts the last layer's bias so that every class has the same mean logit on these images; in evaluation mode."""
    model.eval()
    _, bias = last_layer(model)
    bias -= model(images).mean((0, 2, 3))
    return model


def last_layer(model: nn.Sequential) -> tuple[Tensor, Tensor]:
    """Weight and bias of the classifier, to be changed in place."""
    last = model[-1]
    if not isinstance(last, nn.Conv2d) or last.bias is None:
        raise ValueError("expected a convolution with a bias at the end")
    return last.weight.data, last.bias.data


def rescale(model: nn.Sequential, scale: float) -> nn.Sequential:
    """Multiplies all logits, in place."""
    for part in last_layer(model):
        part *= scale
    return model


@torch.no_grad()
def true_radii(model: nn.Module, images: Tensor, lipschitz: float) -> Tensor:
    """`m / (sqrt(2) L)` at these images, `(N, H, W)` float64."""
    return margins(model(images)) / (2**0.5 * lipschitz)
