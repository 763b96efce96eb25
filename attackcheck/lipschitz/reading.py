"""A graph of tensor operations becomes relations between norms; what each operation says is in the rules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attackcheck.lipschitz.bound import root
from attackcheck.lipschitz.bounds import Bound
from attackcheck.lipschitz.composition import Added, Joined, Parted, Relation, Scaled, Unbounded
from attackcheck.tracing import Graph, Operation, Value

__all__ = ["Measured", "Pixelwise", "Reading", "slices"]

Counts = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Measured:
    """One operation with a constant of its own, and which relation it became."""

    path: str
    kind: str
    shape: tuple[int, ...]  # of its input, without the batch
    detail: str
    bound: Bound
    relation: int
    uniform: bool  # a multiple of an isometry: it multiplies the norm of whatever it is chained to
    allowance: float  # by how much the norm may exceed what was meant, from the rounding of stored weights alone


@dataclass(frozen=True)
class Pixelwise:
    """How the vector at one place of a value depends on those of its sources.

    ``|value at a place| <= one * max over places of |source|`` and ``<= all * ||source||``.
    """

    sources: tuple[Value, ...]
    one: float
    all: float = float("inf")


class Reading:
    """Values get numbers, relations are collected; :mod:`attackcheck.lipschitz.rules` speaks to this.

    Attributes:
        relations: what is known, in order.
        measured: the operations with a bound of their own.
        pixelwise: for values whose places depend on few places of their sources.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.relations: list[Relation] = []
        self.measured: list[Measured] = []
        self.pixelwise: dict[Value, Pixelwise] = {}
        self._first: dict[Value, Value] = {}
        self._numbers: dict[Value, int] = {}
        self._count = 0
        self._pairs: dict[Any, tuple[int, int]] = {}
        self._cuts = _cuts(graph, self._first)
        self._atoms: dict[tuple[Value, int], dict[bytes, int]] = {}
        self.image = self._named(Value(-1))
        self._cut(Value(-1))

    # Values ------------------------------------------------------------------------------------------------------

    def first(self, value: Value) -> Value:
        """The first value that was computed in the same way."""
        return self._first.get(value, value)

    def producer(self, value: Value) -> Operation | None:
        """The operation that a value comes from, None for the image."""
        value = self.first(value)
        return None if value.operation < 0 else self.graph.operations[value.operation]

    def number(self, value: Value) -> int:
        """The number of a value in the relations; nothing is assumed of one about which nothing was said."""
        value = self.first(value)
        if value not in self._numbers:
            self.unbounded(value, "a value of unknown origin")
        return self._numbers[value]

    def _named(self, value: Value) -> int:
        value = self.first(value)
        if value not in self._numbers:
            self._numbers[value] = self.new()
        return self._numbers[value]

    def new(self) -> int:
        """A number without a value."""
        self._count += 1
        return self._count - 1

    def known(self, value: Value) -> bool:
        """Whether something was said about a value."""
        return self.first(value) in self._numbers

    # Relations ---------------------------------------------------------------------------------------------------

    def same(self, value: Value, source: Value | int) -> None:
        """The norm of a value's change is at most that of its source."""
        self._numbers[self.first(value)] = source if isinstance(source, int) else self.number(source)
        self._cut(value)

    def scaled(
        self, value: Value, source: Value, bound: Bound, kind: str, detail: str = "", *, uniform: bool = False,
        allowance: float = 0.0,
    ) -> None:  # fmt: skip
        """An operation with a Lipschitz constant."""
        operation = self.graph.operations[value.operation]
        if not bound.upper < math.inf:
            self.unbounded(value, f"{kind} at {operation.path or 'the network itself'}: {bound.method}")
            return
        shape = self.graph.shape(source)[1:]
        number = self.number(source)
        relation = len(self.relations)
        self.relations.append(Scaled(self._named(value), number, bound.upper))
        path = operation.path
        self.measured.append(Measured(path, kind, shape, detail, bound, relation, uniform, allowance))
        self._cut(value)

    def times(self, value: Value, source: Value | int, factor: float) -> None:
        """A factor that needs no line in a table."""
        number = source if isinstance(source, int) else self.number(source)
        self.relations.append(Scaled(self._named(value), number, factor))
        self._cut(value)

    def joined(self, value: Value, parts: Sequence[int]) -> None:
        """Squares add up."""
        self.relations.append(Joined(self._named(value), tuple(parts)))
        self._cut(value)

    def added(self, value: Value, terms: Sequence[int]) -> None:
        """Norms add up."""
        self.relations.append(Added(self._named(value), tuple(terms)))
        self._cut(value)

    def scaled_number(self, source: Value | int, factor: float) -> int:
        """A new number that is a source times a factor."""
        number = source if isinstance(source, int) else self.number(source)
        if factor == 1.0:
            return number
        new = self.new()
        self.relations.append(Scaled(new, number, factor))
        return new

    def unbounded(self, value: Value, reason: str) -> None:
        """Nothing is known."""
        self.relations.append(Unbounded(self._named(value), reason))
        self._cut(value)

    def constant(self, value: Value) -> None:
        """A value that does not change."""
        self.joined(value, ())

    def pair(self, key: Any, source: Sequence[int]) -> tuple[int, int]:
        """Two parts of the values `source` put together, such as the larger and the smaller of each two numbers."""
        if key not in self._pairs:
            whole = source[0]
            if len(source) > 1:
                whole = self.new()
                self.relations.append(Joined(whole, tuple(source)))
            parts = (self.new(), self.new())
            self.relations.append(Parted(parts, whole))
            self._pairs[key] = parts
        return self._pairs[key]

    # Slices ------------------------------------------------------------------------------------------------------

    def _cut(self, value: Value) -> None:
        """Divide a value into the parts that its slices consist of, as soon as it has a number."""
        value = self.first(value)
        for dim, counts in self._cuts.get(value, {}).items():
            if (value, dim) in self._atoms or not counts:
                continue
            table = np.stack(counts)  # (slices, length of the dimension)
            atoms = {column.tobytes(): self.new() for column in np.unique(table, axis=1).T if column.any()}
            self._atoms[value, dim] = atoms
            if atoms:
                self.relations.append(Parted(tuple(atoms.values()), self.number(value)))

    def sliced(self, value: Value, source: Value, dim: int, counts: Counts) -> None:
        """`value` holds entry j of `source` along `dim` counts[j] times."""
        parts = self._pieces(source, dim, counts)
        if len(parts) == 1:
            self.same(value, parts[0])
        else:
            self.joined(value, parts)

    def _pieces(self, source: Value, dim: int, counts: Counts) -> list[int]:
        """Numbers whose squares add up to that of the entries of `source` taken so often."""
        pieces = []
        for part, taken in _inside(self.graph, self._first, source, dim, counts):
            if bool((taken == 1).all()):
                pieces.append(self.number(part))
                continue
            every = self._cuts[part][dim]
            position = next(i for i, c in enumerate(every) if np.array_equal(c, taken))
            for column, number in self._atoms[part, dim].items():
                copies = int(np.frombuffer(column, dtype=taken.dtype)[position])
                if copies:
                    pieces.append(self.scaled_number(number, root(copies).upper))
        return pieces


