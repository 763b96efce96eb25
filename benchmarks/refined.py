"""How much the refined certificate gains on the networks that ship, and what it costs.

    python benchmarks/refined.py [--images N] [--checkpoint FILE --data SPEC]

Prints, for every eps, the share of pixels that are right and certified: by one constant and refined, each pixel by
itself and with one budget for all; the quantiles of the ratio of radii; and CPU time of certification over that of the
network's own forward pass (medians of alternating runs, one thread).
"""

from __future__ import annotations

import argparse
import time

import torch

from attackcheck.claims import LipschitzClaim
from attackcheck.measures import FlipCosts, bounds, dataset
from attackcheck.measures.names import Measure
from attackcheck.models import load_checkpoint, load_data, shipped
from attackcheck.refined import refine

EPSILONS = (0.01, 0.03, 0.05, 0.1, 0.17, 0.25, 0.3, 0.5, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--checkpoint", help="instead of those that ship")
    parser.add_argument("--data", help="scenes[:N], folder:DIR, ...; none: the images that ship")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name in (
        [arguments.checkpoint] if arguments.checkpoint else [str(shipped(n)) for n in ("isounet-xs", "lipnet-xs")]
    ):
        measure(name, arguments.data, arguments.images)


@torch.no_grad()
def measure(path: str, spec: str | None, count: int) -> None:
    loaded, data = load_checkpoint(path), load_data(spec)
    samples = [data[index] for index in range(min(count, len(data)))]
    images = torch.stack([sample.image for sample in samples])
    claim = LipschitzClaim(loaded.lipschitz_joint, pixel=loaded.lipschitz_pixel)
    start = time.process_time()
    certificate = refine(loaded.model, tuple(images.shape[1:]))
    print(f"\n{path}\n{certificate.describe()}; made in {time.process_time() - start:.1f} s")
    logits = loaded.model(images)
    ratio = certificate.radii(images) / claim.radii(images, logits, None)
    quantiles = torch.quantile(ratio[ratio.isfinite()], torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64))
    print("ratio of radii, 5, 50, 95 %: " + ", ".join(f"{q:.3f}" for q in quantiles.tolist()))
    eps = torch.tensor(EPSILONS, dtype=torch.float64)
    plain, refined, clock = [], [], {"forward": [], "ordinary": [], "refined": []}
    for sample, z in zip(samples, logits, strict=True):
        for key, call in _calls(loaded.model, certificate, claim, sample, z, data.ignore, eps).items():
            call()
            before = time.process_time()
            found = call()
            clock[key].append(time.process_time() - before)
            if key != "forward":
                (plain if key == "ordinary" else refined).append(found)
    print("  eps   by itself: one constant  refined    one budget: one constant  refined")
    for place, value in enumerate(EPSILONS):
        cells = [
            100 * what(Measure.ACCURACY, None, found, place)
            for what in (dataset.per_pixel, dataset.certified)
            for found in (plain, refined)
        ]
        print(f"{value:5g}   {cells[0]:23.2f} {cells[1]:8.2f}   {cells[2]:24.2f} {cells[3]:8.2f}")
    middle = {key: sorted(values)[len(values) // 2] for key, values in clock.items()}
    for key in ("ordinary", "refined"):
        print(f"all measures, {key}: {middle[key] / middle['forward']:.2f} times a forward pass")


def _calls(model, certificate, claim, sample, logits, ignore, eps):
    return {
        "forward": lambda: model(sample.image[None]),
        "ordinary": lambda: bounds(FlipCosts(claim, logits), sample.labels, ignore, eps),
        "refined": lambda: bounds(certificate.costs(sample.image, logits), sample.labels, ignore, eps),
    }


if __name__ == "__main__":
    main()
