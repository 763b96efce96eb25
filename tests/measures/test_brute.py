"""Every measure against the enumeration of all outputs on tiny images."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import attackcheck.measures.ladders
from attackcheck import ClassPairClaim, InputError, LipschitzClaim, RadiusClaim
from attackcheck.measures import FlipCosts, Measure, bounds, dataset
from attackcheck.measures.image import DROPS
from attackcheck.measures.shared import Weights, most_lost

_spec = importlib.util.spec_from_file_location("brute", Path(__file__).with_name("brute.py"))
assert _spec is not None
assert _spec.loader is not None
brute = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(brute)

IGNORE = 255
EPS = torch.tensor([0.0, 0.2, 0.45, 0.7, 1.1, 1.6, 5.0], dtype=torch.float64)


def scene(seed: int, images: int = 2, pixels: int = 4, classes: int = 3) -> tuple[list[Any], list[Any]]:
    """Logits (K, 1, n) and labels (1, n): mostly right, some ignored, some beyond the classes."""
    random = np.random.default_rng(seed)
    logits = [random.normal(size=(classes, 1, pixels)) for _ in range(images)]
    labels = []
    for z in logits:
        truth = np.where(random.random(pixels) < 0.7, z[:, 0].argmax(axis=0), random.integers(0, classes, pixels))
        truth = np.where(random.random(pixels) < 0.1, IGNORE, truth)
        labels.append(np.where(random.random(pixels) < 0.03, classes + 1, truth)[None])
    return [torch.from_numpy(z) for z in logits], [torch.from_numpy(t) for t in labels]


def bounded(claim: Any, logits: list[Any], labels: list[Any], eps: Any = EPS) -> tuple[list[Any], Any]:
    """Bounds of every image, and what all classes lose together at most, (E,)."""
    costs = [FlipCosts(claim, z) for z in logits]
    images = [bounds(c, t, IGNORE, eps) for c, t in zip(costs, labels, strict=True)]
    hits = torch.from_numpy(sum(i.clean.intersection for i in images))
    unions = torch.from_numpy(sum(i.clean.union for i in images))
    weights = Weights(hits, unions, torch.from_numpy(dataset.counted_classes([i.clean for i in images])))
    lost = torch.full((len(eps),), math.inf, dtype=torch.float64)
    if claim.joint_factor is not None:
        lost = sum(
            most_lost(c, t.flatten(), t.flatten() != IGNORE, weights, eps) for c, t in zip(costs, labels, strict=True)
        )
    return images, lost


def same(ours: float, truth: float) -> bool:
    return (math.isnan(ours) and math.isnan(truth)) or abs(ours - truth) < 1e-12


def check(seed: int, joint: float, pixel: float, **shape: int) -> None:
    classes = shape.get("classes", 3)
    logits, labels = scene(seed, **shape)
    claim = LipschitzClaim(joint, "joint", pixel=pixel)
    images, lost = bounded(claim, logits, labels, EPS)
    pictures = [brute.image(z[:, 0].numpy(), t[0].numpy(), joint, pixel) for z, t in zip(logits, labels, strict=True)]
    for e, eps in enumerate(EPS.tolist()):
        for alone, value in ((False, dataset.certified), (True, dataset.per_pixel)):
            truth = brute.worst(pictures, eps, classes, IGNORE, alone=alone)
            assert same(value(Measure.ACCURACY, None, images, e), truth["accuracy"])
            assert same(value(Measure.STABILITY, None, images, e), truth["stability"])
            for k in range(classes):
                assert same(value(Measure.FNR, k, images, e), truth["fnr"].get(k, math.nan))
                assert same(value(Measure.IOU, k, images, e), truth["iou"].get(k, math.nan))
            mean = value(Measure.MEAN_IOU, None, images, e)
            assert math.isnan(mean) == math.isnan(truth["miou"])
            assert not mean > truth["miou"] + 1e-12
            if not alone:
                both = dataset.certified(Measure.MEAN_IOU, None, images, e, float(lost[e]))
                assert not both > truth["miou"] + 1e-12
                assert not both < mean


@pytest.mark.parametrize("seed", range(25))
def test_one_constant_is_exact(seed: int) -> None:
    check(seed, 1.0, 1.0)


@pytest.mark.parametrize("seed", range(25, 40))
def test_a_smaller_pixel_constant_is_exact(seed: int) -> None:
    check(seed, 2.0, 0.8)


@pytest.mark.parametrize("seed", range(40, 50))
def test_two_classes_three_images(seed: int) -> None:
    check(seed, 1.3, 1.3, images=3, pixels=3, classes=2)


@pytest.fixture
def in_small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny images take the way of large ones: piece by piece, with guesses from a sample of some pixels."""
    monkeypatch.setitem(attackcheck.measures.costs.PIECE, "cpu", 3)
    monkeypatch.setattr(attackcheck.measures.ladders, "SAMPLED", 2)
    monkeypatch.setattr(attackcheck.measures.shared, "SAMPLED", 2)
    # Where the largest budget buys everything, nothing is left out.
    monkeypatch.setitem(globals(), "EPS", EPS[1:4])


