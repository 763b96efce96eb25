"""How far each attack's flip distances are from the best that any of them finds, on a shipped network.

    python benchmarks/strength.py [--network isounet-xs] [--images 3] [--pixels 8] [--json FILE]

All attacks see the same pixels through the same probe. The reference of a pixel is the smallest distance over all rows,
which include a slow one (three rays, 40 turns) and DDN with 120 steps. One thread; milliseconds are of this machine.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import attackcheck as ac
from attackcheck.attacks.plans import Plan, Stage, plan
from attackcheck.models.datasets import load_data
from attackcheck.models.shelf import NAMES, shipped

ROWS = {
    "linearised, slow": Stage("linearised", options={"rays": 3, "iterations": 40}),
    "ddn, 120 steps": Stage("ddn", options={"steps": 120}),
    "linearised (standard)": plan("standard").stages[0],
    "linearised (quick)": plan("quick").stages[0],
    "linearised, one ray": Stage("linearised", options={"rays": 1, "iterations": 0}),
    "ddn, 40 steps": Stage("ddn", options={"steps": 40}),
    "cw (standard)": next(stage for stage in plan("standard").stages if stage.attack == "cw"),
    "foolbox.ddn": Stage("foolbox.ddn"),
    "foolbox.deepfool": Stage("foolbox.deepfool"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NAMES, default=NAMES[0])
    parser.add_argument("--images", type=int, default=3)
    parser.add_argument("--pixels", type=int, default=8)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    subject = ac.load(shipped(arguments.network))
    data = load_data(None)
    images = torch.stack([data[i].image for i in range(arguments.images)])
    distances, costs = {}, {}
    for name, stage in ROWS.items():
        alone = Stage(stage.attack, options=stage.options, loss=stage.loss)
        report = ac.verify(subject.model, images, subject.claim, plan=Plan(name, (alone,)), pixels=arguments.pixels)
        distances[name] = report.flip_distance[report.attacked]
        costs[name] = report.attacks[0]
    best = np.stack(list(distances.values())).min(axis=0)
    table = Table(
        "attack",
        "flipped",
        "median",
        "mean",
        "forward",
        "backward",
        "ms",
        title=f"{arguments.network}: distance / best",
    )
    rows = []
    for name, distance in distances.items():
        count, found = len(distance), np.isfinite(distance)
        ratio = (distance / best)[found]
        cost = costs[name]
        row = {
            "attack": name,
            "flipped": f"{int(found.sum())}/{count}",
            "median": float(np.median(ratio)),
            "mean": float(ratio.mean()),
            "forward": cost.forward / count,
            "backward": cost.backward / count,
            "ms": 1e3 * cost.seconds / count,
        }
        rows.append(row)
        numbers = [
            f"{row['median']:.4f}",
            f"{row['mean']:.4f}",
            f"{row['forward']:.0f}",
            f"{row['backward']:.0f}",
            f"{row['ms']:.0f}",
        ]
        table.add_row(name, row["flipped"], *numbers)
    Console(width=100).print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
