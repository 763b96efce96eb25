"""Seconds per image: certificates from weights against randomized smoothing, ratios in one run.

    python benchmarks/runtime.py [--images N] [--size H W] [--checkpoint FILE] [--sigma S] [--samples 60,100,...]
                                 [--device cuda]

One certification is a forward pass, margins, and the sorted sums behind accuracy at one eps, labels included. Smoothing
is SegCertify: n0 = 10 noisy copies that choose, n that test, Holm's correction. Both see the same images at the same
radius, ``sigma Phi^-1(tau)``, after a run to warm up. Times are seconds of this process on a CPU and of the wall clock
on a synchronised GPU, medians over the images. What the ratio is made of: the network alone would make it n0 + n; what
is above that is drawing noise and counting votes, what is below it is our own sorting. The floor is what operations and
bytes take at this machine's measured peak (yardstick/floor.py): of smoothing, its forward passes.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))  # the interpreter leaves it out when asked for safe paths

from yardstick.floor import Peak, certification, clock, network_passes

from attackcheck.claims import LipschitzClaim
from attackcheck.measures import FlipCosts, bounds, dataset
from attackcheck.measures.names import Measure
from attackcheck.models import load_checkpoint, load_data, shipped
from attackcheck.models.networks import SIZES, build, export
from attackcheck.refined import refine
from attackcheck.refined.tail import sorted_values
from attackcheck.smoothing import ABSTAIN, Smoothing, smooth


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), help="tile the images up to this size")
    parser.add_argument("--checkpoint", default=str(shipped("lipnet-xs")))
    parser.add_argument(
        "--untrained", metavar="SIZE", help="M1, ...: a LipNet of that size as it is initialised instead"
    )
    parser.add_argument("--data", help="scenes[:N], folder:DIR, ...; none: the images that ship")
    parser.add_argument("--sigma", type=float, default=0.25)
    parser.add_argument("--tau", type=float, default=0.75)
    parser.add_argument("--alpha", type=float, default=0.001)
    parser.add_argument("--samples", default="60,100,300,1000,3000,10000")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data, name = load_data(arguments.data), arguments.untrained or arguments.checkpoint
    if arguments.untrained:
        model = export(build(SIZES["lipnet"][arguments.untrained], seed=0)).eval().to(arguments.device)
        claim = LipschitzClaim(model.constants().joint)
    else:
        loaded = load_checkpoint(arguments.checkpoint)
        model = loaded.model.to(arguments.device)
        claim = LipschitzClaim(loaded.lipschitz_joint, pixel=loaded.lipschitz_pixel)
    samples = [data[index] for index in range(min(arguments.images, len(data)))]
    images = [fitted(sample.image, arguments.size).to(arguments.device) for sample in samples]
    labels = [fitted(sample.labels, arguments.size).to(arguments.device) for sample in samples]
    radius = Smoothing(arguments.sigma, tau=arguments.tau).radius
    budget = torch.tensor([radius], dtype=torch.float64)
    print(f"{name}, {len(images)} images of {tuple(images[0].shape)}, {arguments.device}")
    print(f"radius {radius:.4f} (sigma {arguments.sigma:g}, tau {arguments.tau:g}, alpha {arguments.alpha:g})")

    def forward(image):
        with torch.no_grad():
            return model(image[None])[0]

    def ordinary(image, label):
        return bounds(FlipCosts(claim, forward(image)), label, data.ignore, budget, smallest=False, islands=False)

    certificate = refine(model, tuple(images[0].shape))

    def finer(image, label):
        with sorted_values(model) as values:
            logits = forward(image)
        costs = certificate.costs(image, logits, values=values[-1][0] if values else None)
        mine = (costs.predicted == label.flatten()) & (label.flatten() != data.ignore)
        return int((mine & (costs.distance() >= radius)).sum()), int((label != data.ignore).sum())

    alone = median(lambda i: forward(images[i]), len(images), arguments.device)[0]
    seconds, found = median(lambda i: ordinary(images[i], labels[i]), len(images), arguments.device)
    shares = [dataset.per_pixel(Measure.ACCURACY, None, found, 0), dataset.certified(Measure.ACCURACY, None, found, 0)]
    peak, logits = Peak.measured(arguments.device), forward(images[0])
    there, _ = network_passes(model, images[0])
    passing, certifying = peak.seconds(there), peak.seconds(there) + peak.seconds(certification(logits))
    print(f"{peak}; a forward pass {there.operations / 1e9:.3f} GFLOP, {there.bytes / 1e6:.2f} MB at least")
    print(
        f"forward pass {1e3 * alone:.2f} ms ({alone / passing:.1f} times the floor of {1e3 * passing:.2f}), "
        f"certification {1e3 * seconds:.2f} ms ({seconds / certifying:.1f} times the floor of {1e3 * certifying:.2f}): "
        f"{seconds / alone:.2f} times a forward pass"
    )
    print(f"certified accuracy: {100 * shares[0]:.1f} % each pixel, {100 * shares[1]:.1f} % one budget")
    slow, counted = median(lambda i: finer(images[i], labels[i]), len(images), arguments.device)
    share = sum(right for right, _ in counted) / sum(valid for _, valid in counted)
    print(f"refined radii: {100 * share:.1f} % each pixel, {slow / alone:.2f} times a forward pass\n")
    head = "    n  accuracy  abstained  s/image  times certification  of which network  noise, votes  statistics"
    print(head + "  floor s/image")
    copied = peak.seconds(network_passes(model, images[0], many=True)[0])
    for n in map(int, arguments.samples.split(",")):
        smoothing = Smoothing(arguments.sigma, n=n, tau=arguments.tau, alpha=arguments.alpha)
        taken, results = median(lambda i, s=smoothing: smooth(forward_all(model), images[i], s, seed=i), len(images),
                                arguments.device)  # fmt: skip
        right = valid = abstained = 0
        for result, label in zip(results, labels, strict=True):
            inside = (label != data.ignore).cpu()
            right += int(((result.predicted == label.cpu()) & inside).sum())
            valid, abstained = valid + int(inside.sum()), abstained + int((result.predicted == ABSTAIN).sum())
        share = abstained / results[0].predicted.numel() / len(images)
        testing = statistics.median(result.testing for result in results) / seconds
        network = (smoothing.n0 + n) * alone / seconds
        ratio = taken / seconds
        print(
            f"{n:5d}  {100 * right / valid:7.1f} %  {100 * share:7.1f} %"
            f"  {taken:7.3f}  {ratio:19.0f}  {network:16.0f}  {ratio - network - testing:12.0f}  {testing:10.2f}"
            f"  {(smoothing.n0 + n) * copied:13.3f}"
        )


def forward_all(model):
    return lambda batch: model(batch)


def fitted(values: torch.Tensor, size: list[int] | None) -> torch.Tensor:
    if size is None:
        return values
    times = [-(-wanted // have) for wanted, have in zip(size, values.shape[-2:], strict=True)]
    tiled = values.repeat(*(1,) * (values.dim() - 2), *times)
    return tiled[..., : size[0], : size[1]].contiguous()


def median(call, count: int, device: str):
    """Median seconds of a call on each image, after one to warm up, and the results."""
    call(0)
    times, found = [], []
    for index in range(count):
        start = clock(device)
        found.append(call(index))
        times.append(clock(device) - start)
    return statistics.median(times), found


if __name__ == "__main__":
    main()
