"""`attackcheck compare`: runs side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from attackcheck.errors import InputError

__all__ = ["add_arguments"]


def add_arguments(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "compare",
        help="show what differs between runs",
        description="Shows runs of other checkpoints, claims or plans side by side: tightness, accuracy, violations, "
        "time, and pixel by pixel where run folders have images in common. Exit code: 0, or 2 if it cannot read them.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run folder, or a report written by --json")
    parser.add_argument("--json", metavar="FILE|-", help="write the comparison as JSON")
    parser.add_argument("--plot", metavar="FILE.png", help="draw distances and tightness (extra `plots`)")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from attackcheck.reporters.json import checked_target, write_json

    if len(arguments.runs) < 2:
        raise InputError("expected at least two runs to compare, got one")
    target = None if arguments.json is None else checked_target(arguments.json)
    if arguments.plot is not None:
        from attackcheck.reporters.plots import check_plot

        checked_target(arguments.plot, "--plot")
        check_plot(Path(arguments.plot))
    from attackcheck.comparison import comparison_of, read_compared
    from attackcheck.reporters.comparing import draw_comparison, show_comparison

    document, pairings = comparison_of([read_compared(path) for path in arguments.runs])
    if arguments.json != "-":
        show_comparison(document)
    if arguments.json is not None:
        write_json(target, document)
    if arguments.plot is not None:
        draw_comparison(pairings, Path(arguments.plot))
    return 0
