"""Convolutions: bounds against the singular values of explicit matrices, and of symbols on fine grids."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from attackcheck.errors import InputError
from attackcheck.lipschitz import convolutions, witnesses
from attackcheck.lipschitz.bounds import convolution, linear, transposed_convolution
from attackcheck.lipschitz.grids import frequency_grid
from attackcheck.lipschitz.symbols import Symbol, polyphase
from attackcheck.models.layers import OrthogonalConv2d


def kernel(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def orthogonal(inputs, outputs, stride=1, seed=0, dilation=1):
    generator = torch.Generator().manual_seed(seed)
    layer = OrthogonalConv2d(inputs, outputs, 3, stride=stride, dilation=dilation, generator=generator).double()
    return layer.kernel().detach()


def padded(weight, stride, pads, dilation, groups, mode):
    mode = "constant" if mode == "zeros" else mode
    return lambda x: F.conv2d(F.pad(x, pads, mode), weight, None, stride, 0, dilation, groups)


@pytest.fixture
def without_matrices(monkeypatch):
    monkeypatch.setattr(convolutions, "_MATRIX", 0)


SHAPES = [
    # weight, size, stride, pads (left, right, top, bottom), dilation, groups
    ((3, 2, 3, 3), (6, 5), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    ((2, 3, 3, 3), (7, 6), (2, 2), (1, 1, 1, 1), (1, 1), 1),
    ((4, 2, 4, 4), (6, 6), (2, 2), (1, 1, 1, 1), (1, 1), 1),
    ((4, 3, 2, 2), (6, 5), (2, 2), (0, 0, 0, 0), (1, 1), 1),
    ((4, 1, 3, 3), (5, 6), (1, 1), (1, 1, 1, 1), (1, 1), 4),
    ((6, 2, 3, 3), (6, 6), (2, 1), (1, 1, 1, 1), (1, 1), 2),
    ((2, 2, 3, 3), (7, 7), (1, 1), (2, 2, 2, 2), (2, 2), 1),
    ((2, 2, 3, 3), (9, 8), (2, 2), (2, 2, 2, 2), (2, 2), 1),
    ((2, 2, 3, 3), (10, 9), (2, 2), (3, 3, 3, 3), (3, 3), 1),
    ((2, 2, 3, 3), (9, 8), (3, 1), (2, 2, 2, 2), (2, 2), 1),
    ((2, 2, 1, 7), (3, 9), (1, 1), (3, 3, 0, 0), (1, 1), 1),
    ((3, 2, 5, 1), (8, 4), (3, 2), (0, 0, 2, 2), (1, 1), 1),
    ((2, 2, 2, 2), (5, 5), (1, 1), (0, 1, 0, 1), (1, 1), 1),
    ((2, 2, 3, 3), (4, 4), (1, 1), (0, 3, 2, 1), (1, 1), 1),
    ((5, 3, 1, 1), (4, 5), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    ((5, 3, 1, 1), (4, 5), (2, 2), (1, 1, 1, 1), (1, 1), 1),
    ((2, 2, 3, 3), (3, 3), (4, 4), (1, 1, 1, 1), (1, 1), 1),
]


@pytest.mark.parametrize("matrices", [True, False])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("case", SHAPES, ids=str)
def test_between_the_bounds_is_the_exact_norm(case, mode, matrices, exact, monkeypatch):
    shape, size, stride, pads, dilation, groups = case
    weight = kernel(*shape)
    if not matrices:
        monkeypatch.setattr(convolutions, "_MATRIX", 0)
    if mode == "reflect" and max(pads) >= min(size):
        pytest.skip("torch refuses it")
    truth = exact(padded(weight, stride, pads, dilation, groups, mode), (shape[1] * groups, *size))
    bound = convolution(weight, size, stride=stride, padding=pads, dilation=dilation, groups=groups, padding_mode=mode)
    assert bound.lower <= truth * (1 + 1e-12)
    assert bound.upper >= truth
    assert bound.lower >= 0.9 * truth
    if matrices:
        assert bound.upper <= truth * (1 + 1e-9)
        assert bound.lower >= truth * (1 - 1e-9)
        assert bound.method == "explicit matrix" or bound.upper <= bound.lower * (1 + 1e-5)


@pytest.mark.parametrize("matrices", [True, False])
@pytest.mark.parametrize(
    ("shape", "size", "options"),
    [
        ((3, 2, 2, 2), (4, 5), {"stride": 2}),
        ((3, 2, 3, 3), (4, 4), {"stride": 2, "padding": 1, "output_padding": 1}),
        ((2, 3, 4, 4), (4, 3), {"stride": 2, "padding": 1}),
        ((2, 2, 3, 3), (5, 5), {"padding": 1}),
        ((4, 2, 3, 3), (4, 4), {"stride": (2, 1), "padding": (1, 0), "output_padding": (1, 0), "groups": 2}),
        ((2, 2, 3, 3), (4, 4), {"stride": 2, "dilation": 2, "padding": 1}),
        ((2, 2, 3, 3), (4, 3), {"stride": 3, "dilation": 2}),
        ((2, 2, 2, 2), (4, 4), {"stride": 3, "output_padding": 2}),
    ],
    ids=str,
)
def test_transposed(shape, size, options, matrices, exact, monkeypatch):
    weight = kernel(*shape)
    if not matrices:
        monkeypatch.setattr(convolutions, "_MATRIX", 0)
    truth = exact(lambda x: F.conv_transpose2d(x, weight, **options), (shape[0], *size))
    bound = transposed_convolution(weight, size, **options)
    assert 0.9 * truth <= bound.lower <= truth * (1 + 1e-12)
    assert truth <= bound.upper <= truth * (1 + 1e-9 if matrices else 1.5)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_shape(data, exact):
    draw = data.draw
    one_or_two = st.integers(1, 2)
    groups, mode = draw(one_or_two), draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"]))
    shape = (groups * draw(one_or_two), draw(one_or_two), draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    stride, dilation = (draw(st.integers(1, 3)), draw(one_or_two)), (draw(one_or_two), draw(st.integers(1, 3)))
    size = draw(st.integers(3, 7)), draw(st.integers(3, 7))
    pads = tuple(draw(st.integers(0, 2)) for _ in range(4))
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, shape[2:], strict=True)]
    weight = kernel(*shape, seed=draw(st.integers(0, 99))) * 2.0 ** draw(st.integers(-600, 400))
    options = {"stride": stride, "padding": pads, "dilation": dilation, "groups": groups, "padding_mode": mode}
    if size[0] + pads[2] + pads[3] < spans[0] or size[1] + pads[0] + pads[1] < spans[1]:
        with pytest.raises(InputError):
            convolution(weight, size, **options)
        return
    with pytest.MonkeyPatch.context() as patch:
        if draw(st.booleans()):
            patch.setattr(convolutions, "_MATRIX", 0)
        bound = convolution(weight, size, **options)
    scale = float(weight.abs().max())
    truth = exact(padded(weight / scale, stride, pads, dilation, groups, mode), (shape[1] * groups, *size))
    assert bound.lower <= truth * scale * (1 + 1e-12)
    assert bound.upper >= truth * scale * (1 - 1e-15)


@pytest.mark.parametrize(
    ("shape", "stride", "dilation"),
    [((3, 2, 3, 3), (1, 1), (1, 1)), ((3, 4, 2, 2), (1, 1), (1, 1)), ((4, 2, 5, 3), (2, 1), (1, 1)),
     ((2, 2, 4, 4), (2, 2), (1, 1)), ((2, 3, 3, 3), (2, 3), (3, 2)), ((1, 1, 9, 9), (1, 1), (1, 1)),
     ((2, 2, 1, 6), (1, 1), (1, 1))],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["random", "positive", "alternating", "nearly orthogonal"])
def test_the_grid_is_above_every_frequency_and_close(shape, stride, dilation, kind):
    weight = kernel(*shape)[None]
    if kind != "random":
        weight = weight.abs()
    if kind == "alternating":
        weight[..., ::2] *= -1
    if kind == "nearly orthogonal":
        weight = weight * 1e-3
        weight[0, :, :, 0, 0] += torch.eye(*shape[:2])
    poly = polyphase(weight, stride, dilation)
    a, b = poly.shape[-2:]
    symbol = Symbol(poly)
    # Sampled far more finely than the grid: no bound may be below, and the right one is hardly above.
    spectrum = torch.fft.fft2(poly[0], (256 if a > 1 else 1, 256 if b > 1 else 1)).permute(2, 3, 0, 1)
    truth = float(torch.linalg.svdvals(spectrum).max()) ** 2
    fine = frequency_grid(symbol, 1e-6, 2e9)
    assert truth * (1 - 1e-14) <= fine.square <= truth * (1 + 5e-3)
    for budget in (2e5, 1e6, 1e7, 1e8):  # wherever it stops, it is a bound
        coarse = frequency_grid(symbol, 1e-6, budget)
        if coarse is not None:
            assert coarse.square >= truth * (1 - 1e-14)
    for tolerance in (0.3, 0.1, 0.03, 0.01, 1e-3):  # cells that were closed early still count
        assert frequency_grid(symbol, tolerance, 2e9).square >= truth * (1 - 1e-14)
    assert float(symbol.autocorrelation().max()) >= truth * (1 - 1e-14)
    assert fine.peak.square <= fine.square <= fine.peak.square * (1 + 2e-6)


def test_gram_matrices_are_those_of_the_symbol():
    poly = kernel(2, 3, 4, 3, 2)
    frequency = torch.tensor([[0.3, 1.9], [2.2, 5.0]], dtype=torch.float64)
    grams = Symbol(poly).grams(torch.tensor([0, 1]), frequency)
    for group, (y, x) in enumerate(frequency.tolist()):
        at = sum(
            poly[group, :, :, s, t] * complex(math.cos(y * s + x * t), math.sin(y * s + x * t))
            for s in range(3) for t in range(2)
        )  # fmt: skip
        torch.testing.assert_close(grams[group], at @ at.mH)


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(6, 6, 1), (4, 8, 1), (8, 4, 1), (4, 6, 2), (2, 10, 2)])
@pytest.mark.parametrize("size", [(32, 32), (17, 30)])
def test_orthogonal_kernels_come_out_as_one(inputs, outputs, stride, size):
    weight = orthogonal(inputs, outputs, stride).float()
    bound = convolution(weight, size, stride=stride, padding=1)
    assert 1 - 1e-3 <= bound.lower <= 1 + 1e-6
    assert 1 - 1e-7 <= bound.upper <= 1 + 1e-6
    assert convolution(weight, size, stride=stride, padding=1, padding_mode="circular").upper <= 2 + 1e-6


def test_true_norms_that_are_often_taken_for_one(exact):
    """Each is reached, at a size and with a kernel for which the infinite operation has norm one."""
    strided, plain = orthogonal(2, 8, 2), orthogonal(3, 3, 1)
    for size, reached in (((7, 7), 1.3), ((8, 8), 1.0)):
        bound = convolution(strided, size, stride=2, padding=1, padding_mode="circular")
        truth = exact(padded(strided, 2, (1, 1, 1, 1), 1, 1, "circular"), (2, *size))
        assert reached - 1e-3 <= bound.lower <= truth * (1 + 1e-12)
        assert truth <= bound.upper <= truth * (1 + 1e-9)
        assert bound.upper <= 2 + 1e-9
    for mode in ("reflect", "replicate"):
        bound = convolution(plain, (9, 9), padding=1, padding_mode=mode)
        truth = exact(padded(plain, 1, (1, 1, 1, 1), 1, 1, mode), (3, 9, 9))
        assert 1.2 < bound.lower <= truth * (1 + 1e-12)
        assert truth <= bound.upper <= truth * (1 + 1e-9)
    block = torch.eye(4).reshape(4, 1, 2, 2)  # one-channel space-to-depth: orthogonal, and sees every window whole
    assert convolution(block, (5, 5), stride=2, padding=(0, 1, 0, 1), padding_mode="circular").lower > 2 - 1e-6
    assert convolution(block, (5, 5), stride=2, padding=(0, 1, 0, 1), padding_mode="circular").upper < 2 + 1e-6
    wide = convolution(plain, (4, 4), padding=4, padding_mode="circular")  # wider than the kernel needs
    assert wide.lower > 2
    assert wide.upper < 3 + 1e-6


@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
@pytest.mark.parametrize("stride", [1, 2])
def test_large_maps_are_shortened_without_losing_their_borders(mode, stride, monkeypatch):
    block = torch.eye(4).reshape(4, 1, 2, 2)
    pads = (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1)
    weight = block if stride == 2 else orthogonal(1, 1)
    monkeypatch.setattr(witnesses, "_WORK", 1e4)
    bound = convolution(weight, (301, 257), stride=stride, padding=pads, padding_mode=mode)
    assert bound.upper < 2 + 1e-6
    if stride == 2 and mode != "reflect":
        assert bound.lower > 1.9  # the corner that is copied twice per axis
    monkeypatch.setattr(witnesses, "_WORK", 1e9)
    assert convolution(weight, (301, 257), stride=stride, padding=pads, padding_mode=mode).lower <= bound.upper


@pytest.mark.parametrize("stride", [1, 2])
def test_the_witness_of_a_large_map_is_close(stride):
    weight = kernel(16, 8, 3, 3)
    bound = convolution(weight, (400, 500), stride=stride, padding=1)
    assert bound.lower <= bound.upper <= 1.005 * bound.lower
    adjoint = transposed_convolution(weight, (200, 250), stride=stride, padding=1)
    assert adjoint.lower <= adjoint.upper <= 1.005 * adjoint.lower


def test_one_dimension_is_a_row(exact):
    weight = kernel(3, 2, 4)
    bound = convolution(weight, (9,), stride=2, padding=(1, 2), padding_mode="circular")
    truth = exact(lambda x: F.conv1d(F.pad(x, (1, 2), "circular"), weight, stride=2), (2, 9))
    assert bound.lower <= truth * (1 + 1e-12) <= bound.upper * (1 + 1e-12) <= truth * (1 + 1e-9)
    truth = exact(lambda x: F.conv_transpose1d(x, weight, stride=3, output_padding=1), (3, 5))
    bound = transposed_convolution(weight, (5,), stride=3, output_padding=1)
    assert bound.lower <= truth * (1 + 1e-12) <= bound.upper * (1 + 1e-12) <= truth * (1 + 1e-9)


def test_same_and_valid_padding():
    weight = kernel(2, 2, 4, 3)
    same = convolution(weight, (6, 6), padding="same")
    assert same == convolution(weight, (6, 6), padding=(1, 1, 1, 2))
    assert convolution(weight, (6, 6), padding="valid") == convolution(weight, (6, 6))


def test_a_pointwise_convolution_is_its_matrix(without_matrices):
    weight = kernel(5, 4, 1, 1)
    bound, matrix = convolution(weight, (20, 20)), linear(weight[:, :, 0, 0])
    assert bound.upper == pytest.approx(matrix.upper, rel=1e-9)
    assert bound.lower == pytest.approx(matrix.lower, rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_stored_weights_are_taken_exactly(dtype):
    weight = kernel(3, 3, 3, 3).to(dtype).requires_grad_()
    assert convolution(weight, (6, 6), padding=1) == convolution(weight.double(), (6, 6), padding=1)


def test_weights_that_are_zero_or_not_finite():
    assert convolution(torch.zeros(2, 2, 3, 3), (5, 5)).upper == 0
    weight = kernel(2, 2, 3, 3)
    weight[0, 0, 0, 0] = math.nan
    assert convolution(weight, (5, 5)).upper == math.inf
    assert linear(weight[0, 0]).upper == math.inf


@pytest.mark.parametrize(
    "options",
    [{"padding_mode": "wrap"}, {"groups": 3}, {"stride": (1, 1, 1)}, {"stride": 0}, {"padding": "half"},
     {"padding": "same", "stride": 2}, {"padding": 7, "padding_mode": "reflect"}, {"dilation": 9}],
    ids=str,
)  # fmt: skip
def test_what_torch_would_refuse(options):
    with pytest.raises(InputError):
        convolution(torch.ones(2, 2, 3, 3), (6, 6), **options)


@torch.inference_mode()
def test_works_inside_inference_mode():
    weight = kernel(2, 2, 3, 3)
    assert convolution(weight, (40, 40), padding=1).lower > 1


def test_cropped_maps():
    """Negative padding is cropping; the parts of a large map that a witness lives on must survive it."""
    weight = kernel(8, 8, 3, 3)
    whole = convolution(weight, (300, 300))
    assert convolution(weight, (300, 300), padding=(-100, -100, -100, -100)) != whole
    assert convolution(weight, (300, 300), padding=(-100, -100, -100, -100)).upper == whole.upper


def test_cells_that_were_closed_early_still_count():
    """A peak between the grid's points, whose cell closes before those of a flat symbol that is slightly lower."""
    kernels = torch.zeros(2, 1, 1, 2, 2, dtype=torch.float64)
    kernels[0] = 0.25
    kernels[1, 0, 0, 0, 0] = 0.98
    for tolerance in (0.1, 0.12, 0.14, 0.16):
        assert frequency_grid(Symbol(kernels), tolerance, 1e9).square >= 1


