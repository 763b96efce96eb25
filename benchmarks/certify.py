"""Time of certification against the network's own forward pass, on one image.

    python benchmarks/certify.py [--network isounet-xs] [--size 1024x1024] [--device cpu] [--repeats 7] [--json FILE]
                                 [--untrained M1]

Certification is all that `attackcheck certify` computes from an image's logits: flip costs, sorting, and at every eps
the worst case of accuracy, stability, false-negative rates and IoUs, joint and per pixel. Rows below it add what is not
always wanted, and the refined certificate, which starts from the logits and from the values that the network sorted
last. `--untrained` takes a LipNet of that size as it is initialised: costs do not depend on what a network has learnt.
Forward pass and certification take turns on the same logits in one run, warmed up and synchronised;
seconds are of this process (wall clock on a GPU), ratios are medians over the turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import attackcheck as ac
from attackcheck.certifier import EPSILONS
from attackcheck.measures import FlipCosts, bounds, dataset
from attackcheck.measures.shared import Weights, most_lost
from attackcheck.models.datasets import load_data
from attackcheck.models.networks import SIZES, build, export
from attackcheck.models.shelf import NAMES, shipped
from attackcheck.refined import refine
from attackcheck.refined.tail import sorted_values

sys.path.insert(0, str(Path(__file__).parent))  # the interpreter leaves it out when asked for safe paths

from yardstick.floor import Peak, certification, network_passes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NAMES, default=NAMES[0])
    parser.add_argument("--untrained", choices=tuple(SIZES["lipnet"]), metavar="SIZE", help="M1: instead of ours")
    parser.add_argument("--size", default="1024x1024")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = arguments.device
    if arguments.untrained:
        network, name = export(build(SIZES["lipnet"][arguments.untrained], seed=0)), f"lipnet-{arguments.untrained}"
        claim = ac.LipschitzClaim(network.constants().joint)
    else:
        subject, name = ac.load(shipped(arguments.network)), arguments.network
        network, claim = subject.model, subject.claim
    model = network.to(device).eval()
    sample = load_data(f"scenes:1:3:{arguments.size}")[0]
    assert sample.labels is not None
    image, labels = sample.image[None].to(device), sample.labels.to(device)
    with torch.no_grad(), sorted_values(model) as kept:
        logits = model(image)[0]
    values = kept[-1][0]
    certificate = refine(model, tuple(image.shape[1:]))
    eps = torch.tensor(EPSILONS, dtype=torch.float64)
    costs = FlipCosts(claim, logits)
    counts = bounds(costs, labels, 255, eps).clean
    weights = Weights(
        torch.from_numpy(counts.intersection),
        torch.from_numpy(counts.union),
        torch.from_numpy(np.asarray(dataset.counted_classes([counts]))),
    )

    def forward() -> object:
        with torch.no_grad():
            return model(image)

    def certify(count: int) -> Callable[[], object]:
        budgets = eps[-count:] if count > 1 else eps[5:6]
        return lambda: bounds(FlipCosts(claim, logits), labels, 255, budgets, smallest=False, islands=False)

    def refined(**options: bool) -> object:
        return bounds(certificate.costs(image[0], logits, values=values), labels, 255, eps, **options)

    def everything() -> object:
        again = FlipCosts(claim, logits)
        found = bounds(again, labels, 255, eps)
        return found, most_lost(again, flat, flat != 255, weights, eps)

    flat = labels.flatten()
    finer = certificate.costs(image[0], logits, values=values)
    works: dict[str, Callable[[], object]] = {
        "certification at one eps": certify(1),
        f"certification at {len(eps)} eps": certify(len(eps)),
        "with components": lambda: bounds(FlipCosts(claim, logits), labels, 255, eps, smallest=False),
        "with components and smallest eps": lambda: bounds(FlipCosts(claim, logits), labels, 255, eps),
        "mean IoU on one budget, alone": lambda: most_lost(costs, flat, flat != 255, weights, eps),
        "all of this together": everything,
        "refined costs": lambda: certificate.costs(image[0], logits, values=values),
        "refined certification at 13 eps": lambda: refined(smallest=False, islands=False),
        "refined, with components and smallest eps": lambda: refined(),
        "mean IoU on one budget, refined, alone": lambda: most_lost(finer, flat, flat != 255, weights, eps),
    }
    peak = Peak.measured(device)
    least = {"forward": 1e3 * peak.seconds(network_passes(model, image[0])[0])}
    least["certification"] = 1e3 * peak.seconds(certification(logits))
    table = Table("work", "ms", "over forward", "floor ms", title=f"{name}, {arguments.size}, {device}, {peak}")
    rows = []
    for work in (forward, *works.values()):
        work()
    turns = [
        (_seconds(forward, device), {title: _seconds(work, device) for title, work in works.items()})
        for _ in range(arguments.repeats)
    ]
    for title in works:
        row = {
            "work": title,
            "forward_ms": 1e3 * statistics.median(alone for alone, _ in turns),
            "ms": 1e3 * statistics.median(seconds[title] for _, seconds in turns),
            "ratio": statistics.median(seconds[title] / alone for alone, seconds in turns),
        }
        rows.append(row)
        table.add_row(title, f"{row['ms']:.0f}", f"{row['ratio']:.2f}", f"{least['certification']:.1f}")
    table.add_row("forward pass", f"{rows[0]['forward_ms']:.0f}", "1.00", f"{least['forward']:.1f}")
    Console(width=100).print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


def _seconds(work: Callable[[], object], device: str) -> float:
    if device == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
