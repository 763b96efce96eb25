"""Randomized smoothing against binomial tests one by one, and on a network whose smoothed radii are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import attackcheck as ac
from attackcheck import InputError, LipschitzClaim
from attackcheck.cli import main
from attackcheck.smoothing import Smoothing, p_values, read_smoothing, rejected, smooth


@pytest.mark.parametrize(("n", "tau"), [(1, 0.5), (13, 0.75), (100, 0.9), (1000, 0.6)])
def test_p_values_are_those_of_the_binomial_test(n: int, tau: float) -> None:
    shown = p_values(n, tau)
    for successes in {0, 1, n // 2, n - 1, n}:
        expected = stats.binomtest(successes, n, tau, alternative="greater").pvalue
        assert shown[successes] == pytest.approx(expected, rel=1e-9)


def holm(p: np.ndarray, alpha: float) -> np.ndarray:
    """Step by step, as the textbook says."""
    order, found = np.argsort(p), np.zeros(len(p), dtype=bool)
    for place, test in enumerate(order):
        if p[test] > alpha / (len(p) - place):
            break
        found[test] = True
    return found


@pytest.mark.parametrize("seed", range(30))
def test_corrections_are_those_of_the_textbook(seed: int) -> None:
    generator = np.random.default_rng(seed)
    n, m, alpha = int(generator.integers(5, 60)), int(generator.integers(1, 400)), 0.05
    successes = generator.binomial(n, generator.uniform(0.5, 1.0, size=m))
    p = np.array([p_values(n, 0.7)[s] for s in successes])
    shown = rejected(torch.from_numpy(successes), n, 0.7, alpha)
    assert np.array_equal(shown.numpy(), holm(p, alpha))
    shown = rejected(torch.from_numpy(successes), n, 0.7, alpha, "bonferroni")
    assert np.array_equal(shown.numpy(), p <= alpha / m)


def test_holm_stops_at_the_first_test_that_does_not_reject() -> None:
    """The second p-value would pass its own level, which is never asked for."""
    first, second = (float(stats.binomtest(k, 1000, 0.5, alternative="greater").pvalue) for k in (540, 539))
    assert 0.01 / 2 < first < second < 0.01
    assert not rejected(torch.tensor([540, 539]), 1000, 0.5, 0.01).any()
    assert rejected(torch.tensor([560, 539]), 1000, 0.5, 0.01).all()


@pytest.mark.parametrize("correction", ["holm", "bonferroni"])
def test_no_more_than_alpha_of_the_images_have_a_wrong_pixel(correction: str) -> None:
    """At the worst, where every probability is tau itself."""
    generator = torch.Generator().manual_seed(0)
    wrong, images, alpha = 0, 2000, 0.1
    for _ in range(images):
        successes = (torch.rand(40, 50, generator=generator) < 0.75).sum(1)
        wrong += bool(rejected(successes, 50, 0.75, alpha, correction).any())
    assert wrong <= images * alpha + 4 * (images * alpha) ** 0.5
    assert wrong > 0


class Halves(nn.Module):
    """Class 1 where a pixel is above a half: smoothed by noise, its radius is the distance to a half."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def forward(self, images: Tensor) -> Tensor:
        self.largest = max(self.largest, len(images))
        return torch.cat([0.5 - images, images - 0.5], 1)


def test_certified_pixels_are_farther_than_the_radius() -> None:
    image = torch.linspace(0, 1, 400).reshape(1, 20, 20)
    smoothing = Smoothing(0.25, n=400, n0=20, tau=0.8, alpha=0.001)
    assert smoothing.radius == pytest.approx(0.25 * stats.norm.ppf(0.8))
    found = smooth(Halves(), image, smoothing, seed=3)
    sure = found.predicted >= 0
    distance = (image[0] - 0.5).abs()
    assert bool((distance[sure] >= smoothing.radius).all())
    assert torch.equal(found.predicted[sure], (image[0] > 0.5).long()[sure])
    # Those far beyond it are certified: with 400 samples nothing is left to chance there.
    assert bool(sure[distance > 0.35].all())
    assert found.abstained == int((~sure).sum()) > 0
    assert found.radius == smoothing.radius


