"""Certificates with a confidence: a rate is compared with alpha, by tests that are exact and never cry wolf."""

import math
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

import attackcheck as ac
from attackcheck.cli import main
from attackcheck.confidence import LEVEL, Attacked, Confidence, RateTest, rate_test
from attackcheck.errors import InputError
from attackcheck.models import exact
from attackcheck.recheck import Verdict
from attackcheck.run_folder import read_run

ALONE = str(Path(__file__).parents[1] / "examples" / "replay_alone.py")
SIZE = 8
MODEL = exact.orthonormal_rows(seed=1)
IMAGES = torch.rand(6, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2))
TRUTH = np.stack([MODEL.flip_distance(image.double()).numpy() for image in IMAGES])


def tried(pixels, broken):
    return Attacked(pixels, broken, float(pixels))


def binomial(trials, least, alpha):
    return sum(math.comb(trials, k) * alpha**k * (1 - alpha) ** (trials - k) for k in range(least, trials + 1))


@pytest.mark.parametrize(("trials", "broken", "alpha"), [(1, 1, 0.1), (20, 3, 0.05), (512, 4, 0.001), (64, 64, 0.5)])
def test_independent_pixels_are_a_binomial_number(trials, broken, alpha):
    test = rate_test(Confidence(alpha, independent=True), [tried(trials - 1, broken - 1), tried(1, 1)])
    assert test.probability == pytest.approx(binomial(trials, broken, alpha), rel=1e-9)
    assert (test.trials, test.broken) == (trials, broken)


@pytest.mark.parametrize("broken", range(5))
def test_images_are_a_binomial_number(broken):
    counts = [tried(10, 7 if number < broken else 0) for number in range(4)] + [tried(0, 0)]
    test = rate_test(Confidence(0.1, "image"), counts)
    assert test.probability == pytest.approx(binomial(4, broken, 0.1), rel=1e-9)
    assert (test.trials, test.broken) == (4, broken)


def test_nothing_broken_refutes_nothing():
    for confidence in (Confidence(0.1), Confidence(0.1, "image"), Confidence(0.1, independent=True)):
        assert rate_test(confidence, [tried(10, 0)] * 3).probability == 1.0
        assert not rate_test(confidence, []).refuted


@pytest.mark.parametrize("alpha", [0.02, 0.2])
@pytest.mark.parametrize("sizes", [(1, 2, 3), (4, 4)])
def test_whatever_pixels_have_to_do_with_each_other_the_level_is_kept(alpha, sizes):
    """Exhaustively, for pixels that err all together, alone, or one at a time, with probability alpha each."""

    def images(size):
        yield {0: 1 - alpha, size: alpha}  # all together
        yield {k: math.comb(size, k) * alpha**k * (1 - alpha) ** (size - k) for k in range(size + 1)}
        if size * alpha <= 1:
            yield {0: 1 - size * alpha, 1: size * alpha}  # never two

    for laws in product(*(list(images(size)) for size in sizes)):
        outcomes = []
        for combination in product(*(law.items() for law in laws)):
            counts = [tried(size, broken) for size, (broken, _) in zip(sizes, combination, strict=True)]
            chance = math.prod(probability for _, probability in combination)
            outcomes.append((rate_test(Confidence(alpha), counts).probability, chance))
        for level, _ in outcomes:
            assert sum(chance for found, chance in outcomes if found <= level) <= level * (1 + 1e-9)


def test_what_was_drawn_from_the_certified_stands_for_those_that_abstain():
    alone = rate_test(Confidence(0.01, independent=True), [Attacked(10, 2, 10.0)])
    drawn = rate_test(Confidence(0.01, independent=True), [Attacked(10, 2, 100.0)])
    assert drawn.probability > alone.probability
    assert drawn.expected == pytest.approx(1.0)


@pytest.mark.parametrize("alpha", [0.0, -0.1, 0.6, 1, True, "0.1", math.nan, None])
def test_alpha_is_a_small_probability(alpha):
    with pytest.raises(InputError, match="alpha"):
        Confidence(alpha)


