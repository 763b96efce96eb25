"""The C library's allocator: what is freed may stay in hand. Nothing heavy is imported here."""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress

__all__ = ["give_back", "keep_freed"]

_MMAP_THRESHOLD, _TRIM_THRESHOLD = (-3, 32 * 2**20), (-1, 256 * 2**20)
"""Options of glibc's `mallopt` and bytes: the largest block that is not given back at once, and what stays in hand."""


def keep_freed() -> None:
    """Lets the allocator keep some of what is freed, for this whole process: attacks ask for it again at once.

    Every activation of every pass is a block of some megabytes; given back to the system each time, its pages are
    cleared and mapped again: up to a sixth of the time of the main thread, less of others. Does nothing where the C
    library is not glibc, or where the environment says how it shall be.
    """
    if not any(name.startswith("MALLOC_") for name in os.environ) and "GLIBC_TUNABLES" not in os.environ:
        for option in (_MMAP_THRESHOLD, _TRIM_THRESHOLD):
            _allocator("mallopt", *option)


def give_back() -> None:
    """Gives what was freed, and kept, back to the system, where the C library is glibc."""
    _allocator("malloc_trim", 0)


def _allocator(function: str, *arguments: int) -> None:
    with suppress(OSError, AttributeError, TypeError):  # another library, or none
        getattr(ctypes.CDLL(None), function)(*arguments)
