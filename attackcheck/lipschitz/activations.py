"""Rules of activations other than ReLU, MaxMin and sorting."""

from __future__ import annotations

import math
from collections.abc import Mapping

from attackcheck.lipschitz import bounds
from attackcheck.lipschitz.arguments import (
    NoRule,
    Rule,
    argument_of,
    exactly,
    only_at,
    root_of,
    source_of,
    weight_of,
)
from attackcheck.lipschitz.bounds import Bound
from attackcheck.lipschitz.reading import Pixelwise, Reading
from attackcheck.tracing import Operation, Value

__all__ = [
    "ACTIVE",
]


def _activation(name: str, *options: str) -> Rule:
    def rule(reading: Reading, operation: Operation, value: Value) -> None:
        only_at(operation, 0)
        given: dict[str, float] = {}
        for position, option in enumerate(options, start=1):
            argument = argument_of(operation, position, option)
            if argument is not None:
                given[option] = argument
        bound = bounds.activation(name, **given)
        if bound.upper == 1.0:
            reading.same(value, source_of(operation))
        else:
            reading.scaled(value, source_of(operation), bound, name)
        if name != "Softmax" or argument_of(operation, 1, "dim") == 1:
            reading.pixelwise[value] = Pixelwise((source_of(operation),), bound.upper)

    return rule


def _prelu(reading: Reading, operation: Operation, value: Value) -> None:
    only_at(operation, 0)
    slope = float(weight_of(operation, 1).abs().max())
    upper = max(1.0, slope)
    reading.scaled(value, source_of(operation), exactly(upper, "largest slope"), "PReLU")
    reading.pixelwise[value] = Pixelwise((source_of(operation),), upper)


def _gelu(reading: Reading, operation: Operation, value: Value) -> None:
    bound = bounds.activation("GELU", approximate=operation.kwargs.get("approximate", "none"))
    reading.scaled(value, source_of(operation), bound, "GELU")
    reading.pixelwise[value] = Pixelwise((source_of(operation),), bound.upper)


def _elu(reading: Reading, operation: Operation, value: Value) -> None:
    """ELU and SELU: scale * (x, or alpha (exp(input_scale x) - 1) below zero)."""
    options = ((1, "alpha"), (2, "scale"), (3, "input_scale"))
    alpha, scale, inner = (float(argument_of(operation, i, name, 1.0)) for i, name in options)
    upper = math.nextafter(abs(scale) * max(1.0, math.nextafter(abs(alpha * inner), math.inf)), math.inf)
    if abs(scale) == 1.0 and abs(alpha * inner) <= 1.0:
        upper = 1.0
    if inner < 0:
        raise NoRule("a negative input scale")
    reading.scaled(value, source_of(operation), Bound(upper, 0.0, "largest slope"), "SELU" if scale != 1.0 else "ELU")
    reading.pixelwise[value] = Pixelwise((source_of(operation),), upper)


def _leaky(reading: Reading, operation: Operation, value: Value) -> None:
    upper = max(1.0, abs(float(argument_of(operation, 1, "negative_slope", 0.01))))
    reading.scaled(value, source_of(operation), exactly(upper, "largest slope"), "LeakyReLU")
    reading.pixelwise[value] = Pixelwise((source_of(operation),), upper)


def _log_softmax(reading: Reading, operation: Operation, value: Value) -> None:
    """I - 1 p^T is an oblique projection with norm sqrt(K) ||p|| <= sqrt(K)."""
    source = source_of(operation)
    count = reading.graph.shape(source)[operation.args[1]]
    reading.scaled(value, source, Bound(root_of(count), 0.0, "projection"), "log-softmax")


def _householder(reading: Reading, operation: Operation, value: Value) -> None:
    """Identity on one half-plane, reflection at its border on the other: continuous and isometric piece by piece."""
    factor = float(operation.kwargs["factor"])
    reading.scaled(value, source_of(operation), exactly(factor, "reflections"), "Householder", uniform=False)


ACTIVE: Mapping[str, Rule] = {
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
}
