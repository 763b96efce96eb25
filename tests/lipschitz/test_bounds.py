"""Pooling, interpolation, padding, activations and normalisations against their exact constants."""

import math

import pytest
import torch
from torch.nn import functional as F

from attackcheck.errors import InputError
from attackcheck.lipschitz.bounds import (
    ACTIVATIONS,
    activation,
    adaptive_average_pooling,
    average_pooling,
    batch_norm,
    interpolation,
    interpolation_per_pixel,
    max_pooling,
    normalisation,
    padding,
    scaling,
)


def close(bound, truth, ratio=1 + 1e-9):
    assert truth / ratio <= bound.lower <= truth * (1 + 1e-12)
    assert truth * (1 - 1e-15) <= bound.upper <= truth * ratio


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (5, 4)])
@pytest.mark.parametrize(
    "options",
    [(2,), (3, 2, 1), (3, 1, 1), (2, 2, 0, True), (3, 2, 1, True, False), (3, 1, 1, False, False),
     ((2, 3), (2, 1), (1, 0)), (3, 2, 1, True, True, 4), (2, 3, 0, False, True, 1)],
    ids=str,
)  # fmt: skip
def test_average_pooling(size, options, exact):
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    given = dict(zip(names, options, strict=False))
    close(average_pooling(size, *options), exact(lambda x: F.avg_pool2d(x, **given), (1, *size)))


@pytest.mark.parametrize(("size", "output"), [((8, 8), 1), ((7, 9), (3, 4)), ((5, 6), (None, 2)), ((4, 3), (8, 7))])
def test_adaptive_average_pooling(size, output, exact):
    close(adaptive_average_pooling(size, output), exact(lambda x: F.adaptive_avg_pool2d(x, output), (1, *size)))


@pytest.mark.parametrize(
    ("size", "options", "norm"),
    [((8, 8), (3, 1, 1), 3), ((8, 8), (3, 2, 1), 2), ((8, 8), (2,), 1), ((2, 8), (3, 1, 1), math.sqrt(6)),
     ((9, 9), (2, 1, 0, 3), 2), ((9, 9), (3, 2, 1, 1, True), 2), ((1, 1), (3, 1, 1), 1), ((4, 4), (5, 1, 2), 4)],
    ids=str,
)  # fmt: skip
def test_max_pooling(size, options, norm, exact):
    bound = max_pooling(size, *options)
    close(bound, norm, 1 + 1e-14)
    # A peak above a plain reaches it; no pair of random points may exceed it.
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    given = dict(zip(names, options, strict=False))
    peaks = torch.eye(math.prod(size), dtype=torch.float64).reshape(-1, 1, *size)
    moved = (F.max_pool2d(2 * peaks, **given) - F.max_pool2d(peaks, **given)).flatten(1).norm(dim=1)
    assert float(moved.max()) == pytest.approx(norm)


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(
    ("size", "pads"), [((5, 6), (1, 1, 1, 1)), ((3, 3), (2, 2, 2, 2)), ((4, 3), (0, 2, 1, 3)), ((3, 5), (1, 2))]
)
def test_padding(mode, size, pads, exact):
    four = (*pads, 0, 0)[:4]
    close(padding(size, pads, mode), exact(lambda x: F.pad(x, four, mode), (1, *size)), 1 + 1e-14)


@pytest.mark.parametrize(
    ("size", "target", "options"),
    [
        ((8, 8), (2.0, 2.0), {"mode": "nearest"}),
        ((5, 7), (8, 9), {"mode": "nearest"}),
        ((5, 7), (8, 9), {"mode": "nearest-exact"}),
        ((8, 8), (2.0, 2.0), {"mode": "bilinear"}),
        ((8, 8), (16, 16), {"mode": "bilinear", "align_corners": True}),
        ((7, 5), (3.0, 2.5), {"mode": "bilinear", "align_corners": False}),
        ((9, 8), (4, 5), {"mode": "bilinear", "antialias": True}),
        ((6, 6), (4.0, 4.0), {"mode": "bicubic"}),
        ((9, 8), (5, 5), {"mode": "bicubic", "antialias": True}),
        ((6, 5), (13, 3), {"mode": "area"}),
    ],
)
def test_interpolation(size, target, options, exact):
    given = {"size": target} if isinstance(target[0], int) else {"scale_factor": target}
    close(interpolation(size, target, **options), exact(lambda x: F.interpolate(x, **given, **options), (1, *size)))
    units = torch.eye(math.prod(size), dtype=torch.float64).reshape(-1, 1, *size)
    weights = F.interpolate(units, **given, **options).flatten(1)  # (inputs, outputs)
    close(interpolation_per_pixel(size, target, **options), float(weights.norm(dim=0).max()), 1 + 1e-12)
    loose = interpolation_per_pixel(size, target, **options, joint=False)
    close(loose, float(weights.abs().sum(0).max()), 1 + 1e-12)


