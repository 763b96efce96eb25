"""The network as dense attacks of libraries see it, and the recorder of regions and of whole images."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["DenseView", "RegionTape"]


class RegionTape:
    """The model; keeps the closest point at which at least `share` of the pixels of `mask` (H, W) left their class.

    It also keeps the largest number of flipped pixels of the whole image within `eps`, if that is given.
    """

    def __init__(
        self, model: Callable[[Tensor], Tensor], image: Tensor, mask: Tensor, share: float, eps: float = math.inf
    ) -> None:
        self._model, self._image, self._mask = model, image, mask
        with torch.no_grad():
            self.clean = model(image[None])[0]  # (K, H, W)
        self.label = self.clean.argmax(0)
        self._needed = share * float(mask.sum()) * (1 - 1e-6)
        self._eps = eps * (1 + 1e-5)
        self.distance, self.point = math.inf, image
        self.flips = 0
        self.forward, self.backward = 0, 0

    def __call__(self, images: Tensor) -> Tensor:
        logits = self._model(images)
        self.forward += len(images)
        if logits.requires_grad:
            logits.register_hook(self._count)
        with torch.no_grad():
            flipped = (logits.argmax(1) != self.label) & self._mask  # (B, H, W)
            count = flipped.sum((1, 2))
            distance = (images - self._image).double().flatten(1).norm(dim=1)
            best, row = torch.where(count >= self._needed, distance, math.inf).min(0)
            if float(best) < self.distance:
                self.distance, self.point = float(best), images[row].detach().clone()
            self.flips = max(self.flips, int(torch.where(distance <= self._eps, count, 0).max()))
        return logits

    def _count(self, gradient: Tensor) -> None:
        self.backward += len(gradient)


class DenseView(nn.Module):
    """Logits (B, K, H, W) of a tape times `scale`, for libraries that live in [0, 1]: the model sees `box`."""

    def __init__(self, tape: RegionTape, box: tuple[float, float], scale: float) -> None:
        super().__init__()
        self._tape = (tape,)
        self.box, self.scale = box, scale

    def enter(self, images: Tensor) -> Tensor:
        """Images in the library's units."""
        return (images - self.box[0]) / (self.box[1] - self.box[0])

    def forward(self, seen: Tensor) -> Tensor:
        return self._tape[0](self.box[0] + (self.box[1] - self.box[0]) * seen) * self.scale
