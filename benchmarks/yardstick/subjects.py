"""The networks that everybody attacks, their images and pixels, and the part of the image that a pixel can see."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

import attackcheck as ac
from attackcheck.cones import Cone, cone_of
from attackcheck.models.datasets import Dataset, load_data
from attackcheck.models.exact import affine_conv
from attackcheck.models.layers import MaxMin, Normalise, conv, up
from attackcheck.models.lipnet import SIZES
from attackcheck.models.networks import build
from attackcheck.models.shelf import shipped
from attackcheck.selection import choose_pixels

__all__ = ["NAMES", "Crop", "Subject", "subject"]

NAMES = ("trial", "affine", "isounet-xs", "lipnet-xs", "plain", "photos")


@dataclass(frozen=True)
class Crop:
    """The window of an image outside which nothing reaches the pixel's logits: rows and columns from, to."""

    top: int
    bottom: int
    left: int
    right: int

    def cut(self, image: Tensor) -> Tensor:
        """The window of an image (..., H, W)."""
        return image[..., self.top : self.bottom, self.left : self.right]


@dataclass
class Pixel:
    """One pixel under attack: its image, position, certified radius, and window."""

    image: int
    row: int
    column: int
    radius: float
    crop: Crop


@dataclass
class Subject:
    """A network with images (N, C, H, W), radii (N, H, W) on the [0, 1] pixel scale, and the chosen pixels.

    `certified` is false for a network without a certificate, whose radii are those of a constant of 1: its tightness
    means nothing, ratios of distances do.
    """

    name: str
    note: str
    model: Callable[[Tensor], Tensor]
    claim: ac.LipschitzClaim
    images: Tensor
    radii: Tensor
    pixels: list[Pixel]
    certified: bool = True
    stride: int = 1
    cones: dict[tuple[int, ...], Cone | None] = field(default_factory=dict)

    def cone(self, window: Tensor) -> Cone | None:
        """The network around one pixel of windows (C, h, w) of this shape, None where it cannot be had."""
        shape = tuple(window.shape)
        if shape not in self.cones:
            self.cones[shape] = cone_of(self.model, window, self.stride)
        return self.cones[shape]


def subject(
    name: str,
    *,
    images: int,
    pixels: int,
    seed: int,
    crops: bool = True,
    checkpoint: Path | None = None,
    data: str | None = None,
    steps: int = 300,
) -> Subject:
    """The subject of this name with `pixels` pixels spread over `images` images, stratified by radius.

    `checkpoint` and `data` belong to "photos"; `steps` is how long "plain" is trained.
    """
    certified, stride, radii = True, 4, None
    pictures = load_data(data if name == "photos" else None)
    match name:
        case "trial":
            model, claim, note = _trial(seed), ac.LipschitzClaim(1.0), "random orthogonal network, 48x48, 6 classes"
            batch = torch.stack([pictures[i].image[:, 8:56, 40:88] for i in range(images)])
        case "affine":
            model = affine_conv(classes=5, kernel=7, seed=seed)
            claim, stride, note = ac.LipschitzClaim(1.0), 1, "affine 7x7 convolution, exact flip distances as radii"
            batch = torch.stack([pictures[i].image[:, :32, :32] for i in range(images)])
            radii = torch.stack([model.flip_distance(image) for image in batch])
        case "plain":
            model, note = _plain(steps, seed), f"LipNet XS without constraints, {steps} training steps on scenes"
            claim, certified = ac.LipschitzClaim(1.0), False
            batch = _stack(pictures, images)
        case _:
            loaded = ac.load(shipped(name) if checkpoint is None or name != "photos" else checkpoint)
            model, claim, note = loaded.model, loaded.claim, "shipped" if name != "photos" else "LipNet on photos"
            stride = model.config.stride
            batch = _stack(pictures, images)
    model.eval()
    with torch.no_grad():
        logits = model(batch)
    if radii is None:
        radii = claim.radii(batch, logits, None)
    eligible = torch.ones(radii.shape[1:], dtype=torch.bool)
    if name == "trial":
        # away from the border and at one phase of the stride all windows show their pixel at one place: libraries,
        # which drop and reorder rows, can then be given many pixels at once
        eligible[:] = False
        eligible[17:-14:4, 17:-14:4] = True
    chosen: list[Pixel] = []
    for i in range(images):
        share = pixels // images + (i < pixels % images)
        if share:
            places = choose_pixels(share, radii[i], (radii[i] > 0) & eligible, seed, i).tolist()
            chosen += [
                Pixel(i, r, c, float(radii[i, r, c]), Crop(0, batch.shape[2], 0, batch.shape[3])) for r, c in places
            ]
    if crops:
        _windows(model, batch, chosen, stride)
    return Subject(name, note, model, claim, batch, radii.double(), chosen, certified, stride)


