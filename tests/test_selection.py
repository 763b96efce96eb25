"""Which pixels are attacked."""

import pytest
import torch

import attackcheck as ac
from attackcheck import InputError
from attackcheck.events import RunStarted
from attackcheck.models import exact
from attackcheck.selection import HOW, choose_pixels

RADIUS = torch.rand(40, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PREDICTED = torch.zeros(40, 50, dtype=torch.int64)
PREDICTED[:2, :3] = 5
PREDICTED[20:] = 2
ELIGIBLE = RADIUS > 0.1


def chosen(how, count=30, seed=0):
    return choose_pixels(count, RADIUS, ELIGIBLE, seed, 0, how=how, predicted=PREDICTED).T.tolist()


@pytest.mark.parametrize("how", HOW)
def test_every_way_draws_eligible_pixels_once(how):
    rows, columns = chosen(how)
    assert len(set(zip(rows, columns, strict=True))) == 30
    assert ELIGIBLE[rows, columns].all()
    assert chosen(how) == [rows, columns]
    assert chosen(how, seed=1) != [rows, columns] or how == "weakest"
    everything = chosen(how, count="all")
    assert len(everything[0]) == int(ELIGIBLE.sum())


def test_weakest_takes_the_smallest_radii_in_order():
    rows, columns = chosen("weakest")
    assert RADIUS[rows, columns].tolist() == sorted(RADIUS[ELIGIBLE].tolist())[:30]


def test_radius_takes_one_of_every_group():
    rows, columns = chosen("radius", count=10)
    edges = RADIUS[ELIGIBLE].quantile(torch.linspace(0, 1, 11, dtype=torch.float64))
    group = torch.bucketize(RADIUS[rows, columns], edges[1:-1])
    assert group.sort().values.tolist() == list(range(10))


def test_class_takes_every_class_in_turn_and_rare_ones_as_far_as_they_go():
    rows, columns = chosen("class")
    kinds = PREDICTED[rows, columns].tolist()
    rare = int((ELIGIBLE & (PREDICTED == 5)).sum())
    assert 0 < rare < 10
    assert kinds.count(5) == rare
    assert abs(kinds.count(0) - kinds.count(2)) <= 1
    assert set(kinds[:3]) == {0, 2, 5}


def test_the_report_says_how_pixels_were_chosen():
    model, events = exact.affine_pixel(seed=0).float(), []
    images = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    for how, words in HOW.items():
        report = ac.verify(
            model, images, ac.LipschitzClaim(9.0), plan="quick", pixels=2, choose=how, on_event=events.append
        )
        assert words in report.selection
    assert all(event.selection for event in events if isinstance(event, RunStarted))
    with pytest.raises(InputError, match="weakest"):
        ac.verify(model, images, ac.LipschitzClaim(9.0), plan="quick", pixels=2, choose="strongest")