def test_memory_is_bounded_and_batches_do_not_matter() -> None:
    image, smoothing = torch.rand(1, 16, 16), Smoothing(0.3, n=150, n0=7)
    model = Halves()
    done: list[tuple[int, int]] = []
    one = smooth(model, image, smoothing, seed=1, batch=1)
    assert model.largest == 1
    many = smooth(model, image, smoothing, seed=1, batch=32, on_samples=lambda a, b: done.append((a, b)))
    assert model.largest == 32
    assert torch.equal(one.predicted, many.predicted)
    assert done[-1] == (157, 157)
    assert not torch.equal(smooth(model, image, smoothing, seed=2).predicted, one.predicted)


def test_more_samples_certify_more() -> None:
    image = torch.linspace(0, 1, 400).reshape(1, 20, 20)
    abstained = [smooth(Halves(), image, Smoothing(0.25, n=n), seed=0).abstained for n in (20, 100, 1000)]
    assert abstained[0] == 400  # too few to reject anything
    assert abstained[0] > abstained[1] > abstained[2]


def test_in_the_table_with_labels_and_without() -> None:
    images = torch.stack([torch.linspace(0, 1, 400).reshape(1, 20, 20), torch.full((1, 20, 20), 0.9)])
    labels = (images[:, 0] > 0.5).long()
    labels[1, :5] = 255
    labels[1, 5:10] = 0
    smoothing = Smoothing(0.25, n=200)
    claim = LipschitzClaim(2**0.5)
    table = ac.certify(Halves(), images, labels, claim, (0.1,), attack=False, smoothing=smoothing)
    (entry,) = table.smoothing
    assert table.epsilons == (0.1, smoothing.radius)
    first = smooth(Halves(), images[0], smoothing, seed=0)
    assert entry.abstained * 800 == pytest.approx(first.abstained, abs=25)
    right = 400 - entry.abstained * 800 + 200  # of 700 valid ones
    assert entry.accuracy == pytest.approx(right / 700)
    assert 0 < entry.testing < entry.seconds
    bare = ac.certify(Halves(), images, None, claim, (0.1,), attack=False, smoothing=smoothing).smoothing[0]
    assert np.isnan(bare.accuracy)
    assert bare.abstained == entry.abstained
    assert bare.to_dict()["accuracy"] is None


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["certify", "--images", "1", "--no-attack", "--eps", "0.1", "--out", str(tmp_path / "out")]
    written = tmp_path / "table.json"
    assert main([*common, "--smoothing", "sigma=0.1,n=30,alpha=0.5", "--json", str(written)]) == 0
    shown = capsys.readouterr().out
    assert "Randomized smoothing at the same radius 0.06745" in shown
    assert "smoothed network" in shown
    (entry,) = json.loads(written.read_text())["smoothing"]
    assert entry["n"] == 30
    assert 0 <= entry["abstained"] <= 1
    assert entry["confidence"] == 0.5


@pytest.mark.parametrize(
    "text",
    ["", "n=3", "sigma", "sigma=x", "sigma=0", "sigma=nan", "sigma=1,n=0", "sigma=1,n=1.5", "sigma=1,tau=0.4",
     "sigma=1,alpha=1", "sigma=1,correction=none", "sigma=1,sigma=2", "sigma=1,steps=3"],
)  # fmt: skip
def test_refusals(text: str) -> None:
    with pytest.raises(InputError, match="expected"):
        read_smoothing(text)


def test_reading() -> None:
    shown = read_smoothing(" sigma=0.25, n=60,correction=bonferroni,tau=0.9")
    assert shown == Smoothing(0.25, n=60, tau=0.9, correction="bonferroni")
