"""Which part of its inputs a tensor operation needs to compute a part of its output, and how it runs on parts.

Spatial axes are the last two. Only operations that treat every place alike have a rule; where there is none, whatever
comes before is computed as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attackcheck.cones.spans import Box, boxed
from attackcheck.tracing import Graph, Operation, Value

__all__ = ["Rule", "function_of", "rule_of", "sources"]

Pair = tuple[int, int]

_EVERYWHERE = frozenset((
    "_log_softmax", "_prelu_kernel", "_softmax", "_to_copy", "abs", "add", "alias", "amax", "amin", "argmax", "cat",
    "celu", "clamp", "clamp_max", "clamp_min", "clone", "cos", "detach", "div", "elu", "eq", "erf", "exp", "fill",
    "ge", "gelu", "gt", "hardsigmoid", "hardswish", "hardtanh", "le", "leaky_relu", "lerp", "log", "log1p",
    "logical_and", "logical_not", "logical_or", "lt", "max", "maximum", "mean", "min", "minimum", "mish", "mul",
    "ne", "neg", "ones_like", "pow", "reciprocal", "relu", "rsqrt", "rsub", "select", "sgn", "sigmoid", "sign",
    "silu", "sin", "slice", "softmax", "softplus", "sort", "split", "split_with_sizes", "sqrt", "square", "squeeze",
    "stack", "sub", "sum", "tanh", "threshold", "to", "true_divide", "unbind", "unsqueeze", "where", "zeros_like",
))  # fmt: skip
_NORMS = frozenset(("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"))
_SHAPES = frozenset(("view", "_unsafe_view", "reshape"))
# The argument that names an axis, counted from 0; of those with a list of axes it is the same place.
_AXIS = {
    "amax": 1, "amin": 1, "argmax": 1, "cat": 1, "max": 1, "mean": 1, "min": 1, "select": 1, "slice": 1, "softmax": 1,
    "_softmax": 1, "_log_softmax": 1, "sort": 1, "split": 2, "split_with_sizes": 2, "squeeze": 1, "stack": 1, "sum": 1,
    "unbind": 1, "unsqueeze": 1,
}  # fmt: skip
_AXIS_BY_DEFAULT = {"cat": 0, "slice": 0, "sort": -1, "split": 0, "split_with_sizes": 0, "stack": 0, "unbind": 0}


@dataclass(frozen=True)
class Rule:
    """How an operation treats places.

    Attributes:
        need: the part of the inputs that a part of the output needs, given a box of an input.
        step: by how many entries of the input one of the output is shifted, down and across; (1, 1) if they are alike.
        grow: the same the other way round, of operations whose output is larger.
        run: computes the operation on parts, given its arguments.
    """

    need: Callable[[Box, Box], Box]
    run: Callable[..., Any]
    step: Pair = (1, 1)
    grow: Pair = (1, 1)


def sources(arguments: Any) -> list[Value]:
    """The values among an operation's arguments."""
    if isinstance(arguments, Value):
        return [arguments]
    if isinstance(arguments, list | tuple):
        return [value for part in arguments for value in sources(part)]
    return []


def rule_of(operation: Operation, graph: Graph) -> Rule | None:
    """The rule for an operation, None where there is none."""
    values = sources([*operation.args, *operation.kwargs.values()])
    shapes = [graph.shape(value) for value in values]
    # a normalisation also returns statistics, which nobody uses
    outputs = operation.shapes[:1] if operation.name in _NORMS else operation.shapes
    if not values or any(len(shape) < 4 for shape in (*shapes, *outputs)):
        return None
    rule = _rule(operation, shapes[0])
    if rule is None:
        return None
    for shape in shapes:
        for output in outputs:
            for axis in (0, 1):
                if shape[axis - 2] * rule.grow[axis] != output[axis - 2] * rule.step[axis]:
                    return None
    return rule


def _rule(operation: Operation, shape: Sequence[int]) -> Rule | None:
    name, args = operation.name, operation.args
    if name in _EVERYWHERE:
        return _pointwise(operation, shape)
    if name in _NORMS:
        return _alike(operation)
    if name in _SHAPES:
        return _reshaping(operation, shape)
    if name == "convolution":
        return _convolution(operation)
    if name in ("max_pool2d_with_indices", "avg_pool2d"):
        return _pooling(operation)
    if name in ("upsample_nearest2d", "upsample_bilinear2d"):
        return _upsampling(operation, shape) if isinstance(args[0], Value) else None
    return None


def function_of(operation: Operation) -> Callable[..., Any] | None:
    """The function that an operation is, not the one that works in place; None where ATen has none."""
    packet = getattr(torch.ops.aten, operation.name, None)
    return getattr(packet, operation.overload or "default", None)


def _same(box: Box, like: Box) -> Box:  # noqa: ARG001
    return box


def _pointwise(operation: Operation, shape: Sequence[int]) -> Rule | None:
    name, args, kwargs = operation.name, operation.args, operation.kwargs
    if name in _AXIS and not _keeps_places(operation, len(shape)):
        return None
    for constant in _constants([*args, *kwargs.values()]):
        if any(side != 1 for side in constant.shape[-2:]):
            return None  # it differs from place to place
    return _alike(operation)


