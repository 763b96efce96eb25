"""The run: images -> units of work -> attacks -> evidence -> verdicts, as a generator of events."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from attackcheck import preflight
from attackcheck.arithmetic import Reference, exact_arithmetic, frozen, guarded
from attackcheck.attacking import Attacker, ImageWork
from attackcheck.errors import InputError, in_one_line
from attackcheck.events import (
    Advanced,
    Event,
    Finding,
    ImageFinished,
    ImageStarted,
    RunFinished,
    RunStarted,
    Warned,
)
from attackcheck.judging import Examiner
from attackcheck.probe import Probe
from attackcheck.recheck import Judge, Verdict
from attackcheck.regions import Region
from attackcheck.report import Report
from attackcheck.selection import choose_pixels
from attackcheck.subject import Images, Settings, Subject
from attackcheck.tally import Tally

__all__ = ["INTERRUPTED", "run"]

INTERRUPTED = "interrupted"


class _StopEarly(Exception):  # noqa: N818
    """The run ends early; the argument says why."""


def run(subject: Subject, data: Images, settings: Settings) -> Iterator[Event]:
    """Attack every image and judge what was found.

    The last event is always :class:`RunFinished`, also after Ctrl-C (the evidence in hand is judged first).

    Raises:
        InputError: if the model, the data or the settings cannot be used.
    """
    if len(data) == 0:
        raise InputError(f"expected at least one image, got none in {data.name}")
    preflight.check_model(subject.model)
    if (
        isinstance(settings.pixels, np.ndarray)
        and not (settings.pixels[:, 0] >= 0).all() & (settings.pixels[:, 0] < len(data)).all()
    ):
        raise InputError(f"expected pixels of images 0 to {len(data) - 1}, got image {settings.pixels[:, 0].max()}")
    with exact_arithmetic(), torch.enable_grad():
        yield from _Run(subject, data, settings).events()


class _Run:
    def __init__(self, subject: Subject, data: Images, settings: Settings) -> None:
        self._subject = subject
        self._data = data
        self._settings = settings
        self._frozen = frozen(subject.model)
        if isinstance(self._frozen, torch.nn.Module):
            self._frozen.to(settings.device)
        self._model = guarded(self._frozen)
        self._tally = Tally(data.ignore)
        self._attacker = Attacker(self._model, subject.claim, settings, self._tally)
        self._start = time.perf_counter()
        self._worst = 0.0
        self._judge: Judge | None = None
        self._current: tuple[ImageWork, Examiner] | None = None

    def events(self) -> Iterator[Event]:
        plan, seed = self._settings.plan.name, self._settings.seed
        yield RunStarted(self._describe(), len(self._data), plan, seed, self._selection())
        stopped: str | None = None
        failed = False
        try:
            for index in range(len(self._data)):
                yield from self._counted(self._image(index))
        except _StopEarly as stop:
            stopped = str(stop)
        except KeyboardInterrupt:
            stopped = INTERRUPTED
        except (Exception, SystemExit) as error:
            if not self._tally.radii and self._current is None:
                raise  # nothing was attacked yet
            stopped = str(error) if isinstance(error, InputError) else in_one_line(error)
            failed = True
        if self._current is not None:
            enough = self._settings.maxfail is not None and self._violations() >= self._settings.maxfail
            with suppress(KeyboardInterrupt):  # whoever presses Ctrl-C twice gets what is judged by now
                yield from self._finish(*self._current, judge=not enough)
        yield RunFinished(self._report(stopped, failed))

    def _counted(self, events: Iterator[Event]) -> Iterator[Event]:
        """Pass events on until there are violations enough."""
        for event in events:
            yield event
            if isinstance(event, Finding) and self._settings.maxfail == self._violations():
                raise _StopEarly(f"stopped after {self._violations()} violations (maxfail {self._settings.maxfail})")

    def _image(self, index: int) -> Iterator[Event]:
        settings, claim, sample = self._settings, self._subject.claim, self._data[index]
        preflight.check_image(sample.image, sample.name)
        image = sample.image.to(settings.device)
        if self._judge is None:
            preflight.check_mode(self._frozen, image[None], own=self._frozen is not self._subject.model)
        logits = preflight.check_logits(self._model, image[None]).clone()
        radius = claim.radii(image[None], logits, index)
        if radius is None:
            raise InputError(f"expected a claim about image {sample.name}, got none")
        if settings.target is not None and not 0 <= settings.target < logits.shape[1]:
            raise InputError(f"expected a target class from 0 to {logits.shape[1] - 1}, got {settings.target}")
        if sample.labels is not None and sample.labels.shape != radius.shape[1:]:
            expected, got = tuple(radius.shape[1:]), tuple(sample.labels.shape)
            raise InputError(f"expected labels of shape {expected} for {sample.name}, got {got}")
        if self._judge is None:
            reference = Reference(self._frozen, image[None])
            self._judge = Judge(self._model, reference, claim, tolerance=settings.tolerance, device=settings.device)
            warnings = preflight.warnings_of(self._model, image[None], logits, radius, reference.precision)
            yield from (Warned(code, message) for code, message in warnings)
        if sample.labels is not None and not claim.cheap:
            # What a certifier says of ignored pixels binds nobody.
            radius = torch.where((sample.labels == self._data.ignore).to(radius.device), 0.0, radius)
        scene = self._judge.scene(index, image, logits[0], radius[0])
        eligible = scene.radius > 0
        if sample.labels is not None:
            eligible &= sample.labels != self._data.ignore
        regions: list[Region] = []
        for request in settings.regions if any(s.objective == "region" for s in settings.plan.stages) else ():
            found = request.resolve(logits[0].argmax(dim=0), radius[0])
            regions += found
            if not found:
                yield Warned("AC114", f"image {sample.name} has no {request.describe()}")
        if sample.labels is not None:
            beyond = (sample.labels != self._data.ignore) & (sample.labels >= logits.shape[1])
            if bool(beyond.any()):
                yield Warned("AC115", f"{int(beyond.sum())} labels of {sample.name} are {logits.shape[1]} or above")
        work = ImageWork(
            index=index,
            name=sample.name,
            image=image,
            labels=sample.labels,
            logits=logits[0],
            scene=scene,
            probe=Probe(self._model, image, logits[0], radius[0], claim),
            pixels=choose_pixels(settings.pixels, scene.radius, eligible, settings.seed, index),
            regions=regions,
            attacked=torch.zeros_like(eligible),
        )
        examiner = Examiner(self._subject, self._model, self._judge, settings, self._tally)
        self._current = (work, examiner)
        yield from self._attack(work, examiner)
        yield from self._finish(work, examiner)

    def _attack(self, work: ImageWork, examiner: Examiner) -> Iterator[Event]:
        units = list(self._attacker.units(work))
        yield ImageStarted(work.index, work.name, len(work.pixels), len(units))
        group = None
        for done, unit in enumerate(units, start=1):
            if unit.group is not group:
                yield from examiner.harvest(work, self._attacker)
                group = unit.group
                work.probe.aim(group[:, 0], group[:, 1])
            self._attacker.run(work, unit)
            yield Advanced(work.index, unit.stage.attack, done, len(units), self._live_worst(work))
            self._check_limits()

    def _finish(self, work: ImageWork, examiner: Examiner, judge: bool = True) -> Iterator[Event]:
        """Judge what is left of an image and add it to the sums."""
        before = self._violations()
        try:
            if judge:
                yield from examiner.harvest(work, self._attacker)
                yield from examiner.overtaken(work, self._attacker)
                yield from examiner.witnesses(work)
        finally:
            self._current = None
            examiner.finish(work, self._data.ignore)
        yield ImageFinished(work.index, int(work.attacked.sum()), self._violations() - before)

    def _live_worst(self, work: ImageWork) -> float:
        slots = work.probe.evidence.slots
        if len(slots.rows):
            radius = work.scene.radius.to(slots.distance.device)[slots.rows, slots.columns]
            self._worst = max(self._worst, float((radius / slots.distance).max()))
        return self._worst

    def _violations(self) -> int:
        return sum(1 for finding in self._tally.findings if finding.verdict is Verdict.VIOLATED)

    def _check_limits(self) -> None:
        settings = self._settings
        if settings.budget is not None and time.perf_counter() - self._start > settings.budget:
            raise _StopEarly(f"stopped after the budget of {settings.budget:g} s")

    def _selection(self) -> str:
        pixels = self._settings.pixels
        if isinstance(pixels, np.ndarray):
            return f"{len(pixels)} given pixels"
        if pixels == "all":
            return "all certified pixels"
        return f"{pixels} certified pixels per image, stratified by radius"

    def _describe(self) -> dict[str, Any]:
        return {
            **self._subject.meta,
            "claim": self._subject.claim.to_dict(),
            "claim_text": self._subject.claim.describe(),
            "data": self._data.name,
            "device": self._settings.device,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        }

    def _report(self, stopped: str | None, failed: bool) -> Report:
        tally, settings = self._tally, self._settings
        return Report(
            subject=self._describe(),
            plan=settings.plan.name,
            seed=settings.seed,
            tolerance=settings.tolerance,
            findings=tuple(sorted(tally.findings, key=lambda f: (f.verdict is not Verdict.VIOLATED, -f.ratio))),
            radii=tally.radii,
            flip_distances=tally.flip_distances,
            attacked_pixels=tally.attacked,
            counts={verdict: count for verdict, count in tally.verdicts.items() if count},
            unchecked={reason: count for reason, count in tally.unchecked.items() if count},
            attacks=tally.attacks([stage.attack for stage in settings.plan.stages]),
            regions=tuple(tally.regions),
            budgets=tally.budgets(),
            classes=tally.classes(self._data.classes),
            limit=tally.limit(),
            seconds=time.perf_counter() - self._start,
            selection=self._selection(),
            stopped=stopped,
            failed=failed,
        )
