"""Gadgets: tiny networks with a known Lipschitz constant and known flip distances, to run certifiers on.

A certifier that can be called on any model is a formula, and a formula that is wrong anywhere is wrong on one of these:
each gadget's sentence says which mistakes it shows. Where a gadget is tight (orthonormal rows, a simplex, opposite
rows), a sound radius is at most ``m / (sqrt(2) L)``, and the true distance is exactly that. Weights and images are
float32 numbers, the distances are those of the real-number function with these very weights, in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from attackcheck.errors import InputError
from attackcheck.models.exact import AffineConv, AffinePixel, ReluPixel, affine_conv, affine_pixel, relu_pixel

__all__ = ["FACTOR", "PREFIX", "VARIANTS", "Gadget", "gadget", "gadgets"]

PREFIX = "gadget:"
"""Names of gadgets in counterexamples begin like this."""

Truth = AffineConv | AffinePixel | ReluPixel


@dataclass(frozen=True)
class Gadget:
    """A network with known distances, and images for it.

    Attributes:
        name: for :func:`gadget`.
        sentence: what is special about it, and so which mistakes it shows.
        truth: the same map with closed-form distances; its weights are float32 numbers.
        images: ``(N, C, H, W)`` float32 in [0, 1].
        lipschitz: an upper bound of the joint Lipschitz constant, exact up to float64 rounding.
    """

    name: str
    sentence: str
    truth: Truth
    images: Tensor
    lipschitz: float = field(default=0.0)

    def __post_init__(self) -> None:
        height, width = self.images.shape[2:]
        constant = self.truth.double().lipschitz_joint(height, width)
        object.__setattr__(self, "lipschitz", math.nextafter(constant * (1.0 + 1e-12), math.inf))

    def network(self) -> nn.Module:
        """A new copy of the network, of plain torch layers in float32, in evaluation mode."""
        truth = self.truth
        layers: list[nn.Module] = []
        if isinstance(truth, ReluPixel):
            layers = [_convolution(truth.inner, truth.shift), nn.ReLU()]
        return nn.Sequential(*layers, _convolution(truth.weight, truth.bias)).eval()

    def distances(self) -> Tensor:
        """How far every pixel is from its next class, ``(N, H, W)`` float64."""
        return torch.stack([self.truth.flip_distance(image.double()) for image in self.images])

    def flip(self, index: int, row: int, column: int) -> Tensor:
        """A float32 point ``(C, H, W)`` just beyond the nearest decision boundary of a pixel of image ``index``."""
        image = self.images[index].double()
        delta = self.truth.nearest_flip(image, row, column) - image
        return (image + delta * (1.0 + 1e-6)).float()


def _convolution(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    kernel = weight if weight.dim() == 4 else weight[:, :, None, None]
    layer = nn.Conv2d(kernel.shape[1], kernel.shape[0], kernel.shape[2], padding=kernel.shape[2] // 2)
    layer.weight.data, layer.bias.data = kernel.float().clone(), bias.float().clone()  # type: ignore[union-attr]
    return layer


def _rounded(truth: Truth) -> Truth:
    """The same model with weights that are float32 numbers, in float64."""
    for tensor in truth.buffers():
        tensor.copy_(tensor.float())
    return truth.double()


def _uniform(shape: tuple[int, ...], seed: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


_SIMPLEX = torch.tensor([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], dtype=torch.float64) / math.sqrt(3.0)
"""Corners of a regular tetrahedron: every two classes are equally far apart, ``L = sqrt(4 / 3)`` times the scale."""


def _simplex(name: str, scale: float, count: int, height: int, width: int, seed: int) -> Gadget:
    """Four classes; the pixels go through all pairs of a winner and a runner-up, with margins from small to large."""
    weight = scale * _SIMPLEX
    place = torch.arange(count * height * width)
    winner = place % 4
    runner_up = (winner + 1 + (place // 4) % 3) % 4
    far = _uniform((len(place), 1), seed, 0.15, 0.35)
    near = far * _uniform((len(place), 1), seed + 1, 0.2, 0.97)
    pixels = 0.5 + far * _SIMPLEX[winner] + near * _SIMPLEX[runner_up]  # (N, 3)
    images = pixels.reshape(count, height, width, 3).movedim(3, 1).float()
    truth = _rounded(AffinePixel(weight, -0.5 * weight.sum(dim=1)))
    return Gadget(name, f"tight, four classes in all orders, weights scaled by {scale:g}", truth, images)


def tetrahedron() -> Gadget:
    """Shows a lost sqrt(2), a wrong rival, a left-out class, other units, mixed rows, rounding up."""
    return _simplex("tetrahedron", 1.0, 2, 2, 6, 0)


def small() -> Gadget:
    """Logits of .1: shows ``L^2`` for ``L``, and additive slack."""
    return _simplex("small", 0.1, 2, 3, 4, 2)


def large() -> Gadget:
    """Logits of 7: shows ``sqrt(L)`` for ``L``, and a forgotten constant."""
    return _simplex("large", 7.0, 2, 1, 12, 4)


def square() -> Gadget:
    """A square image with distances that are unlike their transpose: shows swapped axes and shifted maps."""
    return _simplex("square", 2.0, 2, 4, 4, 6)


def opposite() -> Gadget:
    """Two classes with rows w and -w: the distance is m / 2."""
    row = torch.tensor([0.6, -0.8, 0.5], dtype=torch.float64)
    truth = _rounded(AffinePixel(torch.stack([row, -row]), torch.stack([-row.sum(), row.sum()]) / 2))
    return Gadget("opposite", "tight, two classes with opposite rows", truth, _uniform((2, 3, 2, 3), 8).float())


def identity() -> Gadget:
    """Logits are the image: ties are exact, and margins of 1e-6 come beside margins of .5."""
    pixels = torch.tensor(
        [
            [[0.5, 0.5, 0.25], [0.5, 0.500001, 0.25], [0.25, 0.5, 0.501]],
            [[0.75, 0.25, 0.25], [0.0, 0.0, 0.0], [0.125, 0.0, 1.0]],
        ]
    )
    truth = _rounded(AffinePixel(torch.eye(3, dtype=torch.float64)))
    return Gadget("identity", "tight, with ties and margins of nearly nothing", truth, pixels.movedim(2, 0)[None])


def pair() -> Gadget:
    """Two pixels, one near its boundary and one far: shows a radius of the whole image taken for one pixel's."""
    pixels = torch.tensor([[[0.5, 0.45, 0.1], [0.95, 0.05, 0.1]]])
    truth = _rounded(AffinePixel(torch.eye(3, dtype=torch.float64)))
    return Gadget("pair", "tight, two pixels with very different distances", truth, pixels.movedim(2, 0)[None])


