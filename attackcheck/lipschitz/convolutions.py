"""Bounds of convolutions and transposed convolutions at a size, with every padding mode, stride, dilation and groups."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from attackcheck.errors import InputError

from .axes import multiplicity
from .bound import Bound, down, gamma, up
from .grids import Peak, frequency_grid, glance
from .spectral import krylov, matrix, scaled, unscaled
from .symbols import Symbol, polyphase, reduced

__all__ = ["convolution", "transposed_convolution"]

_MODES = {"zeros": "constant", "constant": "constant", "reflect": "reflect", "replicate": "replicate",
          "circular": "circular"}  # fmt: skip
_TOLERANCE = 1e-5  # relative, on the norm: better bounds are not looked for
_GRID = 6e8  # nanoseconds of a frequency grid
_MATRIX = 2e8  # multiplications for an explicit matrix; where the padding is not zero, ten times as many
_WITNESS = 3e7  # multiplications of one application while a witness is looked for
_STEPS = 10


def convolution(weight: Tensor, size: tuple[int, ...], *, stride: int | tuple[int, ...] = 1,
                padding: int | str | tuple[int, ...] = 0, dilation: int | tuple[int, ...] = 1, groups: int = 1,
                padding_mode: str = "zeros") -> Bound:  # fmt: skip
    """Bounds a convolution with `weight` (O, I / groups, kh, kw), or (O, I / groups, k) in one dimension.

    `size` is (H, W) of its input, or (W,). `padding` is "same", "valid", a number, one per axis, or one per side in the
    order of torch.nn.functional.pad (left, right, top, bottom). Raises InputError for arguments that torch would refuse.
    """
    op = _prepare(weight, size, stride, dilation, groups)
    mode = _MODES.get(padding_mode)
    if mode is None:
        raise InputError(f"expected a padding mode of {', '.join(_MODES)}, got {padding_mode!r}")
    return _bound(replace(op, pads=_sides(padding, op), mode=mode))


def transposed_convolution(weight: Tensor, size: tuple[int, ...], *, stride: int | tuple[int, ...] = 1,
                           padding: int | tuple[int, ...] = 0, output_padding: int | tuple[int, ...] = 0,
                           dilation: int | tuple[int, ...] = 1, groups: int = 1) -> Bound:  # fmt: skip
    """Bounds a transposed convolution with `weight` (I, O / groups, kh, kw) or (I, O / groups, k) at input `size`.

    It is the adjoint of a zero-padded convolution with the same weight, whose input has the size of its output.
    """
    op = _prepare(weight, size, stride, dilation, groups)
    (top, left), extra = _per_axis(padding, op, "padding"), _per_axis(output_padding, op, "output_padding")
    return _bound(replace(op, pads=(left, left, top, top), transposed=True, extra=extra))


@dataclass(frozen=True)
class _Operation:
    """A convolution of one group at a time; `kernel` (G, O / G, I / G, kh, kw) or transposed (G, I / G, O / G, kh, kw)."""

    kernel: Tensor
    exponent: int
    size: tuple[int, int]
    flat: bool  # one dimension
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)  # left, right, top, bottom
    mode: str = "constant"
    transposed: bool = False
    extra: tuple[int, int] = (0, 0)  # output_padding

    @property
    def taps(self) -> tuple[int, int]:
        """How many positions a window spans, per axis."""
        first, second = (d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel.shape[-2:], strict=True))
        return first, second

    @property
    def channels(self) -> int:
        """Input channels per group."""
        return int(self.kernel.shape[1 if self.transposed else 2])

    def windows(self, axis: int) -> int:
        """Output positions along an axis of the plain convolution."""
        before, after = self.along(axis)
        return (self.size[axis] + before + after - self.taps[axis]) // self.stride[axis] + 1

    def outputs(self, axis: int) -> int:
        """Output positions along an axis."""
        if not self.transposed:
            return self.windows(axis)
        return (self.size[axis] - 1) * self.stride[axis] + self.taps[axis] + self.extra[axis] - sum(self.along(axis))

    def along(self, axis: int) -> tuple[int, int]:
        """Padding before and after along an axis."""
        return (self.pads[2], self.pads[3]) if axis == 0 else (self.pads[0], self.pads[1])

    def __call__(self, values: Tensor) -> Tensor:
        """Applies every group to the same (B, I / G, H, W): (B, G O / G, H', W')."""
        if self.transposed:
            weight = self.kernel.permute(1, 0, 2, 3, 4).flatten(1, 2)
            return F.conv_transpose2d(values, weight, None, self.stride, (self.pads[2], self.pads[0]), self.extra, 1,
                                      self.dilation)  # fmt: skip
        if any(self.pads):
            values = F.pad(values, self.pads, self.mode)
        return F.conv2d(values, self.kernel.flatten(0, 1), None, self.stride, 0, self.dilation)

    @property
    def products(self) -> float:
        """Multiplications of one application."""
        positions = math.prod(self.size) if self.transposed else math.prod(self.windows(a) for a in (0, 1))
        return float(self.kernel.numel() * positions)


def _prepare(weight: Tensor, size: tuple[int, ...], stride: int | tuple[int, ...], dilation: int | tuple[int, ...],
             groups: int) -> _Operation:  # fmt: skip
    dimensions = weight.dim() - 2
    if dimensions not in (1, 2) or len(size) != dimensions or min(weight.shape, default=0) < 1 or min(size) < 1:
        raise InputError(
            f"expected a kernel (O, I, kh, kw) with a size (H, W), or (O, I, k) with (W,), got {tuple(weight.shape)} "
            f"and {tuple(size)}"
        )
    if groups < 1 or weight.shape[0] % groups:
        raise InputError(f"expected groups that divide {weight.shape[0]} channels, got {groups}")
    flat = dimensions == 1
    kernel, exponent = scaled(weight)
    if exponent is None:
        kernel, exponent = torch.full_like(kernel, math.nan), 0
    if flat:
        kernel, size = kernel[:, :, None], (1, *size)
    op = _Operation(kernel.unflatten(0, (groups, -1)), exponent, (size[0], size[1]), flat, (1, 1), (1, 1))
    return replace(op, stride=_per_axis(stride, op, "stride", 1), dilation=_per_axis(dilation, op, "dilation", 1))


def _per_axis(given: int | tuple[int, ...], op: _Operation, name: str, least: int = 0) -> tuple[int, int]:
    """One number per axis of a 2d convolution; a convolution in one dimension has an idle first axis."""
    idle = 1 if name in ("stride", "dilation") else 0
    numbers = (given,) * (1 if op.flat else 2) if isinstance(given, int) else tuple(given)
    if len(numbers) != (1 if op.flat else 2) or min(numbers) < least:
        raise InputError(f"expected {name} as one number per axis, at least {least}, got {given!r}")
    return (idle, numbers[0]) if op.flat else (numbers[0], numbers[1])


def _sides(given: int | str | tuple[int, ...], op: _Operation) -> tuple[int, int, int, int]:
    """Padding as (left, right, top, bottom)."""
    if isinstance(given, str):
        if given not in ("same", "valid") or (given == "same" and op.stride != (1, 1)):
            raise InputError(f"expected padding 'valid', 'same' (with stride 1) or numbers, got {given!r}")
        total = [t - 1 if given == "same" else 0 for t in op.taps]
        return total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2
    sides = 2 if op.flat else 4
    if not isinstance(given, int) and len(given) == sides:
        return (given[0], given[1], *(given[2:] if not op.flat else (0, 0)))  # type: ignore[return-value]
    top, left = _per_axis(given, op, "padding")
    return left, left, top, top


def _bound(op: _Operation) -> Bound:
    """The smallest of the upper bounds that can be afforded, and the largest ratio that was found."""
    if not bool(op.kernel.isfinite().all()):
        return Bound(math.inf, 0.0, "weights that are not finite")
    if not op.transposed and min(op.windows(0), op.windows(1)) < 1:
        raise InputError(f"expected a size that holds one window of {op.taps}, got {op.size} padded by {op.pads}")
    if not bool(op.kernel.any()):
        return Bound(0.0, 0.0, "zero")
    poly = polyphase(op.kernel, op.stride, op.dilation)
    symbol = Symbol(poly)
    peak = glance(symbol)
    factor = 1 if op.transposed else math.prod(_repeats(op, axis) for axis in (0, 1))
    inflation = up(math.sqrt(factor), 1) if factor > 1 else 1.0
    best = _times(symbol.autocorrelation().max().item(), inflation, "autocorrelation")
    if poly.shape[-2:] == (1, 1):
        one = matrix(poly[..., 0, 0])
        best = min(best, Bound(up(one.upper * inflation), 0.0, one.method), key=lambda b: b.upper)
    tight = best.upper <= inflation * math.sqrt(peak.square) * (1 + _TOLERANCE)
    witnessed = _witness(op, poly, peak)
    if best.upper > witnessed * (1 + _TOLERANCE) and _affordable(op):
        exact = _explicit(op)
        best, witnessed = min(best, exact, key=lambda b: b.upper), max(witnessed, exact.lower)
    elif not tight:
        grid = frequency_grid(symbol, 2 * _TOLERANCE, _GRID)
        if grid is not None:
            best = min(best, _times(grid.square, inflation, f"frequency grid, {grid.points} points"), key=lambda b: b.upper)
            witnessed = max(witnessed, _witness(op, poly, grid.peak))
    method = best.method if factor == 1 or best.method == "explicit matrix" else f"{best.method}, padding x{inflation:.4g}"
    return unscaled(Bound(best.upper, witnessed, method), op.exponent)


def _times(square: float, inflation: float, method: str) -> Bound:
    return Bound(up(math.sqrt(square) * inflation), 0.0, method)


def _repeats(op: _Operation, axis: int) -> int:
    """The square of the factor by which an axis' padding can exceed the norm on the infinite grid.

    Padding that copies is a linear map whose norm squared is the number of copies of one position; only positions that
    some window reaches count. On a circle that the stride divides there is a second way: the windows start at the
    positions of the torus, each at most ceil(windows * stride / size) times, and one round of them sees frequencies of
    the infinite grid.
    """
    if op.mode == "constant":
        return 1
    before, after = op.along(axis)
    size, stride, count = op.size[axis], op.stride[axis], op.windows(axis)
    copies = multiplicity(size, before, after, op.mode, reached=stride * (count - 1) + op.taps[axis])
    if op.mode == "circular" and size % stride == 0:
        return min(copies, -(-count * stride // size))
    return copies


def _affordable(op: _Operation) -> bool:
    """Whether the explicit matrices of all groups, their Gram matrices and eigenvalues cost little."""
    groups, columns = op.kernel.shape[0], op.channels * math.prod(op.size)
    rows = op.kernel.shape[2 if op.transposed else 1] * math.prod(op.outputs(axis) for axis in (0, 1))
    side = min(columns, rows)
    work = columns * op.products + groups * (side**2 * max(columns, rows) + side**3)
    limit = _MATRIX if op.mode == "constant" else 10 * _MATRIX
    return columns <= 2500 and groups * columns * rows <= 1 << 22 and work <= limit


def _explicit(op: _Operation) -> Bound:
    """From the matrix that torch's own operation makes of the identity."""
    units = op.channels * math.prod(op.size)
    columns = op(torch.eye(units, dtype=torch.float64).reshape(units, op.channels, *op.size))
    groups = op.kernel.shape[0]
    found = matrix(columns.reshape(units, groups, -1).transpose(0, 1), "explicit matrix")
    error = _rounding(op)
    return Bound(up(found.upper + error), max(0.0, down(found.lower) - error), found.method)


