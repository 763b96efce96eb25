"""Imports of the libraries under comparison, and a fence around their global state."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
import types
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

__all__ = ["fenced", "installed", "library"]


def installed(name: str) -> bool:
    """Whether a library can be imported, without importing it."""
    return find_spec(name) is not None


def library(name: str) -> Any:
    """The module of this name.

    adv_lib imports visdom for its plots and torchvision for a perceptual distance, and needs neither for the attacks
    compared here: where they are missing or do not load, empty modules stand in for them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name.startswith("adv_lib") and "adv_lib" not in sys.modules:
            for missing, attribute in (("visdom", "Visdom"), ("torchvision", "models")):
                try:
                    importlib.import_module(missing)
                except Exception:  # torchvision raises RuntimeError beside a torch that it was not built for
                    for part in [key for key in sys.modules if key.split(".")[0] == missing]:
                        del sys.modules[part]
                    stand_in = types.ModuleType(missing)
                    setattr(stand_in, attribute, None)
                    sys.modules[missing] = stand_in
        return importlib.import_module(name)


@contextlib.contextmanager
def fenced(seed: int) -> Iterator[None]:
    """Global random numbers seeded, warnings and output swallowed, and nothing compiled behind the clock's back."""
    with (
        torch.random.fork_rng(devices=[]),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        torch.enable_grad(),
    ):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        np.random.seed(seed)
        with torch.compiler.set_stance("force_eager"):
            yield
