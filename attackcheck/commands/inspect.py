"""`attackcheck inspect`: what is in a file, without running any of it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from attackcheck.errors import printable

if TYPE_CHECKING:
    from attackcheck.formats.inspection import Inspection

__all__ = ["add_arguments"]

SHOWN = 12


def add_arguments(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "inspect",
        help="what is in a file, without running any of it",
        description="Prints the format of a file, its tensors, claim and card, what a program calls, and what a pickle "
        "would import. Nothing of it is run. Exit code: 0 read, 2 could not be read.",
    )
    parser.add_argument("file", help="checkpoint, state_dict, program, directory with safetensors, .npz, or zoo:NAME")
    parser.add_argument("--all", action="store_true", help=f"all tensors, not the {SHOWN} largest")
    parser.add_argument("--json", metavar="FILE|-", help="write everything as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from attackcheck.formats.inspection import inspect_file
    from attackcheck.models.zoo import in_zoo
    from attackcheck.reporters.json import checked_target, write_json

    target = None if arguments.json is None else checked_target(arguments.json)
    given = str(arguments.file)
    seen = inspect_file(in_zoo(given.removeprefix("zoo:")).path if given.startswith("zoo:") else Path(given))
    if arguments.json is not None:
        write_json(target, seen.to_dict())
    if arguments.json != "-":
        _show(seen, every=arguments.all)
    return 0


def _show(seen: Inspection, *, every: bool) -> None:
    from attackcheck.formats.inspection import summed
    from attackcheck.models.pickles import never_permitted
    from attackcheck.reporters.console import plain_console

    out = plain_console(sys.stdout)

    def line(name: str, text: str) -> None:
        out.print(f"{name:8} {printable(text)}", soft_wrap=True)

    line("file", f"{seen.path}, {seen.size:,} bytes")
    line("format", seen.format)
    if seen.sha256 is not None:
        line("SHA-256", seen.sha256)
    if seen.claim is not None:
        line("claim", seen.claim)
    for key, value in seen.card.items():
        text = str(value)
        line("card", f"{key}: {text if len(text) <= 200 else text[:197] + '...'}")
    if seen.programs:
        shown = list(seen.programs.items())
        text = ", ".join(f"{name} x {count}" for name, count in (shown if every else shown[:SHOWN]))
        line("calls", text + ("" if every or len(shown) <= SHOWN else f" and {len(shown) - SHOWN} more"))
    if seen.tensors:
        numbers = ", ".join(f"{count:,} {dtype}" for dtype, count in summed(seen.tensors).items())
        line("tensors", f"{len(seen.tensors)}: {numbers}")
        ordered = seen.tensors if every else sorted(seen.tensors, key=lambda entry: -entry.numbers)[:SHOWN]
        for entry in ordered:
            line("", f"{entry.name}  {entry.dtype} {'x'.join(map(str, entry.shape)) or 'one number'}")
        if len(ordered) < len(seen.tensors):
            line("", f"and {len(seen.tensors) - len(ordered)} smaller ones (--all)")
    for note in seen.notes:
        line("note", note)
    if seen.refused:
        line("imports", f"loading it the usual way would import {len(seen.refused)} things that could run code:")
        for name in seen.refused:
            line("", name + (" (which no option permits)" if never_permitted(name) else ""))
        line("", "attackcheck refuses to. Ask for a state_dict (or safetensors) and give the network as --model;")
        if not any(map(never_permitted, seen.refused)):
            line("", f"or, if you trust a name in this list, permit each: --allow-global {seen.refused[0]}")
    elif seen.imports:
        line("imports", "nothing but what tensors are rebuilt with")
