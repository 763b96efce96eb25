"""Ascent on the ratio that a Lipschitz constant bounds."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._rows import Box, Generators, Model, across, clip, gaussian, lengths, of_rows, parts, polar

__all__ = ["lipschitz_ascent"]


def lipschitz_ascent(
    model: Model,
    images: Tensor,
    *,
    radii: Sequence[float] = (0.01, 0.1, 1.0),
    steps: int = 40,
    box: Box = None,
    generator: Generators = None,
) -> Tensor:
    """Maximises `||f(x + delta) - f(x)|| / ||delta||` with `||delta||` = each of `radii`, by power iteration.

    delta <- radius * unit of the gradient of `||f(x + delta) - f(x)||^2 / 2`, which for an affine f is power iteration
    on J^T J; with momentum beta below (lambda / 2)^2, where lambda is the largest squared ratio seen (Xu et al. 2018,
    Accelerated stochastic power iteration). Logits may have any shape (B, ...).
    Returns for each image (B, C, H, W) the point of the largest ratio. Costs 1 + steps * len(radii) forward and
    steps * len(radii) backward passes.
    """
    images = images.detach()
    batch, count = images.shape[0], len(radii)
    with torch.no_grad():
        clean = model(images).detach()
    index = torch.arange(batch, device=images.device).repeat_interleave(count)  # radii of an image side by side
    wide = images[index]
    divided = parts(model, len(wide))
    radius = images.new_tensor(list(radii)).repeat(batch)
    way, _ = polar(gaussian(images, generator)[index])
    previous = torch.zeros_like(way)
    best, best_ratio = wide + across(radius, wide) * way, torch.full_like(radius, -1.0)
    for _ in range(steps):
        delta = clip(wide + across(radius, wide) * way, box) - wide
        point = wide + delta
        gradient, moved = torch.empty_like(point), torch.empty_like(radius, dtype=torch.float64)
        for part in divided:
            with torch.enable_grad():
                some = point[part].requires_grad_()
                change = of_rows(model, index[part])(some) - clean[index[part]]
                (slope,) = torch.autograd.grad((change.double().square().flatten(1).sum(1) / 2).sum(), some)
            gradient[part], moved[part] = slope, change.detach().double().flatten(1).norm(dim=1)
        ratio = (moved / lengths((point - wide).double()).clamp_min(1e-30)).to(radius)
        better = ratio > best_ratio
        best = torch.where(across(better, best), point, best)
        best_ratio = torch.where(better, ratio, best_ratio)
        # J^T J way, to first order, less momentum; both vectors share one scale
        beta = (0.95 * best_ratio.square() / 2).square()
        following = gradient / across(radius, gradient) - across(beta, previous) * previous
        direction, norm = polar(following, way)
        scale = torch.where(norm > 0, norm, 1)
        previous, way = way / across(scale, way), direction
    ratio = best_ratio.reshape(batch, count)
    return best.reshape(batch, count, *images.shape[1:])[torch.arange(batch, device=images.device), ratio.argmax(1)]
