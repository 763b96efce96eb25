"""A training step: its time, the share of it that goes into orthogonal matrices, and the memory it takes.

    python benchmarks/step.py [--only NAME,...] [--steps N] [--batch N] [--json FILE]

CPU time of one thread, the median over steps after a first one that is left out. A step is everything that
`attackcheck train` does with a batch that has been read: forward, loss, backward, AdamW. `matrices` is the computing
of all kernels from the raw parameters, forwards and backwards, timed by itself in turns with the steps. `plain` is the
same step of the same structure of ordinary convolutions, and `bf16` the step with convolutions in bfloat16. Peak memory
is that of a process of its own, so that it is not a neighbour's. `kvasir`, `pets` and `cityscapes` are the presets of
`attackcheck train` at their full size, on random pictures; `--batch` takes fewer of them at a time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import re
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from attackcheck.models import build
from attackcheck.models.layers import OrthogonalConv2d, OrthogonalUp2d
from attackcheck.models.losses import segmentation_loss
from attackcheck.models.networks import SIZES
from attackcheck.models.presets import PRESETS

CLASSES = {"kvasir": 2, "pets": 3, "cityscapes": 19}
CASES = {
    "isounet XS, 64x128": ("isounet", "XS", 7, 8, (64, 128)),
    "lipnet XS, 64x128": ("lipnet", "XS", 7, 8, (64, 128)),
    "isounet M1, 128x128": ("isounet", "M1", 7, 8, (128, 128)),
}


def cases() -> dict[str, tuple[str, str, int, int, tuple[int, int]]]:
    """Family, size, classes, pictures in a batch and their height and width."""
    found = dict(CASES)
    for name, preset in PRESETS.items():
        height, width = map(int, re.search(r"@(\d+)x(\d+)", preset.data).groups())  # type: ignore[union-attr]
        kind = preset.data.partition(":")[0]
        found[name.partition("-")[0]] = (preset.arch, preset.size, CLASSES[kind], preset.batch, (height, width))
    return found


def seconds(run: Callable[[], None]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def measured(name: str, steps: int, pictures: int | None) -> dict[str, object]:
    """One case, in a process of its own."""
    torch.set_num_threads(1)
    family, size, classes, batch, (height, width) = cases()[name]
    batch = batch if pictures is None else pictures
    config = dataclasses.replace(SIZES[family][size], classes=classes)
    images = torch.rand(batch, 3, height, width)
    labels = torch.randint(0, classes, (batch, height, width))

    def step_of(network: nn.Module, low: bool = False) -> Callable[[], None]:
        optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)

        def step() -> None:
            optimiser.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                logits = network(images).float()
            segmentation_loss("ce", logits, labels, tau=16.0, margin=0.1).backward()
            optimiser.step()

        return step

    network = build(config, seed=0).train()
    step = step_of(network)
    step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # that of the steps that training takes
    layers = [layer for layer in network.modules() if isinstance(layer, OrthogonalConv2d | OrthogonalUp2d)]
    gradients = [torch.randn_like(layer.kernel()) for layer in layers]

    def matrices() -> None:
        network.zero_grad(set_to_none=True)
        torch.autograd.backward([layer.kernel() for layer in layers], gradients)

    runs = {
        "step": step,
        "matrices": matrices,
        "plain": step_of(build(config, plain=True, seed=0).train()),
        "bf16": step_of(network, low=True),
    }
    for run in (runs["matrices"], runs["plain"], runs["bf16"]):
        run()
    times = {what: [] for what in runs}
    for _ in range(steps):
        for what, run in runs.items():
            times[what].append(seconds(run))
    found = {what: statistics.median(each) for what, each in times.items()}
    return {
        "case": name, "batch": batch, "parameters": sum(p.numel() for p in network.parameters()),
        **found, "share": found["matrices"] / found["step"], "peak_gib": peak,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="cases whose names begin with one of these words")
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--batch", type=int, metavar="N", help="pictures in a batch, of all cases")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    chosen = [name for name in cases() if arguments.only is None or name.startswith(tuple(arguments.only.split(",")))]
    print(f"{'':22s} {'batch':>5s} {'step s':>8s} {'matrices':>8s} {'plain':>7s} {'bf16':>7s} {'peak GiB':>9s}")
    rows = []
    for name in chosen:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            row = pool.apply(measured, (name, arguments.steps, arguments.batch))
        rows.append(row)
        relative = [row["plain"] / row["step"], row["bf16"] / row["step"]]
        print(
            f"{name:22s} {row['batch']:5d} {row['step']:8.3f} {row['share']:8.1%} {relative[0]:7.2f} {relative[1]:7.2f}"
            f" {row['peak_gib']:9.2f}",
            flush=True,
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
