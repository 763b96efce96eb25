"""Arrays as small PNG images inside the page."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

__all__ = ["averaged", "data_uri", "magnified", "palette_uri", "rgb"]

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


def averaged(image: Array, edge: int) -> Array:
    """``(C, h, w)``: the mean of each block."""
    if edge == 1:
        return image
    channels, height, width = image.shape
    tall, wide = -(-height // edge), -(-width // edge)
    padded = np.pad(image, ((0, 0), (0, tall * edge - height), (0, wide * edge - width)), mode="edge")
    mean: Array = padded.reshape(channels, tall, edge, wide, edge).mean(axis=(2, 4), dtype=np.float64)
    return mean.astype(np.float32)