def lopsided() -> Gadget:
    """The runner-up's row is close to the winner's, another class is further in logits and nearer in distance."""
    weight = torch.tensor([[1.0, 0.1, 0.0], [0.9, 0.15, 0.0], [-1.0, 0.0, 0.5], [0.0, -1.0, -0.8]]).double()
    truth = _rounded(AffinePixel(weight, torch.tensor([0.0, -0.05, 1.0, 0.9]).double()))
    return Gadget("lopsided", "the runner-up is not the nearest class", truth, _uniform((2, 3, 3, 5), 10).float())


def scattered() -> Gadget:
    """A random affine map of five classes, with a bias."""
    truth = _rounded(affine_pixel(5, seed=3))
    return Gadget("scattered", "a random affine map of five classes", truth, _uniform((2, 3, 2, 5), 12).float())


def neighbours() -> Gadget:
    """A 3x3 convolution: a pixel depends on its neighbours, and the border is not like the middle."""
    truth = _rounded(affine_conv(3, kernel=3, seed=5))
    return Gadget("neighbours", "a convolution with zero padding", truth, _uniform((2, 3, 4, 5), 14).float())


def bent() -> Gadget:
    """A hidden layer with ReLU: the distance is not that of the linearisation at the image."""
    truth = _rounded(relu_pixel(4, seed=7))
    return Gadget("bent", "piecewise linear: one hidden layer with ReLU", truth, _uniform((2, 3, 2, 4), 16).float())


_PLAIN: tuple[Callable[[], Gadget], ...] = (
    tetrahedron, small, large, square, opposite, identity, pair, lopsided, scattered, neighbours, bent,
)  # fmt: skip

FACTOR = 4.0
"""Variants are scaled by a power of two, so that their logits are those of the original to the last bit."""


def scaled(plain: Gadget) -> Gadget:
    """Logits and constant times 4: the same radii."""
    truth = plain.truth
    changed = {"weight": FACTOR * truth.weight, "bias": FACTOR * truth.bias}
    return replace(plain, name=f"{plain.name}@scaled", truth=_with(truth, changed))


def stretched(plain: Gadget) -> Gadget:
    """Images a fourth as bright, multiplied by 4 inside the network: the same logits, a fourth of the radii."""
    truth = plain.truth
    first = "inner" if isinstance(truth, ReluPixel) else "weight"
    changed = {first: FACTOR * getattr(truth, first)}
    return replace(plain, name=f"{plain.name}@stretched", truth=_with(truth, changed), images=plain.images / FACTOR)


def reordered(plain: Gadget) -> Gadget:
    """Classes in another order and the batch reversed: the same radii, reversed."""
    truth = plain.truth
    changed = {"weight": truth.weight.roll(1, 0), "bias": truth.bias.roll(1, 0)}
    name = f"{plain.name}@reordered"
    return replace(plain, name=name, truth=_with(truth, changed), images=plain.images.flip(0))


def mirrored(plain: Gadget) -> Gadget:
    """Images and kernels mirrored: the same radii, mirrored."""
    truth = plain.truth
    kernel = truth.weight.flip(3) if truth.weight.dim() == 4 else truth.weight
    name = f"{plain.name}@mirrored"
    return replace(plain, name=name, truth=_with(truth, {"weight": kernel}), images=plain.images.flip(3))


def _with(truth: Truth, changed: dict[str, Tensor]) -> Truth:
    tensors = dict(truth.named_buffers()) | changed
    return type(truth)(**tensors).double()


VARIANTS: tuple[Callable[[Gadget], Gadget], ...] = (scaled, stretched, reordered, mirrored)


def gadgets() -> Iterator[Gadget]:
    """All plain gadgets."""
    for build in _PLAIN:
        yield build()


def gadget(name: str) -> Gadget:
    """The gadget of this name, with or without ``gadget:`` before it, such as ``tetrahedron`` or ``small@mirrored``.

    Raises:
        InputError: if there is none of this name.
    """
    plain, _, variant = name.removeprefix(PREFIX).partition("@")
    for build in _PLAIN:
        if build.__name__ == plain:
            found = build()
            for vary in VARIANTS:
                if vary.__name__ == variant:
                    return vary(found)
            if not variant:
                return found
    choices = ", ".join(build.__name__ for build in _PLAIN)
    ways = ", ".join(f"@{vary.__name__}" for vary in VARIANTS)
    raise InputError(f"expected a gadget among {choices}, with or without {ways}; got {name!r}")
