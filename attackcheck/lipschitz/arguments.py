"""What rules ask of an operation: its arguments, which of them depend on the image, sizes and counts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from attackcheck.lipschitz.bound import root
from attackcheck.lipschitz.bounds import Bound
from attackcheck.lipschitz.reading import Reading
from attackcheck.tracing import Operation, Value

__all__ = [
    "PADDINGS",
    "NoRule",
    "Rule",
    "argument_of",
    "copies_in",
    "depends",
    "exactly",
    "only_at",
    "pads_of",
    "place",
    "root_of",
    "short",
    "size_of",
    "source_of",
    "weight_of",
]

Rule = Callable[[Reading, Operation, Value], None]


class NoRule(Exception):  # noqa: N818
    """This use of an operation has no rule; the argument says what about it."""


def place(operation: Operation) -> str:
    """The module that an operation belongs to, for people."""
    return operation.path or "the network itself"


def argument_of(operation: Operation, position: int, name: str, default: Any = None) -> Any:
    """An argument by position, or by name."""
    args = operation.args
    return args[position] if len(args) > position else operation.kwargs.get(name, default)


def source_of(operation: Operation, position: int = 0) -> Value:
    """The tensor that an operation works on, which has to depend on the image."""
    source = operation.args[position] if len(operation.args) > position else None
    if not isinstance(source, Value):
        raise NoRule("its input does not depend on the image, but something else does")
    return source


def only_at(operation: Operation, *positions: int) -> None:
    """Only these positional arguments may depend on the image."""
    for position, argument in enumerate(operation.args):
        if position not in positions and depends(argument):
            raise NoRule("an argument depends on the image")
    if any(depends(argument) for argument in operation.kwargs.values()):
        raise NoRule("an argument depends on the image")


def depends(argument: Any) -> bool:
    """Whether anything in an argument depends on the image."""
    if isinstance(argument, list | tuple):
        return any(depends(part) for part in argument)
    return isinstance(argument, Value)


def exactly(value: float, method: str) -> Bound:
    """A constant that is known."""
    return Bound(value, value, method)


def size_of(shape: Sequence[int]) -> tuple[int, ...]:
    """Height and width (or one length) of a shape (B, C, ...)."""
    return tuple(shape[2:])


def copies_in(large: Sequence[int], small: Sequence[int]) -> int:
    """How many times the numbers of the small shape fit into the large one."""
    return max(1, math.prod(large)) // max(1, math.prod(small))


def root_of(number: int) -> float:
    """The square root of a count, not rounded down."""
    return root(number).upper


def short(numbers: Sequence[int]) -> str:
    """Equal numbers as one."""
    return f"{numbers[0]}" if len(set(numbers)) == 1 else ",".join(map(str, numbers))


def weight_of(operation: Operation, position: int) -> Tensor:
    """A constant weight in float64."""
    weight = operation.args[position]
    if not isinstance(weight, Tensor):
        raise NoRule("the weight depends on the image")
    return weight.detach().double().cpu()


PADDINGS = {
    "constant_pad_nd": "constant",
    "reflection_pad1d": "reflect",
    "reflection_pad2d": "reflect",
    "replication_pad1d": "replicate",
    "replication_pad2d": "replicate",
    "circular_pad": "circular",
}


def pads_of(operation: Operation) -> tuple[list[int], str]:
    """Left, right, top, bottom; and the mode."""
    return list(argument_of(operation, 1, "pad")), PADDINGS[operation.name]
