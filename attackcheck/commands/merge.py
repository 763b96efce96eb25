"""`attackcheck merge`: several run folders become one."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from attackcheck.commands.sources import replay_options
from attackcheck.errors import InputError

if TYPE_CHECKING:
    from attackcheck.events import Event
    from attackcheck.run_folder import Run

__all__ = ["add_arguments", "recorded_replay"]


def add_arguments(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "merge",
        help="join the run folders of shards",
        description="Joins run folders of different images of one run, exactly as if one process had examined all. "
        "Refuses folders that do not belong together, and names what is missing. Exit code as of verify.",
    )
    parser.add_argument("folders", nargs="+", metavar="DIR", help="a run folder, or one that holds those of shards")
    parser.add_argument("--out", required=True, metavar="DIR", help="the new run folder")
    parser.add_argument("--json", metavar="FILE|-", help="write the report as JSON")
    parser.add_argument("--junit", metavar="FILE", help="write JUnit XML")
    parser.add_argument("--strict", action="store_true", help="ROUNDING and DEPLOYED_ONLY fail too")
    parser.add_argument("-q", "--quiet", action="store_true", help="only warnings, violations and the last line")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if not arguments.out or (Path(arguments.out).exists() and not Path(arguments.out).is_dir()):
        raise InputError(f"expected --out to be a folder, got {arguments.out!r}")
    from attackcheck.events import PartFinished, RunFinished
    from attackcheck.merging import merge, runs_in
    from attackcheck.reporters.console import ConsoleReporter
    from attackcheck.reporters.json import JsonReporter
    from attackcheck.reporters.junit import JunitReporter

    reporters: list[Callable[[Event], None]] = []
    if arguments.json is not None:
        reporters.append(JsonReporter(arguments.json))
    if arguments.junit is not None:
        reporters.append(JunitReporter(arguments.junit))
    runs = runs_in(arguments.folders)
    merged = merge(runs, Path(arguments.out))
    console = ConsoleReporter(recorded_replay(merged), quiet=arguments.quiet, tables=arguments.json != "-")
    code = 2
    for event in merged.events():
        if not isinstance(event, PartFinished):
            console(event)
        for reporter in reporters:
            reporter(event)
        if isinstance(event, RunFinished):
            code = event.report.exit_code(arguments.strict)
    return code


def recorded_replay(run: Run) -> list[str]:
    """How a replay command starts, from the options that are recorded in a run."""
    names = ("checkpoint", "model", "model_args", "lipschitz", "scope", "class_pair", "radii", "claim")
    defaults = dict.fromkeys(names) | {"allow_global": [], "device": "cpu"}
    given = defaults | {name: value for name, value in run.description["options"].items() if name in defaults}
    return ["attackcheck", "replay", *replay_options(argparse.Namespace(**given))]
