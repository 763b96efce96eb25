"""One JSON object at the end of a run."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from attackcheck.errors import InputError
from attackcheck.events import Event, RunFinished

__all__ = ["JsonReporter"]


class JsonReporter:
    """Writes the report to a file, all or nothing, or to stdout for ``-``."""

    def __init__(self, target: str) -> None:
        self._target = target
        if target != "-" and not Path(target).resolve().parent.is_dir():
            raise InputError(f"expected --json in an existing folder, got {target!r}")

    def __call__(self, event: Event) -> None:
        """Wait for the last event, then write."""
        if not isinstance(event, RunFinished):
            return
        text = json.dumps(event.report.to_dict(), indent=2, allow_nan=False) + "\n"
        if self._target == "-":
            sys.stdout.write(text)
            return
        path = Path(self._target)
        partial = path.with_name(f".{path.name}.partial")
        try:
            partial.write_text(text)
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise InputError(f"could not write {path}: {error.strerror or error}") from None
