"""Which pixels of an image are attacked, and in which order."""

from __future__ import annotations

import csv
import hashlib
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from attackcheck.errors import InputError

__all__ = ["HOW", "Choose", "PixelChoice", "choose_pixels", "read_pixels", "seed_of"]

PixelChoice = int | Literal["all"] | np.ndarray[Any, Any]
"""How many pixels per image, all of them, or ``(M, 3)`` integers: image, row, column."""

Choose = Literal["radius", "class", "random", "weakest"]
"""What a number of pixels is drawn by."""

HOW: dict[Choose, str] = {
    "radius": "stratified by radius",
    "class": "by class in turn",
    "random": "at random",
    "weakest": "smallest radii first",
}
"""The ways to choose, and what reports call them."""


def seed_of(*parts: object) -> int:
    """A seed that depends on every part and on nothing else, so that shards and batches do not change results."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, parts)).encode()).digest()[:8], "big") >> 1


def choose_pixels(
    choice: PixelChoice,
    radius: Tensor,
    eligible: Tensor,
    seed: int,
    image: int,
    *,
    how: Choose = "radius",
    predicted: Tensor | None = None,
) -> Tensor:
    """Pixels of one image to attack, most wanted first.

    A number draws that many of the eligible pixels: ``radius`` cuts them into as many groups of equal size as pixels
    are wanted, by certified radius, and draws one from each, so weak and strong certificates are both tried; ``random``
    draws from all; ``class`` takes every predicted class in turn, at random within it, so rare ones are tried as well;
    ``weakest`` takes the smallest radii. Pixels come in a random order (``weakest``: smallest radius first; ``class``:
    in turn), so that any first few of them are a sample of the same kind.

    Args:
        choice: how many, ``"all"``, or explicit pixels (taken as they are, also where not eligible).
        radius: ``(H, W)`` certified radii.
        eligible: ``(H, W)`` bool, pixels with something to attack.
        seed: seed of the run.
        image: number of the image.
        how: what a number of pixels is drawn by; the order of all of them.
        predicted: ``(H, W)`` classes, for ``class``.

    Returns:
        ``(M, 2)`` rows and columns on the CPU.

    Raises:
        InputError: if an explicit pixel lies outside the image, or there is no such way to choose.
    """
    generator = torch.Generator().manual_seed(seed_of(seed, image, "pixels"))
    height, width = radius.shape
    if isinstance(choice, np.ndarray):
        own = torch.from_numpy(np.unique(choice[choice[:, 0] == image][:, 1:].astype(np.int64), axis=0))
        outside = (own < 0).any(dim=1) | (own[:, 0] >= height) | (own[:, 1] >= width)
        if bool(outside.any()):
            worst = own[outside][0].tolist()
            raise InputError(f"expected pixels inside {height}x{width}, got row {worst[0]}, column {worst[1]}")
        return own
    candidates = eligible.cpu().flatten().nonzero()[:, 0]
    candidates = candidates[radius.cpu().flatten()[candidates].argsort(stable=True)]
    count = len(candidates) if choice == "all" else min(choice, len(candidates))
    match how:
        case "weakest":
            chosen = candidates[:count]
        case "radius":
            chosen = _stratified(candidates, count, generator)
        case "random":
            chosen = candidates[torch.randperm(len(candidates), generator=generator)[:count]]
        case "class" if predicted is not None:
            shuffled = candidates[torch.randperm(len(candidates), generator=generator)]
            chosen = _in_turn(shuffled, predicted.cpu().flatten()[shuffled])[:count]
        case _:
            raise InputError(f"expected pixels to be chosen by {', '.join(HOW)}, got {how!r}")
    return torch.stack([chosen // width, chosen % width], dim=1)


def _stratified(candidates: Tensor, count: int, generator: torch.Generator) -> Tensor:
    if count < len(candidates):
        edges = torch.linspace(0, len(candidates), count + 1, dtype=torch.float64)
        start, stop = edges[:-1].floor().long(), edges[1:].floor().long()
        draw = torch.rand(count, generator=generator, dtype=torch.float64)
        candidates = candidates[start + ((stop - start) * draw).long()]
    return candidates[torch.randperm(len(candidates), generator=generator)]


def _in_turn(candidates: Tensor, kind: Tensor) -> Tensor:
    """The first of every kind, then the second of every kind, and so on."""
    order = kind.argsort(stable=True)
    counts = kind.bincount()
    start = counts.cumsum(0) - counts
    turn = torch.arange(len(order)) - start[kind[order]]
    return candidates[order[turn.argsort(stable=True)]]


def read_pixels(text: str) -> PixelChoice:
    """Read ``--pixels``: a positive number, ``all``, or a .npy or .csv file of image, row, column.

    Raises:
        InputError: for anything else.
    """
    if text == "all":
        return "all"
    if re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        if int(text) < 1:
            raise InputError(f"expected --pixels of at least 1, got {text}")
        return int(text)
    path = Path(text)
    if path.suffix not in (".npy", ".csv") or not path.is_file():
        raise InputError(f"expected --pixels to be a number, 'all', or an existing .npy or .csv file, got {text!r}")
    try:
        if path.suffix == ".npy":
            array = np.load(path, allow_pickle=False)
        else:
            with path.open(newline="") as file:
                lines = [line for line in csv.reader(file) if line]
            if lines and not lines[0][0].strip().lstrip("-").isdigit():
                lines = lines[1:]  # a header
            array = np.array([[int(cell) for cell in line] for line in lines], dtype=np.int64)
    except Exception as error:  # whatever a broken file makes numpy or csv raise
        reason = type(error).__name__
        raise InputError(f"expected integers image, row, column in {path}, could not read it ({reason})") from error
    return check_pixels(array, str(path))


def check_pixels(array: np.ndarray[Any, Any], source: str) -> np.ndarray[Any, Any]:
    """An ``(M, 3)`` integer array, or an :class:`InputError` that names ``source``."""
    if array.ndim != 2 or array.shape[1] != 3 or len(array) == 0 or not np.issubdtype(array.dtype, np.integer):
        raise InputError(
            f"expected integers of shape (M, 3), M >= 1: image, row, column, in {source}; "
            f"got {array.dtype} of shape {array.shape}"
        )
    return array
