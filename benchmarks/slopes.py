"""How near attacks on a Lipschitz constant come to it, against restarts of plain gradient ascent in the same time.

    python benchmarks/slopes.py [--nets 6] [--json FILE]

Subjects: random fully connected networks small enough to know their constant (every linear piece that a ball of radius
1e-6 fits in is enumerated), an affine map (spectral norm), and the shipped networks (the constant they claim, an upper
bound). Ascent climbs the logarithm of the ratio at both ends of a pair by normalised steps, from random pairs, until it
has spent the time that `pairs` took. Ratio over the constant, mean and least over the subjects, in float64. One thread.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import attackcheck as ac
from attackcheck.arithmetic import frozen
from attackcheck.attacks import lipschitz_ascent, lipschitz_pairs
from attackcheck.models import exact
from attackcheck.models.datasets import load_data
from attackcheck.models.shelf import NAMES, shipped

Model = Callable[[Tensor], Tensor]


def slopes(model: Model, pairs: Tensor) -> float:
    """The largest ratio of pairs (B, 2, C, H, W)."""
    with torch.no_grad():
        change = (model(pairs[:, 1]) - model(pairs[:, 0])).double().flatten(1).norm(dim=1)
    return float((change / (pairs[:, 1] - pairs[:, 0]).double().flatten(1).norm(dim=1)).max())


def ascent(model: Model, image: Tensor, seconds: float, steps: int = 40) -> float:
    """Plain gradient ascent on both ends of random pairs, restarted until the time is spent."""
    generator, best, restart = torch.Generator().manual_seed(0), 0.0, 0
    start = time.process_time()
    while not restart or time.process_time() - start < seconds:
        scale = (0.1, 1.0, 10.0)[restart % 3]
        noise = torch.randn((2, *image.shape), generator=generator, dtype=torch.float64).to(image)
        pair = image + scale * noise / noise.flatten(1).norm(dim=1)[:, None, None, None]
        for step in range(steps):
            pair.requires_grad_()
            logits = model(pair)
            change = (logits[1] - logits[0]).norm()
            ratio = change / (pair[1] - pair[0]).norm()
            (gradient,) = torch.autograd.grad(ratio.log(), pair)
            best = max(best, float(ratio.detach()))
            size = 0.5 * scale * (1 - step / steps)
            pair = (pair + size * gradient / gradient.norm().clamp_min(1e-300)).detach()
        restart += 1
    return best


def small_networks(count: int) -> list[tuple[str, Model, Tensor, float]]:
    """The enumerated networks of the tests, by kind."""
    path = Path(__file__).parent.parent / "tests" / "attacks" / "test_pairs.py"
    spec = importlib.util.spec_from_file_location("test_pairs", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"expected the enumeration in {path}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = []
    for activation, widths in (
        ("relu", (4, 6, 3)),
        ("relu", (3, 4, 4, 3)),
        ("maxmin", (3, 6, 6, 3)),
        ("maxmin", (4, 4, 4, 4, 3)),
    ):
        for seed in range(count):
            model = module.Small(widths, activation, seed)
            image = module.picture(seed, widths[0], 1)
            found.append((f"{activation} {'-'.join(map(str, widths))}", model, image, model.supremum()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", type=int, default=6, help="small networks of each kind")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    subjects = small_networks(arguments.nets)
    affine = exact.affine_conv(classes=7, kernel=5)
    subjects.append(("affine", affine, torch.rand((3, 8, 8), dtype=torch.float64), affine.lipschitz_joint(8, 8)))
    for name in NAMES:
        shipped_one = ac.load(shipped(name))
        model = frozen(shipped_one.model).double()
        subjects.append((name, model, load_data(None)[0].image.double(), shipped_one.claim.lipschitz))
    rows: dict[str, dict[str, list[float]]] = {}
    for kind, model, image, truth in subjects:
        row = rows.setdefault(kind, {"ascent of one point": [], "pairs": [], "gradient ascent": [], "seconds": []})
        starts = 1 if image.numel() > 1000 else 32
        found = lipschitz_ascent(model, image[None])
        row["ascent of one point"].append(slopes(model, torch.stack([image[None], found], 1)) / truth)
        start = time.process_time()
        row["pairs"].append(slopes(model, lipschitz_pairs(model, image[None], starts=starts)) / truth)
        spent = time.process_time() - start
        row["gradient ascent"].append(ascent(model, image, spent) / truth)
        row["seconds"].append(spent)
    table = Table("subject", "ascent of one point", "pairs", "gradient ascent", "seconds")
    for kind, row in rows.items():
        cells = [f"{sum(v) / len(v):.3f}, {min(v):.3f}" for key, v in row.items() if key != "seconds"]
        table.add_row(kind, *cells, f"{sum(row['seconds']) / len(row['seconds']):.2f}")
    Console(width=110).print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
