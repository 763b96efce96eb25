"""Batches of training pictures as a function of seed and step, and the share of each process in them."""

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from attackcheck.errors import InputError

from .processes import ALONE, Processes

__all__ = ["Picture", "Pictures", "Pool", "batch_places", "class_weights", "read_batch"]


class Pictures(Protocol):
    """What training needs of data: pictures by index, with a label for every pixel."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> "Picture": ...


class Picture(Protocol):
    """An image (C, H, W) in [0, 1] and its labels (H, W), or None."""

    @property
    def image(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor | None: ...


class Pool:
    """Training pictures, kept as bytes once seen (24 kB for 64x128), so that drawing or reading them is paid once."""

    def __init__(self, pictures: Pictures, limit: int = 1 << 30) -> None:
        self.pictures, self.room = pictures, limit
        self.kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index in self.kept:
            image, labels = self.kept[index]
            return torch.from_numpy(image).float() / 255, torch.from_numpy(labels).long()
        picture = self.pictures[index]
        if picture.labels is None:
            raise InputError(f"expected labels for every training picture, got none for picture {index}")
        stored = (picture.image * 255).round().to(torch.uint8).numpy(), picture.labels.to(torch.uint8).numpy()
        size = stored[0].nbytes + stored[1].nbytes
        if size <= self.room:
            self.room -= size
            self.kept[index] = stored
        return torch.from_numpy(stored[0]).float() / 255, torch.from_numpy(stored[1]).long()


def batch_places(length: int, batch: int, seed: int, step: int) -> list[int]:
    """Which pictures make the batch of a step: every epoch is a new permutation of all of them."""
    per_epoch = max(1, length // batch)
    order = np.random.default_rng([seed, 1 << 31, step // per_epoch]).permutation(length)
    return [int(index) for index in np.resize(np.roll(order, -(step % per_epoch) * batch), batch)]


def read_batch(
    pool: Pool,
    *,
    batch: int,
    seed: int,
    step: int,
    share: Iterable[int],
    crop: tuple[int, int] | None = None,
    flip: bool = True,
    noise: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Images (B, C, H, W) and labels (B, H, W) at the places `share` of a step's batch.

    Every place has its own random numbers, a function of (seed, step, place) alone: a resumed training sees the same
    pictures, and so do several processes together. `crop` is (height, width). Raises InputError for smaller pictures.
    """
    chosen = batch_places(len(pool), batch, seed, step)
    images, labels = [], []
    for place in share:
        rng = np.random.default_rng([seed, step, place])
        image, label = pool[chosen[place]]
        if crop is not None:
            height, width = crop
            if image.shape[1] < height or image.shape[2] < width:
                raise InputError(
                    f"expected pictures of at least the crop {height}x{width}, got {image.shape[1]}x{image.shape[2]}"
                )
            top = int(rng.integers(0, image.shape[1] - height + 1))
            left = int(rng.integers(0, image.shape[2] - width + 1))
            image = image[:, top : top + height, left : left + width]
            label = label[top : top + height, left : left + width]
        if flip and rng.random() < 0.5:
            image, label = image.flip(-1), label.flip(-1)
        if noise:
            image = image + noise * torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32))
        images.append(image)
        labels.append(label)
    return torch.stack(images), torch.stack(labels)


def class_weights(pool: Pool, classes: int, focus: float, processes: Processes = ALONE) -> Tensor | None:
    """Weights (classes,) of mean one, frequency to the power -focus in up to 200 pictures; None without a focus."""
    if not focus:
        return None

    def counted() -> Tensor:
        found = torch.zeros(classes, dtype=torch.int64)
        for index in range(processes.rank, min(200, len(pool)), processes.count):
            found += torch.bincount(pool[index][1].flatten(), minlength=256)[:classes]
        return found

    counts = processes.total(processes.agree(counted))
    weights = (counts.float() + 1).pow(-focus)
    return weights / weights.mean()
