"""Rules of normalisation, pooling and resizing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from attackcheck.lipschitz import bounds
from attackcheck.lipschitz.arguments import (
    NoRule,
    Rule,
    argument_of,
    only_at,
    short,
    size_of,
    source_of,
)
from attackcheck.lipschitz.interpolating import MODES, interpolated
from attackcheck.lipschitz.reading import Pixelwise, Reading
from attackcheck.tracing import Operation, Value

__all__ = [
    "POOLING",
]


def _batch_norm(reading: Reading, operation: Operation, value: Value) -> None:
    only_at(operation, 0)
    args = operation.args
    eps = args[-1]
    if operation.name in ("native_batch_norm", "batch_norm") and args[5]:
        _statistics(reading, operation, value, args[1], eps, "instance or batch statistics")
        return
    weight, variance = args[1], args[4]
    if not isinstance(args[3], Tensor) or not isinstance(variance, Tensor):
        _statistics(reading, operation, value, weight, eps, "statistics of the image")
        return
    bound = bounds.batch_norm(weight, variance, float(eps))
    reading.scaled(value, source_of(operation), bound, "batch norm")
    if len(operation.shapes[0]) == 4:
        reading.pixelwise[value] = Pixelwise((source_of(operation),), bound.upper)


def _group_norm(reading: Reading, operation: Operation, value: Value) -> None:
    only_at(operation, 0)
    layer = operation.name == "native_layer_norm"
    weight, eps = operation.args[2 if layer else 1], operation.args[-1]
    _statistics(reading, operation, value, weight, eps, "layer norm" if layer else "group norm")


def _statistics(reading: Reading, operation: Operation, value: Value, weight: Any, eps: float, kind: str) -> None:
    gamma = weight.detach().double().cpu() if isinstance(weight, Tensor) else None
    reading.scaled(value, source_of(operation), bounds.normalisation(gamma, float(eps)), kind)


def _average_pool(reading: Reading, operation: Operation, value: Value) -> None:
    source = source_of(operation)
    kernel = list(operation.args[1])
    stride = list(argument_of(operation, 2, "stride") or kernel)
    padding = list(argument_of(operation, 3, "padding", (0, 0)))
    ceil = bool(argument_of(operation, 4, "ceil_mode", False))
    counted = bool(argument_of(operation, 5, "count_include_pad", True))
    divisor = argument_of(operation, 6, "divisor_override")
    bound = bounds.average_pooling(
        size_of(reading.graph.shape(source)), tuple(kernel), tuple(stride), tuple(padding), ceil, counted, divisor
    )
    detail = _pool_text(kernel, stride, padding)
    reading.scaled(value, source, bound, "average pooling", detail)


def _max_pool(reading: Reading, operation: Operation, value: Value) -> None:
    source = source_of(operation)
    kernel = list(operation.args[1])
    stride = list(argument_of(operation, 2, "stride") or kernel)
    padding = list(argument_of(operation, 3, "padding", (0, 0)))
    dilation = list(argument_of(operation, 4, "dilation", (1, 1)))
    ceil = bool(argument_of(operation, 5, "ceil_mode", False))
    if len(reading.graph.shape(source)) != 4:
        raise NoRule("a shape that is no image")
    windows, steps, borders, spread = (tuple(_pair(numbers)) for numbers in (kernel, stride, padding, dilation))
    bound = bounds.max_pooling(size_of(reading.graph.shape(source)), windows, steps, borders, spread, ceil)
    reading.scaled(value, source, bound, "max pooling", _pool_text(kernel, stride, padding))


def _pair(numbers: Sequence[int]) -> list[int]:
    return list(numbers) * 2 if len(numbers) == 1 else list(numbers)


def _pool_text(kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> str:
    text = "x".join(map(str, _pair(kernel))) + f" /{short(stride)}"
    return text + (f" pad {short(padding)}" if any(padding) else "")


def _adaptive_average(reading: Reading, operation: Operation, value: Value) -> None:
    source = source_of(operation)
    bound = bounds.adaptive_average_pooling(size_of(reading.graph.shape(source)), tuple(operation.args[1]))
    reading.scaled(value, source, bound, "average pooling", f"to {short(operation.args[1])}")


def _interpolation(reading: Reading, operation: Operation, value: Value) -> None:
    source = source_of(operation)
    bound, kind, detail, one, together = interpolated(operation, size_of(reading.graph.shape(source)))
    reading.scaled(value, source, bound, kind, detail)
    reading.pixelwise[value] = Pixelwise((source,), one, together)


POOLING: Mapping[str, Rule] = {
    **dict.fromkeys(("native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"), _batch_norm),
    **dict.fromkeys(("native_group_norm", "native_layer_norm"), _group_norm),
    "avg_pool2d": _average_pool,
    **dict.fromkeys(("max_pool2d", "max_pool2d_with_indices"), _max_pool),
    "_adaptive_avg_pool2d": _adaptive_average,
    **dict.fromkeys(MODES, _interpolation),
}
