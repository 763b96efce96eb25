"""The foreman hires workers as the cluster has room for them, hands out images, and takes in what workers say."""

from __future__ import annotations

import pickle
import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from attackcheck.crew import Work
from attackcheck.errors import InputError, in_one_line
from attackcheck.events import Advanced, Event, Finding, ImageFinished, ImageStarted, PartFinished, Warned
from attackcheck.examination import StopEarly
from attackcheck.identity import differences
from attackcheck.on_ray.cluster import capacity
from attackcheck.on_ray.worker import Failed, Happening, Ready, Sent, Worker
from attackcheck.part_files import write_bytes
from attackcheck.report import Violation
from attackcheck.subject import Images, Settings

__all__ = ["Foreman"]

ATTEMPTS = 3
"""How many workers may die on one image, or one after the other while they start, before the run gives up."""

TOGETHER = "stopped with the rest"

WAITING = 256
"""Events that may wait for a slow reporter; beyond it, workers wait."""

AHEAD = 32
"""Events that a worker may be ahead of the driver."""

LOOK = 0.2
"""Seconds between two looks at whether it is time to stop."""

GROW = 1.0
"""Seconds between two looks at how large the cluster is."""


@dataclass(eq=False)
class _Hand:
    """A worker, what it is to answer next, and the image that it has."""

    actor: Any
    answer: Any  # of `begin`, or the stream of events of an image
    number: int | None = None
    ready: bool = False
    finished: bool = True  # whether its image's part has come


class _Abandoned(Exception):  # noqa: N818
    """Nobody listens any more."""


