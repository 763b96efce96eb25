"""From bounds of single operations to a bound of the whole network.

For two images let n_v be the norm of the difference of their values v, and z_v = n_v^2. Every operation says something
about these numbers, and four kinds of sentences are enough:

* :class:`Scaled`: z_v <= L^2 z_u, an operation with Lipschitz constant L;
* :class:`Joined`: z_v <= z_a + z_b + ..., a concatenation, or the maximum of a and b;
* :class:`Added`: n_v <= n_a + n_b + ..., a sum;
* :class:`Parted`: z_a + z_b + ... <= z_u, disjoint parts of u, or both results of sorting a pair.

A bound of z_out is wanted, given z_in = 1. **Weights flow backwards**: keep numbers w_v >= 0 such that
z_out <= sum_v w_v z_v over the values not yet replaced; start with w_out = 1, and replace values from the last to the
first by what is known of them. Scaled moves L^2 w_v to u; Joined moves w_v to each of a, b, ...; Parted replaces
w_a z_a + w_b z_b by max(w_a, w_b) z_u; and a sum is split by Cauchy's inequality,

    (n_a + n_b + ...)^2 <= z_a / p_a + z_b / p_b + ...     for any positive p_a + p_b + ... = 1.

In the end z_out <= w_in z_in: sqrt(w_in) is a Lipschitz constant, **whatever the numbers p were**. They only decide how
good it is, so they may come from any heuristic. Without Parted the choice p_a = n_a / (n_a + n_b) from a forward pass
is the best and gives the usual rules: products along chains, sums for residuals, roots of sums of squares for
concatenations. With Parted it matters how z_u is shared among its parts: the largest z_out that the sentences permit is
a concave function of the shares (z -> sqrt(z_a z_b) is concave), its derivative with respect to a part is that
part's weight, and multiplying each share by its weight climbs to it. By convex duality the best p then reaches the same
value, and the maximum in Parted is taken by all parts that matter at once.

Every product, quotient and sum of the backward pass that may round is rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Added", "Joined", "Parted", "Relation", "Scaled", "Unbounded", "compose", "needed", "product_up"]


@dataclass(frozen=True)
class Scaled:
    """z_value <= factor^2 z_source."""

    value: int
    source: int
    factor: float


@dataclass(frozen=True)
class Joined:
    """z_value <= the sum of the parts' z."""

    value: int
    parts: tuple[int, ...]


@dataclass(frozen=True)
class Added:
    """n_value <= the sum of the terms' n."""

    value: int
    terms: tuple[int, ...]


@dataclass(frozen=True)
class Parted:
    """The sum of the parts' z <= z_source."""

    parts: tuple[int, ...]
    source: int


@dataclass(frozen=True)
class Unbounded:
    """Nothing is known of a value, and why."""

    value: int
    reason: str


Relation = Scaled | Joined | Added | Parted | Unbounded


def compose(
    relations: Sequence[Relation], source: int, target: int, steps: int = 400, precision: float = 1e-9
) -> float | str:
    """An upper bound of n_target for n_source = 1.

    Args:
        relations: in an order in which every value is explained (as value or part) before it is used.
        source, target: numbers of values.
        steps: how many times shares are adapted, where there are any.
        precision: relative gap between this bound and what the relations permit at which to stop.

    Returns:
        The bound, rounded up; or the reason of the first :class:`Unbounded` value that it depends on.
    """
    if target == source:
        return 1.0
    relations, reason = needed(relations, source, target)
    if reason is not None:
        return reason
    groups = [r for r in relations if isinstance(r, Parted) and len(r.parts) > 1]
    shares = {part: 1.0 / len(group.parts) for group in groups for part in group.parts}
    best = math.inf
    for _ in range(steps if groups and any(isinstance(r, Added) for r in relations) else 1):
        norms = _forward(relations, source, shares)
        weights = _backward(relations, target, norms)
        best = min(best, weights.get(source, 0.0))
        if best <= norms.get(target, 0.0) ** 2 * (1.0 + precision):
            break
        for group in groups:
            gains = [shares[part] * weights.get(part, 0.0) for part in group.parts]
            total = sum(gains)
            if total > 0.0 and math.isfinite(total):
                # No share may vanish: what is needed later could never come back.
                shares |= {p: max(gain / total, 1e-12) for p, gain in zip(group.parts, gains, strict=True)}
    root = math.sqrt(best)
    return root if root.is_integer() and product_up(root, root) == best else _up(root)


