"""IsoUNet: a U-Net that is exactly 1-Lipschitz although it has skip connections.

At each level half of the channels skip; the other half go down through an orthogonal 2x2 convolution with stride 2, are
decoded, and come back up through the adjoint of such a convolution. The two halves are a partition, so concatenating
them again needs no scaling: the norm of the whole is the larger of the two norms, not the root of their squares' sum.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .constants import Constants, layer_norm, outward
from .layers import MaxMin, Normalise, Padding, check_size, conv, up

__all__ = ["SIZES", "IsoUNet", "IsoUNetConfig"]


@dataclass(frozen=True)
class IsoUNetConfig:
    """Everything that shapes an IsoUNet. Level 0 works at half the image's resolution with `width` channels; each of
    the `depth` further levels halves it and doubles the channels, which keeps every number: 2x2 blocks become channels.
    `before` and `after` are the 3x3 convolutions of a level before the split and after the concatenation.
    """

    classes: int
    channels: int = 3
    width: int = 16
    depth: int = 2
    before: int = 1
    after: int = 1
    bottom: int = 2
    head: int = 8
    refine: int = 0
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] | None = None
    padding: Padding = "zeros"

    @property
    def stride(self) -> int:
        """Height and width of an image must be multiples of this."""
        return int(2 ** (self.depth + 1))

    def resized(self, width: int) -> "IsoUNetConfig":
        """The same shape with `width` channels at half resolution; the head keeps its channels."""
        return replace(self, width=width)


class _Level(nn.Module):
    """One level: convolutions, split, the lower level between down and up, concatenation, convolutions."""

    def __init__(
        self, config: IsoUNetConfig, width: int, depth: int, plain: bool, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        half = width // 2

        def convolutions(count: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for _ in range(count):
                layers += [conv(width, width, 3, padding=config.padding, plain=plain, generator=generator), MaxMin()]
            return nn.Sequential(*layers)

        self.skipped = half
        self.before = convolutions(config.before)
        self.lower = nn.Sequential(
            conv(half, 2 * width, 2, stride=2, plain=plain, generator=generator),
            MaxMin(),
            _level(config, 2 * width, depth - 1, plain, generator),
            up(2 * width, half, plain=plain, generator=generator),
        )
        self.after = convolutions(config.after)

    def forward(self, values: Tensor) -> Tensor:
        values = self.before(values)
        skip, down = values[:, : self.skipped], values[:, self.skipped :]
        result: Tensor = self.after(torch.cat([skip, self.lower(down)], 1))
        return result

    def constant(self) -> float:
        return outward(layer_norm(self.before) * max(1.0, layer_norm(self.lower)) * layer_norm(self.after))


def _level(config: IsoUNetConfig, width: int, depth: int, plain: bool, generator: torch.Generator | None) -> nn.Module:
    if depth:
        return _Level(config, width, depth, plain, generator)
    layers: list[nn.Module] = []
    for _ in range(config.bottom):
        layers += [conv(width, width, 3, padding=config.padding, plain=plain, generator=generator), MaxMin()]
    return nn.Sequential(*layers)


class IsoUNet(nn.Module):
    """Images (B, C, H, W) in [0, 1] -> logits (B, K, H, W), jointly 1-Lipschitz (up to 1/min(std)).

    `plain=True` builds the same structure of nn.Conv2d and nn.ConvTranspose2d, which takes up exported weights.
    Raises InputError when height or width is no multiple of `config.stride`.
    """

    def __init__(self, config: IsoUNetConfig, *, plain: bool = False, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        layers: list[nn.Module] = [
            Normalise(config.mean, config.std),
            conv(config.channels, config.width, 2, stride=2, plain=plain, generator=generator),
            MaxMin(),
            _level(config, config.width, config.depth, plain, generator),
            up(config.width, config.head, plain=plain, generator=generator),
            MaxMin(),
        ]
        for _ in range(config.refine):
            layers += [
                conv(config.head, config.head, 3, padding=config.padding, plain=plain, generator=generator),
                MaxMin(),
            ]
        layers.append(conv(config.head, config.classes, plain=plain, generator=generator))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        check_size(images, self.config.stride)
        logits: Tensor = self.layers(images)
        return logits

    def constants(self) -> Constants:
        """Proven upper bounds of the Lipschitz constants of a plain network (float64 arithmetic on its weights)."""
        norm = layer_norm(self.layers)
        return Constants(joint=norm, pixel=norm)


_XS = IsoUNetConfig(classes=7)
SIZES: dict[str, IsoUNetConfig] = {
    "XS": _XS,
    "S": replace(_XS, width=24, before=2, after=2),
    "M1": replace(_XS, width=32, depth=3, before=1, after=1, head=12),
    "M2": replace(_XS, width=48, depth=3, before=2, after=2, head=12, refine=1),
    "L": replace(_XS, width=64, depth=3, before=2, after=2, bottom=4, head=16, refine=1),
    "XL": replace(_XS, width=96, depth=3, before=3, after=3, bottom=6, head=24, refine=1),
}
