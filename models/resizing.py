"""Pictures of another size: images by averaging, labels by their nearest, and perhaps cropped."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .pictures import Dataset, Sample

__all__ = ["resized"]


def resized(pictures: Dataset, size: tuple[int, int], crop: bool = False) -> Dataset:
    """The same pictures at `size` (height, width).

    Images are interpolated with antialiasing; labels, which have no mean, are those nearest to each new pixel's centre.
    With `crop` both axes are scaled by one factor, so that the picture covers `size`, and its middle is kept.
    """

    def read(index: int) -> Sample:
        name, image, labels = pictures.read(index)
        height, width = int(image.shape[1]), int(image.shape[2])
        wanted = size
        if crop:
            factor = max(size[0] / height, size[1] / width)
            wanted = max(size[0], round(height * factor)), max(size[1], round(width * factor))
        top, left = (wanted[0] - size[0]) // 2, (wanted[1] - size[1]) // 2
        image = _scaled(image, wanted)[:, top : top + size[0], left : left + size[1]].contiguous()
        if labels is not None:
            rows, columns = _nearest(height, wanted[0]), _nearest(width, wanted[1])
            labels = labels[rows[top : top + size[0]]][:, columns[left : left + size[1]]].contiguous()
        return Sample(name, image, labels)

    name = f"{pictures.name}@{size[0]}x{size[1]}{'+crop' if crop else ''}"
    return Dataset(name, pictures.classes, pictures.length, read, pictures.ignore, pictures.colours)


def _scaled(image: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(image.shape[1:]) == size:
        return image
    scaled = F.interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)
    return scaled[0].clamp(0.0, 1.0)


def _nearest(have: int, wanted: int) -> Tensor:
    """For each of `wanted` places the one of `have` whose centre is nearest (the first of two)."""
    centres = (np.arange(wanted) + 0.5) * have / wanted
    return torch.from_numpy(np.ceil(centres - 1.0).astype(np.int64).clip(0, have - 1))