def test_true_norms_that_are_often_taken_for_one():
    assert interpolation((16, 16), 2.0).upper == 2  # nearest
    assert interpolation((8, 8), 2.0, "bilinear", False).lower == pytest.approx(2.0, rel=1e-9)
    assert interpolation((8, 8), 2.0, "bilinear", True).lower == pytest.approx(2.086, abs=1e-3)
    assert interpolation_per_pixel((8, 8), 2.0, "bilinear", False).upper == 1
    assert interpolation_per_pixel((8, 8), 4.0, "bicubic", False).lower == pytest.approx(1.244, abs=1e-3)
    assert max_pooling((8, 8), 3, 1, 1).lower == 3
    assert max_pooling((8, 8), 3, 2, 1).lower == 2
    assert average_pooling((8, 8), 3, 1, 1, count_include_pad=False).lower == pytest.approx(1.0145, abs=1e-4)
    assert average_pooling((8, 8), 2).lower == pytest.approx(0.5)
    assert padding((5, 5), (1, 1, 1, 1), "reflect").lower == 2
    assert padding((3, 3), (1, 1, 1, 1), "reflect").lower == 3
    assert activation("gelu").lower == pytest.approx(1.129, abs=1e-3)
    assert activation("silu").lower == pytest.approx(1.0998, abs=1e-4)
    assert activation("hardswish").lower == 1.5
    assert activation("selu").lower == pytest.approx(1.758, abs=1e-3)


def test_other_numbers_of_axes():
    assert average_pooling((8,), 2).upper == pytest.approx(math.sqrt(0.5))
    assert max_pooling((8, 8, 8), 3, 1, 1).upper == pytest.approx(math.sqrt(27))
    assert interpolation((8, 8, 8), 2.0, "trilinear", False).upper == pytest.approx(math.sqrt(8))
    assert padding((8,), (1, 1), "circular").upper == pytest.approx(math.sqrt(2))


