"""Regions and budgets of one image are attacked side by side."""

import math

import pytest
import torch

import attackcheck as ac
from attackcheck.attacking import ROW_PIXELS, together
from attackcheck.attacks.plans import Plan, Stage
from attackcheck.models import exact
from attackcheck.regions import Region

SIZE = 6
REGIONS = ["rect:0,0,2,2", "rect:1,3,2,3", "rect:4,0,2,6", "rect:0,0,6,2@0.5"]


def region(name, fraction=1.0):
    return Region(name, torch.ones(4, 4, dtype=torch.bool), fraction)


def told(calls):
    return [[(None if aim.region is None else aim.region.name, aim.eps) for aim in call] for call in calls]


def test_what_has_one_fraction_goes_together_regions_first_then_budgets():
    stage = Stage("pgd", objective="region", eps=(0.1, 0.3))
    found = told(together(stage, [region("a"), region("b"), region("c", 0.5)], (8, 8), "cpu"))
    assert found == [[("a", 0.1), ("a", 0.3), ("b", 0.1), ("b", 0.3)], [("c", 0.1), ("c", 0.3)]]
    assert told(together(Stage("guided", objective="image", eps=(0.1, 0.3)), [], (8, 8), "cpu")) == [
        [(None, 0.1), (None, 0.3)]
    ]
    assert told(together(Stage("lipschitz", objective="map"), [region("a")], (8, 8), "cpu")) == [[(None, None)]]
    assert told(together(Stage("cutting", objective="region"), [], (8, 8), "cpu")) == []


@pytest.mark.parametrize(("device", "usual"), [*ROW_PIXELS.items(), ("other", ROW_PIXELS["cpu"])])
@pytest.mark.parametrize("count", range(1, 12))
@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_calls_are_as_even_as_they_can_be_and_no_larger_than_usual(device, usual, count, most):
    size = (usual // most // 256, 256)
    regions = [region(str(number)) for number in range(count)]
    calls = told(together(Stage("cutting", objective="region"), regions, size, device))
    assert [name for call in calls for name, _ in call] == [str(number) for number in range(count)]
    assert len(calls) == math.ceil(count / most)
    assert max(map(len, calls)) - min(map(len, calls)) <= 1
    larger = told(together(Stage("cutting", objective="region"), regions, (4 * usual, 1), device))
    assert [len(call) for call in larger] == [1] * count  # an image beyond that is alone


class Counted(torch.nn.Module):
    """Knows how many rows its calls with a gradient had, in all copies."""

    rows: list[int] = []  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.inner = exact.orthonormal_rows(seed=6).float()
        self.eval()

    def forward(self, images):
        if images.requires_grad:
            self.rows.append(len(images))
        return self.inner(images)


def examined(regions, *stages, batch=None):
    Counted.rows.clear()
    images = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(6))
    claim = ac.LipschitzClaim(1.0)
    plan = Plan("sets", stages)
    return ac.verify(Counted(), images, claim, plan=plan, pixels=1, regions=regions, audit=False, batch=batch)


@pytest.mark.parametrize("attack", ["cutting", "linearised", "ddn"])
def test_each_region_gets_what_it_gets_alone(attack):
    stage = Stage(attack, objective="region")
    all_at_once = examined(REGIONS, stage)
    assert 3 in Counted.rows
    assert max(Counted.rows) == 3
    assert [found.name for found in all_at_once.regions] == [f"rect {name[5:].partition('@')[0]}" for name in REGIONS]
    for name, found in zip(REGIONS, all_at_once.regions, strict=True):
        (alone,) = examined([name], stage).regions
        assert found.distance == pytest.approx(alone.distance, rel=2e-3)
        assert (found.name, found.pixels, found.joint_distance) == (alone.name, alone.pixels, alone.joint_distance)
        assert found.joint_distance * (1 - 1e-5) <= found.distance
        assert found.distance <= (1.5 if attack == "ddn" else 1.1) * found.joint_distance
    assert [found.distance for found in examined(REGIONS, stage, batch=1).regions] == [
        found.distance for found in all_at_once.regions
    ]


@pytest.mark.parametrize(("attack", "loss"), [("guided", "margin"), ("pgd", "segpgd"), ("pgd", "cospgd")])
def test_each_budget_gets_what_it_gets_alone(attack, loss):
    budgets = (0.5, 1.0, 2.0)
    found = examined(REGIONS, Stage(attack, objective="image", eps=budgets, loss=loss)).budgets
    assert Counted.rows.count(3) >= 5
    assert [result.eps for result in found] == list(budgets)
    assert found[0].stability > found[1].stability > found[2].stability
    for eps, result in zip(budgets, found, strict=True):
        (alone,) = examined(REGIONS, Stage(attack, objective="image", eps=(eps,), loss=loss)).budgets
        assert result.stability == alone.stability
