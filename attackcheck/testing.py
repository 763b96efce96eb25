"""Soundness tests for anybody's suite: certificates, norms of layers, and what to show when they fail."""

from __future__ import annotations

import copy
import io
import os
import tempfile
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attackcheck.claims import Claim, LipschitzClaim
from attackcheck.counterexample import load_counterexample
from attackcheck.errors import InputError
from attackcheck.lipschitz.auditing import audit
from attackcheck.lipschitz.findings import AuditReport, AuditVerdict
from attackcheck.report import Report, Violation
from attackcheck.shrinking import changed_pixels, shrink
from attackcheck.verification import verify

__all__ = ["assert_certificate_holds", "assert_lipschitz", "disturb"]

SHOWN = 5
_runs = count()


def assert_certificate_holds(
    model: Callable[[Tensor], Tensor],
    images: Tensor | np.ndarray[Any, Any],
    claim: Claim,
    *,
    plan: str = "quick",
    pixels: int = 16,
    seed: int = 0,
    strict: bool = False,
    counterexamples: str | Path | None = None,
    **options: Any,
) -> Report:
    """Fail the test if attacks break the claim on these images.

    Args:
        model, images, claim, plan, pixels, seed, strict: as for :func:`attackcheck.verify`.
        counterexamples: folder for what breaks the claim; by default one beside other temporary files, made only then.
        options: further keywords of :func:`attackcheck.verify`.

    Returns:
        The report, for further assertions.

    Raises:
        AssertionError: with a table of the worst violations, the commands that replay them, and the worst one made
            small; also if nothing could be attacked.
        InputError: if something given cannot be used.
    """
    __tracebackhide__ = True
    folder = Path(counterexamples) if counterexamples is not None else _folder()
    report = verify(
        model, images, claim, plan=plan, pixels=pixels, seed=seed, strict=strict, counterexamples=folder, **options
    )
    code = report.exit_code(strict)
    if code == 2:
        raise AssertionError(f"no pixel was attacked: {dict(report.unchecked)}")
    if code == 1:
        raise AssertionError(_explained(report, model, claim))
    return report


def assert_lipschitz(
    layer: nn.Module,
    constant: float,
    shape: Sequence[int],
    *,
    scope: str = "joint",
    prove: bool = False,
    steps: int = 60,
    seed: int = 0,
) -> AuditReport:
    """Fail the test if a layer or network stretches any difference of inputs by more than ``constant``.

    Its weights are bounded, and an ascent from several inputs looks for two that lie too far apart afterwards; the
    layer is put into evaluation mode on a frozen copy. Numbers of outputs and their sizes are free.

    Args:
        layer: any module of tensors ``(B, C, H, W)``.
        constant: what its norm is claimed to be at most, up to 1e-5 of it.
        shape: ``(C, H, W)`` of an input. Try odd sizes, too: strides and circular padding fail there first.
        scope: ``"joint"``, or ``"pixel"`` for each output pixel's vector alone.
        prove: fail also if the weights do not prove it.
        steps: of each ascent.
        seed: of random inputs.

    Returns:
        The report of the audit.

    Raises:
        AssertionError: with the sentence of the audit and the norms of single layers.
        InputError: if something given cannot be used.
    """
    __tracebackhide__ = True
    if scope not in ("joint", "pixel"):
        raise InputError(f"expected scope 'joint' or 'pixel', got {scope!r}")
    claim = LipschitzClaim(constant, "pixel" if scope == "pixel" else "joint")
    report = audit(layer, claim, tuple(shape), seed=seed, steps=steps)
    if report.verdict is AuditVerdict.PROVED or (report.verdict is AuditVerdict.UNDECIDED and not prove):
        return report
    rows = [
        f"  {row.name}: {row.kind}, norm {row.lower:.6g} to {row.upper:.6g}"
        + ("" if row.used is None else f", counted as {row.used:.6g}")
        for row in report.layers[:SHOWN]
    ]
    lower = "" if report.lower is None else f"; at least {report.lower:.6g}"
    raise AssertionError(
        f"{type(layer).__name__} on inputs of shape {tuple(shape)} is not {constant:g}-Lipschitz{lower}: "
        f"{report.verdict.name}, {report.sentence}\n" + "\n".join(rows)
    )


def disturb(
    layer: nn.Module, seed: int, scale: float = 0.5, passes: int = 10, channels: int | None = None
) -> nn.Module:
    """A copy whose raw parameters are moved at random, as far as training might: a construction holds for all of them.

    Args:
        layer: a module with parameters; those behind a parametrisation are moved, not what it makes of them.
        seed: of the movement.
        scale: standard deviation of the movement, relative to each parameter's own root mean square.
        passes: forward passes in training mode afterwards, so that iterations towards the weights come to rest.
        channels: of the inputs of these passes; by default those of the first weight.
    """
    moved, generator = copy.deepcopy(layer), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in moved.parameters():
            size = parameter.square().mean().sqrt().clamp_min(1e-3)
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_((noise * scale).to(parameter) * size)
        wanted = channels or _channels(moved)
        for _ in range(passes if wanted else 0):
            moved.train()(torch.rand(2, int(wanted or 1), 8, 8, generator=generator))
    return moved.eval()


def _channels(layer: nn.Module) -> int | None:
    for part in layer.modules():
        found = getattr(part, "in_channels", None)
        if isinstance(found, int):
            return found
    return None


def _folder() -> Path:
    return Path(tempfile.gettempdir()) / f"attackcheck-{os.getpid()}-{next(_runs)}"


def _explained(report: Report, model: Callable[[Tensor], Tensor], claim: Claim) -> str:
    """The table of the worst findings, how to replay them, and the worst one made small."""
    from attackcheck.reporters.console import plain_console
    from attackcheck.reporters.tables import violation_table

    if report.audit is not None and report.audit.refuted and not report.violations:
        return f"the audit of the weights refutes {claim.describe()}: {report.audit.sentence}"
    shown = report.violations or report.findings
    text = io.StringIO()
    plain_console(text).print(violation_table(f"{len(shown)} violations of {claim.describe()}", shown[:SHOWN], 120))
    lines = [text.getvalue().rstrip()]
    lines += [str(finding.statement) for finding in shown[:SHOWN] if finding.statement is not None]
    kept = [finding.counterexample for finding in shown[:SHOWN] if finding.counterexample is not None]
    if kept:
        lines.append("Replay them, where NAME in FILE.py makes this model, with:")
        lines += [f"  attackcheck replay {path} --model FILE.py:NAME" for path in kept]
    small = _shrunk(shown[0], model)
    return "\n".join([*lines, *([] if small is None else [small])])


def _shrunk(worst: Violation, model: Callable[[Tensor], Tensor]) -> str | None:
    if worst.counterexample is None or worst.statement is not None:
        return None
    try:
        small = shrink(load_counterexample(worst.counterexample), model, judgements=60)
    except (InputError, RuntimeError):
        return None
    height, width = small.clean.shape[1:]
    changed = changed_pixels(small)
    return (
        f"Made small: {changed} changed pixel{'' if changed == 1 else 's'} in an image of {height}x{width}, "
        f"radius {small.radius:.6g}, distance {small.distance:.6g}"
    )
