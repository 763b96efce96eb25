"""Who examines the images of a run: this process, one image after the other or several side by side, or others."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from typing import Protocol

import torch

from attackcheck.errors import CannotWrite
from attackcheck.events import Event, Finding, PartFinished, Warned
from attackcheck.examination import Bench, Enough, StopEarly
from attackcheck.parts import Part
from attackcheck.recheck import Verdict
from attackcheck.subject import Images, Settings, Subject
from attackcheck.summing import Sums
from attackcheck.tally import Tally

__all__ = ["INTERRUPTED", "Alone", "Crew", "Happened", "SideBySide", "Work", "local_crew", "noted"]

INTERRUPTED = "interrupted"

Happened = queue.SimpleQueue[Event | BaseException | None] | queue.Queue[Event | BaseException | None]
"""What goes on elsewhere: events, errors, and None from each source that has ended."""


class Work:
    """What whoever examines images shares with the run: where results go, and whether it is time to stop.

    Args:
        settings: after how many violations, and how many seconds, to stop.
        ignore: the label that counts for nothing.
        maps: keep the maps of all images for the report; otherwise memory does not grow with the images.
        numbers: of all images of the run, ascending.
    """

    def __init__(self, settings: Settings, ignore: int, *, maps: bool = True, numbers: Sequence[int] = ()) -> None:
        self._settings = settings
        self._ignore = ignore
        self._start = time.perf_counter()
        self._violations = 0
        self._masked = False
        self._maps = maps
        self.tallies: dict[int, Tally] = {}
        self.sums = Sums(ignore, numbers)
        self.stop: str | None = None

    @property
    def found(self) -> bool:
        """Whether there is anything to report."""
        known = [self.sums.begun, *self.tallies.values()]
        return any(tally.images or tally.findings for tally in known)

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.perf_counter() - self._start

    def tally(self, number: int) -> Tally:
        """A new tally for a part, which the report will be summed up from."""
        tally = self.tallies[number] = Tally(self._ignore)
        return tally

    def reason_to_stop(self) -> str | None:
        """Asked between attack calls."""
        budget = self._settings.budget
        if self.stop is None and budget is not None and self.seconds > budget:
            return f"stopped after the budget of {budget:g} s"
        return self.stop

    def counted(self, events: Iterator[Event]) -> Iterator[Event]:
        """Pass events on; enough violations are a reason to stop."""
        for event in events:
            if isinstance(event, Warned) and event.code == "AC107":  # once is enough, whatever image it is about
                if self._masked:
                    continue
                self._masked = True
            if isinstance(event, Finding) and event.violation.verdict is Verdict.VIOLATED:
                self._violations += 1
                if self._violations == self._settings.maxfail:
                    self.stop = f"stopped after {self._violations} violations (maxfail {self._settings.maxfail})"
            yield event
            if isinstance(event, PartFinished):
                self.release(event.part)
            if self.stop is not None and isinstance(event, Finding) and self._settings.maxfail == self._violations:
                yield from _summed_up(events, self.stop)
                raise StopEarly(self.stop)

    def release(self, part: Part) -> None:
        """A part was reported: what the report does not need of it is forgotten."""
        if not self._maps:
            self.tallies[part.number] = part.tally
            self.sums.release(part.number, self.tallies)

    def passed_on(self, happened: Happened, sources: int) -> Iterator[Event]:
        """What goes on elsewhere, until all sources have ended; then the first error of any is raised.

        Ctrl-C is a reason to stop, the second time it does not wait for the verdicts.
        """
        first: BaseException | None = None
        while sources:
            try:
                event = happened.get()
                if event is None:
                    sources -= 1
                elif isinstance(event, BaseException):
                    first = first or event
                else:
                    with suppress(StopEarly):
                        yield from self.counted(iter([event]))
            except KeyboardInterrupt as interruption:
                if self.stop == INTERRUPTED:
                    raise
                self.stop, first = INTERRUPTED, interruption
            except CannotWrite as full:
                self.stop, first = str(full), first or full
        if first is not None:
            raise first


class Crew(Protocol):
    """Who examines the images of a run."""

    @property
    def threads(self) -> int:
        """That compute at the same time, for the report."""

    def examine(self, numbers: Sequence[int], work: Work) -> Iterator[Event]:
        """Examine these images: events as they happen, each image's tally in ``work.tallies``.

        Raises:
            StopEarly: if there was a reason to stop, once what is in hand is judged; also KeyboardInterrupt and errors
                of the model or the images.
        """


def local_crew(subject: Subject, data: Images, settings: Settings, images: int) -> Alone | SideBySide:
    """This process: as many threads as the settings say, where the model can be copied and does not run on a GPU."""
    first = Bench(subject, data, settings)
    workers = min(settings.workers, images) if first.independent and settings.device == "cpu" else 1
    if workers <= 1:
        return Alone(first)
    return SideBySide([first, *(Bench(subject, data, settings) for _ in range(workers - 1))])


class Alone:
    """One image after the other."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    @property
    def threads(self) -> int:
        """Inside operations."""
        return torch.get_num_threads()

    def examine(self, numbers: Sequence[int], work: Work) -> Iterator[Event]:
        """See :class:`Crew`."""
        for index in numbers:
            yield from work.counted(_examined(self._bench, index, work))


class SideBySide:
    """Each bench takes the next image in a thread of its own; events come as they happen."""

    def __init__(self, benches: Sequence[Bench]) -> None:
        self._benches = benches

    @property
    def threads(self) -> int:
        """Of all benches."""
        return torch.get_num_threads() * len(self._benches)

    def examine(self, numbers: Sequence[int], work: Work) -> Iterator[Event]:
        """See :class:`Crew`."""
        happened: queue.SimpleQueue[Event | BaseException | None] = queue.SimpleQueue()
        indices, lock = iter(numbers), threading.Lock()

        def take(bench: Bench) -> None:
            try:
                while work.stop is None:
                    with lock:
                        index = next(indices, None)
                    if index is None:
                        break
                    with torch.enable_grad():
                        for event in _examined(bench, index, work):
                            happened.put(event)
            except BaseException as error:
                work.stop = work.stop or "stopped with the rest"
                happened.put(error)
            finally:
                happened.put(None)

        threads = [threading.Thread(target=take, args=(bench,), daemon=True) for bench in self._benches]
        for thread in threads:
            thread.start()
        yield from work.passed_on(happened, len(threads))


def _examined(bench: Bench, index: int, work: Work) -> Iterator[Event]:
    tally = work.tally(index)
    return noted(bench.examine(index, tally, work.reason_to_stop), tally)


def noted(events: Iterator[Event], tally: Tally) -> Generator[Event, None, None]:
    """Keep the warnings with what they are about; what is thrown in goes on to the events."""
    while (event := next(events, None)) is not None:
        if isinstance(event, Warned):
            tally.warnings.append((event.code, event.message))
        try:
            yield event
        except Enough as stop:
            yield from _summed_up(events, str(stop))
            raise


def _summed_up(events: Iterator[Event], reason: str) -> Iterator[Event]:
    """What is still said when nothing more is to be judged."""
    if isinstance(events, Generator):
        with suppress(StopEarly, StopIteration):
            event = events.throw(Enough(reason))
            while True:
                yield event
                event = next(events)
