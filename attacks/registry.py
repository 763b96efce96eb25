"""Attacks by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from torch import Tensor

from attackcheck.errors import InputError

__all__ = ["Attack", "get", "names"]


@dataclass(frozen=True)
class Attack:
    """An optimiser under its public name.

    `minimal`: claims a perturbation of minimal norm (the others fill a given eps, or maximise the Lipschitz ratio).
    `refines`: ends on the boundary by itself; the others' flips are to be bisected back.
    `flips`: pursues an objective; else `function(model, images, *, ...)` moves the logits it is shown as far as it can.
    `objectives`: which of "pixel", "region", "image" it serves; "map" means `function(model, images, *, ...)`.
    """

    name: str
    function: Callable[..., Tensor]
    minimal: bool
    refines: bool
    flips: bool
    objectives: frozenset[str]


_ALL = frozenset({"pixel", "region", "image"})
_PIXEL = frozenset({"pixel"})
_REFINING = frozenset({"_linearised", "_ddn", "_cw"})
_TABLE = {
    "linearised": ("_linearised", "linearised", True, _ALL),
    "ddn": ("_ddn", "ddn", True, _ALL),
    "cw": ("_cw", "cw", True, _ALL),
    "pgd": ("_pgd", "pgd", False, _ALL),
    "lipschitz": ("_lipschitz", "lipschitz_ascent", False, frozenset({"map", "pixel"})),
    "foolbox.ddn": ("libraries", "foolbox_ddn", True, _PIXEL),
    "foolbox.cw": ("libraries", "foolbox_cw", True, _PIXEL),
    "foolbox.deepfool": ("libraries", "foolbox_deepfool", True, _PIXEL),
    "foolbox.fmn": ("libraries", "foolbox_fmn", True, _PIXEL),
    "foolbox.pgd": ("libraries", "foolbox_pgd", False, _PIXEL),
    "torchattacks.pgd": ("libraries", "torchattacks_pgd", False, _PIXEL),
    "torchattacks.cw": ("libraries", "torchattacks_cw", True, _PIXEL),
    "torchattacks.fab": ("libraries", "torchattacks_fab", True, _PIXEL),
    "torchattacks.deepfool": ("libraries", "torchattacks_deepfool", True, _PIXEL),
}


def names() -> tuple[str, ...]:
    """All attacks, ours first."""
    return tuple(_TABLE)


def get(name: str) -> Attack:
    """The attack of this name; raises InputError with the choices."""
    if name not in _TABLE:
        close = difflib.get_close_matches(name, _TABLE, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise InputError(f"expected an attack among {', '.join(_TABLE)}, got {name!r}{hint}")
    home, function, minimal, objectives = _TABLE[name]
    refines = home in _REFINING
    flips = "map" not in objectives
    return Attack(name, getattr(import_module(f".{home}", __package__), function), minimal, refines, flips, objectives)
