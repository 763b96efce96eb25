"""Models that return more than logits: `(logits, L)`, the certificate beside the prediction."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from attackcheck.claims import LipschitzClaim, Scope
from attackcheck.errors import InputError, in_one_line
from attackcheck.memory import ran_out, too_large

__all__ = ["FirstOutput", "constant_beside_logits"]


class FirstOutput(nn.Module):
    """The logits alone of a model that returns `(logits, L)`."""

    def __init__(self, inner: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.inner(images)[0]
        return logits


def constant_beside_logits(
    model: Callable[[Tensor], Any], image: Tensor, scope: Scope = "joint"
) -> LipschitzClaim | None:
    """The claim of a model that returns `(logits, L)`; None where it returns anything else.

    Args:
        model: any callable of images ``(B, C, H, W)``.
        image: one image ``(C, H, W)``.
        scope: what the constant is about.

    Raises:
        InputError: if L is no positive number, or depends on the image: a local constant bounds nothing in a ball.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(2, *image.shape, generator=generator).to(image)
    try:
        with torch.no_grad():
            found = model(image[None].clone())
            if not _pair(found):
                return None
            others = [model(x.clone()) for x in (noise, image[None] * 0, image.flip(2)[None] * 4 - 2)]
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        if ran_out(error):
            raise InputError(too_large(image.device)) from error
        raise InputError(
            f"the model does not accept images of shape {tuple(image.shape)}: {in_one_line(error)}"
        ) from error
    if not all(_pair(other) for other in others):
        raise InputError("expected (logits, L) for every image, got it for some only")
    values = torch.cat([torch.as_tensor(pair[1]).detach().double().cpu().flatten() for pair in (found, *others)])
    if bool((values != values[0]).any()):
        raise InputError(
            f"expected one L for all images beside the logits, got {values.min().item():g} to {values.max().item():g}: "
            "a constant of one image bounds nothing around it; give --lipschitz L, or radii"
        )
    if not bool((values.isfinite() & (values > 0)).all()):
        raise InputError(f"expected a positive, finite L beside the logits, got {values[0].item():g}")
    return LipschitzClaim(float(values[0]), scope, source="returned by the model beside its logits")


def _pair(found: object) -> bool:
    if not isinstance(found, tuple | list) or len(found) != 2:
        return False
    logits, constant = found
    if not isinstance(logits, Tensor) or logits.dim() != 4:
        return False
    if isinstance(constant, Tensor):
        return constant.is_floating_point() and (constant.dim() == 0 or constant.numel() in (1, len(logits)))
    return isinstance(constant, int | float) and not isinstance(constant, bool)
