"""Attacks of torchattacks, in the units of `libraries.Row`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ._rows import Box, Generators, Model
from .libraries import Row, adam_rate, each_row, library
from .objectives import Objective

__all__ = ["torchattacks_cw", "torchattacks_deepfool", "torchattacks_fab", "torchattacks_pgd"]


def _torchattacks(row: Row, kind: str, settings: Mapping[str, object]) -> Tensor:
    attack = getattr(library("torchattacks"), kind)(row.view, **settings)
    attack.set_device(row.seen.device)
    if row.target is not None:
        attack.set_mode_targeted_by_label(quiet=True)
    result: Tensor = attack(row.seen, row.label if row.target is None else row.target)
    return result


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

    def run(row: Row) -> Tensor:
        radius = eps * row.shrink
        settings = {"eps": radius, "alpha": rel_stepsize * radius, "steps": steps, "random_start": random_start}
        return _torchattacks(row, "PGDL2", settings)

    return each_row("torchattacks.pgd", model, images, objective, box, generator, run, targeted=True)


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

    def run(row: Row) -> Tensor:
        settings = {"c": const * row.distance**2 / row.margin, "steps": steps, "lr": adam_rate(row)}
        return _torchattacks(row, "CW", settings)

    return each_row("torchattacks.cw", model, images, objective, box, generator, run, targeted=True, positive=True)


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

    def run(row: Row) -> Tensor:
        # eps bounds nothing but random starts and what counts as success
        settings = {"norm": "L2", "eps": 1e6, "steps": steps, "n_restarts": restarts, "n_classes": row.classes}
        return _torchattacks(row, "FAB", settings)

    return each_row("torchattacks.fab", model, images, objective, box, generator, run, targeted=False)


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

    def run(row: Row) -> Tensor:
        return _torchattacks(row, "DeepFool", {"steps": steps, "overshoot": overshoot})

    return each_row("torchattacks.deepfool", model, images, objective, box, generator, run, targeted=False)
