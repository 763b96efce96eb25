"""What the 500 validation images of Cityscapes would cost on 1, 8 and 64 GPUs: a model, not a measurement.

    python benchmarks/cityscapes_cost.py [--network lipnet-m1] [--tflops 20] [--judging 150] [--pixels 64,1000,all]

Counted: rows that the plan sends forward and backward for each pixel (with the dummy that `verify --estimate` counts
on), the operations of a pass of this network on a crop and on a whole image, and how many crops are confirmed by one
pass of the whole image. Assumed, since no GPU was at hand: how many operations a GPU does in a second, what share of
them is lost outside the network, and seconds for float64 on its CPU for each image. Scheduling is simulated: whoever is
free takes the next image, and images differ in how many of their pixels are certified.
"""

from __future__ import annotations

import argparse
import heapq
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

from attackcheck.attacking import stages_that_run
from attackcheck.attacks.plans import plan
from attackcheck.claims import LipschitzClaim
from attackcheck.cones import cone_of
from attackcheck.models.networks import SIZES, build, export
from attackcheck.passes import count_passes
from attackcheck.receptive import measure_field, windows
from attackcheck.reporters.estimates import duration
from attackcheck.subject import Settings

IMAGES, HEIGHT, WIDTH, CLASSES = 500, 1024, 2048, 19
SPREAD = 0.15
"""Of the certified pixels of an image, relative."""


def operations(model: Callable[[torch.Tensor], torch.Tensor], height: int, width: int) -> tuple[float, float]:
    """Floating-point operations of one row forward, and backward to the image."""
    # Counted on a quarter in each direction where that is allowed: convolutions cost the same for each pixel.
    points = torch.zeros(1, 3, height, width, requires_grad=True)
    with FlopCounterMode(display=False) as forward:
        logits = model(points)
    with FlopCounterMode(display=False) as backward:
        torch.autograd.grad(logits.sum(), points)
    return float(forward.get_total_flops()), float(backward.get_total_flops())


def makespan(seconds: np.ndarray, workers: int) -> float:
    """Seconds until the last image is done, where each worker takes the next one when it is free."""
    free = [0.0] * workers
    for each in seconds:
        heapq.heappush(free, heapq.heappop(free) + float(each))
    return max(free)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="lipnet-m1")
    parser.add_argument("--tflops", type=float, default=20.0, help="10^12 operations in a second, sustained in float32")
    parser.add_argument("--outside", type=float, default=0.1, help="share of time outside the network")
    parser.add_argument("--judging", type=float, default=150.0, help="seconds of float64 on the CPU for each image")
    parser.add_argument("--pixels", default="64,1000,all")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    family, _, size = arguments.network.partition("-")
    model = export(build(replace(SIZES[family][size.upper()], classes=CLASSES), seed=0)).eval().requires_grad_(False)
    image = torch.rand(3, 512, 512, generator=torch.Generator().manual_seed(0))
    field = measure_field(model, image)
    crops = None if field is None else windows(field, HEIGHT, WIDTH)
    if crops is None:
        raise SystemExit("the receptive field is too large for crops")
    crop = crops.height, crops.width
    cone = cone_of(model, image[:, : crop[0], : crop[1]], crops.field.stride)
    middle = [torch.tensor([side // 2]) for side in crop]
    small = operations(model if cone is None else cone.at(*middle)[0], *crop)
    part = operations(model, 256, 512)
    whole = tuple(each * HEIGHT * WIDTH / (256 * 512) for each in part)
    packed = (HEIGHT // crop[0]) * (WIDTH // crop[1])
    print(
        f"{arguments.network}: crops of {crop[0]}x{crop[1]}; {small[0] / 1e9:.2f} + {small[1] / 1e9:.2f} GFLOP for a "
        f"crop around its pixel, forward and backward, {whole[0] / 1e9:.0f} + {whole[1] / 1e9:.0f} for an image; "
        f"{packed} crops are confirmed at once"
    )
    table = Table("plan", "pixels", "PFLOP an image", "1 GPU", "8 GPUs", "64 GPUs", "busy of 64")
    for name in ("quick", "standard"):
        settings = Settings(plan=plan(name))
        once, each, some = 0.0, 0.0, []
        for stage in stages_that_run(settings.plan, LipschitzClaim(1.0)):
            if stage.unflipped:
                continue
            pixel = stage.objective == "pixel"
            place = crop if pixel else (HEIGHT, WIDTH)
            counted = count_passes(stage, settings, channels=3, classes=CLASSES, place=place, rows=2, crops=pixel)
            cost = small if pixel else whole
            flop = (counted.forward * cost[0] + counted.backward * cost[1]) * (len(stage.eps) or 1)
            if not pixel:
                once += flop
            elif stage.pixels is None:
                each += flop
            else:
                some.append((stage.pixels, flop))
        for pixels in arguments.pixels.split(","):
            count = HEIGHT * WIDTH if pixels == "all" else int(pixels)
            confirmed = math.ceil(count / packed) * whole[0]
            flop = once + count * each + sum(min(count, most) * cost for most, cost in some) + confirmed
            seconds = flop / (arguments.tflops * 1e12) / (1.0 - arguments.outside) + arguments.judging
            generator = np.random.default_rng(0)
            images = seconds * np.clip(1.0 + SPREAD * generator.standard_normal(IMAGES), 0.3, 1.7)
            spans = [makespan(images, workers) for workers in (1, 8, 64)]
            busy = images.sum() / 64 / spans[2]
            row = name, pixels, f"{flop / 1e15:,.2f}", *(duration(span) for span in spans), f"{100 * busy:.0f} %"
            table.add_row(*row)
    table.title = f"modelled, at {arguments.tflops:g} TFLOP/s"
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
