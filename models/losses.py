"""Losses that trade accuracy for margin; on a 1-Lipschitz network the temperature sets the price."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["IGNORE", "LOSSES", "pixel_weights", "segmentation_loss"]

IGNORE = 255


def _runner_up_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Margin of the labelled class over the best other class: (B, H, W), negative where the prediction is wrong."""
    own = logits.gather(1, labels[:, None])  # (B, 1, H, W)
    others = logits.scatter(1, labels[:, None], -torch.inf).amax(1)
    return own[:, 0] - others


def _cross_entropy(logits: Tensor, labels: Tensor, valid: Tensor, tau: float, margin: float) -> Tensor:  # noqa: ARG001
    return F.cross_entropy(tau * logits, labels, reduction="none") / tau


def _margin_cross_entropy(logits: Tensor, labels: Tensor, valid: Tensor, tau: float, margin: float) -> Tensor:  # noqa: ARG001
    shift = torch.full_like(labels[:, None], -tau * margin * math.sqrt(2), dtype=logits.dtype)
    return F.cross_entropy((tau * logits).scatter_add(1, labels[:, None], shift), labels, reduction="none") / tau


def _hinge(logits: Tensor, labels: Tensor, valid: Tensor, tau: float, margin: float) -> Tensor:  # noqa: ARG001
    return F.relu(margin * math.sqrt(2) - _runner_up_margin(logits, labels))


def _hkr(logits: Tensor, labels: Tensor, valid: Tensor, tau: float, margin: float) -> Tensor:  # noqa: ARG001
    gap = _runner_up_margin(logits, labels)
    return F.relu(margin * math.sqrt(2) - gap) - gap / tau


def _joint(logits: Tensor, labels: Tensor, valid: Tensor, tau: float, margin: float) -> Tensor:  # noqa: ARG001
    margins = _runner_up_margin(logits.detach(), labels).masked_fill(~valid, torch.inf)
    reach = _bought_margin(margins, margin)  # (B, 1, 1)
    temperature = SHARPNESS / reach
    shift = torch.full_like(labels[:, None], -SHARPNESS, dtype=logits.dtype)
    shifted = (logits * temperature[:, None]).scatter_add(1, labels[:, None], shift)
    return F.cross_entropy(shifted, labels, reduction="none") / temperature


def _bought_margin(margins: Tensor, eps: float) -> Tensor:
    """The margin up to which a budget flips pixels, cheapest first, of each image: (B, H, W) -> (B, 1, 1).

    Flipping a pixel costs half its squared margin (the certificate's output space, L = 1); wrong ones are for free, and
    infinite margins are those of pixels that do not count.
    """
    ordered = margins.flatten(1).sort(dim=1).values
    spent = (ordered.clamp_min(0.0).square() / 2).cumsum(dim=1)
    bought = (spent <= eps * eps).sum(dim=1, keepdim=True).clamp_max(ordered.shape[1] - 1)
    # Where everything is bought, the largest margin is not enough: so much more would be.
    reach = ordered.gather(1, bought)
    return torch.where(reach.isfinite(), reach, eps).clamp_min(SMALLEST_REACH)[..., None]


SHARPNESS = 4.0
SMALLEST_REACH = 1e-2

LOSSES: dict[str, Callable[[Tensor, Tensor, Tensor, float, float], Tensor]] = {
    "ce": _cross_entropy,
    "margin-ce": _margin_cross_entropy,
    "hinge": _hinge,
    "hkr": _hkr,
    "joint": _joint,
}


def segmentation_loss(
    name: str, logits: Tensor, labels: Tensor, *, tau: float, margin: float, weights: Tensor | None = None
) -> Tensor:
    """Mean loss over the pixels of `logits` (B, K, H, W) whose label (B, H, W) is not 255.

    "ce": CE(tau z) / tau. "margin-ce": CE(tau (z - margin sqrt(2) onehot)) / tau. "hinge": max(0, margin sqrt(2) - m)
    with m the margin over the best other class. "hkr": hinge - m / tau, after Serrurier et al., "Achieving robustness
    in classification using optimal transport with hinge regularization", CVPR 2021. `weights` are per class, (K,).

    "joint" follows the certificate for a whole image, with `margin` its budget eps. The number of right pixels that
    eps can flip is at most min over mu of mu eps^2 + sum_i max(0, 1 - mu c_i), c_i = m_i^2 / 2 (the dual of the
    knapsack), and the best mu is one over the cost at which the cheapest pixels have used the budget up. Let m* be the
    margin there: a pixel counts as long as m_i < m*, so each image gets the loss m* CE(a z / m* - a onehot) / a, the
    smooth form of max(0, m* - m), which is linear for wrong pixels and dies out beyond m*. Without the
    factor m* in front, images far from their certificate would count most.
    """
    valid = labels != IGNORE
    known = torch.where(valid, labels, 0)
    each = LOSSES[name](logits, known, valid, tau, margin)
    factor = pixel_weights(labels, weights)
    return (each * factor).sum() / factor.sum().clamp(min=1e-12)


def pixel_weights(labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """What each pixel of `labels` (B, H, W) counts in a mean: 0 if it is ignored, else its class's weight or 1."""
    valid = labels != IGNORE
    return valid.float() if weights is None else valid * weights[torch.where(valid, labels, 0)]
