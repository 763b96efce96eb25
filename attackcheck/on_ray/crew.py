"""Images on the workers of a Ray cluster, as the engine sees it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import ModuleType

from attackcheck.crew import Work
from attackcheck.errors import InputError, in_one_line
from attackcheck.events import Event
from attackcheck.on_ray.cluster import connected, the_library
from attackcheck.on_ray.foreman import Foreman
from attackcheck.on_ray.worker import SentImages, Source, Task, identity
from attackcheck.subject import Images, Settings, Subject

__all__ = ["RayCrew"]

MANY = 1 << 20
"""Workers where there is no limit."""


class RayCrew:
    """Images are examined on the workers of a Ray cluster, one image at a time on each; see :class:`Crew`.

    An image whose worker dies goes to another one; what it said before is not said again. Counterexamples are written
    by this process alone.

    Args:
        subject: what is examined, as this process has loaded it.
        data: the images, which are read here and sent.
        settings: how to attack; one worker for each GPU, or for each processor with the device "cpu".
        source: makes the subject anew on a worker. It is pickled.
        address: of the cluster, see :func:`attackcheck.on_ray.cluster.connected`.
        limit: as many workers at most.

    Raises:
        InputError: where Ray is not installed.
    """

    def __init__(
        self,
        subject: Subject,
        data: Images,
        settings: Settings,
        source: Source,
        *,
        address: str = "",
        limit: int | None = None,
    ) -> None:
        the_library()
        self._subject, self._data, self._source = subject, data, source
        self._settings = replace(settings, workers=limit or MANY, metrics=())  # workers share a machine's memory
        self._address, self._limit = address, limit
        self._most = 1

    @property
    def threads(self) -> int:
        """As many as there were workers at the same time; each computes in one."""
        return self._most

    def examine(self, numbers: Sequence[int], work: Work) -> Iterator[Event]:
        """See :class:`Crew`."""
        if not numbers:
            return
        images = SentImages.of(self._data, self._settings.image or 0)
        seen = identity(self._subject, images, self._settings.device)
        with connected(self._address, self._limit) as ray:
            told = _pickled(ray, Task(self._source, images, self._settings, os.getcwd(), tuple(sys.path), seen))
            foreman = Foreman(ray, self._data, self._settings, told, seen, numbers, work, self._limit)
            thread = threading.Thread(target=foreman.run, daemon=True)
            thread.start()
            try:
                yield from work.passed_on(foreman.happened, 1)
            finally:
                foreman.abandoned.set()
                thread.join(timeout=10.0)
                self._most = max(self._most, foreman.most)


def _pickled(ray: ModuleType, task: Task) -> bytes:
    try:
        told: bytes = ray.cloudpickle.dumps(task)
    except Exception as error:  # whatever a stranger's model raises
        raise InputError(
            f"expected a model that can be sent to other processes, got {in_one_line(error)}: give `attackcheck "
            "verify` its file or factory, which every worker loads itself"
        ) from error
    return told
