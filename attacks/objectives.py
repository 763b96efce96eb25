"""What an attack wants: logits (B, K, H, W) become one loss and one success per row.

An objective is made unbound (`PixelFlip(rows, cols)`); `bind` fixes the clean prediction, which is what certificates
are about, and the scale of the clean logits. Losses are minimised. Losses and weightings:
margin (Carlini & Wagner 2017), dlr (Croce & Hein 2020), ce (cross-entropy of rescaled logits), js (Jensen-Shannon
divergence from the clean distribution), segpgd (Gu et al. 2022), cospgd (Agnihotri et al. 2024), balanced (ce where
every predicted class weighs the same, after the losses for mIoU of SEA, Croce et al. 2024).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from attackcheck.errors import InputError

from ._logits import divergence, lead, margins, predicted, predicts, ratio, take

__all__ = ["LOSSES", "Bound", "Goal", "ImageFlip", "Objective", "PixelFlip", "RegionFlip", "SetFlip"]

LOSSES = ("margin", "dlr", "ce", "js", "segpgd", "cospgd", "balanced")
_SHARPNESS = 12.0  # scale x clean margin: flat enough not to saturate, steep enough to push towards one class


class Goal(NamedTuple):
    """Loss (B,), minimised, and success (B,) bool, of each row."""

    loss: Tensor
    success: Tensor


class Objective(Protocol):
    """What optimisers ask of an objective."""

    @property
    def joint(self) -> bool:
        """Whether several pixels have to flip together, so that one straight ray will rarely do."""
        ...

    def bind(self, logits: Tensor) -> Objective:
        """The same objective with the clean prediction fixed from the clean logits (B, K, H, W)."""
        ...

    def __call__(self, logits: Tensor) -> Goal:
        """Loss and success of each row."""
        ...

    def by_margin(self) -> Objective:
        """The same goal with the margin loss, whose zero is the decision boundary."""
        ...

    def candidates(self, logits: Tensor, count: int) -> Sequence[Objective]:
        """Up to `count` bound variants with the margin loss, each aimed at one class, most promising first."""
        ...

    def rows(self, index: Tensor) -> Objective:
        """The objective of the rows `index` (int or bool tensor): a subset, another order or a repetition."""
        ...


class Bound(NamedTuple):
    """What `bind` fixes at every pixel of the objective: trailing shape () or (H, W)."""

    label: Tensor  # (B, ...)
    scale: Tensor  # (B, ...)
    clean: Tensor | None  # (B, K, ...) scaled; None for maps, which are large, where no loss compares with it

    def each(self, change: Callable[[Tensor], Tensor]) -> Bound:
        """The same with every tensor changed."""
        return Bound(change(self.label), change(self.scale), None if self.clean is None else change(self.clean))


class _Flip:
    """What pixel and set objectives share: losses of every pixel, before they are summed."""

    loss: str
    target: Tensor | None
    _aim: Tensor | None = None
    _bound: Bound | None = None

    def _check(self, target: int | Tensor | None, loss: str, losses: Sequence[str]) -> None:
        if loss not in losses:
            raise InputError(f"expected a loss among {', '.join(losses)}, got {loss!r}")
        if target is not None and loss == "js":
            raise InputError("loss 'js' has no target: choose margin, dlr or ce for a targeted attack")

    def by_margin(self) -> Self:
        """The same goal with the margin loss."""
        plain = copy.copy(self)
        plain.loss = "margin"
        return plain

    def fixed(self) -> Bound:
        if self._bound is None:
            raise InputError("expected a bound objective: call bind(clean logits) first")
        return self._bound

    def _select(self, logits: Tensor) -> Tensor:
        """The logits this objective looks at."""
        raise NotImplementedError

    def bind(self, logits: Tensor) -> Self:
        """The same objective with prediction and scale fixed from the clean logits (B, K, H, W)."""
        z = self._select(logits.detach())
        if z.shape[1] < (3 if self.loss == "dlr" else 2):
            raise InputError(f"loss {self.loss!r} needs more than {z.shape[1]} classes: use margin or ce")
        label = predicted(z)
        margin = lead(z, label)
        # one scale per row: a pixel with a margin of nearly 0 must not blow up
        typical = margin.flatten(1).mean(1) if margin.dim() > 1 else margin
        spread = (z.amax(1) - z.amin(1)).reshape(z.shape[0], -1).mean(1)
        tiny = torch.finfo(z.dtype).tiny
        scale = _SHARPNESS / torch.maximum(typical, 0.05 * spread).clamp_min(tiny)
        scale = scale.clamp_max(torch.finfo(z.dtype).max ** 0.5).reshape(-1, *[1] * (label.dim() - 1)).expand_as(label)
        bound = copy.copy(self)
        kept = z.dim() == 2 or self.loss == "js"
        bound._bound = Bound(label, scale, z * scale.unsqueeze(1) if kept else None)
        return bound

    def _targets(self, label: Tensor) -> Tensor | None:
        if self.target is None:
            return None
        return self.target.to(label.device).reshape(-1, *[1] * (label.dim() - 1)).expand_as(label)

    def _reached(self, z: Tensor, margin: Tensor | None = None) -> Tensor:
        """Which pixels show what is wanted; `margin` is theirs if it is known."""
        label = self.fixed().label
        target = self._targets(label)
        if margin is None or self._aim is not None:  # a pixel aimed at one class may have gone to another
            return ~predicts(z, label) if target is None else predicts(z, target)
        return ~predicts(z, label, margin) if target is None else predicts(z, target, -margin)

    def _margin(self, z: Tensor) -> Tensor:
        label = self.fixed().label
        return margins(z, label, self._targets(label), self._aim)

    def _entropy(self, z: Tensor) -> Tensor:
        """Minus the cross-entropy of the clean class, or the cross-entropy of the target, of rescaled logits."""
        label, scale, _ = self.fixed()
        target = self._targets(label)
        log = (z * scale.unsqueeze(1)).log_softmax(1)
        return take(log, label) if target is None else -take(log, target)

    def _shift(self, z: Tensor) -> Tensor:
        """How far the class distribution of each pixel is from the clean one."""
        _, scale, clean = self.fixed()
        if clean is None:
            raise InputError("expected an objective bound with the loss 'js'")
        return divergence(z * scale.unsqueeze(1), clean)


def _row_tensor(value: int | Tensor | None) -> Tensor | None:
    return None if value is None else torch.as_tensor(value).reshape(-1)


class PixelFlip(_Flip):
    """Flips one pixel per row; `rows`, `cols` (B,) int tensors, `target` a class, one class per row (B,), or None.

    loss: "margin", "dlr", "ce" or "js". A targeted row succeeds when the target wins over all other classes.
    """

    joint = False

    def __init__(self, rows: Tensor, cols: Tensor, target: int | Tensor | None = None, *, loss: str = "margin") -> None:
        self._check(target, loss, LOSSES[:4])
        if rows.dim() != 1 or rows.shape != cols.shape:
            raise InputError(f"expected rows and cols of one shape (B,), got {tuple(rows.shape)}, {tuple(cols.shape)}")
        self.pixel_rows, self.pixel_cols = rows, cols
        self.target = None if target is None else torch.as_tensor(target, device=rows.device).expand(rows.shape)
        self.loss = loss

    def _select(self, logits: Tensor) -> Tensor:
        if logits.shape[0] != self.pixel_rows.shape[0]:
            raise InputError(f"expected {self.pixel_rows.shape[0]} images, one per pixel, got {logits.shape[0]}")
        index = torch.arange(logits.shape[0], device=logits.device)
        return logits[index, :, self.pixel_rows.to(logits.device), self.pixel_cols.to(logits.device)]  # (B, K)

    def __call__(self, logits: Tensor) -> Goal:
        """Loss and success of each row."""
        z = self._select(logits)
        if self.loss in ("margin", "dlr"):
            margin = self._margin(z)
            loss = margin if self.loss == "margin" else ratio(z, margin, self.target is not None)
            return Goal(loss, self._reached(z, margin))
        return Goal(self._entropy(z) if self.loss == "ce" else -self._shift(z), self._reached(z))

    def candidates(self, logits: Tensor, count: int) -> Sequence[PixelFlip]:
        """Margins against the `count` largest other clean logits (any flip is success), or the target's own."""
        plain = self.by_margin()
        if self.target is not None:
            return [plain]
        z = self._select(logits.detach())
        label = self.fixed().label
        order = z.scatter(1, label.unsqueeze(1), -torch.inf).topk(max(1, min(count, z.shape[1] - 1)), dim=1).indices
        found = []
        for aim in order.unbind(1):
            variant = copy.copy(plain)
            variant._aim = aim
            found.append(variant)
        return found

    def rivals(self, logits: Tensor, count: int) -> Tensor:
        """Up to `count` classes that are nearest to taking a pixel over, (V, B); the target where there is one."""
        if self.target is not None:
            return self.target.to(logits.device)[None]
        z = self._select(logits.detach())
        others = z.scatter(1, self.fixed().label.unsqueeze(1), -torch.inf)
        return others.topk(min(count, z.shape[1] - 1), dim=1).indices.T

    def margins(self, logits: Tensor, rivals: Tensor) -> Tensor:
        """Margins against each of the classes `rivals` (V, B), negative where it has taken the pixel over."""
        if self.target is not None:
            return self.by_margin()(logits).loss[None]
        z = self._select(logits)
        return take(z, self.fixed().label)[None] - z.gather(1, rivals.T).T

    def rows(self, index: Tensor) -> PixelFlip:
        """The objective of the rows `index`."""
        index = index.to(self.pixel_rows.device)
        part = PixelFlip(self.pixel_rows[index], self.pixel_cols[index], loss=self.loss)
        part.target = None if self.target is None else self.target[index]
        part._aim = None if self._aim is None else self._aim[index.to(self._aim.device)]
        part._bound = None if self._bound is None else self._bound.each(lambda t: t[index.to(t.device)])
        return part


