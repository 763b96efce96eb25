"""A segmentation network seen as a classifier of one pixel, for libraries that know only classifiers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ._rows import Model

__all__ = ["PixelView"]


class PixelView(nn.Module):
    """The logits of one pixel: images (B, C, H, W) to (B, K); a library may drop or reorder rows, they are independent.

    The library sees `u` in [0, 1] and the model `low + (high - low) u` with (low, high) = `box`, so distances seen by
    the library are 1 / (high - low) of those in the image. Logits come out as `scale * (z + shift)`.
    `dtype` is what the model gets, whatever the library casts to.
    """

    def __init__(
        self,
        model: Model,
        row: int,
        col: int,
        *,
        box: tuple[float, float] = (0.0, 1.0),
        scale: float = 1.0,
        shift: float = 0.0,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        # in a tuple, so that the library's train() and eval() never reach the model under test
        self._model = (model,)
        self.row, self.col, self.box, self.scale, self.shift, self.dtype = row, col, box, scale, shift, dtype

    def enter(self, images: Tensor) -> Tensor:
        """Images in the library's units."""
        return (images - self.box[0]) / (self.box[1] - self.box[0])

    def leave(self, seen: Tensor) -> Tensor:
        """Images in the model's units."""
        return self.box[0] + (self.box[1] - self.box[0]) * seen

    def forward(self, seen: Tensor) -> Tensor:
        images = self.leave(seen if self.dtype is None else seen.to(self.dtype))
        logits = self._model[0](images)[:, :, self.row, self.col]  # (B, K)
        return (logits + self.shift) * self.scale
