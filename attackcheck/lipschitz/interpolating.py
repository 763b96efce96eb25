"""Resizing as torch runs it: the arguments of ATen's operations in the words of :mod:`attackcheck.lipschitz.bounds`."""

from __future__ import annotations

from typing import Any

from attackcheck.lipschitz import bounds
from attackcheck.lipschitz.bounds import Bound
from attackcheck.tracing import Operation

__all__ = ["MODES", "interpolated"]

MODES = {
    "upsample_nearest2d": ("nearest", False),
    "_upsample_nearest_exact2d": ("nearest-exact", False),
    "upsample_bilinear2d": ("bilinear", False),
    "upsample_bicubic2d": ("bicubic", False),
    "_upsample_bilinear2d_aa": ("bilinear", True),
    "_upsample_bicubic2d_aa": ("bicubic", True),
}


def interpolated(operation: Operation, size: tuple[int, ...]) -> tuple[Bound, str, str, float, float]:
    """Bound, kind, detail, and two constants of single places of a resizing operation at this input size.

    No place moves further than the first constant times the furthest of its sources, or than the second times the
    norm of the whole source.
    """
    mode, antialias = MODES[operation.name]
    corners = bool(operation.args[2]) if mode in ("bilinear", "bicubic") else None
    scales: list[float | None] = list(operation.args[2 if corners is None else 3 :])
    output = tuple(operation.shapes[0][2:])
    # Where a scale was given, it, and not the ratio of sizes, decides where samples are taken.
    given: Any = tuple(scales) if scales and None not in scales and not corners else output
    bound = bounds.interpolation(size, given, mode, corners, antialias)
    one = bounds.interpolation_per_pixel(size, given, mode, corners, antialias, joint=False).upper
    together = bounds.interpolation_per_pixel(size, given, mode, corners, antialias).upper
    detail = f"to {output[0]}x{output[1]}" + (" corners" if corners else "") + (" smooth" if antialias else "")
    return bound, f"{mode} resizing", detail, one, together
