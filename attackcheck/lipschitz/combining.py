"""Rules of rearrangements, slices, padding, sums, concatenations, factors and choices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from attackcheck.lipschitz import bounds
from attackcheck.lipschitz.arguments import (
    PADDINGS,
    NoRule,
    Rule,
    argument_of,
    copies_in,
    only_at,
    pads_of,
    root_of,
    short,
    size_of,
    source_of,
)
from attackcheck.lipschitz.bound import down, up
from attackcheck.lipschitz.bounds import Bound
from attackcheck.lipschitz.reading import Pixelwise, Reading, slices
from attackcheck.tracing import Operation, Value

__all__ = [
    "COMBINING",
    "CONSTANT",
]


def _same(reading: Reading, operation: Operation, value: Value) -> None:
    """A permutation or a selection without repetition, or something that is 1-Lipschitz as it stands."""
    only_at(operation, 0)
    if operation.name == "view" and isinstance(operation.args[1], torch.dtype):
        raise NoRule("it reads the bits as other numbers")
    reading.same(value, source_of(operation))


def _elementwise(reading: Reading, operation: Operation, value: Value) -> None:
    _same(reading, operation, value)
    reading.pixelwise[value] = Pixelwise((source_of(operation),), 1.0)


def _narrowing(reading: Reading, operation: Operation, value: Value) -> None:
    """A cast between floating-point types: the claim is about real numbers, and rounding is judged elsewhere."""
    _elementwise(reading, operation, value)


def _constant(reading: Reading, operation: Operation, value: Value) -> None:  # noqa: ARG001
    reading.constant(value)


def _slice(reading: Reading, operation: Operation, value: Value) -> None:
    source = source_of(operation)
    found = slices(operation, reading.graph.shape(source))
    if found is None:
        raise NoRule("these indices")
    for output, dim, counts in found:
        part = Value(value.operation, output)
        reading.sliced(part, source, dim, counts)
        if dim >= 2 and len(reading.graph.shape(source)) == 4 and operation.name == "slice":
            reading.pixelwise[part] = Pixelwise((source,), 1.0)


def _expand(reading: Reading, operation: Operation, value: Value) -> None:
    only_at(operation, 0)
    source = source_of(operation)
    reading.times(value, source, root_of(copies_in(operation.shapes[0], reading.graph.shape(source))))


def _padding(reading: Reading, operation: Operation, value: Value) -> None:
    source = source_of(operation)
    only_at(operation, 0)
    pads, mode = pads_of(operation)
    if mode == "constant" or (mode == "circular" and not any(pads)):
        reading.same(value, source)
        if mode == "constant" and len(pads) <= 4:
            reading.pixelwise[value] = Pixelwise((source,), 1.0)
        return
    bound = bounds.padding(size_of(reading.graph.shape(source)), tuple(pads), mode)
    reading.scaled(value, source, bound, f"{mode} padding", f"pad {short(pads)}")
    reading.pixelwise[value] = Pixelwise((source,), 1.0)


def _term(reading: Reading, operation: Operation, term: Value, factor: float = 1.0) -> int:
    """An operand, broadcast to the shape of the result."""
    copies = copies_in(operation.shapes[0], reading.graph.shape(term))
    number = reading.scaled_number(term, abs(factor))
    return reading.scaled_number(number, root_of(copies))


def _add(reading: Reading, operation: Operation, value: Value) -> None:
    first, second = operation.args[0], argument_of(operation, 1, "other")
    alpha = abs(float(argument_of(operation, 2, "alpha", 1.0)))
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
    first, second = operation.args[0], argument_of(operation, 1, "other")
    inverse = operation.name == "div"
    if argument_of(operation, 2, "rounding_mode") is not None:
        raise NoRule("it rounds")
    if isinstance(first, Value) and isinstance(second, Value):
        raise NoRule("both factors depend on the image")
    if isinstance(second, Value):
        if inverse:
            raise NoRule("the divisor depends on the image")
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
        raise NoRule("a factor that is not finite")
    if inverse:
        sizes = 1.0 / sizes
    largest, smallest = float(sizes.max()), float(sizes.min())
    copies = copies_in(operation.shapes[0], reading.graph.shape(source))
    upper = math.nextafter(largest, math.inf) if inverse else largest
    if copies > 1:
        upper = math.nextafter(upper * root_of(copies), math.inf)
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
    dim = argument_of(operation, 1, "dim", 0)
    if operation.name == "cat" and len(operation.shapes[0]) == 4 and dim % 4 == 1 and len(parts) == 1:
        reading.pixelwise[value] = Pixelwise((parts[0],), 1.0)


def _extreme(reading: Reading, operation: Operation, value: Value) -> None:
    """The larger, or the smaller, of two numbers: both together are a permutation of the two."""
    first, second = operation.args[0], argument_of(operation, 1, "other")
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
    source = source_of(operation)
    dim = argument_of(operation, 1, "dim")
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
    source = source_of(operation)
    producer, sign = reading.producer(source), 0
    if producer is not None and producer.name == "neg":
        source, sign = producer.args[0], 1
    first = reading.first(source)
    parts = reading.pair(("relu", first.operation, first.output), [reading.number(source)])
    reading.same(value, parts[sign])
    reading.pixelwise[value] = Pixelwise((source_of(operation),), 1.0)


_COMPARISONS = {"lt": False, "le": False, "gt": True, "ge": True}


def _where(reading: Reading, operation: Operation, value: Value) -> None:
    condition, chosen, other = operation.args
    if not isinstance(condition, Value):
        values = [part for part in (chosen, other) if isinstance(part, Value)]
        reading.joined(value, [_term(reading, operation, part) for part in values])
        return
    _compared(reading, operation, value, condition, chosen, other)


def _mixture(reading: Reading, operation: Operation, value: Value) -> None:
    """A mixture by weights of 0 and 1 that come from a comparison is a choice."""
    other, chosen, weight = operation.args
    cast = reading.producer(weight) if isinstance(weight, Value) else None
    if cast is None or cast.name != "_to_copy" or not isinstance(cast.args[0], Value):
        raise NoRule("a mixture whose weights are no comparison")
    _compared(reading, operation, value, cast.args[0], chosen, other)


def _compared(
    reading: Reading, operation: Operation, value: Value, condition: Value, chosen: object, other: object
) -> None:
    """A choice by a comparison of the two that are chosen from: their maximum or minimum."""
    compared = reading.producer(condition)
    if isinstance(chosen, Value) and isinstance(other, Value) and compared is not None:
        operands = [reading.first(o) for o in compared.args[:2] if isinstance(o, Value)]
        pair = [reading.first(chosen), reading.first(other)]
        same = len(operands) == 2 and sorted(operands, key=_order) == sorted(pair, key=_order)
        if same and compared.name in _COMPARISONS:
            larger = _COMPARISONS[compared.name] == (operands[0] == pair[0])
            _choose(reading, operation, value, pair[0], pair[1], larger)
            return
    raise NoRule("a choice that depends on the image and is no maximum or minimum")


def _order(value: Value) -> tuple[int, int]:
    return value.operation, value.output


def _clamp(reading: Reading, operation: Operation, value: Value) -> None:
    only_at(operation, 0)
    reading.same(value, _term(reading, operation, source_of(operation)))
    if operation.shapes[0] == reading.graph.shape(source_of(operation)):
        reading.pixelwise[value] = Pixelwise((source_of(operation),), 1.0)


def _mean(reading: Reading, operation: Operation, value: Value) -> None:
    """The mean of n numbers: a row of n times 1/n; the sum: a row of ones."""
    source = source_of(operation)
    count = copies_in(reading.graph.shape(source), operation.shapes[0])
    entry = 1.0 / count if operation.name == "mean" else 1.0
    norm = entry * math.sqrt(count)
    reading.scaled(value, source, Bound(up(norm, 3), down(norm, 3), "row of ones"), operation.name, f"of {count}")


def _vector_norm(reading: Reading, operation: Operation, value: Value) -> None:
    if argument_of(operation, 1, "ord", 2) not in (2, math.inf):
        raise NoRule("this norm")
    _same(reading, operation, value)


CONSTANT = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")
"""Operations that take no more than a shape from the image."""

_ARRANGING = (
    "view _unsafe_view reshape _reshape_alias permute transpose t squeeze unsqueeze flatten unflatten movedim "
    "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle flip roll rot90"
)
_SLICING = "slice select index_select index split split_with_sizes unsafe_split unsafe_split_with_sizes unbind"

COMBINING: Mapping[str, Rule] = {
    **dict.fromkeys(_ARRANGING.split(), _same),
    # Sorting pairs numbers no worse than they stood (rearrangement inequality); the gradient of logsumexp is a softmax.
    **dict.fromkeys(("sort", "msort", "logsumexp", "amax", "amin"), _same),
    **dict.fromkeys(("clone", "contiguous", "detach", "alias", "lift_fresh", "copy"), _elementwise),
    **dict.fromkeys(("neg", "abs", "sin", "cos", "atan"), _elementwise),
    "_to_copy": _narrowing,
    **dict.fromkeys(_SLICING.split(), _slice),
    **dict.fromkeys(("expand", "repeat"), _expand),
    **dict.fromkeys(PADDINGS, _padding),
    **dict.fromkeys(("add", "sub", "rsub"), _add),
    **dict.fromkeys(("mul", "div"), _multiply),
    **dict.fromkeys(("cat", "stack"), _concatenate),
    **dict.fromkeys(("maximum", "minimum"), _extreme),
    **dict.fromkeys(("max", "min"), _extreme_of),
    "linalg_vector_norm": _vector_norm,
    **dict.fromkeys(("mean", "sum"), _mean),
    "where": _where,
    "lerp": _mixture,
    "relu": _relu,
    **dict.fromkeys(("clamp", "clamp_min", "clamp_max", "hardtanh"), _clamp),
    **dict.fromkeys(CONSTANT, _constant),
}
