"""Folders as data sets are published in: Cityscapes, Oxford-IIIT Pet, Kvasir-SEG, Pascal VOC; and plain ones."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from attackcheck.errors import InputError

from .pictures import IGNORE, PICTURES, Dataset, Sample, files_in, open_picture, sample

__all__ = ["LAYOUTS", "cityscapes", "folder", "kvasir", "pets", "voc"]

CITYSCAPES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
CITYSCAPES_COLOURS = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153), (153, 153, 153), (250, 170, 30),
    (220, 220, 0), (107, 142, 35), (152, 251, 152), (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142),
    (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip
PETS = ("pet", "background", "border")
KVASIR = ("background", "polyp")
VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_TRAIN_IDS = np.full(256, IGNORE, np.uint8)
_TRAIN_IDS[[7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]] = np.arange(19)


def folder(directory: str) -> Dataset:
    """`images/`, `masks/` and `classes.txt`, the last two where they exist."""
    root = Path(directory)
    files = files_in(root / "images", lambda path: path.suffix.lower() in PICTURES)
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
        labels = None if masks is None else open_picture(masks[index], mask=True)
        if labels is not None and classes is not None:
            labels = np.where(labels >= len(classes), IGNORE, labels)
        return sample(files[index].stem, open_picture(files[index]), labels)

    return Dataset(f"folder:{root}", classes, len(files), read)


def cityscapes(rest: str) -> Dataset:
    """`DIR[:SPLIT]`, validation pictures without one; the environment may name DIR."""
    directory, split = _split(rest, ("val", "train", "test"))
    directory = directory or os.environ.get("CITYSCAPES_DATASET", "")
    if not directory:
        raise InputError("expected cityscapes:DIR, got no directory; give one, or set CITYSCAPES_DATASET")
    root, ending = Path(directory), "_leftImg8bit.png"
    files = files_in(root / "leftImg8bit" / split, lambda path: path.name.endswith(ending))
    truth = root / "gtFine" / split

    def read(index: int) -> Sample:
        name = files[index].name.removesuffix(ending)
        mask = truth / files[index].parent.name / f"{name}_gtFine_labelIds.png"
        labels = _TRAIN_IDS[open_picture(mask, mask=True)] if mask.is_file() else None
        return sample(name, open_picture(files[index]), labels)

    return Dataset(f"cityscapes:{split}", CITYSCAPES, len(files), read, colours=CITYSCAPES_COLOURS)


def pets(rest: str) -> Dataset:
    """Oxford-IIIT Pet, `DIR[:test|trainval]`: trimaps as three classes.

    `images/NAME.jpg`, `annotations/trimaps/NAME.png` (1 pet, 2 background, 3 border), `annotations/SPLIT.txt`.
    """
    directory, split = _split(rest, ("test", "trainval"))
    root = Path(directory)
    names = _listed(root / "annotations" / f"{split}.txt")

    def read(index: int) -> Sample:
        name = names[index]
        trimap = open_picture(root / "annotations" / "trimaps" / f"{name}.png", mask=True)
        labels = np.where((trimap >= 1) & (trimap <= 3), trimap - 1, IGNORE)
        return sample(name, open_picture(root / "images" / f"{name}.jpg"), labels)

    return Dataset(f"pets:{split}", PETS, len(names), read)


def kvasir(directory: str) -> Dataset:
    """Kvasir-SEG: `images/NAME.jpg` and `masks/NAME.jpg`, white where there is a polyp; it has no official split."""
    root = Path(directory)
    files = files_in(root / "images", lambda path: path.suffix.lower() in PICTURES)

    def read(index: int) -> Sample:
        # Masks are JPEG too: nearly black and nearly white, in three channels.
        mask = open_picture(root / "masks" / files[index].name).mean(axis=0)
        return sample(files[index].stem, open_picture(files[index]), (mask > 127).astype(np.int64))

    return Dataset("kvasir", KVASIR, len(files), read)


def voc(rest: str) -> Dataset:
    """Pascal VOC, `DIR[:val|train|trainval]`, DIR the folder of a year such as VOCdevkit/VOC2012; 255 is void.

    `JPEGImages/NAME.jpg`, `SegmentationClass/NAME.png` with a palette, `ImageSets/Segmentation/SPLIT.txt`.
    """
    directory, split = _split(rest, ("val", "train", "trainval"))
    root = Path(directory)
    names = _listed(root / "ImageSets" / "Segmentation" / f"{split}.txt")

    def read(index: int) -> Sample:
        name = names[index]
        labels = open_picture(root / "SegmentationClass" / f"{name}.png", mask=True)
        return sample(name, open_picture(root / "JPEGImages" / f"{name}.jpg"), labels)

    return Dataset(f"voc:{split}", VOC, len(names), read, colours=_palette(len(VOC)))


def _split(rest: str, splits: Sequence[str]) -> tuple[str, str]:
    """Folder and split, the first of these if none is named."""
    directory, colon, split = rest.rpartition(":")
    return (directory, split) if colon and split in splits else (rest, splits[0])


def _listed(file: Path) -> list[str]:
    """The first word of every line."""
    try:
        names = [line.split()[0] for line in file.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"expected the names of the pictures in {file}, which cannot be read") from error
    names = [name for name in names if not name.startswith("#")]
    if not names:
        raise InputError(f"expected the names of the pictures in {file}, got none")
    return names


def _palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """Pascal VOC's colours: the bits of the class, three at a time, from the highest bit of each channel down."""

    def channel(label: int, offset: int) -> int:
        return sum(((label >> (3 * place + offset)) & 1) << (7 - place) for place in range(3))

    return tuple((channel(label, 0), channel(label, 1), channel(label, 2)) for label in range(count))


LAYOUTS: Mapping[str, Callable[[str], Dataset]] = {"folder": folder, "kvasir": kvasir, "pets": pets, "voc": voc}
"""What `KIND:REST` becomes."""
