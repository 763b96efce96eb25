"""Runs side by side, on the console and as a plot."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from attackcheck.comparison import Pairing
from attackcheck.errors import InputError, printable
from attackcheck.reporters.console import plain_console
from attackcheck.reporters.plots import check_plot
from attackcheck.reporters.tables import short

__all__ = ["draw_comparison", "show_comparison"]

SHOWN = 10


def show_comparison(document: Mapping[str, Any]) -> None:
    """Print what :func:`attackcheck.comparison.comparison_of` found."""
    out = plain_console(sys.stdout)
    runs = document["runs"]
    names = [chr(ord("A") + i) if i < 26 else str(i + 1) for i in range(len(runs))]
    for name, run in zip(names, runs, strict=True):
        out.print(Text.assemble((name, "bold"), f"  {printable(run['run'])}"))
    for title, rows in (("Runs", _overview(runs)), ("Attacks: median tightness, seconds", _attacks(runs))):
        _print(out, title, names, rows)
    budgets = _budgets(runs)
    if budgets:
        _print(out, "Accuracy under attack at fixed budgets", names, budgets)
    other = dict(zip((run["run"] for run in runs), names, strict=True))
    for change in document["violations"]:
        letter = other[change["second"]]
        out.print()
        out.print(
            f"{letter} against A: {len(change['new'])} new violations, {len(change['gone'])} gone, "
            f"{change['both']} in both"
        )
        for word in ("new", "gone"):
            for found in change[word][:SHOWN]:
                where = "the map" if found["pixel"] is None else "pixel {}, {}".format(*found["pixel"])
                where = where if found["statement"] is None else found["statement"]
                out.print(printable(f"  {word:4} {found['kind']} {found['image_name']}, {where}"))
            if len(change[word]) > SHOWN:
                out.print(f"  {len(change[word]) - SHOWN} more {word} (--json lists all)")
    for pair in document["pixels"]:
        out.print()
        for line in _pixels(pair, other[pair["second"]]):
            out.print(line)
    if len(document["pixels"]) < len(runs) - 1:
        out.print()
        out.print("Pixel by pixel only where both are run folders (verify --out DIR) of the same images.")


def _print(out: Any, title: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    out.print()
    out.print(Text(title, style="bold"))
    out.print(table)


def _overview(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    def line(name: str, key: str) -> list[str]:
        return [name, *("-" if run[key] is None else _cell(run[key]) for run in runs)]

    rows = [line(key.replace("_", " "), key) for key in ("model", "claim", "plan", "seed", "images")]
    rows += [line(key.replace("_", " "), key) for key in ("attacked_pixels", "violations", "audit")]
    rows += [line(key.replace("_", " "), key) for key in ("detection_limit",)]
    rows.append(["seconds", *(f"{run['seconds']:.1f}" for run in runs)])
    if any(run["stopped"] for run in runs):
        rows.append(line("incomplete", "stopped"))
    return rows


def _attacks(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    def cell(run: Mapping[str, Any], name: str) -> str:
        for attack in run["attacks"]:
            if attack["name"] == name:
                middle = "" if attack["tightness"] is None else f"{attack['tightness']:.3f}"
                return f"{middle} {attack['seconds']:7.1f} s"
        return "-"

    names = dict.fromkeys(attack["name"] for run in runs for attack in run["attacks"])
    return [[name, *(cell(run, name) for run in runs)] for name in names]


def _budgets(runs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    def cell(run: Mapping[str, Any], key: tuple[float, str]) -> str:
        for budget in run["budgets"]:
            if (budget["eps"], budget["attack"]) == key and budget["attacked"] is not None:
                return f"{100 * budget['attacked']:.1f} %"
        return "-"

    keys = dict.fromkeys((budget["eps"], budget["attack"]) for run in runs for budget in run["budgets"])
    clean = [next((b["clean"] for b in run["budgets"] if b["clean"] is not None), None) for run in runs]
    rows = [["clean", *("-" if value is None else f"{100 * value:.1f} %" for value in clean)]] if keys else []
    return rows + [[f"eps {key[0]:g} {key[1]}", *(cell(run, key) for run in runs)] for key in sorted(keys)]


def _pixels(pair: Mapping[str, Any], letter: str) -> list[str]:
    lines = [
        f"{letter} against A, pixel by pixel: {pair['images']} images are the same, {pair['pixels']:,} pixels attacked "
        f"in both; the clean class differs at {pair['classes_changed']:,} of {pair['size']:,} pixels"
    ]
    for name in ("radius", "distance"):
        found = pair[f"{name}_ratio"]
        if found is not None:
            middle = " ".join(f"{found[q]:.4f}" for q in ("0.05", "0.5", "0.95"))
            lines.append(f"  {name} {letter} / A (5 50 95 %): {middle}")
    lines.append(
        f"  flip distance shorter in {letter}: {pair['shorter_in_second']:,}, in A: {pair['shorter_in_first']:,}; "
        f"flipped in {letter} only: {pair['flipped_in_second_only']:,}, in A only: {pair['flipped_in_first_only']:,}"
    )
    lines.append(
        f"  violated in {letter} only: {pair['violated_in_second_only']:,}, in A only: "
        f"{pair['violated_in_first_only']:,}, in both: {pair['violated_in_both']:,}"
    )
    return lines


def _cell(value: Any) -> str:
    return short(value) if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def draw_comparison(pairings: Sequence[Pairing], path: Path) -> None:
    """Distances of each run against the first, and the tightness of both, to a file.

    Raises:
        InputError: without matplotlib, without pixels in common, or if the file cannot be written.
    """
    check_plot(path)
    if not any(len(pairing.radius[0]) for pairing in pairings):
        raise InputError("expected run folders with attacked pixels in common for --plot, found none")
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(pairings), 2, figsize=(9.0, 4.2 * len(pairings)), squeeze=False)
    try:
        for row, pairing in zip(axes, pairings, strict=True):
            _scatter(row[0], pairing)
            _distribution(row[1], pairing)
        figure.tight_layout()
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise InputError(f"could not write {path}: {error.strerror or error}") from None
    finally:
        pyplot.close(figure)


def _scatter(axis: Any, pairing: Pairing) -> None:
    first, second = pairing.distance
    both = np.isfinite(first) & np.isfinite(second)
    axis.loglog(first[both], second[both], ".", markersize=4, alpha=0.5)
    if both.any():
        ends = [min(first[both].min(), second[both].min()), max(first[both].max(), second[both].max())]
        axis.loglog(ends, ends, color="0.4", linewidth=1)
    axis.set_xlabel(f"flip distance in {pairing.first}", fontsize=8)
    axis.set_ylabel(f"flip distance in {pairing.second}", fontsize=8)


def _distribution(axis: Any, pairing: Pairing) -> None:
    for name, radius, distance in zip((pairing.first, pairing.second), pairing.radius, pairing.distance, strict=True):
        tightness = np.sort(np.where(np.isfinite(distance), radius / distance, 0.0))
        share = np.arange(len(tightness) + 1) / len(tightness)
        axis.step(np.append(tightness[:1], tightness), share, where="post", label=name)
    axis.axvline(1.0, color="0.4", linewidth=1, linestyle=":")
    axis.set_xlabel("tightness = radius / distance (above 1: a violation)", fontsize=8)
    axis.set_ylabel("share of the pixels attacked in both", fontsize=8)
    axis.legend(fontsize=7, loc="upper left")
