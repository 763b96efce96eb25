"""Pictures to train on and to attack, named by a short specification and read one at a time."""

import re
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from attackcheck.errors import InputError, in_one_line

from . import layouts, scenes
from .pictures import Array, Dataset, Sample, sample
from .resizing import resized
from .shelf import SCENES

__all__ = ["Dataset", "Sample", "load_data"]

_SPECS = (
    "shipped, scenes[:N[:SEED[:HxW]]], folder:DIR, arrays:FILE.npz, cityscapes:DIR, pets:DIR, kvasir:DIR or voc:DIR"
)


def load_data(spec: str | None = None) -> Dataset:
    """The pictures that `spec` names; None is "shipped".

    "shipped": the validation scenes that come with the package. "scenes[:N[:SEED[:HxW]]]": drawn street scenes.
    "folder:DIR": DIR/images, with DIR/masks (8-bit class index, 255 ignored) and DIR/classes.txt where they exist; with
    classes.txt, values beyond its lines are ignored too. "arrays:FILE.npz": `images` NCHW, float32 in [0, 1] or uint8,
    and perhaps `labels` NHW. Published folders, each perhaps with ":SPLIT": "cityscapes:DIR" (val, train, test; ids
    mapped to the 19 training classes; DIR may be left out where CITYSCAPES_DATASET is set), "pets:DIR" (test,
    trainval), "kvasir:DIR", "voc:DIR" (val, train, trainval).

    Folders take "@HxW" at the end: pictures of that size, reduced by averaging, labels by their nearest; with
    "@HxW+crop" pictures keep their shape, and what is left over is cut off evenly. Distances between pictures are then
    about the reduced ones. Raises InputError for anything missing or malformed.
    """
    kind, _, rest = (spec or "shipped").partition(":")
    if kind not in ("shipped", "scenes", "arrays"):
        rest, size, crop = _size(rest)
        if size is not None:
            return resized(_published(kind, rest, spec), size, crop)
        return _published(kind, rest, spec)
    match kind:
        case "shipped" if not rest:
            pictures = _arrays(SCENES, "shipped")
            return Dataset("shipped", scenes.CLASSES, pictures.length, pictures.read)
        case "scenes":
            return _scenes(rest)
        case "arrays" if rest:
            return _arrays(Path(rest), f"arrays:{rest}")
    raise InputError(f"expected data as {_SPECS}, got {spec!r}")


def _published(kind: str, rest: str, spec: str | None) -> Dataset:
    if kind == "cityscapes":
        return layouts.cityscapes(rest)
    if rest and kind in layouts.LAYOUTS:
        return layouts.LAYOUTS[kind](rest)
    raise InputError(f"expected data as {_SPECS}, got {spec!r}")


def _size(rest: str) -> tuple[str, tuple[int, int] | None, bool]:
    """The specification without its size, the size, and whether to crop."""
    found = re.fullmatch(r"(.*)@(\d{1,5})x(\d{1,5})(\+crop)?", rest)
    if found is None:
        return rest, None, False
    height, width = int(found[2]), int(found[3])
    if not height or not width:
        raise InputError(f"expected a size of at least 1x1 after @, got {height}x{width}")
    return found[1], (height, width), found[4] is not None


def _scenes(rest: str) -> Dataset:
    found = re.fullmatch(r"(?:(\d{1,7})(?::(\d{1,9})(?::(\d{1,5})x(\d{1,5}))?)?)?", rest)
    if not found:
        raise InputError(f"expected scenes[:N[:SEED[:HxW]]] such as scenes:16:0:64x128, got 'scenes:{rest}'")
    count, seed = int(found[1] or 16), int(found[2] or 0)
    height, width = int(found[3] or 64), int(found[4] or 128)
    if not count or min(height, width) < 16 or height * width > 1 << 26:
        raise InputError(f"expected at least one scene of 16x16 to 8192x8192, got {count} of {height}x{width}")

    def read(index: int) -> Sample:
        image, labels = scenes.scene(seed, index, height, width)
        return sample(f"scene-{seed}-{index}", image.transpose(2, 0, 1), labels)

    return Dataset(f"scenes:{count}:{seed}:{height}x{width}", scenes.CLASSES, count, read)


class _Member(NamedTuple):
    """Where one array of an .npz lies, so that single rows of it can be read."""

    file: Path
    entry: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int

    def row(self, index: int) -> Array:
        size = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        with zipfile.ZipFile(self.file) as archive, archive.open(self.entry) as stream:
            stream.seek(self.start + index * size)
            data = stream.read(size)
        if len(data) != size:
            raise InputError(f"expected {self.shape[0]} rows in {self.entry} of {self.file}, got a truncated file")
        return np.frombuffer(data, self.dtype).reshape(self.shape[1:]).copy()


def _member(file: Path, archive: zipfile.ZipFile, name: str) -> _Member:
    with archive.open(f"{name}.npy") as stream:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = header(stream)
        if dtype.hasobject or fortran:
            raise InputError(
                f"expected {name} in {file} to be a plain C-ordered array, got {dtype} objects or Fortran order"
            )
        return _Member(file, f"{name}.npy", shape, dtype, stream.tell())


def _arrays(file: Path, name: str) -> Dataset:
    if not file.is_file():
        raise InputError(f"expected an .npz file with images, but there is no file {file}")
    try:
        with zipfile.ZipFile(file) as archive:
            entries = set(archive.namelist())
            if "images.npy" not in entries:
                raise InputError(
                    f"expected an array named images in {file}, got {', '.join(sorted(entries)) or 'none'}"
                )
            images = _member(file, archive, "images")
            labels = _member(file, archive, "labels") if "labels.npy" in entries else None
    except InputError:
        raise
    except Exception as error:  # whatever a broken header makes numpy, ast, tokenize or zipfile raise
        raise InputError(f"expected an .npz file, got {file}, which cannot be read: {in_one_line(error)}") from error
    if len(images.shape) != 4 or 0 in images.shape:
        raise InputError(f"expected images of shape (N, C, H, W) in {file}, got {images.shape}")
    if labels is not None and labels.shape != (images.shape[0], *images.shape[2:]):
        raise InputError(f"expected labels of shape (N, H, W) that fit the images in {file}, got {labels.shape}")

    def read(index: int) -> Sample:
        try:
            return sample(f"{file.stem}-{index}", images.row(index), None if labels is None else labels.row(index))
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"expected an .npz file, got {file}, which cannot be read: {in_one_line(error)}"
            ) from error

    return Dataset(name, None, images.shape[0], read)
