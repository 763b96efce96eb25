"""Sound networks in odd clothes: other types, layouts, orders, wrappers and parametrisations."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attackcheck.claims import LipschitzClaim
from attackcheck.faults.case import Built, Family, control
from attackcheck.faults.networks import orthogonal_convolution, pictures, random, rotation, sandwich
from attackcheck.faults.proofs import bounded
from attackcheck.faults.subjects import network

__all__ = ["CASES"]


class _InType(nn.Module):
    """A network that computes in another type inside."""

    def __init__(self, inner: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.dtype = inner, dtype

    def forward(self, x: Tensor) -> Tensor:
        weights = {name: value.to(self.dtype) for name, value in self.inner.state_dict().items()}
        result: Tensor = torch.func.functional_call(self.inner, weights, (x.to(self.dtype),))
        return result.to(x.dtype)


@control(Family.SOUND, "a network that computes in float64")
def double_model(seed: int) -> Built:
    """The certificate's logits are exact."""
    model, images, lipschitz = network(seed, "double")
    return Built(_InType(model, torch.float64).eval(), LipschitzClaim(lipschitz), images)


@control(Family.SOUND, "a network that computes in bfloat16; a claim about real numbers does not speak of its steps")
def bfloat16_model(seed: int) -> Built:
    """Flips inside the radius are at most DEPLOYED_ONLY."""
    model, images, lipschitz = network(seed, "bfloat")
    return Built(_InType(model, torch.bfloat16).eval(), LipschitzClaim(lipschitz), images)


class _Shifted(nn.Module):
    """A huge number is added and taken away again."""

    def __init__(self, inner: nn.Module, offset: float) -> None:
        super().__init__()
        self.inner, self.offset = inner, offset

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = (self.inner(x) + self.offset) - self.offset
        return result


@control(Family.SOUND, "huge biases that compensate each other: float32 logits are wrong by up to 0.06")
def compensating_biases(seed: int) -> Built:
    """DEPLOYED_ONLY or ROUNDING at most."""
    model, images, lipschitz = network(seed, "biases")
    return Built(_Shifted(model, 2.0**20).eval(), LipschitzClaim(lipschitz), images)


class _Clamped(nn.Module):
    """Brings images back into [0, 1] first: a projection, of norm one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x.clamp(0.0, 1.0))
        return result


@control(Family.SOUND, "the model clamps its input to [0, 1]")
def clamped_input(seed: int) -> Built:
    """Some gradients are zero at the edge of the cube."""
    model, images, lipschitz = network(seed, "clamped")
    return Built(_Clamped(model).eval(), LipschitzClaim(lipschitz), images.round())


class _Permuted(nn.Module):
    """Classes in another order."""

    def __init__(self, inner: nn.Module, order: tuple[int, ...]) -> None:
        super().__init__()
        self.inner, self.order = inner, order

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x)[:, list(self.order)]
        return result


@control(Family.SOUND, "classes in another order")
def classes_permuted(seed: int) -> Built:
    """Nothing else."""
    model, images, lipschitz = network(seed, "order")
    return Built(_Permuted(model, (2, 0, 3, 1)).eval(), LipschitzClaim(lipschitz), images)


class _MirrorMean(nn.Module):
    """The mean of the logits of an image and of its mirror image, mirrored back."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = (self.inner(x) + self.inner(x.flip(3)).flip(3)) / 2
        return result


@control(Family.SOUND, "logits are averaged over mirrored images: a mean keeps the constant")
def mirror_mean(seed: int) -> Built:
    """Test-time augmentation done right."""
    model, images, lipschitz = network(seed, "mirror")
    return Built(_MirrorMean(model).eval(), LipschitzClaim(lipschitz), images)


@control(Family.SOUND, "dropout, switched off in evaluation", prove=bounded)
def dropout_switched_off(seed: int) -> Built:
    """A module, not a function."""
    model, images, lipschitz = network(seed, "dropout")
    return Built(nn.Sequential(nn.Dropout(0.5), *model).eval(), LipschitzClaim(lipschitz), images)


@control(Family.SOUND, "a strided convolution under the bound of stride 1", prove=bounded)
def strided_under_the_bound_of_stride_one(seed: int) -> Built:
    """Leaving rows out cannot increase a norm."""
    g = random(seed, "strided")
    images = pictures(g)
    dense = orthogonal_convolution(12, g)
    strided = nn.Conv2d(12, 12, 3, stride=2, padding=1).requires_grad_(False)
    strided.load_state_dict(dense.state_dict())
    model = sandwich(nn.Sequential(strided, nn.Upsample(scale_factor=2, mode="nearest")), images, g)
    return Built(model, LipschitzClaim(2.0 * (1 + 1e-5)), images)


@control(Family.SOUND, "weights and images in channels-last layout", prove=bounded)
def channels_last(seed: int) -> Built:
    """Other kernels, other order of sums."""
    model, images, lipschitz = network(seed, "layout")
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Built(model, LipschitzClaim(lipschitz), images.contiguous(memory_format=torch.channels_last))


class _Masked(nn.Module):
    """A class that is never to be predicted."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.inner(x)
        return torch.cat([logits, torch.full_like(logits[:, :1], -1e30)], 1)


@control(Family.SOUND, "a class is masked by a logit of -1e30")
def masked_class(seed: int) -> Built:
    """Beside it all other logits look like rounding."""
    model, images, lipschitz = network(seed, "masked")
    return Built(_Masked(model).eval(), LipschitzClaim(lipschitz), images)


class _Rotated(nn.Module):
    """A layer whose weight is recomputed from a parametrisation at each call."""

    def __init__(self, g: torch.Generator) -> None:
        super().__init__()
        layer = nn.Conv2d(12, 12, 1, bias=False)
        with torch.no_grad():
            layer.weight.copy_(rotation(12, g)[:, :, None, None])
        self.inner = nn.utils.parametrizations.weight_norm(layer)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x)
        return result


@control(Family.SOUND, "a parametrised layer, recomputed at every call")
def parametrised_layer(seed: int) -> Built:
    """Its copy must not lose it."""
    g = random(seed, "parametrised")
    images = pictures(g)
    model = sandwich(_Rotated(g), images, g)
    return Built(model, LipschitzClaim(1.0 + 1e-5), images)


CASES = (
    double_model,
    bfloat16_model,
    compensating_biases,
    clamped_input,
    classes_permuted,
    mirror_mean,
    dropout_switched_off,
    strided_under_the_bound_of_stride_one,
    channels_last,
    masked_class,
    parametrised_layer,
)
