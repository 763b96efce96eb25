"""Layers against the singular values of their explicit matrices (float64, small sizes)."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from attackcheck.errors import InputError
from attackcheck.models.constants import kernel_norm
from attackcheck.models.layers import MaxMin, Normalise, OrthogonalConv2d, OrthogonalUp2d, conv, orthonormal, up

KERNELS = [(1, 1, 1), (2, 2, 1), (3, 1, 1), (3, 1, 2), (3, 2, 1)]
CHANNELS = [(1, 4), (2, 6), (3, 3), (5, 4), (4, 8)]


def seeded(number: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def matrix(layer: nn.Module, channels: int, size: int = 8) -> Tensor:
    """The explicit matrix of the linear part of a layer on (channels, size, size)."""
    units = torch.eye(channels * size**2, dtype=torch.float64).view(-1, channels, size, size)
    columns: Tensor = layer(units) - layer(torch.zeros_like(units[:1]))
    return columns.detach().flatten(1).mT


def stressed(layer: nn.Module) -> nn.Module:
    """The layer in float64 evaluation mode, with raw parameters far from orthonormal."""
    generator = seeded(7)
    with torch.no_grad():
        for name, value in layer.named_parameters():
            if name != "bias":
                value.add_(torch.randn(value.shape, generator=generator), alpha=0.5)
    return layer.double().eval()


@pytest.mark.parametrize(("kernel", "stride", "dilation"), KERNELS)
@pytest.mark.parametrize(("inputs", "outputs"), CHANNELS)
def test_on_the_torus_every_convolution_is_orthogonal(
    kernel: int, stride: int, dilation: int, inputs: int, outputs: int
) -> None:
    layer = stressed(
        OrthogonalConv2d(
            inputs, outputs, kernel, stride=stride, dilation=dilation, padding="circular", generator=seeded()
        )
    )
    values = torch.linalg.svdvals(matrix(layer, inputs))
    assert values.max() == pytest.approx(1, abs=1e-9)
    assert values.min() == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize(("kernel", "stride", "dilation"), KERNELS)
@pytest.mark.parametrize(("inputs", "outputs"), CHANNELS)
def test_zero_padding_never_enlarges(kernel: int, stride: int, dilation: int, inputs: int, outputs: int) -> None:
    layer = stressed(OrthogonalConv2d(inputs, outputs, kernel, stride=stride, dilation=dilation, generator=seeded(1)))
    assert torch.linalg.svdvals(matrix(layer, inputs)).max() <= 1 + 1e-9


@pytest.mark.parametrize(("inputs", "outputs"), [(4, 1), (8, 3), (6, 2), (3, 5)])
def test_upsampling_is_orthogonal(inputs: int, outputs: int) -> None:
    values = torch.linalg.svdvals(matrix(stressed(OrthogonalUp2d(inputs, outputs)), inputs, 4))
    assert values.max() == pytest.approx(1, abs=1e-9)
    assert values.min() == pytest.approx(1, abs=1e-9)


def test_orthonormal_leaves_an_orthonormal_matrix_alone() -> None:
    raw = orthonormal(torch.randn(3, 7, 4, dtype=torch.float64, generator=seeded()))
    torch.testing.assert_close(orthonormal(raw), raw, rtol=0, atol=1e-14)
    torch.testing.assert_close(raw.mT @ raw, torch.eye(4, dtype=torch.float64).expand(3, 4, 4), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("kernel", "stride", "dilation"), KERNELS)
def test_gradients_reach_every_raw_parameter(kernel: int, stride: int, dilation: int) -> None:
    layer = OrthogonalConv2d(4, 6, kernel, stride=stride, dilation=dilation, generator=seeded()).double()
    image = torch.randn(2, 4, 8, 8, dtype=torch.float64, generator=seeded(1))
    names = [name for name, _ in layer.named_parameters()]

    def loss(*values: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(layer, dict(zip(names, values, strict=True)), image)
        return output.pow(3).sum()

    layer.train()
    parameters = tuple(layer.parameters())
    gradients = torch.autograd.grad(loss(*parameters), parameters)
    assert all(bool(gradient.abs().max() > 1e-6) for name, gradient in zip(names, gradients, strict=True))
    direction = [torch.randn(p.shape, dtype=p.dtype, generator=seeded(2)) for p in parameters]
    step = 1e-6
    with torch.no_grad():
        high = loss(*(p + step * d for p, d in zip(parameters, direction, strict=True)))
        low = loss(*(p - step * d for p, d in zip(parameters, direction, strict=True)))
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))
    assert float(high - low) / (2 * step) == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize(("kernel", "stride", "dilation"), KERNELS)
def test_the_plain_layer_is_the_same_function(kernel: int, stride: int, dilation: int, rms: bool) -> None:
    layer = OrthogonalConv2d(3, 8, kernel, stride=stride, dilation=dilation, rms=rms, generator=seeded())
    images = torch.rand(4, 3, 8, 12, generator=seeded(1))
    for _ in range(3):
        layer(images)  # moves the running mean
    layer.eval()
    twin = conv(3, 8, kernel, stride=stride, dilation=dilation, plain=True)
    twin.load_state_dict(layer.freeze()._asdict())
    torch.testing.assert_close(twin(images), layer(images), rtol=0, atol=1e-6)
    if rms:
        assert float(layer.rms) != 1
        assert kernel_norm(layer.kernel() / layer.rms, stride) == pytest.approx(1 / float(layer.rms), rel=1e-5)


def test_the_plain_transposed_layer_is_the_same_function() -> None:
    layer, twin = OrthogonalUp2d(8, 3, generator=seeded()), up(8, 3, plain=True)
    images = torch.rand(4, 8, 3, 5, generator=seeded(1))
    layer(images)
    layer.eval()
    twin.load_state_dict(layer.freeze()._asdict())
    torch.testing.assert_close(twin(images), layer(images), rtol=0, atol=1e-6)


def test_two_evaluations_agree_to_the_bit_and_leave_no_trace() -> None:
    layer = OrthogonalConv2d(3, 8, 3, stride=2, generator=seeded()).eval()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(layer(images), layer(images))
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_a_fresh_layer_takes_the_state_of_a_trained_one() -> None:
    layer = OrthogonalConv2d(3, 8, 3, generator=seeded())
    layer(torch.rand(2, 3, 8, 8))
    fresh = OrthogonalConv2d(3, 8, 3, generator=seeded(5)).eval()
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(fresh.freeze().bias, layer.freeze().bias)


def test_maxmin_sorts_pairs_and_its_gradient_is_a_permutation() -> None:
    values = torch.randn(2, 6, 3, 3, generator=seeded(), requires_grad=True)
    sorted_values = MaxMin()(values)
    first, second = values.chunk(2, 1)
    assert torch.equal(sorted_values, torch.cat([torch.maximum(first, second), torch.minimum(first, second)], 1))
    weights = torch.randn(sorted_values.shape, generator=seeded(1))
    (gradient,) = torch.autograd.grad((sorted_values * weights).sum(), values)
    assert torch.equal(gradient.flatten().sort().values, weights.flatten().sort().values)


def test_maxmin_passes_on_a_nan() -> None:
    for place in (0, 1):
        values = torch.zeros(1, 2, 1, 1)
        values[0, place] = torch.nan
        assert bool(MaxMin()(values).isnan().any())


def test_normalise_divides_by_the_deviation_only_when_asked() -> None:
    image = torch.full((1, 2, 1, 1), 0.75)
    assert Normalise((0.5, 0.25), None)(image).flatten().tolist() == [0.25, 0.5]
    assert Normalise((0.5, 0.25), (0.5, 0.25))(image).flatten().tolist() == [0.5, 2.0]


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(5, 1, 1), (2, 1, 1), (3, 2, 2), (1, 2, 1), (4, 4, 1)])
@pytest.mark.parametrize("plain", [False, True])
def test_other_kernels_are_refused(kernel: int, stride: int, dilation: int, plain: bool) -> None:
    with pytest.raises(InputError, match="expected a kernel"):
        conv(3, 3, kernel, stride=stride, dilation=dilation, plain=plain)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (2, 2), (3, 1), (3, 2), (5, 1), (5, 2), (4, 3)])
@pytest.mark.parametrize(("inputs", "outputs"), [(2, 3), (4, 2)])
def test_the_bound_holds_for_arbitrary_kernels(kernel: int, stride: int, inputs: int, outputs: int) -> None:
    weight = torch.randn(outputs, inputs, kernel, kernel, dtype=torch.float64, generator=seeded())
    plain = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False, dtype=torch.float64)
    plain.weight.data = weight
    assert kernel_norm(weight, stride) >= float(torch.linalg.svdvals(matrix(plain, inputs, 12)).max())


@pytest.mark.parametrize(("kernel", "stride", "dilation"), KERNELS)
def test_the_bound_is_tight_for_orthogonal_kernels(kernel: int, stride: int, dilation: int) -> None:
    for inputs, outputs in itertools.product([2, 6], [4, 12]):
        layer = OrthogonalConv2d(inputs, outputs, kernel, stride=stride, dilation=dilation, generator=seeded())
        exact = kernel_norm(layer.double().kernel(), stride)
        rounded = kernel_norm(layer.float().kernel(), stride)
        assert 1 - 1e-12 <= exact <= 1 + 1e-10
        assert 1 - 1e-6 <= rounded <= 1 + 1e-5
        assert kernel_norm(3 * layer.double().kernel(), stride) == pytest.approx(3, rel=1e-5)


@pytest.mark.parametrize("rms", [False, True])
def test_centring_is_the_plain_formula_with_its_gradients(rms: bool) -> None:
    layer = OrthogonalConv2d(3, 5, 3, rms=rms, generator=seeded()).double()
    with torch.no_grad():
        layer.bias.copy_(torch.randn(5, generator=seeded(1)))
    image = torch.randn(2, 3, 6, 4, dtype=torch.float64, generator=seeded(2), requires_grad=True)
    weight = torch.randn(2, 5, 6, 4, dtype=torch.float64, generator=seeded(3))
    plain = nn.functional.conv2d(image, layer.kernel(), padding=1)
    expected = plain - plain.mean((0, 2, 3))[:, None, None]
    if rms:
        expected = expected / expected.square().mean().sqrt()
    expected = expected + layer.bias[:, None, None]
    found = layer(image)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer.mean, 0.05 * plain.mean((0, 2, 3)), rtol=0, atol=1e-12)
    wanted = [image, *layer.parameters()]
    pairs = zip(
        torch.autograd.grad((found * weight).sum(), wanted),
        torch.autograd.grad((expected * weight).sum(), wanted),
        strict=True,
    )
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-11)


def test_kernels_stay_in_full_precision_where_convolutions_do_not() -> None:
    layer = OrthogonalConv2d(4, 6, 3, generator=seeded())
    image = torch.randn(2, 4, 8, 8, generator=seeded(1))
    with torch.autocast("cpu", torch.bfloat16):
        values, kernel = layer(image), layer.kernel()
    assert values.dtype == torch.bfloat16
    assert kernel.dtype == layer.mean.dtype == torch.float32
    assert torch.equal(kernel, layer.kernel())
    values.float().sum().backward()
    assert all(parameter.grad is None or parameter.grad.dtype == torch.float32 for parameter in layer.parameters())