def test_what_is_told():
    assert Confidence.told({}, "x") is None
    assert Confidence.told({"confidence": 0.99}, "x").alpha == pytest.approx(0.01)
    for wrong in ({"alpha": 0.1, "confidence": 0.9}, {"per": "image"}, {"alpha": 0.1, "per": "row"}, {"alpha": [1]}):
        with pytest.raises(InputError):
            Confidence.told(wrong, "x")


# In a run ------------------------------------------------------------------------------------------------------------


def examined(radii, confidence, **options):
    claim = ac.RadiusClaim(radii, confidence=confidence)
    return ac.verify(MODEL.float(), IMAGES, claim, plan="quick", **({"pixels": 20} | options))


def some_wrong(share, seed=0):
    """Radii 1.2 times too large at this share of pixels."""
    wrong = np.random.default_rng(seed).random(TRUTH.shape) < share
    return np.where(wrong, TRUTH * 1.2, TRUTH)


def test_flips_within_the_confidence_are_counted_and_break_nothing():
    report = examined(some_wrong(0.05), Confidence(0.05))
    assert report.sound
    assert report.exit_code() == report.exit_code(strict=True) == 0
    assert report.counts["COUNTED"] == report.rate.broken > 0
    assert report.rate.trials == 120
    assert "VIOLATED" not in report.counts
    assert not examined(some_wrong(0.05), None).sound  # the same radii without a confidence


@pytest.mark.parametrize("per", ["pixel", "image"])
def test_too_many_flips_break_it(per):
    report = examined(TRUTH * 1.2, Confidence(0.01, per))
    assert not report.sound
    assert [violation.kind for violation in report.violations] == [ac.Kind.RATE]
    assert report.violations[0].ratio > 1
    assert report.rate.probability < LEVEL
    assert report.to_dict()["rate"]["refuted"] is True


def test_sound_radii_with_a_confidence_hold():
    report = examined(TRUTH, Confidence(0.001))
    assert report.sound
    assert report.rate.broken == 0
    assert report.attacked_count == 120


def test_pixels_given_or_weakest_first_stand_for_what_they_are():
    given = np.array([[0, 1, 1], [0, 2, 2], [1, 3, 3]])
    assert examined(TRUTH * 1.2, Confidence(0.3), pixels=given).rate.expected == pytest.approx(0.9)
    weakest = examined(TRUTH * 1.2, Confidence(0.3), pixels=2, choose="weakest").rate
    assert weakest.trials == 12
    assert weakest.expected == 12.0  # there may be that many anywhere in the images
    assert not weakest.refuted


def test_abstentions_raise_what_is_expected_of_the_rest():
    radii = np.where(np.random.default_rng(0).random(TRUTH.shape) < 0.5, 0.0, TRUTH)
    rate = examined(radii, Confidence(0.01)).rate
    assert rate.expected == pytest.approx(0.01 * sum(20 * SIZE**2 / (image > 0).sum() for image in radii))


def test_nothing_is_asked_at_points_that_an_attack_chose():
    def certifier(images):
        calls.append(len(images))
        return torch.from_numpy(TRUTH[len(calls) - 1 : len(calls)])

    calls = []
    report = examined(certifier, Confidence(0.01))
    assert report.sound
    assert calls == [1] * len(IMAGES)


