"""Randomized smoothing of a segmentation network: the baseline that certifies any network, by sampling.

SegCertify (Fischer, Baader and Vechev, "Scalable certified segmentation via randomized smoothing", ICML 2021): a few
noisy copies of an image choose a class for every pixel, many more test whether that class has a probability above tau,
and pixels whose test fails abstain. With probability at least 1 - alpha over the samples, every pixel that does not
abstain keeps its class for any perturbation of L2 norm below ``sigma Phi^-1(tau)``: of the **smoothed** network, which
predicts what is most probable under noise, not of the network itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from scipy import special
from torch import Tensor

from attackcheck import preflight
from attackcheck.arithmetic import exact_arithmetic, frozen, guarded
from attackcheck.errors import InputError
from attackcheck.measures import dataset
from attackcheck.measures.components import Components
from attackcheck.measures.image import Counts, counts
from attackcheck.measures.names import Measure
from attackcheck.selection import seed_of
from attackcheck.subject import Images, Subject

__all__ = [
    "SmoothedData",
    "SmoothedImage",
    "Smoothing",
    "p_values",
    "read_smoothing",
    "rejected",
    "smooth",
    "smooth_data",
]

ABSTAIN = -1
BATCH_NUMBERS = {"cpu": 2**19, "cuda": 2**26}
"""Numbers of noisy images at a time: memory does not grow with the number of samples."""


@dataclass(frozen=True)
class Smoothing:
    """How to smooth and to test.

    Args:
        sigma: standard deviation of the noise on the [0, 1] scale.
        n: samples of the test.
        n0: samples that choose the classes.
        tau: probability that is tested for, above a half.
        alpha: probability that any pixel of an image is certified wrongly.
        correction: for so many tests at once: Holm's (more pixels) or Bonferroni's.

    Raises:
        InputError: for a number out of range.
    """

    sigma: float
    n: int = 100
    n0: int = 10
    tau: float = 0.75
    alpha: float = 0.001
    correction: Literal["holm", "bonferroni"] = "holm"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise InputError(f"expected noise sigma above 0 and finite, got {self.sigma:g}")
        if self.n < 1 or self.n0 < 1:
            raise InputError(f"expected at least one sample for each purpose, got n0={self.n0}, n={self.n}")
        if not 0.5 <= self.tau < 1:
            raise InputError(f"expected tau from 0.5 to below 1, got {self.tau:g}")
        if not 0 < self.alpha < 1:
            raise InputError(f"expected alpha between 0 and 1, got {self.alpha:g}")
        if self.correction not in ("holm", "bonferroni"):
            raise InputError(f"expected correction holm or bonferroni, got {self.correction!r}")

    @property
    def radius(self) -> float:
        """``sigma Phi^-1(tau)``, the radius of every pixel that does not abstain."""
        return float(self.sigma * special.ndtri(self.tau))

    def describe(self) -> str:
        """One line."""
        return (
            f"noise {self.sigma:g}, {self.n0} + {self.n} samples, tau {self.tau:g}, {self.correction.capitalize()}, "
            f"each image with probability {1 - self.alpha:g}"
        )


def read_smoothing(text: str) -> Smoothing:
    """``sigma=0.25,n=100`` and so on.

    Raises:
        InputError: for an unknown name, a value that does not fit, or no sigma.
    """
    kinds: dict[str, Callable[[str], Any]] = {"n": int, "n0": int, "correction": str}
    names = [field.name for field in fields(Smoothing)]
    given: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals or name not in names or name in given:
            raise InputError(f"expected --smoothing like sigma=0.25,n=100 with {', '.join(names)}, got {part!r}")
        try:
            given[name] = kinds.get(name, float)(value)
        except ValueError:
            raise InputError(f"expected a number for {name} in --smoothing, got {value!r}") from None
    if "sigma" not in given:
        raise InputError(f"expected --smoothing with sigma=..., got {text!r}")
    return Smoothing(**given)


# Statistics ----------------------------------------------------------------------------------------------------------


def p_values(n: int, tau: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Probability of at least 0, 1, ..., n successes of n if one has probability tau: one-sided p-values, (n + 1,)."""
    successes = np.arange(1, n + 1, dtype=np.float64)
    tail = special.betainc(successes, n - successes + 1.0, tau)
    found: np.ndarray[Any, np.dtype[np.float64]] = np.concatenate([[1.0], tail])
    return found


