"""Rules of convolutions and products with constant matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from attackcheck.lipschitz import bounds
from attackcheck.lipschitz.arguments import (
    PADDINGS,
    NoRule,
    Rule,
    argument_of,
    depends,
    only_at,
    pads_of,
    short,
    size_of,
    source_of,
    weight_of,
)
from attackcheck.lipschitz.bounds import Bound
from attackcheck.lipschitz.reading import Pixelwise, Reading
from attackcheck.tracing import Operation, Value

__all__ = [
    "LAYERS",
]


def _convolution(reading: Reading, operation: Operation, value: Value) -> None:
    only_at(operation, 0)
    source, weight = source_of(operation), weight_of(operation, 1)
    stride, padding, dilation, transposed, output_padding, groups = operation.args[3:9]
    if weight.dim() not in (3, 4):
        raise NoRule(f"{weight.dim() - 2} dimensions")
    flat = weight.dim() == 3
    if flat:  # a signal is an image of one row
        weight = weight[:, :, None]
        stride, padding, dilation = [1, *stride], [0, *padding], [1, *dilation]
        output_padding = [0, *output_padding]

    def room(value: Value) -> tuple[int, int]:
        size = size_of(reading.graph.shape(value))
        return (1, size[0]) if flat else (size[0], size[1])

    detail = _kernel_text(weight, stride, padding, dilation, groups)
    if transposed:
        bound = bounds.transposed_convolution(
            weight, room(source), stride=tuple(stride), padding=tuple(padding),
            output_padding=tuple(output_padding), dilation=tuple(dilation), groups=groups,
        )  # fmt: skip
        reading.scaled(value, source, bound, "transposed convolution", detail, allowance=_rounding(weight))
        return
    inside, mode = _padding_before(reading, source, padding, flat)
    if inside is not None:
        padded = reading.producer(source)
        if padded is None:
            raise NoRule("a padding without an input")
        source = padded.args[0]
        detail = _kernel_text(weight, stride, _shown(inside), dilation, groups, mode)
    pads: tuple[int, ...] = tuple(padding) if inside is None else tuple(inside)
    bound = bounds.convolution(
        weight, room(source), stride=tuple(stride), padding=pads, dilation=tuple(dilation), groups=groups,
        padding_mode=mode,
    )  # fmt: skip
    reading.scaled(value, source, bound, "convolution", detail, allowance=_rounding(weight))
    if math.prod(weight.shape[2:]) == 1 and set(stride) == {1} and not any(pads):
        reading.pixelwise[value] = Pixelwise((source,), bound.upper)


def _padding_before(
    reading: Reading, source: Value, padding: Sequence[int], flat: bool
) -> tuple[tuple[int, int, int, int] | None, str]:
    """Left, right, top and bottom of a padding that only feeds this convolution, seen as one operation with it."""
    operation = reading.producer(source)
    if operation is None or operation.name not in PADDINGS or any(padding):
        return None, "zeros"
    pads, mode = pads_of(operation)
    pads += [0] * (4 - len(pads))
    if (
        len(pads) > 4
        or min(pads) < 0
        or (mode == "constant" and argument_of(operation, 2, "value", 0) not in (0, None))
    ):
        return None, "zeros"
    if flat and any(pads[2:]):
        return None, "zeros"
    return (pads[0], pads[1], pads[2], pads[3]), "zeros" if mode == "constant" else mode


def _shown(pads: Sequence[int]) -> Sequence[int]:
    left, right, top, bottom = pads
    return (top, left) if left == right and top == bottom else pads


def _kernel_text(weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int, mode: str = "zeros") -> str:
    text = "x".join(map(str, weight.shape[2:]))
    if set(stride) != {1}:
        text += f" /{short(stride)}"
    if any(padding):
        text += f" pad {short(padding)}" + ("" if mode == "zeros" else f" {mode}")
    if set(dilation) != {1}:
        text += f" dil {short(dilation)}"
    if groups != 1:
        text += f" groups {groups}"
    return text


def _linear(reading: Reading, operation: Operation, value: Value) -> None:
    """A product with a constant matrix, whichever side it stands on."""
    name = operation.name
    left, right = (1, 2) if name in ("addmm", "addmv", "baddbmm") else (0, 1)
    if name in ("addmm", "addmv", "baddbmm", "linear") and depends(argument_of(operation, 0 if left else 2, "bias")):
        raise NoRule("what is added depends on the image")
    factors = [operation.args[left], operation.args[right]]
    if sum(isinstance(factor, Value) for factor in factors) != 1:
        raise NoRule("both factors depend on the image")
    source, weight = factors if isinstance(factors[0], Value) else factors[::-1]
    if not isinstance(weight, Tensor) or weight.dim() not in (1, 2, 3):
        raise NoRule("a weight of this shape")
    scale = abs(float(operation.kwargs.get("alpha", 1.0))) if left else 1.0
    matrices = weight.detach().double().cpu() * scale
    matrices = matrices[None, None] if weight.dim() == 1 else matrices[None] if weight.dim() == 2 else matrices
    each = [bounds.linear(matrix) for matrix in _distinct(matrices)]
    bound = Bound(max(b.upper for b in each), max(b.lower for b in each), each[0].method)
    detail = "x".join(map(str, weight.shape))
    reading.scaled(value, source, bound, "linear", detail, allowance=max(_rounding(m) for m in matrices))


def _distinct(matrices: Tensor) -> Tensor:
    return matrices[:1] if bool((matrices == matrices[:1]).all()) else matrices


def _rounding(weight: Tensor) -> float:
    """How far the norm of an operation may be from what was meant because its weights are stored in float32.

    Orthogonal weights are computed in float32 by products of matrices: every entry is then wrong by up to n units of
    2^-24 relative to the rows that it is made of, with n terms in an inner product; the norm of the whole error is at
    most n 2^-24 ||W||_F. For a kernel of t taps the norm of the convolution with the error is at most sqrt(t) times
    its Frobenius norm (triangle inequality over taps, then Cauchy's).
    """
    taps = math.prod(weight.shape[2:]) if weight.dim() > 2 else 1
    terms = min(weight.shape[0], math.prod(weight.shape[1:]))
    return math.sqrt(taps) * terms * 2.0**-24 * float(weight.double().norm())


LAYERS: Mapping[str, Rule] = {
    "convolution": _convolution,
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "linear", "matmul", "dot"), _linear),
}