def test_an_npz_with_alpha(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(
        "from attackcheck.models import exact\ndef net():\n    return exact.orthonormal_rows(seed=1).float()\n"
    )
    np.savez("images.npz", images=IMAGES.numpy())
    command = ["verify", "nets.py:net", "--data", "arrays:images.npz", "--plan", "quick", "--pixels", "20"]
    np.savez("few.npz", radii=some_wrong(0.05), alpha=0.05)
    assert main([*command, "--radii", "few.npz"]) == 0
    out = capsys.readouterr().out
    assert "with confidence 0.95 per pixel" in out
    assert "Rate: " in out
    np.savez("many.npz", radii=TRUTH * 1.2, confidence=0.999, per="image")
    assert main([*command, "--radii", "many.npz"]) == 1
    assert "1 RATE" in capsys.readouterr().out
    np.savez("off.npz", radii=TRUTH * 1.2, alpha=0.001, abstained=np.ones(TRUTH.shape, bool))
    assert main([*command, "--radii", "off.npz"]) == 2  # it says nothing at all
    for wrong in ({"alpha": 2.0}, {"alpha": [0.1, 0.2]}, {"per": "image"}, {"abstained": TRUTH}, {"alpha": "x"}):
        np.savez("wrong.npz", **({"radii": TRUTH} | wrong))
        capsys.readouterr()
        assert main([*command, "--radii", "wrong.npz"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "claim.toml").write_text('kind = "radii"\nfile = "many.npz"\nalpha = 0.5\n')
    assert main([*command, "--claim", "claim.toml"]) == 0


def test_a_sentence_says_what_was_seen():
    test = RateTest(Confidence(0.001), 512, 40, 0.512, 0.02, 1e-9)
    assert "40 of 512 attacked pixels" in test.sentence()
    assert "0.02" in test.sentence()


# Kept, replayed, resumed ---------------------------------------------------------------------------------------------

NETS = "from attackcheck.models import exact\ndef net():\n    return exact.orthonormal_rows(seed=1).float()\n"
COMMAND = [
    "verify",
    "nets.py:net",
    "--data",
    "arrays:images.npz",
    "--plan",
    "quick",
    "--pixels",
    "20",
    "--threads",
    "1",
]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    np.savez("images.npz", images=IMAGES.numpy())
    np.savez("few.npz", radii=some_wrong(0.05), alpha=0.05)
    np.savez("many.npz", radii=TRUTH * 1.2, alpha=0.001, per="image")
    return tmp_path


def test_a_counted_flip_is_kept_and_replayed_as_what_it_is(place, capsys):
    assert main([*COMMAND, "--radii", "few.npz", "--out", "run", "-q"]) == 0
    report = read_run("run").report
    counted = [found for found in report.findings if found.verdict is Verdict.COUNTED]
    assert len(counted) == report.rate.broken > 0
    assert report.violations == ()
    for found in counted:
        capsys.readouterr()
        assert main(["replay", str(found.counterexample), "nets.py:net"]) == 0
        out = capsys.readouterr().out
        assert "COUNTED" in out
        assert "reproduced, and no violation by itself" in out
    # Of the same radii without a confidence it is one, and of smaller ones nothing.
    np.savez("sure.npz", radii=some_wrong(0.05))
    np.savez("smaller.npz", radii=TRUTH / 2, alpha=0.05)
    example = str(counted[0].counterexample)
    assert main(["replay", example, "nets.py:net", "--radii", "sure.npz"]) == 1
    assert main(["replay", example, "nets.py:net", "--radii", "few.npz"]) == 0
    capsys.readouterr()
    assert main(["replay", example, "nets.py:net", "--radii", "smaller.npz"]) == 0
    assert "fixed" in capsys.readouterr().out
    done = subprocess.run([sys.executable, ALONE, example, "nets.py:net"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "counted")


@pytest.mark.parametrize(("radii", "code"), [("few.npz", 0), ("many.npz", 1)])
def test_a_run_with_a_confidence_goes_on_where_it_stopped_and_is_shared_out(place, radii, code):
    """The rate is one of all images together, whoever attacked them, and however often the run was started."""
    command = [*COMMAND, "--radii", radii, "-q"]
    assert main([*command, "--out", "whole"]) == code
    assert main([*command, "--out", "resumed"]) == code
    Path("resumed/parts/image-000004.npz").unlink()
    Path("resumed/parts/image-000001.npz").unlink()
    assert main([*command, "--out", "resumed"]) == code
    for shard in ("1/2", "2/2"):
        assert main([*command, "--out", "shards", "--shard", shard, "--exit-zero"]) == 0
    assert main(["merge", "shards", "--out", "merged", "-q"]) == code
    whole = read_run("whole").report
    assert (whole.rate.broken > 0, whole.rate.refuted) == (True, code == 1)
    for other in (read_run("resumed").report, read_run("merged").report):
        assert other.rate == whole.rate
        assert other.counts == whole.counts
        kinds = [(v.kind, v.verdict, v.image, v.pixel, v.radius, v.distance) for v in other.findings]
        assert kinds == [(v.kind, v.verdict, v.image, v.pixel, v.radius, v.distance) for v in whole.findings]
        saved = [v.counterexample for v in other.findings if v.verdict is Verdict.COUNTED]
        assert len(saved) >= whole.rate.broken > 0
        assert all(path is not None and path.is_file() for path in saved)
