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
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from attackcheck.errors import InputError

from ._newton import outlook
from ._rows import Box, Generators, Model, Noise, of_rows
from .objectives import Objective, PixelFlip
from .views import PixelView

__all__ = ["Row", "adam_rate", "each_row", "library"]


class Row(NamedTuple):
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


def library(name: str) -> Any:
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


def each_row(
    name: str,
    model: Model,
    images: Tensor,
    objective: Objective,
    box: Box,
    generator: Generators,
    run: Callable[[Row], Tensor],
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
        own = of_rows(model, index)
        first = outlook(own, image, objective.rows(index), 3, Noise(image, None))
        bound = first.objective
        if not isinstance(bound, PixelFlip):
            raise TypeError(f"bind changed the kind of the objective to {type(bound).__name__}")
        label, scale, clean = bound.fixed()
        if clean is None:
            raise TypeError("bind forgot the clean logits of a pixel")
        low, high = box or (min(-1.0, float(image.min()) - 1), max(2.0, float(image.max()) + 1))
        sharp = float(scale[0])
        z = clean[0] / sharp
        # far enough that no step of a reasonable attack makes a logit negative
        shift = float(4 * (z.max() - z.min()) - z.min()) if positive else 0.0
        view = _Watch(
            own,
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
        row = Row(view, seen, label, bound.target, distance, margin, shrink, clean.shape[1])
        with _fenced(seeds[i], images.device):
            result = run(row)
            with torch.no_grad():
                view(result)  # most libraries never look at the point where they stop
        found.append(view.best)
    return torch.cat(found) if found else images.clone()


def adam_rate(row: Row) -> float:
    """Adam's rate in tanh space for first steps of about D / 10: tanh halves steps, entries share the norm."""
    with torch.enable_grad():
        points = row.seen.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(row.view(points)[0, row.label[0]], points)
    entries = float(gradient.abs().sum() ** 2 / gradient.square().sum().clamp_min(1e-30))
    return 0.2 * row.distance / math.sqrt(max(entries, 1.0))