class Foreman:
    """Hands out images and takes in events, in a thread of its own, until all is done or it is time to stop."""

    def __init__(
        self,
        ray: ModuleType,
        data: Images,
        settings: Settings,
        task: bytes,
        seen: dict[str, Any],
        numbers: Sequence[int],
        work: Work,
        limit: int | None,
    ) -> None:
        self._ray, self._data, self._settings, self._seen, self._work = ray, data, settings, seen, work
        self._task = ray.put(task)
        self._limit = limit
        self._left = deque(numbers)
        self._hands: list[_Hand] = []
        self._lost: Counter[int] = Counter()
        self._told: dict[int, set[Any]] = {}
        self._unsaved: Counter[int] = Counter()
        self._unstarted = 0  # workers that died one after the other before they were ready
        self._first: BaseException | None = None
        self._cut = False
        self._stopping = False
        self._looked = -GROW
        self.most = 0
        self.abandoned = threading.Event()
        self.happened: queue.Queue[Event | BaseException | None] = queue.Queue(maxsize=WAITING)

    def run(self) -> None:
        """Until there is nothing to do; the last thing said is None."""
        try:
            with suppress(_Abandoned):
                try:
                    self._work_through()
                except _Abandoned:
                    raise
                except BaseException as error:
                    self._work.stop = self._work.stop or TOGETHER
                    self._say(error)
                self._say(None)
        finally:
            for hand in self._hands:
                with suppress(Exception):
                    self._ray.kill(hand.actor)

    def _work_through(self) -> None:
        while self._left or self._busy():
            reason = self._work.reason_to_stop()
            if reason is None:
                self._hire()
                self._hand_out()
            elif not self._busy():
                break
            elif not self._stopping:
                self._stopping = True
                for hand in self._busy():
                    hand.actor.stop.remote(reason)
            self._listen()
        if self._first is not None:
            raise self._first
        if self._left or self._cut:
            raise StopEarly(self._work.reason_to_stop() or TOGETHER)

    def _fail(self, error: BaseException) -> None:
        """The run is to end with this error, once what other workers have in hand is judged."""
        self._first = self._first or error
        self._work.stop = self._work.stop or TOGETHER

    def _busy(self) -> list[_Hand]:
        return [hand for hand in self._hands if hand.number is not None]

    def _hire(self) -> None:
        """As many workers as there is room and work for; machines may come and go."""
        now = time.monotonic()
        if now - self._looked < GROW:
            return
        self._looked = now
        room = capacity(self._ray, self._settings.device)
        if not room and not self._hands and not self.most:
            what = "processor" if self._settings.device == "cpu" else "GPU"
            raise InputError(f"expected a Ray cluster with at least one {what}, got one with none")
        wanted = min(room, len(self._left) + len(self._busy()), self._limit or room)
        gpus = 0 if self._settings.device == "cpu" else 1
        # Two calls at a time: to examine, and to be told to stop meanwhile.
        kind = self._ray.remote(Worker).options(num_cpus=1, num_gpus=gpus, max_restarts=0, max_concurrency=2)
        for _ in range(wanted - len(self._hands)):
            actor = kind.remote()
            self._hands.append(_Hand(actor, actor.begin.remote(self._task)))

    def _hand_out(self) -> None:
        for hand in self._hands:
            if hand.ready and hand.number is None and self._left:
                number = self._left[0]
                try:
                    sample = pickle.dumps(Sent.of(self._data[number]), protocol=5)
                except Exception as error:  # a file that cannot be read
                    self._fail(error)
                    return
                self._left.popleft()
                self._work.tally(number)
                streaming = {"num_returns": "streaming", "_generator_backpressure_num_objects": AHEAD}
                hand.answer = hand.actor.examine.options(**streaming).remote(number, sample)
                hand.number, hand.finished = number, False

    def _listen(self) -> None:
        waiting = {hand.answer: hand for hand in self._hands if hand.answer is not None}
        if not waiting:
            time.sleep(LOOK)
            return
        everyone = list(waiting)
        first, _ = self._ray.wait(everyone, num_returns=1, timeout=LOOK, fetch_local=False)
        if not first:
            return
        answers, _ = self._ray.wait(everyone, num_returns=len(everyone), timeout=0, fetch_local=False)
        for answer in answers:
            hand = waiting[answer]
            try:
                if hand.ready:
                    self._take(hand, pickle.loads(self._ray.get(next(answer))))
                else:
                    self._greet(hand, pickle.loads(self._ray.get(answer)))
            except StopIteration:
                if not hand.finished:
                    self._give_up(hand, "it ended without a result")
                hand.number, hand.answer = None, None
            except self._ray.exceptions.RayTaskError as error:
                self._fail(RuntimeError(in_one_line(error.cause or error)))
                self._dismiss(hand, error)
            except self._ray.exceptions.RayError as error:
                self._dismiss(hand, error)

    def _greet(self, hand: _Hand, said: Ready | Failed) -> None:
        """A worker has loaded the model, or could not."""
        hand.answer = None
        if isinstance(said, Failed):
            self._fail(said.error)
            return
        changed = ", ".join(differences(self._seen, said.seen))
        if changed:
            self._fail(
                InputError(f"expected the same files on every machine of the cluster, got {changed} on {said.where}")
            )
            return
        hand.ready, self._unstarted = True, 0
        self.most = max(self.most, sum(1 for other in self._hands if other.ready))

    def _dismiss(self, hand: _Hand, error: BaseException) -> None:
        """A worker, or its machine, has died: its image goes to another one."""
        self._hands.remove(hand)
        with suppress(Exception):
            self._ray.kill(hand.actor)
        if hand.ready:
            self._give_up(hand, in_one_line(error, 120))
            return
        self._unstarted += 1
        if self._unstarted >= ATTEMPTS:
            why = f"{ATTEMPTS} died one after the other: {in_one_line(error)}"
            self._fail(InputError(f"expected workers that start on the Ray cluster, {why}"))

    def _give_up(self, hand: _Hand, why: str) -> None:
        if hand.number is None or hand.finished:
            return
        if self._work.reason_to_stop() is not None:
            self._cut = True
            return
        self._lost[hand.number] += 1
        count = self._lost[hand.number]
        if count >= ATTEMPTS:
            said = f"{count} workers died while they examined image {hand.number}, the last one since {why}"
            self._fail(InputError(said))
            return
        self._left.appendleft(hand.number)
        self._say(
            Warned("AC130", f"a worker died while it examined image {hand.number}, which another one examines again")
        )

    def _take(self, hand: _Hand, said: Happening | Failed) -> None:
        """What a worker says of its image."""
        assert hand.number is not None
        if isinstance(said, Failed):
            hand.finished = True
            if isinstance(said.error, StopEarly):
                self._cut = True
            else:
                self._fail(said.error)
            return
        event, tally = said.event, self._work.tallies[hand.number]
        match event:
            case Finding():
                event = Finding(self._kept(event.violation, said.files, hand.number))
                tally.findings.append(event.violation)
            case Warned():
                tally.warnings.append((event.code, event.message))
            case PartFinished():
                hand.finished = True
                self._cut = self._cut or not event.part.complete
                whole = self._work.tallies[hand.number] = event.part.tally
                whole.findings[:] = tally.findings  # the same, with files where they are kept
                whole.unsaved += self._unsaved.pop(hand.number, 0)
        told = self._told.setdefault(hand.number, set())
        key = _key(event)
        if key not in told:
            told.add(key)
            self._say(event)
        if isinstance(event, PartFinished):
            del self._told[hand.number]

    def _kept(self, violation: Violation, files: dict[str, bytes], number: int) -> Violation:
        """The finding, its counterexample where this run keeps them."""
        folder = self._settings.counterexamples
        if violation.counterexample is None or folder is None:
            return violation
        path: Path | None = folder / violation.counterexample.name
        try:
            write_bytes(folder / violation.counterexample.name, files[violation.counterexample.name])
        except InputError as error:  # a full disk must not cost the finding
            if not self._unsaved[number]:
                self._say(Warned("AC112", str(error)))
            self._unsaved[number] += 1
            path = None
        return replace(violation, counterexample=path)

    def _say(self, event: Event | BaseException | None) -> None:
        while not self.abandoned.is_set():
            with suppress(queue.Full):
                self.happened.put(event, timeout=LOOK)
                return
        raise _Abandoned


def _key(event: Event) -> Any:
    """The same for what an image's second worker says again."""
    match event:
        case Advanced():
            return event.done, event.work
        case Finding():
            return replace(event.violation, counterexample=None)
        case Warned():
            return event.code, event.message
        case ImageStarted() | ImageFinished() | PartFinished():
            return type(event)
    return event
