"""The two images by which an audit refutes a claim, as a counterexample that can be replayed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from attackcheck.counterexample import Counterexample, save_counterexample
from attackcheck.lipschitz.findings import AuditReport, AuditVerdict
from attackcheck.probe import Kind

__all__ = ["with_counterexample"]


def with_counterexample(
    report: AuditReport, folder: Path | None, *, subject: Mapping[str, Any], seed: int, tolerance: float
) -> AuditReport:
    """The report with its witness in a file, where two images refute the claim and a folder is given.

    Args:
        report: of an audit made here; its witness has images.
        folder: of counterexamples, made if needed.
        subject: path and SHA-256 of the checkpoint, factory, data.
        seed: of the ascent.
        tolerance: relative excess that replay shall take for rounding.

    Raises:
        InputError: if the folder or the file cannot be written.
    """
    witness = report.witness
    if folder is None or witness is None or report.verdict is not AuditVerdict.REFUTED:
        return report
    example = Counterexample(
        kind=Kind.LIPSCHITZ,
        clean=witness.image,
        perturbed=witness.perturbed,
        pixel=None,
        predicted=-1,
        target=-1,
        radius=witness.ratio * witness.distance,
        radius_clean=0.0,
        distance=witness.distance,
        image=0,
        image_name=witness.start,
        attack="audit",
        seed=seed,
        tolerance=tolerance,
        claim=report.claim,
        subject=subject,
    )
    return replace(report, counterexample=save_counterexample(example, folder))