def _inside(
    graph: Graph, first: Mapping[Value, Value], source: Value, dim: int, counts: Counts
) -> list[tuple[Value, Counts]]:
    """Slices of a concatenation are slices of what was concatenated: the inner values, and what is taken of each."""
    source = first.get(source, source)
    producer = None if source.operation < 0 else graph.operations[source.operation]
    if producer is None or producer.name != "cat":
        return [(source, counts)]
    along = producer.args[1] if len(producer.args) > 1 else producer.kwargs.get("dim", 0)
    if along % len(graph.shape(source)) != dim:
        return [(source, counts)]
    found, start = [], 0
    for part in producer.args[0]:
        length = (graph.shape(part) if isinstance(part, Value) else part.shape)[dim]
        taken, start = counts[start : start + length], start + length
        if isinstance(part, Value) and bool(taken.any()):
            found += _inside(graph, first, part, dim, taken)
    return found


def slices(operation: Operation, source: tuple[int, ...]) -> list[tuple[int, int, Counts]] | None:
    """Which entries along one dimension the results of a slicing operation hold: (result, dimension, counts).

    None if it is no such operation.
    """
    name, args = operation.name, operation.args
    if not args or not isinstance(args[0], Value):
        return None
    given = dict(operation.kwargs)

    def argument(position: int, key: str, default: Any) -> Any:
        return args[position] if len(args) > position else given.get(key, default)

    rank = len(source)

    def counted(dim: int, indices: Any) -> tuple[int, Counts]:
        dim = dim % rank
        return dim, np.bincount(np.arange(source[dim])[indices], minlength=source[dim])

    if name == "slice":
        start, end, step = argument(2, "start", None), argument(3, "end", None), argument(4, "step", 1)
        return [(0, *counted(argument(1, "dim", 0), slice(start, end, step)))]
    if name == "select":
        return [(0, *counted(args[1], [args[2]]))]
    if name == "index_select" and isinstance(args[2], Tensor):  # always integers
        return [(0, *counted(args[1], args[2].cpu().numpy()))]
    if name == "index" and isinstance(args[1], list | tuple):
        used = [(dim, index) for dim, index in enumerate(args[1]) if index is not None]
        plain = len(used) == 1 and isinstance(used[0][1], Tensor) and used[0][1].dim() == 1
        if plain and used[0][1].dtype in (torch.int64, torch.int32, torch.bool):
            return [(0, *counted(used[0][0], used[0][1].cpu().numpy()))]
        return None
    if name in ("split", "split_with_sizes", "unbind", "unsafe_split", "unsafe_split_with_sizes"):
        dim = argument(1, "dim", 0) if name == "unbind" else argument(2, "dim", 0)
        sizes = [1 if name == "unbind" else shape[dim % rank] for shape in operation.shapes]
        ends = np.cumsum(sizes)
        return [(i, *counted(dim, slice(int(e - s), int(e)))) for i, (s, e) in enumerate(zip(sizes, ends, strict=True))]
    return None


