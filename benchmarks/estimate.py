"""What `attackcheck verify --estimate` predicts against what runs take, on settings that it was not tuned on.

    python benchmarks/estimate.py [--only NAME,...] [--json FILE]

Every line is a run and the estimate that was made before it, in CPU seconds of one thread, so that other work on the
machine counts for neither. Networks that ship, a larger one as it is drawn, and small ones; other plans, numbers of
pixels, image sizes and options than each other. Nothing here was fitted to any of them (see docs/scale.md).
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import attackcheck as ac
from attackcheck.attacks.plans import plan, plan_of_attacks
from attackcheck.engine import run
from attackcheck.errors import InputError
from attackcheck.estimating import estimate
from attackcheck.events import RunFinished
from attackcheck.models.datasets import load_data
from attackcheck.models.networks import SIZES, build, export
from attackcheck.models.shelf import shipped
from attackcheck.regions import RegionRequest
from attackcheck.subject import Settings, Subject
from attackcheck.verification import ArrayImages


@dataclass(frozen=True)
class Setting:
    """One run."""

    name: str
    network: str
    size: tuple[int, int]
    images: int
    plan: str
    pixels: int
    options: dict[str, Any] = field(default_factory=dict)


WARM = Setting("to warm up", "field-13", (64, 72), 1, "linearised,ddn", 4)
HELD_OUT = (
    Setting("standard", "isounet-xs", (64, 128), 1, "standard", 32),
    Setting("few pixels", "isounet-xs", (64, 128), 2, "standard", 6),
    Setting("quick", "isounet-xs", (64, 128), 3, "quick", 100),
    Setting("another network", "lipnet-xs", (64, 128), 1, "standard", 16),
    Setting("larger images", "lipnet-xs", (128, 256), 1, "standard", 8),
    Setting("crops", "field-13", (192, 256), 2, "quick", 256),
    Setting("crops and more attacks", "field-13", (256, 256), 1, "linearised,ddn", 200),
    Setting("one attack", "isounet-xs", (64, 128), 1, "cw", 16),
    Setting("a target in a box", "isounet-xs", (64, 128), 1, "linearised,ddn", 24, {"target": 2, "box": (0.0, 1.0)}),
    Setting("whole images", "field-13", (96, 128), 1, "quick", 48, {"crops": False}),
    Setting("images and regions", "isounet-xs", (64, 128), 1, "cutting,guided,pgd", 8),
    Setting("larger network", "lipnet-m1", (128, 128), 1, "quick", 8),
    Setting("image attacks", "lipnet-m1", (128, 256), 1, "guided", 1),
    Setting("an eighth of full size", "lipnet-m1", (512, 512), 1, "quick", 8),
)


def local(width: int = 16) -> nn.Module:
    """Four convolutions: a pixel sees 6 pixels in every direction."""
    generator = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    channels = 3
    for dilation in (1, 2, 3):
        layers += [nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation), nn.ReLU()]
        channels = width
    layers.append(nn.Conv2d(channels, 7, 1))
    network = nn.Sequential(*layers)
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.15, generator=generator)
    return network.eval().requires_grad_(False)


def network(name: str) -> nn.Module:
    """As it ships, or as it is drawn."""
    if name == "field-13":
        return local()
    if name == "lipnet-m1":
        return export(build(replace(SIZES["lipnet"]["M1"], classes=19), seed=0)).eval().requires_grad_(False)
    loaded = ac.load(shipped(name)).model
    if not isinstance(loaded, nn.Module):
        raise SystemExit(f"{name} is no module")
    return loaded


def pictures(size: tuple[int, int], count: int) -> Tensor:
    """The images that ship, or as coarse noise where another size is asked for."""
    if size == (64, 128):
        data = load_data(None)
        return torch.stack([data[index].image for index in range(count)])
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, size[0] // 16 + 1, size[1] // 16 + 1, generator=generator)
    return nn.functional.interpolate(coarse, size=size, mode="bilinear")


def compare(setting: Setting) -> dict[str, Any]:
    """One line of the table."""
    try:
        attacks = plan(setting.plan)
    except InputError:
        attacks = plan_of_attacks(setting.plan.split(","))
    settings = Settings(
        plan=attacks, pixels=setting.pixels, regions=[RegionRequest("components", "1")], **setting.options
    )
    model = network(setting.network)
    # a constant that nothing breaks: violations take judging that no estimate foresees
    subject = Subject(model, ac.LipschitzClaim(30.0 if setting.network == "field-13" else 1.0), {})
    data = ArrayImages(pictures(setting.size, setting.images))
    before = estimate(subject, data, settings, clock=time.process_time)
    start = time.process_time()
    report = None
    for event in run(subject, data, settings):
        if isinstance(event, RunFinished):
            report = event.report
    taken = time.process_time() - start
    if report is None:
        raise SystemExit("the run ended without a report")
    forward = sum(attack.forward for attack in report.attacks)
    return {
        "setting": setting.name,
        "network": setting.network,
        "image": f"{setting.size[0]}x{setting.size[1]}",
        "images": setting.images,
        "plan": setting.plan,
        "pixels": setting.pixels,
        "measured seconds": taken,
        "predicted seconds": before.seconds,
        "off": before.seconds / taken - 1.0,
        "forward passes": forward,
        "forward passes off": before.forward / max(1, forward) - 1.0,
        "estimate took": before.calibration,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names of settings, with commas")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    wanted = None if arguments.only is None else [name.strip() for name in arguments.only.split(",")]
    table = Table(
        "setting", "network", "image", "n", "plan", "px", "measured s", "predicted s", "off", "passes", "took"
    )
    rows = []
    compare(WARM)  # what is imported at first use is paid by whoever comes first
    for setting in HELD_OUT:
        if wanted is not None and setting.name not in wanted:
            continue
        row = compare(setting)
        rows.append(row)
        table.add_row(
            row["setting"], row["network"], row["image"], str(row["images"]), row["plan"], str(row["pixels"]),
            f"{row['measured seconds']:.2f}", f"{row['predicted seconds']:.2f}", f"{100 * row['off']:+.0f} %",
            f"{100 * row['forward passes off']:+.0f} %", f"{row['estimate took']:.1f} s",
        )  # fmt: skip
        print(json.dumps(row), flush=True)
    Console(width=130).print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
