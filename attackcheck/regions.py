"""Regions to attack: a mask, a rectangle, a predicted class, or connected components of the prediction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from attackcheck.errors import InputError

__all__ = ["Region", "RegionRequest", "parse_region"]


@dataclass(frozen=True)
class Region:
    """Pixels of one image that are to flip together."""

    name: str
    mask: Tensor  # (H, W) bool
    fraction: float = 1.0


@dataclass(frozen=True)
class RegionRequest:
    """A region as asked for, before the image and its prediction are known.

    Args:
        kind: ``mask``, ``rect``, ``class`` or ``components``.
        argument: a file, ``TOP,LEFT,HEIGHT,WIDTH``, a class number, or how many components.
        fraction: share of the region that must flip, in (0, 1].
    """

    kind: str
    argument: str
    fraction: float = 1.0

    def resolve(self, predicted: Tensor, radius: Tensor) -> Sequence[Region]:
        """The regions of one image.

        Args:
            predicted: ``(H, W)`` clean prediction.
            radius: ``(H, W)`` certified radii: components are taken weakest joint certificate first.

        Raises:
            InputError: if the region does not fit the image.
        """
        height, width = predicted.shape
        if self.kind == "class":
            mask = predicted == int(self.argument)
            return [Region(f"class {self.argument}", mask, self.fraction)] if bool(mask.any()) else []
        if self.kind == "components":
            return self._components(predicted, radius)
        if self.kind == "rect":
            top, left, rows, columns = (int(part) for part in self.argument.split(","))
            if not (0 <= top < top + rows <= height and 0 <= left < left + columns <= width):
                raise InputError(f"expected a rectangle inside {height}x{width} pixels, got {self.argument}")
            mask = torch.zeros_like(predicted, dtype=torch.bool)
            mask[top : top + rows, left : left + columns] = True
            return [Region(f"rect {self.argument}", mask, self.fraction)]
        mask = _read_mask(Path(self.argument)).to(predicted.device)
        if mask.shape != predicted.shape:
            raise InputError(f"expected a mask of {height}x{width} pixels, got {tuple(mask.shape)} in {self.argument}")
        return [Region(f"mask {Path(self.argument).name}", mask, self.fraction)]

    def describe(self) -> str:
        """For a sentence."""
        if self.kind == "components":
            return "connected component of 16 pixels or more"
        return f"{self.kind} {self.argument}"

    def _components(self, predicted: Tensor, radius: Tensor, smallest: int = 16) -> Sequence[Region]:
        classes, weakness = predicted.cpu().numpy(), radius.cpu().numpy()
        found: list[tuple[float, Region]] = []
        for value in np.unique(classes):
            labelled, _ = ndimage.label(classes == value)
            for number, box in enumerate(ndimage.find_objects(labelled), start=1):
                mask = labelled == number
                if np.count_nonzero(mask[box]) < smallest:
                    continue
                joint = float(np.sqrt(np.square(weakness[mask]).sum()))
                name = f"class {value} at {box[0].start}, {box[1].start}"
                found.append((joint, Region(name, torch.from_numpy(mask).to(predicted.device), self.fraction)))
        found.sort(key=lambda pair: pair[0])
        return [region for _, region in found[: int(self.argument)]]


def parse_region(spec: str) -> RegionRequest:
    """Read ``mask:FILE``, ``rect:TOP,LEFT,HEIGHT,WIDTH``, ``class:K`` or ``components[:N]``, each with ``@FRACTION``.

    Raises:
        InputError: for anything else.
    """
    body, _, share = spec.partition("@")
    kind, _, argument = body.partition(":")
    try:
        fraction = float(share) if share else 1.0
        if not 0.0 < fraction <= 1.0:
            raise ValueError
        if kind == "rect" and len([int(part) for part in argument.split(",")]) != 4:
            raise ValueError
        if kind == "components":
            argument = argument or "1"
        if kind in ("class", "components") and int(argument) < (kind == "components"):
            raise ValueError
        if kind not in ("mask", "rect", "class", "components"):
            raise ValueError
    except ValueError:
        raise InputError(
            "expected a region like mask:FILE, rect:TOP,LEFT,HEIGHT,WIDTH, class:K or components:N, "
            f"each optionally with @FRACTION in (0, 1], got {spec!r}"
        ) from None
    if kind == "mask" and not Path(argument).is_file():
        raise InputError(f"expected a mask file (.npy or an image), found none at {argument!r}")
    return RegionRequest(kind, argument, fraction)


def _read_mask(path: Path) -> Tensor:
    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
        else:
            from PIL import Image

            array = np.asarray(Image.open(path).convert("L"))
    except Exception as error:  # whatever a broken file makes numpy or Pillow raise
        reason = type(error).__name__
        raise InputError(f"expected a mask (.npy or an image) in {path}, could not read it ({reason})") from error
    if array.ndim != 2 or not np.any(array):
        raise InputError(f"expected a two-dimensional mask with at least one pixel set in {path}")
    return torch.from_numpy(np.ascontiguousarray(array != 0))
