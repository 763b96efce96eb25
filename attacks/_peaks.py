"""Ascent on the ratio that a Lipschitz constant of single pixels bounds, where it is likely to be largest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._lipschitz import lipschitz_ascent
from ._rows import Box, Generators, Model, gaussian, lengths, of_rows, parts

__all__ = ["lipschitz_peaks"]


def lipschitz_peaks(
    model: Model,
    images: Tensor,
    *,
    places: int = 8,
    samples: int = 16,
    scale: float = 1e-3,
    radii: Sequence[float] = (0.01, 0.1, 1.0),
    steps: int = 12,
    box: Box = None,
    generator: Generators = None,
) -> Tensor:
    """Maximises `||f_i(x + delta) - f_i(x)|| / ||delta||` over the pixels i of a map of logits (B, K, H, W).

    The mean square of a pixel's movement under white noise of length `scale` is the squared Frobenius norm of its
    Jacobian, to first order (Hutchinson 1990, a stochastic estimator of the trace): the `places` pixels where it is
    largest are ascended, each alone, by power iteration as in lipschitz_ascent.
    Returns for each image (B, C, H, W) the point of the largest ratio. Costs 2 + samples + places * (1 + steps *
    len(radii)) forward and places * steps * len(radii) backward passes.
    """
    images = images.detach()
    batch, count = images.shape[0], images[0].numel()
    if generator is None:
        generator = [torch.Generator().manual_seed(0) for _ in range(batch)]
    with torch.no_grad():
        clean = model(images)  # (B, K, H, W)
        moved = torch.zeros_like(clean[:, 0])
        for _ in range(samples):
            noise = gaussian(images, generator) * (scale / count**0.5)
            moved += (model(images + noise) - clean).square().sum(dim=1)
    places = min(places, moved[0].numel())
    chosen = moved.flatten(1).topk(places, dim=1).indices.flatten()  # (B * P,)
    index = torch.arange(batch, device=images.device).repeat_interleave(places)
    seen = _Places(of_rows(model, index), chosen // moved.shape[2], chosen % moved.shape[2])
    noise = [g for g in generator for _ in range(places)] if isinstance(generator, Sequence) else generator
    points = lipschitz_ascent(seen, images[index], radii=radii, steps=steps, box=box, generator=noise)
    with torch.no_grad():
        before = clean[index, :, seen.rows, seen.columns]
        distance = lengths((points - images[index]).double()).clamp_min(1e-30)
        after = torch.empty_like(before)
        row = torch.arange(len(points), device=images.device)
        for part in parts(seen, len(points)):
            after[part] = seen.for_rows(row[part])(points[part])
        ratio = ((after - before).double().norm(dim=1) / distance).reshape(batch, places)
    return points.reshape(batch, places, *images.shape[1:])[torch.arange(batch, device=images.device), ratio.argmax(1)]


class _Places:
    """The logits of one pixel for each row, (B, K)."""

    def __init__(self, model: Model, rows: Tensor, columns: Tensor) -> None:
        self._model, self.rows, self.columns = model, rows, columns

    @property
    def at_once(self) -> int | None:
        """How many rows a call may have, None for any number."""
        most: int | None = getattr(self._model, "at_once", None)
        return most

    def __call__(self, images: Tensor) -> Tensor:
        return self._model(images)[torch.arange(len(images), device=images.device), :, self.rows, self.columns]

    def for_rows(self, index: Tensor) -> _Places:
        """The pixels of other rows."""
        return _Places(of_rows(self._model, index), self.rows[index], self.columns[index])
