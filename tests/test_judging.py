"""From evidence to findings: which points are judged, and what a clean run may promise."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from attackcheck import LipschitzClaim, Verdict
from attackcheck.judging import Examiner
from attackcheck.probe import SCALES, Evidence, Kind, Slots, Witnesses
from attackcheck.recheck import Judgement
from attackcheck.tally import AttackedPixels, Tally


def kept(ratios):
    """Witnesses of these ratios, the point of each filled with its place."""
    ratio = torch.zeros(SCALES, dtype=torch.float64)
    ratio[: len(ratios)] = torch.tensor(ratios, dtype=torch.float64)
    point = torch.arange(SCALES).float()[:, None, None, None].expand(SCALES, 1, 2, 2).clone()
    return Witnesses(ratio, point, torch.zeros(SCALES, dtype=torch.int64))


def evidence(ratios):
    nothing = torch.zeros(0)
    slots = Slots(nothing, nothing, nothing, nothing, nothing, nothing, [])
    map_ = torch.full((2, 2), math.inf)
    witnesses = {kind: kept(ratios if kind is Kind.LIPSCHITZ else []) for kind in Kind}
    return Evidence(map_, map_.long().fill_(-1), slots, witnesses, attacks=["any"])


class Sceptic:
    """Confirms what it is told to: the ratio of every place, beyond all error."""

    def __init__(self, sure):
        self.sure, self.asked = sure, []

    def expansion(self, scene, point, *, push):  # noqa: ARG002
        place = int(point[0, 0, 0])
        self.asked.append(place)
        ratio = self.sure[place]
        verdict = Verdict.VIOLATED if ratio > 1 else Verdict.ROUNDING
        return Judgement(verdict, Kind.LIPSCHITZ, ratio, 1.0, point, -1, 0.0, torch.zeros(0, 2, dtype=torch.int64))

    def two_ball(self, scene, point, *, push):  # noqa: ARG002
        return None

    flipped_set = two_ball


def findings(ratios, sure):
    judge, tally = Sceptic(sure), Tally(ignore=255)
    subject = SimpleNamespace(claim=LipschitzClaim(1.0), meta=None)
    settings = SimpleNamespace(counterexamples=None, seed=0, tolerance=1e-5)
    examiner = Examiner(subject, None, judge, settings, tally)
    scene = SimpleNamespace(predicted=torch.zeros(2, 2, dtype=torch.int64), radius=torch.zeros(2, 2))
    work = SimpleNamespace(index=0, name="image", scene=scene, probe=SimpleNamespace(evidence=evidence(ratios)))
    return [found.violation for found in examiner.witnesses(work)], judge.asked, tally


def test_a_spurious_ratio_does_not_hide_the_real_one_behind_it():
    found, asked, tally = findings([9.0, 1.5, 1.2], sure=[0.4, 1.5, 1.2])
    assert [violation.verdict for violation in found] == [Verdict.VIOLATED]
    assert asked == [0, 1]  # 1.2 cannot beat what was confirmed
    assert tally.limit().map == pytest.approx(1 / 1.5)


def test_nothing_is_reported_when_only_spurious_ratios_were_seen():
    found, asked, _ = findings([9.0, 3.0], sure=[0.4, 0.3])
    assert asked[:2] == [0, 1]
    assert not any(violation.verdict is Verdict.VIOLATED for violation in found)


def attacked(radius, distance, confirmed):
    count = len(radius)
    return AttackedPixels(
        radius=np.array(radius),
        distance=np.array(distance),
        confirmed=np.array(confirmed),
        lipschitz_slack=np.full(count, math.nan),
        predicted=np.zeros(count, dtype=int),
        pixels=np.zeros((count, 2), dtype=int),
        aimed={},
        by_attack={},
    )


def test_the_detection_limit_counts_flips_that_the_judge_confirmed():
    tally = Tally(ignore=255)
    tally.add_pixels(attacked([1.0, 1.0], [0.5, 1.6], [False, True]))
    assert tally.limit().pixel == pytest.approx(1.6)
    tally.add_pixels(attacked([1.0], [1.25], [True]))
    assert tally.limit().pixel == pytest.approx(1.25)
