"""Large maps on little space: one pixel stands for each block."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["blocks"]

Array = np.ndarray[Any, Any]


def blocks(tightness: Array, radius: Array, cells: int) -> tuple[int, Array, Array]:
    """Blocks of pixels so large that there are at most ``cells`` of them, and one pixel of each that stands for it.

    It is the one with the largest tightness (where none was seen flipped: the one with the smallest radius), so that
    the numbers shown for a block belong together and no violation disappears.

    Returns:
        The edge of a block, rows ``(h, w)`` and columns ``(h, w)``.
    """
    height, width = radius.shape
    edge = 1
    while -(-height // edge) * -(-width // edge) > cells:
        edge += 1
    tall, wide = -(-height // edge), -(-width // edge)
    urgency = np.where(tightness > 0, tightness, -1.0 - np.minimum(radius, 1e30))
    padded = np.full((tall * edge, wide * edge), -np.inf)
    padded[:height, :width] = urgency
    by_block = padded.reshape(tall, edge, wide, edge).transpose(0, 2, 1, 3).reshape(tall, wide, edge * edge)
    best = by_block.argmax(axis=2)
    return edge, np.arange(tall)[:, None] * edge + best // edge, np.arange(wide)[None, :] * edge + best % edge
