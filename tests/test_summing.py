"""Sums of parts that come in any order are those of parts in the order of their numbers, to the last bit."""

from xml.etree.ElementTree import fromstring

import numpy as np
import pytest

from attackcheck.events import PartFinished, RunFinished
from attackcheck.parts import METRICS, TRIAL, Part
from attackcheck.probe import Cost, Kind
from attackcheck.recheck import Verdict
from attackcheck.report import RegionResult, Violation
from attackcheck.reporters import junit
from attackcheck.summing import Header, Sums, sum_up
from attackcheck.tally import AttackedPixels, Tally

HEADER = Header({}, "plan", 0, 1e-5, ("first", "second"), None, 255, "pixels", 12)


def tally_of(number):
    """What a part may have, different for each."""
    generator = np.random.default_rng(number % 1000)
    tally = Tally(255)
    if number in (TRIAL, METRICS):
        tally.warnings.append(("AC000", str(number)))
        return tally
    tally.add_maps(generator.random((3, 4)), generator.random((3, 4)), generator.random((3, 4)) < 0.5)
    tally.add_classes(generator.integers(0, 3, (3, 4)), generator.random((3, 4)), None)
    tally.verdicts[f"verdict {number % 3}"] += 1
    for name in ("first", "second", "third")[: 1 + number % 3]:
        tally.add_cost(name, "pixel", Cost(number, 1, float(generator.random())))
    tally.add_budget(0.1, "first", np.zeros((3, 4)), generator.integers(0, 2, (3, 4)), None)
    tally.add_ratio(Kind.LIPSCHITZ, "first", float(generator.random()))
    tally.regions.append(RegionResult(number, "region", 5, 1.0, None, 0.1, float(generator.random()), "first"))
    found = Violation(
        Kind.PIXEL, Verdict.ROUNDING, number, "image", (0, 1), 1, 0, 1, 1.0, float(generator.random()), "first"
    )
    tally.findings.append(found)
    distance = generator.random(2)
    tally.add_pixels(
        AttackedPixels(
            radius=generator.random(2),
            distance=distance,
            confirmed=np.ones(2, dtype=bool),
            lipschitz_slack=generator.random(2),
            predicted=np.zeros(2, dtype=np.int64),
            pixels=generator.integers(0, 3, (2, 2)),
            aimed={"first": np.ones(2, dtype=bool)},
            by_attack={"first": distance},
        )
    )
    return tally


@pytest.mark.parametrize("missing", [(), (3,)], ids=["all", "one is missing"])
@pytest.mark.parametrize("seed", range(4))
def test_in_any_order(seed, missing):
    order = [0, 2, 3, 5, 7, 8, 11]
    numbers = [TRIAL, *order, METRICS]
    expected = sum_up(HEADER, {n: tally_of(n) for n in numbers if n not in missing}, seconds=1.0)
    shuffled = [number for number in np.random.default_rng(seed).permutation(numbers) if number not in missing]
    sums, tallies = Sums(255, order), {}
    for number in map(int, shuffled):
        tallies[number] = tally_of(number)
        sums.release(number, tallies)
    found = sum_up(HEADER, tallies, seconds=1.0, sums=sums)
    assert found.to_dict() == expected.to_dict()
    assert list(found.counts) == list(expected.counts)
    assert found.numbers == expected.numbers
    assert sorted(tallies) == [n for n in numbers if n not in order or (missing and missing[0] < n)]


def test_what_has_not_been_reported_counts_too():
    sums, tallies = Sums(255, [0, 1]), {0: tally_of(0), 1: tally_of(1)}
    sums.release(0, tallies)
    found = sum_up(HEADER, tallies, seconds=1.0, sums=sums)
    assert found.to_dict() == sum_up(HEADER, {0: tally_of(0), 1: tally_of(1)}, seconds=1.0).to_dict()
    assert (found.images, found.numbers) == (2, (0, 1))


def test_many_suites_of_junit_are_those_of_few(tmp_path, monkeypatch):
    written = []
    for loose in (2, 1000):
        monkeypatch.setattr(junit, "LOOSE", loose)
        reporter = junit.JunitReporter(str(tmp_path / f"{loose}.xml"))
        tallies = {number: tally_of(number) for number in (7, 0, 3, 2, 11)}
        for number, tally in tallies.items():
            reporter(PartFinished(Part(number, f"image & <{number}>", True, 1.0, tally)))
        reporter(RunFinished(sum_up(HEADER, tallies, seconds=1.0)))
        written.append((tmp_path / f"{loose}.xml").read_text())
    assert written[0] == written[1]
    names = [suite.get("name") for suite in fromstring(written[0])]
    assert names == [f"image & <{number}>" for number in (0, 2, 3, 7, 11)]
