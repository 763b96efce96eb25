"""One JSON object at the end of a run."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attackcheck.errors import InputError
from attackcheck.events import Event, RunFinished

__all__ = ["JsonReporter", "checked_target", "write_json", "write_whole"]


class JsonReporter:
    """Writes the report to a file, all or nothing, or to stdout for ``-``.

    Raises:
        InputError: at once, if the file cannot be written as far as that can be seen before the run.
    """

    def __init__(self, target: str) -> None:
        self._path = checked_target(target)

    def __call__(self, event: Event) -> None:
        """Wait for the last event, then write."""
        if not isinstance(event, RunFinished):
            return
        write_json(self._path, event.report.to_dict())


def checked_target(target: str, option: str = "--json") -> Path | None:
    """The file that an option names, None for ``-``.

    Raises:
        InputError: if the file cannot be written as far as that can be seen.
    """
    if target == "-":
        return None
    path = Path(target)
    folder = path.resolve().parent
    if not target or path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InputError(f"expected {option} to be a file in an existing folder that can be written, got {target!r}")
    return path


def write_json(path: Path | None, document: Mapping[str, Any]) -> None:
    """Write one object to a file, all or nothing, or to stdout.

    Raises:
        InputError: if the file cannot be written.
    """
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    if path is None:
        sys.stdout.write(text)
        return
    try:
        write_whole(path, text)
    except OSError as error:
        raise InputError(f"could not write {path}: {error.strerror or error}") from None


def write_whole(path: Path, text: str) -> None:
    """Write a file, all or nothing; OSError if that fails."""
    if path.exists() and not path.is_file():  # a device or a pipe is written to, never replaced
        path.write_text(text)
        return
    path = path.resolve()
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
