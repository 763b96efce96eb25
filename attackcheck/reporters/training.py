"""The course of a training: one line of CSV for each measurement, and its curves."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING

from attackcheck.errors import InputError
from attackcheck.reporters.plots import check_plot

if TYPE_CHECKING:
    from attackcheck.models.training import Progress

__all__ = ["TrainingLog", "draw_training"]

RADII = (0.05, 0.1, 0.2)
QUANTILES = (10, 25, 50, 75, 90)
COLUMNS = (
    "step", "epoch", "seconds", "loss", "accuracy", "miou",
    *(f"certified_{radius:g}" for radius in RADII), *(f"radius_{quantile}" for quantile in QUANTILES),
)  # fmt: skip


class TrainingLog:
    """Writes measurements as they come.

    Args:
        path: of the CSV file.
        per_epoch: steps of one pass over the pictures.
        resume: keep what stands there up to the first step that comes again.

    Raises:
        InputError: if the file cannot be written, or holds something else.
    """

    def __init__(self, path: Path, per_epoch: float, *, resume: bool = False) -> None:
        self._path, self._per_epoch = path, per_epoch
        self._rows: list[list[str]] = []
        if resume and path.exists():
            self._rows = _read(path)
        self._write()

    def add(self, event: Progress) -> None:
        """One line, if this step was measured."""
        if event.measured is None:
            return
        found = event.measured
        numbers = [event.step / self._per_epoch, event.seconds, event.loss, found.accuracy, found.miou]
        row = [str(event.step), *(repr(float(n)) for n in (*numbers, *found.certified, *found.radii))]
        self._rows = [old for old in self._rows if int(old[0]) < event.step] + [row]
        self._write()

    def _write(self) -> None:
        try:
            with self._path.open("w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([COLUMNS, *self._rows])
        except OSError as error:
            raise InputError(f"could not write {self._path}: {error.strerror or error}") from None


def _read(path: Path) -> list[list[str]]:
    try:
        with path.open(newline="") as file:
            head, *rows = csv.reader(file)
    except (OSError, ValueError, UnicodeDecodeError, csv.Error):
        head, rows = [], []
    if tuple(head) != COLUMNS or any(len(row) != len(COLUMNS) or not row[0].isdigit() for row in rows):
        raise InputError(f"expected the CSV file of a training in {path}, to go on from it")
    return rows


def draw_training(table: Path, path: Path) -> None:
    """Accuracy, mean IoU and certified accuracy over epochs, from the CSV file of a training.

    Raises:
        InputError: without matplotlib, or if a file cannot be used.
    """
    check_plot(path)
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    rows = [dict(zip(COLUMNS, map(float, row), strict=True)) for row in _read(table)]
    epochs = [row["epoch"] for row in rows]
    figure, axis = pyplot.subplots(figsize=(6.0, 4.0))
    try:
        for name, label in (("accuracy", "accuracy"), ("miou", "mean IoU")):
            axis.plot(epochs, [100 * row[name] for row in rows], label=label)
        for radius in RADII:
            values = [100 * row[f"certified_{radius:g}"] for row in rows]
            axis.plot(epochs, values, "--", label=f"right, radius at least {radius:g}")
        axis.set_xlabel("epoch")
        axis.set_ylabel("%")
        axis.set_ylim(0, 102)
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
        figure.tight_layout()
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise InputError(f"could not write {path}: {error.strerror or error}") from None
    finally:
        pyplot.close(figure)
