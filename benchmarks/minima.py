"""What each part of the standard plan's first stage adds, where a pixel has several local minima.

    python benchmarks/minima.py [--subject plain] [--seeds 6 7 8 9] [--pixels 4] [--images 4] [--json FILE]

Each seed is other pixels, and of the subject plain, which has no constraints, another network. The reference of a pixel
is the smallest distance over all rows, which include the first two stages of the plan thorough. Columns: mean (share)
and least of reference over distance, rows forward and CPU milliseconds for a pixel, on one thread.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from yardstick.pixelwise import OURS, Own, run_stages
from yardstick.subjects import NAMES, subject

from attackcheck.attacks.plans import Stage, plan

FIRST = plan("standard").stages[0]


def _without(*names: str) -> Own:
    options = {name: value for name, value in FIRST.options.items() if name not in names}
    return Own("", (Stage(FIRST.attack, options=options),))


ROWS = {
    "one ray": _without("scouts", "leaps", "crossings"),
    "and scouts": _without("leaps", "crossings"),
    "and crossings": _without("leaps"),
    "crossings and leaps": _without("scouts"),
    "all: standard, first stage": _without(),
    "crossings twice as often": Own("", (Stage(FIRST.attack, options={**FIRST.options, "crossings": 6}),)),
    "thorough, first two stages": OURS["thorough, linearised"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subject", choices=NAMES, default="plain")
    parser.add_argument("--checkpoint", type=Path, help="of the subject photos")
    parser.add_argument("--data", help="of the subject photos")
    parser.add_argument("--seeds", type=int, nargs="+", default=[6, 7, 8, 9])
    parser.add_argument("--pixels", type=int, default=4, help="for each seed")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    share: dict[str, list[float]] = {name: [] for name in ROWS}
    forward, spent = dict.fromkeys(ROWS, 0.0), dict.fromkeys(ROWS, 0.0)
    for seed in arguments.seeds:
        network = subject(
            arguments.subject,
            images=arguments.images,
            pixels=arguments.pixels,
            seed=seed,
            checkpoint=arguments.checkpoint,
            data=arguments.data,
        )
        results = {name: run_stages(network, name, own) for name, own in ROWS.items()}
        distance = torch.tensor([result.distance for result in results.values()], dtype=torch.float64)
        for (name, result), row in zip(results.items(), distance.amin(0) / distance, strict=True):
            share[name] += row.tolist()
            forward[name] += result.forward / len(arguments.seeds)
            spent[name] += result.milliseconds / len(arguments.seeds)
    table = Table("attack", "pixels", "share", "least", "forward", "ms")
    for name, values in share.items():
        row = [str(len(values)), f"{sum(values) / len(values):.4f}", f"{min(values):.3f}"]
        table.add_row(name, *row, f"{forward[name]:.0f}", f"{spent[name]:.0f}")
    Console().print(table)
    if arguments.json:
        arguments.json.write_text(json.dumps({"share": share, "forward": forward, "milliseconds": spent}, indent=1))


if __name__ == "__main__":
    main()
