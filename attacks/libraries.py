"""Attacks of foolbox and torchattacks with the signature of ours, for one pixel at a time.

Both libraries know classifiers only, so they attack a `PixelView`; both drop, reorder or stop rows together, so every
row is attacked alone. What comes back is the closest success that the library visited, or its point of lowest margin,
whatever it returns itself: on failure foolbox returns the clean image or zeros. Where their published defaults do not
suit small radii and small logits they are replaced, in units of the row's linearised distance D and clean margin.
Both clamp to a box without a word: with `box=None` they get one that leaves a unit of room on either side of [0, 1].
Their use of the global random state is fenced off, seeded from the row's generator.
"""

from __future__ import annotations

import contextlib
import io
import math
import random
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from attackcheck.errors import InputError

from ._newton import outlook
from ._rows import Box, Generators, Model, gaussian
from .objectives import Objective, PixelFlip
from .views import PixelView

__all__ = [
    "foolbox_cw",
    "foolbox_ddn",
    "foolbox_deepfool",
    "foolbox_fmn",
    "foolbox_pgd",
    "torchattacks_cw",
    "torchattacks_deepfool",
    "torchattacks_fab",
    "torchattacks_pgd",
]


class _Row(NamedTuple):
    """One row's attack as a library sees it: everything in the view's units."""

    view: _Watch
    seen: Tensor  # (1, C, H, W)
    label: Tensor  # (1,)
    target: Tensor | None  # (1,)
    distance: float  # linearised distance D
    margin: float  # clean margin
    shrink: float  # view distance / image distance
    classes: int


class _Watch(PixelView):
    """A pixel view that remembers the closest success it was shown, or else the lowest margin."""

    def watch(self, image: Tensor, objective: Objective) -> None:
        """Starts to remember; `objective` is bound and belongs to this one row."""
        self.image, self.objective = image, objective
        self.best = image
        self.best_distance = self.lowest = float("inf")

    def forward(self, seen: Tensor) -> Tensor:
        images = self.leave(seen if self.dtype is None else seen.to(self.dtype))
        logits = self._model[0](images)
        with torch.no_grad():
            goal = self.objective(logits.detach())
            distance = float(torch.linalg.vector_norm((images.detach() - self.image).double()))
            moved = distance > 0  # the clean image is no attack, even where it is a tie
            if bool(goal.success[0]):
                if distance < self.best_distance and moved:
                    self.best, self.best_distance = images.detach().clone(), distance
            elif self.best_distance == float("inf") and float(goal.loss[0]) < self.lowest and moved:
                self.best, self.lowest = images.detach().clone(), float(goal.loss[0])
        return (logits[:, :, self.row, self.col] + self.shift) * self.scale


_GLOBAL = threading.Lock()
"""The libraries use the process's random state and output: one at a time."""


