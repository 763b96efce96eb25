"""Ratios over a data set, edge cases, components, invariances."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from attackcheck import LipschitzClaim
from attackcheck.measures import FlipCosts, Measure, bounds, dataset
from attackcheck.measures.components import connected, prices, surviving
from attackcheck.measures.ladder import Ladder
from attackcheck.measures.ratios import Pairs, frontier, upper_hull, worst_ratio

EPS = torch.tensor([0.0, 0.05, 0.1, 0.3, 1.0], dtype=torch.float64)


def pairs(*points: tuple[int, int]) -> Pairs:
    return Pairs(np.array([p[0] for p in points]), np.array([p[1] for p in points]))


def test_the_worst_of_a_data_set_is_not_made_of_the_worst_of_its_images() -> None:
    """One image: break its only true positive, or make 100 false ones; another: 100 of 100, robust."""
    fragile, robust = pairs((0, 100), (1, 0)), pairs((0, 0))
    result = worst_ratio(1 + 100, 1 + 100, [fragile, robust])
    assert result.value == (1 + 100) / (101 + 100)
    assert result.chosen == (0, 0)
    naive = (0 + 100) / (1 + 100)
    assert naive > 0.99 > 0.503 > result.value


def test_the_same_example_from_costs() -> None:
    """Breaking costs the whole budget, each false positive a hundredth of it."""
    budget = torch.tensor([1.0], dtype=torch.float64)
    fragile = frontier(Ladder(torch.tensor([1.0]), 1.0), Ladder(torch.full((200,), 0.01), 1.0), budget)[0]
    robust = frontier(Ladder(torch.full((100,), 9.0), 1.0), Ladder(torch.full((50,), 9.0), 1.0), budget)[0]
    assert worst_ratio(101, 101, [fragile, robust]).value == pytest.approx(101 / 201, abs=1e-12)


def test_dinkelbach_equals_enumeration() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        images = []
        for _ in range(3):
            count = int(random.integers(1, 6))
            images.append(pairs(*zip(random.integers(0, 4, count), random.integers(0, 30, count), strict=True)))
        best = min(
            (12 - a.lost[i] - b.lost[j] - c.lost[k]) / (20 + a.made[i] + b.made[j] + c.made[k])
            for a, b, c in [images]
            for i in range(len(a.lost))
            for j in range(len(b.lost))
            for k in range(len(c.lost))
        )
        result = worst_ratio(12, 20, images)
        assert result.value == best
        hit = 12 - sum(int(p.lost[i]) for p, i in zip(images, result.chosen, strict=True))
        assert hit / (20 + sum(int(p.made[i]) for p, i in zip(images, result.chosen, strict=True))) == best


def test_the_hull_keeps_what_any_ratio_can_want() -> None:
    random = np.random.default_rng(1)
    for _ in range(100):
        made = np.sort(random.integers(0, 50, 40))[::-1]
        hull = upper_hull(np.arange(40), made)
        assert len(hull.lost) < 40
        for ratio in (0.0, 0.01, 0.3, 0.77, 1.0, 5.0):
            assert (hull.lost + ratio * hull.made).max() == (np.arange(40) + ratio * made).max()


def test_long_frontiers_are_cut_in_the_adversarys_favour(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(2)
    breaking = Ladder(torch.from_numpy(random.random(500)), 1.0)
    making = Ladder(torch.from_numpy(random.random(700)), 1.0)
    eps = torch.tensor([3.0, 8.0], dtype=torch.float64)
    exact = frontier(breaking, making, eps)
    monkeypatch.setattr("attackcheck.measures.ratios.FINEST", 37)
    for fine, coarse in zip(exact, frontier(breaking, making, eps), strict=True):
        for ratio in (0.1, 0.5, 0.9):
            best = (fine.lost + ratio * fine.made).max()
            assert best <= (coarse.lost + ratio * coarse.made).max() <= best * 1.1


def test_what_has_no_value() -> None:
    claim = LipschitzClaim(1.0)
    one = torch.ones(1, 2, 3)
    image = bounds(FlipCosts(claim, one), torch.zeros(2, 3, dtype=torch.int64), 255, EPS)
    for e in range(len(EPS)):  # a single class: nothing can change
        assert dataset.certified(Measure.ACCURACY, None, [image], e) == 1.0
        assert dataset.certified(Measure.IOU, 0, [image], e) == 1.0
        assert dataset.certified(Measure.FNR, 0, [image], e) == 0.0
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    nothing = bounds(FlipCosts(claim, logits), torch.full((4, 5), 255), 255, EPS)
    unlabelled = bounds(FlipCosts(claim, logits), None, 255, EPS)
    for image in (nothing, unlabelled):
        assert math.isnan(dataset.certified(Measure.ACCURACY, None, [image], 0))
        assert math.isnan(dataset.certified(Measure.MEAN_IOU, None, [image], 0))
        assert math.isnan(dataset.constant(Measure.ACCURACY, None, [image.clean]))
        assert dataset.certified(Measure.STABILITY, None, [image], 0) == 1.0
    assert math.isnan(dataset.certified(Measure.IOU, 2, [nothing], 0))


def test_false_positives_can_be_made_where_the_class_is_absent() -> None:
    """Class 1 is in the first image only; all that can be done to its IoU is done in the second."""
    sure, near = torch.tensor([5.0, 0.0]), torch.tensor([0.0, 5.0])
    first = near[:, None, None].expand(2, 1, 4).contiguous()
    second = sure[:, None, None].expand(2, 1, 4).contiguous()
    second[1] = 4.9
    claim, eps = LipschitzClaim(1.0), torch.tensor([0.2], dtype=torch.float64)
    images = [bounds(FlipCosts(claim, z), z.argmax(dim=0), 255, eps) for z in (first, second)]
    # Each false positive costs .1 / sqrt(2): eight would fit the budget, four pixels are there.
    assert dataset.certified(Measure.IOU, 1, images, 0) == 4 / 8
    assert dataset.certified(Measure.IOU, 1, images[:1], 0) == 1.0


def test_ties_fall() -> None:
    logits = torch.zeros(2, 1, 3)
    image = bounds(FlipCosts(LipschitzClaim(1.0), logits), torch.zeros(1, 3, dtype=torch.int64), 255, EPS)
    assert dataset.certified(Measure.ACCURACY, None, [image], 0) == 0.0


def test_values_fall_with_eps_and_do_not_depend_on_the_order() -> None:
    generator = torch.Generator().manual_seed(4)
    claim = LipschitzClaim(1.4, pixel=1.0)
    images, mirrored = [], []
    renamed = torch.tensor([2, 0, 3, 1])
    for _ in range(3):
        z = torch.randn(4, 4, 5, generator=generator).repeat_interleave(5, 1).repeat_interleave(6, 2)
        z = z + 0.1 * torch.randn(z.shape, generator=generator)
        labels = torch.where(torch.rand(20, 30, generator=generator) < 0.8, z.argmax(dim=0), 1)
        images.append(bounds(FlipCosts(claim, z), labels, 255, EPS))
        permuted = torch.empty_like(z)
        permuted[renamed] = z
        mirrored.append(bounds(FlipCosts(claim, permuted.flip(2)), renamed[labels].flip(1), 255, EPS))
    for measure in Measure:
        for label in range(4) if measure.per_class else (None,):
            values = [dataset.certified(measure, label, images, e) for e in range(len(EPS))]
            sign = 1 if measure.falls else -1
            assert all(sign * a >= sign * b for a, b in itertools.pairwise(values))
            single = [dataset.per_pixel(measure, label, images, e) for e in range(len(EPS))]
            assert all(sign * a <= sign * b for a, b in zip(single, values, strict=True))
            other = None if label is None else int(renamed[label])
            again = [dataset.certified(measure, other, mirrored[::-1], e) for e in range(len(EPS))]
            assert again == pytest.approx(values, abs=1e-12)


def test_components_are_destroyed_at_the_cost_of_half_their_pixels() -> None:
    predicted = torch.zeros(10, 12, dtype=torch.int64)
    predicted[1:5, 1:5] = 1  # 16 pixels
    predicted[6:9, 1:6] = 2  # 15: too small
    parts = connected(predicted.flatten(), (10, 12))
    assert parts.needed.tolist() == [(120 - 31) // 2 + 1, 9]
    assert int((parts.member == -1).sum()) == 15
    cost = torch.rand(120, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total, dearest = prices(parts, cost)
    cheapest = cost.reshape(10, 12)[1:5, 1:5].flatten().sort().values[:9]
    assert float(total[1]) == pytest.approx(float(cheapest.sum()))
    assert float(dearest[1]) == float(cheapest[-1])
    changed = torch.zeros(10, 12, dtype=torch.bool)
    changed[1:3, 1:5] = True
    assert surviving(parts, changed.flatten()) == 2
    changed[3, 1] = True
    assert surviving(parts, changed.flatten()) == 1


def test_a_mean_of_distances_is_not_the_root_of_a_mean_square() -> None:
    logits = [torch.tensor([[[gap]], [[0.0]]], dtype=torch.float64) for gap in (0.1, 1.0)]
    labels = torch.zeros(1, 1, dtype=torch.int64)
    images = [bounds(FlipCosts(LipschitzClaim(1.0), z), labels, 255, EPS) for z in logits]
    found = next(s for s in dataset.smallest(images) if s.measure is Measure.ACCURACY and s.drop == 0.5)
    assert found.mean == pytest.approx((0.1 + 1.0) / 2 / math.sqrt(2), rel=1e-9)
    assert found.quantiles == pytest.approx((0.1 / math.sqrt(2), 0.1 / math.sqrt(2), 1 / math.sqrt(2)), rel=1e-9)


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_a_ladder_counts_like_a_loop(count: int) -> None:
    costs = torch.rand(count, generator=torch.Generator().manual_seed(count)).square()
    ladder = Ladder(costs, 0.9)
    for eps in (0.0, 0.3, 0.77, 2.0):
        spent, bought = 0.0, 0
        for cost in sorted(costs.double().tolist()):
            spent += 0.81 * cost
            if spent > eps**2 or cost > eps**2:
                break
            bought += 1
        assert int(ladder.together(torch.tensor([eps]))) == bought
        assert int(ladder.alone(torch.tensor([eps]))) == int((costs.double() <= eps**2).sum())
        assert ladder.price(bought) <= eps
        assert ladder.price(bought + 1) > eps
