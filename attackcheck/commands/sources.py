"""Options that say what is checked: the same names in every command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from attackcheck.errors import InputError, printable

if TYPE_CHECKING:
    from torch import Tensor

    from attackcheck.metrics import MetricClaim
    from attackcheck.subject import Images, Subject

__all__ = [
    "CHECKPOINT",
    "COUNTEREXAMPLES",
    "First",
    "add_source_arguments",
    "check_device",
    "file_options",
    "load_subject",
    "metrics_of",
    "replay_options",
    "tell_notices",
]

CHECKPOINT = (
    "checkpoint, zoo:NAME, .pt2, TorchScript, .onnx, factory, or with --model a state_dict or a directory with "
    "safetensors; none: the one that ships"
)
COUNTEREXAMPLES = "attackcheck-counterexamples"
"""Folder in which commands keep counterexamples where none is named."""


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --model and its arguments, the options that make a claim, --allow-global and --device."""
    parser.add_argument(
        "--model",
        metavar="FILE.py:NAME",
        help="factory () -> model or (model, claim); also pkg.mod:NAME. Runs that code",
    )
    parser.add_argument(
        "--model-args", metavar="TOML", help="keywords for the factory: FILE.toml, or such as 'width = 32, depth = 3'"
    )
    parser.add_argument(
        "--lipschitz", type=float, metavar="L", help="check this Lipschitz constant instead of the claim"
    )
    parser.add_argument(
        "--scope", choices=("joint", "pixel"), help="what L is about: the whole logit map, or each pixel"
    )
    parser.add_argument(
        "--class-pair", metavar="LAYER", help="dotted name of the last 1x1 convolution; L is that of all before it"
    )
    parser.add_argument(
        "--radii",
        metavar="FILE.npz",
        help="check these radii (N, H, W), perhaps with alpha; or pkg.mod:NAME or FILE.py:NAME, a certifier of "
        "(images), or of (model, images, lipschitz), which --lipschitz is handed to; numpy:... if it takes arrays",
    )
    parser.add_argument("--claim", metavar="FILE", help="the claim in a TOML or JSON file")
    parser.add_argument(
        "--allow-global",
        action="append",
        default=[],
        metavar="MODULE.NAME",
        help="let a pickle import this; may be repeated (see attackcheck inspect)",
    )
    parser.add_argument("--device", default="cpu", help="where the model runs (default: cpu)")


def load_subject(arguments: argparse.Namespace, image: Callable[[], Tensor] | None = None) -> Subject:
    """The subject that these options name; ``image`` reads one of the data. Notices go to stderr."""
    from attackcheck.loading import load

    check_device(arguments.device)
    subject = load(
        arguments.checkpoint,
        model=arguments.model,
        lipschitz=arguments.lipschitz,
        scope=arguments.scope,
        radii=arguments.radii,
        claim=arguments.claim,
        class_pair=arguments.class_pair,
        image=image,
        **file_options(arguments),
    )
    tell_notices(subject)
    return subject


def file_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """How files and factories are to be read, apart from the claim."""
    from attackcheck.formats.factories import read_arguments

    given = None if arguments.model_args is None else read_arguments(arguments.model_args)
    return {"model_args": given, "allow_globals": tuple(arguments.allow_global)}


def tell_notices(subject: Subject) -> None:
    """What was done to a file on the way, on stderr."""
    for notice in subject.meta.get("notices", ()):
        if sys.stderr is not None:
            print(f"note: {printable(str(notice))}", file=sys.stderr)


def metrics_of(arguments: argparse.Namespace) -> tuple[MetricClaim, ...]:
    """Claims about measures, from --metric and from --claim."""
    from attackcheck.formats.claim_files import read_claim
    from attackcheck.metrics import read_metrics

    metrics = () if arguments.metric is None else read_metrics(arguments.metric)
    if arguments.claim is not None and arguments.claim != arguments.metric and read_claim(arguments.claim).has_metrics:
        metrics += read_metrics(arguments.claim)
    return metrics


def check_device(device: str) -> None:
    """Raise :class:`InputError` for a device that is not there."""
    import torch

    try:
        torch.zeros(1, device=device).cpu()
    except Exception as error:  # torch raises all kinds for devices that it knows only by name
        raise InputError(f"expected a device that torch can use here, such as cpu or cuda, got {device!r}") from error


def replay_options(arguments: argparse.Namespace) -> list[str]:
    """What a replay command needs beside the counterexample: model and claim as they were given."""
    options = [] if arguments.checkpoint is None else [arguments.checkpoint]
    for name in ("model", "model-args", "lipschitz", "scope", "class-pair", "radii", "claim"):
        value = getattr(arguments, name.replace("-", "_"), None)
        if value is not None:
            options += [f"--{name}", f"{value}"]
    for name in getattr(arguments, "allow_global", None) or ():
        options += ["--allow-global", name]
    if arguments.device != "cpu":
        options += ["--device", arguments.device]
    return options


class First:
    """The first images of a data set."""

    def __init__(self, data: Images, count: int) -> None:
        self._data, self._count = data, min(count, len(data))
        self.name, self.classes, self.ignore = data.name, data.classes, data.ignore

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        return self._data[index]