def _library(name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(name)
    except ImportError as error:
        extra = "" if name == "foolbox" else "[peers]"
        raise InputError(f"{name} is not installed: pip install 'attackcheck{extra}'") from error


@contextlib.contextmanager
def _fenced(seed: int, device: torch.device) -> Iterator[None]:
    """Global random numbers seeded inside and restored after; nothing printed, no warnings."""
    cuda = [device] if device.type == "cuda" else []
    with (
        _GLOBAL,
        torch.random.fork_rng(devices=cuda),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        torch.enable_grad(),
    ):
        warnings.simplefilter("ignore")
        numbers, state = random.getstate(), np.random.get_state()
        torch.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(numbers)
            np.random.set_state(state)


def _seeds(generator: Generators, count: int) -> list[int]:
    if generator is None:
        return [0] * count
    rows = [generator] * count if isinstance(generator, torch.Generator) else list(generator)
    return [int(torch.randint(2**31, (1,), generator=g, device=g.device)) for g in rows]


def _attack(
    name: str,
    model: Model,
    images: Tensor,
    objective: Objective,
    box: Box,
    generator: Generators,
    run: Callable[[_Row], Tensor],
    *,
    targeted: bool,
    positive: bool = False,
) -> Tensor:
    """Runs a library on each row; `positive` shifts logits above zero."""
    if not isinstance(objective, PixelFlip):
        raise InputError(f"{name} attacks single pixels only, got {type(objective).__name__}: use ddn or linearised")
    if objective.target is not None and not targeted:
        raise InputError(f"{name} has no targeted mode: use linearised, ddn, cw or foolbox.ddn")
    if box is not None and images.numel() and (images.min() < box[0] or images.max() > box[1]):
        got = f"{images.min():.3g} to {images.max():.3g}"
        raise InputError(f"expected images within the box {box}, got values from {got}")
    seeds = _seeds(generator, images.shape[0])
    found = []
    for i in range(images.shape[0]):
        index = torch.tensor([i])
        image = images[i : i + 1].detach()
        first = outlook(model, image, objective.rows(index), 3, gaussian(image, None))
        bound = first.objective
        if not isinstance(bound, PixelFlip):
            raise TypeError(f"bind changed the kind of the objective to {type(bound).__name__}")
        label, scale, clean = bound.fixed()
        low, high = box or (min(-1.0, float(image.min()) - 1), max(2.0, float(image.max()) + 1))
        sharp = float(scale[0])
        z = clean[0] / sharp
        # far enough that no step of a reasonable attack makes a logit negative
        shift = float(4 * (z.max() - z.min()) - z.min()) if positive else 0.0
        view = _Watch(
            model,
            int(bound.pixel_rows[0]),
            int(bound.pixel_cols[0]),
            box=(low, high),
            scale=sharp,
            shift=shift,
            dtype=images.dtype,
        )
        view.watch(image, bound.by_margin())
        view.eval()
        shrink = 1 / (high - low)
        margin = max(float(first.loss[0, 0]) * sharp, 1e-6)
        distance = max(float(first.distance[0, 0]) * shrink, 1e-6)
        seen = view.enter(image).clamp(0, 1)
        row = _Row(view, seen, label, bound.target, distance, margin, shrink, clean.shape[1])
        with _fenced(seeds[i], images.device):
            result = run(row)
            with torch.no_grad():
                view(result)  # most libraries never look at the point where they stop
        found.append(view.best)
    return torch.cat(found) if found else images.clone()


def _foolbox(row: _Row, kind: str, settings: Mapping[str, object], **call: float) -> Tensor:
    fb = _library("foolbox")
    criterion = fb.Misclassification(row.label) if row.target is None else fb.TargetedMisclassification(row.target)
    wrapped = fb.PyTorchModel(row.view, bounds=(0, 1), device=row.seen.device)
    result: Tensor = getattr(fb.attacks, kind)(**settings).run(wrapped, row.seen, criterion, **call)
    return result


def _torchattacks(row: _Row, kind: str, settings: Mapping[str, object]) -> Tensor:
    attack = getattr(_library("torchattacks"), kind)(row.view, **settings)
    attack.set_device(row.seen.device)
    if row.target is not None:
        attack.set_mode_targeted_by_label(quiet=True)
    result: Tensor = attack(row.seen, row.label if row.target is None else row.target)
    return result


def foolbox_ddn(
    model: Model,
    images: Tensor,
    objective: Objective,
    *,
    steps: int = 60,
    gamma: float = 0.05,
    box: Box = None,
    generator: Generators = None,
) -> Tensor:
    """foolbox.attacks.L2DDNAttack on rescaled logits, from init_epsilon = D; steps + 2 passes."""

    def run(row: _Row) -> Tensor:
        return _foolbox(row, "DDNAttack", {"init_epsilon": row.distance, "steps": steps, "gamma": gamma})

    return _attack("foolbox.ddn", model, images, objective, box, generator, run, targeted=True)


def foolbox_cw(
    model: Model,
    images: Tensor,
    objective: Objective,
    *,
    steps: int = 50,
    searches: int = 5,
    box: Box = None,
    generator: Generators = None,
) -> Tensor:
    """foolbox.attacks.L2CarliniWagnerAttack from const 4 D^2 / margin, first steps D / 10; steps x searches passes."""

    def run(row: _Row) -> Tensor:
        settings = {
            "binary_search_steps": searches,
            "steps": steps,
            "stepsize": _rate(row),
            "initial_const": 4 * row.distance**2 / row.margin,
            "abort_early": False,
        }
        return _foolbox(row, "L2CarliniWagnerAttack", settings)

    return _attack("foolbox.cw", model, images, objective, box, generator, run, targeted=True)


def foolbox_deepfool(
    model: Model,
    images: Tensor,
    objective: Objective,
    *,
    steps: int = 20,
    classes: int = 10,
    overshoot: float = 0.02,
    box: Box = None,
    generator: Generators = None,
) -> Tensor:
    """foolbox.attacks.L2DeepFoolAttack over the `classes` likeliest classes; up to steps x (classes - 1) passes."""

    def run(row: _Row) -> Tensor:
        settings = {"steps": steps, "candidates": min(classes, row.classes), "overshoot": overshoot}
        return _foolbox(row, "L2DeepFoolAttack", settings)

    return _attack("foolbox.deepfool", model, images, objective, box, generator, run, targeted=False)


def foolbox_fmn(
    model: Model,
    images: Tensor,
    objective: Objective,
    *,
    steps: int = 60,
    gamma: float = 0.05,
    box: Box = None,
    generator: Generators = None,
) -> Tensor:
    """foolbox.attacks.L2FMNAttack with steps of at most D; `steps` passes.

    Its projection onto the epsilon ball divides a norm by itself (foolbox 3.3.4), so nothing is projected: it flips,
    but at about twice the distance of the others.
    """

    def run(row: _Row) -> Tensor:
        return _foolbox(row, "L2FMNAttack", {"steps": steps, "max_stepsize": row.distance, "gamma": gamma})

    return _attack("foolbox.fmn", model, images, objective, box, generator, run, targeted=True)


def foolbox_pgd(
    model: Model,
    images: Tensor,
    objective: Objective,
    *,
    eps: float,
    steps: int = 20,
    rel_stepsize: float = 0.15,
    random_start: bool = False,
    box: Box = None,
    generator: Generators = None,
) -> Tensor:
    """foolbox.attacks.L2ProjectedGradientDescentAttack on rescaled logits at a fixed eps; `steps` passes."""

    def run(row: _Row) -> Tensor:
        settings = {"steps": steps, "rel_stepsize": rel_stepsize, "random_start": random_start}
        return _foolbox(row, "L2ProjectedGradientDescentAttack", settings, epsilon=eps * row.shrink)

    return _attack("foolbox.pgd", model, images, objective, box, generator, run, targeted=True)


def torchattacks_pgd(
    model: Model,
    images: Tensor,
    objective: Objective,
    *,
    eps: float,
    steps: int = 20,
    rel_stepsize: float = 0.15,
    random_start: bool = False,
    box: Box = None,
    generator: Generators = None,
) -> Tensor:
    """torchattacks.PGDL2 on rescaled logits at a fixed eps; `steps` passes."""

    def run(row: _Row) -> Tensor:
        radius = eps * row.shrink
        settings = {"eps": radius, "alpha": rel_stepsize * radius, "steps": steps, "random_start": random_start}
        return _torchattacks(row, "PGDL2", settings)

    return _attack("torchattacks.pgd", model, images, objective, box, generator, run, targeted=True)


def torchattacks_cw(
    model: Model,
    images: Tensor,
    objective: Objective,
    *,
    steps: int = 100,
    const: float = 6.0,
    box: Box = None,
    generator: Generators = None,
) -> Tensor:
    """torchattacks.CW with c = `const` D^2 / margin, on logits shifted above zero (it is wrong for negative ones)."""

    def run(row: _Row) -> Tensor:
        settings = {"c": const * row.distance**2 / row.margin, "steps": steps, "lr": _rate(row)}
        return _torchattacks(row, "CW", settings)

    return _attack("torchattacks.cw", model, images, objective, box, generator, run, targeted=True, positive=True)


def torchattacks_fab(
    model: Model,
    images: Tensor,
    objective: Objective,
    *,
    steps: int = 20,
    restarts: int = 1,
    box: Box = None,
    generator: Generators = None,
) -> Tensor:
    """torchattacks.FAB in L2 (float32 inside); steps x (2 forward, one backward pass per class)."""

    def run(row: _Row) -> Tensor:
        # eps bounds nothing but random starts and what counts as success
        settings = {"norm": "L2", "eps": 1e6, "steps": steps, "n_restarts": restarts, "n_classes": row.classes}
        return _torchattacks(row, "FAB", settings)

    return _attack("torchattacks.fab", model, images, objective, box, generator, run, targeted=False)


def torchattacks_deepfool(
    model: Model,
    images: Tensor,
    objective: Objective,
    *,
    steps: int = 20,
    overshoot: float = 0.02,
    box: Box = None,
    generator: Generators = None,
) -> Tensor:
    """torchattacks.DeepFool; up to steps forward passes and one backward pass per step and class."""

    def run(row: _Row) -> Tensor:
        return _torchattacks(row, "DeepFool", {"steps": steps, "overshoot": overshoot})

    return _attack("torchattacks.deepfool", model, images, objective, box, generator, run, targeted=False)


def _rate(row: _Row) -> float:
    """Adam's rate in tanh space for first steps of about D / 10: tanh halves steps, entries share the norm."""
    with torch.enable_grad():
        points = row.seen.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(row.view(points)[0, row.label[0]], points)
    entries = float(gradient.abs().sum() ** 2 / gradient.square().sum().clamp_min(1e-30))
    return 0.2 * row.distance / math.sqrt(max(entries, 1.0))
