"""The floor under a time: the operations and bytes that cannot be saved, at this machine's own measured peak.

Operations are those of convolutions and matrix products (an addition and a multiplication are two), counted by torch.
Bytes are the least that has to move if everything else is fused into these: weights are read once, and what each of
them makes is written once and read once. The peak is the best of a few runs of one large product and one large copy in
the same process, on as many threads as the benchmark uses. The floor is the longer of both times; nothing says that it
can be reached: small products run slower than large ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from attackcheck.cones import Cone, Spot

__all__ = ["Peak", "Work", "certification", "clock", "network_passes", "watch_cones"]

REPEATS = 5
AROUND = Cone.__call__


def watch_cones(now: Callable[[], float], add: Callable[[float], None]) -> None:
    """Tells `add` the seconds of every forward pass around pixels from here on, and nobody else who was told before."""

    def timed(cone: Cone, images: Tensor, spot: Spot) -> Tensor:
        start = now()
        logits = AROUND(cone, images, spot)
        add(now() - start)
        return logits

    Cone.__call__ = timed  # type: ignore[method-assign]


@dataclass(frozen=True)
class Work:
    """What has to be done at least."""

    operations: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.operations + other.operations, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Work:
        return Work(self.operations * times, self.bytes * times)


@dataclass(frozen=True)
class Peak:
    """What this machine does in a second at best, in float32."""

    operations: float
    bytes: float

    def seconds(self, work: Work) -> float:
        """The floor."""
        return max(work.operations / self.operations, work.bytes / self.bytes)

    def __str__(self) -> str:
        return f"peak {self.operations / 1e9:,.0f} GFLOP/s, {self.bytes / 1e9:,.1f} GB/s"

    @staticmethod
    def measured(device: str = "cpu") -> Peak:
        """Of a product of square matrices and a copy that no cache holds."""
        size, length = (1536, 2**26) if device == "cpu" else (8192, 2**28)
        left, right = torch.rand(size, size, device=device), torch.rand(size, size, device=device)
        product = torch.empty_like(left)
        source = torch.ones(length, device=device)
        target = torch.empty_like(source)
        multiplied = _best(lambda: torch.mm(left, right, out=product), device)
        copied = _best(lambda: target.copy_(source), device)
        return Peak(2 * size**3 / multiplied, 2 * 4 * length / copied)


def _best(call: Callable[[], object], device: str) -> float:
    call()
    taken = []
    for _ in range(REPEATS):
        start = clock(device)
        call()
        taken.append(clock(device) - start)
    return min(taken)


def clock(device: str) -> float:
    """This process's own seconds on a CPU, where others may be at work; the wall clock on a synchronised GPU."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


class _Made(TorchDispatchMode):
    """Bytes that convolutions and products make."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            several = result if isinstance(result, tuple | list) else [result]
            self.bytes += sum(one.nbytes for one in several if isinstance(one, Tensor))
        return result


def network_passes(model: Callable[[Tensor], Tensor], image: Tensor, *, many: bool = False) -> tuple[Work, Work]:
    """A forward pass of one image ``(C, H, W)``, and the way back to it: operations and bytes of each.

    Args:
        model: a module, or any callable.
        image: on the device.
        many: one of many rows, which share the reading of the weights: it is left out.
    """
    weights = sum(p.nbytes for p in model.parameters()) if isinstance(model, nn.Module) and not many else 0
    points = image.detach()[None].clone().requires_grad_(True)
    with torch.enable_grad(), _Made() as there, FlopCounterMode(display=False) as forward:
        logits = model(points)
    with _Made() as back, FlopCounterMode(display=False) as backward:
        if logits.requires_grad:
            torch.autograd.grad(logits.sum(), points)
    return (
        Work(forward.get_total_flops(), points.nbytes + weights + 2 * there.bytes),
        Work(backward.get_total_flops(), logits.nbytes + weights + 2 * back.bytes),
    )


def certification(logits: Tensor) -> Work:
    """Worst cases of accuracy from logits ``(K, H, W)``: these are read once, and one cost for each pixel is written.

    Costs are float64; to sort them they are read and written once more, and to add them up read again. Two comparisons
    for each logit find the class and its margin.
    """
    pixels = logits[0].numel()
    return Work(2.0 * logits.numel(), logits.nbytes + 4.0 * 8 * pixels)
