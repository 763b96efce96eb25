"""Adversarial attacks on segmentation networks: optimisers x objectives, plans of them, and attacks of other libraries.

The face is lazy: importing this package imports neither torch nor any attack library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._boundary import boundary
    from ._cutting import cutting_planes
    from ._cw import cw
    from ._ddn import ddn
    from ._fmn import fmn
    from ._guided import guided
    from ._linearised import linearised
    from ._lipschitz import lipschitz_ascent
    from ._pairs import lipschitz_pairs
    from ._peaks import lipschitz_peaks
    from ._pgd import pgd
    from ._refine import bisect
    from .objectives import Goal, ImageFlip, Objective, PixelFlip, RegionFlip
    from .plans import Plan, Stage, plan, plan_of_attacks
    from .views import PixelView

__all__ = [
    "Goal",
    "ImageFlip",
    "Objective",
    "PixelFlip",
    "PixelView",
    "Plan",
    "RegionFlip",
    "Stage",
    "bisect",
    "boundary",
    "cutting_planes",
    "cw",
    "ddn",
    "fmn",
    "guided",
    "linearised",
    "lipschitz_ascent",
    "lipschitz_pairs",
    "lipschitz_peaks",
    "pgd",
    "plan",
    "plan_of_attacks",
]

_HOMES = {
    "Goal": "objectives",
    "ImageFlip": "objectives",
    "Objective": "objectives",
    "PixelFlip": "objectives",
    "RegionFlip": "objectives",
    "PixelView": "views",
    "Plan": "plans",
    "Stage": "plans",
    "plan": "plans",
    "plan_of_attacks": "plans",
    "bisect": "_refine",
    "boundary": "_boundary",
    "cutting_planes": "_cutting",
    "cw": "_cw",
    "ddn": "_ddn",
    "fmn": "_fmn",
    "guided": "_guided",
    "linearised": "_linearised",
    "lipschitz_ascent": "_lipschitz",
    "lipschitz_pairs": "_pairs",
    "lipschitz_peaks": "_peaks",
    "pgd": "_pgd",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
