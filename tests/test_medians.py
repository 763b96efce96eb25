"""The median in bounded memory, against numpy's."""

import numpy as np
import pytest

from attackcheck import medians
from attackcheck.medians import Median


def joined(parts):
    """Every second part is first joined with the one before."""
    whole = Median()
    for first, second in zip(parts[::2], parts[1::2], strict=True):
        pair = Median()
        pair.add(first)
        pair.add(second)
        whole.extend(pair)
    return whole


@pytest.fixture(params=[1, 2, 5])
def parts(request):
    generator = np.random.default_rng(request.param)
    return [generator.lognormal(-3, 2, generator.integers(0, 400)).astype(np.float32) for _ in range(40)]


def test_few_values_are_exact_and_many_nearly(parts, monkeypatch):
    true = float(np.median(np.concatenate(parts)))
    assert joined(parts).value() == true
    monkeypatch.setattr(medians, "LOOSE", 3)
    assert joined(parts).value() == true
    monkeypatch.setattr(medians, "EXACT", 500)
    counted = joined(parts)
    assert counted.count == sum(map(len, parts))
    assert counted.value() == pytest.approx(true, rel=2.5e-4)
    assert counted.value() != true


@pytest.mark.parametrize("exact", [10, 1000, 1 << 21])
def test_the_order_is_of_no_consequence(parts, exact, monkeypatch):
    monkeypatch.setattr(medians, "EXACT", exact)
    assert joined(parts).value() == joined(parts[::-1]).value()


@pytest.mark.parametrize("exact", [0, 1 << 21])
def test_extremes(exact, monkeypatch):
    monkeypatch.setattr(medians, "EXACT", exact)
    assert np.isnan(Median().value())
    for value in (0.0, 1e-38, 1e38):
        found = Median()
        found.add(np.full(3, value, np.float32))
        assert found.value() == pytest.approx(value, rel=2.5e-4, abs=1e-40)


def test_memory_is_bounded(monkeypatch):
    monkeypatch.setattr(medians, "EXACT", 1000)
    found = Median()
    generator = np.random.default_rng(0)
    for _ in range(300):
        found.add(generator.random(1000, dtype=np.float32) + 1)
    assert found._values == []
    assert len(found._bins) <= (1 << 11)
    assert found._counts.sum() == 300_000
