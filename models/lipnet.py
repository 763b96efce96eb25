"""LipNet: a DeepLabV3-like network of orthogonal layers without skip connections.

After Massena, Friedrich, Mamalet and Serrurier, "Fast and flexible robustness certificates for semantic segmentation",
arXiv 2512.06010: normalisation first, a strided encoder, four dilated convolutions side by side, transposed
convolutions as decoder, a 1x1 classifier. The widths and depths in `SIZES` are ours, only the names are the paper's.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .constants import Constants, layer_norm, outward
from .layers import MaxMin, Normalise, Padding, check_size, conv, up

__all__ = ["SIZES", "LipNet", "LipNetConfig"]


@dataclass(frozen=True)
class LipNetConfig:
    """Everything that shapes a LipNet. `stages[0]` blocks of `widths[0]` channels work at half the image's resolution,
    each further stage halves it again; `decoder` are the channels after each doubling, the last at full resolution.
    """

    classes: int
    channels: int = 3
    widths: tuple[int, ...] = (16, 32)
    stages: tuple[int, ...] = (1, 2)
    branch: int = 32
    dilations: tuple[int, ...] = (1, 2, 4, 8)
    decoder: tuple[int, ...] = (16, 8)
    refine: tuple[int, ...] = (1, 0)
    upsample: int = 1
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] | None = None
    padding: Padding = "zeros"
    rms: bool = False

    @property
    def stride(self) -> int:
        """Height and width of an image must be multiples of this."""
        return int(2 ** len(self.widths))

    def resized(self, width: int) -> "LipNetConfig":
        """The same shape with `width` channels at half resolution, and the others in proportion (even numbers)."""

        def scaled(value: int) -> int:
            return max(2, 2 * round(value * width / self.widths[0] / 2))

        widths, decoder = tuple(map(scaled, self.widths)), tuple(map(scaled, self.decoder))
        return replace(self, widths=widths, decoder=decoder, branch=scaled(self.branch))


class _Pyramid(nn.Module):
    """Dilated convolutions side by side, concatenated and divided by the root of their number: again of norm one."""

    def __init__(self, inputs: int, branch: int, dilations: tuple[int, ...], padding: Padding, plain: bool,
                 generator: torch.Generator | None, rms: bool) -> None:  # fmt: skip
        super().__init__()
        self.branches = nn.ModuleList(
            conv(inputs, branch, 3, dilation=d, padding=padding, plain=plain, generator=generator, rms=rms)
            for d in dilations
        )
        self.scale: float = len(dilations) ** -0.5

    def forward(self, values: Tensor) -> Tensor:
        return torch.cat([branch(values) for branch in self.branches], 1) * self.scale

    def constant(self) -> float:
        return outward(self.scale * sum(layer_norm(branch) ** 2 for branch in self.branches) ** 0.5)


class LipNet(nn.Module):
    """Images (B, C, H, W) in [0, 1] -> logits (B, K, H, W), 1-Lipschitz jointly (up to 1/min(std), upsampling and rms).

    `plain=True` builds the same structure of nn.Conv2d and nn.ConvTranspose2d, which takes up exported weights.
    Raises InputError when height or width is no multiple of `config.stride`.
    """

    def __init__(self, config: LipNetConfig, *, plain: bool = False, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config

        def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
            layer = conv(inputs, outputs, kernel, stride=stride, padding=config.padding, rms=config.rms,
                         plain=plain, generator=generator)  # fmt: skip
            return [layer, MaxMin()]

        layers: list[nn.Module] = [Normalise(config.mean, config.std)]
        width = config.channels
        for outputs, blocks in zip(config.widths, config.stages, strict=True):
            # The first layer sees each 2x2 block once: at full resolution nothing but a rearrangement is computed.
            layers += convolution(width, outputs, 2 if width == config.channels else 3, stride=2)
            width = outputs
            for _ in range(blocks):
                layers += convolution(width, width, 3)
        layers += [
            _Pyramid(width, config.branch, config.dilations, config.padding, plain, generator, config.rms),
            MaxMin(),
        ]
        layers += convolution(config.branch * len(config.dilations), width, 1)
        for outputs, blocks in zip(config.decoder, config.refine, strict=True):
            layers += [up(width, outputs, rms=config.rms, plain=plain, generator=generator), MaxMin()]
            width = outputs
            for _ in range(blocks):
                layers += convolution(width, width, 3)
        layers.append(conv(width, config.classes, plain=plain, generator=generator))
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        check_size(images, self.config.stride)
        logits: Tensor = self.layers(images)
        if self.config.upsample > 1:
            size = [self.config.upsample * logits.shape[-2], self.config.upsample * logits.shape[-1]]
            logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)
        return logits

    def constants(self) -> Constants:
        """Proven upper bounds of the Lipschitz constants of a plain network (float64 arithmetic on its weights)."""
        norm = layer_norm(self.layers)
        # Each pixel is a convex combination of logit vectors, and each logit vector serves upsample^2 pixels.
        return Constants(joint=outward(norm * self.config.upsample), pixel=norm)


_XS = LipNetConfig(classes=7)
SIZES: dict[str, LipNetConfig] = {
    "XS": _XS,
    "S": replace(_XS, widths=(24, 48), stages=(2, 3), branch=48, decoder=(24, 12), refine=(1, 0)),
    "M1": replace(_XS, widths=(32, 64, 128), stages=(1, 2, 2), branch=64, decoder=(64, 32, 16), refine=(1, 1, 0)),
    "M2": replace(_XS, widths=(48, 96, 192), stages=(1, 2, 3), branch=96, decoder=(96, 48, 16), refine=(1, 1, 0)),
    "L": replace(_XS, widths=(64, 128, 256), stages=(2, 3, 4), branch=128, decoder=(128, 64, 16), refine=(1, 1, 1)),
    "XL": replace(_XS, widths=(96, 192, 384), stages=(2, 4, 6), branch=192, decoder=(192, 96, 24), refine=(2, 2, 1)),
}