def needed(relations: Sequence[Relation], source: int, target: int) -> tuple[list[Relation], str | None]:
    """The relations that the target depends on, with unneeded parts left out; why there is no bound, if so."""
    wanted, explained = {target}, {source}
    kept: list[Relation] = []
    reason = None
    for relation in reversed(relations):
        match relation:
            case Parted(parts, origin):
                parts = tuple(part for part in parts if part in wanted)
                if parts:
                    wanted.add(origin)
                    explained |= set(parts)
                    kept.append(Parted(parts, origin))
            case Unbounded(value, why):
                if value in wanted:
                    explained.add(value)
                    reason = why
            case Scaled(value, origin, factor):
                if value in wanted:
                    explained.add(value)
                    kept.append(relation)
                    wanted |= {origin} if factor > 0.0 else set()
            case Joined(value, parts) | Added(value, parts):
                if value in wanted:
                    explained.add(value)
                    kept.append(relation)
                    wanted |= set(parts)
    if reason is None and not wanted <= explained:
        reason = "a value that nothing is known of"
    return kept[::-1], reason


def _forward(relations: Sequence[Relation], source: int, shares: Mapping[int, float]) -> dict[int, float]:
    """Norms n that the relations permit, if Parted sources are shared in this way."""
    norms = {source: 1.0}
    for relation in relations:
        match relation:
            case Scaled(value, origin, factor):
                norms[value] = factor * norms.get(origin, 0.0)
            case Joined(value, parts):
                norms[value] = math.sqrt(sum(norms.get(part, 0.0) ** 2 for part in parts))
            case Added(value, terms):
                norms[value] = sum(norms.get(term, 0.0) for term in terms)
            case Parted(parts, origin):
                for part in parts:
                    norms[part] = math.sqrt(shares.get(part, 1.0)) * norms.get(origin, 0.0)
            case Unbounded():
                pass
    return norms


def _backward(relations: Sequence[Relation], target: int, norms: Mapping[int, float]) -> dict[int, float]:
    """Weights w with z_target <= w_source z_source, rounded up."""
    weights = {target: 1.0}

    def give(value: int, weight: float) -> None:
        before = weights.get(value, 0.0)
        exact = before == 0.0 or (before.is_integer() and weight.is_integer() and before + weight < 2.0**53)
        weights[value] = before + weight if exact else _up(before + weight)

    for relation in reversed(relations):
        match relation:
            case Scaled(value, origin, factor):
                weight = weights.get(value, 0.0)
                if weight > 0.0 and factor > 0.0:
                    give(origin, product_up(weight, product_up(factor, factor)))
            case Joined(value, parts):
                for part in parts:
                    give(part, weights.get(value, 0.0))
            case Added(value, terms):
                total = _up(sum(norms.get(term, 0.0) for term in terms) * (1.0 + len(terms) * 2.0**-52))
                for term in terms:
                    # p = n / total: rounded up, the total makes the sum of all p at most one.
                    norm = norms.get(term, 0.0)
                    if norm > 0.0:
                        give(term, _up(weights.get(value, 0.0) * _up(total / norm)))
            case Parted(parts, origin):
                largest = max(weights.get(part, 0.0) for part in parts)
                if largest > 0.0:
                    give(origin, largest)
            case Unbounded():
                pass
    return weights


def product_up(first: float, second: float) -> float:
    """The product, not rounded down; of ones and of integers exact."""
    result = first * second
    whole = first.is_integer() and second.is_integer() and result < 2.0**53
    return result if whole or first == 1.0 or second == 1.0 else _up(result)


def _up(value: float) -> float:
    """The next larger number: an upper bound of the exact result of one rounded operation."""
    return math.nextafter(value, math.inf)
