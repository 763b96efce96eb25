"""Whether a picture can be drawn, asked before anything is computed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from attackcheck.errors import InputError

__all__ = ["check_plot"]


def check_plot(path: Path) -> None:
    """Raise :class:`InputError` if this file cannot be drawn, before anything is computed."""
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise InputError(f"expected --plot to end in .png, .svg or .pdf, got {str(path)!r}")
    if find_spec("matplotlib") is None:
        raise InputError("--plot needs matplotlib, which is not installed: pip install 'attackcheck[plots]'")
