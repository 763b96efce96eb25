"""The command line: `attackcheck verify`, `replay`, `train`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import metadata

from attackcheck.commands import replay, train, verify
from attackcheck.errors import InputError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code (0 no violation, 1 violation, 2 could not check, 130 interrupted)."""
    # Threads that spin while they wait made two of them twenty times slower than one on a machine with other work.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parser = argparse.ArgumentParser(
        prog="attackcheck",
        description="Tries to break robustness certificates of segmentation networks, and proves what it broke.",
    )
    parser.add_argument("--version", action="version", version=f"attackcheck {metadata.version('attackcheck')}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (verify, replay, train):
        command.add_arguments(subparsers)
    parsed = parser.parse_args(arguments)
    try:
        code = parsed.run(parsed)
        sys.stdout.flush()
        return int(code)
    except InputError as error:
        print(f"attackcheck: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("attackcheck: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`| head`): not an error of the run, and nothing more can be said.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        print(
            f"attackcheck: {error.strerror or error}{f': {error.filename}' if error.filename else ''}", file=sys.stderr
        )
        return 2


if __name__ == "__main__":
    sys.exit(main())