@pytest.mark.usefixtures("in_small_pieces")
@pytest.mark.parametrize("seed", range(50, 70))
def test_pieces_and_samples_change_nothing(seed: int) -> None:
    check(seed, 1.0 + seed % 2, 1.0, images=1 + seed % 2, pixels=5)


@pytest.mark.slow
@pytest.mark.usefixtures("in_small_pieces")
@pytest.mark.parametrize("block", range(4))
def test_a_thousand_cases_in_pieces(block: int) -> None:
    for seed in range(3000 + 250 * block, 3250 + 250 * block):
        check(seed, 1.0 + (seed % 3) / 2, 1.0, images=1 + seed % 2, pixels=4, classes=2 + seed % 2)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_a_thousand_cases(block: int) -> None:
    for seed in range(1000 + 100 * block, 1100 + 100 * block):
        check(seed, 1.0 + (seed % 3) / 2, 1.0, images=1 + seed % 2, pixels=4, classes=2 + seed % 2)


@pytest.mark.parametrize("seed", range(20))
def test_four_classes_are_sound(seed: int) -> None:
    """The cost of a flip to a class looks at three classes: with four it is a bound."""
    logits, labels = scene(seed, images=1, pixels=4, classes=4)
    images, lost = bounded(LipschitzClaim(1.0), logits, labels)
    picture = brute.image(logits[0][:, 0].numpy(), labels[0][0].numpy(), 1.0, 1.0)
    costs = FlipCosts(LipschitzClaim(1.0), logits[0])
    for k in range(4):
        exact = np.array([brute.projection(logits[0][:, 0, i].numpy(), k) for i in range(4)])
        pair = (costs.predicted != k).double() * (logits[0].amax(dim=0) - logits[0][k])[0].square() / 2
        assert (costs.towards(k).numpy() <= exact).all()
        assert (costs.towards(k) >= pair * (1 - 1e-12)).all()
    for e, eps in enumerate(EPS.tolist()):
        truth = brute.worst([picture], eps, 4, IGNORE)
        assert same(dataset.certified(Measure.ACCURACY, None, images, e), truth["accuracy"])
        for k, value in truth["iou"].items():
            assert dataset.certified(Measure.IOU, k, images, e) <= value + 1e-12
        if truth["iou"]:
            assert dataset.certified(Measure.MEAN_IOU, None, images, e, float(lost[e])) <= truth["miou"] + 1e-12


def test_the_shared_budget_helps_mean_iou() -> None:
    """It is worth its code: on images of more than a few pixels it lifts the mean of the classes' own optima."""
    eps = torch.tensor([0.1, 0.3, 1.0], dtype=torch.float64)
    for seed in range(5):
        logits, labels = scene(seed, images=2, pixels=2000, classes=6)
        images, lost = bounded(LipschitzClaim(1.0), [10 * z for z in logits], labels, eps)
        clean = dataset.clean(Measure.MEAN_IOU, None, [i.clean for i in images])
        for e in range(len(eps)):
            alone = clean - dataset.certified(Measure.MEAN_IOU, None, images, e)
            both = clean - dataset.certified(Measure.MEAN_IOU, None, images, e, float(lost[e]))
            assert both < 0.9 * alone


