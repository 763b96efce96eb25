"""Relations that radii obey whatever the network is: no attack, no known distance.

Radii are those of some real-number function. If its logits and its constant are both multiplied by c, or its classes
are named in another order, no distance changes; if its input is multiplied by c inside the network, every distance is
divided by c; if images and network are mirrored, so are the radii; at a tie the distance is 0. A certifier that breaks
a relation need not be unsound (it may be loose in one of the two cases), so this is never more than a warning: what is
unsound shows on the gadgets, where distances are known.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import torch
from torch import Tensor, nn

from attackcheck.claims import RadiusClaim, margins

__all__ = ["RELATIONS", "change", "tied", "warnings_of"]

Model = Callable[[Tensor], Tensor]

RELATIVE = 1e-3
"""Radii that agree to this share of them, plus a millionth of the largest, are the same."""

PATIENCE = 2.0
"""Seconds that one call of a certifier may take for the relations to be tried on the user's own network as well."""

RELATIONS = {
    "scaled": "logits and constant are both multiplied by 4",
    "stretched": "the input is multiplied by 4 inside the network and the image divided by it",
    "reordered": "classes and batch rows come in another order",
    "mirrored": "image and network are mirrored",
    "repeated": "the certifier is asked again",
    "batched": "another image is in the batch",
    "as given": "the certifier is given the model itself instead of the frozen copy that is attacked",
}


def change(radii: Tensor, expected: Tensor) -> float:
    """Largest relative difference of two maps of radii beyond rounding, 0 where they agree."""
    radii, expected = radii.double().cpu(), expected.double().cpu()
    finite = expected[expected.isfinite()]
    slack = 1e-6 * float(finite.max()) if len(finite) else 0.0
    size = torch.maximum(radii, expected)
    wrong = ((radii - expected).abs() / (size + slack).clamp_min(1e-300)).nan_to_num(nan=1.0, posinf=1.0)
    wrong = torch.where(radii == expected, 0.0, wrong)
    wrong = torch.where((radii - expected).abs() <= slack, 0.0, wrong)
    worst = float(wrong.max()) if wrong.numel() else 0.0
    return worst if worst > RELATIVE else 0.0


def tied(logits: Tensor, radius: Tensor) -> int:
    """How many pixels of ``(B, H, W)`` have a positive radius although two classes share the first place."""
    return int(((margins(logits) == 0) & (radius > 0)).sum())


class _Around(nn.Module):
    """A network between a map of its images and a map of its logits."""

    def __init__(self, model: Model, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.model(self.before(images)))


def _same(x: Tensor) -> Tensor:
    return x


def warnings_of(
    claim: RadiusClaim, given: Model, model: Model, image: Tensor, radius: Tensor
) -> Iterator[tuple[str, str]]:
    """Codes and sentences about a certifier that is a function, at one image.

    Args:
        claim: the certifier, bound to ``model``.
        given: the model as the user gave it; it is copied, never called.
        model: the frozen copy that is attacked.
        image: ``(1, C, H, W)``.
        radius: ``(1, H, W)``, the radii that the run goes by.
    """
    if not callable(claim.certifier):
        return
    start = time.perf_counter()
    shape = (1, *radius.shape[1:])
    answers = {"repeated": _asked(claim, image, shape)}
    if time.perf_counter() - start > PATIENCE:
        return
    both = _asked(claim, torch.cat([image.flip(3), image]), (2, *radius.shape[1:]))
    answers["batched"] = None if both is None else both[1:]
    if claim.takes_model:
        answers |= _on_variants(claim, given, model, image, shape)
    for relation, radii in answers.items():
        worst = 0.0 if radii is None else change(radii, radius)
        if worst:
            yield "AC122", f"radii of the first image change by up to {100 * worst:.2g} % when {RELATIONS[relation]}"


def _on_variants(
    claim: RadiusClaim, given: Model, model: Model, image: Tensor, shape: tuple[int, ...]
) -> dict[str, Tensor | None]:
    constant = claim.lipschitz or 0.0
    mirror = _Around(model, lambda x: x.flip(3), lambda z: z.flip(3)).eval()
    mirrored = _asked(RadiusClaim(claim.certifier, lipschitz=constant).of(mirror), image.flip(3), shape)
    tall = RadiusClaim(claim.certifier, lipschitz=4.0 * constant)
    scaled = _asked(tall.of(_Around(model, _same, lambda z: 4.0 * z).eval()), image, shape)
    stretched = _asked(tall.of(_Around(model, lambda x: 4.0 * x, _same).eval()), image / 4.0, shape)
    reordered = _asked(claim.of(_Around(model, _same, lambda z: z.roll(1, 1)).eval()), image, shape)
    found = {
        "scaled": scaled,
        "stretched": None if stretched is None else 4.0 * stretched,
        "reordered": reordered,
        "mirrored": None if mirrored is None else mirrored.flip(2),
    }
    if isinstance(given, nn.Module):
        with suppress(RuntimeError, TypeError, AttributeError):
            twin = copy.deepcopy(given).to(image.device).eval()
            found["as given"] = _asked(claim.of(twin), image, shape)
    return found


def _asked(claim: RadiusClaim, images: Tensor, shape: tuple[int, ...]) -> Tensor | None:
    """Radii, or None where the certifier cannot say: many know one kind of network only."""
    try:
        radii = claim.radii(images, images.new_zeros(shape[0], 1, *shape[1:]), None)
    except (Exception, SystemExit):
        return None
    return radii