class SetFlip(_Flip):
    """Flips at least `fraction` of the weight of a set of pixels."""

    joint = True

    def __init__(
        self, weights: Tensor | None, target: int | Tensor | None, fraction: float, loss: str, losses: Sequence[str]
    ) -> None:
        self._check(target, loss, losses)
        if not 0 < fraction <= 1:
            raise InputError(f"expected a fraction in (0, 1], got {fraction}")
        self.weights = weights  # (H, W) or (B, H, W), or None: every pixel counts 1
        self.target = _row_tensor(target)
        self.fraction, self.loss = fraction, loss

    def _select(self, logits: Tensor) -> Tensor:
        if self.weights is not None and self.weights.shape[-2:] != logits.shape[-2:]:
            shape = tuple(self.weights.shape[-2:])
            raise InputError(f"expected a mask or weights of the logits' size {tuple(logits.shape[-2:])}, got {shape}")
        return logits

    def _weights(self, z: Tensor) -> Tensor:
        shape = (z.shape[0], *z.shape[2:])
        if self.weights is None:
            return z.new_ones(()).expand(shape)
        return self.weights.to(z).expand(shape)

    def _needed(self, margin: Tensor, weights: Tensor) -> Tensor:
        """Weights without the pixels that need not flip: only the smallest margins that make up the fraction stay."""
        if self.fraction == 1:
            return weights
        value, order = margin.detach().masked_fill(weights == 0, torch.inf).flatten(1).sort(dim=1)
        sorted_weights = weights.flatten(1).gather(1, order)
        total = sorted_weights.sum(1, keepdim=True)
        before = sorted_weights.cumsum(1) - sorted_weights
        keep = (before < self.fraction * total * (1 - 1e-6)) & (value < torch.inf)
        kept = torch.zeros_like(sorted_weights).scatter(1, order, torch.where(keep, sorted_weights, 0))
        return kept.reshape(weights.shape)

    def __call__(self, logits: Tensor) -> Goal:
        """Loss and success of each row."""
        z = self._select(logits)
        weights = self._weights(z)
        if self.loss in ("margin", "dlr"):
            margin = self._margin(z)
            loss = margin if self.loss == "margin" else ratio(z, margin, self.target is not None)
            # weight 0 may meet an infinite value nowhere: logits are finite
            losses, reached = self._needed(margin, weights) * loss.clamp_min(0), self._reached(z, margin)
        else:
            reached = self._reached(z)
            losses = self._losses(z, weights, reached)
        return Goal(losses.sum((1, 2)), self._enough(weights, reached))

    def _enough(self, weights: Tensor, reached: Tensor) -> Tensor:
        share = (weights * reached).sum((1, 2))
        return (share >= self.fraction * weights.sum((1, 2)) * (1 - 1e-6)) & (share > 0)

    def _losses(self, z: Tensor, weights: Tensor, reached: Tensor) -> Tensor:
        """The weighted loss of every pixel (B, H, W), where that is no margin."""
        if self.loss == "js":
            return -weights * ~reached * self._shift(z)
        entropy = self._entropy(z)
        if self.loss == "segpgd":
            # the published weight of flipped pixels grows with the steps from 0 to 1/2; here with their share
            flipped = (weights * reached).sum((1, 2), keepdim=True) / weights.sum((1, 2), keepdim=True).clamp_min(1e-12)
            return weights * torch.where(reached, flipped / 2, 1 - flipped / 2) * entropy
        if self.loss == "cospgd":
            return weights * self._alignment(z) * entropy
        if self.loss == "balanced":
            return weights * self._balance(weights, z.shape[1]) * ~reached * entropy
        return weights * ~reached * entropy

    def _alignment(self, z: Tensor) -> Tensor:
        """Cosine between the class distribution and the clean class (or its distance to the target), as a weight."""
        label, scale, _ = self.fixed()
        target = self._targets(label)
        p = (z.detach() * scale.unsqueeze(1)).softmax(1)
        cosine = take(F.normalize(p, dim=1), label if target is None else target)
        return cosine if target is None else 1 - cosine

    def _balance(self, weights: Tensor, classes: int) -> Tensor:
        """One over the share that each pixel's clean class has in the weight of its image, (B, H, W)."""
        label = self.fixed().label.flatten(1)
        flat = weights.flatten(1)
        total = flat.new_zeros((len(flat), classes)).scatter_add(1, label, flat)
        share = total.gather(1, label) / flat.sum(1, keepdim=True).clamp_min(1e-30)
        return (1 / share.clamp_min(1e-30)).masked_fill(flat == 0, 0).reshape(weights.shape)

    def candidates(self, logits: Tensor, count: int) -> Sequence[SetFlip]:
        """The margin loss itself, then the set aimed as a whole at one class each, cheapest classes first."""
        plain = self.by_margin()
        found = [plain]
        if self.target is None and count > 1:
            z = self._select(logits.detach())
            label = self.fixed().label
            weights = self._weights(z).unsqueeze(1)
            cost = (weights * (take(z, label).unsqueeze(1) - z)).sum((2, 3))  # (B, K)
            order = cost.topk(min(count - 1, cost.shape[1]), dim=1, largest=False).indices
            for aim in order.unbind(1):
                variant = copy.copy(plain)
                # a pixel already of the class aimed at goes to its own runner-up instead
                runner_up = predicted(z.scatter(1, label.unsqueeze(1), -torch.inf))
                wide = aim[:, None, None].expand_as(label)
                variant._aim = torch.where(wide == label, runner_up, wide)
                found.append(variant)
        return found

    def margins(self, logits: Tensor) -> Tensor:
        """The margin of every pixel (B, H, W), bound: negative where it shows what is wanted."""
        return self._margin(self._select(logits))

    def goal_of(self, logits: Tensor, margins: Tensor) -> Goal:
        """The goal by margins, given what :meth:`margins` said of these logits: half the time of a call."""
        z = self._select(logits)
        weights = self._weights(z)
        reached = margins < 0 if self._aim is None else self._reached(z)
        return Goal((self._needed(margins, weights) * margins.clamp_min(0)).sum((1, 2)), self._enough(weights, reached))

    def weight_map(self, logits: Tensor) -> Tensor:
        """The weight of every pixel, (B, H, W)."""
        return self._weights(self._select(logits))

    def smallest(self, values: Tensor) -> Tensor:
        """Weights (B, H, W) of as many pixels as have to flip, those of the smallest `values` (B, H, W)."""
        weights = values.new_ones(()) if self.weights is None else self.weights.to(values)
        return self._needed(values, weights.expand(values.shape))

    def places(self) -> Tensor | None:
        """The pixels that have a weight in any row, flat (P,); None for all pixels of any image."""
        if self.weights is None:
            return None
        return (self.weights != 0).reshape(-1, self.weights.shape[-2:].numel()).any(0).nonzero()[:, 0]

    def narrowed(self, places: Tensor | None) -> Self:
        """The same objective, not yet bound, for the logits (B, K, 1, P) of the flat `places` (P,) of the image."""
        part = copy.copy(self)
        part._bound = part._aim = None
        if self.weights is not None and places is not None:
            part.weights = self.weights.flatten(-2)[..., None, places.to(self.weights.device)]
        return part

    def joined(self, others: Sequence[SetFlip]) -> Self:
        """One objective of the rows of several bound ones, made by :meth:`candidates`, one after the other."""
        whole = copy.copy(self)
        count, (label, _, _) = len(others), self.fixed()
        whole._bound = self.fixed().each(lambda part: torch.cat([part] * count))
        free = torch.full_like(label, -1)
        if any(other._aim is not None for other in others):
            whole._aim = torch.cat([free if other._aim is None else other._aim for other in others])
        if self.weights is not None and self.weights.dim() == 3 and len(self.weights) > 1:
            whole.weights = torch.cat([self.weights] * count)
        if self.target is not None and len(self.target) > 1:
            whole.target = torch.cat([self.target] * count)
        return whole

    def rows(self, index: Tensor) -> Self:
        """The objective of the rows `index`."""
        part = copy.copy(self)
        if self.weights is not None and self.weights.dim() == 3:
            part.weights = self.weights[index.to(self.weights.device)]
        if self.target is not None and self.target.shape[0] > 1:
            part.target = self.target[index.to(self.target.device)]
        part._aim = None if self._aim is None else self._aim[index.to(self._aim.device)]
        part._bound = None if self._bound is None else self._bound.each(lambda t: t[index.to(t.device)])
        return part


class RegionFlip(SetFlip):
    """Flips at least `fraction` of the pixels of a region; `mask` (H, W) or (B, H, W) bool, `target` a class or None.

    loss: "margin" (hinge, summed over the pixels that still have to flip), "dlr", "ce" (over unflipped pixels), "js",
    "segpgd", "cospgd" or "balanced".
    """

    def __init__(
        self, mask: Tensor, target: int | Tensor | None = None, fraction: float = 1.0, *, loss: str = "margin"
    ) -> None:
        super().__init__(mask, target, fraction, loss, LOSSES)
        if mask.dim() not in (2, 3) or mask.dtype != torch.bool:
            raise InputError(f"expected a bool mask (H, W) or (B, H, W), got {mask.dtype} {tuple(mask.shape)}")


class ImageFlip(SetFlip):
    """Flips pixels that carry at least `fraction` of an image's weight; `weights` (H, W) or (B, H, W), None: all 1.

    Same losses as RegionFlip; weight 0 leaves a pixel out.
    """

    def __init__(self, fraction: float = 1.0, weights: Tensor | None = None, *, loss: str = "margin") -> None:
        super().__init__(weights, None, fraction, loss, LOSSES)
