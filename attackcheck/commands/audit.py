"""`attackcheck audit`: what the weights prove of a claim."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from attackcheck.commands.sources import CHECKPOINT, COUNTEREXAMPLES, add_source_arguments, load_subject, replay_options
from attackcheck.errors import InputError, printable

if TYPE_CHECKING:
    from torch import Tensor

    from attackcheck.subject import Subject

__all__ = ["add_arguments"]


def add_arguments(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "audit",
        help="what the weights prove of a claim",
        description="Bounds the Lipschitz constant of a network rigorously from its weights, layer by layer, and "
        "compares it with the claim. Exit code: 0 proved or undecided, 1 refuted (the claim, or a constant that it "
        "counts a layer with), 2 could not check, 130 interrupted. Two images that refute the claim are kept in "
        f"{COUNTEREXAMPLES}.",
    )
    parser.add_argument("checkpoint", nargs="?", help=CHECKPOINT)
    add_source_arguments(parser)
    parser.add_argument(
        "--input-shape",
        metavar="C,H,W",
        help="shape of an image (default: as in training, where the checkpoint says; else that of the data)",
    )
    parser.add_argument("--data", metavar="SPEC", help="start the lower bound from the first of these images, too")
    parser.add_argument("--seed", type=int, default=0, help="seed of random starts (default: 0)")
    parser.add_argument("--all", action="store_true", help="show every layer, not the twenty largest")
    parser.add_argument("--json", metavar="FILE|-", help="write the report as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    shape = _shape(arguments.input_shape)
    if arguments.seed < 0:
        raise InputError(f"expected a seed of at least 0, got {arguments.seed}")
    from attackcheck.lipschitz.auditing import TOLERANCE, audit
    from attackcheck.lipschitz.evidence import with_counterexample
    from attackcheck.models.datasets import load_data
    from attackcheck.reporters.audits import show_audit
    from attackcheck.reporters.console import plain_console
    from attackcheck.reporters.json import checked_target, write_json

    target = None if arguments.json is None else checked_target(arguments.json)
    subject = load_subject(arguments, lambda: _image(arguments, shape))
    images = None
    shape = shape or _trained_on(subject)
    if arguments.data is not None or shape is None:
        images = load_data(arguments.data)[0].image[None]
        if arguments.input_shape is not None and tuple(images.shape[1:]) != shape:
            raise InputError(f"expected --input-shape to be that of the data, {tuple(images.shape[1:])}, got {shape}")
        shape = tuple(images.shape[1:])
    report = audit(subject.model, subject.claim, shape, images=images, seed=arguments.seed, device=arguments.device)
    try:
        report = with_counterexample(
            report, Path(COUNTEREXAMPLES), subject=subject.meta, seed=arguments.seed, tolerance=TOLERANCE
        )
    except InputError as error:  # a full disk must not cost the finding
        print(f"attackcheck: {printable(str(error))}", file=sys.stderr)
    console = plain_console(sys.stderr if arguments.json == "-" else sys.stdout)
    replay = ("attackcheck", "replay", *replay_options(arguments))
    show_audit(console, report, str(subject.meta.get("model", "a callable")), replay=replay, every=arguments.all)
    if arguments.json is not None:
        write_json(target, report.to_dict() | {"subject": {**subject.meta, "device": arguments.device}})
    return report.exit_code()


def _image(arguments: argparse.Namespace, shape: tuple[int, ...] | None) -> Tensor:
    """Any image that the model takes, to see what it returns."""
    import torch

    from attackcheck.models.datasets import load_data

    if arguments.data is None and shape is not None:
        return torch.rand(shape, generator=torch.Generator().manual_seed(0))
    image: Tensor = load_data(arguments.data)[0].image
    return image


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    if re.fullmatch(r"[1-9]\d*,[1-9]\d*,[1-9]\d*", text.replace(" ", "")) is None:
        raise InputError(f"expected --input-shape as three numbers such as 3,64,128, got {text!r}")
    return tuple(int(number) for number in text.split(","))


def _trained_on(subject: Subject) -> tuple[int, ...] | None:
    """Shape of the images that one of our checkpoints was trained on, where its card says so."""
    card = subject.meta.get("card")
    size = re.search(r":(\d+)x(\d+)$", str(card.get("data"))) if isinstance(card, dict) else None
    channels = getattr(getattr(subject.model, "config", None), "channels", None)
    return None if size is None or channels is None else (int(channels), int(size[1]), int(size[2]))
