"""The Python face of a certification: tensors in, a table out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from attackcheck.certification_table import CertificationTable
from attackcheck.certifier import ATTACKS, EPSILONS, Plan, certify_data
from attackcheck.claims import Claim
from attackcheck.errors import InputError
from attackcheck.metrics import MetricClaim
from attackcheck.smoothing import Smoothing, smooth_data
from attackcheck.subject import Model, Subject
from attackcheck.verification import ArrayImages

__all__ = ["certify"]

Array = np.ndarray[Any, Any]


def certify(
    model: Model,
    images: Tensor | Array,
    labels: Tensor | Array | None,
    claim: Claim,
    epsilons: Sequence[float] = EPSILONS,
    *,
    metrics: Sequence[MetricClaim] = (),
    attack: bool = True,
    steps: int = 15,
    seed: int = 0,
    device: str = "cpu",
    box: tuple[float, float] | None = None,
    tolerance: float = 1e-5,
    counterexamples: str | Path | None = None,
    refine: bool = True,
    smoothing: Smoothing | None = None,
    on_progress: Callable[[CertificationTable, int, int], None] | None = None,
) -> CertificationTable:
    """Certify measures of these images at every eps, and attack what was certified.

    Args:
        model: ``(B, C, H, W) -> (B, K, H, W)``, rows independent; a module is copied, never changed.
        images: ``(N, C, H, W)`` in [0, 1]; each may move by eps in L2 norm on this scale.
        labels: ``(N, H, W)`` integers, 255 is ignored; None leaves the label-free measures.
        claim: what is claimed about the model. Joint claims share an image's budget among its pixels.
        epsilons: budgets.
        metrics: further claims to attack.
        attack: False certifies only.
        steps: of every attack.
        seed: of every random choice.
        device: where the model runs.
        box: range that perturbed images must keep.
        tolerance: relative excess of a claimed value over a measured one that still counts as rounding.
        counterexamples: folder for counterexamples; None saves none.
        refine: also certify by what the last layers' weights say (docs/refined.md), where they are of a known kind.
        smoothing: also certify the smoothed network, by sampling; its radius joins the budgets.
        on_progress: called with the table so far and how many of how many attacked images are done.

    Returns:
        The table. An attack that beats the certificate is in its ``findings``, after a second look in float64.

    Raises:
        InputError: if something given cannot be used.
    """
    if steps < 1:
        raise InputError(f"expected at least 1 step, got {steps}")
    extra = set() if smoothing is None else {smoothing.radius}
    plan = Plan(
        epsilons=tuple(sorted({*(float(eps) for eps in epsilons), *extra})),
        attacks=tuple(replace(a, steps=steps) for a in ATTACKS) if attack else (),
        metrics=tuple(metrics),
        seed=seed,
        device=device,
        box=box,
        tolerance=tolerance,
        counterexamples=None if counterexamples is None else Path(counterexamples),
        refine=refine,
    )
    subject = Subject(model, claim, {"model": type(model).__name__})
    data = ArrayImages(images, labels)
    table: CertificationTable | None = None
    for table, done, total in certify_data(subject, data, plan):
        if on_progress is not None:
            on_progress(table, done, total)
    if table is None:
        raise RuntimeError("the certification ended without a table")
    if smoothing is None:
        return table
    return replace(table, smoothing=(smooth_data(subject, data, smoothing, seed=seed, device=device),))
