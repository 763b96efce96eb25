"""What a run will take: time, memory and passes, from a few seconds of timing this model on this machine.

An attack call costs its passes through the network (counted: :mod:`attackcheck.passes`), each as long as the network
takes for so many rows of this size here (timed), and its own arithmetic (timed). Around the calls every image costs its
clean logits, float64 examinations and, with crops, their confirmation. Violations cost judging that nobody foresees.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attackcheck import preflight
from attackcheck.arithmetic import Reference, exact_arithmetic, frozen, guarded
from attackcheck.attacking import SLOT_BYTES, usual_rows
from attackcheck.attacks import registry
from attackcheck.attacks.plans import Stage
from attackcheck.certifier import ATTACKS
from attackcheck.claims import Claim, RadiusClaim
from attackcheck.crops import disjoint
from attackcheck.errors import InputError
from attackcheck.examination import SMALLEST_IMAGE
from attackcheck.judging import SHOWN
from attackcheck.lipschitz.auditing import quick_audit
from attackcheck.masking import SAMPLE
from attackcheck.memory import SHARE, Meter, available, resident
from attackcheck.passes import Clock, Passes, count_passes, extra_forward
from attackcheck.receptive import SAMPLED, Windows, measure_field, windows
from attackcheck.recheck import Judge
from attackcheck.regions import Region
from attackcheck.selection import choose_pixels
from attackcheck.sharding import share
from attackcheck.subject import Images, Settings, Subject

__all__ = ["Estimate", "StageCost", "estimate"]

Model = Callable[[Tensor], Tensor]

PART = 256
"""Rows and columns of the part of a large image that float64 is timed on."""

BATCHED = 2**18
"""Pixels in a batch that is timed; larger ones take as long for each row."""

TELLING = 4
"""Points of a group that are shown to the whole image alone, as a rule."""

CHECKS = 9
"""Forward passes of the checks of the first image, about."""

DECADES = 3
"""Decades of distance for which a worst point of each kind is kept, as a rule."""


@dataclass(frozen=True)
class StageCost:
    """One stage of the plan, over all images of the run."""

    attack: str
    objective: str
    calls: int
    rows: int  # in a call
    forward: float  # rows sent forward
    backward: float
    seconds: float  # of one thread
    network: float  # seconds of these inside the network


@dataclass(frozen=True)
class Estimate:
    """What a run will take. Seconds are of this machine as busy as it is now; bytes at the worst moment."""

    images: int
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


def estimate(subject: Subject, data: Images, settings: Settings, *, clock: Clock = time.perf_counter) -> Estimate:
    """Time, memory and passes of a run, before it starts; the first image stands for all.

    Args:
        subject, data, settings: of the run.
        clock: seconds; ``time.process_time`` leaves out what others do on this machine.

    Raises:
        InputError: if the model, the data or the settings cannot be used.
    """
    if len(data) == 0:
        raise InputError(f"expected at least one image, got none in {data.name}")
    start = clock()
    preflight.check_model(subject.model)
    with exact_arithmetic(), torch.enable_grad():
        found = _Estimator(subject, data, settings, clock).estimate()
    return replace(found, calibration=clock() - start)


@dataclass(frozen=True)
class _Pass:
    """Seconds of one row, forward and backward, and bytes that a row takes until its backward pass."""

    forward: float
    backward: float
    bytes: int


class _Estimator:
    def __init__(self, subject: Subject, data: Images, settings: Settings, clock: Clock) -> None:
        self._subject, self._data, self._settings, self._clock = subject, data, settings, clock
        sample = data[0]
        preflight.check_image(sample.image, sample.name)
        self._sample = sample
        self._image = sample.image.to(settings.device)
        copy = frozen(subject.model)
        if isinstance(copy, torch.nn.Module):
            copy.to(settings.device)
        preflight.check_mode(copy, self._image[None], own=copy is not subject.model)
        self._frozen, self._model = copy, guarded(copy)
        self._claim: Claim = subject.claim.of(copy) if isinstance(subject.claim, RadiusClaim) else subject.claim
        self._known: dict[tuple[int, int, int], _Pass] = {}
        with self._timed() as clean:
            self._logits = preflight.check_logits(self._model, self._image[None])
        with self._timed() as radii:
            radius = self._claim.radii(self._image[None], self._logits, 0)
        if radius is None:
            raise InputError(f"expected a claim about image {sample.name}, got none")
        self._radius, self._radii = radius[0], radii.seconds
        self._clean = clean.seconds
        self._size = int(self._image.shape[1]), int(self._image.shape[2])

    @contextmanager
    def _timed(self) -> Iterator[_Watch]:
        watch = _Watch()
        self._wait()
        start = self._clock()
        yield watch
        self._wait()
        watch.seconds = self._clock() - start

    def _wait(self) -> None:
        if self._image.device.type == "cuda":
            torch.cuda.synchronize(self._image.device)

    # What the network takes ------------------------------------------------------------------------------------------

    def _pass(self, place: tuple[int, int], rows: int) -> _Pass:
        """Passes of so many rows at once, of whole images or of crops of this size."""
        rows = max(1, min(rows, BATCHED // math.prod(place)))
        key = (*place, rows)
        if key not in self._known:
            top, left = (self._size[0] - place[0]) // 2, (self._size[1] - place[1]) // 2
            part = self._image[:, top : top + place[0], left : left + place[1]]
            self._known[key] = self._measured(part.expand(rows, *part.shape).contiguous())
        return self._known[key]

    def _measured(self, images: Tensor) -> _Pass:
        forward: list[float] = []
        both: list[float] = []
        rows = len(images)
        with Meter(images.device) as meter:  # also to warm up
            begun = self._clock()
            self._forward_and_back(images)
            slow = self._clock() - begun > 4.0
        while len(both) < (1 if slow else 2) or (sum(forward) + sum(both) < 0.4 and len(both) < 30):
            with torch.no_grad(), self._timed() as alone:
                self._model(images)
            with self._timed() as together:
                self._forward_and_back(images)
            forward.append(alone.seconds)
            both.append(together.seconds)
        once, twice = float(np.median(forward)), float(np.median(both))
        return _Pass(once / rows, max(0.0, twice - once) / rows, (meter.bytes or 0) // rows)

    def _forward_and_back(self, images: Tensor) -> None:
        points = images.clone().requires_grad_(True)
        logits = self._model(points)
        if logits.requires_grad:
            torch.autograd.grad(logits[:, 0].sum(), points)

    # What is attacked ------------------------------------------------------------------------------------------------

    def estimate(self) -> Estimate:
        """See :func:`estimate`."""
        settings = self._settings
        numbers = share(len(self._data), settings.shard)
        once: dict[str, float] = {}
        crops = self._crops(once)
        place = self._size if crops is None else (crops.height, crops.width)
        rows = usual_rows(settings, self._size, None if crops is None else place)
        pixels = self._pixels()
        count = len(pixels)
        if isinstance(settings.pixels, np.ndarray):
            chosen = np.isin(settings.pixels[:, 0], np.array(numbers))
            count = math.ceil(len(np.unique(settings.pixels[chosen], axis=0)) / max(1, len(numbers)))
        per_image = [self._stage(stage, count, pixels, place, rows, crops) for stage in self._stages()]
        stages = tuple(
            replace(
                one,
                calls=one.calls * len(numbers),
                forward=one.forward * len(numbers),
                backward=one.backward * len(numbers),
                seconds=one.seconds * len(numbers),
                network=one.network * len(numbers),
            )
            for one, _ in per_image
        )
        image, judged = self._around(count, pixels, place, rows, crops, once)
        if settings.audit:
            with self._timed() as audit:
                quick_audit(self._subject, self._image.shape, settings)
            once["audit of the weights"] = audit.seconds
        if settings.metrics:
            once["claims about measures"] = self._metrics(len(numbers))
        workers = max(1, min(settings.workers, len(numbers))) if settings.device == "cpu" else 1
        each = sum(image.values()) + sum(one.seconds for one, _ in per_image)
        seconds = sum(once.values()) + each * math.ceil(len(numbers) / workers)
        memory, on_device = self._memory([bytes_ for _, bytes_ in per_image], judged, count, place, workers)
        return Estimate(
            images=len(numbers),
            pixels=count,
            classes=self._logits.shape[1],
            size=self._size,
            crop=None if crops is None else place,
            rows=min(rows, max(1, count)),
            workers=workers,
            stages=stages,
            once=once,
            image=image,
            seconds=seconds,
            memory=memory,
            device_memory=on_device,
            budget=settings.budget,
            calibration=0.0,
        )

    def _stages(self) -> list[Stage]:
        """Those that run: an ascent on single pixels is left out where one constant bounds the whole map."""
        return [
            stage
            for stage in self._settings.plan.stages
            if not (self._claim.single_constant and registry.get(stage.attack).about_pixels)
        ]

    def _crops(self, once: dict[str, float]) -> Windows | None:
        aimed = any(stage.objective == "pixel" for stage in self._settings.plan.stages)
        if not self._settings.crops or not aimed or math.prod(self._size) < SMALLEST_IMAGE:
            return None
        with self._timed() as watch:
            field = measure_field(self._model, self._image)
        once["receptive field"] = watch.seconds
        return None if field is None else windows(field, *self._size)

    def _pixels(self) -> Tensor:
        """The pixels of the first image, or as many as there might be."""
        settings, radius = self._settings, self._radius.cpu()
        eligible = radius > 0
        if self._sample.labels is not None:
            eligible &= self._sample.labels != self._data.ignore
        predicted = self._logits[0].argmax(dim=0).cpu()
        choice = settings.pixels if not isinstance(settings.pixels, np.ndarray) else max(1, len(settings.pixels))
        return choose_pixels(choice, radius, eligible, settings.seed, 0, how=settings.choose, predicted=predicted)

    def _regions(self) -> list[Region]:
        found: list[Region] = []
        for request in self._settings.regions:
            found += request.resolve(self._logits[0].argmax(dim=0), self._radius)
        return found

    # What it costs ---------------------------------------------------------------------------------------------------

    def _stage(
        self, stage: Stage, count: int, pixels: Tensor, place: tuple[int, int], rows: int, crops: Windows | None
    ) -> tuple[StageCost, int]:
        """One stage on one image, and the bytes of its largest call."""
        settings = self._settings
        single = stage.objective != "pixel"
        if single or registry.get(stage.attack).paired:
            place, crops = self._size, None
        aimed = 1 if single else self._aimed(stage, count, pixels)
        if stage.objective == "region":
            aimed = len(self._regions())
        rows = 1 if single else max(1, min(rows, aimed))
        if aimed == 0:
            return StageCost(stage.attack, stage.objective, 0, 0, 0.0, 0.0, 0.0, 0.0), 0
        passes = count_passes(
            stage,
            settings,
            channels=len(self._image),
            classes=self._logits.shape[1],
            place=place,
            rows=rows,
            crops=crops is not None,
            clock=self._clock,
        )
        budgets = len(stage.eps) or 1
        calls = math.ceil(aimed / rows) * budgets
        # a single pixel is attacked in two rows
        done = aimed + int(not single and aimed % rows == 1 and settings.batch != 1)
        network = self._network(passes, place, rows)
        inside = done * budgets * network + extra_forward(stage) * aimed * budgets * self._pass(self._size, 1).forward
        outside = (aimed // rows) * passes.outside(rows, math.prod(place))
        outside += passes.outside(done % rows, math.prod(place)) if done % rows else 0.0
        taken = self._pass(place, passes.rows(rows)).bytes * math.ceil(passes.widest * max(2, rows))
        cost = StageCost(
            attack=stage.attack,
            objective=stage.objective,
            calls=calls,
            rows=rows,
            forward=passes.forward * done * budgets,
            backward=passes.backward * done * budgets,
            seconds=inside + outside * budgets,
            network=inside,
        )
        return cost, taken

    def _network(self, passes: Passes, place: tuple[int, int], rows: int) -> float:
        """Seconds of one row of an attack inside the network."""
        one = self._pass(place, passes.rows(rows))
        return passes.forward * one.forward + passes.backward * one.backward

    def _aimed(self, stage: Stage, count: int, pixels: Tensor) -> int:
        others = [other for other in self._settings.plan.stages if other.objective == "pixel" and not other.unflipped]
        if stage.unflipped and others:
            return 0  # as a rule every pixel is flipped before
        aimed = count if stage.pixels is None else min(count, stage.pixels)
        target = self._settings.target
        if target is not None and len(pixels):
            predicted = self._logits[0].argmax(dim=0).cpu()[pixels[:, 0], pixels[:, 1]]
            aimed = round(aimed * float((predicted != target).double().mean()))
        return aimed

    def _around(
        self,
        count: int,
        pixels: Tensor,
        place: tuple[int, int],
        rows: int,
        crops: Windows | None,
        once: dict[str, float],
    ) -> tuple[dict[str, float], int]:
        """Seconds of an image beside its attacks, and the bytes that judging takes."""
        whole, small = self._pass(self._size, 1), self._pass(place, rows)
        stages = self._stages()
        exact = self._exact(whole)
        flips = any(stage.objective == "pixel" and registry.get(stage.attack).flips for stage in stages)
        looked = min(count, SAMPLE)
        image = {
            "clean logits and radii": whole.forward + self._radii,
            "float64 at the clean image": exact.logits + exact.error,
            "are gradients of use": looked * (6 * small.forward + small.backward),
        }
        aimed = count if flips else 0
        groups = max(1, math.ceil(count / max(1, SLOT_BYTES // (self._image[:, : place[0], : place[1]].numel() * 4))))
        if crops is not None:
            checks = 3 * whole.forward + whole.backward + 3 * SAMPLED * small.forward
            image["do crops agree"] = checks
            image["crops on the whole image"] = self._confirmed(pixels, aimed, groups, crops, whole)
        image["slopes"] = aimed * (small.forward + small.backward)
        image["examples"] = min(SHOWN * groups, aimed) * 2 * whole.forward
        image["judging"] = self._judging(stages, exact, crops)
        if not self._claim.cheap:
            image["certifier at flips"] = 4 * aimed * (self._radii + whole.forward)
        once["checks of the first image"] = CHECKS * whole.forward + whole.backward + exact.setup
        return image, exact.bytes

    def _judging(self, stages: list[Stage], exact: _Exact, crops: Windows | None) -> float:
        """The worst points of the other kinds; several kinds often share one."""
        if not self._claim.cheap:
            return 0.0
        near = 1.0
        if crops is not None and all(stage.objective == "pixel" for stage in stages):
            near = min(1.0, 6 * crops.height * crops.width / math.prod(self._size))
        point = exact.logits + near * (exact.error + (exact.logits if near < 1.0 else 0.0))
        points = 2.0 if all(stage.objective == "pixel" for stage in stages) else 3.0
        paired = any(registry.get(stage.attack).paired for stage in stages)
        return points * point + (2 * (exact.logits + exact.error) if paired else 0.0)

    def _confirmed(self, pixels: Tensor, aimed: int, groups: int, crops: Windows, whole: _Pass) -> float:
        """Passes on whole images that show what crops did, and the recording of the most telling ones."""
        if not aimed or not len(pixels):
            return 0.0
        group = pixels[: math.ceil(len(pixels) / groups)]
        tops, lefts = crops.origins(group[:, 0], group[:, 1])
        packs = len(disjoint(tops, lefts, crops.height, crops.width))
        telling = min(TELLING, len(group))
        return groups * ((packs + 1) * whole.forward + telling * self._recording())

    def _recording(self) -> float:
        """Seconds to record one whole image."""
        from attackcheck.probe import Probe

        height, width = min(PART, self._size[0]), min(PART, self._size[1])
        cut = (slice(None), slice(height), slice(width))
        image, logits = self._image[cut], self._logits[0][cut]
        probe = Probe(self._model, image, logits, self._radius[:height, :width], self._claim)
        moved = image + 1e-3
        with self._timed() as watch:
            probe.saw(moved.clone(), logits.clone())
        return watch.seconds * math.prod(self._size) / (height * width)

    def _exact(self, whole: _Pass) -> _Exact:
        """Float64 on a part of the image, taken to the whole of it."""
        part = [side if side <= 1.5 * PART else PART + side % 32 for side in self._size]
        image = self._image[:, : part[0], : part[1]]
        try:
            with torch.no_grad():
                logits = self._model(image[None])
        except (RuntimeError, ValueError, TypeError, IndexError, InputError):
            image, logits = self._image, self._logits  # a model of one size
        with self._timed() as setup:
            reference = Reference(self._frozen, image[None])
        with self._timed() as values:
            exact = reference(image[None])
        with self._timed() as errors:
            reference.error(image[None], exact)
        with Meter() as meter:
            judge = Judge(self._model, reference, self._claim, device=self._settings.device)
            judge.scene(0, image, logits[0], torch.ones(image.shape[1:], dtype=torch.float64))
        area = math.prod(self._size) / (image.shape[1] * image.shape[2])
        # Large images take longer for each pixel: they are further from the caches.
        grow = area
        if area > 1:
            grow = max(area, whole.forward / self._pass((image.shape[1], image.shape[2]), 1).forward)
        return _Exact(
            values.seconds * grow, errors.seconds * grow, setup.seconds * grow, int((meter.bytes or 0) * area)
        )

    def _metrics(self, images: int) -> float:
        """Image attacks at the budgets of the claims, over the whole data."""
        budgets = len({float(claim.eps) for claim in self._settings.metrics})
        whole = self._pass(self._size, 1)
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
            each = self._network(passes, self._size, 1) + passes.outside(1, math.prod(self._size)) + whole.forward
            total += each * budgets * images
        return total + 2 * images * (whole.forward + self._radii)

    def _memory(
        self, calls: list[int], judged: int, count: int, place: tuple[int, int], workers: int
    ) -> tuple[int, int | None]:
        image = self._image.numel() * 4
        logits = self._logits.numel()
        slots = min(SLOT_BYTES, count * len(self._image) * math.prod(place) * 4)
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


@dataclass
class _Watch:
    seconds: float = 0.0


@dataclass(frozen=True)
class _Exact:
    """Seconds in float64: logits, their error, and finding out whether the model runs in it; bytes."""

    logits: float
    error: float
    setup: float
    bytes: int
