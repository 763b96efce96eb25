"""What calls of an attack cost, counted on a dummy network with as many classes.

The attack runs as in a run, through the same probes, on a network that costs next to nothing: what it sends forward and
backward is counted, and what its own arithmetic and the recording take is timed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attackcheck.attacking import Aim, Attacker, ImageWork, Unit
from attackcheck.attacks import registry
from attackcheck.attacks.plans import Plan, Stage
from attackcheck.claims import LipschitzClaim
from attackcheck.receptive import Field, Windows
from attackcheck.regions import Region
from attackcheck.rehearsal import work_on
from attackcheck.subject import Settings
from attackcheck.tally import Tally

__all__ = ["Clock", "Passes", "count_passes"]

Clock = Callable[[], float]

TINY = 8
"""Rows and columns of images on which calls of the network cost nothing but their overhead."""

TIMED = 2**14
"""Pixels of all rows on which an attack's own arithmetic is timed."""


@dataclass(frozen=True)
class Passes:
    """One call of an attack: what each of its rows costs, and what comes on top.

    Attributes:
        forward: rows sent forward, for each row.
        backward: rows sent backward, for each row.
        together: rows in one call of the network, for each row; 0 where rows go one by one.
        widest: the most rows in one call of the network, for each row.
        overhead: seconds for each call, whatever its size; for each row where rows go one by one.
        beyond: seconds outside the network, for each row and pixel.
    """

    forward: float
    backward: float
    together: float
    widest: float
    overhead: float
    beyond: float

    def outside(self, rows: int, pixels: int) -> float:
        """Seconds outside the network of one call with so many rows of so many pixels."""
        return self.overhead * (1 if self.together else rows) + self.beyond * rows * pixels

    def rows(self, rows: int) -> int:
        """Rows in a call of the network, where the attack has so many."""
        return max(1, round(self.together * rows))


