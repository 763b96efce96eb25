"""The processes that train one network together, each on its share of every batch (torchrun starts them)."""

import atexit
import gc
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from attackcheck.errors import InputError

__all__ = ["ALONE", "LostError", "Processes", "average"]

T = TypeVar("T")
# The first process measures while the others wait for it: the limit that ends a hung training must be longer than that.
PATIENCE = timedelta(hours=2)


class LostError(InputError):
    """Another process ended in the middle of a step, so that this one cannot go on."""


class Processes:
    """How many processes train together, and which of them this is; one alone by default.

    Every method is called by all of them in the same order. Alone, each of them does nothing.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count
        self._abandoned = False

    @classmethod
    def join(cls, device: torch.device, environment: Mapping[str, str] = os.environ) -> "Processes":
        """Meets the other processes that torchrun has started: by gloo on a CPU, by nccl on GPUs.

        Raises InputError when they cannot be reached.
        """
        names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
        if any(name not in environment for name in names) or environment["WORLD_SIZE"] == "1":
            return ALONE
        try:
            rank, count = int(environment["RANK"]), int(environment["WORLD_SIZE"])
            # Imported later, as DistributedDataParallel does, its functions' defaults would hold the group for good.
            importlib.import_module("torch.distributed.nn")
            distributed.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
        except Exception as error:  # sockets, stores and back ends all raise their own kinds
            raise InputError(f"could not meet the other processes of torchrun ({type(error).__name__})") from error
        return cls(rank, count)

    def leave(self) -> None:
        """Ends the group and its threads, which would abort the interpreter if they needed it while it ends."""
        if self.count > 1 and not self._abandoned and distributed.is_initialized():
            # A wrapped network holds the group in a circle. Were it the last to, the group would end inside its
            # destructor, which waits for the group's thread without leaving it the interpreter that it may wait for.
            gc.collect()
            distributed.destroy_process_group()

    def abandon(self, lost: "LostError") -> None:
        """What a process does instead of leaving when another one is gone: the process ends with its group, code 2.

        Whatever an error's frames hold of the group stays until then: work that was cut off is still being cleared
        away by the group's thread (see :meth:`leave`). torchrun ends this process anyway; the reason is said first.
        """
        self._abandoned = True
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        atexit.register(_end, lost)

    @property
    def first(self) -> bool:
        """Whether this is the process that prints, measures and writes."""
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network as it is to be called in training: gradients are averaged, batch means are those of all."""
        if self.count == 1:
            return network
        _centre_together(network, True)
        return nn.parallel.DistributedDataParallel(network)

    def unwrap(self, network: nn.Module) -> None:
        """Makes the network one of this process alone again."""
        _centre_together(network, False)

    def share(self, batch: int) -> range:
        """The places of a batch that this process computes. Raises InputError unless the processes divide it."""
        if batch % self.count:
            raise InputError(f"expected a batch that {self.count} processes can share evenly, got {batch}")
        each = batch // self.count
        return range(self.rank * each, (self.rank + 1) * each)

    def total(self, values: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def agree(self, attempt: Callable[[], T]) -> T:
        """What `attempt` returns here; where it raises InputError in one process, all of them raise that."""
        if self.count == 1:
            return attempt()
        problem = ""
        try:
            result = attempt()
        except InputError as error:
            problem = str(error)
        problem = self.first_problem(problem)
        if problem:
            raise InputError(problem)
        return result

    def first_problem(self, problem: str) -> str:
        """Of what each process has to complain of, nothing or a sentence, the first that is a sentence."""
        if self.count == 1:
            return problem
        problems: list[Any] = [""] * self.count
        distributed.all_gather_object(problems, problem)
        return next((found for found in problems if found), "")

    def from_first(self, attempt: Callable[[], T]) -> T:
        """What `attempt` returns in the first process, which alone runs it; its InputError is raised by all."""
        if self.count == 1:
            return attempt()
        box: list[Any] = [None]
        box[0] = self.agree(attempt if self.first else lambda: None)
        distributed.broadcast_object_list(box, src=0)
        return box[0]  # type: ignore[no-any-return]

    def lost(self, error: RuntimeError) -> bool:
        """Whether an error of a step says that another process is gone."""
        if self.count == 1 or isinstance(error, torch.OutOfMemoryError):
            return False
        words = ("gloo", "nccl", "peer", "connection", "process group", "timed out")
        return isinstance(error, distributed.DistError) or any(word in str(error).lower() for word in words)


ALONE = Processes()


def _end(lost: LostError) -> None:  # noqa: ARG001
    """The process ends as it is, with code 2; until then `lost` lives."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):  # there is none, or nobody reads it
            stream.flush()
    os._exit(2)


def _centre_together(network: nn.Module, together: bool) -> None:
    for layer in network.modules():
        if hasattr(layer, "together"):  # whatever centres its output by the means of a batch
            setattr(layer, "together", together)  # noqa: B010


class _Average(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:  # noqa: ARG004
        values = values.clone()
        distributed.all_reduce(values)
        return values / distributed.get_world_size()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # noqa: ARG004
        # Each process holds the gradient of its own loss, and what is minimised is the mean of all losses.
        gradient = gradient.clone()
        distributed.all_reduce(gradient)
        return gradient / distributed.get_world_size()


def average(values: Tensor) -> Tensor:
    """The mean over all processes, differentiable."""
    result: Tensor = _Average.apply(values)  # type: ignore[no-untyped-call]
    return result
