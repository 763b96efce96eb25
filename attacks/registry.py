"""Attacks by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from torch import Tensor

from attackcheck.errors import InputError

__all__ = ["Attack", "get", "names"]


@dataclass(frozen=True)
class Attack:
    """An optimiser under its public name.

    `minimal`: claims a perturbation of minimal norm (the others fill a given eps, or maximise the Lipschitz ratio).
    `refines`: ends on the boundary by itself; the others' flips are to be bisected back.
    `flips`: pursues an objective; else `function(model, images, *, ...)` moves the logits it is shown as far as it can.
    `paired`: calls the model with two free points of each pair side by side, of which neither is the image.
    `about_pixels`: seeks single pixels whose own logits move further than a constant of theirs permits.
    `objectives`: which of "pixel", "region", "image" it serves; "map" means `function(model, images, *, ...)`.
    """

    name: str
    function: Callable[..., Tensor]
    minimal: bool
    refines: bool
    flips: bool
    paired: bool
    about_pixels: bool
    objectives: frozenset[str]


_ALL = frozenset({"pixel", "region", "image"})
_PIXEL = frozenset({"pixel"})
_SETS = frozenset({"region", "image"})
_REFINING = frozenset({"_linearised", "_ddn", "_fmn", "_cw", "_cutting", "_boundary"})
_TABLE = {
    "linearised": ("_linearised", "linearised", True, _ALL),
    "ddn": ("_ddn", "ddn", True, _ALL),
    "fmn": ("_fmn", "fmn", True, _ALL),
    "cw": ("_cw", "cw", True, _ALL),
    "cutting": ("_cutting", "cutting_planes", True, _SETS),
    "boundary": ("_boundary", "boundary", True, _PIXEL),
    "pgd": ("_pgd", "pgd", False, _ALL),
    "guided": ("_guided", "guided", False, _SETS),
    "pairs": ("_pairs", "lipschitz_pairs", False, frozenset({"map", "pixel"})),
    "peaks": ("_peaks", "lipschitz_peaks", False, frozenset({"map"})),
    "lipschitz": ("_lipschitz", "lipschitz_ascent", False, frozenset({"map", "pixel"})),
    "foolbox.ddn": ("_foolbox", "foolbox_ddn", True, _PIXEL),
    "foolbox.cw": ("_foolbox", "foolbox_cw", True, _PIXEL),
    "foolbox.deepfool": ("_foolbox", "foolbox_deepfool", True, _PIXEL),
    "foolbox.fmn": ("_foolbox", "foolbox_fmn", True, _PIXEL),
    "foolbox.pgd": ("_foolbox", "foolbox_pgd", False, _PIXEL),
    "torchattacks.pgd": ("_torchattacks", "torchattacks_pgd", False, _PIXEL),
    "torchattacks.cw": ("_torchattacks", "torchattacks_cw", True, _PIXEL),
    "torchattacks.fab": ("_torchattacks", "torchattacks_fab", True, _PIXEL),
    "torchattacks.deepfool": ("_torchattacks", "torchattacks_deepfool", True, _PIXEL),
}


def names() -> tuple[str, ...]:
    """All attacks, ours first."""
    return tuple(_TABLE)


def get(name: str) -> Attack:
    """The attack of this name; raises InputError with the choices, or if its library is not installed."""
    if name not in _TABLE:
        close = difflib.get_close_matches(name, _TABLE, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise InputError(f"expected an attack among {', '.join(_TABLE)}, got {name!r}{hint}")
    library, dot, _ = name.partition(".")
    if dot and find_spec(library) is None:
        extra = "" if library == "foolbox" else "[peers]"
        raise InputError(f"{name} needs {library}, which is not installed: pip install 'attackcheck{extra}'")
    home, function, minimal, objectives = _TABLE[name]
    refines = home in _REFINING
    flips = "map" not in objectives
    call = getattr(import_module(f".{home}", __package__), function)
    return Attack(name, call, minimal, refines, flips, home == "_pairs", home == "_peaks", objectives)
