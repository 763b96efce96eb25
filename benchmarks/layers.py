"""Our orthogonal convolutions against orthogonium's: time of a training step, and how orthogonal they are.

    pip install 'attackcheck[deel]'; python benchmarks/layers.py [--json FILE]

Both sides run the same shapes on the same batch, warmed up, one thread, forward and backward through inputs and
parameters; the ratio is theirs over ours, the median over pairs that take turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from attackcheck.models.layers import conv

SHAPES = {
    "1x1, 32 to 32": {"inputs": 32, "outputs": 32, "kernel": 1, "stride": 1},
    "3x3, 16 to 16": {"inputs": 16, "outputs": 16, "kernel": 3, "stride": 1},
    "3x3, 64 to 64": {"inputs": 64, "outputs": 64, "kernel": 3, "stride": 1},
    "2x2 stride 2, 16 to 64": {"inputs": 16, "outputs": 64, "kernel": 2, "stride": 2},
    "3x3 stride 2, 16 to 64": {"inputs": 16, "outputs": 64, "kernel": 3, "stride": 2},
}


def step(layer: nn.Module, images: Tensor) -> Callable[[], None]:
    """One training step's work on a layer."""

    def run() -> None:
        layer.zero_grad()
        x = images.clone().requires_grad_(True)
        layer(x).square().sum().backward()

    return run


def seconds(run: Callable[[], None], repeats: int) -> float:
    """Mean time of a run."""
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def worst_stretch(layer: nn.Module, images: Tensor) -> float:
    """Largest ``| ||f(x) - f(0)|| / ||x|| - 1 |`` over a batch, for layers that keep the number of values."""
    with torch.no_grad():
        change = layer(images) - layer(torch.zeros_like(images))
        ratio = change.flatten(1).norm(dim=1) / images.flatten(1).norm(dim=1)
    return float((ratio - 1).abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    from orthogonium.layers.conv.AOC import AdaptiveOrthoConv2d

    torch.set_num_threads(1)
    torch.manual_seed(0)
    table = Table("layer", "ours ms", "orthogonium ms", "ratio", "ours stretch", "orthogonium stretch")
    rows = []
    for name, shape in SHAPES.items():
        inputs, outputs, kernel, stride = shape["inputs"], shape["outputs"], shape["kernel"], shape["stride"]
        images = torch.randn(8, inputs, 32, 64)
        ours = conv(inputs, outputs, kernel, stride=stride, padding="circular")
        padding = (kernel - 1) // 2
        theirs = AdaptiveOrthoConv2d(
            inputs, outputs, kernel, stride=stride, padding=padding, padding_mode="circular", bias=False
        )
        mine, other = step(ours, images), step(theirs, images)
        mine(), other()
        pairs = [(seconds(mine, arguments.repeats), seconds(other, arguments.repeats)) for _ in range(arguments.pairs)]
        row = {
            "layer": name,
            "ours_ms": 1e3 * statistics.median(pair[0] for pair in pairs),
            "orthogonium_ms": 1e3 * statistics.median(pair[1] for pair in pairs),
            "ratio": statistics.median(pair[1] / pair[0] for pair in pairs),
            "ours_stretch": worst_stretch(ours.eval(), images),
            "orthogonium_stretch": worst_stretch(theirs.eval(), images),
        }
        rows.append(row)
        table.add_row(
            name,
            f"{row['ours_ms']:.2f}",
            f"{row['orthogonium_ms']:.2f}",
            f"{row['ratio']:.2f}",
            f"{row['ours_stretch']:.1e}",
            f"{row['orthogonium_stretch']:.1e}",
        )
    Console().print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
