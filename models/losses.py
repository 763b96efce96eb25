"""Losses that trade accuracy for margin; on a 1-Lipschitz network the temperature sets the price."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["IGNORE", "LOSSES", "segmentation_loss"]

IGNORE = 255


def _runner_up_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Margin of the labelled class over the best other class: (B, H, W), negative where the prediction is wrong."""
    own = logits.gather(1, labels[:, None])  # (B, 1, H, W)
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return own[:, 0] - others


def _cross_entropy(logits: Tensor, labels: Tensor, tau: float, margin: float) -> Tensor:  # noqa: ARG001
    return F.cross_entropy(tau * logits, labels, reduction="none") / tau


def _margin_cross_entropy(logits: Tensor, labels: Tensor, tau: float, margin: float) -> Tensor:
    shift = torch.zeros_like(logits).scatter_(1, labels[:, None], margin * math.sqrt(2))
    return F.cross_entropy(tau * (logits - shift), labels, reduction="none") / tau


def _hinge(logits: Tensor, labels: Tensor, tau: float, margin: float) -> Tensor:  # noqa: ARG001
    return F.relu(margin * math.sqrt(2) - _runner_up_margin(logits, labels))


def _hkr(logits: Tensor, labels: Tensor, tau: float, margin: float) -> Tensor:
    gap = _runner_up_margin(logits, labels)
    return F.relu(margin * math.sqrt(2) - gap) - gap / tau


LOSSES: dict[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    "ce": _cross_entropy,
    "margin-ce": _margin_cross_entropy,
    "hinge": _hinge,
    "hkr": _hkr,
}


def segmentation_loss(
    name: str, logits: Tensor, labels: Tensor, *, tau: float, margin: float, weights: Tensor | None = None
) -> Tensor:
    """Mean loss over the pixels of `logits` (B, K, H, W) whose label (B, H, W) is not 255.

    "ce": CE(tau z) / tau. "margin-ce": CE(tau (z - margin sqrt(2) onehot)) / tau. "hinge": max(0, margin sqrt(2) - m)
    with m the margin over the best other class. "hkr": hinge - m / tau, after Serrurier et al., "Achieving robustness
    in classification using optimal transport with hinge regularization", CVPR 2021. `weights` are per class, (K,).
    """
    valid = labels != IGNORE
    known = torch.where(valid, labels, 0)
    each = LOSSES[name](logits, known, tau, margin)
    factor = valid.to(each.dtype) if weights is None else valid * weights[known]
    return (each * factor).sum() / factor.sum().clamp(min=1e-12)
