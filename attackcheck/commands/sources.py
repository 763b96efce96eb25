"""Options that say what is checked: the same names in every command."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from attackcheck.errors import InputError

if TYPE_CHECKING:
    from attackcheck.subject import Images, Subject

__all__ = ["First", "add_source_arguments", "check_device", "load_subject", "replay_options"]


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --model, --lipschitz, --scope, --radii and --device."""
    parser.add_argument(
        "--model",
        metavar="FILE.py:NAME",
        help="factory () -> model or (model, claim); also pkg.mod:NAME. Runs that code",
    )
    parser.add_argument(
        "--lipschitz", type=float, metavar="L", help="check this Lipschitz constant instead of the claim"
    )
    parser.add_argument(
        "--scope", choices=("joint", "pixel"), help="what L is about: the whole logit map, or each pixel"
    )
    parser.add_argument(
        "--radii",
        metavar="FILE.npz",
        help="check these radii (N, H, W); or pkg.mod:NAME or FILE.py:NAME, a certifier of (images), or of "
        "(model, images, lipschitz), which --lipschitz is handed to",
    )
    parser.add_argument("--device", default="cpu", help="where the model runs (default: cpu)")


def load_subject(arguments: argparse.Namespace) -> Subject:
    """The subject that these options name."""
    from attackcheck.loading import load

    check_device(arguments.device)
    return load(
        arguments.checkpoint,
        model=arguments.model,
        lipschitz=arguments.lipschitz,
        scope=arguments.scope,
        radii=arguments.radii,
    )


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
    for name in ("model", "lipschitz", "scope", "radii"):
        value = getattr(arguments, name)
        if value is not None:
            options += [f"--{name}", f"{value}"]
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
