"""What runs in each process of the cluster: one bench, and a way to tell it to stop.

Everything between driver and workers is bytes, pickled by attackcheck itself: files of models are never sent, each
worker reads them with attackcheck's own loader.
"""

from __future__ import annotations

import os
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attackcheck.allocator import keep_freed
from attackcheck.arithmetic import exact_arithmetic
from attackcheck.crew import noted
from attackcheck.determinism import deterministic
from attackcheck.errors import in_one_line
from attackcheck.events import Event, Finding
from attackcheck.examination import Bench
from attackcheck.identity import model_of
from attackcheck.subject import Images, Sample, Settings, Subject
from attackcheck.tally import Tally

__all__ = ["Failed", "Given", "Happening", "Ready", "Sent", "SentImages", "Source", "Task", "Worker", "identity"]

Source = Callable[[Callable[[], Tensor]], Subject]
"""Makes what is examined; a function that reads the first image ``(C, H, W)`` is handed to it."""


@dataclass(frozen=True)
class Given:
    """A subject that lies in memory: what is a class of a file or of the user's script is sent along with it."""

    subject: Subject

    def __call__(self, image: Callable[[], Tensor]) -> Subject:  # noqa: ARG002
        """The subject."""
        return self.subject


@dataclass(frozen=True)
class Sent:
    """One image that was sent from the driver."""

    name: str
    image: Tensor
    labels: Tensor | None

    @classmethod
    def of(cls, sample: Sample) -> Sent:
        """A copy without what else lies in the same memory."""
        labels = None if sample.labels is None else sample.labels.detach().cpu().clone()
        return cls(sample.name, sample.image.detach().cpu().clone(), labels)


@dataclass
class SentImages:
    """The data set as a worker sees it: the images that it was sent."""

    name: str
    classes: Sequence[str] | None
    ignore: int
    length: int
    here: dict[int, Sent]

    @classmethod
    def of(cls, data: Images, first: int) -> SentImages:
        """With its ``first`` image in the first place, which tells what a model returns."""
        return cls(data.name, data.classes, data.ignore, len(data), {0: Sent.of(data[first])})

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sent:
        return self.here[index]


@dataclass(frozen=True)
class Task:
    """What every worker is told once."""

    source: Source
    images: SentImages
    settings: Settings
    folder: str  # that relative paths are relative to
    path: tuple[str, ...]  # where the driver imports from
    seen: dict[str, Any]  # the driver's :func:`identity`


@dataclass(frozen=True)
class Ready:
    """A worker has the model. ``seen`` is its :func:`identity`."""

    where: str
    seen: dict[str, Any]


@dataclass(frozen=True)
class Failed:
    """An error, on its way to the driver."""

    error: BaseException


@dataclass(frozen=True)
class Happening:
    """An event, with the files of counterexamples that belong to it."""

    event: Event
    files: dict[str, bytes]


def identity(subject: Subject, images: Images, device: str) -> dict[str, Any]:
    """What must be the same on every machine."""
    return {"model": model_of(subject, images, device), "claim": subject.claim.to_dict()}


class Worker:
    """Examines images. Ray runs one in each of its processes; :meth:`stop` may be called at any time."""

    def __init__(self) -> None:
        self._stop: str | None = None
        self._bench: Bench | None = None
        self._new: Callable[[], Bench]
        self._images: SentImages
        self._first = 0
        self._deterministic = False
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def begin(self, task: bytes) -> bytes:
        """Load the model; a pickled :class:`Ready` or :class:`Failed`."""
        try:
            return pickle.dumps(self._begin(pickle.loads(task)))
        except BaseException as error:
            return pickle.dumps(Failed(_portable(error)))

    def _begin(self, task: Task) -> Ready:
        with suppress(OSError):
            os.chdir(task.folder)  # elsewhere the working directory that the job was sent with
        sys.path += [entry for entry in task.path if entry not in sys.path]
        torch.set_num_threads(1)
        keep_freed()
        settings = replace(task.settings, workers=min(task.settings.workers, os.cpu_count() or 1))
        if settings.counterexamples is not None:
            self._scratch = tempfile.TemporaryDirectory(prefix="attackcheck-")
            settings = replace(settings, counterexamples=Path(self._scratch.name))
        self._images, self._first = task.images, settings.image or 0
        self._deterministic = settings.deterministic
        subject = task.source(lambda: task.images[0].image)
        self._new = lambda: Bench(subject, task.images, settings)
        return Ready(os.uname().nodename, identity(subject, task.images, settings.device))

    def stop(self, reason: str) -> None:
        """End the attacks on the image in hand, and judge it."""
        self._stop = reason

    def examine(self, number: int, sample: bytes) -> Iterator[bytes]:
        """Pickled :class:`Happening` of one image, and in the end :class:`Failed` if it could not be examined."""
        try:
            torch.set_num_threads(1)
            self._images.here = {number: pickle.loads(sample)}
            if self._bench is None or number == self._first:  # a bench then also says what it thinks of the model
                self._bench = self._new()
            tally = Tally(self._images.ignore)
            with exact_arithmetic(), deterministic(self._deterministic), torch.enable_grad():
                for event in noted(self._bench.examine(number, tally, lambda: self._stop), tally):
                    yield pickle.dumps(Happening(event, self._files(event)), protocol=5)
        except BaseException as error:
            yield pickle.dumps(Failed(_portable(error)))

    def _files(self, event: Event) -> dict[str, bytes]:
        """The file of a finding, which is the driver's to keep."""
        if not isinstance(event, Finding) or event.violation.counterexample is None:
            return {}
        path = event.violation.counterexample
        content = path.read_bytes()
        path.unlink()
        return {path.name: content}


def _portable(error: BaseException) -> BaseException:
    """The error itself where it can be sent, which not all of them can."""
    try:
        again = pickle.loads(pickle.dumps(error))
        return error if isinstance(again, type(error)) else RuntimeError(in_one_line(error))
    except Exception:  # whatever pickle and the constructors of strangers' exceptions raise
        return RuntimeError(in_one_line(error))