def _rounding(op: _Operation) -> float:
    """How far the float64 operation may be from the one that it stands for, in norm."""
    magnitude = op.kernel.abs()
    rows, columns = magnitude.sum((2, 3, 4)).amax(), magnitude.sum((1, 3, 4)).amax()
    copies = 1 if op.transposed else math.prod(multiplicity(op.size[a], *op.along(a), op.mode) for a in (0, 1))
    products = op.kernel[0].numel()  # in one output, at most
    return gamma(products + 4) * math.sqrt(float(rows * columns) * copies) * (1 + 1e-9)


def _witness(op: _Operation, poly: Tensor, peak: Peak) -> float:
    """The largest ratio that Lanczos' method finds from a plane wave at the symbol's peak, on a part of a large map.

    With zero padding a smaller map is a restriction of the larger one. Otherwise the map is shortened by a multiple of
    the stride, and a strip in its middle is kept at zero, wider than a window, so that no window sees both sides of it:
    then the strip can be widened again without changing anything, and both borders keep their padding.
    """
    group = op.kernel[peak.group : peak.group + 1]
    op = replace(op, kernel=group)
    op, mask = _shortened(op)
    shape = (1, op.channels, *op.size)

    def apply(vector: Tensor) -> Tensor:
        values = (vector.reshape(shape) * mask).requires_grad_()
        with torch.enable_grad():
            energy = op(values).square().sum() / 2
        return (torch.autograd.grad(energy, values)[0] * mask).flatten()

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(shape, dtype=torch.float64, generator=generator)
    wave = _wave(op, poly[peak.group], peak)
    start = wave / wave.norm().clamp_min(1e-300) + 1e-3 * noise / noise.norm()
    found = krylov(apply, (start * mask).flatten(), _STEPS).reshape(shape) * mask
    with torch.no_grad():
        moved = op(found)
    length = float(found.norm())
    if not length > 0:
        return 0.0
    ratio = down(float(moved.norm()) / length, moved.numel() + found.numel())
    return max(0.0, down(ratio - _rounding(op)))


