"""What is known of a perturbed image in float64, from the whole image or from a crop around the perturbation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attackcheck.arithmetic import Reference, exact_distance
from attackcheck.certainty import Point, Scene
from attackcheck.memory import ran_out
from attackcheck.receptive import around

__all__ = ["Points"]

DEPLOYED = 8.0
"""How many times as far from float64 as at the clean image logits as deployed may be where a crop is believed."""


@dataclass(frozen=True)
class _Part:
    """What a crop around a perturbation shows of what the perturbation reaches."""

    crop: tuple[slice, slice]  # rows and columns of the image
    reached: tuple[slice, slice]  # of the image
    rows: slice  # what is reached, in the crop
    columns: slice
    inside: Tensor  # (K, h, w) float64, the logits there
    error: Tensor  # (K,)
    norm_error: float


@dataclass
class _Seen:
    """The evidence about one point."""

    scene: Scene
    perturbed: Tensor
    part: _Part | None = None
    near: Point | None = None
    whole: Point | None = None


class Points:
    """Evaluates points one by one; the last one is kept, since it is often the worst of several kinds.

    Args:
        model: the frozen model as deployed; called with a batch of one.
        reference: the same model in float64.
        device: where the model as deployed runs.
    """

    def __init__(self, model: Callable[[Tensor], Tensor], reference: Reference, device: torch.device) -> None:
        self._model, self._reference, self._device = model, reference, device
        self._last: _Seen | None = None

    def forget(self) -> None:
        """Drop the last point, before another image's logits are made."""
        self._last = None

    def deployed(self, perturbed: Tensor) -> Tensor:
        """Logits (K, H, W) of the model as deployed at an image (C, H, W)."""
        with torch.no_grad():
            return self._model(perturbed[None].to(self._device))[0].detach().cpu()

    def whole(self, scene: Scene, perturbed: Tensor) -> Point:
        """A perturbed image (C, H, W) by the float64 logits of all of it."""
        seen = self._seen(scene, perturbed)
        if seen.whole is None:
            seen.near = None  # at most one map of logits
            logits = self._reference(perturbed[None])
            error, norm_error = self._error(scene, perturbed, logits)
            seen.whole = Point(scene, logits[0], error, norm_error, exact_distance(scene.image, perturbed))
        return seen.whole

    def near(self, scene: Scene, perturbed: Tensor) -> Point | None:
        """The same by float64 logits of a crop, and the clean image's beyond it; None where that may not be right.

        It is right where the crop of the clean image shows the logits of the whole clean image, and where the model as
        deployed, which sees the whole perturbed image, agrees as closely as it does at the clean image.
        """
        seen = self._seen(scene, perturbed)
        if seen.whole is not None or seen.near is not None:
            return seen.whole or seen.near
        part = self._part(seen)
        if part is None or not self._same_as_clean(scene, part):
            return None
        logits = scene.reference.clone()
        logits[:, part.reached[0], part.reached[1]] = part.inside
        error, norm_error = _both(scene, part)
        maps = zip(self.deployed(perturbed), logits, scene.deployed, scene.reference, error, strict=True)
        for there, exact, here, clean, most in maps:  # (H, W), class by class
            usual = DEPLOYED * float((here - clean).abs_().max())
            if not bool(((there - exact).abs_() <= max(usual, float(most))).all()):
                return None
        seen.near = Point(scene, logits, error, norm_error, exact_distance(scene.image, perturbed))
        return seen.near

    def _seen(self, scene: Scene, perturbed: Tensor) -> _Seen:
        last = self._last
        if last is None or last.scene is not scene or not torch.equal(last.perturbed, perturbed):
            self._last = None  # before another map of logits is made
            last = self._last = _Seen(scene, perturbed.clone())
        return last

    def _part(self, seen: _Seen) -> _Part | None:
        """A crop of all that the perturbation reaches and what that depends on; None where it would save little."""
        if seen.part is not None:
            return seen.part
        field = seen.scene.field
        found = None if field is None else around(field, seen.scene.image, seen.perturbed)
        if found is None:
            return None
        crop, reached = found
        image = seen.perturbed[None, :, crop[0], crop[1]]
        try:
            logits = self._reference(image)
            error, norm_error = self._reference.error(image, logits)
        except (RuntimeError, ValueError) as refused:  # the model refuses the crop's size
            if ran_out(refused):
                raise
            return None
        rows, columns = (slice(r.start - c.start, r.stop - c.start) for r, c in zip(reached, crop, strict=True))
        seen.part = _Part(crop, reached, rows, columns, logits[0, :, rows, columns], error, norm_error)
        return seen.part

    def _same_as_clean(self, scene: Scene, part: _Part) -> bool:
        """Whether a crop of the clean image shows the logits of the whole one."""
        crop = self._reference(scene.image[None, :, part.crop[0], part.crop[1]])[0]
        shown, whole = crop[:, part.rows, part.columns], scene.reference[:, part.reached[0], part.reached[1]]
        return bool(((shown - whole).abs_() <= torch.maximum(part.error, scene.error)[:, None, None]).all())

    def _error(self, scene: Scene, perturbed: Tensor, logits: Tensor) -> tuple[Tensor, float]:
        """Error bounds at a point with these logits ``(1, K, H, W)``, from around the perturbation where that is small.

        Rounding in what the perturbation does not reach is that of the clean image; in what it reaches it is measured
        on a crop that holds all of that and what it depends on, if the crop shows the logits of the whole image there,
        and the rest of the map is the clean one's.
        """
        part = self._part(self._seen(scene, perturbed))
        if part is None:
            return self._reference.error(perturbed[None], logits)
        shown = logits[0, :, part.reached[0], part.reached[1]]
        same = bool(((shown - part.inside).abs_() <= part.error[:, None, None]).all())
        for z, clean, most in zip(logits[0], scene.reference, scene.error, strict=True):  # (H, W), class by class
            change = (z - clean).abs_()
            change[part.reached] = 0.0
            same = same and bool((change <= most).all())
        return _both(scene, part) if same else self._reference.error(perturbed[None], logits)


def _both(scene: Scene, part: _Part) -> tuple[Tensor, float]:
    """Error bounds of a map that is the crop's where the perturbation reaches, the clean image's elsewhere."""
    return torch.maximum(part.error, scene.error), math.hypot(part.norm_error, scene.norm_error)
