"""`attackcheck report`: the HTML page of a run folder, or its pixels as a table."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attackcheck.commands import verify
from attackcheck.errors import InputError

if TYPE_CHECKING:
    from attackcheck.events import Event
    from attackcheck.run_folder import Run

__all__ = ["add_arguments", "command_of"]


def add_arguments(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "report",
        help="the HTML page of a run folder, or its pixels as a table",
        description="Writes one self-contained HTML page from what `verify --out` or `merge` left, also of a run that "
        "is not finished; with --parquet a table of its attacked pixels instead (both with --out as well). "
        "Exit code: 0 written, 2 not.",
    )
    parser.add_argument("folder", metavar="DIR", help="a run folder")
    parser.add_argument("-o", "--out", metavar="FILE", help="the page (default: report.html in the folder)")
    parser.add_argument("--parquet", metavar="FILE", help="write all attacked pixels as a table (extra `parquet`)")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.out == "":
        raise InputError("expected --out to name a file, got nothing")
    from attackcheck.run_folder import read_run

    run = read_run(arguments.folder)
    if arguments.parquet is not None:
        from attackcheck.reporters.parquet import ParquetReporter

        with ParquetReporter(arguments.parquet) as table:
            _tell(run, table)
        print(arguments.parquet)
    if arguments.out is not None or arguments.parquet is None:
        target = arguments.out or str(Path(arguments.folder) / "report.html")
        _tell(run, _page(run, target))
        print(target)
    return 0


def _tell(run: Run, reporter: Callable[[Event], None]) -> None:
    for event in run.events():
        reporter(event)


def _page(run: Run, target: str) -> Callable[[Event], None]:
    from attackcheck.commands.merge import recorded_replay
    from attackcheck.reporters.html import HtmlReporter

    replay = recorded_replay(run)
    return HtmlReporter(
        target,
        classes=run.header.classes,
        ignore=run.header.ignore,
        replay=(replay[:2], replay[2:]),
        command=command_of(run.description["options"]),
    )


def command_of(options: Mapping[str, Any]) -> str | None:
    """The `verify` command with these options, as far as they are no defaults; None where there are none."""
    if not options:
        return None
    parser = argparse.ArgumentParser()
    verify.add_arguments(parser.add_subparsers())
    usual = vars(parser.parse_args(["verify"]))
    words = ["attackcheck", "verify"]
    if options.get("checkpoint") is not None:
        words.append(str(options["checkpoint"]))
    for name, value in options.items():
        if name in ("checkpoint", "run", "command") or value == usual.get(name):
            continue
        option = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words.append(option)
        elif isinstance(value, list):
            words += [word for one in value for word in (option, str(one))]
        else:
            words += [option, str(value)]
    return shlex.join(words)
