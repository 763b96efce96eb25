"""Pictures to train on and to attack, named by a short specification and read one at a time."""

import os
import re
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attackcheck.errors import InputError, in_one_line

from . import scenes
from .shelf import SCENES

__all__ = ["Dataset", "Sample", "load_data"]

IGNORE = 255
_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff"}
_SPECS = "shipped, scenes[:N[:SEED[:HxW]]], folder:DIR, arrays:FILE.npz or cityscapes:DIR"
Array = npt.NDArray[Any]

CITYSCAPES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
_TRAIN_IDS = np.full(256, IGNORE, np.uint8)
_TRAIN_IDS[[7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]] = np.arange(19)


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

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        if not -self.length <= index < self.length:
            raise IndexError(index)
        return self.read(index % self.length)

    def __iter__(self) -> Iterator[Sample]:
        return map(self.read, range(self.length))


def load_data(spec: str | None = None) -> Dataset:
    """The pictures that `spec` names; None is "shipped".

    "shipped": the validation scenes that come with the package. "scenes[:N[:SEED[:HxW]]]": drawn street scenes.
    "folder:DIR": DIR/images, with DIR/masks (8-bit class index, 255 ignored) and DIR/classes.txt where they exist; with
    classes.txt, values beyond its lines are ignored too. "arrays:FILE.npz": `images` NCHW, float32 in [0, 1] or uint8,
    and perhaps `labels` NHW. "cityscapes:DIR[:val|train|test]": the published folders, ids mapped to the 19 training
    classes; DIR may be left out where CITYSCAPES_DATASET is set. Raises InputError for anything missing or malformed.
    """
    kind, _, rest = (spec or "shipped").partition(":")
    match kind:
        case "shipped" if not rest:
            pictures = _arrays(SCENES, "shipped")
            return Dataset("shipped", scenes.CLASSES, pictures.length, pictures.read)
        case "scenes":
            return _scenes(rest)
        case "folder" if rest:
            return _folder(Path(rest))
        case "arrays" if rest:
            return _arrays(Path(rest), f"arrays:{rest}")
        case "cityscapes":
            return _cityscapes(rest)
    raise InputError(f"expected data as {_SPECS}, got {spec!r}")


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
        return _sample(f"scene-{seed}-{index}", image.transpose(2, 0, 1), labels)

    return Dataset(f"scenes:{count}:{seed}:{height}x{width}", scenes.CLASSES, count, read)


def _sample(name: str, image: Array, labels: Array | None) -> Sample:
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
            return _sample(f"{file.stem}-{index}", images.row(index), None if labels is None else labels.row(index))
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"expected an .npz file, got {file}, which cannot be read: {in_one_line(error)}"
            ) from error

    return Dataset(name, None, images.shape[0], read)


def _open(file: Path, mask: bool = False) -> Array:
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


def _files(folder: Path, accept: Callable[[Path], bool]) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"expected pictures in the folder {folder}, but there is no such folder")
    found = sorted(path for path in folder.rglob("*") if accept(path))
    if not found:
        raise InputError(f"expected pictures in the folder {folder}, got none")
    return found


def _folder(root: Path) -> Dataset:
    files = _files(root / "images", lambda path: path.suffix.lower() in _PICTURES)
    masks: Sequence[Path] | None = None
    if (root / "masks").is_dir():
        masks = [(root / "masks" / path.relative_to(root / "images")).with_suffix(".png") for path in files]
        missing = [path for path in masks if not path.is_file()]
        if missing:
            raise InputError(f"expected a mask for every image, but there is no {missing[0]}")
    listed = root / "classes.txt"
    if not listed.is_file():
        listed = root.parent / "classes.txt"
    try:
        classes = tuple(listed.read_text("utf-8").split("\n")) if listed.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"expected class names in UTF-8, one a line, in {listed}") from error
    classes = tuple(name.strip() for name in classes if name.strip()) if classes is not None else None

    def read(index: int) -> Sample:
        labels = None if masks is None else _open(masks[index], mask=True)
        if labels is not None and classes is not None:
            labels = np.where(labels >= len(classes), IGNORE, labels)
        return _sample(files[index].stem, _open(files[index]), labels)

    return Dataset(f"folder:{root}", classes, len(files), read)


def _cityscapes(rest: str) -> Dataset:
    directory, colon, split = rest.rpartition(":")
    if not colon or split not in {"train", "val", "test"}:
        directory, split = rest, "val"
    directory = directory or os.environ.get("CITYSCAPES_DATASET", "")
    if not directory:
        raise InputError("expected cityscapes:DIR, got no directory; give one, or set CITYSCAPES_DATASET")
    root, ending = Path(directory), "_leftImg8bit.png"
    files = _files(root / "leftImg8bit" / split, lambda path: path.name.endswith(ending))
    truth = root / "gtFine" / split

    def read(index: int) -> Sample:
        name = files[index].name.removesuffix(ending)
        mask = truth / files[index].parent.name / f"{name}_gtFine_labelIds.png"
        labels = _TRAIN_IDS[_open(mask, mask=True)] if mask.is_file() else None
        return _sample(name, _open(files[index]), labels)

    return Dataset(f"cityscapes:{split}", CITYSCAPES, len(files), read)
