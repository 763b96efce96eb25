"""Networks that are no plain "images in [0, 1] to logits": what to wrap around each, and what becomes of its constant.

    attackcheck verify examples/adapters.py:dictionary

attackcheck examines a map from images (B, C, H, W) in [0, 1] to logits (B, K, H, W). Whatever stands between that and
your network belongs inside the model, and its norm inside the constant. Each function below is one such case, around a
network of known constant 1; replace `network()` by yours.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

import attackcheck as ac


class Inner(nn.Module):
    """Stands for your network: a convolution with orthonormal rows, so it is exactly 1-Lipschitz, at any image size."""

    def __init__(self, channels: int = 3, classes: int = 3) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(classes)
        square = torch.linalg.qr(torch.randn(max(channels, classes), max(channels, classes), generator=generator))[0]
        self.conv = nn.Conv2d(channels, classes, 1)
        with torch.no_grad():
            self.conv.weight.copy_(square[:classes, :channels, None, None])
            self.conv.bias.copy_(-self.conv.weight.flatten(1).sum(1) / 2)  # balanced at the grey image

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.conv(images)


def network(channels: int = 3, classes: int = 3) -> nn.Module:
    return Inner(channels, classes).eval()


class Adapted(nn.Module):
    """before(images) -> the network -> after(outputs, images)."""

    def __init__(self, inner: nn.Module, before=None, after=None) -> None:
        super().__init__()
        self.inner, self.before, self.after = inner, before, after

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        outputs = self.inner(images if self.before is None else self.before(images))
        return outputs if self.after is None else self.after(outputs, images)


class Returning(nn.Module):
    """A network that returns something else than a tensor."""

    def __init__(self, shape) -> None:
        super().__init__()
        self.net, self.shape = network(), shape

    def forward(self, images: torch.Tensor):
        return self.shape(self.net(images))


# Outputs -------------------------------------------------------------------------------------------------------------


def dictionary():
    """{"out": logits, "aux": ...}, as many libraries return: take the logits. Nothing changes."""
    inner = Returning(lambda logits: {"out": logits, "aux": None})
    return Adapted(inner, after=lambda outputs, _: outputs["out"]), ac.LipschitzClaim(1.0)


def several():
    """(logits, features): take the logits. (`(logits, L)` needs no adapter.)"""
    inner = Returning(lambda logits: (logits, logits.mean((2, 3))))
    return Adapted(inner, after=lambda outputs, _: outputs[0]), ac.LipschitzClaim(1.0)


def low_resolution():
    """Logits at half the resolution of the labels, upsampled inside the claim.

    Nearest or bilinear upsampling by s repeats numbers: the joint constant grows by s. Each pixel's own logits are
    averages of others, so the constant of single pixels stays. (Bicubic is no average: 1.244 per pixel.) Average
    pooling 2x2, which stands for the encoder, has norm 1/2.
    """

    def up(logits, images):
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)

    claim = ac.LipschitzClaim(2.0 * 0.5, pixel=0.5)
    return Adapted(network(), before=lambda images: F.avg_pool2d(images, 2), after=up), claim


def one_class():
    """One sigmoid output s (foreground where s > 0) as two classes with logits -s/2 and s/2.

    The pair moves by |ds| / sqrt(2), so the constant is L / sqrt(2), and the radius |s| / L comes out exactly.
    """

    def pair(outputs, _):
        return torch.cat([-outputs, outputs], dim=1) / 2

    return Adapted(network(classes=1), after=pair), ac.LipschitzClaim(1.0 / math.sqrt(2.0))


def without_void():
    """A class that is never predicted (void, ignore index): leave its logit out, which cannot raise the constant.

    Labels of 255 are ignored in accuracies anyway; what the network says there is certified like everything else.
    """
    return Adapted(network(channels=4, classes=4), before=_grey_beside, after=_without_last), ac.LipschitzClaim(
        math.sqrt(4 / 3)
    )


def _grey_beside(images):
    """A fourth channel, the mean of three: |mean|^2 <= |rgb|^2 / 3, so the norm is sqrt(1 + 1/3)."""
    return torch.cat([images, images.mean(1, keepdim=True)], dim=1)


def _without_last(outputs, _):
    return outputs[:, :-1]


# Inputs --------------------------------------------------------------------------------------------------------------


def bytes_and_channels_last():
    """A network of images (B, H, W, C) in 0..255: scale and transpose inside; the constant is 255 times its own.

    This network divides by 255 itself, so its own constant is 1 / 255.
    """

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.net(images.permute(0, 3, 1, 2) / 255)

    return Adapted(Last(), before=lambda images: (images * 255).permute(0, 2, 3, 1)), ac.LipschitzClaim(255.0 / 255.0)


def normalised():
    """(x - mean) / std inside the model; the constant is multiplied by 1 / min(std)."""
    mean, std = torch.tensor([0.49, 0.46, 0.41])[:, None, None], torch.tensor([0.23, 0.22, 0.225])[:, None, None]
    return Adapted(network(), before=lambda images: (images - mean.to(images)) / std.to(images)), ac.LipschitzClaim(
        1 / 0.22
    )


def grey():
    """A network of grey images on coloured ones: the weights' norm is part of the constant.

    Grey images themselves need no adapter: `arrays:FILE.npz` takes any number of channels.
    """
    weights = (0.299, 0.587, 0.114)

    def luminance(images):
        return (images * torch.tensor(weights).to(images)[:, None, None]).sum(1, keepdim=True)

    return Adapted(network(channels=1, classes=2), before=luminance), ac.LipschitzClaim(math.hypot(*weights))


def any_size():
    """A network that takes multiples of 8 only: pad with zeros inside, crop the logits. Neither raises the constant."""

    def pad(images):
        height, width = images.shape[-2:]
        return F.pad(images, (0, -width % 8, 0, -height % 8))

    def crop(logits, images):
        return logits[..., : images.shape[-2], : images.shape[-1]]

    return Adapted(network(), before=pad, after=crop), ac.LipschitzClaim(1.0)


CASES = (
    dictionary, several, low_resolution, one_class, without_void, bytes_and_channels_last, normalised, grey, any_size,
)  # fmt: skip
