"""Curves of a certification: clean, attacked and certified against eps, the gap shaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attackcheck.certification_table import CertificationTable
from attackcheck.errors import InputError
from attackcheck.measures.names import Measure
from attackcheck.reporters.plots import check_plot

__all__ = ["draw"]

PANELS = (Measure.ACCURACY, Measure.MEAN_IOU, Measure.STABILITY, Measure.COMPONENTS)


def draw(table: CertificationTable, path: Path) -> None:
    """Write the curves to a file.

    Raises:
        InputError: without matplotlib, or if the file cannot be written.
    """
    check_plot(path)
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    shown = [measure for measure in PANELS if any(row.measure is measure for row in table.rows)]
    figure, axes = pyplot.subplots(1, len(shown), figsize=(4.0 * len(shown), 3.4), squeeze=False)
    try:
        for axis, measure in zip(axes[0], shown, strict=True):
            _panel(axis, table, measure)
        axes[0][0].legend(fontsize=8, loc="lower left")
        figure.tight_layout()
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise InputError(f"could not write {path}: {error.strerror or error}") from None
    finally:
        pyplot.close(figure)


def _panel(axis: Any, table: CertificationTable, measure: Measure) -> None:
    rows = sorted((row for row in table.rows if row.measure is measure), key=lambda row: row.eps)
    eps = [row.eps for row in rows]
    certified = [100 * row.certified for row in rows]
    axis.axhline(100 * rows[0].clean, color="0.4", linewidth=1, label="clean")
    if measure.labelled:
        axis.axhline(100 * rows[0].constant, color="0.7", linewidth=1, linestyle=":", label="constant predictor")
    attacked = [100 * row.attacked for row in rows if row.attacked is not None]
    if len(attacked) == len(rows):
        axis.plot(eps, attacked, color="tab:red", label="under attack")
        axis.fill_between(eps, certified, attacked, color="tab:blue", alpha=0.15, label="unknown")
    axis.plot(eps, certified, color="tab:blue", label="certified, one budget for all pixels")
    axis.plot(eps, [100 * row.per_pixel for row in rows], color="tab:blue", linestyle="--", label="certified per pixel")
    for name, style, label in (("refined", "-", "refined"), ("refined_per_pixel", "--", "refined, per pixel")):
        refined = [100 * value for value in (getattr(row, name) for row in rows) if value is not None]
        if len(refined) == len(rows):
            axis.plot(eps, refined, color="tab:green", linestyle=style, label=label)
    if min(eps) > 0:
        axis.set_xscale("log")
    axis.set_ylim(0, 102)
    axis.set_xlabel("eps (L2, [0, 1] scale)")
    axis.set_title(f"{measure.title}, %", fontsize=10)
    axis.grid(alpha=0.3)
