"""The result of every bound, and float64 numbers rounded outwards."""

import math
from dataclasses import dataclass

__all__ = ["UNIT", "Bound", "down", "gamma", "product", "root", "up"]

UNIT = 2.0**-53  # of float64, rounding to nearest


@dataclass(frozen=True)
class Bound:
    """What is proved of one operation's L2 Lipschitz constant, as a function of real numbers, at one input size."""

    upper: float
    """Not below the constant, rounding included; infinite where there is no constant."""
    lower: float
    """Not above the constant: a ratio that some input shows; 0 where none was looked for."""
    method: str
    """Where the upper bound comes from, in a few words."""


def gamma(count: float) -> float:
    """Relative error of a sum of `count` products, in whatever order (Higham, "Accuracy and stability", lemma 3.1)."""
    return count * UNIT / (1 - count * UNIT)


def up(value: float, operations: int = 4) -> float:
    """`value`, which so many roundings may have made too small, enlarged until it is not."""
    return math.nextafter(value * (1 + gamma(operations + 1)), math.inf)


def down(value: float, operations: int = 4) -> float:
    """`value`, which so many roundings may have made too large, reduced until it is not."""
    return max(0.0, math.nextafter(value * (1 - gamma(operations + 1)), -math.inf))


def root(square: int) -> Bound:
    """The square root of an integer: itself where it is an integer, else its neighbours."""
    if math.isqrt(square) ** 2 == square:
        return Bound(float(math.isqrt(square)), float(math.isqrt(square)), "")
    return Bound(up(math.sqrt(square), 1), down(math.sqrt(square), 1), "")


def product(*factors: Bound, method: str) -> Bound:
    """The bound of a Kronecker product, whose norm is the product of the norms. Ones and integers stay exact."""
    upper, lower = 1.0, 1.0
    for factor in factors:
        exact = upper.is_integer() and factor.upper.is_integer()
        upper = upper * factor.upper if exact or factor.upper == 1 else up(upper * factor.upper, 1)
        exact = lower.is_integer() and factor.lower.is_integer()
        lower = lower * factor.lower if exact or factor.lower == 1 else down(lower * factor.lower, 1)
    return Bound(upper, lower, method)
