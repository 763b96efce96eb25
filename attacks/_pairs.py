"""Ascent on the ratio that a Lipschitz constant bounds, over pairs of free points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._rows import Box, Generators, Model, across, clip, gaussian, lengths, polar
from ._screening import FAR, screened, stretched, usual

__all__ = ["lipschitz_pairs"]

_SCATTER = 3.0  # how far, in lengths of its pair, a start is thrown from the better one whose place it takes


def lipschitz_pairs(
    model: Model,
    images: Tensor,
    *,
    radii: Sequence[float] = (0.3, 1.0, 10.0),
    starts: int = 1,
    steps: int = 40,
    rounds: int = 8,
    shortest: float = 0.01,
    candidates: int | None = None,
    box: Box = None,
    generator: Generators = None,
) -> Tensor:
    """Maximises `||f(b) - f(a)|| / ||b - a||` over both points: the ratio need not be largest anywhere near the data.

    For each of `radii` a pair of this length is laid across the image, and `starts` - 1 across points that far from it.
    Its direction follows the gradient of the squared change, as in power iteration on the Jacobian (momentum as in
    lipschitz_ascent); its middle moves to where the function is steeper, up the difference of the gradients at both
    ends; and its length shrinks to `shortest` of the first one, so that it crosses many kinks of a piecewise linear
    network at first and none at the end. After each of `rounds` the worse half of an image's pairs goes on near the
    better half. The model is called with the ends of a pair side by side (a0, b0, a1, b1, ...).
    Where images are small, rows cost next to nothing, and steep pieces of a small network may be rare: of `candidates`
    short pairs (by default as many as make 2^16 numbers, or 2^17 of tiny images), at distances of all orders of
    magnitude from the image and then from the best so far, those that stretch most take the place of half of the
    starts. Of images of at most 16 numbers, half of the candidates lie where walks along the kinks of a piecewise
    linear network end: its smallest pieces lie between the others' corners.
    Returns for each image the best pair, (B, 2, C, H, W). With R = starts * len(radii) it costs 2 * R * steps forward
    and as many backward passes, and at most 6 and 4 for a candidate, 16 and 14 for one at the end of a walk. Points
    leave [0, 1] unless there is a box: the claim is about all of them.
    """
    images = images.detach()
    batch, count = images.shape[0], len(radii) * starts
    candidates = usual(images) if candidates is None else candidates
    if generator is None:  # one for each row that goes on, or every draw would give the same numbers
        generator = [torch.Generator().manual_seed(0) for _ in images]
    draws = _Draws(images, count, generator)
    row = torch.arange(batch, device=images.device)
    owner = row.repeat_interleave(2 * count)
    first = images.new_tensor(list(radii)).repeat_interleave(starts).repeat(batch)  # the rows of an image side by side
    moved = (torch.arange(batch * count, device=images.device) % starts > 0).to(first) * first
    middle = images.repeat_interleave(count, 0)
    middle = clip(middle + across(moved, middle) * draws(), box)
    way = draws()
    previous = torch.zeros_like(way)
    best = torch.stack([middle, middle], 1)
    best_ratio = torch.full_like(first, -1.0)
    if count > 1 and candidates >= 4 * count:
        chosen = screened(model, images, candidates, count // 2, (min(radii), FAR * max(radii)), box, generator)
        place = (
            count * torch.arange(batch, device=images.device)[:, None] + torch.arange(1, count, 2).to(row)
        ).flatten()
        middle[place], way[place], best[place], best_ratio[place], scale = chosen
        first[place] = scale
    largest = torch.zeros_like(first)
    period = max(1, steps // rounds)
    for step in range(steps):
        length = first * shortest ** (step / max(1, steps - 1))
        half = across(length / 2, way) * way
        ends = clip(torch.stack([middle - half, middle + half], 1).flatten(0, 1), box)
        moved, gradient = stretched(model, ends, owner, gradients=True)
        pair = ends.reshape(-1, 2, *images.shape[1:])  # (R, 2, C, H, W)
        distance = lengths((pair[:, 1] - pair[:, 0]).double())
        ratio = torch.where(distance > 0, moved / distance.clamp_min(1e-30), 0)
        ratio = ratio.nan_to_num(nan=0, posinf=0).to(first)
        better = ratio > best_ratio
        best, best_ratio = torch.where(across(better, best), pair, best), torch.where(better, ratio, best_ratio)
        largest = torch.maximum(0.9 * largest, ratio)  # the middle moves on: what was seen elsewhere fades
        back, ahead = -gradient[::2], gradient[1::2]  # J(a)^T change and J(b)^T change
        beta = (0.95 * largest.square() / 2).square()
        following = (back + ahead) / 2 / across(length, way) - across(beta, previous) * previous
        direction, norm = polar(following, way)
        scale = torch.where(norm > 0, norm, 1)
        previous, way = way / across(scale, way), direction
        # no step where both ends lie on one linear piece
        part = length / (lengths(ahead) + lengths(back)).clamp_min(torch.finfo(length.dtype).tiny)
        middle = clip(middle + across(part, ahead) * (ahead - back), box)
        if count > 1 and (step + 1) % period == 0 and step + 1 < steps:
            order = ratio.reshape(batch, count).argsort(dim=1, descending=True, stable=True)
            order = order + count * torch.arange(batch, device=images.device).unsqueeze(1)
            parent, child = order[:, : count // 2].flatten(), order[:, -(count // 2) :].flatten()
            thrown = across(_SCATTER * length[child], way[child]) * draws()[child]
            middle[child] = clip(pair[parent].mean(1) + thrown, box)
            way[child], previous[child], largest[child] = way[parent], previous[parent], largest[parent]
    choice = best_ratio.reshape(batch, count).argmax(1)
    return best.reshape(batch, count, *best.shape[1:])[row, choice]


class _Draws:
    """Unit vectors in random directions, (B * count, C, H, W); those of an image come from its own generator."""

    def __init__(self, images: Tensor, count: int, generator: Generators) -> None:
        self._images, self._count, self._generator = images, count, generator

    def __call__(self) -> Tensor:
        drawn = [gaussian(self._images, self._generator) for _ in range(self._count)]
        unit, _ = polar(torch.stack(drawn, 1).flatten(0, 1))
        return unit
