"""What a run will take: time, memory and passes, from a few seconds of timing this model on this machine.

An attack call costs its passes through the network (counted: :mod:`attackcheck.passes`; where they depend on the
network, rehearsed on a few pixels of it: :mod:`attackcheck.rehearsal`), each as long as the network takes for so many
rows of this size here (:mod:`attackcheck.timing`), and its own arithmetic (timed). Around the calls every image costs
its clean logits, float64 examinations and, with crops, their confirmation (:mod:`attackcheck.beside`). Violations cost
judging that nobody foresees.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attackcheck import preflight
from attackcheck.arithmetic import exact_arithmetic, frozen, guarded
from attackcheck.attacking import SLOT_BYTES, stages_that_run, usual_rows
from attackcheck.attacks.plans import Stage
from attackcheck.beside import Scope, beside_attacks
from attackcheck.certifier import ATTACKS
from attackcheck.claims import Claim, RadiusClaim
from attackcheck.cones import Cone, cone_of
from attackcheck.determinism import deterministic
from attackcheck.engine import Past
from attackcheck.errors import InputError
from attackcheck.examination import SMALLEST_IMAGE
from attackcheck.lipschitz.auditing import quick_audit
from attackcheck.memory import SHARE, available, resident
from attackcheck.parts import METRICS
from attackcheck.passes import Clock, count_passes
from attackcheck.receptive import Windows, measure_field, windows
from attackcheck.selection import choose_pixels
from attackcheck.sharding import owns, share
from attackcheck.stage_costs import StageCost, StageCosts
from attackcheck.subject import Images, Settings, Subject
from attackcheck.timing import Timing

__all__ = ["Estimate", "StageCost", "estimate"]

DECADES = 3
"""Decades of distance for which a worst point of each kind is kept, as a rule."""


@dataclass(frozen=True)
class Estimate:
    """What a run will take. Seconds are of this machine as busy as it is now; bytes at the worst moment."""

    images: int  # to be examined
    done: int  # images that an earlier run in the same folder has done, and that cost nothing now
    pixels: int  # of an image
    classes: int
    size: tuple[int, int]
    crop: tuple[int, int] | None
    rows: int  # pixels in an attack call
    workers: int
    stages: tuple[StageCost, ...]
    once: dict[str, float]  # seconds before and after all images
    image: dict[str, float]  # seconds of every image, beside attacks
    seconds: float
    memory: int  # bytes of this process
    device_memory: int | None  # bytes on a GPU
    budget: float | None
    calibration: float  # seconds that this estimate took

    @property
    def forward(self) -> float:
        """Rows sent forward by attacks."""
        return sum(stage.forward for stage in self.stages)

    @property
    def backward(self) -> float:
        """Rows sent backward by attacks."""
        return sum(stage.backward for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"schema_version": 1, "estimate": asdict(self) | {"forward": self.forward, "backward": self.backward}}


def estimate(
    subject: Subject,
    data: Images,
    settings: Settings,
    past: Past | None = None,
    *,
    clock: Clock = time.perf_counter,
) -> Estimate:
    """Time, memory and passes of a run, before it starts; the first image stands for all.

    Args:
        subject, data, settings: of the run.
        past: what an earlier run has done, which is not done again.
        clock: seconds; ``time.process_time`` leaves out what others do on this machine.

    Raises:
        InputError: if the model, the data or the settings cannot be used.
    """
    if len(data) == 0:
        raise InputError(f"expected at least one image, got none in {data.name}")
    start = clock()
    preflight.check_model(subject.model)
    with exact_arithmetic(), deterministic(settings.deterministic), torch.enable_grad():
        found = _Estimator(subject, data, settings, past, clock).estimate()
    return replace(found, calibration=clock() - start)


class _Estimator:
    def __init__(self, subject: Subject, data: Images, settings: Settings, past: Past | None, clock: Clock) -> None:
        self._subject, self._data, self._settings, self._clock = subject, data, settings, clock
        self._past = past
        self._number = settings.image or 0
        sample = data[self._number]
        preflight.check_image(sample.image, sample.name)
        self._sample = sample
        self._image = sample.image.to(settings.device)
        copy = frozen(subject.model)
        if isinstance(copy, torch.nn.Module):
            copy.to(settings.device)
        preflight.check_mode(copy, self._image[None], own=copy is not subject.model)
        self._copy, self._model = copy, guarded(copy)
        self._claim: Claim = subject.claim.of(copy) if isinstance(subject.claim, RadiusClaim) else subject.claim
        self._timing = Timing(self._model, copy, self._image, self._claim, clock)
        self._logits = preflight.check_logits(self._model, self._image[None])
        with self._timing.timed() as radii:
            radius = self._claim.radii(self._image[None], self._logits, self._number)
        if radius is None:
            raise InputError(f"expected a claim about image {sample.name}, got none")
        self._radius, self._radii = radius[0], radii.seconds
        self._size = int(self._image.shape[1]), int(self._image.shape[2])

    def estimate(self) -> Estimate:
        """See :func:`estimate`."""
        settings = self._settings
        known = set() if self._past is None else set(self._past.numbers)
        all_numbers = share(len(self._data), settings.shard) if settings.image is None else (settings.image,)
        numbers = [number for number in all_numbers if number not in known]
        once: dict[str, float] = {}
        crops, cone = self._crops(once)
        pixels = self._pixels()
        scope = Scope(
            stages=stages_that_run(settings.plan, self._claim),
            count=self._count(pixels, numbers),
            pixels=pixels,
            size=self._size,
            channels=len(self._image),
            crops=crops,
            cone=cone,
            cheap=self._claim.cheap,
        )
        rows = usual_rows(settings, self._size, None if crops is None else scope.place)
        whole, small = self._timing.one(self._size, 1), self._timing.one(scope.place, rows)
        costs = StageCosts(
            self._model, self._claim, self._image, self._logits[0], self._radius, settings, self._timing, self._clock
        )
        per_image = [costs.of(stage, scope, rows) for stage in scope.stages]
        exact = self._timing.exact(self._logits[0])
        recording = 0.0 if crops is None else self._timing.recording(self._logits[0], self._radius)
        beside = beside_attacks(scope, whole, small, exact, self._radii, recording)
        once = once | beside.once if numbers else {}  # of the first image
        if settings.audit and owns(settings.shard, first=True) and (self._past is None or self._past.audit is None):
            with self._timing.timed() as audit:
                quick_audit(self._subject, self._image.shape, settings)
            once["audit of the weights"] = audit.seconds
        if settings.metrics and owns(settings.shard, first=False) and METRICS not in known:
            once["claims about measures"] = self._metrics(len(self._data), costs)
        workers = max(1, min(settings.workers, len(numbers))) if settings.device == "cpu" else 1
        each = sum(beside.image.values()) + sum(one.seconds for one, _ in per_image)
        seconds = sum(once.values()) + each * math.ceil(len(numbers) / workers)
        memory, on_device = self._memory([bytes_ for _, bytes_ in per_image], exact.bytes, scope, workers)
        return Estimate(
            images=len(numbers),
            done=len(all_numbers) - len(numbers),
            pixels=scope.count,
            classes=self._logits.shape[1],
            size=self._size,
            crop=None if crops is None else scope.place,
            rows=min(rows, max(1, scope.count)),
            workers=workers,
            stages=tuple(one.times(len(numbers)) for one, _ in per_image),
            once=once,
            image=beside.image,
            seconds=seconds,
            memory=memory,
            device_memory=on_device,
            budget=settings.budget,
            calibration=0.0,
        )

    # What is attacked ------------------------------------------------------------------------------------------------

    def _crops(self, once: dict[str, float]) -> tuple[Windows | None, Cone | None]:
        aimed = any(stage.objective == "pixel" for stage in self._settings.plan.stages)
        if not self._settings.crops or not aimed or math.prod(self._size) < SMALLEST_IMAGE:
            return None, None
        with self._timing.timed() as watch:
            field = measure_field(self._model, self._image)
            crops = None if field is None else windows(field, *self._size)
            cone = None
            if crops is not None:
                place = crops.height, crops.width
                cone = cone_of(self._copy, self._image[:, : place[0], : place[1]], crops.field.stride)
        once["receptive field"] = watch.seconds
        if crops is not None and cone is not None:
            self._timing.around_pixels((crops.height, crops.width), cone)
        return crops, cone

    def _pixels(self) -> Tensor:
        """The pixels of the first image, or as many as there might be."""
        settings, radius = self._settings, self._radius.cpu()
        eligible = radius > 0
        if self._sample.labels is not None:
            eligible &= self._sample.labels != self._data.ignore
        predicted = self._logits[0].argmax(dim=0).cpu()
        choice = settings.pixels if not isinstance(settings.pixels, np.ndarray) else max(1, len(settings.pixels))
        return choose_pixels(
            choice, radius, eligible, settings.seed, self._number, how=settings.choose, predicted=predicted
        )

    def _count(self, pixels: Tensor, numbers: Sequence[int]) -> int:
        """Pixels of an image, on average where they are given."""
        given = self._settings.pixels
        if not isinstance(given, np.ndarray):
            return len(pixels)
        chosen = np.isin(given[:, 0], np.array(numbers))
        return math.ceil(len(np.unique(given[chosen], axis=0)) / max(1, len(numbers)))

    def _metrics(self, images: int, costs: StageCosts) -> float:
        """Image attacks at the budgets of the claims, over the whole data."""
        budgets = len({float(claim.eps) for claim in self._settings.metrics})
        whole = self._timing.one(self._size, 1)
        total = 0.0
        for attack in ATTACKS:
            stage = Stage(attack.name, "image", eps=(0.1,), options={"steps": attack.steps}, loss=attack.loss)
            passes = count_passes(
                stage,
                self._settings,
                channels=len(self._image),
                classes=self._logits.shape[1],
                place=self._size,
                rows=1,
                crops=False,
                clock=self._clock,
            )
            each = costs.network(passes, self._size, 1) + passes.outside(1, math.prod(self._size)) + whole.forward
            total += each * budgets * images
        return total + 2 * images * (whole.forward + self._radii)

    def _memory(self, calls: list[int], judged: int, scope: Scope, workers: int) -> tuple[int, int | None]:
        image = self._image.numel() * 4
        logits = self._logits.numel()
        slots = min(SLOT_BYTES, scope.count * len(self._image) * math.prod(scope.place) * 4)
        largest = max(calls, default=0)
        free = available(self._settings.device)
        if free is not None:  # calls are made smaller than that
            device = torch.device(self._settings.device).type
            largest = min(largest, max(int(SHARE.get(device, 0.5) * free / workers), 0))
        points = 4 * DECADES * image + slots
        held = logits * 8  # float64
        base = resident() or 0
        if self._image.device.type == "cuda":
            return base + judged + held, torch.cuda.memory_allocated(self._image.device) + largest + points
        return base + workers * (held + points + max(largest, judged)), None
