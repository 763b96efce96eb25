"""Soundness tests for anybody's pytest suite."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from attackcheck.claims import Claim
from attackcheck.report import Report
from attackcheck.verification import verify

__all__ = ["assert_certificate_holds"]


def assert_certificate_holds(
    model: Callable[[Tensor], Tensor],
    images: Tensor | np.ndarray[Any, Any],
    claim: Claim,
    *,
    plan: str = "quick",
    pixels: int = 16,
    seed: int = 0,
    strict: bool = False,
    **options: Any,
) -> Report:
    """Fail the test if attacks break the claim on these images.

    Args:
        model, images, claim, plan, pixels, seed, strict: as for :func:`attackcheck.verify`.
        options: further keywords of :func:`attackcheck.verify`.

    Returns:
        The report, for further assertions.

    Raises:
        AssertionError: with the worst violations, one a line; also if nothing could be attacked.
        InputError: if something given cannot be used.
    """
    __tracebackhide__ = True
    report = verify(model, images, claim, plan=plan, pixels=pixels, seed=seed, strict=strict, **options)
    if report.exit_code(strict) == 2:
        raise AssertionError(f"no pixel was attacked: {dict(report.unchecked)}")
    if report.exit_code(strict) == 1:
        if report.audit is not None and report.audit.refuted and not report.violations:
            raise AssertionError(f"the audit of the weights refutes {claim.describe()}: {report.audit.sentence}")
        shown = report.violations or report.findings
        lines = [
            f"{v.verdict.name} {v.kind.name} image {v.image} pixel {v.pixel}: radius {v.radius:.6g}, distance "
            f"{v.distance:.6g} (x {v.ratio:.4f}, {v.attack})"
            for v in shown[:5]
        ]
        more = f"\n... and {len(shown) - 5} more" if len(shown) > 5 else ""
        raise AssertionError(f"{len(shown)} violations of {claim.describe()}:\n" + "\n".join(lines) + more)
    return report
