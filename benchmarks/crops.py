"""Pixels attacked as crops of their receptive field, against one whole image for each pixel.

    python benchmarks/crops.py [--network field-61] [--height 1024] [--width 2048] [--pixels 256] [--json FILE]

Both sides run the same attack (linearised as in the plan quick) on the same network through the same probes, after a
call that warms up; one thread, CPU time. Crops pay for being confirmed on the whole image. On crops the network is
computed around each pixel only, as in a run; what that saves is shown by crops that are computed as a whole.
`field-61` is a stack of dilated orthogonal convolutions at full resolution whose field is 61 pixels wide, with stride
1; the others ship.
Beyond the network is what is neither a forward nor a backward pass of it: the attack's arithmetic and the recording.
Memory is the largest resident size of the process so far.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import attackcheck as ac
from attackcheck.arithmetic import frozen
from attackcheck.attacking import CROP_ROWS, ROW_PIXELS
from attackcheck.attacks import registry
from attackcheck.attacks.objectives import PixelFlip
from attackcheck.attacks.plans import plan
from attackcheck.cones import Cone, cone_of
from attackcheck.crop_probe import CropProbe
from attackcheck.crops import Crops
from attackcheck.models.layers import MaxMin, OrthogonalConv2d
from attackcheck.models.shelf import NAMES, shipped
from attackcheck.probe import Probe
from attackcheck.receptive import agrees, measure_field, windows

sys.path.insert(0, str(Path(__file__).parent))  # the interpreter leaves it out when asked for safe paths

from yardstick.floor import Peak, network_passes, watch_cones

STAGE = plan("quick").stages[0]
CLAIM = ac.LipschitzClaim(1.0)


def field_61(width: int = 16) -> nn.Module:
    """Dilations 1, 2, 4, 8 and 15: a pixel sees 30 pixels in every direction."""
    generator, channels, layers = torch.Generator().manual_seed(0), 3, []
    for dilation in (1, 2, 4, 8, 15):
        layer = OrthogonalConv2d(channels, width, 3, dilation=dilation, generator=generator)
        weight, bias = layer.freeze()
        plain = nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation)
        plain.load_state_dict({"weight": weight, "bias": bias})
        layers += [plain, MaxMin()]
        channels = width
    last = nn.Conv2d(channels, 7, 1)
    nn.init.orthogonal_(last.weight, generator=generator)
    return nn.Sequential(*layers, last).eval().requires_grad_(False)


class Watch:
    """The model, and the CPU time spent in its forward and backward passes, those around a pixel included."""

    def __init__(self, model: Callable[[Tensor], Tensor]) -> None:
        self._model, self.inside = model, 0.0
        watch_cones(time.process_time, self._add)

    def _add(self, seconds: float) -> None:
        self.inside += seconds

    def __call__(self, images: Tensor) -> Tensor:
        start = time.process_time()
        logits = self._model(images)
        self.inside += time.process_time() - start
        return logits

    def timed(self, work: Callable[[], object]) -> tuple[float, float]:
        """CPU seconds of some work, and the share of it beyond the network, relative to the network's own."""
        original = torch.autograd.grad

        def grad(*arguments: Any, **options: Any) -> Any:
            start = time.process_time()
            result = original(*arguments, **options)
            self.inside += time.process_time() - start
            return result

        self.inside, start = 0.0, time.process_time()
        torch.autograd.grad = grad
        try:
            work()
        finally:
            torch.autograd.grad = original
        total = time.process_time() - start
        return total, total / self.inside - 1.0


def attack(model: Callable[[Tensor], Tensor], images: Tensor, objective: PixelFlip) -> None:
    registry.get(STAGE.attack).function(model, images, objective, **STAGE.options)