@pytest.mark.parametrize("seed", range(20))
def test_smallest_distances_are_where_enumeration_first_gets_there(seed: int) -> None:
    logits, labels = scene(seed, images=1, pixels=5)
    images, _ = bounded(LipschitzClaim(1.5), logits, labels)
    picture = brute.image(logits[0][:, 0].numpy(), labels[0][0].numpy(), 1.5, 1.5)
    everything = brute.worst([picture], 1e-12, 3, IGNORE)
    for (measure, label), distances in images[0].smallest.items():
        if measure is Measure.COMPONENTS:
            continue
        clean = everything[measure.value] if label is None else everything[measure.value][label]
        for drop, distance in zip(DROPS, distances.tolist(), strict=True):
            for factor, reached in ((1 - 1e-6, False), (1 + 1e-6, True)):
                at = 10.0 if math.isinf(distance) else distance * factor
                worst = brute.worst([picture], at, 3, IGNORE)[measure.value]
                value = worst if label is None else worst[label]
                fell = abs(value - clean) >= drop - 1e-9
                assert fell == (reached and math.isfinite(distance)), (measure, label, drop, distance)


def test_class_pairs_price_every_flip_by_its_own_rows() -> None:
    random = np.random.default_rng(0)
    weight = torch.from_numpy(random.normal(size=(3, 5)))
    logits, _ = scene(1, images=1)
    costs = FlipCosts(ClassPairClaim(0.7, weight), logits[0])
    z = logits[0][:, 0]
    for k in range(3):
        for i in range(4):
            y = int(z[:, i].argmax())
            want = 0.0 if k == y else float((z[y, i] - z[k, i]) / (0.7 * (weight[y] - weight[k]).norm())) ** 2
            assert float(costs.towards(k)[i]) == pytest.approx(want, rel=1e-9)
    radii = ClassPairClaim(0.7, weight).radii(logits[0][None], logits[0][None], None)[0].flatten()
    torch.testing.assert_close(costs.nearest.sqrt(), radii, rtol=1e-9, atol=0)
    with pytest.raises(InputError, match="5 classes"):
        FlipCosts(ClassPairClaim(1.0, torch.eye(5)), logits[0])


def test_radii_alone_give_the_counting_of_single_pixels() -> None:
    radii = torch.tensor([[0.1, 0.3, 0.5, 0.0]], dtype=torch.float64)
    logits = torch.eye(4, dtype=torch.float64)[:, None, :] + torch.tensor([1.0, 0, 0, 0])[None, None]
    labels = logits.argmax(dim=0)
    claim = RadiusClaim(radii[None])
    with pytest.raises(InputError, match="radii"):
        FlipCosts(claim, logits)
    image = bounds(FlipCosts(claim, logits, radii), labels, IGNORE, torch.tensor([0.0, 0.1, 0.31, 1.0]))
    values = [dataset.certified(Measure.ACCURACY, None, [image], e) for e in range(4)]
    assert values == [0.75, 0.5, 0.25, 0.0]  # a radius equal to the budget is no protection


def test_half_and_float_logits_are_rounded_in_the_adversarys_favour() -> None:
    random = np.random.default_rng(3)
    for seed in range(50):
        z = torch.from_numpy(random.normal(size=(3, 1, 6)) * 10.0 ** (seed % 5)).float()
        single, double = FlipCosts(LipschitzClaim(1.1), z), FlipCosts(LipschitzClaim(1.1), z.double())
        for k in range(3):
            low, exact = single.towards(k).double(), double.towards(k) / (1 - 64 * 2.0**-52)
            assert (low <= exact).all()
            assert (low >= exact * (1 - 2e-5)).all()
    assert FlipCosts(LipschitzClaim(1.0), z.half()).nearest.dtype == torch.float32


def test_an_error_of_the_logits_only_makes_flips_cheaper() -> None:
    logits, _ = scene(5, images=1, pixels=30)
    plain, careful = FlipCosts(LipschitzClaim(1.0), logits[0]), FlipCosts(LipschitzClaim(1.0), logits[0], error=0.01)
    random = np.random.default_rng(5)
    for _ in range(20):
        moved = logits[0] + torch.from_numpy(random.uniform(-0.005, 0.005, size=logits[0].shape))
        truth = FlipCosts(LipschitzClaim(1.0), moved)
        for k in range(3):
            same = truth.predicted == careful.predicted
            assert (careful.towards(k) <= truth.towards(k))[same].all()
    assert (careful.nearest <= plain.nearest).all()
