"""How small an understatement of the Lipschitz constant is found, how surely, and how soon.

    python benchmarks/detection.py [--seeds 3] [--images 1] [--pixels 16] [--factors 1.02,1.03] [--markdown]

Each subject is given its constant divided by a factor. The constant of the affine models is exact; that of the shipped
networks is proved, and no smaller one is known: the factor that ascent can witness at all is in the clean run's
detection limit, printed last. One thread; CPU seconds of this machine until the first finding that is VIOLATED, the
audit of the weights left out: it would refute or prove all of these at once.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import attackcheck as ac
from attackcheck.events import Event, Finding
from attackcheck.models import exact
from attackcheck.models.datasets import load_data
from attackcheck.models.shelf import NAMES, shipped

FACTORS = (1.0001, 1.0005, 1.001, 1.003, 1.01, 1.03, 1.1, 1.36, 2.0)


def affine(seed: int) -> tuple[nn.Module, float, Tensor]:
    """One channel to every class at each pixel alone, with its exact constant."""
    model = exact.affine_pixel(seed=seed).float()
    return model, model.lipschitz_joint(8, 8), torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def convolution(seed: int) -> tuple[nn.Module, float, Tensor]:
    """An affine convolution, with its exact constant at this image size."""
    model = exact.affine_conv(seed=seed).float()
    return model, model.lipschitz_joint(8, 10), torch.rand(1, 3, 8, 10, generator=torch.Generator().manual_seed(seed))


def network(name: str, images: int) -> tuple[nn.Module, float, Tensor]:
    """A shipped network, with the constant that is proved for it."""
    subject, data = ac.load(shipped(name)), load_data(None)
    assert isinstance(subject.model, nn.Module)
    assert isinstance(subject.claim, ac.LipschitzClaim)
    return subject.model, subject.claim.lipschitz, torch.stack([data[i].image for i in range(images)])


def first_violation(
    model: nn.Module, images: Tensor, constant: float, pixels: int, seed: int
) -> tuple[str | None, float, ac.Report]:
    """Kind of the first violation (None: none was found), CPU seconds until then, and the report."""
    found: list[tuple[str, float]] = []
    start = time.process_time()

    def watch(event: Event) -> None:
        if isinstance(event, Finding) and event.violation.verdict is ac.Verdict.VIOLATED:
            found.append((event.violation.kind.name, time.process_time() - start))

    claim = ac.LipschitzClaim(constant)
    report = ac.verify(model, images, claim, pixels=pixels, seed=seed, maxfail=1, audit=False, on_event=watch)
    kind, seconds = found[0] if found else (None, time.process_time() - start)
    return kind, seconds, report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--images", type=int, default=1, help="of the shipped networks' runs")
    parser.add_argument("--pixels", type=int, default=16)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--factors", default=",".join(map(str, FACTORS)), help="constant over claim; 1 always runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    subjects = {
        "affine pixel": [affine(seed) for seed in range(arguments.seeds)],
        "affine convolution": [convolution(seed) for seed in range(arguments.seeds)],
        **{name: [network(name, arguments.images)] * arguments.seeds for name in NAMES},
    }
    rows: list[list[str]] = []
    for name, made in subjects.items():
        for factor in (1.0, *map(float, arguments.factors.split(","))):
            results = [
                first_violation(model, images, constant / factor, arguments.pixels, seed)
                for seed, (model, constant, images) in enumerate(made)
            ]
            kinds = Counter(kind for kind, _, _ in results if kind is not None)
            limit = "" if factor > 1.0 else f"{max(report.limit.least for _, _, report in results):.5f}"
            row = [
                name,
                f"{factor:g}",
                f"{kinds.total()}/{len(results)}",
                ", ".join(f"{kind} {count}" for kind, count in kinds.most_common()),
                f"{median(seconds for _, seconds, _ in results):.1f}",
                limit,
            ]
            rows.append(row)
            print(*row, sep="\t", flush=True)
    heads = ["subject", "constant / claim", "found", "first seen as", "seconds", "detection limit"]
    if arguments.markdown:
        print("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
        print("\n".join("| " + " | ".join(row) + " |" for row in rows))
        return
    table = Table(*heads)
    for row in rows:
        table.add_row(*row)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
