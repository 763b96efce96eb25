"""Runs on images from 64x64 to 1024x2048: seconds, memory, and what is spent outside the network.

    python benchmarks/scale.py [--network lipnet-xs] [--sizes 64x64,128x128,...] [--pixels 24] [--json FILE]
    python benchmarks/scale.py --variants [--network lipnet-m1] [--sizes 256x256] [--pixels 16]

A run is `attackcheck verify --plan quick` on one image, CPU seconds of one thread (wall time on a GPU). An image costs
its clean logits, checks, float64 examinations and judging, whatever is attacked; 1,000 pixels cost their attack calls.
The floor are the operations and bytes of those calls at this machine's measured peak (yardstick/floor.py). Memory is
the most that the process took beyond what it had at the start. With --variants the same attack calls are made
through channels-last, bfloat16 and compiled networks, and every point that they return is judged in float32: what
counts is how far the flips are that are left. All forms take turns; the first turn, in which `torch.compile` compiles
for every number of rows that the attack uses, is given apart, by the wall clock.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch._functorch import config as functorch

import attackcheck as ac
from attackcheck.attacks import registry
from attackcheck.attacks.objectives import PixelFlip
from attackcheck.attacks.plans import plan
from attackcheck.cones import cone_of
from attackcheck.engine import run
from attackcheck.events import Advanced, ImageStarted, RunFinished
from attackcheck.examination import SMALLEST_IMAGE
from attackcheck.memory import Meter
from attackcheck.models.networks import SIZES, build, export
from attackcheck.receptive import measure_field, windows
from attackcheck.subject import Settings, Subject
from attackcheck.verification import ArrayImages

sys.path.insert(0, str(Path(__file__).parent))  # the interpreter leaves it out when asked for safe paths

from yardstick.floor import Peak, network_passes, watch_cones

CURVE = "64x64,128x128,256x256,256x512,512x1024,1024x2048"
CLASSES = 19
TURNS = 5
"""Of each form of the network that are timed, after one to warm up."""


def network(name: str) -> nn.Module:
    """As it is drawn, with the classes of Cityscapes."""
    family, _, size = name.partition("-")
    config = replace(SIZES[family][size.upper()], classes=CLASSES)
    return export(build(config, seed=0)).eval().requires_grad_(False)


def picture(height: int, width: int) -> Tensor:
    """Coarse noise (3, H, W)."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, height // 16 + 1, width // 16 + 1, generator=generator)
    return nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0]


class Watch:
    """Seconds inside the network: forward by hooks that copies of it keep, backward by what calls it."""

    def __init__(self, device: str) -> None:
        self._device, self.inside, self._begun = device, 0.0, 0.0

    def now(self) -> float:
        if self._device.startswith("cuda"):
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def __deepcopy__(self, memo: dict[int, Any]) -> Watch:
        return self

    def on(self, model: nn.Module) -> nn.Module:
        watch_cones(self.now, self._add)
        model.register_forward_pre_hook(self._begin)
        model.register_forward_hook(self._end)
        return model

    def _add(self, seconds: float) -> None:
        self.inside += seconds

    def _begin(self, *_: Any) -> None:
        self._begun = self.now()

    def _end(self, *_: Any) -> None:
        self.inside += self.now() - self._begun

    @contextmanager
    def backward_too(self) -> Iterator[None]:
        original = torch.autograd.grad

        def grad(*arguments: Any, **options: Any) -> Any:
            start = self.now()
            result = original(*arguments, **options)
            self.inside += self.now() - start
            return result

        torch.autograd.grad = grad
        try:
            yield
        finally:
            torch.autograd.grad = original


