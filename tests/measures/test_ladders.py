"""Costs that are listed in part, and components found by their runs, against plain ways of doing the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

from attackcheck import ClassPairClaim, LipschitzClaim
from attackcheck.measures import FlipCosts, bounds, components, ladders, shared
from attackcheck.measures.components import connected, prices
from attackcheck.measures.shared import Weights, most_lost

EPS = torch.tensor([0.0, 0.05, 0.3, 1.0, 2.5, 40.0], dtype=torch.float64)
CLAIMS = {
    "one constant": LipschitzClaim(1.0),
    "a smaller constant of pixels": LipschitzClaim(2.0, "joint", pixel=0.8),
    "single pixels": LipschitzClaim(1.0, "pixel"),
    "class pairs": ClassPairClaim(1.0, torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).double()),
}


def scene(seed: int, kind: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.rand(4, 30, 25, generator=generator).square().to(kind)
    right = torch.rand(30, 25, generator=generator) < 0.8
    labels = torch.where(right, logits.argmax(dim=0), torch.randint(0, 6, (30, 25), generator=generator))
    return logits, torch.where(torch.rand(30, 25, generator=generator) < 0.1, torch.tensor(255), labels)


def found(claim: Any, logits: torch.Tensor, labels: torch.Tensor) -> list[Any]:
    image = bounds(FlipCosts(claim, logits, error=1e-4), labels, 255, EPS)
    same: list[Any] = [image.smallest]
    for part in (image.joint, image.alone):
        same += [part.right, part.kept, part.alive, part.intersection]
        same += [[(p.lost.tolist(), p.made.tolist()) for p in pairs] for pairs in part.pairs]
    return same


@pytest.mark.parametrize("factor", [0.0, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("claim", CLAIMS)
def test_which_costs_are_listed_changes_nothing(
    claim: str, kind: torch.dtype, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    guess = ladders.Ladders._limits
    for seed in range(6):
        logits, labels = scene(seed, kind)
        monkeypatch.setattr(ladders, "SAMPLED", 10**9)
        whole = found(CLAIMS[claim], logits, labels)
        monkeypatch.setattr(ladders, "SAMPLED", 200)
        with monkeypatch.context() as patch:
            patch.setattr(
                ladders.Ladders,
                "_limits",
                lambda *args, **kwargs: [factor * min(x, 1.0) for x in guess(*args, **kwargs)],
            )
            part = found(CLAIMS[claim], logits, labels)
        np.testing.assert_equal(part[1:], whole[1:])
        assert part[0].keys() == whole[0].keys()
        for key, distances in whole[0].items():
            np.testing.assert_allclose(part[0][key], distances, rtol=1e-12, atol=0)


def test_a_part_is_listed_of_a_large_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guess is worth its code: a small part of the costs is enough."""
    monkeypatch.setattr(ladders, "SAMPLED", 2**10)
    logits = torch.randn(5, 128, 128, generator=torch.Generator().manual_seed(0))
    costs = FlipCosts(LipschitzClaim(1.0), logits)
    labels = torch.where(torch.rand(128, 128, generator=torch.Generator().manual_seed(1)) < 0.9, logits.argmax(0), 0)
    asked = []
    monkeypatch.setattr(ladders, "_made", lambda *args: asked.append(args))
    image = bounds(costs, labels, 255, EPS[:4])
    assert len(image.smallest) > 10
    assert not asked
    every = ladders._offered(costs, ladders_truth(labels), slice(0, 2**14))
    listed = sum(len(each.single) for each in ladders_of(costs, labels))
    assert 0 < listed < 0.5 * int(every.isfinite().sum())


def ladders_truth(labels: torch.Tensor) -> torch.Tensor:
    return labels.flatten().to(torch.int16)


def ladders_of(costs: FlipCosts, labels: torch.Tensor) -> list[Any]:
    clean = bounds(costs, labels, 255, EPS[:4], smallest=False).clean
    return ladders.Ladders(costs, ladders_truth(labels), clean, EPS[:4]).making


