"""What has to be computed of every value of a network for the logits of one cell, and in which steps.

From the output backwards each value gets the box that what comes after it depends on. Then, from the image forwards,
operations take what there is, and boxes are cut out where that leaves much less to do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from attackcheck.cones.rules import Rule, function_of, rule_of, sources
from attackcheck.cones.spans import Box, Span, boxed
from attackcheck.tracing import Graph, Operation, Value

__all__ = ["Part", "Plan", "Step", "planned"]

WORTHWHILE = 0.75
"""Share up to which of a value a box is cut out, and up to which of a network's work cones are used."""

ENTRY = 16
"""What it costs to make one entry of a value, in multiplications: most operations wait for memory."""

Pair = tuple[int, int]


@dataclass(frozen=True)
class Part:
    """``box`` of a value of which ``before`` has been computed."""

    value: Value
    before: Box
    box: Box


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        number: of the operation.
        run: what is called.
        args, kwargs: with values, or parts of them, in the place of tensors that depend on the image.
        last: values that nobody needs afterwards.
    """

    number: int
    run: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    last: list[Value] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """Steps in order, the part of the output that is asked for, and the share of the network's work that is left."""

    steps: Sequence[Step]
    last: Part
    share: float


def planned(graph: Graph, stride: int) -> Plan | None:
    """The steps to the logits of one cell, None where they would cost nearly as much as the whole network."""
    output = graph.output
    if output is None or len(graph.shape(output)) != 4 or graph.shape(output)[2:] != graph.input_shape[2:]:
        return None
    needs = _Needs(graph, stride, output)
    return None if needs.boxes.get(output) is None else _steps(graph, needs, output)


