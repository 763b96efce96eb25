"""Norms of matrices: the upper bound is proved, whatever the eigenvalue routine proposed."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attackcheck.lipschitz import spectral
from attackcheck.lipschitz.bound import Bound, down, product, root, up
from attackcheck.lipschitz.bounds import linear
from attackcheck.lipschitz.spectral import krylov, proved


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_values(values, rows, columns, seed=0):
    """A matrix of which the singular values are known by construction."""
    left, right = (torch.linalg.qr(normal(n, len(values), seed=seed + n))[0] for n in (rows, columns))
    return left * torch.as_tensor(values, dtype=torch.float64) @ right.mT


@pytest.mark.parametrize(
    "values", [[3.0], [2, 2, 2, 2], [1 + 1e-12, 1, 1 - 1e-12], [5, 1e-200], [1, 0.99, 0.98, 0.5], [0.7] * 30], ids=str
)
@pytest.mark.parametrize(("rows", "columns"), [(40, 30), (30, 40), (30, 300)])
def test_known_singular_values(values, rows, columns):
    bound = linear(with_values(values, rows, columns))
    assert bound.upper >= max(values) * (1 - 1e-15)
    assert bound.upper <= max(values) * (1 + 1e-10)
    assert max(values) * (1 - 1e-10) <= bound.lower <= max(values) * (1 + 1e-15)


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 12), columns=st.integers(1, 12), seed=st.integers(0, 999), power=st.integers(-900, 900))
def test_any_matrix_at_any_scale(rows, columns, seed, power):
    matrix = normal(rows, columns, seed=seed)
    truth = float(torch.linalg.svdvals(matrix)[0])
    bound = linear(matrix * 2.0**power)
    assert bound.lower <= math.ldexp(truth * (1 + 1e-14), power)
    assert math.ldexp(truth * (1 - 1e-14), power) <= bound.upper <= math.ldexp(truth * (1 + 1e-10), power)


def test_exact_integers_bound_exact_integers():
    # Hilbert-like integers: (1, 2; 3, 4) has norm sqrt(15 + sqrt(221)), computed to 40 digits by hand.
    bound = linear(torch.tensor([[1, 2], [3, 4]]))
    assert bound.lower < 5.464985704219043 < bound.upper
    assert bound.upper - bound.lower < 1e-10


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999, 1 - 1e-9, 1.0, 1.5, -1.0])
@pytest.mark.parametrize("side", [2, 7, 60])
def test_a_wrong_proposal_is_not_believed(share, side):
    """An eigenvalue routine that stopped early, or lies, costs tightness but never truth."""
    half = normal(3, side, side, seed=side)
    hermitian = half @ half.mT
    truth = torch.linalg.eigvalsh(hermitian)[:, -1]
    bound = proved(hermitian, truth * share)
    assert bool((bound >= truth * (1 - 1e-14)).all())
    if share in (1 - 1e-9, 1.0):
        assert bool((bound <= truth * (1 + 1e-8)).all())


def test_complex_and_negative_matrices():
    half = torch.complex(normal(5, 9, 9), normal(5, 9, 9, seed=1))
    hermitian = half + half.mH
    values = torch.linalg.eigvalsh(hermitian)
    assert bool((proved(hermitian, values[:, -1]) - values[:, -1]).abs().max() < 1e-9)
    assert bool((proved(-hermitian, -values[:, 0]) >= -values[:, 0] - 1e-14).all())
    with pytest.raises(ArithmeticError):
        proved(hermitian * math.nan, values[:, -1])


def test_large_matrices():
    tall = normal(700, 300)
    truth = float(torch.linalg.svdvals(tall)[0])
    assert linear(tall).lower <= truth * (1 + 1e-12) <= linear(tall).upper * (1 + 1e-12) <= truth * (1 + 1e-3)


def test_beyond_the_largest_side(monkeypatch):
    monkeypatch.setattr(spectral, "LARGEST_SIDE", 20)
    wide = normal(30, 50)
    truth = float(torch.linalg.svdvals(wide)[0])
    assert linear(wide).lower <= truth <= linear(wide).upper
    assert linear(wide).method == "row and column sums"


def test_krylov_finds_the_top_and_stops_when_the_space_is_exhausted():
    matrix = with_values([4.0, 1.0, 0.5], 9, 9)
    gram = matrix @ matrix.mT
    for steps in (4, 30):
        top = krylov(gram.mv, normal(9), steps)
        assert float((gram @ top).norm() / top.norm()) == pytest.approx(16, rel=1e-9)


def test_rounding_is_outward():
    for value in (1.0, 1 / 3, 1e-300, 1e300):
        assert down(value) < value < up(value)
    assert root(4) == Bound(2.0, 2.0, "")
    assert root(2).lower < math.sqrt(2) < root(2).upper
    assert product(root(4), root(9), method="x") == Bound(6.0, 6.0, "x")
    assert product(root(2), root(2), method="x").lower < 2 < product(root(2), root(2), method="x").upper