@pytest.mark.parametrize("seed", range(5))
def test_the_price_of_a_sample_costs_no_tightness(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no price that is tried says less: at any of a fine grid the bound is no better."""
    eps = torch.tensor([0.0, 0.05, 0.3, 1.0], dtype=torch.float64)
    logits, labels = scene(seed, torch.float64)
    costs, valid = FlipCosts(LipschitzClaim(1.0), logits), labels.flatten() != 255
    clean = bounds(costs, labels, 255, eps).clean
    weights = Weights(
        torch.from_numpy(clean.intersection), torch.from_numpy(clean.union), torch.ones(4, dtype=torch.bool)
    )
    whole = most_lost(costs, labels.flatten(), valid, weights, eps)
    offers, offered = shared._offers, [int(valid.sum())]
    monkeypatch.setattr(shared, "SAMPLED", 100)
    monkeypatch.setattr(shared, "_offers", lambda *args: (offered.append(args[3].shape[1]), offers(*args))[1])
    part = most_lost(costs, labels.flatten(), valid, weights, eps)
    torch.testing.assert_close(part, whole, rtol=1e-9, atol=0)
    assert 0 < offered[-1] < 0.8 * offered[0]
    cost = costs.together_all()
    truth, value = labels.flatten(), torch.zeros_like(cost)
    for k in range(4):
        for i in torch.nonzero(valid)[:, 0].tolist():
            c, t = int(costs.predicted[i]), int(truth[i])
            if k not in (c, t):
                value[k, i] = float(clean.intersection[k] / clean.union[k] ** 2) + (c == t) / float(clean.union[c])
    prices = torch.logspace(-6, 3, 2000, dtype=torch.float64)
    surplus = (value - prices[:, None, None] * cost).amax(dim=1).clamp_min(0).sum(dim=1)
    best = (eps[:, None] ** 2 * prices + surplus).amin(dim=1)
    assert (whole <= best * (1 + 1e-6) + 1e-6 * value.amax(dim=0).sum()).all()
    assert (whole >= best * (1 - 2e-2) - 1e-12)[1:].all()


@pytest.mark.parametrize("seed", range(24))
def test_components_are_those_of_an_image_library(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components, "LARGE", (10, 40, 2**12)[seed % 3])
    random = np.random.default_rng(seed)
    height, width = (int(n) for n in random.integers(1, 60, 2))
    picture = np.kron(random.integers(0, 3, (height // 4 + 1, width // 3 + 1)), np.ones((4, 3), dtype=np.int64))
    picture = np.where(random.random((height, width)) < 0.05, 3, picture[:height, :width])
    cost = torch.from_numpy(random.random(height * width))
    cost = cost if seed % 2 else cost.float()
    ours = connected(torch.from_numpy(picture.ravel()), (height, width))
    assert len(ours.needed) == len(set(ours.member[ours.member >= 0].tolist()))
    total, dearest = prices(ours, cost)
    outside = np.ones(height * width, dtype=bool)
    for value in range(4):
        numbers, count = ndimage.label(picture == value)
        for number in range(1, count + 1):
            inside = (numbers == number).ravel()
            if inside.sum() < components.SMALLEST:
                continue
            (mine,) = set(ours.member[torch.from_numpy(inside)].tolist())
            assert int((ours.member == mine).sum()) == inside.sum()
            half = inside.sum() // 2 + 1
            assert int(ours.needed[mine]) == half
            cheapest = np.sort(cost.numpy()[inside])[:half]
            assert float(total[mine]) == pytest.approx(float(cheapest.sum(dtype=np.float64)), rel=1e-12)
            assert float(dearest[mine]) == float(cheapest[-1])
            outside &= ~inside
    assert (ours.member.numpy()[outside] == -1).all()