def _shortened(op: _Operation) -> tuple[_Operation, Tensor]:
    side = max(8, math.isqrt(int(_WITNESS / op.kernel.numel())))
    mask, sizes = torch.ones(op.size, dtype=torch.float64), []
    for axis in (0, 1):
        size, span = op.size[axis], op.taps[axis] + max(op.along(axis), key=abs)
        least = max(side * (1 if op.transposed else op.stride[axis]), 4 * abs(span))
        spare = max(0, size - least) // op.stride[axis] * op.stride[axis]
        sizes.append(size - spare)
        if spare and op.mode != "constant":
            middle = sizes[axis] // 2
            strip = slice(middle - op.taps[axis] // 2 - 1, middle + op.taps[axis] // 2 + 1)
            mask[(strip, slice(None)) if axis == 0 else (slice(None), strip)] = 0
    return replace(op, size=(sizes[0], sizes[1])), mask[: sizes[0], : sizes[1]]


def _wave(op: _Operation, poly: Tensor, peak: Peak) -> Tensor:
    """The plane wave that the infinite operation stretches most, faded out towards the borders, (1, channels, H, W)."""
    rows, columns, a, b = poly.shape
    taps = torch.cartesian_prod(torch.arange(a).double(), torch.arange(b).double())  # (a b, 2)
    angle = taps @ torch.tensor(peak.frequency, dtype=torch.float64)
    at = torch.polar(torch.ones_like(angle), angle)
    left, _, right = torch.linalg.svd(poly.flatten(2).to(at.dtype) @ at, full_matrices=False)
    vector = left[:, 0] if op.transposed else right[0].conj()
    largest = vector[vector.abs().argmax()]
    vector = vector * (largest.conj() / largest.abs())
    steps = [reduced(s, d) for s, d in zip(op.stride, op.dilation, strict=True)]
    phases = [1 if op.transposed else s for s, _ in steps]
    vector = vector.reshape(-1, phases[0], phases[1])
    lines, picks = [], []
    for axis in (0, 1):
        (stride, _), size = steps[axis], op.size[axis]
        position = torch.arange(size) + (0 if op.transposed else op.along(axis)[0])
        common = 1 if op.transposed else op.stride[axis] // stride
        dropped = op.dilation[axis] // (op.stride[axis] // stride) if stride == 1 else 1
        block = position // common // phases[axis]
        picks.append(position // common % phases[axis])
        fade = torch.sin(math.pi * (torch.arange(size) + 1.0).double() / (size + 1)) * (position % common == 0)
        lines.append(torch.polar(fade, block.double() * (peak.frequency[axis] / dropped)))
    wave = vector[:, picks[0]][:, :, picks[1]] * lines[0][:, None] * lines[1]
    return wave.real[None]
