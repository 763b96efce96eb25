"""Constants that were right once, of other weights, another size or another mode."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attackcheck.claims import LipschitzClaim
from attackcheck.faults.case import Built, Family, control, fault, scaled_fault
from attackcheck.faults.networks import convolution, isometric, orthogonal_convolution, pictures, random
from attackcheck.faults.norms import operator_norm, product_of_norms
from attackcheck.faults.proofs import bounded, expanded, paired
from attackcheck.faults.subjects import CHANNELS, SHAPE, claimed

__all__ = ["CASES"]


def _layer(g: torch.Generator) -> nn.Module:
    return convolution(torch.randn(CHANNELS, CHANNELS, 3, 3, generator=g, dtype=torch.float64) / 10, padding=1)


def _loaded(seed: int, severity: float, measure_first: bool) -> Built:
    g = random(seed, "loaded")
    images = pictures(g)
    layer, trained = _layer(g), _layer(g)
    before = operator_norm(layer, SHAPE)
    state = trained.state_dict()
    state["weight"] = state["weight"] * (severity * before / operator_norm(trained, SHAPE))
    layer.load_state_dict(state)
    constant = before if measure_first else operator_norm(layer, SHAPE)
    return claimed(layer, constant, images, g, "explicit matrix")


@scaled_fault(
    Family.STATE,
    "the constant is computed when the network is made, before its trained weights are loaded",
    prove=expanded,
    knob="norm of the trained layer over that of the fresh one",
    severities=(2.0, 1.1, 1.01, 1.003),
)
def constant_before_loading(seed: int, severity: float) -> Built:
    """A constructor is a tempting place for it."""
    return _loaded(seed, severity, measure_first=True)


@control(Family.STATE, "the constant is computed after the weights are loaded", prove=bounded)
def constant_after_loading(seed: int) -> Built:
    """The twin."""
    return _loaded(seed, 2.0, measure_first=False)


@scaled_fault(
    Family.STATE,
    "an orthogonal layer is fine-tuned without its parametrisation, under the constant that it had",
    prove=expanded,
    knob="standard deviation of the change of each weight",
    severities=(0.05, 0.01, 0.003, 0.001),
)
def constant_before_fine_tuning(seed: int, severity: float) -> Built:
    """Averages of weights, pruning and fine-tuning all leave the set of orthogonal kernels."""
    g = random(seed, "tuned")
    images = pictures(g)
    layer = orthogonal_convolution(CHANNELS, g)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.add_(severity * torch.randn(weight.shape, generator=g))
    return claimed(layer, 1.0, images, g, "orthogonal by construction")


@scaled_fault(
    Family.STATE,
    "weights are rounded to few bits for deployment, under the constant of the float32 weights",
    prove=expanded,
    knob="bits per weight",
    severities=(3, 4, 6, 8),
)
def weights_quantised_afterwards(seed: int, severity: float) -> Built:
    """Rounding is a perturbation of the kernel like any other."""
    g = random(seed, "bits")
    images = pictures(g)
    layer = orthogonal_convolution(CHANNELS, g)
    with torch.no_grad():
        for weight in layer.parameters():
            step = weight.abs().max() / (2 ** (int(severity) - 1) - 1)
            weight.copy_((weight / step).round() * step)
    return claimed(layer, 1.0, images, g, "orthogonal by construction")


@scaled_fault(
    Family.STATE,
    "the constant is computed on a small map for speed, and kept for larger images",
    prove=expanded,
    knob="height and width of the small map, against 6",
    severities=(2, 3, 4, 5),
)
def constant_of_another_size(seed: int, severity: float) -> Built:
    """Under zero padding the norm grows with the map."""
    g = random(seed, "size")
    images = pictures(g)
    layer = _layer(g)
    small = int(severity)
    return claimed(layer, operator_norm(layer, (CHANNELS, small, small)), images, g, "explicit matrix, cached")


class _BatchNorm(nn.BatchNorm2d):
    """Statistics of a data set with much contrast."""

    def __init__(self) -> None:
        super().__init__(CHANNELS)
        if self.running_var is not None:
            self.running_var.fill_(4.0)
        self.eval().requires_grad_(False)


@fault(
    Family.STATE,
    "the network is deployed in training mode, its batch normalisation divides by the contrast of the batch at hand",
    prove=expanded,
    refusable=True,
)
def training_mode(seed: int) -> Built:
    """The constant is that of the stored statistics."""
    g = random(seed, "mode")
    images = pictures(g)
    built = claimed(_BatchNorm(), 0.5, images, g, "stored statistics")
    built.model.train()
    return built


@control(Family.STATE, "the same network in evaluation mode", prove=bounded)
def evaluation_mode(seed: int) -> Built:
    """The twin."""
    g = random(seed, "mode")
    images = pictures(g)
    return claimed(_BatchNorm(), 0.5, images, g, "stored statistics")


class _Adapting(nn.Module):
    """Subtracts a mean that follows the images that it has seen, also in evaluation."""

    mean: Tensor

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.register_buffer("mean", torch.zeros(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            self.mean.lerp_(images.detach().mean((0, 2, 3))[:, None, None].to(self.mean), 0.1)
        result: Tensor = self.inner(images - self.mean.clone())
        return result


@fault(
    Family.STATE,
    "a running mean is updated at test time: the network of the certificate is not that of the next image",
    prove=paired,
    refusable=True,
)
def adapts_at_test_time(seed: int) -> Built:
    """The same image, twice, has different logits."""
    g = random(seed, "adapting")
    images = pictures(g)
    inner = isometric(images, g)
    model = _Adapting(inner).eval()
    return Built(model, LipschitzClaim(product_of_norms(inner, images[0])), images, pair=(images[0], images[0]))


CASES = (
    constant_before_loading,
    constant_after_loading,
    constant_before_fine_tuning,
    weights_quantised_afterwards,
    constant_of_another_size,
    training_mode,
    evaluation_mode,
    adapts_at_test_time,
)
