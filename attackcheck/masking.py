"""Are gradients any use? A look at each pixel's margin at the scale of its certificate.

Attacks that follow gradients say nothing about a model whose gradients are zero (rounding, dead zones, saturation), not
finite, or wrong (straight-through estimators): "no flip found" is then about the attack. Whoever asks is told, and a
search without gradients is added.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from attackcheck.crops import Crops

__all__ = ["SAMPLE", "masked"]

Model = Callable[[Tensor], Tensor]

SAMPLE = 16
"""Pixels looked at first; all others follow only if one of these is masked."""

OVERSTATED = 0.1
"""A step down the gradient, as long as the radius or to the boundary, must lower the margin by this share of what it
promises."""

UNDERSTATED = 10.0
"""No other step as long as the radius may move the margin by more than this many times what the gradient permits."""


def masked(
    model: Model,
    image: Tensor,
    logits: Tensor,
    radius: Tensor,
    pixels: Tensor,
    rows: int,
    crops: Crops | None = None,
) -> Tensor:
    """Which pixels have gradients of their margin that are zero, not finite, or contradicted by finite differences.

    Args:
        model: the model as deployed.
        image: ``(C, H, W)``.
        logits: ``(K, H, W)`` there.
        radius: ``(H, W)``, certified radii: the scale at which gradients must hold.
        pixels: ``(M, 2)`` rows and columns, on the CPU.
        rows: most images in a batch.
        crops: to look at instead of whole images.

    Returns:
        ``(M,)`` bool on the CPU.
    """
    found = [_masked(model, image, logits, radius, part, crops) for part in torch.split(pixels, rows)]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.bool)


def _masked(model: Model, image: Tensor, logits: Tensor, radius: Tensor, pixels: Tensor, crops: Crops | None) -> Tensor:
    device = image.device
    row, column = pixels[:, 0].to(device), pixels[:, 1].to(device)
    batch = torch.arange(len(pixels), device=device)
    own = logits[:, row, column]  # (K, M)
    allowed = radius.to(device)[row, column].double()
    if crops is None:
        images = image.expand(len(pixels), *image.shape).clone()
    else:
        images = crops.cut(row, column)
        model, row, column = crops.around(model, row, column)
    first, second = own.topk(2, dim=0).indices  # (M,)

    def margin(images: Tensor) -> Tensor:
        z = model(images)
        gap: Tensor = z[batch, first, row, column] - z[batch, second, row, column]
        return gap

    with torch.enable_grad():
        clean = margin(images.requires_grad_())
        if not clean.requires_grad:
            return torch.ones(len(pixels), dtype=torch.bool)
        gradient = torch.autograd.grad(clean.sum(), images)[0]
    images, clean = images.detach(), clean.detach().double()
    steepness = torch.linalg.vector_norm(gradient.flatten(1), dim=1, dtype=torch.float64)
    newton = clean / steepness
    # Tiny gradients put the boundary further away than any two images are: saturation.
    beyond = 3.0 * math.sqrt(image.numel())
    dead = ~(steepness > 0) | steepness.isinf() | (newton > beyond)
    scale = torch.where((allowed > 0) & allowed.isfinite(), allowed, newton).minimum(newton)
    scale = torch.where(dead, 1.0, scale)
    # differences below this are rounding
    noise = 1e-4 * own.abs().amax(dim=0).double().clamp_min(1e-30)
    with torch.no_grad():
        unit = torch.where(dead[:, None, None, None], 0, gradient / steepness.to(gradient.dtype)[:, None, None, None])
        lower = margin(images - unit * scale.to(images.dtype)[:, None, None, None]).double()
        promised = steepness * scale
        wrong = (clean - lower < OVERSTATED * promised) & (promised > noise)
        wrong |= clean - lower > UNDERSTATED * promised + noise
        for step in _steps(images, row, column):
            moved = margin(images + step * scale.to(images.dtype)[:, None, None, None]).double()
            wrong |= (moved - clean).abs() > UNDERSTATED * promised + noise
    useless: Tensor = (dead | wrong).cpu()
    return useless


def _steps(images: Tensor, row: Tensor, column: Tensor) -> list[Tensor]:
    """Unit steps that no gradient was asked for: up and down at the pixel itself, and around it."""
    height, width = images.shape[2:]
    far = (torch.arange(height, device=images.device)[None] - row[:, None]).abs()[:, :, None]
    far = far.maximum((torch.arange(width, device=images.device)[None] - column[:, None]).abs()[:, None, :])
    steps = []
    for reach in (0, 2):
        inside = (far <= reach).unsqueeze(1).expand_as(images).to(images.dtype)
        unit = inside / inside.flatten(1).norm(dim=1)[:, None, None, None]
        steps += [unit, -unit]
    return steps