FUNCTIONS = {
    "relu": F.relu, "relu6": F.relu6, "abs": torch.abs, "tanh": torch.tanh, "softplus": F.softplus,
    "softsign": F.softsign, "logsigmoid": F.logsigmoid, "tanhshrink": F.tanhshrink, "softshrink": F.softshrink,
    "hardtanh": F.hardtanh, "sin": torch.sin, "cos": torch.cos, "atan": torch.atan, "leakyrelu": F.leaky_relu,
    "elu": F.elu, "celu": F.celu, "selu": F.selu, "gelu": F.gelu, "silu": F.silu, "mish": F.mish,
    "hardswish": F.hardswish, "hardsigmoid": F.hardsigmoid, "sigmoid": torch.sigmoid, "erf": torch.erf,
    "quickgelu": lambda x: x * torch.sigmoid(1.702 * x), "gelu-tanh": lambda x: F.gelu(x, approximate="tanh"),
    "identity": lambda x: x,
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_slopes(name):
    """The steepest chord of a fine grid: never above the bound, and as close as the curvature of a peak allows."""
    bound = activation("gelu", approximate="tanh") if name == "gelu-tanh" else activation(name)
    points = torch.arange(-80000, 80001, dtype=torch.float64) / 8192  # steps are powers of two: chords of 1 are exact
    values = FUNCTIONS[name](points)
    steepest = float(values.diff().abs().max() * 8192)
    assert steepest <= bound.upper * (1 + 1e-11)
    # A peak of the slope has a second derivative below 1 in all of these, so a chord misses h^2 / 6 of it at most.
    smooth = name in ("gelu", "gelu-tanh", "silu", "mish", "quickgelu")
    assert bound.lower <= steepest * (1 + (1e-8 if smooth else 1e-3))
    assert bound.upper <= bound.lower * (1 + 1e-9)


def test_options_of_activations():
    assert activation("LeakyReLU", negative_slope=-2.0).upper == 2
    assert activation("prelu", weight=torch.tensor([0.1, -3.0])).upper == 3
    assert activation("prelu", weight=torch.tensor(0.25)).upper == 1
    assert activation("elu", alpha=2.0).lower == 2
    assert activation("rrelu", lower=1.0, upper=2.0).upper == pytest.approx(1.5)
    assert activation("max_min").upper == activation("group-sort").upper == activation("householder").upper == 1
    assert activation("threshold", threshold=0.5, value=0.5).upper == 1
    assert activation("threshold", threshold=0.5, value=0.0).upper == math.inf
    assert activation("hardshrink").upper == math.inf
    with pytest.raises(InputError, match="no bound is known"):
        activation("swiglu")
    with pytest.raises(InputError):
        activation("prelu")


def test_every_activation_has_a_bound():
    for name in ACTIVATIONS:
        bound = activation(name, weight=0.5, classes=3)
        assert 0 <= bound.lower <= bound.upper


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_softmax_and_its_logarithm(classes):
    close(activation("softmax", classes=classes), 0.5, 1 + 1e-14)
    jacobian = torch.func.jacrev(lambda z: F.softmax(z, 0))
    even = torch.cat([torch.zeros(2), torch.full((classes - 2,), -90.0)]).double()
    assert float(torch.linalg.matrix_norm(jacobian(even), 2)) == pytest.approx(0.5)
    log_jacobian = torch.func.jacrev(lambda z: F.log_softmax(z, 0))
    sure = torch.cat([torch.zeros(1), torch.full((classes - 1,), -90.0)]).double()
    close(activation("logsoftmax", classes=classes), float(torch.linalg.matrix_norm(log_jacobian(sure), 2)))
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        logits = 4 * torch.randn(classes, dtype=torch.float64, generator=generator)
        assert float(torch.linalg.matrix_norm(jacobian(logits), 2)) <= 0.5 + 1e-12
        steepness = float(torch.linalg.matrix_norm(log_jacobian(logits), 2))
        assert steepness <= activation("logsoftmax", classes=classes).upper


def test_scales():
    assert scaling(torch.tensor([0.5, -3.0])).upper == 3
    assert scaling(0.1).upper == scaling(0.1).lower == 0.1
    assert scaling(torch.tensor([math.nan])).upper == math.inf
    gamma, variance = torch.tensor([1.0, -2.0]), torch.tensor([0.04, 3.0])
    close(batch_norm(gamma, variance, 1e-5), max(1 / math.sqrt(float(variance[0]) + 1e-5), 2 / math.sqrt(3 + 1e-5)))
    assert batch_norm(None, torch.zeros(2), 0.0).upper == math.inf


@pytest.mark.parametrize("shape", [(3, 2, 2), (2, 3, 1)])
def test_normalisations_are_steepest_at_constant_inputs(shape):
    gamma = torch.tensor([0.5, -2.0, 1.0][: shape[0]], dtype=torch.float64)
    operation = lambda x: F.layer_norm(x[None], shape, gamma[:, None, None].expand(shape), eps=1e-3)[0]  # noqa: E731
    jacobian = torch.func.jacrev(operation)(torch.zeros(shape, dtype=torch.float64))
    truth = float(torch.linalg.matrix_norm(jacobian.flatten(0, 2).flatten(1), 2))
    bound = normalisation(gamma, 1e-3, math.prod(shape))
    assert bound.lower <= truth * (1 + 1e-12) <= bound.upper * (1 + 1e-12)
    assert bound.upper == pytest.approx(2 / math.sqrt(1e-3), rel=1e-12)
    assert normalisation(None, 1e-5).upper == pytest.approx(316.23, abs=0.01)
    assert normalisation(gamma, 0.0).upper == math.inf


@pytest.mark.parametrize(
    "call",
    [
        lambda: average_pooling((2, 2), 5),
        lambda: average_pooling((8, 8), (2, 2, 2)),
        lambda: max_pooling((8, 8), 3, 1, 4),
        lambda: padding((3, 3), (3, 3), "reflect"),
        lambda: padding((3, 3), (1, 1), "mirror"),
        lambda: interpolation((4, 4), (2.0,), "bilinear"),
        lambda: interpolation((4, 4), 2.0, "lanczos"),
        lambda: adaptive_average_pooling((4, 4), (1, 1, 1)),
    ],
)
def test_what_torch_would_refuse(call):
    with pytest.raises(InputError):
        call()