def _cuts(graph: Graph, first: dict[Value, Value]) -> Mapping[Value, Mapping[int, list[Counts]]]:
    """All slices of every value, by dimension; fills `first` with what was computed before in the same way."""
    seen: dict[Any, int] = {}
    cuts: dict[Value, dict[int, list[Counts]]] = {}

    def plain(leaf: Any) -> Any:
        if isinstance(leaf, Value):
            leaf = first.get(leaf, leaf)
            return ("value", leaf.operation, leaf.output)
        if isinstance(leaf, Tensor):
            return ("constant", id(leaf))
        if isinstance(leaf, list | tuple):
            return tuple(plain(part) for part in leaf)
        return leaf if isinstance(leaf, int | float | str | bool | None | torch.dtype) else repr(leaf)

    for index, operation in enumerate(graph.operations):
        options = tuple(sorted((name, plain(given)) for name, given in operation.kwargs.items()))
        key = (operation.name, plain(operation.args), options)
        if key in seen:
            for output in range(len(operation.shapes)):
                first[Value(index, output)] = Value(seen[key], output)
            continue
        seen[key] = index
        source = operation.args[0] if operation.args else None
        if isinstance(source, Value):
            for _, dim, counts in slices(operation, graph.shape(source)) or ():
                for part, taken in _inside(graph, first, source, dim, counts):
                    every = cuts.setdefault(part, {}).setdefault(dim, [])
                    if not bool((taken == 1).all()) and not any(np.array_equal(taken, other) for other in every):
                        every.append(taken)
    return cuts