def _alike(operation: Operation) -> Rule | None:
    function = function_of(operation)
    return None if function is None else Rule(_same, function)


def _constants(arguments: Any) -> list[Tensor]:
    if isinstance(arguments, Tensor):
        return [arguments]
    if isinstance(arguments, list | tuple):
        return [tensor for part in arguments for tensor in _constants(part)]
    return []


def _keeps_places(operation: Operation, dimensions: int) -> bool:
    """Whether the axis that an operation works along is none of the last two, before it and after."""
    position, name = _AXIS[operation.name], operation.name
    axis = operation.kwargs.get("dim")
    if axis is None and len(operation.args) > position:
        axis = operation.args[position]
    if axis is None:
        axis = _AXIS_BY_DEFAULT.get(name)
    if isinstance(axis, Value) or axis is None:
        return isinstance(axis, Value) and name in ("max", "min")  # of two tensors
    axes = axis if isinstance(axis, list | tuple) else [axis]
    grown = dimensions + (name in ("stack", "unsqueeze"))
    return len(axes) > 0 and all(0 < number % grown < grown - 2 for number in axes)


def _reshaping(operation: Operation, shape: Sequence[int]) -> Rule | None:
    result = operation.shapes[0]
    if result[0] != shape[0] or result[-2:] != tuple(shape[-2:]):
        return None
    middle = result[1:-2]

    def run(values: Tensor, *_: object) -> Tensor:
        return values.reshape(values.shape[0], *middle, *values.shape[-2:])

    return Rule(_same, run)


def _pair(value: Any) -> Pair:
    if isinstance(value, int):
        return value, value
    return (int(value[0]), int(value[-1]))


def _convolution(operation: Operation) -> Rule | None:
    values, weight, bias, stride, padding, dilation, transposed = operation.args[:7]
    if not isinstance(values, Value) or not isinstance(weight, Tensor) or weight.dim() != 4 or operation.kwargs:
        return None
    if isinstance(bias, Value):
        return None
    stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
    reach = _pair([dilation[axis] * (weight.shape[axis + 2] - 1) for axis in (0, 1)])

    run = torch.ops.aten.convolution.default
    if transposed:

        def spread(box: Box, like: Box) -> Box:
            low = [-(-(span.first + padding[i] - reach[i]) // stride[i]) for i, span in enumerate(_axes(box))]
            last = [(span.first + span.length - 1 + padding[i]) // stride[i] for i, span in enumerate(_axes(box))]
            return boxed(_pair(low), (last[0] + 1, last[1] + 1), like)

        return Rule(spread, run, grow=stride)
    return Rule(_sliding(stride, padding, reach), run, step=stride)


def _axes(box: Box) -> tuple[Any, Any]:
    return box.rows, box.columns


def _sliding(stride: Pair, padding: Pair, reach: Pair) -> Callable[[Box, Box], Box]:
    def need(box: Box, like: Box) -> Box:
        low = [span.first * stride[i] - padding[i] for i, span in enumerate(_axes(box))]
        last = [(s.first + s.length - 1) * stride[i] - padding[i] + reach[i] for i, s in enumerate(_axes(box))]
        return boxed(_pair(low), (last[0] + 1, last[1] + 1), like)

    return need


def _pooling(operation: Operation) -> Rule | None:
    args = (*operation.args, *[None] * 6)
    kernel, padding = _pair(args[1]), _pair(args[3] or 0)
    stride, dilation = _pair(args[2] or kernel), (1, 1)
    if operation.name == "max_pool2d_with_indices":
        dilation, ceil = _pair(args[4] or 1), args[5]
    else:
        ceil = args[4]
    if ceil or operation.kwargs:
        return None
    reach = _pair([dilation[axis] * (kernel[axis] - 1) for axis in (0, 1)])
    function = function_of(operation)
    return None if function is None else Rule(_sliding(stride, padding, reach), function, step=stride)


def _upsampling(operation: Operation, shape: Sequence[int]) -> Rule | None:
    out = operation.shapes[0]
    factor = (out[-2] // shape[-2], out[-1] // shape[-1])
    if min(factor) < 1:
        return None
    linear = operation.name == "upsample_bilinear2d"
    if linear and bool(operation.args[2]):
        return None  # aligned corners: the grid depends on the size

    def need(box: Box, like: Box) -> Box:
        low, last = [], []
        for by, span in zip(factor, _axes(box), strict=True):
            end = span.first + span.length - 1
            # a linear one looks from half an entry back to half an entry on
            low.append((2 * span.first + 1 - by) // (2 * by) if linear else span.first // by)
            last.append((2 * end + 1 - by) // (2 * by) + 1 if linear else end // by)
        return boxed(_pair(low), (last[0] + 1, last[1] + 1), like)

    def run(values: Tensor, *_: object) -> Tensor:
        size = [values.shape[-2] * factor[0], values.shape[-1] * factor[1]]
        corners = False if linear else None
        return torch.nn.functional.interpolate(
            values, size=size, mode="bilinear" if linear else "nearest", align_corners=corners
        )

    return Rule(need, run, grow=factor)