def _stack(pictures: Dataset, count: int) -> Tensor:
    every = max(1, len(pictures) // count)
    return torch.stack([pictures[i * every].image for i in range(count)])


def _trial(seed: int) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = [Normalise((0.5, 0.5, 0.5), None)]
    layers += [conv(3, 12, 2, stride=2, generator=generator), MaxMin()]
    layers += [conv(12, 12, 3, generator=generator), MaxMin()]
    layers += [conv(12, 48, 2, stride=2, generator=generator), MaxMin()]
    layers += [conv(48, 48, 3, generator=generator), MaxMin(), conv(48, 48, 3, generator=generator), MaxMin()]
    layers += [up(48, 12, generator=generator), MaxMin(), up(12, 6, generator=generator)]
    layers += [conv(6, 6, generator=generator)]
    network = nn.Sequential(*layers).eval()
    # plain convolutions of the same function: nothing is recomputed at a forward pass
    frozen: list[nn.Module] = []
    for layer in network:
        if hasattr(layer, "freeze"):
            weight, bias = layer.freeze()
            frozen.append(_frozen(layer, weight.detach(), bias.detach()))
        else:
            frozen.append(layer)
    return nn.Sequential(*frozen).eval().requires_grad_(False)


def _frozen(layer: nn.Module, weight: Tensor, bias: Tensor) -> nn.Module:
    plain: nn.Module
    if type(layer).__name__ == "OrthogonalUp2d":
        plain = nn.ConvTranspose2d(weight.shape[0], weight.shape[1], 2, 2)
    else:
        size = weight.shape[2]
        plain = nn.Conv2d(weight.shape[1], weight.shape[0], size, layer.stride, 1 if size == 3 else 0)
    plain.load_state_dict({"weight": weight, "bias": bias})
    return plain


def _plain(steps: int, seed: int) -> nn.Module:
    """A network of lipnet-xs' shape trained without any constraint: cross-entropy, Adam, batches of 8 scenes."""
    torch.manual_seed(seed)
    model = build(SIZES["XS"], plain=True).train()
    pictures = load_data(f"scenes:{min(200, 8 * steps)}:{seed + 100}")
    images, labels = zip(*[(picture.image, picture.labels) for picture in pictures], strict=True)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = torch.randint(len(images), (8,), generator=generator).tolist()
        logits = model(torch.stack([images[i] for i in batch]))
        loss = nn.functional.cross_entropy(logits, torch.stack([labels[i] for i in batch]).long(), ignore_index=255)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval().requires_grad_(False)


def _windows(model: Callable[[Tensor], Tensor], images: Tensor, pixels: list[Pixel], stride: int) -> None:
    """Gives every pixel a window around the support of its gradient, all of one size, aligned to the network's stride.

    A window is checked: at the image and at points 0.3 around it the pixel's logits must be those of the whole image.
    A pixel that fails keeps the whole image.
    """
    height, width = images.shape[-2:]
    boxes = torch.stack([_support(model, images[p.image], p) for p in pixels])  # (N, 4) top, bottom, left, right
    low, high = boxes[:, ::2] // stride * stride, -(-boxes[:, 1::2] // stride) * stride
    size = (high - low).amax(0)  # one shape for all, so that they fit into one batch
    for pixel, start in zip(pixels, low, strict=True):
        top, left = (int(min(s, full - wide)) for s, full, wide in zip(start, (height, width), size, strict=True))
        crop = Crop(top, top + int(size[0]), left, left + int(size[1]))
        image = images[pixel.image]
        noise = torch.randn(8, *image.shape, generator=torch.Generator().manual_seed(1))
        lengths = noise.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
        points = torch.cat([image[None], image + 0.3 * noise / lengths])
        with torch.no_grad():
            whole = model(points)[:, :, pixel.row, pixel.column]
            part = model(crop.cut(points))[:, :, pixel.row - top, pixel.column - left]
        if float((whole - part).abs().max()) <= 1e-5 * float(whole.amax() - whole.amin()):
            pixel.crop = crop


def _support(model: Callable[[Tensor], Tensor], image: Tensor, pixel: Pixel) -> Tensor:
    """Top, bottom, left and right of where the pixel's logits have a gradient at random points."""
    generator = torch.Generator().manual_seed(pixel.row * image.shape[2] + pixel.column)
    points = (image + torch.randn(8, *image.shape, generator=generator)).requires_grad_()
    logits = model(points)[:, :, pixel.row, pixel.column]
    weights = torch.randn(logits.shape, generator=generator)
    (gradient,) = torch.autograd.grad((weights * logits).sum(), points)
    support = (gradient != 0).any(0).any(0).nonzero()
    first, last = support.amin(0), support.amax(0) + 1
    return torch.stack([first[0], last[0], first[1], last[1]])