def count_passes(
    stage: Stage,
    settings: Settings,
    *,
    channels: int,
    classes: int,
    place: tuple[int, int],
    rows: int,
    crops: bool,
    clock: Clock = time.perf_counter,
) -> Passes:
    """Count one stage at one budget.

    Args:
        stage: the attack, its objective and its options.
        settings: box, target and device.
        channels, classes: of the network.
        place: height and width of what the attack sees.
        rows: pixels, regions or budgets attacked in one call.
        crops: whether it sees crops.
        clock: seconds.
    """
    settings = replace(settings, plan=Plan("counted", (stage,)), metrics=())
    if settings.target is not None:
        settings = replace(settings, target=min(settings.target, classes - 1))
    single = stage.objective != "pixel"
    tiny = _Dummy(channels, classes, settings.device, clock)
    few = 1 if single else 2
    smallest = min(TINY, place[0]), min(TINY, place[1])
    if "." in stage.attack:
        tiny.run(stage, settings, smallest, few, crops)  # the library is imported, which is no part of the call
    tiny.run(stage, settings, smallest, few, crops)
    # Large images are stood for by smaller ones: the arithmetic takes as long for each pixel.
    shrink = max(1.0, math.sqrt(math.prod(place) / TIMED))
    size = max(4, round(place[0] / shrink)), max(4, round(place[1] / shrink))
    many = max(1 if single else 2, min(rows, TIMED // math.prod(size)))
    real = _Dummy(channels, classes, settings.device, clock)
    real.run(stage, settings, size, many, crops)
    forward, backward = real.forward / many, real.backward / many
    one_by_one = not single and real.forward / max(1, real.calls) < 0.75 * many
    together = 0.0 if one_by_one else real.forward / max(1, real.calls) / many
    overhead = tiny.outside / (few if one_by_one else 1)
    rest = real.outside - overhead * (many if one_by_one else 1)
    beyond = max(0.0, rest) / (many * math.prod(size))
    return Passes(forward, backward, together, max(1.0, real.widest / many), overhead, beyond)


class _Dummy:
    """One curved layer for each pixel alone; what it is called with is counted, and its own time is known."""

    def __init__(self, channels: int, classes: int, device: str, clock: Clock) -> None:
        self._clock = clock
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(classes, channels, 1, 1, generator=generator, dtype=torch.float64)
        self._weight = weight.to(device)
        self.calls = self.widest = 0
        self.forward = self.backward = 0
        self.outside = 0.0
        self._inside = 0.0

    def __call__(self, images: Tensor) -> Tensor:
        start = self._clock()
        logits = torch.nn.functional.conv2d(images, self._weight.to(images.dtype))
        logits = logits + 0.2 * torch.sin(4 * logits)  # so that searches take more than one step
        self._inside += self._clock() - start
        self.calls += 1
        self.widest = max(self.widest, len(images))
        return logits

    def run(self, stage: Stage, settings: Settings, size: tuple[int, int], rows: int, crops: bool) -> None:
        """One call of the attack on images or crops of this size, with so many pixels."""
        work, pixels = self._work(settings, size, rows, crops)
        attacker = Attacker(self, work.probe.claim, replace(settings, batch=rows), Tally(255))
        attacker.aim(work, pixels)
        unit = Unit(stage, stage.eps[0] if stage.eps else None, pixels, target=settings.target)
        if stage.objective == "pixel":
            unit = replace(unit, stage=replace(stage, unflipped=False), pixels=pixels)
        elif stage.objective == "region":
            unit = replace(unit, eps=None, aims=[Aim(work.regions[0], unit.eps)] * rows)
        else:
            unit = replace(unit, eps=None, aims=[Aim(None, unit.eps)] * rows)
        self.calls, self.widest, self._inside = 0, 0, 0.0
        start = self._clock()
        attacker.run(work, unit)
        taken = self._clock() - start - self._inside
        calls, widest = self.calls, self.widest
        self.forward = sum(cost.forward for cost in work.probe.evidence.costs)
        self.backward = sum(cost.backward for cost in work.probe.evidence.costs)
        together = max(1, round(self.forward / max(1, calls)))
        self.outside = max(0.0, taken - self.backward / together * self._back(len(work.image), size, together))
        self.calls, self.widest = calls, widest

    def _back(self, channels: int, size: tuple[int, int], rows: int) -> float:
        """Seconds of this network's own backward pass."""
        taken = []
        for _ in range(3):
            points = torch.zeros(rows, channels, *size, device=self._weight.device, requires_grad=True)
            with torch.enable_grad():
                total = self(points)[:, 0].sum()
            start = self._clock()
            torch.autograd.grad(total, points)
            taken.append(self._clock() - start)
        return min(taken)

    def _work(self, settings: Settings, size: tuple[int, int], rows: int, crops: bool) -> tuple[ImageWork, Tensor]:
        height, width = size
        tall, wide = (2 * height, 2 * width) if crops else size
        generator = torch.Generator().manual_seed(1)
        image = torch.rand(self._weight.shape[1], tall, wide, generator=generator).to(settings.device)
        claim = LipschitzClaim(1.0)
        with torch.no_grad():
            logits = self(image[None])
        radius = claim.radii(image[None], logits, 0)[0]
        predicted = logits[0].argmax(dim=0).cpu()
        if settings.target is not None:  # a pixel of that class is no work
            predicted = torch.where(predicted == settings.target, (settings.target + 1) % len(logits[0]), predicted)
        region = torch.zeros(tall, wide, dtype=torch.bool)
        region[tall // 4 : tall // 2 + 1, wide // 4 : wide // 2 + 1] = True
        places = torch.randperm(tall * wide, generator=generator)[:rows]
        places = places.repeat(math.ceil(rows / len(places)))[:rows]
        pixels = torch.stack([places // wide, places % wide], dim=1)
        seen: Windows | None = None
        if crops:
            field = Field(height // 2, height // 2, width // 2, width // 2, 1)
            tops = (torch.arange(tall) - height // 2).clamp(0, tall - height)
            lefts = (torch.arange(wide) - width // 2).clamp(0, wide - width)
            seen = Windows(height, width, tops, lefts, field)
        work = work_on(
            self,
            claim,
            image,
            logits[0],
            radius,
            pixels,
            predicted=predicted,
            regions=[Region("dummy", region.to(image.device))],
            windows=seen,
        )
        return work, pixels


def extra_forward(stage: Stage) -> int:
    """Rows sent forward after an attack on a set, to see what it has come to."""
    return int(stage.objective != "pixel" and registry.get(stage.attack).flips)
