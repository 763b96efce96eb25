"""`attackcheck train`: train a 1-Lipschitz segmentation network and write it as a checkpoint."""

import argparse
import dataclasses
import math
import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from attackcheck.errors import InputError

if TYPE_CHECKING:
    import torch

    from attackcheck.models.datasets import Dataset
    from attackcheck.models.networks import Config, Network
    from attackcheck.models.processes import Processes
    from attackcheck.models.training import Progress, Recipe
    from attackcheck.reporters.training import TrainingLog

__all__ = ["add_arguments", "run"]


LOSSES = ("ce", "margin-ce", "hinge", "hkr", "joint")


def add_arguments(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Registers the subcommand with its options; torch is imported only when it runs."""
    parser = subparsers.add_parser(
        "train",
        help="train a 1-Lipschitz network",
        description="Train a 1-Lipschitz segmentation network. Under torchrun several processes share every batch: "
        "torchrun --nproc-per-node 2 --no-python attackcheck train OPTIONS.",
    )
    parser.add_argument(
        "--preset",
        action=_Preset,
        metavar="NAME",
        help="kvasir, pets-3, pets-8, pets-16 or cityscapes, beside --data DIR",
    )
    parser.add_argument("--arch", choices=("lipnet", "isounet"), default="lipnet", help="family (%(default)s)")
    parser.add_argument("--size", default="XS", metavar="SIZE", help="XS, S, M1, M2, L or XL (%(default)s)")
    parser.add_argument("--width", type=int, metavar="N", help="channels at half resolution, instead of the size's")
    parser.add_argument("--data", default="scenes:2000:1", metavar="SPEC", help="training pictures (%(default)s)")
    parser.add_argument("--validation", metavar="SPEC", help="validation pictures; scenes have their own")
    parser.add_argument("--crop", metavar="HxW", help="train on random crops of this size")
    parser.add_argument("--steps", type=int, default=1000, metavar="N", help="(%(default)s)")
    parser.add_argument("--batch", type=int, default=8, metavar="N", help="pictures per step (%(default)s)")
    parser.add_argument("--loss", choices=LOSSES, default="ce", help="(%(default)s)")
    parser.add_argument("--tau", type=float, default=16.0, help="temperature of the loss (%(default)s)")
    parser.add_argument("--margin", type=float, default=0.2, help="radius, or eps of the joint loss (%(default)s)")
    parser.add_argument("--focus", type=float, default=0.3, help="weight of rare classes, 0 for none (%(default)s)")
    parser.add_argument("--lr", type=float, default=5e-3, help="peak learning rate (%(default)s)")
    parser.add_argument("--noise", type=float, default=0.0, metavar="SIGMA", help="Gaussian noise, for smoothing")
    parser.add_argument("--unconstrained", action="store_true", help="the same structure of ordinary convolutions")
    parser.add_argument("--csv", metavar="FILE", help="one line for each measurement")
    parser.add_argument("--plot", metavar="FILE", help="curves over epochs (.png, .svg or .pdf); needs --csv")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda, one GPU for each process (%(default)s)")
    parser.add_argument(
        "--precision",
        choices=("float32", "bf16"),
        default="float32",
        help="of convolutions in training; orthogonal matrices and what is written stay in float32 (%(default)s)",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    parser.add_argument("--every", type=int, default=200, metavar="N", help="steps between measurements (%(default)s)")
    parser.add_argument("--resume", action="store_true", help="go on from the state an interrupted training left")
    parser.add_argument("--out", default="checkpoint.pt", metavar="FILE", help="checkpoint to write (%(default)s)")
    parser.set_defaults(run=run)


class _Preset(argparse.Action):
    """Sets what a named configuration says; options that come later on the line change it again."""

    def __call__(
        self, parser: argparse.ArgumentParser, args: argparse.Namespace, value: object, option: str | None = None
    ) -> None:
        from attackcheck.models.presets import PRESETS

        if value not in PRESETS:
            parser.error(f"expected {option} among {', '.join(PRESETS)}, got {value!r}")
        preset = PRESETS[str(value)]
        args.preset = str(value)
        for name in ("arch", "size", "tau", "loss", "steps", "batch"):
            setattr(args, name, getattr(preset, name))


def run(args: argparse.Namespace) -> int:
    """Trains and writes the checkpoint: 0 done, 130 interrupted with its state kept. InputError for bad input."""
    import torch

    from attackcheck.models.processes import LostError, Processes

    if args.threads is not None:
        if args.threads < 1:
            raise InputError(f"expected at least one thread, got {args.threads}")
        torch.set_num_threads(args.threads)
    device = _device(args.device)
    processes = Processes.join(device)
    try:
        return _train(args, device, processes)
    except LostError as lost:
        processes.abandon(lost)
        raise  # whoever is left says so: the first process may be the one that is gone
    except InputError:
        if processes.first:
            raise
        return 2  # the first process says it
    finally:
        processes.leave()


def _train(args: argparse.Namespace, device: "torch.device", processes: "Processes") -> int:
    from attackcheck.models.networks import build

    out = Path(args.out)
    _check(args, out)
    pictures, validation, config, recipe = processes.agree(lambda: _prepared(args))
    network = build(config, plain=args.unconstrained, seed=args.seed).to(device)
    state = out.with_name(f"{out.name}.state")
    log = processes.agree(lambda: _log(args, pictures, recipe) if processes.first else None)
    last = _follow(network, pictures, recipe, validation, args.every, state, args.resume, log, processes)
    finished = last is not None and last.step == recipe.steps
    if processes.first:
        if args.plot is not None:
            from attackcheck.reporters.training import draw_training

            draw_training(Path(args.csv), Path(args.plot))
        if last is not None and finished:
            from attackcheck.commands.trained import write_trained

            write_trained(args, device, network, pictures, validation, last)
            state.unlink(missing_ok=True)
        else:
            sys.stderr.write(f"interrupted; the same command with --resume goes on from {state}\n")
    return 0 if finished else 130


def _log(args: argparse.Namespace, pictures: "Dataset", recipe: "Recipe") -> "TrainingLog | None":
    if args.csv is None:
        return None
    from attackcheck.reporters.training import TrainingLog

    return TrainingLog(Path(args.csv), max(1, len(pictures) / recipe.batch), resume=args.resume)


def _device(name: str) -> "torch.device":
    """The device of this process: torchrun's processes take one GPU each."""
    import torch

    from attackcheck.commands.sources import check_device

    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    check_device(name)
    device = torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _check(args: argparse.Namespace, out: Path) -> None:
    if not 0 <= args.seed < 2**63:
        raise InputError(f"expected a seed from 0 to 2**63 - 1, got {args.seed}")
    for name in ("tau", "margin", "focus", "lr"):
        if not math.isfinite(getattr(args, name)):
            raise InputError(f"expected a finite --{name}, got {getattr(args, name)}")
    if out.is_dir():
        raise InputError(f"expected --out to be a file, {out} is a folder")
    if not out.parent.is_dir():
        raise InputError(f"expected --out in an existing folder, but there is no {out.parent}")
    if args.every < 1:
        raise InputError(f"expected --every to be positive, got {args.every}")
    if args.plot is not None:
        from attackcheck.reporters.plots import check_plot

        if args.csv is None:
            raise InputError("expected --csv FILE beside --plot: curves are drawn from it")
        check_plot(Path(args.plot))


def _prepared(args: argparse.Namespace) -> "tuple[Dataset, Dataset, Config, Recipe]":
    from attackcheck.models.datasets import load_data

    if args.preset is not None:
        from attackcheck.models.presets import PRESETS

        args.data, own = PRESETS[args.preset].specifications(args.data)
        args.validation = args.validation or own
    pictures, validation = _split(load_data(args.data), args.validation)
    return pictures, validation, _config(args, pictures), _recipe(args)


def _split(pictures: "Dataset", spec: str | None) -> tuple["Dataset", "Dataset"]:
    """Training and validation pictures: other scenes than those trained on, or the last tenth of anything else."""
    from attackcheck.models.datasets import Dataset, load_data

    if spec is not None:
        return pictures, load_data(spec)
    if pictures.name.startswith("scenes:"):
        _, _, seed, size = pictures.name.split(":")
        return pictures, load_data(f"scenes:32:{int(seed) + 1}:{size}")
    kept = pictures.length - max(1, pictures.length // 10)
    if not kept:
        raise InputError("expected at least two pictures, got one; give --validation SPEC")
    rest = Dataset(
        f"{pictures.name}[{kept}:]", pictures.classes, pictures.length - kept, lambda i: pictures.read(kept + i)
    )
    return Dataset(f"{pictures.name}[:{kept}]", pictures.classes, kept, pictures.read), rest


def _config(args: argparse.Namespace, pictures: "Dataset") -> "Config":
    from attackcheck.models.networks import SIZES

    sizes = SIZES[args.arch]
    if args.size not in sizes:
        raise InputError(f"expected a size among {', '.join(sizes)}, got {args.size!r}")
    first = pictures[0]
    if first.labels is None:
        raise InputError(f"expected pictures with labels to train on, got none in {args.data}")
    known = first.labels[first.labels != pictures.ignore]
    classes = len(pictures.classes) if pictures.classes else int(known.max()) + 1
    channels = first.image.shape[0]
    config = dataclasses.replace(sizes[args.size], classes=max(2, classes), channels=channels, mean=(0.5,) * channels)
    if args.width is not None:
        if args.width < 2 or args.width % 2:
            raise InputError(f"expected an even width, got {args.width}")
        config = config.resized(args.width)
    return config


def _recipe(args: argparse.Namespace) -> "Recipe":
    from attackcheck.models.training import Recipe

    crop = None
    if args.crop is not None:
        found = re.fullmatch(r"([1-9][0-9]{0,5})x([1-9][0-9]{0,5})", args.crop)
        if found is None:
            raise InputError(f"expected --crop as HxW such as 64x128, got {args.crop!r}")
        crop = (int(found[1]), int(found[2]))
    return Recipe(
        steps=args.steps, batch=args.batch, loss=args.loss, tau=args.tau, margin=args.margin, lr=args.lr,
        seed=args.seed, crop=crop, focus=args.focus, noise=args.noise, precision=args.precision,
    )  # fmt: skip


def _follow(
    network: "Network",
    pictures: "Dataset",
    recipe: "Recipe",
    validation: "Dataset",
    every: int,
    state: Path,
    resume: bool,
    log: "TrainingLog | None",
    processes: "Processes",
) -> "Progress | None":
    """Runs the training under a progress bar on stderr; Ctrl-C ends it after the step in hand, its state written.

    Of several processes the first one shows it; a signal to any of them ends all after the same step.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    from attackcheck.models.training import train

    stopping = False

    def stop(number: int, frame: object) -> None:  # noqa: ARG001
        nonlocal stopping
        if stopping and processes.count == 1:  # torchrun hands on signals that the terminal has sent to all already
            raise KeyboardInterrupt
        stopping = True

    signals = (signal.SIGINT,) if processes.count == 1 else (signal.SIGINT, signal.SIGTERM)
    previous = [(number, signal.signal(number, stop)) for number in signals]
    console = Console(stderr=True)
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[figures]}"),
    )
    last: Progress | None = None
    events = train(
        network, pictures, recipe, validation=validation, every=every, state=state, resume=resume, processes=processes,
        stop=lambda: stopping,
    )  # fmt: skip
    try:
        with Bar(*columns, console=console, disable=not (console.is_terminal and processes.first)) as bar:
            task = bar.add_task("", total=recipe.steps, figures="")
            figures = ""
            for event in events:
                last = event
                if log is not None:
                    log.add(event)
                if event.measured is not None:
                    m = event.measured
                    figures = f"accuracy {m.accuracy:.3f}  mIoU {m.miou:.3f}  radius {m.radius:.3f}"
                    if not console.is_terminal and processes.first:
                        console.print(
                            f"step {event.step}/{event.steps}  loss {event.loss:.4f}  {figures}", highlight=False
                        )
                bar.update(task, completed=event.step, figures=f"loss {event.loss:.4f}  {figures}")
    finally:
        events.close()
        for number, handler in previous:
            signal.signal(number, handler)
    return last
