"""Bounds of convolutions and transposed convolutions: every padding mode, stride, dilation and number of groups."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from attackcheck.errors import InputError

from .axes import multiplicity
from .bound import Bound, down, up
from .grids import frequency_grid, glance
from .operations import Operation, per_axis, prepare, rounding, sides
from .spectral import matrix, unscaled
from .symbols import Symbol, polyphase
from .witnesses import witness

__all__ = ["convolution", "transposed_convolution"]

_MODES = {"zeros": "constant", "constant": "constant", "reflect": "reflect", "replicate": "replicate",
          "circular": "circular"}  # fmt: skip
_TOLERANCE = 1e-5  # relative, on the norm: better bounds are not looked for
_GRID = 6e8  # nanoseconds of a frequency grid
_MATRIX = 2e8  # multiplications for an explicit matrix; where the padding is not zero, ten times as many


def convolution(weight: Tensor, size: tuple[int, ...], *, stride: int | tuple[int, ...] = 1,
                padding: int | str | tuple[int, ...] = 0, dilation: int | tuple[int, ...] = 1, groups: int = 1,
                padding_mode: str = "zeros") -> Bound:  # fmt: skip
    """Bounds a convolution with `weight` (O, I / groups, kh, kw), or (O, I / groups, k) in one dimension.

    `size` is (H, W) of its input, or (W,). `padding` is "same", "valid", a number, one per axis, or one per side in the
    order of torch.nn.functional.pad (left, right, top, bottom). Raises InputError for what torch would refuse.
    """
    mode = _MODES.get(padding_mode)
    if mode is None:
        raise InputError(f"expected a padding mode of {', '.join(_MODES)}, got {padding_mode!r}")
    with torch.inference_mode(False), torch.no_grad():
        op = prepare(weight, size, stride, dilation, groups)
        return _bound(replace(op, pads=sides(padding, op), mode=mode))


def transposed_convolution(weight: Tensor, size: tuple[int, ...], *, stride: int | tuple[int, ...] = 1,
                           padding: int | tuple[int, ...] = 0, output_padding: int | tuple[int, ...] = 0,
                           dilation: int | tuple[int, ...] = 1, groups: int = 1) -> Bound:  # fmt: skip
    """Bounds a transposed convolution with `weight` (I, O / groups, kh, kw) or (I, O / groups, k) at input `size`.

    It is the adjoint of a zero-padded convolution with the same weight, whose input has the size of its output.
    """
    with torch.inference_mode(False), torch.no_grad():
        op = prepare(weight, size, stride, dilation, groups)
        (top, left), extra = per_axis(padding, op, "padding"), per_axis(output_padding, op, "output_padding")
        return _bound(replace(op, pads=(left, left, top, top), transposed=True, extra=extra))


def _bound(op: Operation) -> Bound:
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
    witnessed = witness(op, poly, peak)
    if best.upper > witnessed * (1 + _TOLERANCE) and _affordable(op):
        exact = _explicit(op)
        best, witnessed = min(best, exact, key=lambda b: b.upper), max(witnessed, exact.lower)
    elif not tight:
        grid = frequency_grid(symbol, 2 * _TOLERANCE, _GRID)
        if grid is not None:
            found = _times(grid.square, inflation, f"frequency grid, {grid.points} points")
            best = min(best, found, key=lambda b: b.upper)
            if grid.peak.square > peak.square * (1 + 1e-3):
                witnessed = max(witnessed, witness(op, poly, grid.peak))
    copied = factor > 1 and best.method != "explicit matrix"
    method = f"{best.method}, padding x{inflation:.4g}" if copied else best.method
    return unscaled(Bound(best.upper, witnessed, method), op.exponent)


def _times(square: float, inflation: float, method: str) -> Bound:
    return Bound(up(math.sqrt(square) * inflation), 0.0, method)


def _repeats(op: Operation, axis: int) -> int:
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


def _affordable(op: Operation) -> bool:
    """Whether the explicit matrices of all groups, their Gram matrices and eigenvalues cost little."""
    groups, columns = op.kernel.shape[0], op.channels * math.prod(op.size)
    rows = op.kernel.shape[2 if op.transposed else 1] * math.prod(op.outputs(axis) for axis in (0, 1))
    side = min(columns, rows)
    work = columns * op.products + groups * (side**2 * max(columns, rows) + side**3)
    limit = _MATRIX if op.mode == "constant" else 10 * _MATRIX
    return columns <= 2500 and groups * columns * rows <= 1 << 22 and work <= limit


def _explicit(op: Operation) -> Bound:
    """From the matrix that torch's own operation makes of the identity."""
    units = op.channels * math.prod(op.size)
    columns = op(torch.eye(units, dtype=torch.float64).reshape(units, op.channels, *op.size))
    groups = op.kernel.shape[0]
    found = matrix(columns.reshape(units, groups, -1).transpose(0, 1), "explicit matrix")
    error = rounding(op)
    return Bound(up(found.upper + error), max(0.0, down(found.lower) - error), found.method)
