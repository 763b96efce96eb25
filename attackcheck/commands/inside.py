"""What is in a file, without running any of it: `attackcheck inspect FILE`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from attackcheck.errors import printable

if TYPE_CHECKING:
    from attackcheck.formats.inspection import Inspection

__all__ = ["is_file_of_weights", "show_file"]

SHOWN = 12


def is_file_of_weights(given: str) -> bool:
    """Whether this is no run folder: a file, a directory with safetensors, or a network of the zoo."""
    path = Path(given)
    return given.startswith("zoo:") or not path.is_dir() or any(path.glob("*.safetensors*"))


def show_file(given: str, *, json: str | None, every: bool) -> int:
    """Print what is inside, or write it as JSON; returns the exit code."""
    from attackcheck.formats.inspection import inspect_file
    from attackcheck.models.zoo import in_zoo
    from attackcheck.reporters.json import checked_target, write_json

    target = None if json is None else checked_target(json)
    seen = inspect_file(in_zoo(given.removeprefix("zoo:")).path if given.startswith("zoo:") else Path(given))
    if json is not None:
        write_json(target, seen.to_dict())
    if json != "-":
        _show(seen, every=every)
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