def rejected(successes: Tensor, n: int, tau: float, alpha: float, correction: str = "holm") -> Tensor:
    """Which of many binomial tests of "the probability is at most tau" reject, with any error at most ``alpha``.

    Args:
        successes: ``(m,)`` integers from 0 to n.
        n, tau, alpha: of every test, and of all together.
        correction: "holm" (Holm 1979, step down) or "bonferroni".

    Returns:
        ``(m,)`` bool.
    """
    m = successes.numel()
    table = torch.from_numpy(p_values(n, tau)).to(successes.device)
    if correction == "bonferroni" or m == 0:
        return (table <= alpha / max(m, 1))[successes]
    # Tests with as many successes share a p-value, and a step passes for all of them if it does for the first: it is
    # enough to go through the counts, the largest first.
    tests = torch.bincount(successes, minlength=n + 1).flip(0)  # of n, n - 1, ... successes
    before = tests.cumsum(0) - tests
    passes = (table.flip(0) <= alpha / (m - before).clamp_min(1)) | (tests == 0)
    return passes.cumprod(0).bool().flip(0)[successes]


# Images --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SmoothedImage:
    """One image: ``predicted`` ``(H, W)`` is -1 where it abstains; seconds of the network and of the statistics."""

    predicted: Tensor
    radius: float
    sampling: float
    testing: float

    @property
    def abstained(self) -> int:
        """How many pixels."""
        return int((self.predicted == ABSTAIN).sum())


def smooth(
    model: Callable[[Tensor], Tensor],
    image: Tensor,
    smoothing: Smoothing,
    *,
    seed: int = 0,
    batch: int | None = None,
    on_samples: Callable[[int, int], None] | None = None,
) -> SmoothedImage:
    """Certify one image by sampling.

    Args:
        model: ``(B, C, H, W) -> (B, K, H, W)``, as it is to be smoothed: in evaluation mode, without gradients.
        image: ``(C, H, W)`` on the model's device.
        smoothing: how.
        seed: of the noise; the same for every batch size.
        batch: noisy images at a time; None fits them to the image.
        on_samples: called with how many of how many samples are done.
    """
    generator = torch.Generator(device=image.device).manual_seed(seed)
    room = BATCH_NUMBERS.get(image.device.type, BATCH_NUMBERS["cpu"])
    size = batch or max(1, room // image.numel())
    total, done = smoothing.n0 + smoothing.n, 0
    start = time.perf_counter()
    votes: Tensor | None = None
    for predicted, classes in _predictions(model, image, smoothing.sigma, smoothing.n0, size, generator):
        if votes is None:
            votes = torch.zeros(classes, *predicted.shape[1:], dtype=torch.int32, device=image.device)
        votes.scatter_add_(0, predicted, torch.ones_like(predicted, dtype=torch.int32))
        done += len(predicted)
        if on_samples is not None:
            on_samples(done, total)
    if votes is None:
        raise RuntimeError("no samples were drawn")
    chosen = votes.argmax(0)  # (H, W)
    successes = torch.zeros_like(chosen)
    for predicted, _ in _predictions(model, image, smoothing.sigma, smoothing.n, size, generator):
        successes += (predicted == chosen).sum(0)
        done += len(predicted)
        if on_samples is not None:
            on_samples(done, total)
    if image.device.type == "cuda":
        torch.cuda.synchronize(image.device)
    middle = time.perf_counter()
    sure = rejected(successes.flatten(), smoothing.n, smoothing.tau, smoothing.alpha, smoothing.correction)
    predicted = torch.where(sure.reshape(chosen.shape), chosen, ABSTAIN).cpu()
    return SmoothedImage(predicted, smoothing.radius, middle - start, time.perf_counter() - middle)


def _predictions(
    model: Callable[[Tensor], Tensor], image: Tensor, sigma: float, count: int, size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, int]]:
    """Classes ``(b, H, W)`` of ``count`` noisy copies, at most ``size`` at a time, and how many classes there are."""
    for start in range(0, count, size):
        # One draw for each copy: what is drawn must not depend on the batch size.
        noise = [
            torch.randn(image.shape, generator=generator, device=image.device, dtype=image.dtype)
            for _ in range(min(size, count - start))
        ]
        with torch.no_grad():
            logits = model(image + sigma * torch.stack(noise))
        yield logits.argmax(1), int(logits.shape[1])


