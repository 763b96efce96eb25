"""What `attackcheck train` leaves: the exported network as a checkpoint with its card, and a table of its figures."""

import argparse
import shlex
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from attackcheck.models.checkpoint import save_checkpoint
from attackcheck.models.datasets import Dataset
from attackcheck.models.networks import Network, export
from attackcheck.models.training import Measured, Progress, measure

__all__ = ["write_trained"]


def write_trained(
    args: argparse.Namespace,
    device: torch.device,
    network: Network,
    pictures: Dataset,
    validation: Dataset,
    last: Progress,
) -> None:
    """Writes the exported network to `args.out` with the command that made it and its figures, and prints those."""
    frozen, out = export(network), Path(args.out)
    constants = frozen.constants()
    classes = frozen.config.classes
    measured = measure(frozen.to(device), validation, lipschitz=constants.pixel, classes=classes)
    frozen = frozen.cpu()
    command = "attackcheck train " + shlex.join(_options(args))
    card: dict[str, object] = {
        "command": command,
        "data": pictures.name,
        "classes": list(pictures.classes or ()),
        "seed": args.seed,
        "steps": last.steps,
        "seconds": round(last.seconds, 1),
        "torch": str(torch.__version__),
        "parameters": sum(value.numel() for value in frozen.parameters()),
        "validation": validation.name,
        "accuracy": measured.accuracy,
        "miou": measured.miou,
        "radius_quantiles": {str(q): r for q, r in zip((0.1, 0.25, 0.5, 0.75, 0.9), measured.radii, strict=True)},
        "certified_accuracy": {str(r): share for r, share in zip((0.05, 0.1, 0.2), measured.certified, strict=True)},
    }
    save_checkpoint(out, frozen, card=card)
    _summary(out, measured, constants.joint, constants.pixel, card)


def _options(args: argparse.Namespace) -> list[str]:
    names: tuple[str, ...] = (
        "arch",
        "size",
        "width",
        "data",
        "validation",
        "crop",
        "steps",
        "batch",
        "loss",
        "tau",
        "margin",
        "focus",
    )
    options: list[str] = []
    names += ("noise",) if args.noise else ()
    for name in (*names, "lr", "seed", "threads"):
        value = getattr(args, name)
        if value is not None:
            options += [f"--{name}", str(value)]
    options += ["--precision", args.precision] if args.precision != "float32" else []
    options += ["--unconstrained"] if args.unconstrained else []
    return [*options, "--out", Path(args.out).name]


def _summary(out: Path, measured: Measured, joint: float, pixel: float, card: dict[str, object]) -> None:
    table = Table("figure", "value", title=f"{out}: {card['steps']} steps in {card['seconds']} s")
    table.add_row("pixel accuracy", f"{measured.accuracy:.4f}")
    table.add_row("mIoU", f"{measured.miou:.4f}")
    table.add_row(
        "certified radius, median (10 %, 90 %)",
        f"{measured.radius:.3f} ({measured.radii[0]:.3f}, {measured.radii[-1]:.3f})",
    )
    table.add_row("certified accuracy at 0.05, 0.1, 0.2", ", ".join(f"{share:.3f}" for share in measured.certified))
    table.add_row("Lipschitz constant, joint", f"{joint:.9f}")
    table.add_row("Lipschitz constant, pixel", f"{pixel:.9f}")
    table.add_row("parameters", f"{card['parameters']:,}")
    Console().print(table)
