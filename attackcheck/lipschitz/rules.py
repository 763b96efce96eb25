"""What each tensor operation says about norms.

A rule reads one operation and tells a :class:`~attackcheck.lipschitz.reading.Reading`. Operations without a rule make
their results unbounded: named, never guessed. Tensors carry one image, so all norms are over whole tensors.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from attackcheck.errors import InputError
from attackcheck.lipschitz import bounds
from attackcheck.lipschitz.bounds import Bound
from attackcheck.lipschitz.interpolating import MODES, interpolated
from attackcheck.lipschitz.reading import Pixelwise, Reading, slices
from attackcheck.lipschitz.tracing import Graph, Operation, Value

__all__ = ["OutOfTime", "read", "where"]

Rule = Callable[[Reading, Operation, Value], None]


class OutOfTime(Exception):  # noqa: N818
    """The deadline has passed; the argument says how far the reading came."""


def read(graph: Graph, deadline: float | None = None) -> Reading:
    """The relations between the norms of everything that a network computes.

    Raises:
        OutOfTime: once this thread's :func:`time.thread_time` is past the deadline.
    """
    reading = Reading(graph)
    for index, operation in enumerate(graph.operations):
        if deadline is not None and time.thread_time() > deadline:
            raise OutOfTime(f"out of time after {index} of {len(graph.operations)} operations")
        value = Value(index)
        if reading.first(value) != value:
            continue
        rule = _RULES.get(operation.name)
        if rule is None or not (operation.floating or operation.name in _CONSTANT):
            reading.unbounded(value, f"{operation.name} at {where(operation)} has no rule")
        else:
            try:
                rule(reading, operation, value)
            except (_NoRule, InputError) as none:
                reading.unbounded(value, f"{operation.name} at {where(operation)}: {none}")
    return reading


class _NoRule(Exception):  # noqa: N818
    """This use of an operation has no rule; the argument says what about it."""


def where(operation: Operation) -> str:
    """The module that an operation belongs to, for people."""
    return operation.path or "the network itself"


def _argument(operation: Operation, position: int, name: str, default: Any = None) -> Any:
    args = operation.args
    return args[position] if len(args) > position else operation.kwargs.get(name, default)


def _source(operation: Operation, position: int = 0) -> Value:
    source = operation.args[position] if len(operation.args) > position else None
    if not isinstance(source, Value):
        raise _NoRule("its input does not depend on the image, but something else does")
    return source


def _only(operation: Operation, *positions: int) -> None:
    """Only these positional arguments may depend on the image."""
    for position, argument in enumerate(operation.args):
        if position not in positions and _depends(argument):
            raise _NoRule("an argument depends on the image")
    if any(_depends(argument) for argument in operation.kwargs.values()):
        raise _NoRule("an argument depends on the image")


def _depends(argument: Any) -> bool:
    if isinstance(argument, list | tuple):
        return any(_depends(part) for part in argument)
    return isinstance(argument, Value)


def _exact(value: float, method: str) -> Bound:
    return Bound(value, value, method)


def _size(shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(shape[2:])


# Rearrangements ------------------------------------------------------------------------------------------------------


def _same(reading: Reading, operation: Operation, value: Value) -> None:
    """A permutation or a selection without repetition, or something that is 1-Lipschitz as it stands."""
    _only(operation, 0)
    if operation.name == "view" and isinstance(operation.args[1], torch.dtype):
        raise _NoRule("it reads the bits as other numbers")
    reading.same(value, _source(operation))


def _elementwise(reading: Reading, operation: Operation, value: Value) -> None:
    _same(reading, operation, value)
    reading.pixelwise[value] = Pixelwise((_source(operation),), 1.0)


def _slice(reading: Reading, operation: Operation, value: Value) -> None:
    source = _source(operation)
    found = slices(operation, reading.graph.shape(source))
    if found is None:
        raise _NoRule("these indices")
    for output, dim, counts in found:
        part = Value(value.operation, output)
        reading.sliced(part, source, dim, counts)
        if dim >= 2 and len(reading.graph.shape(source)) == 4 and operation.name == "slice":
            reading.pixelwise[part] = Pixelwise((source,), 1.0)


def _expand(reading: Reading, operation: Operation, value: Value) -> None:
    _only(operation, 0)
    source = _source(operation)
    reading.times(value, source, _root(_ratio(operation.shapes[0], reading.graph.shape(source))))


def _ratio(large: Sequence[int], small: Sequence[int]) -> int:
    return max(1, math.prod(large)) // max(1, math.prod(small))


def _root(number: int) -> float:
    root = math.sqrt(number)
    return root if root * root == number else math.nextafter(root, math.inf)


def _padding(reading: Reading, operation: Operation, value: Value) -> None:
    source = _source(operation)
    _only(operation, 0)
    pads, mode = _pads(operation)
    if mode == "constant" or (mode == "circular" and not any(pads)):
        reading.same(value, source)
        if mode == "constant" and len(pads) <= 4:
            reading.pixelwise[value] = Pixelwise((source,), 1.0)
        return
    bound = bounds.padding(_size(reading.graph.shape(source)), tuple(pads), mode)
    reading.scaled(value, source, bound, f"{mode} padding", f"pad {_text(pads)}")
    reading.pixelwise[value] = Pixelwise((source,), 1.0)


_PADDINGS = {
    "constant_pad_nd": "constant",
    "reflection_pad1d": "reflect",
    "reflection_pad2d": "reflect",
    "replication_pad1d": "replicate",
    "replication_pad2d": "replicate",
    "circular_pad": "circular",
}


def _pads(operation: Operation) -> tuple[list[int], str]:
    """Left, right, top, bottom; and the mode."""
    return list(_argument(operation, 1, "pad")), _PADDINGS[operation.name]


# Sums, concatenations, choices ---------------------------------------------------------------------------------------


def _term(reading: Reading, operation: Operation, term: Value, factor: float = 1.0) -> int:
    """An operand, broadcast to the shape of the result."""
    copies = _ratio(operation.shapes[0], reading.graph.shape(term))
    number = reading.scaled_number(term, abs(factor))
    return reading.scaled_number(number, _root(copies))


def _add(reading: Reading, operation: Operation, value: Value) -> None:
    first, second = operation.args[0], _argument(operation, 1, "other")
    alpha = abs(float(_argument(operation, 2, "alpha", 1.0)))
    factors = (alpha, 1.0) if operation.name == "rsub" else (1.0, alpha)
    operands = list(zip((first, second), factors, strict=True))
    if all(isinstance(operand, Value) for operand in (first, second)):
        if operation.name == "sub" and alpha == 1.0 and _is_mean(reading, first, second):
            reading.same(value, first)  # an orthogonal projection
            return
        if reading.first(first) == reading.first(second):
            together = 1.0 + alpha if operation.name == "add" else abs(1.0 - alpha)
            together = math.nextafter(together, math.inf) if alpha != 1.0 else together
            reading.times(value, _term(reading, operation, first), together)
            return
    terms = [_term(reading, operation, operand, f) for operand, f in operands if isinstance(operand, Value)]
    if len(terms) == 1:
        reading.same(value, terms[0])
    else:
        reading.added(value, terms)
    if len(operation.shapes[0]) == 4:
        sources = tuple(operand for operand, _ in operands if isinstance(operand, Value))
        if len(sources) == 1 and reading.graph.shape(sources[0]) == operation.shapes[0]:
            factor = next(f for operand, f in operands if isinstance(operand, Value))
            reading.pixelwise[value] = Pixelwise(sources, factor)


def _is_mean(reading: Reading, whole: Value, mean: Value) -> bool:
    producer = reading.producer(mean)
    if producer is None or producer.name != "mean" or not isinstance(producer.args[0], Value):
        return False
    kept = len(producer.shapes[0]) == len(reading.graph.shape(whole))
    return kept and reading.first(producer.args[0]) == reading.first(whole)


def _multiply(reading: Reading, operation: Operation, value: Value) -> None:
    first, second = operation.args[0], _argument(operation, 1, "other")
    inverse = operation.name == "div"
    if _argument(operation, 2, "rounding_mode") is not None:
        raise _NoRule("it rounds")
    if isinstance(first, Value) and isinstance(second, Value):
        raise _NoRule("both factors depend on the image")
    if isinstance(second, Value):
        if inverse:
            raise _NoRule("the divisor depends on the image")
        first, second = second, first
    _scale(reading, operation, value, first, second, inverse)


def _scale(
    reading: Reading,
    operation: Operation,
    value: Value,
    source: Value,
    factors: Any,
    inverse: bool,
) -> None:
    sizes = torch.as_tensor(factors, dtype=torch.float64).abs()
    if sizes.numel() == 0 or not bool(sizes.isfinite().all()) or (inverse and not bool((sizes > 0).all())):
        raise _NoRule("a factor that is not finite")
    if inverse:
        sizes = 1.0 / sizes
    largest, smallest = float(sizes.max()), float(sizes.min())
    copies = _ratio(operation.shapes[0], reading.graph.shape(source))
    upper = math.nextafter(largest, math.inf) if inverse else largest
    if copies > 1:
        upper = math.nextafter(upper * _root(copies), math.inf)
    uniform = smallest == largest
    lower = math.nextafter(largest, 0.0) if copies == 1 else 0.0
    if upper == 1.0 and uniform:
        reading.same(value, source)
    else:
        reading.scaled(value, source, Bound(upper, lower, "largest factor"), "scale", uniform=uniform)
    if copies == 1 and len(operation.shapes[0]) == 4:
        reading.pixelwise[value] = Pixelwise((source,), upper)


def _concatenate(reading: Reading, operation: Operation, value: Value) -> None:
    parts = [part for part in operation.args[0] if isinstance(part, Value)]
    reading.joined(value, [reading.number(part) for part in parts])
    dim = _argument(operation, 1, "dim", 0)
    if operation.name == "cat" and len(operation.shapes[0]) == 4 and dim % 4 == 1 and len(parts) == 1:
        reading.pixelwise[value] = Pixelwise((parts[0],), 1.0)


def _extreme(reading: Reading, operation: Operation, value: Value) -> None:
    """The larger, or the smaller, of two numbers: both together are a permutation of the two."""
    first, second = operation.args[0], _argument(operation, 1, "other")
    if not (isinstance(first, Value) and isinstance(second, Value)):
        reading.same(value, _term(reading, operation, first if isinstance(first, Value) else second))
        return
    _choose(reading, operation, value, first, second, operation.name in ("maximum", "max"))


def _choose(reading: Reading, operation: Operation, value: Value, first: Value, second: Value, larger: bool) -> None:
    shapes = (reading.graph.shape(first), reading.graph.shape(second))
    if shapes[0] != shapes[1]:
        reading.joined(value, [_term(reading, operation, v) for v in (first, second)])
        return
    if reading.first(first) == reading.first(second):
        reading.same(value, first)
        return
    key = ("extremes", *sorted(_order(reading.first(v)) for v in (first, second)))
    reading.same(value, reading.pair(key, [reading.number(first), reading.number(second)])[0 if larger else 1])


def _extreme_of(reading: Reading, operation: Operation, value: Value) -> None:
    """Largest or smallest along a dimension: each moves no more than some entry does; both are entries once sorted."""
    source = _source(operation)
    dim = _argument(operation, 1, "dim")
    if isinstance(dim, Value):
        _extreme(reading, operation, value)
        return
    shape = reading.graph.shape(source)
    if not isinstance(dim, int) or shape[dim % len(shape)] < 2:
        reading.same(value, source)
        return
    first = reading.first(source)
    parts = reading.pair(("along", first.operation, first.output, dim % len(shape)), [reading.number(source)])
    reading.same(value, parts[0 if operation.name == "max" else 1])


def _relu(reading: Reading, operation: Operation, value: Value) -> None:
    """relu(x) and relu(-x) are the positive and the negative part of x: together no longer than x."""
    source = _source(operation)
    producer, sign = reading.producer(source), 0
    if producer is not None and producer.name == "neg":
        source, sign = producer.args[0], 1
    first = reading.first(source)
    parts = reading.pair(("relu", first.operation, first.output), [reading.number(source)])
    reading.same(value, parts[sign])
    reading.pixelwise[value] = Pixelwise((_source(operation),), 1.0)


_COMPARISONS = {"lt": False, "le": False, "gt": True, "ge": True}


def _where(reading: Reading, operation: Operation, value: Value) -> None:
    condition, chosen, other = operation.args
    if not isinstance(condition, Value):
        values = [part for part in (chosen, other) if isinstance(part, Value)]
        reading.joined(value, [_term(reading, operation, part) for part in values])
        return
    compared = reading.producer(condition)
    choices = isinstance(chosen, Value) and isinstance(other, Value)
    if choices and compared is not None and compared.name in _COMPARISONS:
        operands = [reading.first(o) for o in compared.args[:2] if isinstance(o, Value)]
        pair = [reading.first(chosen), reading.first(other)]
        if len(operands) == 2 and sorted(operands, key=_order) == sorted(pair, key=_order):
            larger = _COMPARISONS[compared.name] == (operands[0] == pair[0])
            _choose(reading, operation, value, pair[0], pair[1], larger)
            return
    raise _NoRule("a choice that depends on the image and is no maximum or minimum")


def _order(value: Value) -> tuple[int, int]:
    return value.operation, value.output


def _clamp(reading: Reading, operation: Operation, value: Value) -> None:
    _only(operation, 0)
    reading.same(value, _term(reading, operation, _source(operation)))
    if operation.shapes[0] == reading.graph.shape(_source(operation)):
        reading.pixelwise[value] = Pixelwise((_source(operation),), 1.0)


# Layers with weights -------------------------------------------------------------------------------------------------


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


def _weight(operation: Operation, position: int) -> Tensor:
    weight = operation.args[position]
    if not isinstance(weight, Tensor):
        raise _NoRule("the weight depends on the image")
    return weight.detach().double().cpu()


def _convolution(reading: Reading, operation: Operation, value: Value) -> None:
    _only(operation, 0)
    source, weight = _source(operation), _weight(operation, 1)
    stride, padding, dilation, transposed, output_padding, groups = operation.args[3:9]
    if weight.dim() not in (3, 4):
        raise _NoRule(f"{weight.dim() - 2} dimensions")
    flat = weight.dim() == 3
    if flat:  # a signal is an image of one row
        weight = weight[:, :, None]
        stride, padding, dilation = [1, *stride], [0, *padding], [1, *dilation]
        output_padding = [0, *output_padding]

    def size_of(value: Value) -> tuple[int, int]:
        size = _size(reading.graph.shape(value))
        return (1, size[0]) if flat else (size[0], size[1])

    detail = _kernel_text(weight, stride, padding, dilation, groups)
    if transposed:
        bound = bounds.transposed_convolution(
            weight, size_of(source), stride=tuple(stride), padding=tuple(padding),
            output_padding=tuple(output_padding), dilation=tuple(dilation), groups=groups,
        )  # fmt: skip
        reading.scaled(value, source, bound, "transposed convolution", detail, allowance=_rounding(weight))
        return
    inside, mode = _padding_before(reading, source, padding, flat)
    if inside is not None:
        padded = reading.producer(source)
        if padded is None:
            raise _NoRule("a padding without an input")
        source = padded.args[0]
        detail = _kernel_text(weight, stride, _shown(inside), dilation, groups, mode)
    pads: tuple[int, ...] = tuple(padding) if inside is None else tuple(inside)
    bound = bounds.convolution(
        weight, size_of(source), stride=tuple(stride), padding=pads, dilation=tuple(dilation), groups=groups,
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
    if operation is None or operation.name not in _PADDINGS or any(padding):
        return None, "zeros"
    pads, mode = _pads(operation)
    pads += [0] * (4 - len(pads))
    if len(pads) > 4 or min(pads) < 0 or (mode == "constant" and _argument(operation, 2, "value", 0) not in (0, None)):
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
        text += f" /{_text(stride)}"
    if any(padding):
        text += f" pad {_text(padding)}" + ("" if mode == "zeros" else f" {mode}")
    if set(dilation) != {1}:
        text += f" dil {_text(dilation)}"
    if groups != 1:
        text += f" groups {groups}"
    return text


def _text(numbers: Sequence[int]) -> str:
    return f"{numbers[0]}" if len(set(numbers)) == 1 else ",".join(map(str, numbers))


def _linear(reading: Reading, operation: Operation, value: Value) -> None:
    """A product with a constant matrix, whichever side it stands on."""
    name = operation.name
    left, right = (1, 2) if name in ("addmm", "addmv", "baddbmm") else (0, 1)
    if name in ("addmm", "addmv", "baddbmm", "linear") and _depends(_argument(operation, 0 if left else 2, "bias")):
        raise _NoRule("what is added depends on the image")
    factors = [operation.args[left], operation.args[right]]
    if sum(isinstance(factor, Value) for factor in factors) != 1:
        raise _NoRule("both factors depend on the image")
    source, weight = factors if isinstance(factors[0], Value) else factors[::-1]
    if not isinstance(weight, Tensor) or weight.dim() not in (1, 2, 3):
        raise _NoRule("a weight of this shape")
    scale = abs(float(operation.kwargs.get("alpha", 1.0))) if left else 1.0
    matrices = weight.detach().double().cpu() * scale
    matrices = matrices[None, None] if weight.dim() == 1 else matrices[None] if weight.dim() == 2 else matrices
    each = [bounds.linear(matrix) for matrix in _distinct(matrices)]
    bound = Bound(max(b.upper for b in each), max(b.lower for b in each), each[0].method)
    detail = "x".join(map(str, weight.shape))
    reading.scaled(value, source, bound, "linear", detail, allowance=max(_rounding(m) for m in matrices))


def _distinct(matrices: Tensor) -> Tensor:
    return matrices[:1] if bool((matrices == matrices[:1]).all()) else matrices


# Normalisation, pooling, resizing ------------------------------------------------------------------------------------


def _batch_norm(reading: Reading, operation: Operation, value: Value) -> None:
    _only(operation, 0)
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
    reading.scaled(value, _source(operation), bound, "batch norm")
    if len(operation.shapes[0]) == 4:
        reading.pixelwise[value] = Pixelwise((_source(operation),), bound.upper)


def _group_norm(reading: Reading, operation: Operation, value: Value) -> None:
    _only(operation, 0)
    layer = operation.name == "native_layer_norm"
    weight, eps = operation.args[2 if layer else 1], operation.args[-1]
    _statistics(reading, operation, value, weight, eps, "layer norm" if layer else "group norm")


def _statistics(reading: Reading, operation: Operation, value: Value, weight: Any, eps: float, kind: str) -> None:
    gamma = weight.detach().double().cpu() if isinstance(weight, Tensor) else None
    reading.scaled(value, _source(operation), bounds.normalisation(gamma, float(eps)), kind)


def _average_pool(reading: Reading, operation: Operation, value: Value) -> None:
    source = _source(operation)
    kernel = list(operation.args[1])
    stride = list(_argument(operation, 2, "stride") or kernel)
    padding = list(_argument(operation, 3, "padding", (0, 0)))
    ceil = bool(_argument(operation, 4, "ceil_mode", False))
    counted = bool(_argument(operation, 5, "count_include_pad", True))
    divisor = _argument(operation, 6, "divisor_override")
    bound = bounds.average_pooling(
        _size(reading.graph.shape(source)), tuple(kernel), tuple(stride), tuple(padding), ceil, counted, divisor
    )
    detail = _pool_text(kernel, stride, padding)
    reading.scaled(value, source, bound, "average pooling", detail)


def _max_pool(reading: Reading, operation: Operation, value: Value) -> None:
    source = _source(operation)
    kernel = list(operation.args[1])
    stride = list(_argument(operation, 2, "stride") or kernel)
    padding = list(_argument(operation, 3, "padding", (0, 0)))
    dilation = list(_argument(operation, 4, "dilation", (1, 1)))
    ceil = bool(_argument(operation, 5, "ceil_mode", False))
    if len(reading.graph.shape(source)) != 4:
        raise _NoRule("a shape that is no image")
    windows, steps, borders, spread = (tuple(_pair(numbers)) for numbers in (kernel, stride, padding, dilation))
    bound = bounds.max_pooling(_size(reading.graph.shape(source)), windows, steps, borders, spread, ceil)
    reading.scaled(value, source, bound, "max pooling", _pool_text(kernel, stride, padding))


def _pair(numbers: Sequence[int]) -> list[int]:
    return list(numbers) * 2 if len(numbers) == 1 else list(numbers)


def _pool_text(kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]) -> str:
    text = "x".join(map(str, _pair(kernel))) + f" /{_text(stride)}"
    return text + (f" pad {_text(padding)}" if any(padding) else "")


def _adaptive_average(reading: Reading, operation: Operation, value: Value) -> None:
    source = _source(operation)
    bound = bounds.adaptive_average_pooling(_size(reading.graph.shape(source)), tuple(operation.args[1]))
    reading.scaled(value, source, bound, "average pooling", f"to {_text(operation.args[1])}")


def _mean(reading: Reading, operation: Operation, value: Value) -> None:
    """The mean of n numbers: a row of n times 1/n; the sum: a row of ones."""
    source = _source(operation)
    count = _ratio(reading.graph.shape(source), operation.shapes[0])
    factor = _root(count)
    if operation.name == "mean":
        factor = math.nextafter(1.0 / math.sqrt(count), math.inf)
    reading.scaled(value, source, _exact(factor, "row of ones"), operation.name, f"of {count}")


def _vector_norm(reading: Reading, operation: Operation, value: Value) -> None:
    if _argument(operation, 1, "ord", 2) not in (2, math.inf):
        raise _NoRule("this norm")
    _same(reading, operation, value)


def _interpolation(reading: Reading, operation: Operation, value: Value) -> None:
    source = _source(operation)
    bound, kind, detail, one, together = interpolated(operation, _size(reading.graph.shape(source)))
    reading.scaled(value, source, bound, kind, detail)
    reading.pixelwise[value] = Pixelwise((source,), one, together)


# Activations ---------------------------------------------------------------------------------------------------------


def _activation(name: str, *options: str) -> Rule:
    def rule(reading: Reading, operation: Operation, value: Value) -> None:
        _only(operation, 0)
        given: dict[str, float] = {}
        for position, option in enumerate(options, start=1):
            argument = _argument(operation, position, option)
            if argument is not None:
                given[option] = argument
        bound = bounds.activation(name, **given)
        if bound.upper == 1.0:
            reading.same(value, _source(operation))
        else:
            reading.scaled(value, _source(operation), bound, name)
        if name != "Softmax" or _argument(operation, 1, "dim") == 1:
            reading.pixelwise[value] = Pixelwise((_source(operation),), bound.upper)

    return rule


def _prelu(reading: Reading, operation: Operation, value: Value) -> None:
    _only(operation, 0)
    slope = float(_weight(operation, 1).abs().max())
    upper = max(1.0, slope)
    reading.scaled(value, _source(operation), _exact(upper, "largest slope"), "PReLU")
    reading.pixelwise[value] = Pixelwise((_source(operation),), upper)


def _gelu(reading: Reading, operation: Operation, value: Value) -> None:
    bound = bounds.activation("GELU", approximate=operation.kwargs.get("approximate", "none"))
    reading.scaled(value, _source(operation), bound, "GELU")
    reading.pixelwise[value] = Pixelwise((_source(operation),), bound.upper)


def _elu(reading: Reading, operation: Operation, value: Value) -> None:
    """ELU and SELU: scale * (x, or alpha (exp(input_scale x) - 1) below zero)."""
    options = ((1, "alpha"), (2, "scale"), (3, "input_scale"))
    alpha, scale, inner = (float(_argument(operation, i, name, 1.0)) for i, name in options)
    upper = math.nextafter(abs(scale) * max(1.0, math.nextafter(abs(alpha * inner), math.inf)), math.inf)
    if abs(scale) == 1.0 and abs(alpha * inner) <= 1.0:
        upper = 1.0
    if inner < 0:
        raise _NoRule("a negative input scale")
    reading.scaled(value, _source(operation), Bound(upper, 0.0, "largest slope"), "SELU" if scale != 1.0 else "ELU")
    reading.pixelwise[value] = Pixelwise((_source(operation),), upper)


def _leaky(reading: Reading, operation: Operation, value: Value) -> None:
    upper = max(1.0, abs(float(_argument(operation, 1, "negative_slope", 0.01))))
    reading.scaled(value, _source(operation), _exact(upper, "largest slope"), "LeakyReLU")
    reading.pixelwise[value] = Pixelwise((_source(operation),), upper)


def _log_softmax(reading: Reading, operation: Operation, value: Value) -> None:
    """I - 1 p^T is an oblique projection with norm sqrt(K) ||p|| <= sqrt(K)."""
    source = _source(operation)
    count = reading.graph.shape(source)[operation.args[1]]
    reading.scaled(value, source, Bound(_root(count), 0.0, "projection"), "log-softmax")


def _householder(reading: Reading, operation: Operation, value: Value) -> None:
    """Identity on one half-plane, reflection at its border on the other: continuous and isometric piece by piece."""
    factor = float(operation.kwargs["factor"])
    reading.scaled(value, _source(operation), _exact(factor, "reflections"), "Householder", uniform=False)


def _narrowing(reading: Reading, operation: Operation, value: Value) -> None:
    """A cast between floating-point types: the claim is about real numbers, and rounding is judged elsewhere."""
    _elementwise(reading, operation, value)


def _constant(reading: Reading, operation: Operation, value: Value) -> None:  # noqa: ARG001
    reading.constant(value)


_CONSTANT = frozenset(
    [
        "zeros_like",
        "ones_like",
        "full_like",
        "empty_like",
        "new_zeros",
        "new_ones",
        "new_full",
        "new_empty",
    ]  # empty: until written to
) - {"empty_like", "new_empty"}

_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(
        [
            "view",
            "_unsafe_view",
            "reshape",
            "_reshape_alias",
            "permute",
            "transpose",
            "t",
            "squeeze",
            "unsqueeze",
            "flatten",
            "unflatten",
            "movedim",
            "pixel_shuffle",
            "pixel_unshuffle",
            "channel_shuffle",
            "native_channel_shuffle",
            "flip",
            "roll",
            "rot90",
            "sort",
            "msort",
            "logsumexp",
        ],
        _same,
    ),
    **dict.fromkeys(
        ["clone", "contiguous", "detach", "alias", "lift_fresh", "neg", "abs", "sin", "cos", "atan", "copy"],
        _elementwise,
    ),
    "_to_copy": _narrowing,
    **dict.fromkeys(
        [
            "slice",
            "select",
            "index_select",
            "index",
            "split",
            "split_with_sizes",
            "unsafe_split",
            "unsafe_split_with_sizes",
            "unbind",
        ],
        _slice,
    ),
    **dict.fromkeys(("expand", "repeat"), _expand),
    **dict.fromkeys(_PADDINGS, _padding),
    **dict.fromkeys(("add", "sub", "rsub"), _add),
    **dict.fromkeys(("mul", "div"), _multiply),
    **dict.fromkeys(("cat", "stack"), _concatenate),
    **dict.fromkeys(("maximum", "minimum"), _extreme),
    **dict.fromkeys(("max", "min"), _extreme_of),
    **dict.fromkeys(("amax", "amin"), _same),
    "linalg_vector_norm": _vector_norm,
    "where": _where,
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max", "hardtanh"), _clamp),
    "convolution": _convolution,
    **dict.fromkeys(["mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "linear", "matmul", "dot"], _linear),
    **dict.fromkeys(["native_batch_norm", "_native_batch_norm_legit_no_training", "cudnn_batch_norm"], _batch_norm),
    **dict.fromkeys(("native_group_norm", "native_layer_norm"), _group_norm),
    "avg_pool2d": _average_pool,
    **dict.fromkeys(("max_pool2d", "max_pool2d_with_indices"), _max_pool),
    "_adaptive_avg_pool2d": _adaptive_average,
    **dict.fromkeys(("mean", "sum"), _mean),
    **dict.fromkeys(MODES, _interpolation),
    "relu": _relu,
    "leaky_relu": _leaky,
    **dict.fromkeys(("prelu", "_prelu_kernel"), _prelu),
    "elu": _elu,
    "gelu": _gelu,
    "silu": _activation("SiLU"),
    "mish": _activation("Mish"),
    "hardswish": _activation("Hardswish"),
    "hardsigmoid": _activation("Hardsigmoid"),
    "sigmoid": _activation("Sigmoid"),
    "tanh": _activation("Tanh"),
    "softplus": _activation("Softplus"),
    "celu": _activation("CELU", "alpha"),
    "log_sigmoid_forward": _activation("LogSigmoid"),
    "erf": _activation("erf"),
    "_softmax": _activation("Softmax"),
    "_log_softmax": _log_softmax,
    "HouseHolder": _householder,
    **dict.fromkeys(_CONSTANT, _constant),
}
