"""What the part of one image costs in a run folder: bytes, and CPU seconds to write and to read it.

    python benchmarks/parts.py

The image is smooth, as photos are; the radii are a smooth random map of float64; a quarter of the pixels was seen
flipped; three perturbed images of pixels differ from the clean one in 40x40 pixels, that of a region everywhere.
"""

import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor

from attackcheck.part_files import load_part, save_part
from attackcheck.parts import Example, Maps, Part
from attackcheck.tally import Tally


def smooth(channels: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """A smooth random picture ``(channels, height, width)`` in [0, 1], float64."""
    coarse = torch.rand(1, channels, height // 16, width // 16, generator=generator, dtype=torch.float64)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]


def part(height: int, width: int) -> Part:
    """An image with everything that a part may hold."""
    generator = torch.Generator().manual_seed(0)
    image = (smooth(3, height, width, generator) * 255).round().float() / 255
    radius = smooth(1, height, width, generator)[0]
    classes = (radius * 19).to(torch.int16)
    distance = torch.full_like(radius, torch.inf)
    seen = distance[: height // 2, : width // 2]
    distance[: height // 2, : width // 2] = torch.rand(seen.shape, generator=generator, dtype=torch.float64)
    flipped = distance.isfinite()

    def example(kind: str, size: tuple[int, int]) -> Example:
        point = image.clone()
        point[:, : size[0], : size[1]] += 0.01 * torch.randn(3, *size, generator=generator)
        return Example(kind, kind, None, -1, -1, 0.1, 0.2, "ddn", point, classes)

    examples = (*(example("pixel", (40, 40)) for _ in range(3)), example("region", (height, width)))
    verdict = torch.where(flipped, 5, -1).to(torch.int8)
    maps = Maps(image, classes.int(), classes, radius, distance, classes, classes, flipped, verdict, ("ddn",), examples)
    return Part(0, "image", True, 1.0, Tally(255), "", maps)


def main() -> None:
    """Print a table."""
    torch.set_num_threads(1)
    print("| image | MB | write, CPU s | read, CPU s |\n| --- | --- | --- | --- |")
    for height, width in ((64, 128), (256, 512), (1024, 2048)):
        whole = part(height, width)
        with tempfile.TemporaryDirectory() as place:
            path = Path(place, "part.npz")
            start = time.process_time()
            save_part(whole, path, Path(place))
            middle = time.process_time()
            load_part(path, Path(place), 255)
            end = time.process_time()
            size = path.stat().st_size / 1e6
        print(f"| {height}x{width} | {size:.2f} | {middle - start:.2f} | {end - middle:.2f} |", flush=True)


if __name__ == "__main__":
    main()