# Data sets -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SmoothedData:
    """A data set, certified by sampling; abstained pixels count as wrong, and NaN stands where there are no labels.

    ``seconds`` are per image, and ``testing`` of them are the statistics.
    """

    smoothing: Smoothing
    images: int
    accuracy: float
    mean_iou: float
    abstained: float
    seconds: float
    testing: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        plain: dict[str, Any] = dict(self.smoothing.__dict__)
        plain |= {"radius": self.smoothing.radius, "confidence": 1 - self.smoothing.alpha, "images": self.images}
        for name in ("accuracy", "mean_iou", "abstained", "seconds", "testing"):
            value = getattr(self, name)
            plain[name] = None if math.isnan(value) else value
        return plain


def smooth_data(
    subject: Subject,
    data: Images,
    smoothing: Smoothing,
    *,
    seed: int = 0,
    device: str = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
) -> SmoothedData:
    """Certify every image by sampling and measure.

    Args:
        subject: its model is smoothed; its claim does not matter.
        data: images.
        smoothing: how.
        seed: of the noise.
        device: where the model runs.
        on_progress: called with how many of how many samples are done, over all images.

    Raises:
        InputError: if the model or an image cannot be used.
    """
    preflight.check_model(subject.model)
    copy = frozen(subject.model)
    if isinstance(copy, torch.nn.Module):
        copy.to(device).eval()
    model = guarded(copy)
    found: list[Counts] = []
    abstained = pixels = 0
    sampling = testing = 0.0
    each = smoothing.n0 + smoothing.n
    with exact_arithmetic():
        for index in range(len(data)):
            sample = data[index]
            preflight.check_image(sample.image, sample.name)
            image = sample.image.to(device)
            logits = preflight.check_logits(model, image[None])[0]

            def passed(done: int, _: int, index: int = index) -> None:
                if on_progress is not None:
                    on_progress(index * each + done, len(data) * each)

            one = smooth(model, image, smoothing, seed=seed_of("smoothing", seed, index), on_samples=passed)
            sampling, testing = sampling + one.sampling, testing + one.testing
            abstained, pixels = abstained + one.abstained, pixels + one.predicted.numel()
            found.append(_counted(one.predicted, logits, sample.labels, data.ignore))
    count = max(1, len(data))
    return SmoothedData(
        smoothing=smoothing,
        images=len(data),
        accuracy=dataset.clean(Measure.ACCURACY, None, found),
        mean_iou=dataset.clean(Measure.MEAN_IOU, None, found),
        abstained=abstained / max(1, pixels),
        seconds=(sampling + testing) / count,
        testing=testing / count,
    )


def _counted(predicted: Tensor, logits: Tensor, labels: Tensor | None, ignore: int) -> Counts:
    flat = None if labels is None else labels.flatten().cpu()
    valid = None if flat is None else flat != ignore
    none = Components.none(predicted.numel())
    return counts(predicted.flatten(), logits.flatten(1).argmax(0).cpu(), flat, valid, int(logits.shape[0]), none, 0)
