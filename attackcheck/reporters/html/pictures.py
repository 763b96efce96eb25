"""Arrays as small PNG images inside the page."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["averaged", "blocks", "data_uri", "magnified", "palette_uri", "rgb"]

Array = np.ndarray[Any, Any]


def rgb(image: Array) -> Array:
    """``(H, W, 3)`` uint8 of an image ``(C, H, W)`` in [0, 1]; one channel is grey, of many the first three count."""
    channels = image[:3] if len(image) >= 3 else np.repeat(image[:1], 3, axis=0)
    bytes_: Array = (np.clip(np.nan_to_num(channels), 0.0, 1.0) * 255.0).round().astype(np.uint8)
    return np.ascontiguousarray(bytes_.transpose(1, 2, 0))


def magnified(clean: Array, perturbed: Array) -> tuple[Array, float]:
    """A perturbation around mid-grey, and the factor by which it is magnified to fill the range."""
    delta = perturbed.astype(np.float64) - clean.astype(np.float64)
    largest = float(np.abs(delta).max())
    factor = 0.5 / largest if largest > 0 else 1.0
    return rgb((0.5 + delta * factor).astype(np.float32)), factor


def data_uri(pixels: Array) -> str:
    """A PNG of ``(H, W, 3)`` uint8 as a data URI."""
    return _uri(Image.fromarray(pixels))


def palette_uri(indices: Array, palette: Array) -> str:
    """A PNG with a palette ``(n, 3)``, n at most 256, of indices ``(H, W)``: much smaller than full colours."""
    height, width = indices.shape
    picture = Image.frombytes("P", (width, height), np.ascontiguousarray(indices, dtype=np.uint8).tobytes())
    picture.putpalette(palette.astype(np.uint8).flatten().tolist())
    return _uri(picture)


def _uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


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


def averaged(image: Array, edge: int) -> Array:
    """``(C, h, w)``: the mean of each block."""
    if edge == 1:
        return image
    channels, height, width = image.shape
    tall, wide = -(-height // edge), -(-width // edge)
    padded = np.pad(image, ((0, 0), (0, tall * edge - height), (0, wide * edge - width)), mode="edge")
    mean: Array = padded.reshape(channels, tall, edge, wide, edge).mean(axis=(2, 4), dtype=np.float64)
    return mean.astype(np.float32)
