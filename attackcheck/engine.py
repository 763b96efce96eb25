"""The run: images are examined, one after the other or several at a time, and summed up in order."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from attackcheck import preflight
from attackcheck.arithmetic import exact_arithmetic
from attackcheck.certifier import Plan, certify_data
from attackcheck.claims import RadiusClaim
from attackcheck.confidence import RateTest, rate_test
from attackcheck.errors import InputError, in_one_line
from attackcheck.events import Audited, Event, Finding, RunFinished, RunStarted, Warned
from attackcheck.examination import Bench, StopEarly
from attackcheck.lipschitz.auditing import quick_audit
from attackcheck.lipschitz.findings import AuditReport
from attackcheck.probe import Kind
from attackcheck.recheck import Verdict
from attackcheck.report import Report, Violation
from attackcheck.selection import HOW
from attackcheck.subject import Images, Settings, Subject
from attackcheck.tally import Tally
from attackcheck.trial import trial

__all__ = ["INTERRUPTED", "run"]

INTERRUPTED = "interrupted"

BEFORE = -1
"""Number under which is kept what was found before the first image."""


def run(subject: Subject, data: Images, settings: Settings) -> Iterator[Event]:
    """Attack every image and judge what was found.

    The last event is always :class:`RunFinished`, also after Ctrl-C (the evidence in hand is judged first).

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
    with exact_arithmetic(), torch.enable_grad():
        yield from _Run(subject, data, settings).events()


