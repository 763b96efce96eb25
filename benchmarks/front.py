"""Clean against certified accuracy: losses at equal time.

    python benchmarks/front.py [--seconds S] [--seeds N] [--data SPEC] [--validation SPEC] [--only NAME,...]
                               [--arch isounet|lipnet] [--width N] [--json FILE] [--markdown FILE] [--plot FILE]

Every loss, at each of its settings, trains the same small network on the same pictures for the same CPU seconds of
this process: the number of steps is what fits, measured on the first ones. The columns are means over seeds, in percent
of the labelled validation pixels: right; right and certified against every perturbation of norm eps, with one budget
for all pixels of an image, and each pixel by itself. A setting is on the front (*) if no other is better or equal in
clean and in every jointly certified column at once; with `--upto EPS` in those columns up to EPS. `--seeds 0` only
shows what stands in the JSON file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

from attackcheck.claims import LipschitzClaim
from attackcheck.measures import FlipCosts, bounds, dataset
from attackcheck.measures.names import Measure
from attackcheck.models import Recipe, build, export, load_data, train
from attackcheck.models.networks import SIZES
from attackcheck.models.training import measure

EPSILONS = (0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
SETTINGS = (
    ("ce tau 2", {"loss": "ce", "tau": 2.0}),
    ("ce tau 4", {"loss": "ce", "tau": 4.0}),
    ("ce tau 8", {"loss": "ce", "tau": 8.0}),
    ("ce tau 16", {"loss": "ce", "tau": 16.0}),
    ("ce tau 32", {"loss": "ce", "tau": 32.0}),
    ("ce tau 64", {"loss": "ce", "tau": 64.0}),
    ("margin-ce tau 8, .2", {"loss": "margin-ce", "tau": 8.0, "margin": 0.2}),
    ("margin-ce tau 16, .1", {"loss": "margin-ce", "tau": 16.0, "margin": 0.1}),
    ("margin-ce tau 32, .05", {"loss": "margin-ce", "tau": 32.0, "margin": 0.05}),
    ("hinge .05", {"loss": "hinge", "margin": 0.05}),
    ("hkr .1, tau 32", {"loss": "hkr", "margin": 0.1, "tau": 32.0}),
    ("joint eps .25", {"loss": "joint", "margin": 0.25}),
    ("joint eps .5", {"loss": "joint", "margin": 0.5}),
    ("joint eps 1", {"loss": "joint", "margin": 1.0}),
    ("joint eps 1.5", {"loss": "joint", "margin": 1.5}),
    ("joint eps 2", {"loss": "joint", "margin": 2.0}),
    ("joint eps 3", {"loss": "joint", "margin": 3.0}),
    ("joint eps 4", {"loss": "joint", "margin": 4.0}),
    ("joint eps 6", {"loss": "joint", "margin": 6.0}),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", default="scenes:200:1:32x64")
    parser.add_argument("--validation", default="scenes:24:2:32x64")
    parser.add_argument("--only", help="settings whose names begin with one of these words")
    parser.add_argument("--arch", choices=("isounet", "lipnet"), default="isounet")
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--json", help="results one by one; those of an earlier run with these options are kept")
    parser.add_argument(
        "--upto", type=float, default=EPSILONS[-1], help="largest eps that decides what is on the front"
    )
    parser.add_argument("--markdown", help="the table of what one budget certifies, for a page of the documentation")
    parser.add_argument("--plot")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    words = None if arguments.only is None else arguments.only.split(",")
    chosen = [(name, given) for name, given in SETTINGS if words is None or name.startswith(tuple(words))]
    pictures, validation = in_memory(load_data(arguments.data)), in_memory(load_data(arguments.validation))
    results: dict[str, list[dict[str, object]]] = {name: [] for name, _ in chosen}
    if arguments.json and Path(arguments.json).exists():
        results |= json.loads(Path(arguments.json).read_text())
    for seed in range(arguments.seeds):
        for name, given in chosen:
            if len(results[name]) > seed:
                continue
            result = one(pictures, validation, given, seed, arguments)
            results[name].append(result)
            print(f"seed {seed}  {name}: {result}", file=sys.stderr, flush=True)
            if arguments.json:
                Path(arguments.json).write_text(json.dumps(results, indent=1))
    table = {name: summed_up(rows) for name, rows in results.items() if rows}
    show(table, arguments)
    if arguments.markdown:
        Path(arguments.markdown).write_text(as_markdown(table, arguments.upto))
    if arguments.plot:
        draw(table, arguments.plot)


class in_memory:  # noqa: N801
    """Drawn once; the first training must not pay for it."""

    def __init__(self, data) -> None:
        self.name, self.classes, self.ignore = data.name, data.classes, data.ignore
        self.samples = list(data)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int):
        return self.samples[index]


def one(pictures, validation, given, seed: int, arguments) -> dict[str, object]:
    config = SIZES[arguments.arch]["XS"]
    classes = len(pictures.classes) if pictures.classes else 7
    config = type(config)(**{**config.__dict__, "classes": classes}).resized(arguments.width)
    common = {"batch": arguments.batch, "lr": 1e-2, "seed": seed, "focus": 0.0, **given}
    trial = train(build(config, seed=seed), pictures, Recipe(steps=30, **common))
    for _ in range(10):
        next(trial)
    start = time.process_time()
    for _ in range(20):
        next(trial)
    trial.close()
    step = (time.process_time() - start) / 20
    steps = max(20, int(arguments.seconds / step))
    network = build(config, seed=seed)
    start = time.process_time()
    for _ in train(network, pictures, Recipe(steps=steps, **common)):
        pass
    seconds = time.process_time() - start
    frozen = export(network)
    constants = frozen.constants()
    claim = LipschitzClaim(constants.joint, pixel=constants.pixel)
    eps = torch.tensor(EPSILONS, dtype=torch.float64)
    found = []
    with torch.no_grad():
        for sample in validation.samples:
            costs = FlipCosts(claim, frozen(sample.image[None])[0])
            found.append(bounds(costs, sample.labels, validation.ignore, eps, smallest=False, islands=False))
    places = range(len(EPSILONS))
    return {
        "clean": dataset.clean(Measure.ACCURACY, None, [image.clean for image in found]),
        "joint": [dataset.certified(Measure.ACCURACY, None, found, place) for place in places],
        "alone": [dataset.per_pixel(Measure.ACCURACY, None, found, place) for place in places],
        "miou": measure(frozen, validation, lipschitz=constants.pixel, classes=classes).miou,
        "steps": steps,
        "seconds": seconds,
    }


def summed_up(rows):
    joint = [row["joint"][EPSILONS.index(0.3)] for row in rows]
    spread = statistics.stdev(joint) if len(rows) > 1 else float("nan")
    return {key: mean(rows, key) for key in ("clean", "joint", "alone", "steps", "miou")} | {
        "seeds": len(rows),
        "spread": spread,
    }


def mean(rows, key: str):
    values = [row[key] for row in rows]
    if isinstance(values[0], list):
        return [statistics.fmean(column) for column in zip(*values, strict=True)]
    return statistics.fmean(values)


def on_front(table, upto: float) -> set[str]:
    """The settings that no other beats or equals in clean and in every certified column up to `upto`."""
    columns = sum(eps <= upto for eps in EPSILONS)
    points = {name: [row["clean"], *row["joint"][:columns]] for name, row in table.items()}

    def beaten(mine: list[float]) -> bool:
        return any(all(b >= a for a, b in zip(mine, other, strict=True)) and other != mine for other in points.values())

    return {name for name, point in points.items() if not beaten(point)}


def as_markdown(table, upto: float) -> str:
    kept = on_front(table, upto)
    lines = [
        "| loss | seeds | steps | clean | " + " | ".join(f"{eps:g}" for eps in EPSILONS) + " | sd | mIoU |",
        "| --- " * (7 + len(EPSILONS)) + "|",
    ]
    for name, row in table.items():
        cells = [f"{100 * value:.1f}" for value in (row["clean"], *row["joint"])]
        spread = f"{100 * row['spread']:.1f}" if row["seeds"] > 1 else "-"
        title = f"**{name}**" if name in kept else name
        values = [title, str(row["seeds"]), f"{row['steps']:.0f}", *cells, spread, f"{100 * row['miou']:.1f}"]
        lines.append("| " + " | ".join(values) + " |")
    return "\n".join(lines) + "\n"


def show(table, arguments) -> None:
    kept = on_front(table, arguments.upto)
    print(f"{arguments.arch} width {arguments.width}, {arguments.data}, {arguments.seconds:g} s of CPU each")
    heads = "".join(f"{eps:>7g}" for eps in EPSILONS)
    print(
        f"{'':24s} {'seeds':>5s} {'steps':>6s} {'clean':>6s}  one budget:{heads}  each pixel:{heads}  sd at .3   mIoU"
    )
    for name, row in table.items():
        cells = ["".join(f"{100 * value:7.1f}" for value in row[key]) for key in ("joint", "alone")]
        mark = "*" if name in kept else " "
        print(
            f"{mark} {name:22s} {row['seeds']:5d} {row['steps']:6.0f} {100 * row['clean']:6.1f}  {'':11s}{cells[0]}"
            f"  {'':11s}{cells[1]}  {100 * row['spread']:8.2f} {100 * row['miou']:6.1f}"
        )


def draw(table, path: str) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(EPSILONS), figsize=(3.2 * len(EPSILONS), 3.2), squeeze=False)
    for place, axis in enumerate(axes[0]):
        for loss, colour in zip(("ce", "margin-ce", "hinge", "hkr", "joint"), "kbgcr", strict=True):
            rows = [row for name, row in table.items() if name.split()[0] == loss]
            if not rows:
                continue
            rows.sort(key=lambda row: row["clean"])
            clean, certified = [100 * r["clean"] for r in rows], [100 * r["joint"][place] for r in rows]
            axis.plot(clean, certified, "o-", color=colour, label=loss, markersize=4)
        axis.set_title(f"eps {EPSILONS[place]:g}")
        axis.set_xlabel("clean accuracy, %")
    axes[0][0].set_ylabel("certified, one budget, %")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
