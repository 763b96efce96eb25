"""Time of attacks beyond the network's own forward and backward passes, attack by attack.

    python benchmarks/overhead.py [--network isounet-xs] [--pixels 64] [--regions 8] [--attack linearised,ddn]

The stages of the plan standard run as in `attackcheck verify`, on the first shipped image and so many of its connected
components, through the probe that records every point, in the engine's own batches. Networks that ship, or of a larger
size, untrained. CPU time on one thread, after a run to warm up; beyond is relative to the time inside the network, the
median of the repeats. Recording is what the probe does with each point, the rest is the attack's own arithmetic.
Attacks of libraries are left out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import attackcheck as ac
from attackcheck.allocator import keep_freed
from attackcheck.arithmetic import frozen
from attackcheck.attacking import ROW_PIXELS, together
from attackcheck.attacks import registry
from attackcheck.attacks.objectives import ImageFlip, Objective, PixelFlip, RegionFlip
from attackcheck.attacks.plans import Stage, plan
from attackcheck.models.datasets import load_data
from attackcheck.models.networks import SIZES, build, export
from attackcheck.models.shelf import NAMES, shipped
from attackcheck.probe import Probe
from attackcheck.regions import RegionRequest

CLAIM = ac.LipschitzClaim(1.0)


LARGER = {f"{family}-{size.lower()}": (family, size) for family in SIZES for size in SIZES[family] if size != "XS"}


def network(name: str) -> Callable[[Tensor], Tensor]:
    """As it ships, or as it is drawn."""
    if name not in LARGER:
        return frozen(ac.load(shipped(name)).model)
    family, size = LARGER[name]
    return export(build(SIZES[family][size], seed=0))


class Clock:
    """CPU seconds spent inside the network, forward and backward, and in the probe's recording."""

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        self._model, self._grad = model, torch.autograd.grad
        self.inside = self.recording = 0.0

    def __call__(self, images: Tensor) -> Tensor:
        start = time.process_time()
        logits = self._model(images)
        self.inside += time.process_time() - start
        return logits

    def grad(self, *arguments: Any, **options: Any) -> Any:
        start = time.process_time()
        result = self._grad(*arguments, **options)
        self.inside += time.process_time() - start
        return result

    def timed(self, probe: Probe, work: Callable[[Callable[[Tensor], Tensor]], object]) -> tuple[float, float, float]:
        """Seconds in all, inside the network, and recording."""

        def recorded(images: Tensor) -> Tensor:
            before, start = self.inside, time.process_time()
            logits = probe(images)
            self.recording += time.process_time() - start - (self.inside - before)
            return logits

        self.inside = self.recording = 0.0
        torch.autograd.grad, start = self.grad, time.process_time()
        try:
            work(recorded)
        finally:
            torch.autograd.grad = self._grad
        return time.process_time() - start, self.inside, self.recording


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=(*NAMES, *LARGER), default="isounet-xs")
    parser.add_argument("--attack", help="only these, by name")
    parser.add_argument("--pixels", type=int, default=64)
    parser.add_argument("--regions", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed()  # as the command does
    clock = Clock(network(arguments.network))
    image = load_data(None)[0].image
    with torch.no_grad():
        logits = clock(image[None])
    radius = CLAIM.radii(image[None], logits, None)[0]
    rows = max(1, ROW_PIXELS["cpu"] // (image.shape[1] * image.shape[2]))
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randperm(radius.numel(), generator=generator)[: arguments.pixels]
    predicted = logits[0].argmax(dim=0)
    regions = list(RegionRequest("components", str(arguments.regions)).resolve(predicted, radius))
    for number in range(len(regions), arguments.regions):  # what is untrained may have none of 16 pixels
        regions += RegionRequest("rect", f"{6 * number},{12 * number},6,6").resolve(predicted, radius)

    def stage_work(stage: Stage) -> Callable[[Callable[[Tensor], Tensor]], object]:
        attack = registry.get(stage.attack)
        options = dict(stage.options)

        def call(model: Callable[[Tensor], Tensor], objective: Objective, count: int, **extra: object) -> None:
            given = image.expand(count, *image.shape).contiguous()
            attack.function(model, given, objective, **extra, **options)

        def work(model: Callable[[Tensor], Tensor]) -> None:
            if stage.objective == "pixel":
                for part in chosen.split(rows):
                    call(model, PixelFlip(part // image.shape[2], part % image.shape[2]), len(part))
                return
            for aims in together(stage, regions, (image.shape[1], image.shape[2]), "cpu"):
                masks = [aim.region.mask for aim in aims if aim.region is not None]
                budgets = [aim.eps for aim in aims if aim.eps is not None]
                extra = {"eps": torch.tensor(budgets)} if budgets else {}
                call(model, RegionFlip(torch.stack(masks)) if masks else ImageFlip(), len(aims), **extra)

        return work

    table = Table("attack", "objective", "seconds", "beyond the network", "of it recording", title=arguments.network)
    for stage in plan("standard").stages:
        theirs, map_ = "." in stage.attack, stage.objective == "map" or registry.get(stage.attack).about_pixels
        unwanted = arguments.attack is not None and stage.attack not in arguments.attack.split(",")
        if theirs or map_ or stage.unflipped or unwanted:
            continue
        runs = []
        for _ in range(arguments.repeats + 1):
            probe = Probe(clock, image, logits[0], radius, CLAIM)
            if stage.objective == "pixel":
                probe.aim(chosen // image.shape[2], chosen % image.shape[2])
            with probe.attributed(stage.attack):
                runs.append(clock.timed(probe, stage_work(stage)))
        total, inside, recording = (median(run[i] for run in runs[1:]) for i in range(3))
        row = stage.attack, stage.objective, f"{total:.2f}"
        table.add_row(*row, f"{100 * (total / inside - 1):.1f} %", f"{100 * recording / inside:.1f} %")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
