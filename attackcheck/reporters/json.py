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

__all__ = ["JsonReporter"]


class JsonReporter:
    """Writes the report to a file, all or nothing, or to stdout for ``-``.

    Raises:
        InputError: at once, if the file cannot be written as far as that can be seen before the run.
    """

    def __init__(self, target: str) -> None:
        self._path = None if target == "-" else Path(target)
        if self._path is None:
            return
        folder = self._path.resolve().parent
        if not target or self._path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
            raise InputError(f"expected --json to be a file in an existing folder that can be written, got {target!r}")

    def __call__(self, event: Event) -> None:
        """Wait for the last event, then write."""
        if isinstance(event, RunFinished):
            self.write(event.report.to_dict())

    def write(self, content: Mapping[str, Any]) -> None:
        """Write one object now."""
        text = json.dumps(content, indent=2, allow_nan=False) + "\n"
        if self._path is None:
            sys.stdout.write(text)
            return
        try:
            _write(self._path, text)
        except OSError as error:
            raise InputError(f"could not write {self._path}: {error.strerror or error}") from None


def _write(path: Path, text: str) -> None:
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
