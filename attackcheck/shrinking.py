"""A counterexample made small: as few changed pixels as still break the claim, in as small an image as still does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attackcheck.claims import Claim, RadiusClaim
from attackcheck.counterexample import Counterexample, Outcome, replay
from attackcheck.errors import InputError

__all__ = ["changed_pixels", "shrink"]


def changed_pixels(example: Counterexample) -> int:
    """How many pixels of the image the perturbation changes."""
    return int((example.clean != example.perturbed).any(dim=0).sum())


def shrink(
    example: Counterexample,
    model: Callable[[Tensor], Tensor],
    claim: Claim | None = None,
    *,
    judgements: int = 200,
    crop: bool = True,
) -> Counterexample:
    """The smallest counterexample found that breaks the claim in the same way, judged again at every step.

    First the image is cropped around what is changed, as long as the model takes smaller images and the claim is still
    broken there (a claim of given radii is about whole images, which are kept). Then changes are undone pixel by pixel,
    smallest first and in ever smaller groups (Zeller and Hildebrandt 2002, Simplifying and isolating failure-inducing
    input, with the order of the changes as a hint).

    Args:
        example: what :func:`attackcheck.load_counterexample` returns.
        model: the model.
        claim: another claim than the recorded one.
        judgements: how often it is judged at most.
        crop: False keeps the image's size.

    Raises:
        InputError: if the counterexample does not break the claim to begin with.
    """
    search = _Search(model, claim, judgements)
    start = search.judged(example)
    if start is None:
        raise InputError("expected a counterexample that breaks the claim, got one that does not")
    best = start
    if crop and not isinstance(claim, RadiusClaim) and example.claim.get("kind") != "radii":
        best = _cropped(search, best)
    return _undone(search, best)


@dataclass
class _Search:
    model: Callable[[Tensor], Tensor]
    claim: Claim | None
    left: int

    def judged(self, example: Counterexample) -> Counterexample | None:
        """The example with its numbers as they are now, None if it breaks nothing or there are no judgements left."""
        if self.left <= 0 or torch.equal(example.clean, example.perturbed):
            return None
        self.left -= 1
        try:
            found = replay(example, self.model, self.claim)
        except InputError:
            return None
        if found.outcome is not Outcome.REPRODUCED or found.judgement is None:
            return None
        return replace(example, radius=found.judgement.bound, distance=found.judgement.distance)


def _cropped(search: _Search, best: Counterexample) -> Counterexample:
    """Halve what lies above, below, left and right of the pixel in turn, until nothing more can go."""
    progress = True
    while progress:
        progress = False
        for smaller in _crops(best):
            found = search.judged(smaller)
            if found is not None:
                best, progress = found, True
                break
    return best


def _crops(example: Counterexample) -> Iterator[Counterexample]:
    height, width = example.clean.shape[1:]
    row, column = example.pixel or (None, None)
    for share in (2, 4, 8):
        for axis, size, keep in ((1, height, row), (2, width, column)):
            cut = max(1, size // share)
            for begin, end in ((0, size - cut), (cut, size)):
                if end - begin < 1 or end - begin == size or (keep is not None and not begin <= keep < end):
                    continue
                place = None
                if example.pixel is not None:
                    place = (example.pixel[0] - begin, example.pixel[1])
                    if axis == 2:
                        place = (example.pixel[0], example.pixel[1] - begin)
                clean, perturbed = (
                    x.narrow(axis, begin, end - begin).clone() for x in (example.clean, example.perturbed)
                )
                yield replace(example, clean=clean, perturbed=perturbed, pixel=place)


def _undone(search: _Search, best: Counterexample) -> Counterexample:
    delta = (best.perturbed - best.clean).double().square().sum(dim=0).flatten()
    order = delta.argsort()
    kept = order[delta[order] > 0].tolist()  # smallest change first
    size = len(kept) // 2
    while size >= 1 and search.left > 0:
        start = 0
        while start < len(kept) and len(kept) > 1:
            without = kept[:start] + kept[start + size :]
            found = search.judged(_only(best, without)) if without else None
            if found is not None:
                best, kept = found, without
            else:
                start += size
            if search.left <= 0:
                break
        size //= 2
    return best


def _only(example: Counterexample, pixels: list[int]) -> Counterexample:
    """The example with changes at these pixels alone."""
    mask = torch.zeros(example.clean.shape[1:], dtype=torch.bool).flatten()
    mask[pixels] = True
    return replace(example, perturbed=torch.where(mask.view(example.clean.shape[1:]), example.perturbed, example.clean))
