"""Memory: what there is, what a call takes, and how many rows a call may have.

On a GPU, and where a limit is set, running out of memory is an error that can be caught: the call is repeated with half
as many rows. On most CPUs the process is ended instead, so calls on large images are measured first: a call of two rows
says what a row takes. Rows are independent of each other, so neither changes a result.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Hashable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import torch

from attackcheck.allocator import give_back
from attackcheck.errors import InputError

__all__ = ["Meter", "Room", "available", "ran_out", "too_large"]

T = TypeVar("T")

SHARE = {"cpu": 0.5, "cuda": 0.8}
"""Share of the free memory that one attack call may take; others use the memory of a CPU as well."""

INTERVAL = 0.002
"""Seconds between two looks at the memory of this process."""

_SAID = ("can't allocate memory", "out of memory", "_STATUS_ALLOC_FAILED")


def ran_out(error: BaseException) -> bool:
    """Whether this error says that there was not enough memory."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _SAID)


def available(device: torch.device | str = "cpu") -> int | None:
    """Bytes that may still be taken on a device, None where nobody says; limits of control groups count."""
    device = torch.device(device)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    found = [bytes_ for bytes_ in (_free(), *_limits()) if bytes_ is not None]
    return min(found, default=None)


def _free() -> int | None:
    for line in _lines(Path("/proc/meminfo")):
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    return None


def _limits() -> list[int]:
    """What the control groups of this process leave, version 2 and 1."""
    left = []
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base, limit, used, unused = "/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file "
        if controllers:
            base, limit, used = f"{base}/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            unused = "total_inactive_file "
        for folder in {Path(base + path), Path(base)}:  # inside a container the own group is the root
            most, now = _number(folder / limit), _number(folder / used)
            if most is not None and now is not None:
                files = [int(entry.split()[1]) for entry in _lines(folder / "memory.stat") if entry.startswith(unused)]
                left.append(max(0, most - now + sum(files)))
    return left


def _number(path: Path) -> int | None:
    lines = _lines(path)
    return int(lines[0]) if lines and lines[0].strip().isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def resident() -> int | None:
    """Bytes of this process that are in memory, None where nobody says."""
    sizes = _sizes()
    return sizes[1] if sizes else None


def anonymous() -> int | None:
    """Those of them that are no part of a file."""
    sizes = _sizes()
    return sizes[1] - sizes[2] if sizes else None


def _sizes() -> list[int]:
    """Bytes of this process: all, resident, and those of these that are a part of a file or shared."""
    words = " ".join(_lines(Path("/proc/self/statm"))).split()
    return [int(word) * os.sysconf("SC_PAGE_SIZE") for word in words[:3]] if len(words) > 2 else []


class Meter:
    """As a context: the most memory on a device at once, in bytes beyond what was taken at the start.

    On a GPU as its allocator counts; on a CPU what is resident of this process and of no file, looked at every few
    milliseconds: pages of files may leave at any time, as if a call had freed them.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._most = 0
        self._start: int | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self.bytes: int | None = None
        """After the context; None where nobody says."""

    def __enter__(self) -> Meter:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._start = torch.cuda.memory_allocated(self._device)
        else:
            give_back()  # or a call that is served from there would seem to take nothing
            self._start = anonymous()
            if self._start is not None:
                self._thread = threading.Thread(target=self._watch, daemon=True)
                self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._over.wait(INTERVAL):
            self._most = max(self._most, anonymous() or 0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._start is None:
            return
        if self._thread is None:
            torch.cuda.synchronize(self._device)
            self._most = torch.cuda.max_memory_allocated(self._device)
        else:
            self._over.set()
            self._thread.join()
        self.bytes = max(0, self._most - self._start)


class Room:
    """How many rows calls may have: measured by a first call of two rows, halved where memory runs out.

    Args:
        device: where the model runs.
        beside: how many such rooms share the device.
    """

    def __init__(self, device: torch.device | str = "cpu", beside: int = 1) -> None:
        self._device = torch.device(device)
        self._beside = max(1, beside)
        self._most: dict[Hashable, int] = {}

    def alone(self, kind: Hashable) -> bool:
        """Whether not even two rows fit, so that calls have one."""
        return self._most.get(kind) == 1

    def fitted(
        self,
        kind: Hashable,
        rows: int,
        call: Callable[[int], T],
        *,
        measure: bool = False,
        asked: Callable[[], int] | None = None,
    ) -> T:
        """``call(n)`` with as many of ``rows`` as fit, fewer and fewer where memory runs out.

        Args:
            kind: calls of one kind take the same memory for each row.
            rows: at most.
            call: what is repeated; what an attempt that failed has recorded stays.
            measure: find out with two rows, if this kind is new.
            asked: how many rows a call that failed has really had, where it may be fewer than permitted.

        Raises:
            InputError: if one row does not fit.
        """
        while True:
            trial = measure and kind not in self._most
            many = min(rows, self._most.get(kind, 2 if trial else rows))
            try:
                if not trial:
                    return call(many)
                free = available(self._device)
                with Meter(self._device) as meter:
                    result = call(many)
                found = self._fit(meter.bytes, free, rows)
                if found is not None:
                    self._most[kind] = found
                return result
            except Exception as error:
                if not ran_out(error):
                    raise
            # outside of the handler: its traceback would hold what the call has allocated
            self._halve(kind, many if asked is None else min(many, asked()))

    def _fit(self, taken: int | None, free: int | None, rows: int) -> int | None:
        """How many rows fit; None where nothing was seen to be taken: what was free already has served, ask again."""
        if taken is None or free is None:
            return max(2, rows)
        if taken == 0:
            return None
        usable = SHARE.get(self._device.type, SHARE["cpu"]) * free / self._beside
        return max(2, int(usable / (taken / 2)))

    def _halve(self, kind: Hashable, rows: int) -> None:
        if self.alone(kind):
            raise InputError(too_large(self._device))
        # a single pixel is attacked in two rows as long as they fit
        self._most[kind] = max(2, rows // 2) if rows > 2 else 1
        gc.collect(1)  # what the failed call has left in cycles is young
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def too_large(device: torch.device | str) -> str:
    """What to say where one row does not fit."""
    free = available(device)
    known = "" if free is None else f" ({free / 2**30:.1f} GiB are free)"
    return f"expected one image to fit into the memory of {device}, it does not{known}: use smaller images"
