"""The same bits again and again: torch's deterministic algorithms, for as long as a run takes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from attackcheck.errors import InputError, in_one_line

__all__ = ["deterministic"]

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""Read by cuBLAS when a GPU is first used; without it torch refuses matrix products in this mode."""


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """As a context: where ``wanted``, operations have one result whatever their threads do; set back afterwards.

    Raises:
        InputError: inside, where an operation has no such implementation.
    """
    if not wanted:
        yield
        return
    before, only_warned = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    benchmark = torch.backends.cudnn.benchmark
    os.environ.setdefault(WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error) or isinstance(error, InputError):
            raise
        what = in_one_line(error).split(". ")[0]
        raise InputError(
            f"expected operations that can be deterministic, got: {what}; leave --deterministic out"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warned)
        torch.backends.cudnn.benchmark = benchmark
