"""Bounds composed from sentences about norms, against the largest value that the sentences permit."""

import math

import numpy as np
import pytest

from attackcheck.lipschitz.composition import Added, Joined, Parted, Relation, Scaled, Unbounded, compose


@pytest.mark.parametrize("slope", [0.0, 0.3, 1.0, 5.0])
def test_an_additive_coupling_reaches_the_best_share(slope: float) -> None:
    # x = (a, b); a + f(b) and b put together again, f with constant `slope`.
    relations = [Parted((1, 2), 0), Scaled(3, 2, slope), Added(4, (1, 3)), Joined(5, (4, 2))]
    share = np.linspace(0.0, 1.0, 200_001)
    largest = np.sqrt(((np.sqrt(share) + slope * np.sqrt(1 - share)) ** 2 + 1 - share).max())
    bound = compose(relations, 0, 5)
    assert isinstance(bound, float)
    assert largest <= bound * (1 + 1e-12)
    assert bound <= largest * (1 + 1e-6)


def test_two_couplings_in_a_row() -> None:
    relations: list[Relation] = [Parted((1, 2), 0), Scaled(3, 2, 1.0), Added(4, (1, 3)), Joined(5, (4, 2))]
    relations += [Parted((6, 7), 5), Scaled(8, 6, 1.0), Added(9, (7, 8)), Joined(10, (6, 9))]
    bound = compose(relations, 0, 10)
    golden = (1 + math.sqrt(5)) / 2
    assert bound == pytest.approx(golden**2, rel=1e-6)  # once through a plain concatenation; each alone has golden


def test_residuals_chains_and_joins_without_parts_are_the_usual_rules() -> None:
    assert compose([Scaled(1, 0, 0.5), Added(2, (0, 1))], 0, 2) == pytest.approx(1.5, rel=1e-14)
    assert compose([Scaled(1, 0, 3.0), Scaled(2, 1, 2.0)], 0, 2) == 6.0
    assert compose([Scaled(1, 0, 3.0), Scaled(2, 0, 4.0), Joined(3, (1, 2))], 0, 3) == 5.0
    assert compose([Joined(1, ())], 0, 1) < 1e-150  # a constant
    assert compose([], 0, 0) == 1.0


def test_parts_put_together_again_are_the_whole() -> None:
    assert compose([Parted((1, 2, 3), 0), Joined(4, (1, 2, 3))], 0, 4) == 1.0
    assert compose([Parted((1, 2), 0), Scaled(3, 1, 7.0), Joined(4, (3, 2))], 0, 4) == 7.0


def test_only_what_is_needed_has_to_be_known() -> None:
    relations = [Unbounded(1, "no rule for this"), Scaled(2, 0, 2.0)]
    assert compose(relations, 0, 2) == 2.0
    assert compose([*relations, Added(3, (1, 2))], 0, 3) == "no rule for this"
    assert isinstance(compose([Added(3, (0, 9))], 0, 3), str)  # of value 9 nothing was said


def test_bounds_are_rounded_up() -> None:
    factors = np.random.default_rng(0).uniform(0.5, 2.0, 200)
    relations = [Scaled(i + 1, i, float(factor)) for i, factor in enumerate(factors)]
    exact = np.prod(factors.astype(np.longdouble))
    bound = compose(relations, 0, len(factors))
    assert isinstance(bound, float)
    assert exact <= bound <= exact * (1 + 1e-12)