def test_a_shortened_circle_has_no_frequencies_of_its_own(monkeypatch):
    """Differences around an odd circle cannot alternate all the way; around a shorter, even one they could."""
    monkeypatch.setattr(witnesses, "_WORK", 1.0)
    monkeypatch.setattr(convolutions, "_MATRIX", 0)
    weight = torch.tensor([[[1.0, -1.0]]])
    for size in range(301, 305):
        bound = convolution(weight, (size,), padding=(0, 1), padding_mode="circular")
        truth = 2 * math.cos(math.pi / (2 * size)) if size % 2 else 2
        assert 1.8 < bound.lower <= truth * (1 + 1e-12)
        assert bound.upper == pytest.approx(2)


@pytest.mark.parametrize("matrices", [True, False])
def test_an_odd_circle_is_no_torus_of_a_strided_convolution(matrices, monkeypatch):
    """On the line each position is seen once; on a circle of five, one that is seen on both sides is seen twice."""
    if not matrices:
        monkeypatch.setattr(convolutions, "_MATRIX", 0)
    weight = torch.zeros(2, 1, 4)
    weight[0, 0, 0] = weight[1, 0, 3] = 1
    options = {"stride": 2, "padding": (1, 1), "padding_mode": "circular"}
    assert convolution(weight, (6,), **options).upper == pytest.approx(1)
    odd = convolution(weight, (5,), **options)
    assert odd.lower == pytest.approx(math.sqrt(2))
    assert odd.upper == pytest.approx(math.sqrt(2))
    assert odd.lower <= math.sqrt(2) <= odd.upper