def memory() -> float:
    """Gigabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=("field-61", *NAMES), default="field-61")
    parser.add_argument("--height", type=int, default=1024)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--pixels", type=int, default=256)
    parser.add_argument("--whole", type=int, default=2, help="pixels attacked on whole images, all in one call")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    network = field_61() if arguments.network == "field-61" else frozen(ac.load(shipped(arguments.network)).model)
    model, size = Watch(network), (arguments.height, arguments.width)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, size[0] // 16 + 1, size[1] // 16 + 1, generator=generator)
    image = nn.functional.interpolate(coarse, size=size, mode="bilinear")[0]
    image = (image + 0.05 * torch.randn(image.shape, generator=generator)).clamp(0, 1)
    with torch.no_grad():
        logits = model(image[None])
    radius = CLAIM.radii(image[None], logits, None)[0]

    measured, _ = model.timed(lambda: measure_field(model, image))
    field = measure_field(model, image)
    cut = None if field is None else windows(field, *size)
    if field is None or cut is None:
        raise SystemExit("the receptive field is too large for crops at this size")
    cone = cone_of(network, image[:, : cut.height, : cut.width], field.stride)
    if cone is None:
        raise SystemExit("this network cannot be computed around a pixel")
    tolerance = 1e-4 * logits[0].abs().flatten(1).amax(dim=1)
    same: list[bool] = []
    checked, _ = model.timed(
        lambda: same.append(agrees(model, image, logits[0], cut, tolerance=tolerance, scale=0.1, seed=0, at=cone.at))
    )
    rows, columns = (torch.randint(side, (arguments.pixels,), generator=generator) for side in size)
    crop, whole = cut.height * cut.width, size[0] * size[1]
    per_pass = max(1, ROW_PIXELS["cpu"] // crop, min(CROP_ROWS, whole // crop))

    def on_crops(count: int, confirm: bool, around: Cone | None = cone) -> None:
        probe = Probe(model, image, logits[0], radius, CLAIM)
        crops = Crops(probe, cut, tolerance, around)
        probe.aim(rows[:count], columns[:count], cut)
        with probe.attributed("linearised"):
            for part in torch.arange(count).split(per_pass):
                own = CropProbe(crops, probe, rows[part], columns[part])
                attack(own, own.clean, PixelFlip(own.inner_rows, own.inner_columns))
                own.commit()
        if confirm and not crops.confirm():
            raise SystemExit("crops do not show what the whole image does")

    def on_whole_images(count: int) -> None:
        probe = Probe(model, image, logits[0], radius, CLAIM)
        probe.aim(rows[:count], columns[:count])
        with probe.attributed("linearised"):
            attack(probe, image.expand(count, *image.shape).contiguous(), PixelFlip(rows[:count], columns[:count]))

    on_crops(8, confirm=True)
    all_of_crops, _ = model.timed(lambda: on_crops(arguments.pixels, confirm=False, around=None))
    attacked, beyond = model.timed(lambda: on_crops(arguments.pixels, confirm=False))
    confirmed, _ = model.timed(lambda: on_crops(arguments.pixels, confirm=True))
    crop_memory = memory()
    with torch.no_grad():
        model(image[None])
    single, whole_beyond = model.timed(lambda: on_whole_images(arguments.whole))
    whole_memory = memory()

    peak, here = Peak.measured(), (rows[0], columns[0])
    middle = [torch.tensor([side // 2]) for side in (cut.height, cut.width)]
    there, back = network_passes(cone.at(*middle)[0], cut.cut(image, here[0][None], here[1][None])[0], many=True)
    counted = Probe(model, image, logits[0], radius, CLAIM)
    own = CropProbe(Crops(counted, cut, tolerance, cone), counted, rows[:2], columns[:2])
    with counted.attributed("linearised"):
        attack(own, own.clean, PixelFlip(own.inner_rows, own.inner_columns))
    spent = counted.evidence.costs[0]
    floor = peak.seconds(there * (spent.forward / 2) + back * (spent.backward / 2))
    figures = {
        "network": arguments.network,
        "image": f"{size[0]}x{size[1]}",
        "field": f"{field.size[0]}x{field.size[1]}, stride {field.stride}",
        "crop": f"{cut.height}x{cut.width}",
        "crops agree with the whole image": same[0],
        "work around a pixel, of a crop's": cone.share,
        "pixels per pass": min(per_pass, arguments.pixels),
        "megabytes of crops per pass": per_pass * 12 * crop / 2**20,
        "seconds to measure the field": measured,
        "seconds to check an image": checked,
        "floor of a pixel in ms, crops": 1e3 * floor,
        "ms per pixel, crops": 1e3 * attacked / arguments.pixels,
        "ms per pixel, all of crops": 1e3 * all_of_crops / arguments.pixels,
        "ms per pixel, crops and confirmation": 1e3 * confirmed / arguments.pixels,
        "ms per pixel, whole images": 1e3 * single / arguments.whole,
        "times faster": (single / arguments.whole) / (confirmed / arguments.pixels),
        "beyond the network, crops": beyond,
        "beyond the network, whole images": whole_beyond,
        "gigabytes, crops": crop_memory,
        "gigabytes, whole images": whole_memory,
    }
    table = Table("what", "value", title="pixels attacked as crops")
    for name, value in figures.items():
        text = (
            f"{100 * value:.1f} %" if name.startswith("beyond") else f"{value:.4g}" if type(value) is float else value
        )
        table.add_row(name, str(text))
    Console(width=100).print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
