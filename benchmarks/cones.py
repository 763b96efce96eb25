"""What it saves to compute a network around one pixel of a crop only, beside all of the crop.

    python benchmarks/cones.py [--networks lipnet-xs,isounet-l] [--rows 8] [--json FILE]

Networks have random weights: what they cost does not depend on them. Crops are those of images of 1024x2048. A pass is
forward and backward of all rows, CPU time on one thread; both ways take turns, after a pass that warms up, and the
medians are compared. Work is multiplications, where every number that is made counts as 16.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from attackcheck.allocator import keep_freed
from attackcheck.cones import cone_of
from attackcheck.models.networks import SIZES, build, export
from attackcheck.receptive import measure_field, windows

NAMES = tuple(f"{family}-{size.lower()}" for family in ("lipnet", "isounet") for size in ("XS", "S", "M1", "M2", "L"))


def measured(name: str, rows: int, repeats: int) -> dict[str, Any]:
    """Both ways to compute one network."""
    family, _, size = name.partition("-")
    model = export(build(replace(SIZES[family][size.upper()], classes=19), seed=0)).eval().requires_grad_(False)
    image = torch.rand(3, 512, 512, generator=torch.Generator().manual_seed(0))
    field = measure_field(model, image)
    cut = None if field is None else windows(field, 1024, 2048)
    if field is None or cut is None:
        raise SystemExit(f"{name}: the receptive field is too large for crops")
    crops = torch.rand(rows, 3, cut.height, cut.width, generator=torch.Generator().manual_seed(1))
    start = time.process_time()
    cone = cone_of(model, crops[0], field.stride)
    made = time.process_time() - start
    if cone is None:
        raise SystemExit(f"{name} cannot be computed around a pixel")
    index = torch.arange(rows)
    places = torch.full((rows,), cut.height // 2), torch.full((rows,), cut.width // 2)
    ways: list[tuple[Callable[[Tensor], Tensor], Tensor, Tensor]] = [(model, *places), cone.at(*places)]
    taken: list[list[float]] = [[], []]
    for number in range(repeats + 1):
        for way, (call, down, across) in enumerate(ways):
            points = crops.clone().requires_grad_(True)
            start = time.process_time()
            logits = call(points)[index, :, down, across]
            torch.autograd.grad(logits[:, 0].sum(), points)
            if number:
                taken[way].append(time.process_time() - start)
    whole, around = (1e3 * statistics.median(each) / rows for each in taken)
    return {
        "network": name,
        "crop": f"{cut.height}x{cut.width}",
        "work": cone.share,
        "ms of a row, all of the crop": whole,
        "ms of a row, around the pixel": around,
        "times": whole / around,
        "seconds to make": made,
    }


def main() -> None:
    """Measure the networks that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NAMES), help="among lipnet- and isounet- xs, s, m1, m2, l, xl")
    parser.add_argument("--rows", type=int, default=8, help="crops in a pass")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed()
    found = [measured(name, arguments.rows, arguments.repeats) for name in arguments.networks.split(",")]
    table = Table(*found[0], title=f"{arguments.rows} crops in a pass")
    for row in found:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else value for value in row.values()))
    Console(width=120).print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
