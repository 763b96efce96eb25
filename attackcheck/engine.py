"""The run: images are examined, one after the other or several at a time, and summed up in order."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch

from attackcheck import preflight
from attackcheck.arithmetic import exact_arithmetic
from attackcheck.certifier import Plan, certify_data
from attackcheck.claims import RadiusClaim
from attackcheck.crew import INTERRUPTED, Crew, Work, local_crew, noted
from attackcheck.determinism import deterministic
from attackcheck.errors import InputError, in_one_line
from attackcheck.events import (
    Audited,
    Event,
    Finding,
    PartFinished,
    RunFinished,
    RunStarted,
    Warned,
)
from attackcheck.examination import StopEarly
from attackcheck.lipschitz.auditing import quick_audit
from attackcheck.lipschitz.evidence import with_counterexample
from attackcheck.lipschitz.findings import AuditReport
from attackcheck.parts import METRICS, TRIAL, Part
from attackcheck.probe import Kind
from attackcheck.report import Report, Violation
from attackcheck.selection import HOW
from attackcheck.sharding import owns, share
from attackcheck.subject import Images, Settings, Subject
from attackcheck.summing import Header, sum_up
from attackcheck.trial import trial

__all__ = ["INTERRUPTED", "Past", "header_of", "run"]


class Past(Protocol):
    """What an earlier run has done already."""

    @property
    def numbers(self) -> Sequence[int]:
        """Of the parts that are complete."""

    @property
    def audit(self) -> AuditReport | None:
        """Of the weights."""

    def part(self, number: int) -> Part | None:
        """One of them, None if it cannot be read; its maps are not kept."""


def run(
    subject: Subject,
    data: Images,
    settings: Settings,
    past: Past | None = None,
    crew: Crew | None = None,
    *,
    maps: bool = True,
) -> Iterator[Event]:
    """Attack every image and judge what was found; images that an earlier run has done are not attacked again.

    The last event is always :class:`RunFinished`, also after Ctrl-C (the evidence in hand is judged first). The images
    are examined by the ``crew``; without one, by threads of this process. Without ``maps`` the report has none, and
    memory does not grow with the number of pixels.

    Raises:
        InputError: if the model, the data or the settings cannot be used, before anything was attacked.
    """
    if len(data) == 0:
        raise InputError(f"expected at least one image, got none in {data.name}")
    preflight.check_model(subject.model)
    if isinstance(settings.pixels, np.ndarray):
        numbers = settings.pixels[:, 0]
        if numbers.min() < 0 or numbers.max() >= len(data):
            raise InputError(f"expected pixels of images 0 to {len(data) - 1}, got image {numbers.max()}")
    with exact_arithmetic(), deterministic(settings.deterministic), torch.enable_grad():
        yield from _Run(subject, data, settings, past, crew, maps).events()


class _Run:
    def __init__(
        self, subject: Subject, data: Images, settings: Settings, past: Past | None, crew: Crew | None, maps: bool
    ) -> None:
        self._subject = subject
        self._data = data
        self._settings = settings
        self._past = past
        self._done: set[int] = set()
        self._numbers = share(len(data), settings.shard) if settings.image is None else (settings.image,)
        self._work = Work(settings, data.ignore, maps=maps, numbers=self._numbers)
        self._seconds = 0.0  # that earlier runs took
        self._audit: AuditReport | None = None
        self._crew = local_crew(subject, data, settings, len(self._numbers)) if crew is None else crew

    def events(self) -> Iterator[Event]:
        settings = self._settings
        yield RunStarted(
            self._header().subject,
            len(self._data),
            settings.plan.name,
            settings.seed,
            selection_of(settings),
            self._numbers,
            settings.shard,
        )
        stopped: str | None = None
        failed = False
        try:
            yield from self._audited()
            yield from (Warned(code, message) for code, message in preflight.check_arithmetic())
            yield from self._restored()
            yield from self._work.counted(self._trial())
            to_do = [number for number in self._numbers if number not in self._done]
            yield from self._crew.examine(to_do, self._work)
            yield from self._metrics()
        except StopEarly as stop:
            stopped = str(stop)
        except KeyboardInterrupt:
            stopped = INTERRUPTED
        except (Exception, SystemExit) as error:
            if not self._work.found:
                raise  # nothing was found yet
            stopped = str(error) if isinstance(error, InputError) else in_one_line(error)
            failed = True
        report = self._report(stopped, failed)
        # Of all images together, so it is known only once they are summed up.
        yield from (Finding(finding) for finding in report.violations if finding.kind is Kind.RATE)
        yield RunFinished(report)

    def _restored(self) -> Iterator[Event]:
        """What an earlier run has done, as if it had happened now."""
        past = self._past
        if past is None:
            return
        findings: list[Violation] = []
        for number in past.numbers:
            part = past.part(number)
            if part is None:
                yield Warned("AC126", f"the part of image {number} is damaged: it is done again")
                continue
            self._done.add(number)
            self._work.tallies[number] = part.tally
            self._seconds += part.seconds
            yield PartFinished(part, restored=True)
            findings += part.tally.findings
            self._work.release(part)
        yield from self._work.counted(Finding(finding) for finding in findings)

    def _audited(self) -> Iterator[Event]:
        """The quick part of the audit of the weights; whatever goes wrong in it, attacks have the last word."""
        if not self._settings.audit or not owns(self._settings.shard, first=True):
            return
        if self._past is not None and self._past.audit is not None:
            self._audit = self._past.audit
            self._seconds += self._audit.seconds
            yield Audited(self._audit)
            return
        try:
            self._audit = quick_audit(self._subject, self._data[self._settings.image or 0].image.shape, self._settings)
        except (Exception, SystemExit) as error:
            # What is wrong with images or model is said when they are examined.
            if isinstance(error, InputError) and not getattr(self._subject.claim, "layers", None):
                return
            yield Warned("AC116", f"the audit of the weights failed: {in_one_line(error)}")
        if self._audit is not None:
            try:
                self._audit = with_counterexample(
                    self._audit,
                    self._settings.counterexamples,
                    subject=self._subject.meta,
                    seed=self._settings.seed,
                    tolerance=self._settings.tolerance,
                )
            except InputError as error:  # a full disk must not cost the finding
                yield Warned("AC112", str(error))
            yield Audited(self._audit)

    def _metrics(self) -> Iterator[Event]:
        """Claims about the data set as a whole: attacked like `certify` does, at their own budgets."""
        settings = self._settings
        if not settings.metrics or METRICS in self._done or not owns(settings.shard, first=False):
            return
        start = time.perf_counter()
        plan = Plan(
            epsilons=tuple(sorted({float(claim.eps) for claim in settings.metrics})),
            metrics=settings.metrics,
            seed=settings.seed,
            device=settings.device,
            box=settings.box,
            tolerance=settings.tolerance,
            counterexamples=settings.counterexamples,
            refine=False,
        )
        *_, (table, _, _) = certify_data(self._subject, self._data, plan)
        tally = self._work.tally(METRICS)
        for found in table.findings:
            violation = found.as_violation(self._data.name, table.images)
            tally.findings.append(violation)
            yield Finding(violation)
        yield PartFinished(Part(METRICS, "metrics", True, time.perf_counter() - start, tally))

    def _trial(self) -> Iterator[Event]:
        """A certifier that can be run on any model is first run on networks whose distances are known."""
        claim = self._subject.claim
        if not isinstance(claim, RadiusClaim) or not claim.takes_model or claim.confidence is not None:
            return
        if TRIAL in self._done or not owns(self._settings.shard, first=True):
            return
        start = time.perf_counter()
        tally = self._work.tally(TRIAL)
        yield from noted(trial(claim, self._settings, tally), tally)
        yield PartFinished(Part(TRIAL, "gadgets", True, time.perf_counter() - start, tally))

    def _header(self) -> Header:
        header = header_of(self._subject, self._data, self._settings)
        return replace(header, subject={**header.subject, "threads": self._crew.threads})

    def _report(self, stopped: str | None, failed: bool) -> Report:
        seconds = self._seconds + self._work.seconds
        return sum_up(
            self._header(),
            self._work.tallies,
            seconds=seconds,
            stopped=stopped,
            failed=failed,
            audit=self._audit,
            sums=self._work.sums,
        )


def selection_of(settings: Settings) -> str:
    """How pixels are chosen, for people."""
    pixels = settings.pixels
    if settings.image is not None:
        return f"image {settings.image} alone: {selection_of(replace(settings, image=None))}"
    if isinstance(pixels, np.ndarray):
        return f"{len(pixels)} given pixel{'' if len(pixels) == 1 else 's'}"
    how = HOW[settings.choose]
    if pixels == "all":
        return "all certified pixels" + (f", {how}" if settings.choose == "weakest" else "")
    return f"{pixels} certified pixels per image, {how}"


def header_of(subject: Subject, data: Images, settings: Settings) -> Header:
    """What a report of these says before anything was found."""
    model, claim = subject.model, subject.claim.to_dict()
    weights = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
    described = {
        "path": None,
        "sha256": None,
        **subject.meta,
        "L": claim.get("L"),
        "dtype": None if weights is None else str(weights.dtype).removeprefix("torch."),
        "claim": claim,
        "claim_text": subject.claim.describe(),
        "data": data.name,
        "device": settings.device,
        "torch": torch.__version__,
        "threads": torch.get_num_threads() * settings.workers,
    }
    return Header(
        subject=described,
        plan=settings.plan.name,
        seed=settings.seed,
        tolerance=settings.tolerance,
        attacks=tuple(stage.attack for stage in settings.plan.stages),
        classes=None if data.classes is None else tuple(data.classes),
        ignore=data.ignore,
        selection=selection_of(settings),
        images=len(data),
        shard=settings.shard,
    )
