"""What logits (B, K, ...) say of their pixels: margins, other losses, predictions.

On a CPU the obvious operators take several times as long on maps: argmax and max with its places, comparisons that end
in bool, and the gradient of amax.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attackcheck import synchrony

__all__ = ["divergence", "lead", "margins", "predicted", "predicts", "ratio", "take"]


def take(logits: Tensor, label: Tensor) -> Tensor:
    """The logit of `label` (B, ...)."""
    return logits.gather(1, label.unsqueeze(1)).squeeze(1)


def lead(logits: Tensor, label: Tensor) -> Tensor:
    """The logit of `label` (B, ...) less the largest other one, differentiable once: equal others share."""
    found: Tensor = _Lead.apply(logits, label)  # type: ignore[no-untyped-call]
    return found


class _Lead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, label: Tensor) -> Tensor:
        index = label.unsqueeze(1)
        others = logits.scatter(1, index, -torch.inf)
        rival = others.amax(1, keepdim=True)
        ctx.save_for_backward(index, others, rival)
        return (logits.gather(1, index) - rival).squeeze(1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        index, others, rival = ctx.saved_tensors
        gradient = gradient.unsqueeze(1)
        share = torch.eq(others, rival, out=torch.empty_like(others))
        share *= -gradient / share.sum(1, keepdim=True)
        return share.scatter_(1, index, gradient), None


def margins(logits: Tensor, label: Tensor, target: Tensor | None, aim: Tensor | None) -> Tensor:
    """Negative where reached: clean class over the best other (or over `aim`, if that is no -1), or the best other over
    the target."""
    if target is not None:
        return -lead(logits, target)
    free = lead(logits, label)
    return free if aim is None else torch.where(aim < 0, free, take(logits, label) - take(logits, aim.clamp_min(0)))


def predicted(logits: Tensor) -> Tensor:
    """The class of the largest logit, the first of equal ones, (B, ...)."""
    logits = logits.detach()
    return logits.max(1).indices if synchrony.readable(logits) else logits.argmax(1)


def predicts(logits: Tensor, label: Tensor, ahead: Tensor | None = None) -> Tensor:
    """Where `label` (B, ...) is the class predicted, as argmax has it; `ahead` is its lead if that is known."""
    if not synchrony.readable(logits):
        return predicted(logits) == label
    ahead = lead(logits.detach(), label) if ahead is None else ahead.detach()
    won = ahead > 0
    if bool(((ahead == 0) | ahead.isnan()).any()):  # of equal ones argmax takes the first, and any NaN before numbers
        return won | (predicted(logits) == label)
    return won


def ratio(logits: Tensor, margin: Tensor, targeted: bool) -> Tensor:
    """Difference of logits ratio: the margin over a spread of the sorted logits."""
    top = logits.topk(min(logits.shape[1], 4), dim=1).values
    low = (top[:, 2] + top[:, 3]) / 2 if targeted and top.shape[1] == 4 else top[:, 2]
    spread = top[:, 0] - low
    return margin / spread.clamp_min(torch.finfo(logits.dtype).tiny)


def divergence(logits: Tensor, clean: Tensor) -> Tensor:
    """Jensen-Shannon divergence over classes of softmax(logits) and softmax(clean), (B, ...)."""
    p, q = logits.log_softmax(1), clean.log_softmax(1)
    middle = torch.logaddexp(p, q) - torch.log(torch.tensor(2.0, dtype=p.dtype, device=p.device))
    return ((p.exp() * (p - middle)).sum(1) + (q.exp() * (q - middle)).sum(1)) / 2
