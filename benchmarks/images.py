"""Whole images at a fixed budget: accuracy and unchanged pixels under attack, beside the joint certificate.

    python benchmarks/images.py [--network isounet-xs | --network affine] [--images 4] [--steps 15] [--json FILE]

Every attack has the same number of forward passes. The row `certificate` is what no attack can go below: the pixels
left when the cheapest margins m, as many as have a sum of m^2 / 2 of at most (L eps)^2, are taken away. `affine` is one
random 3x3 convolution, labelled by its own prediction. One thread; CPU milliseconds per image.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import attackcheck as ac
from attackcheck.arithmetic import frozen
from attackcheck.attacks import ImageFlip, guided, pgd
from attackcheck.attacks.objectives import LOSSES
from attackcheck.claims import margins
from attackcheck.models import exact
from attackcheck.models.datasets import load_data
from attackcheck.models.shelf import NAMES, shipped

EPSILONS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)


def subject_of(name: str, count: int) -> tuple[torch.nn.Module, float, Tensor, Tensor]:
    """Model, joint Lipschitz constant, images and labels."""
    data = load_data(None)
    images = torch.stack([data[i].image for i in range(count)])
    if name != "affine":
        subject = ac.load(shipped(name))
        return (
            frozen(subject.model),
            subject.claim.lipschitz,
            images,
            torch.stack([data[i].labels for i in range(count)]),
        )
    images = images[:, :, ::2, ::2].contiguous()
    model = exact.affine_conv(classes=7).float()
    # the kernel's symbol bounds the norm at any size; a grid of 64 misses at most 1 / cos^2(pi / 64) of its maximum
    symbol = torch.fft.fft2(exact.affine_conv(classes=7).weight, s=(64, 64)).permute(2, 3, 0, 1)
    norm = float(torch.linalg.matrix_norm(symbol, 2).max()) / math.cos(math.pi / 64) ** 2
    return model, norm, images, model(images).argmax(1)


def measure(name: str, count: int, steps: int) -> list[dict[str, object]]:
    """One row of numbers for each budget and attack."""
    model, lipschitz, images, labels = subject_of(name, count)
    with torch.no_grad():
        logits = model(images)
    clean, valid = logits.argmax(1), labels < logits.shape[1]
    cost = (margins(logits).square() / 2).flatten(1).sort(dim=1).values.cumsum(1)
    rows: list[dict[str, object]] = []
    for eps in EPSILONS:
        lost = float((cost <= (lipschitz * eps) ** 2).double().mean())
        rows.append({"eps": eps, "attack": "certificate", "accuracy": None, "unchanged": 1 - lost})
        for attack in ("guided", *LOSSES):
            seen = 0

            def counted(x: Tensor) -> Tensor:
                nonlocal seen
                seen += len(x)
                return model(x)

            start = time.process_time()
            if attack == "guided":
                found = guided(counted, images, ImageFlip(), eps=eps, steps=steps)
            else:
                found = pgd(counted, images, ImageFlip(loss=attack), eps=eps, steps=steps)
            spent = time.process_time() - start
            with torch.no_grad():
                predicted = model(found).argmax(1)
            rows.append(
                {
                    "eps": eps,
                    "attack": attack if attack == "guided" else f"pgd, {attack}",
                    "accuracy": float((predicted == labels)[valid].double().mean()),
                    "unchanged": float((predicted == clean).double().mean()),
                    "passes": seen / count,
                    "milliseconds": 1e3 * spent / count,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=(*NAMES, "affine"), default=NAMES[0])
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(arguments.network, arguments.images, arguments.steps)
    table = Table("eps", "attack", "accuracy", "unchanged", "passes", "ms", title=arguments.network)
    for row in rows:
        numbers = [
            f"{100 * value:.2f} %" if isinstance(value, float) else "-" for value in (row["accuracy"], row["unchanged"])
        ]
        table.add_row(
            f"{row['eps']:g}",
            str(row["attack"]),
            *numbers,
            *(f"{row.get(key, 0):.0f}" for key in ("passes", "milliseconds")),
        )
    Console(width=110).print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
