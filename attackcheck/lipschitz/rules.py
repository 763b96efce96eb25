"""What each tensor operation says about norms.

A rule reads one operation and tells a :class:`~attackcheck.lipschitz.reading.Reading`. Operations without a rule make
their results unbounded: named, never guessed. Tensors carry one image, so all norms are over whole tensors.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from attackcheck.errors import InputError
from attackcheck.lipschitz.activations import ACTIVE
from attackcheck.lipschitz.arguments import NoRule, Rule, place
from attackcheck.lipschitz.combining import COMBINING, CONSTANT
from attackcheck.lipschitz.layers import LAYERS
from attackcheck.lipschitz.pooling import POOLING
from attackcheck.lipschitz.reading import Reading
from attackcheck.tracing import Graph, Value

__all__ = ["RULES", "OutOfTime", "read"]

RULES: Mapping[str, Rule] = {**COMBINING, **LAYERS, **POOLING, **ACTIVE}
"""What is known, by ATen's name of the operation."""


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
        rule = RULES.get(operation.name)
        if rule is None or not (operation.floating or operation.name in CONSTANT):
            reading.unbounded(value, f"{operation.name} at {place(operation)} has no rule")
        else:
            try:
                rule(reading, operation, value)
            except (NoRule, InputError) as none:
                reading.unbounded(value, f"{operation.name} at {place(operation)}: {none}")
    return reading
