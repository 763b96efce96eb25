"""Whole images at a fixed budget: how many pixels keep their class, after equal numbers of passes.

foolbox and torchattacks have no dense losses. They are given the mean cross-entropy over pixels: torchattacks' PGDL2 as
it is; foolbox's PGD through its documented hook for losses; torchattacks' APGD through a view with two classes, whose
margin is the mean cross-entropy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attackcheck.attacks import ImageFlip, pgd, registry

from .dense import DenseView, RegionTape
from .libraries import fenced, installed, library
from .report import Sheet
from .subjects import Subject
from .tape import Clock, Result

__all__ = ["sheets"]

EPSILONS = (0.1, 0.3, 1.0)
LOSSES = ("margin", "ce", "js", "segpgd", "cospgd")


def sheets(subject: Subject, full: bool, count: int, seed: int, wanted: Callable[[str], bool]) -> Iterator[Sheet]:
    """One sheet for each budget; `count` is not used: all images of the subject are attacked.

    What the sheet calls a distance is the number of pixels that keep their class, its tightness this number's smallest
    value among all attacks over its own.
    """
    del count
    steps = 100 if full else 20
    for eps in EPSILONS:
        results = []
        for loss in LOSSES:
            if wanted(f"attackcheck pgd {loss}"):
                results.append(_run(subject, f"attackcheck pgd {loss}", "ours", eps, steps, seed, _ours(loss)))
        if wanted("attackcheck guided"):
            results.append(_run(subject, "attackcheck guided", "ours", eps, steps, seed, _guided))
        for name, module, run in PEERS:
            if installed(module) and wanted(name):
                results.append(_run(subject, name, module, eps, steps, seed, run))
        if results:
            note = f"{subject.note}; unchanged pixels at eps = {eps:g} (as distance), {steps} steps"
            yield Sheet(f"{subject.name}, eps {eps:g}", note, [math.nan] * len(subject.images), False, results, "image")


def _ours(loss: str) -> Callable[[RegionTape, Tensor, float, int], None]:
    def run(tape: RegionTape, image: Tensor, eps: float, steps: int) -> None:
        pgd(tape, image[None], ImageFlip(loss=loss), eps=eps, steps=steps)

    return run


def _guided(tape: RegionTape, image: Tensor, eps: float, steps: int) -> None:
    registry.get("guided").function(tape, image[None], ImageFlip(), eps=eps, steps=steps)


def _view(tape: RegionTape, image: Tensor, eps: float) -> tuple[DenseView, Tensor, float]:
    """A box that no budget reaches, logits with a mean margin of 12, the image and eps in the view's units."""
    room = max(0.25, eps)
    low, high = float(image.min()) - room, float(image.max()) + room
    top = tape.clean.topk(2, dim=0).values
    view = DenseView(tape, (low, high), 12 / max(float((top[0] - top[1]).mean()), 1e-12)).eval()
    return view, view.enter(image[None]).clamp(0, 1), eps / (high - low)


def _foolbox_pgd(tape: RegionTape, image: Tensor, eps: float, steps: int) -> None:
    fb = library("foolbox")
    view, seen, budget = _view(tape, image, eps)

    class Dense(fb.attacks.L2ProjectedGradientDescentAttack):  # type: ignore[misc, name-defined]
        def get_loss_fn(self, model, labels):  # type: ignore[no-untyped-def]
            import eagerpy as ep

            def loss(inputs):  # type: ignore[no-untyped-def]
                return ep.astensor(F.cross_entropy(model(inputs).raw, labels.raw))

            return loss

    model = fb.PyTorchModel(view, bounds=(0, 1), device=seen.device)
    attack = Dense(steps=steps, rel_stepsize=0.15, random_start=False)
    view(attack.run(model, seen, fb.Misclassification(tape.label[None]), epsilon=budget))


def _torchattacks_pgd(tape: RegionTape, image: Tensor, eps: float, steps: int) -> None:
    view, seen, budget = _view(tape, image, eps)
    attack = library("torchattacks").PGDL2(view, eps=budget, alpha=0.15 * budget, steps=steps, random_start=False)
    attack.set_device(seen.device)
    view(attack(seen, tape.label[None]))


class _TwoClasses(nn.Module):
    def __init__(self, view: DenseView, label: Tensor) -> None:
        super().__init__()
        self._view, self._label = (view,), label

    def forward(self, seen: Tensor) -> Tensor:
        logits = self._view[0](seen)
        loss = F.cross_entropy(logits, self._label.expand(len(seen), *self._label.shape[1:]), reduction="none")
        mean = loss.mean((1, 2))
        return torch.stack([5 - mean, torch.zeros_like(mean)], 1)


def _torchattacks_apgd(tape: RegionTape, image: Tensor, eps: float, steps: int) -> None:
    view, seen, budget = _view(tape, image, eps)
    attack = library("torchattacks").APGD(
        _TwoClasses(view, tape.label[None]).eval(), norm="L2", eps=budget, steps=steps
    )
    attack.set_device(seen.device)
    attack(seen, torch.zeros(1, dtype=torch.long, device=seen.device))


PEERS = (
    ("foolbox PGD", "foolbox", _foolbox_pgd),
    ("torchattacks PGDL2", "torchattacks", _torchattacks_pgd),
    ("torchattacks APGD", "torchattacks", _torchattacks_apgd),
)


def _run(
    subject: Subject,
    name: str,
    kind: str,
    eps: float,
    steps: int,
    seed: int,
    run: Callable[[RegionTape, Tensor, float, int], None],
) -> Result:
    result = Result(name, kind, f"{steps} steps", [], 0.0, 0.0, 0.0)
    count = len(subject.images)
    for warm in (True, False):
        for image in subject.images[:1] if warm else subject.images:
            tape = RegionTape(subject.model, image, torch.ones(image.shape[1:], dtype=torch.bool), 1.0, eps)
            with fenced(seed):
                clock = Clock()
                try:
                    run(tape, image, eps, 2 if warm else steps)
                except Exception as error:
                    why = f"{type(error).__name__}: {error}"[:200]
                    result.failures[why] = result.failures.get(why, 0) + (not warm)
                spent = clock.milliseconds()
            if not warm:
                result.distance.append(float(tape.label.numel() - tape.flips))
                result.forward += tape.forward / count
                result.backward += tape.backward / count
                result.milliseconds += spent / count
    result.failures = {why: number for why, number in result.failures.items() if number}
    return result
