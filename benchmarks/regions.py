"""How short the perturbations are that flip whole regions of a shipped network, beside their joint distance.

    python benchmarks/regions.py [--network isounet-xs] [--images 4] [--regions 4] [--fraction 1] [--json FILE]

All attacks see the same connected components of the prediction; a distance counts if float32 shows the flips.
Columns: regions flipped, distance over the shortest that any row found (median, mean), joint distance over distance
(tightness, mean), regions where no other row is shorter, CPU milliseconds per region. One thread.
adv-lib's attacks on the same kind of regions are in peers.py.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import attackcheck as ac
from attackcheck.arithmetic import frozen
from attackcheck.attacks import RegionFlip, registry
from attackcheck.models.datasets import load_data
from attackcheck.models.shelf import NAMES, shipped
from attackcheck.regions import RegionRequest

ROWS: dict[str, tuple[str, dict[str, object]]] = {
    "cutting, 6 steps (quick)": ("cutting", {"steps": 6, "planes": 6, "refine": 3}),
    "cutting, 12 steps": ("cutting", {"steps": 12, "planes": 12}),
    "cutting (standard)": ("cutting", {}),
    "cutting, 4 aims, 60 steps": ("cutting", {"steps": 60, "planes": 60, "classes": 4}),
    "linearised (unit steps)": ("linearised", {}),
    "linearised, 4 aims, 80 steps": ("linearised", {"rays": 4, "descent": 80}),
    "ddn, 40 steps": ("ddn", {"steps": 40}),
    "ddn, 200 steps": ("ddn", {"steps": 200}),
    "cw, 5 x 50 steps": ("cw", {"steps": 50, "searches": 5}),
}


def measure(network: str, images: int, regions: int, fraction: float) -> list[dict[str, object]]:
    """One row of numbers for each attack."""
    subject, data = ac.load(shipped(network)), load_data(None)
    model = frozen(subject.model)
    distances: dict[str, list[float]] = {name: [] for name in ROWS}
    spent = dict.fromkeys(ROWS, 0.0)
    joint: list[float] = []
    for index in range(images):
        image: Tensor = data[index].image[None]
        with torch.no_grad():
            logits = model(image)
        radius = subject.claim.radii(image, logits, index)[0]
        for region in RegionRequest("components", str(regions), fraction).resolve(logits[0].argmax(0), radius):
            weakest = radius[region.mask].sort().values[: math.ceil(fraction * int(region.mask.sum()) * (1 - 1e-9))]
            joint.append((subject.claim.joint_factor or 0.0) * float(weakest.norm()))
            objective = RegionFlip(region.mask, None, fraction)
            for name, (attack, options) in ROWS.items():
                start = time.process_time()
                found = registry.get(attack).function(model, image, objective, **options)
                spent[name] += time.process_time() - start
                with torch.no_grad():
                    flipped = bool(objective.bind(logits)(model(found)).success[0])
                distances[name].append(float((found - image).double().norm()) if flipped else math.inf)
    best = np.array(list(distances.values())).min(axis=0)
    rows: list[dict[str, object]] = []
    for name, values in distances.items():
        distance = np.array(values)
        found = np.isfinite(distance)
        rows.append(
            {
                "attack": name,
                "flipped": f"{found.sum()}/{len(distance)}",
                "median": float(np.median((distance / best)[found])),
                "mean": float((distance / best)[found].mean()),
                "tightness": float((np.array(joint) / distance).mean()),
                "shortest": int((distance <= best * (1 + 1e-6)).sum()),
                "milliseconds": 1e3 * spent[name] / len(distance),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NAMES, default=NAMES[0])
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--regions", type=int, default=4, help="per image, weakest joint certificate first")
    parser.add_argument("--fraction", type=float, default=1.0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(arguments.network, arguments.images, arguments.regions, arguments.fraction)
    table = Table(*rows[0], title=f"{arguments.network}: {100 * arguments.fraction:g} % of each region to flip")
    for row in rows:
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=110).print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
