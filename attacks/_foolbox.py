"""Attacks of foolbox, in the units of `libraries.Row`."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ._rows import Box, Generators, Model
from .libraries import Row, adam_rate, each_row, library
from .objectives import Objective

__all__ = ["foolbox_cw", "foolbox_ddn", "foolbox_deepfool", "foolbox_fmn", "foolbox_pgd"]


def _foolbox(row: Row, kind: str, settings: Mapping[str, object], **call: float) -> Tensor:
    fb = library("foolbox")
    criterion = fb.Misclassification(row.label) if row.target is None else fb.TargetedMisclassification(row.target)
    wrapped = fb.PyTorchModel(row.view, bounds=(0, 1), device=row.seen.device)
    result: Tensor = getattr(fb.attacks, kind)(**settings).run(wrapped, row.seen, criterion, **call)
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

    def run(row: Row) -> Tensor:
        return _foolbox(row, "DDNAttack", {"init_epsilon": row.distance, "steps": steps, "gamma": gamma})

    return each_row("foolbox.ddn", model, images, objective, box, generator, run, targeted=True)


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

    def run(row: Row) -> Tensor:
        settings = {
            "binary_search_steps": searches,
            "steps": steps,
            "stepsize": adam_rate(row),
            "initial_const": 4 * row.distance**2 / row.margin,
            "abort_early": False,
        }
        return _foolbox(row, "L2CarliniWagnerAttack", settings)

    return each_row("foolbox.cw", model, images, objective, box, generator, run, targeted=True)


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

    def run(row: Row) -> Tensor:
        settings = {"steps": steps, "candidates": min(classes, row.classes), "overshoot": overshoot}
        return _foolbox(row, "L2DeepFoolAttack", settings)

    return each_row("foolbox.deepfool", model, images, objective, box, generator, run, targeted=False)


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

    def run(row: Row) -> Tensor:
        return _foolbox(row, "L2FMNAttack", {"steps": steps, "max_stepsize": row.distance, "gamma": gamma})

    return each_row("foolbox.fmn", model, images, objective, box, generator, run, targeted=True)


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

    def run(row: Row) -> Tensor:
        settings = {"steps": steps, "rel_stepsize": rel_stepsize, "random_start": random_start}
        return _foolbox(row, "L2ProjectedGradientDescentAttack", settings, epsilon=eps * row.shrink)

    return each_row("foolbox.pgd", model, images, objective, box, generator, run, targeted=True)
