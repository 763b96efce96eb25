"""Planted faults of measures on random scenes: enumeration proves each unsound, and its twin sound."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from attackcheck import LipschitzClaim, Measure
from attackcheck.faults.measure import (
    accuracy_one_flip_short,
    iou_of_worst_images,
    iou_where_labelled,
    mean_iou_charged_twice,
    root_mean_square,
)
from attackcheck.measures import DROPS, FlipCosts, ImageBounds, bounds, dataset

Bound = Callable[[float], list[ImageBounds]]


def _beside(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


brute = _beside("brute")
IGNORE = 255


def bounded(logits: list[Any], labels: list[Any], eps: float) -> list[ImageBounds]:
    budget = torch.tensor([eps], dtype=torch.float64)
    claim = LipschitzClaim(1.0)
    return [bounds(FlipCosts(claim, z), t, IGNORE, budget) for z, t in zip(logits, labels, strict=True)]


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
        value, least = measure(partial(bounded, logits, labels), *given), truth(pictures)
        count += value > least + 1e-9
    return count


@pytest.mark.parametrize("eps", [0.3, 0.6])
def test_images_without_the_class_count_too(eps: float) -> None:
    def least(pictures: list[Any], label: int) -> float:
        return float(brute.worst(pictures, eps, 3, IGNORE)["iou"].get(label, math.nan))

    found = 0
    for label in range(3):

        def skipping(bound: Bound, k: int = label) -> float:
            images = bound(eps)
            return iou_where_labelled(images, k) if any(i.clean.positives[k] for i in images) else math.nan

        def counting(bound: Bound, k: int = label) -> float:
            return dataset.certified(Measure.IOU, k, bound(eps), 0)

        found += overshoots(skipping, lambda p, k=label: least(p, k))
        assert overshoots(counting, lambda p, k=label: least(p, k)) == 0
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
    images = bounded(logits, labels, 1.0)
    assert dataset.certified(Measure.IOU, 1, images, 0) == truth
    assert iou_of_worst_images(images, 1) == 4 / 5


@pytest.mark.parametrize("eps", [0.6, 1.2])
def test_mean_iou_charged_twice(eps: float) -> None:
    def least(pictures: list[Any]) -> float:
        return float(brute.worst(pictures, eps, 3, IGNORE)["miou"])

    assert overshoots(mean_iou_charged_twice, least, eps) >= 1
    assert overshoots(lambda bound: dataset.certified(Measure.MEAN_IOU, None, bound(eps), 0), least) == 0


@pytest.mark.parametrize("eps", [0.3, 0.6])
def test_a_prefix_that_ends_too_early(eps: float) -> None:
    def least(pictures: list[Any]) -> float:
        return float(brute.worst(pictures, eps, 3, IGNORE)["accuracy"])

    assert overshoots(lambda bound: accuracy_one_flip_short(bound(eps)), least) >= 20
    assert overshoots(lambda bound: dataset.certified(Measure.ACCURACY, None, bound(eps), 0), least) == 0


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
        images = bounded(logits, labels, 1.0)
        entry = next(s for s in dataset.smallest(images) if s.measure is Measure.ACCURACY and s.drop == 0.2)
        assert entry.mean == pytest.approx(truth, rel=1e-8)
        distances = np.array([image.smallest[Measure.ACCURACY, None][DROPS.index(0.2)] for image in images])
        above += root_mean_square(distances) > truth * (1 + 1e-6)
    assert above >= 8