def measured(name: str, height: int, width: int, pixels: int, device: str) -> dict[str, Any]:
    """One run."""
    watch, peak = Watch(device), Peak.measured(device)
    plain = network(name).to(device)
    picture_ = picture(height, width).to(device)
    field = measure_field(plain, picture_) if height * width >= SMALLEST_IMAGE else None
    cut = None if field is None else windows(field, height, width)
    crop = None if cut is None else (cut.height, cut.width)
    # convolutions cost the same for each pixel, so a part tells of the whole
    part_of = picture_[:, : min(height, 256), : min(width, 256)]
    times = height * width / math.prod(part_of.shape[1:])
    passes = tuple(work * times for work in network_passes(plain, part_of, many=True))
    if cut is not None and crop is not None and field is not None:
        small = picture_[:, : crop[0], : crop[1]]
        cone = cone_of(plain, small, field.stride)
        middle = [torch.full((1,), side // 2, device=device) for side in crop]
        passes = tuple(network_passes(plain if cone is None else cone.at(*middle)[0], small, many=True))
    model = watch.on(network(name))
    data = ArrayImages(picture(height, width)[None])
    settings = Settings(plan=plan("quick"), pixels=pixels, device=device, audit=False)
    attacking = inside = 0.0
    begun, calls, report = 0.0, 0.0, None
    with Meter(device) as meter, watch.backward_too():
        start = watch.now()
        for event in run(Subject(model, ac.LipschitzClaim(1.0), {}), data, settings):
            if isinstance(event, ImageStarted):
                begun, calls = watch.now(), watch.inside
            elif isinstance(event, Advanced):
                attacking, inside = watch.now() - begun, watch.inside - calls
            elif isinstance(event, RunFinished):
                report = event.report
        total = watch.now() - start
    if report is None:
        raise SystemExit("the run ended without a report")
    image, (there, back) = height * width, passes
    rows_forward = sum(attack.forward for attack in report.attacks)
    rows_backward = sum(attack.backward for attack in report.attacks)
    floor = peak.seconds((there * rows_forward + back * rows_backward) * (1.0 / max(1, report.attacked_count)))
    return {
        "network": name,
        "image": f"{height}x{width}",
        "pixels": report.attacked_count,
        "rows forward": rows_forward,
        "seconds of an image": total - attacking,
        "microseconds of a pixel of it": 1e6 * (total - attacking) / image,
        "seconds for 1,000 attacked pixels": 1e3 * attacking / max(1, report.attacked_count),
        "floor of 1,000 attacked pixels": 1e3 * floor,
        "outside the network": attacking / inside - 1.0,
        "gigabytes": (meter.bytes or 0) / 2**30,
    }


def variants(name: str, height: int, width: int, pixels: int, device: str) -> list[dict[str, Any]]:
    """The same attack through other forms of one network."""
    plain = network(name).to(device)
    image = picture(height, width).to(device)
    generator = torch.Generator().manual_seed(0)
    rows, columns = (torch.randint(side, (pixels,), generator=generator).to(device) for side in (height, width))
    with torch.no_grad():
        clean = plain(image[None])[0]
    stage = plan("quick").stages[0]
    attack = registry.get(stage.attack)
    last = network(name).to(device).to(memory_format=torch.channels_last)
    low = network(name).to(device).bfloat16()
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "float32": plain,
        "channels last": lambda x: last(x.contiguous(memory_format=torch.channels_last)),
        "bfloat16 weights": lambda x: low(x.bfloat16()).float(),
    }
    if shutil.which("g++") or device.startswith("cuda"):
        functorch.donated_buffer = False  # margins of several classes go backward through one graph
        forms["compiled"] = torch.compile(network(name).to(device))
    watch, given = Watch(device), image.expand(pixels, *image.shape).contiguous()
    begun: dict[str, float] = {}
    seconds: dict[str, list[float]] = {form: [] for form in forms}
    points: dict[str, Tensor] = {}
    for turn in range(1 + TURNS):
        for form, model in forms.items():
            start, wall = watch.now(), time.perf_counter()
            points[form] = attack.function(model, given, PixelFlip(rows, columns), **stage.options)
            if turn:
                seconds[form].append(watch.now() - start)
            else:
                begun[form] = time.perf_counter() - wall
    row = torch.arange(pixels, device=device)
    before = clean[:, rows, columns].argmax(dim=0)
    flips: dict[str, Tensor] = {}
    far: dict[str, Tensor] = {}
    for form, proposed in points.items():
        with torch.no_grad():
            there = torch.cat([plain(one[None]) for one in proposed])
        flips[form] = there[row, :, rows, columns].argmax(dim=1) != before
        far[form] = (proposed - image).flatten(1).double().norm(dim=1)
    found = []
    for form in forms:
        both = flips[form] & flips["float32"]
        apart = (far[form][both] / far["float32"][both] - 1.0).abs()
        found.append(
            {
                "network": name,
                "image": f"{height}x{width}",
                "form": form,
                "first turn": begun[form],
                "seconds": statistics.median(seconds[form]),
                "of float32": statistics.median(
                    own / alone for own, alone in zip(seconds[form], seconds["float32"], strict=True)
                ),
                "flipped in float32": int(flips[form].sum()),
                "same flips": bool((flips[form] == flips["float32"]).all()),
                "median distance of flips": float(far[form][flips[form]].median())
                if bool(flips[form].any())
                else math.inf,
                "distances apart": float(apart.max()) if len(apart) else math.nan,
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="lipnet-xs")
    parser.add_argument("--sizes", default=CURVE)
    parser.add_argument("--pixels", type=int, default=24)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--variants", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for size in arguments.sizes.split(","):
        height, width = (int(side) for side in size.split("x"))
        given = arguments.network, height, width, arguments.pixels, arguments.device
        found = variants(*given) if arguments.variants else [measured(*given)]
        rows += found
        for row in found:
            print(json.dumps(row), flush=True)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=150).print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
