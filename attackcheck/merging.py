"""Several run folders become one: what shards, or machines, have done of one run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from attackcheck.errors import CannotWrite, InputError
from attackcheck.identity import differences
from attackcheck.part_files import save_audit
from attackcheck.parts import METRICS, TRIAL
from attackcheck.run_folder import AUDIT, EXAMPLES, PARTS, WITNESS, Run, RunFolder, is_run, name_of_part, read_run

__all__ = ["merge", "runs_in"]

NAMED = 10
"""Images that a sentence names."""


def runs_in(paths: Sequence[str | Path]) -> list[Run]:
    """The runs in these folders; one that is none stands for the folders of shards in it.

    Raises:
        InputError: where there is none.
    """
    runs = []
    for path in map(Path, paths):
        inside = sorted(entry for entry in path.glob("shard-*-of-*") if is_run(entry))
        runs += [read_run(entry) for entry in ([path] if is_run(path) or not inside else inside)]
    return runs


def merge(runs: Sequence[Run], out: Path) -> Run:
    """Join runs that did different images of the same data, exactly as if one run had done them all.

    Args:
        runs: in any order.
        out: the new run folder.

    Raises:
        InputError: if they do not belong together, if two did the same, or if something is missing.
        CannotWrite: if ``out`` cannot be written.
    """
    if not runs:
        raise InputError("expected at least one run to merge")
    first = runs[0]
    for other in runs[1:]:
        changed = differences(first.description["identity"], other.description["identity"])
        if changed:
            raise InputError(
                f"{first.path} and {other.path} do not belong together: {', '.join(changed)} in the second"
            )
    owner: dict[int, Run] = {}
    for run in runs:
        for number in run.numbers:
            if number in owner:
                raise InputError(f"{_called(number)} is in both {owner[number].path} and {run.path}: give one of them")
            owner[number] = run
    whole = Run(first.path, {**first.description, "header": {**first.description["header"], "shard": None}})
    missing = [number for number in (*range(whole.header.images), *whole.others) if number not in owner]
    if missing:
        raise InputError(_missing(runs, missing))
    sessions = [session for run in runs for session in run.description["sessions"]]
    description = first.description
    header = replace(first.header, shard=None)
    with RunFolder(
        out, header, description["identity"], description["images"], description["options"], sessions=sessions
    ) as folder:
        for run in runs:
            if run.audit is not None:
                save_audit(run.audit, out / AUDIT, out / WITNESS)
        for number, run in owner.items():
            _copied(run.path / PARTS / name_of_part(number), out / PARTS / name_of_part(number))
        for run in runs:
            for example in sorted((run.path / EXAMPLES).glob("*.npz")):
                _copied(example, out / EXAMPLES / example.name)
        folder.summarise(folder.report)
    return folder


def _missing(runs: Sequence[Run], missing: Sequence[int]) -> str:
    """Which shards are missing or not finished, and of which images nothing is known."""
    shown = ", ".join(_called(number) for number in missing[:NAMED])
    text = shown + (f" and {len(missing) - NAMED} more" if len(missing) > NAMED else "")
    shards = {run.header.shard for run in runs if run.header.shard is not None}
    counts = {count for _, count in shards}
    reasons = []
    if len(counts) == 1:
        count = counts.pop()
        absent = [f"{place}/{count}" for place in range(1, count + 1) if (place, count) not in shards]
        if absent:
            reasons.append(f"shard {', '.join(absent)} {'is' if len(absent) == 1 else 'are'} not among the folders")
    reasons += [f"{run.path} is not finished" for run in runs if run.unfinished]
    return f"expected a whole run, missing: {text}" + (f" ({'; '.join(reasons)})" if reasons else "")


def _called(number: int) -> str:
    return {TRIAL: "the trial on gadgets", METRICS: "the claims about the data set"}.get(number, f"image {number}")


def _copied(source: Path, target: Path) -> None:
    partial = target.with_name(f".{target.name}.writing")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, partial)
        os.replace(partial, target)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise CannotWrite(f"could not write {target}: {error.strerror or error}") from None
