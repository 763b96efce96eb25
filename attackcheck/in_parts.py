"""A model whose calls have no more rows than fit into memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from attackcheck.attacks._rows import parts

__all__ = ["InParts"]


class InParts:
    """The model called with at most so many rows at once, one part after the other.

    Attacks that know how to go on with a part of their rows ask for ``at_once``. The calls of others are divided here:
    nothing but logits is kept of a part, so its forward pass is made again for the backward pass (Chen et al. 2016,
    Training deep nets with sublinear memory cost). Rows are independent, so logits and gradients are the same up to
    the rounding of batch sizes.

    Args:
        model: (B, C, H, W) to logits.
        again: the same for the passes that are repeated, which show nothing new.
        at_once: rows that fit.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], again: Callable[[Tensor], Tensor], at_once: int) -> None:
        self._model, self._again = model, again
        self.at_once = at_once
        self.widest = 1
        """Rows of the largest call of the model so far."""

    def __call__(self, images: Tensor) -> Tensor:
        """Logits, differentiable in the images."""
        divided = parts(self, len(images))
        self.widest = max(self.widest, divided[0].stop)
        if len(divided) == 1:
            return self._model(images)
        found, done = [], 0
        for part in divided:
            logits = self._of_part(images[part])
            found.append(logits[done - part.start :])
            done = part.stop
        return torch.cat(found)

    def _of_part(self, images: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and images.requires_grad):
            return self._model(images)
        passes = iter((self._model,))

        def call(rows: Tensor) -> Tensor:
            return next(passes, self._again)(rows)

        with set_checkpoint_early_stop(False):  # passes are counted once they are complete
            logits: Tensor = checkpoint(call, images, use_reentrant=False, preserve_rng_state=False)
        return logits
