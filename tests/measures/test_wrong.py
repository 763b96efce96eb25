"""Planted faults of measures: enumeration proves each of them unsound, and its twin sound on the same scenes."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import attackcheck as ac
from attackcheck import LipschitzClaim, Measure, MetricClaim
from attackcheck.measures import FlipCosts
from attackcheck.models.exact import orthonormal_rows


def _beside(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


brute, wrong = _beside("brute"), _beside("wrong")
IGNORE = 255


def scenes(count: int = 30) -> Iterator[tuple[list[Any], list[Any], list[Any]]]:
    """Two images of four pixels and three classes, one of them often without a class, and their enumeration."""
    for seed in range(count):
        random = np.random.default_rng(seed)
        logits = [random.normal(size=(3, 1, 4)) * scale for scale in (0.5, 1.0)]
        logits[1][2] -= 0.5
        labels = [np.where(random.random((1, 4)) < 0.9, z.argmax(axis=0), 0) for z in logits]
        pictures = [brute.image(z[:, 0], t[0], 1.0, 1.0) for z, t in zip(logits, labels, strict=True)]
        yield [torch.from_numpy(z) for z in logits], [torch.from_numpy(t) for t in labels], pictures


def overshoots(measure: Callable[..., float], truth: Callable[[list[Any]], float], *given: Any) -> int:
    """On how many scenes a measure promises more than enumeration leaves."""
    count = 0
    for logits, labels, pictures in scenes():
        value, least = measure(logits, labels, *given), truth(pictures)
        count += value > least + 1e-9
    return count


@pytest.mark.parametrize("eps", [0.3, 0.6])
def test_images_without_the_class_count_too(eps: float) -> None:
    def least(pictures: list[Any], label: int) -> float:
        return float(brute.worst(pictures, eps, 3, IGNORE)["iou"].get(label, math.nan))

    found = 0
    for label in range(3):
        found += overshoots(wrong.iou_where_the_class_occurs, lambda p, k=label: least(p, k), eps, label)
        assert overshoots(wrong.iou, lambda p, k=label: least(p, k), eps, label) == 0
    assert found >= 3


@pytest.mark.parametrize("seed", range(10))
def test_sums_of_the_images_own_worst_ratios(seed: int) -> None:
    """One true positive that costs the whole budget, or four false ones; beside it a robust image."""
    random = np.random.default_rng(seed)
    breaking, making = random.uniform(0.9, 1.0), random.uniform(0.2, 0.25, size=4)
    fragile = np.zeros((2, 1, 5))
    fragile[1, 0, 0] = math.sqrt(2 * breaking)
    fragile[0, 0, 1:] = np.sqrt(2 * making)
    robust = np.zeros((2, 1, 4))
    robust[1] = 9.0
    logits = [torch.from_numpy(fragile), torch.from_numpy(robust)]
    labels = [z.argmax(dim=0) for z in logits]
    pictures = [brute.image(z[:, 0].numpy(), t[0].numpy(), 1.0, 1.0) for z, t in zip(logits, labels, strict=True)]
    truth = brute.worst(pictures, 1.0, 2, IGNORE)["iou"][1]
    assert truth == 5 / 9
    assert wrong.iou(logits, labels, 1.0, 1) == pytest.approx(truth, abs=1e-12)
    assert wrong.iou_from_the_worst_images(logits, labels, 1.0, 1) == 4 / 5


@pytest.mark.parametrize("eps", [0.6, 1.2])
def test_mean_iou_charged_twice(eps: float) -> None:
    def least(pictures: list[Any]) -> float:
        return float(brute.worst(pictures, eps, 3, IGNORE)["miou"])

    assert overshoots(wrong.mean_iou_charged_twice, least, eps) >= 1
    assert overshoots(wrong.mean_iou, least, eps) == 0


@pytest.mark.parametrize("eps", [0.3, 0.6])
def test_a_prefix_that_ends_too_early(eps: float) -> None:
    def least(pictures: list[Any]) -> float:
        return float(brute.worst(pictures, eps, 3, IGNORE)["accuracy"])

    assert overshoots(wrong.accuracy_off_by_one, least, eps) >= 20
    assert overshoots(wrong.accuracy, least, eps) == 0


def test_the_root_of_a_mean_square() -> None:
    def first(picture: Any, drop: float) -> float:
        """The smallest distance at which enumeration loses so much."""
        right = (picture.maps == picture.labels).mean(axis=1)
        clean = float((picture.clean == picture.labels).mean())
        return math.sqrt(picture.joint[right <= clean - drop + 1e-12].min())

    above = 0
    for logits, labels, pictures in scenes(10):
        if min(float((p.clean == p.labels).mean()) for p in pictures) < 0.25:
            continue
        truth = float(np.mean([first(p, 0.2) for p in pictures]))
        assert wrong.mean_distance(logits, labels, 3) == pytest.approx(truth, rel=1e-8)
        above += wrong.root_mean_square_distance(logits, labels, 3) > truth * (1 + 1e-6)
    assert above >= 8


def test_the_checker_breaks_what_a_wrong_measure_promises() -> None:
    """On a tight network: one pixel more than the faulty prefix allows is really reached."""
    model = orthonormal_rows(classes=3)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(2, 3, 2, 2, generator=generator)
    with torch.no_grad():
        logits = model(images)
    labels = logits.argmax(dim=1)
    maps = [z.double() for z in logits]
    costs = [FlipCosts(LipschitzClaim(1.0), z).nearest.sort().values for z in maps]
    # A little more than the two cheapest flips of either image need, so that PGD has room.
    eps = 1.05 * max(float(c[:2].sum().sqrt()) for c in costs)
    truth, faulty = wrong.accuracy(maps, list(labels), eps), wrong.accuracy_off_by_one(maps, list(labels), eps)
    assert faulty > truth
    claims = [MetricClaim(Measure.ACCURACY, eps, faulty), MetricClaim(Measure.ACCURACY, eps, truth)]
    table = ac.certify(model, images, labels, LipschitzClaim(1.0), (eps,), metrics=claims, steps=60)
    assert [finding.claim for finding in table.violations] == claims[:1]