class _Needs:
    """Which box of each value the cell's logits depend on.

    Attributes:
        boxes: by value; None: all of it, because what follows does not treat places alike.
        rules: of operations.
    """

    def __init__(self, graph: Graph, stride: int, output: Value) -> None:
        self._graph, self._stride = graph, stride
        self.rules = [rule_of(operation, graph) for operation in graph.operations]
        self.boxes: dict[Value, Box | None] = {}
        self._grid: dict[Value, Pair] = {}  # a box must begin and end at multiples of these
        whole = self.whole(output)
        if whole is None:
            return
        self.boxes[output] = boxed((0, 0), (stride, stride), whole)
        for number in range(output.operation, -1, -1):
            outputs = self.outputs(number)
            if outputs:
                for value in sources_of(graph.operations[number]):
                    self._needed(value, self.of_input(number, value), number)

    def whole(self, value: Value) -> Box | None:
        """All of a value, None where its entries do not divide into cells."""
        shape = self._graph.shape(value)
        if len(shape) < 4:
            return None
        spans = []
        for size, pixels in zip(shape[-2:], self._graph.input_shape[2:], strict=True):
            if size == 0 or self._stride * size % pixels:
                return None
            spans.append(Span(0, size, size, self._stride * size // pixels))
        return Box(*spans)

    def outputs(self, number: int) -> list[Value]:
        """The values that an operation makes and somebody needs."""
        count = len(self._graph.operations[number].shapes)
        return [value for value in (Value(number, output) for output in range(count)) if value in self.boxes]

    def of_input(self, number: int, value: Value) -> Box | None:
        """The box of an input that the needed boxes of an operation's outputs depend on; None: all of it."""
        rule, like = self.rules[number], self.whole(value)
        boxes = [self.boxes[output] for output in self.outputs(number)]
        if rule is None or like is None:
            return None
        total: Box | None = None
        for box in boxes:
            if box is None:
                return None
            wanted = rule.need(box, like).union(box.scaled(rule.step, rule.grow, like))
            total = wanted if total is None else total.union(wanted)
        return None if total is None else total.aligned((self._grid_of(number, 0), self._grid_of(number, 1)))

    def _grid_of(self, number: int, axis: int) -> int:
        """At which multiples the boxes of an operation's inputs must begin and end, all alike."""
        rule = self.rules[number]
        if rule is None:
            return 1
        step, grow = rule.step[axis], rule.grow[axis]
        later = [self._grid.get(output, (1, 1))[axis] for output in self.outputs(number)]
        return math.lcm(*(math.lcm(by, grow) // grow * step for by in later))

    def _needed(self, value: Value, box: Box | None, number: int) -> None:
        like = self.whole(value)
        if value in self.boxes and self.boxes[value] is None:
            return
        grid = None if like is None else self._grid_for(value, like, number)
        if box is None or grid is None:
            self.boxes[value] = None
            return
        self._grid[value] = grid
        known = self.boxes.get(value)
        self.boxes[value] = (box if known is None else known.union(box)).aligned(grid)

    def _grid_for(self, value: Value, like: Box, number: int) -> Pair | None:
        """Multiples for all that an input goes into so far, this operation too; None: they do not divide its cells."""
        grid = []
        for axis, span in enumerate((like.rows, like.columns)):
            least = math.lcm(self._grid.get(value, (1, 1))[axis], self._grid_of(number, axis))
            if span.unit % least or span.size % least:
                return None
            grid.append(least)
        return grid[0], grid[1]


def sources_of(operation: Operation) -> list[Value]:
    """The values that an operation takes."""
    return sources([*operation.args, *operation.kwargs.values()])


def _steps(graph: Graph, needs: _Needs, output: Value) -> Plan | None:
    have: dict[Value, Box | None] = {Value(-1): needs.whole(Value(-1))}
    steps: list[Step] = []
    done = total = 0.0
    for number, operation in enumerate(graph.operations):
        total += _work(graph, number, None)
        outputs = needs.outputs(number)
        if not outputs:
            continue
        rule, values = needs.rules[number], sources_of(operation)
        parts: dict[Value, Part] = {}
        made = {Value(number, i): needs.whole(Value(number, i)) for i in range(len(operation.shapes))}
        boxes = [have[value] for value in values]
        if rule is not None and all(needs.boxes[one] is not None for one in outputs):
            first, apart = boxes[0], len(set(boxes)) > 1
            if first is None:
                return None
            wanted = needs.of_input(number, values[0]) if all(needs.boxes[value] for value in values) else None
            if wanted is None and apart:
                return None
            if wanted is not None and (apart or wanted.area <= WORTHWHILE * first.area):
                held = [(value, box) for value, box in zip(values, boxes, strict=True) if box not in (None, wanted)]
                parts = {value: Part(value, box, wanted) for value, box in held if box is not None}
                if not all(part.before.holds(part.box) for part in parts.values()):
                    return None
                first = wanted
            made = {value: _after(first, rule, whole) for value, whole in made.items()}
            done += sum(ENTRY * part.box.area * _channels(graph, value) for value, part in parts.items())
        run = function_of(operation) if rule is None else rule.run
        if run is None:
            return None
        steps.append(Step(number, run, _placed(operation.args, parts), _placed(operation.kwargs, parts)))
        have.update(made)
        done += _work(graph, number, made[outputs[0]])
    last, cell = have[output], needs.boxes[output]
    if last is None or cell is None or not steps or not last.holds(cell) or done > WORTHWHILE * total:
        return None
    _forget(steps, output)
    return Plan(steps, Part(output, last, cell), done / total)


def _after(box: Box, rule: Rule, whole: Box | None) -> Box | None:
    """What an operation makes of a box."""
    return None if whole is None else box.scaled(rule.grow, rule.step, whole)


def _placed(arguments: Any, parts: Mapping[Value, Part]) -> Any:
    if isinstance(arguments, Value):
        return parts.get(arguments, arguments)
    if isinstance(arguments, list | tuple):
        return [_placed(one, parts) for one in arguments]
    if isinstance(arguments, Mapping):
        return {name: _placed(one, parts) for name, one in arguments.items()}
    return arguments


def _forget(steps: Sequence[Step], output: Value) -> None:
    """Notes after which step nobody needs a value."""
    seen = {output}
    for step in reversed(steps):
        used = {one.value if isinstance(one, Part) else one for one in _used([step.args, list(step.kwargs.values())])}
        step.last.extend(used - seen)
        seen |= used


def _used(arguments: Any) -> list[Value | Part]:
    if isinstance(arguments, Value | Part):
        return [arguments]
    if isinstance(arguments, list | tuple):
        return [one for part in arguments for one in _used(part)]
    return []


def _channels(graph: Graph, value: Value) -> int:
    return math.prod(graph.shape(value)[1:-2])


def _work(graph: Graph, number: int, box: Box | None) -> float:
    """Multiplications of an operation, about, where this box of its (first) output is computed; None: all of it."""
    operation, value = graph.operations[number], Value(number)
    shape = graph.shape(value)
    entries = math.prod(shape) if box is None else box.area * _channels(graph, value)
    weight = operation.args[1] if operation.name == "convolution" else None
    if not isinstance(weight, Tensor) or not shape:
        return float(ENTRY * entries)
    # a transposed one has an entry of the output for few of its input, which are over its stride
    inputs = weight.shape[0] / math.prod(operation.args[3]) if operation.args[6] else weight.shape[1]
    return float(entries * (ENTRY + inputs * math.prod(weight.shape[2:])))
