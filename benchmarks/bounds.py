"""How tight and how fast the bounds of single operations are.

    python benchmarks/bounds.py [--size 64 128] [--json FILE]

Bounds every convolution of the shipped networks at the sizes it meets, a set of random kernels, and (with the extra
`deel`) fresh layers of orthogonium. Times are CPU seconds of one thread.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from importlib import resources
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from attackcheck.lipschitz.bounds import Bound, convolution, transposed_convolution
from attackcheck.models.checkpoint import load_checkpoint

RANDOM = {
    # outputs, inputs, kernel, stride, size, padding mode
    "random 3x3, 64": (64, 64, 3, 1, 64, "zeros"),
    "random 3x3, 64, 8x8 map": (64, 64, 3, 1, 8, "zeros"),
    "random 3x3, 256": (256, 256, 3, 1, 32, "zeros"),
    "random 5x5 stride 2, 32": (32, 32, 5, 2, 64, "zeros"),
    "random 7x7 stride 2, 3 to 16": (16, 3, 7, 2, 512, "zeros"),
    "random 3x3, 32, reflect": (32, 32, 3, 1, 64, "reflect"),
    "random 3x3, 32, circular": (32, 32, 3, 1, 64, "circular"),
}
ORTHOGONIUM = [(16, 16, 3, 1), (64, 64, 3, 1), (64, 128, 3, 2), (64, 64, 5, 1), (128, 128, 3, 1)]
Row = tuple[str, Bound, float]


def of_layer(layer: nn.Conv2d | nn.ConvTranspose2d, size: tuple[int, int]) -> Bound:
    """The bound of a plain layer at the size of its input."""
    shared = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
    if isinstance(layer, nn.ConvTranspose2d):
        return transposed_convolution(
            layer.weight, size, **shared, padding=layer.padding, output_padding=layer.output_padding
        )
    return convolution(layer.weight, size, **shared, padding=layer.padding, padding_mode=layer.padding_mode)


def timed(name: str, layer: nn.Conv2d | nn.ConvTranspose2d, size: tuple[int, int]) -> Row:
    start = time.process_time()
    bound = of_layer(layer, size)
    return name, bound, time.process_time() - start


def shipped(name: str, size: tuple[int, int]) -> list[Row]:
    """Every convolution of a shipped network."""
    with resources.as_file(resources.files("attackcheck.models") / "shipped" / f"{name}.pt") as path:
        network = load_checkpoint(path).model
    met: dict[nn.Module, tuple[int, int]] = {}

    def note(layer: nn.Module, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        met[layer] = (inputs[0].shape[-2], inputs[0].shape[-1])

    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(note)
    with torch.no_grad():
        network(torch.zeros(1, 3, *size))
    return [timed(f"{name}, {tuple(layer.weight.shape)}", layer, at) for layer, at in met.items()]


def random_kernels() -> list[Row]:
    rows = []
    for name, (outputs, inputs, kernel, stride, side, mode) in RANDOM.items():
        torch.manual_seed(0)
        layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, padding_mode=mode)
        nn.init.normal_(layer.weight)
        rows.append(timed(name, layer, (side, side)))
    return rows


def orthogonium() -> list[Row]:
    try:
        from orthogonium.layers import AdaptiveOrthoConv2d
    except ImportError:
        return []
    rows = []
    for inputs, outputs, kernel, stride in ORTHOGONIUM:
        torch.manual_seed(0)
        theirs = AdaptiveOrthoConv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2).eval()
        layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
        layer.weight = nn.Parameter(theirs.weight.detach())
        rows.append(timed(f"orthogonium {kernel}x{kernel} stride {stride}, {inputs} to {outputs}", layer, (32, 32)))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=(64, 128), metavar=("H", "W"))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    size = (given.size[0], given.size[1])
    console, rows = Console(), []
    for name in ("isounet-xs", "lipnet-xs"):
        own = shipped(name, size)
        product = 1.0
        for _, bound, _ in own:
            product *= bound.upper
        console.print(f"{name}: product of {len(own)} layers 1 + {product - 1:.2e}, {sum(r[2] for r in own):.2f} s CPU")
        rows += own
    rows += random_kernels() + orthogonium()
    table = Table("operation", "upper", "lower", "upper / lower - 1", "method", "s CPU")
    for name, bound, seconds in rows:
        gap = f"{bound.upper / bound.lower - 1:.1e}"
        table.add_row(name, f"{bound.upper:.10g}", f"{bound.lower:.10g}", gap, bound.method, f"{seconds:.2f}")
    console.print(table)
    if given.json:
        given.json.write_text(json.dumps([{"name": n, **asdict(b), "seconds": s} for n, b, s in rows], indent=2))


if __name__ == "__main__":
    main()
