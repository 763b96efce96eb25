"""Certificates that hold with a probability: a rate of violations is compared with alpha, not one flip with none.

Randomized smoothing draws noise once and certifies from it; each certificate may be wrong with probability alpha, over
that draw. So a single flip inside a radius breaks nothing. What does is more flips than alpha permits, by an exact
test: under the claim, so many or more would be seen with a probability below :data:`LEVEL`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from attackcheck.errors import InputError

__all__ = ["LEVEL", "Attacked", "Confidence", "RateTest", "rate_test"]

LEVEL = 1e-3
"""A sound certifier is refuted by chance with at most this probability."""

Per = Literal["pixel", "image"]


@dataclass(frozen=True)
class Confidence:
    """With what probability certificates hold.

    Args:
        alpha: probability that a certificate is wrong, in (0, 0.5].
        per: what it is about: each pixel's certificate, or all of an image at once (the family-wise level of Fischer,
            Baader and Vechev, Scalable certified segmentation via randomized smoothing, 2021).
        independent: whether the pixels of an image err independently. Usually they share their noise and do not.

    Raises:
        InputError: for other values.
    """

    alpha: float
    per: Per = "pixel"
    independent: bool = False

    def __post_init__(self) -> None:
        number = isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool)
        if not number or not 0.0 < self.alpha <= 0.5:
            raise InputError(f"expected alpha above 0 and at most 0.5, got {self.alpha!r}")
        if self.per not in ("pixel", "image") or not isinstance(self.independent, bool):
            raise InputError(f"expected alpha per 'pixel' or 'image', got {self.per!r}, {self.independent!r}")

    @classmethod
    def told(cls, content: Mapping[str, Any], source: str) -> Confidence | None:
        """From ``alpha`` or ``confidence``, ``per`` and ``independent``; None without either of the first two."""
        if "alpha" in content and "confidence" in content:
            raise InputError(f"expected alpha or confidence in {source}, got both")
        if "alpha" not in content and "confidence" not in content:
            if content:
                raise InputError(f"expected alpha beside {', '.join(sorted(content))} in {source}")
            return None
        alpha = content.get("alpha")
        if "confidence" in content:
            given = content["confidence"]
            number = isinstance(given, int | float) and not isinstance(given, bool)
            alpha = 1.0 - given if number else given
        return cls(alpha, content.get("per", "pixel"), content.get("independent", False))  # type: ignore[arg-type]

    def describe(self) -> str:
        """For a header."""
        return f"each with confidence {1.0 - self.alpha:.6g} per {self.per}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"alpha": float(self.alpha), "per": self.per, "independent": self.independent}


@dataclass(frozen=True)
class Attacked:
    """One image's share: pixels attacked, those flipped inside their radius, and what they stand for.

    A certifier that abstains is not wrong. So pixels drawn from the certified ones are wrong more often than alpha
    says of all: they stand for ``certificates >= pixels``, abstentions included.
    """

    pixels: int
    broken: int
    certificates: float


@dataclass(frozen=True)
class RateTest:
    """How many certificates were seen broken, and how likely so many are if the claim holds.

    Attributes:
        trials, broken: attacked pixels (or images) and those with a flip inside the radius.
        expected: how many broken ones the claim permits on average.
        probability: upper bound of the probability of so many or more under the claim.
        alone: the same if all trials were independent of each other: an exact binomial tail.
    """

    confidence: Confidence
    trials: int
    broken: int
    expected: float
    probability: float
    alone: float

    @property
    def refuted(self) -> bool:
        """Whether the claim is broken at :data:`LEVEL`."""
        return self.probability < LEVEL

    @property
    def permitted(self) -> float:
        """Share of broken trials that the claim expects at most."""
        return self.expected / self.trials if self.trials else self.confidence.alpha

    @property
    def rate(self) -> float:
        """Share of broken trials."""
        return self.broken / self.trials if self.trials else 0.0

    def sentence(self) -> str:
        """For people."""
        what = "pixels" if self.confidence.per == "pixel" else "images"
        return (
            f"{self.broken} of {self.trials} attacked {what} flipped inside a radius that is wrong with probability "
            f"{self.confidence.alpha:g} at most: so many have a probability of at most {self.probability:.3g}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            **self.confidence.to_dict(),
            "trials": self.trials,
            "broken": self.broken,
            "expected": self.expected,
            "probability": self.probability,
            "probability_if_independent": self.alone,
            "level": LEVEL,
            "refuted": self.refuted,
        }


def rate_test(confidence: Confidence, counts: Sequence[Attacked]) -> RateTest:
    """Compare the rate of violations with alpha, one-sided and exact.

    Images are independent of each other: each has its own noise. Of pixels, this is true only where the claim says so:
    then broken pixels are a binomial number. Without it two bounds hold whatever pixels have to do with each other,
    where the pixels attacked in image i stand for ``n_i`` certificates: an image has any broken one with probability
    ``min(1, n_i alpha)`` at most, so the number of such images is dominated by a sum of independent trials
    (Poisson-binomial, exact); and so many broken pixels have probability ``n alpha / broken`` at most (Markov). Twice
    the smaller of the two bounds the probability.

    Args:
        confidence: what is claimed.
        counts: one for every image.
    """
    from scipy import stats

    alpha, used = confidence.alpha, [count for count in counts if count.pixels]
    images = sum(1 for count in used if count.broken)
    if confidence.per == "image":
        tail = _tail([alpha] * len(used), images)
        return RateTest(confidence, len(used), images, alpha * len(used), tail, tail)
    trials, broken = sum(count.pixels for count in used), sum(count.broken for count in used)
    stand_for = sum(count.certificates for count in used)
    each = min(1.0, alpha * stand_for / trials) if trials else alpha
    alone = float(stats.binom.sf(broken - 1, trials, each)) if broken else 1.0
    if confidence.independent:
        return RateTest(confidence, trials, broken, trials * each, alone, alone)
    by_images = _tail([min(1.0, count.certificates * alpha) for count in used], images)
    markov = min(1.0, stand_for * alpha / broken) if broken else 1.0
    return RateTest(confidence, trials, broken, trials * each, min(1.0, 2.0 * min(by_images, markov)), alone)


def _tail(probabilities: Sequence[float], least: int) -> float:
    """Probability that at least so many of these independent events happen, by adding them one after the other."""
    if least <= 0:
        return 1.0
    exactly = [1.0] + [0.0] * least  # 0, 1, ..., least - 1 events, and that many or more
    for p in probabilities:
        exactly[least] += exactly[least - 1] * p
        for number in range(least - 1, 0, -1):
            exactly[number] = exactly[number] * (1.0 - p) + exactly[number - 1] * p
        exactly[0] *= 1.0 - p
    return min(1.0, math.fsum([exactly[least]]))