class _Run:
    def __init__(self, subject: Subject, data: Images, settings: Settings) -> None:
        self._subject = subject
        self._data = data
        self._settings = settings
        self._start = time.perf_counter()
        self._tallies: dict[int, Tally] = {}
        self._violations = 0
        self._metric_findings: list[Violation] = []
        self._masked = False
        self._stop: str | None = None
        self._audit: AuditReport | None = None
        self._rate: RateTest | None = None
        first = Bench(subject, data, settings)
        workers = min(settings.workers, len(data)) if first.independent and settings.device == "cpu" else 1
        self._benches = [first, *(Bench(subject, data, settings) for _ in range(workers - 1))]

    def events(self) -> Iterator[Event]:
        plan, seed = self._settings.plan.name, self._settings.seed
        yield RunStarted(self._describe(), len(self._data), plan, seed, self._selection())
        stopped: str | None = None
        failed = False
        try:
            yield from self._audited()
            yield from (Warned(code, message) for code, message in preflight.check_arithmetic())
            yield from self._counted(self._trial())
            yield from self._one_by_one() if len(self._benches) == 1 else self._side_by_side()
            yield from self._metrics()
        except StopEarly as stop:
            stopped = str(stop)
        except KeyboardInterrupt:
            stopped = INTERRUPTED
        except (Exception, SystemExit) as error:
            if not any(tally.radii or tally.findings for tally in self._tallies.values()):
                raise  # nothing was found yet
            stopped = str(error) if isinstance(error, InputError) else in_one_line(error)
            failed = True
        yield from self._rates()
        yield RunFinished(self._report(stopped, failed))

    def _audited(self) -> Iterator[Event]:
        """The quick part of the audit of the weights; whatever goes wrong in it, attacks have the last word."""
        if not self._settings.audit:
            return
        try:
            self._audit = quick_audit(self._subject, self._data[0].image.shape, self._settings)
        except (Exception, SystemExit) as error:
            # What is wrong with images or model is said when they are examined.
            if isinstance(error, InputError) and not getattr(self._subject.claim, "layers", None):
                return
            yield Warned("AC116", f"the audit of the weights failed: {in_one_line(error)}")
        if self._audit is not None:
            yield Audited(self._audit)

    def _metrics(self) -> Iterator[Event]:
        """Claims about the data set as a whole: attacked like `certify` does, at their own budgets."""
        settings = self._settings
        if not settings.metrics:
            return
        plan = Plan(
            epsilons=tuple(sorted({float(claim.eps) for claim in settings.metrics})),
            metrics=settings.metrics,
            seed=settings.seed,
            device=settings.device,
            box=settings.box,
            tolerance=settings.tolerance,
            counterexamples=settings.counterexamples,
        )
        *_, (table, _, _) = certify_data(self._subject, self._data, plan)
        for found in table.findings:
            violation = found.as_violation(self._data.name, table.images)
            self._metric_findings.append(violation)
            yield Finding(violation)

    def _rates(self) -> Iterator[Event]:
        """Radii that hold with a probability are broken by a rate of violations, not by one."""
        claim = self._subject.claim
        if not isinstance(claim, RadiusClaim) or claim.confidence is None:
            return
        test = self._rate = rate_test(claim.confidence, [count for t in self._tallies.values() for count in t.rates])
        if test.refuted:
            violation = Violation(
                kind=Kind.RATE,
                verdict=Verdict.VIOLATED,
                image=-1,
                image_name=self._data.name,
                pixel=None,
                pixels=test.broken,
                predicted=-1,
                target=-1,
                radius=test.rate,
                distance=test.permitted,
                attack="all",
                statement=test.sentence(),
            )
            self._metric_findings.append(violation)
            yield Finding(violation)

    def _trial(self) -> Iterator[Event]:
        """A certifier that can be run on any model is first run on networks whose distances are known."""
        claim = self._subject.claim
        if isinstance(claim, RadiusClaim) and claim.takes_model and claim.confidence is None:
            tally = self._tallies[BEFORE] = Tally(self._data.ignore)
            yield from trial(claim, self._settings, tally)

    def _one_by_one(self) -> Iterator[Event]:
        for index in range(len(self._data)):
            yield from self._counted(self._examine(self._benches[0], index))

    def _examine(self, bench: Bench, index: int) -> Iterator[Event]:
        tally = self._tallies[index] = Tally(self._data.ignore)
        yield from bench.examine(index, tally, self._reason_to_stop)

    def _counted(self, events: Iterator[Event]) -> Iterator[Event]:
        """Pass events on; enough violations are a reason to stop."""
        for event in events:
            if isinstance(event, Warned) and event.code == "AC107":  # once is enough, whatever image it is about
                if self._masked:
                    continue
                self._masked = True
            if isinstance(event, Finding) and event.violation.verdict is Verdict.VIOLATED:
                self._violations += 1
                if self._violations == self._settings.maxfail:
                    self._stop = f"stopped after {self._violations} violations (maxfail {self._settings.maxfail})"
            yield event
            if self._stop is not None and isinstance(event, Finding) and self._settings.maxfail == self._violations:
                raise StopEarly(self._stop)

    def _side_by_side(self) -> Iterator[Event]:
        """Each bench takes the next image in a thread of its own; events come as they happen."""
        happened: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
        indices, lock = iter(range(len(self._data))), threading.Lock()

        def work(bench: Bench) -> None:
            try:
                while self._stop is None:
                    with lock:
                        index = next(indices, None)
                    if index is None:
                        break
                    with torch.enable_grad():
                        for event in self._examine(bench, index):
                            happened.put(event)
            except BaseException as error:
                self._stop = self._stop or "stopped with the rest"
                happened.put(error)
            finally:
                happened.put(None)

        threads = [threading.Thread(target=work, args=(bench,), daemon=True) for bench in self._benches]
        for thread in threads:
            thread.start()
        first: BaseException | None = None
        running = len(threads)
        while running:
            try:
                event = happened.get()
                if event is None:
                    running -= 1
                elif isinstance(event, BaseException):
                    first = first or event
                else:
                    with suppress(StopEarly):
                        yield from self._counted(iter([event]))
            except KeyboardInterrupt as interruption:
                if self._stop == INTERRUPTED:
                    raise  # the second time: do not wait for the verdicts
                self._stop, first = INTERRUPTED, interruption
        if first is not None:
            raise first

    def _reason_to_stop(self) -> str | None:
        budget = self._settings.budget
        if self._stop is None and budget is not None and time.perf_counter() - self._start > budget:
            return f"stopped after the budget of {budget:g} s"
        return self._stop

    def _selection(self) -> str:
        pixels = self._settings.pixels
        if isinstance(pixels, np.ndarray):
            return f"{len(pixels)} given pixels"
        how = HOW[self._settings.choose]
        if pixels == "all":
            return "all certified pixels" + (f", {how}" if self._settings.choose == "weakest" else "")
        return f"{pixels} certified pixels per image, {how}"

    def _describe(self) -> dict[str, Any]:
        model, claim = self._subject.model, self._subject.claim.to_dict()
        weights = next(model.parameters(), None) if isinstance(model, torch.nn.Module) else None
        return {
            "path": None,
            "sha256": None,
            **self._subject.meta,
            "L": claim.get("L"),
            "dtype": None if weights is None else str(weights.dtype).removeprefix("torch."),
            "claim": claim,
            "claim_text": self._subject.claim.describe(),
            "data": self._data.name,
            "device": self._settings.device,
            "torch": torch.__version__,
            "threads": torch.get_num_threads() * len(self._benches),
        }

    def _report(self, stopped: str | None, failed: bool) -> Report:
        settings = self._settings
        tally = Tally(self._data.ignore)
        for index in sorted(self._tallies):
            tally.extend(self._tallies[index])
        return Report(
            subject=self._describe(),
            plan=settings.plan.name,
            seed=settings.seed,
            tolerance=settings.tolerance,
            findings=tuple(
                sorted(
                    [*tally.findings, *self._metric_findings],
                    key=lambda f: (f.verdict is not Verdict.VIOLATED, -f.ratio),
                )
            ),
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
            audit=self._audit,
            rate=self._rate,
        )
