"""A picture with its labels, a set of such, and how both are read from files and checked."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attackcheck.errors import InputError

__all__ = ["IGNORE", "Dataset", "Sample", "files_in", "open_picture", "sample"]

IGNORE = 255
PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
Array = npt.NDArray[Any]


class Sample(NamedTuple):
    """One picture: its name, the image (C, H, W) float32 in [0, 1], the labels (H, W) int64 (255: ignored) or None."""

    name: str
    image: Tensor
    labels: Tensor | None


@dataclass(frozen=True)
class Dataset:
    """Pictures by index, read when asked for. Reading raises InputError when a picture cannot be used."""

    name: str
    classes: tuple[str, ...] | None
    length: int
    read: Callable[[int], Sample]
    ignore: int = IGNORE
    colours: tuple[tuple[int, int, int], ...] | None = None  # official colours of the classes, where there are any

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if not -self.length <= index < self.length:
            raise IndexError(index)
        return self.read(index % self.length)

    def __iter__(self) -> Iterator[Sample]:
        return map(self.read, range(self.length))


def sample(name: str, image: Array, labels: Array | None) -> Sample:
    """Checks an image (C, H, W) and labels (H, W), and brings them to float32 in [0, 1] and int64."""
    if image.ndim != 3 or 0 in image.shape:
        raise InputError(f"expected the image {name} to have shape (C, H, W), got {image.shape}")
    if image.dtype == np.uint8:
        pixels = torch.from_numpy(np.ascontiguousarray(image)).float() / 255
    elif image.dtype in (np.float32, np.float64, np.float16):
        pixels = torch.from_numpy(np.ascontiguousarray(image, np.float32))
        if not bool(((pixels >= 0) & (pixels <= 1)).all()):  # NaN fails too
            raise InputError(f"expected the image {name} to lie in [0, 1], got NaN or values beyond; scale it")
    else:
        raise InputError(f"expected the image {name} to be uint8 or float, got {image.dtype}")
    if labels is None:
        return Sample(name, pixels, None)
    if labels.shape != image.shape[1:] or labels.dtype.kind not in "iu":
        raise InputError(
            f"expected whole labels of shape {image.shape[1:]} for {name}, got {labels.dtype} {labels.shape}"
        )
    values = torch.from_numpy(labels.astype(np.int64))
    if bool((values < 0).any()) or bool((values > 255).any()):
        raise InputError(f"expected labels of {name} in 0..255 (255 is ignored), got values beyond")
    return Sample(name, pixels, values)


def open_picture(file: Path, mask: bool = False) -> Array:
    from PIL import Image

    try:
        with Image.open(file) as picture:
            if not mask:
                return np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
            if picture.mode not in {"L", "P", "1", "I", "I;16"}:
                raise InputError(f"expected {file} to hold one class index per pixel, got mode {picture.mode}")
            return np.asarray(picture).astype(np.int64)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"expected a picture in {file}, which cannot be read: {error}") from error


def files_in(folder: Path, accept: Callable[[Path], bool]) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"expected pictures in the folder {folder}, but there is no such folder")
    found = sorted(path for path in folder.rglob("*") if accept(path))
    if not found:
        raise InputError(f"expected pictures in the folder {folder}, got none")
    return found
