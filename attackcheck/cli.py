"""The command line: one module in `commands` for each command."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from typing import NoReturn

from attackcheck.allocator import keep_freed
from attackcheck.commands import audit, certify, compare, inspect, merge, replay, report, selftest, train, verify
from attackcheck.errors import InputError, in_one_line, printable

__all__ = ["command_line", "main", "run"]

INTERRUPTED = 130


def command_line() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="attackcheck",
        description="Tries to break robustness certificates of segmentation networks, and proves what it broke.",
    )
    parser.add_argument("--version", action="version", version=f"attackcheck {metadata.version('attackcheck')}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (verify, audit, certify, replay, inspect, report, merge, compare, train, selftest):
        command.add_arguments(subparsers)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 no violation, 1 violation, 2 could not check, 130 interrupted)."""
    # Threads that spin while they wait can make two of them far slower than one on a machine with other work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    keep_freed()
    # numpy's advice to save a file anew is for whoever wrote it.
    warnings.filterwarnings("ignore", message="Reading `.npy` or `.npz` file required additional header parsing")
    parsed = command_line().parse_args(arguments)
    if threading.current_thread() is threading.main_thread():
        # Schedulers end a job with SIGTERM: what was found is to be kept then, too.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return int(parsed.run(parsed))
    except InputError as error:
        return _complain(printable(str(error)), 2)
    except KeyboardInterrupt:
        return _complain("interrupted", INTERRUPTED)
    except (Exception, SystemExit) as error:
        if os.environ.get("ATTACKCHECK_TRACEBACK"):
            raise
        hint = "a fault of attackcheck or of the model's code: ATTACKCHECK_TRACEBACK=1 shows where"
        return _complain(f"could not go on: {in_one_line(error)} ({hint})", 2)


def run() -> NoReturn:
    """The process of a command: :func:`main`, and its exit code.

    A second Ctrl-C waits for nobody: threads in native code would crash an interpreter that takes its leave.
    """
    code = main()
    if code == INTERRUPTED and threading.active_count() > 1:
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # there is none, or nobody reads it
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _complain(sentence: str, code: int) -> int:
    if sys.stderr is not None:
        print(f"attackcheck: {sentence}", file=sys.stderr)
    return code


if __name__ == "__main__":
    run()
