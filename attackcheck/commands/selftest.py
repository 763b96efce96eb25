"""`attackcheck selftest`: does it find every planted fault, and leave sound certificates alone?"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from attackcheck.errors import InputError, printable

if TYPE_CHECKING:
    from rich.console import Console

    from attackcheck.faults import Case
    from attackcheck.faults.selftest import Result

__all__ = ["add_arguments"]


def add_arguments(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "selftest",
        help="find planted faults, and leave sound certificates alone",
        description="Runs the checker on a catalogue of small certificates, each unsound in one known way or sound. "
        "Exit code: 0 everything found and no false alarm, 1 otherwise, 2 usage, 130 interrupted.",
    )
    parser.add_argument("--case", metavar="NAME,...", help="only these cases")
    parser.add_argument("--family", metavar="FAMILY", help="only this family, such as formula")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds of each case (default: 1)")
    parser.add_argument("--plan", help="quick, standard, thorough or FILE.toml (default: what suits each case)")
    parser.add_argument("--curve", action="store_true", help="every severity of each knob: share found against factor")
    parser.add_argument("--no-audit", action="store_true", help="attacks alone, without the audit of the weights")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="threads inside operations (default: 1)")
    parser.add_argument("--json", metavar="FILE|-", help="write all results as JSON")
    parser.add_argument("--list", action="store_true", help="print the catalogue and stop")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.seeds < 1 or arguments.threads < 1:
        raise InputError(f"expected --seeds and --threads of at least 1, got {arguments.seeds}, {arguments.threads}")
    import torch

    from attackcheck.attacks.plans import plan
    from attackcheck.faults import CATALOGUE
    from attackcheck.faults.selftest import Outcome, select
    from attackcheck.reporters.console import plain_console
    from attackcheck.reporters.json import checked_target, write_json

    names = [] if arguments.case is None else [name.strip() for name in arguments.case.split(",") if name.strip()]
    cases = select(CATALOGUE, names, arguments.family)
    written = arguments.json is not None
    target = checked_target(arguments.json) if written else None
    out = plain_console(sys.stderr if arguments.json == "-" else sys.stdout)
    if arguments.curve:
        cases = tuple(case for case in cases if case.knob)
        if not cases:
            raise InputError("expected cases with a knob for --curve, none of those chosen has one")
    if arguments.list:
        _print_catalogue(cases, out)
        if written:
            write_json(target, {"schema_version": 1, "cases": [_described(case) for case in cases]})
        return 0
    if arguments.plan is not None:
        plan(arguments.plan)
    torch.set_num_threads(arguments.threads)
    results, interrupted = _measure(cases, arguments, out)
    _print_totals(results, out)
    if arguments.curve:
        _print_curves(results, cases, out)
    if written:
        write_json(target, _document(results, cases, interrupted))
    if interrupted:
        return 130
    return int(any(result.outcome in (Outcome.MISSED, Outcome.ALARM) for result in results))


def _measure(cases: Sequence[Case], arguments: argparse.Namespace, out: Console) -> tuple[list[Result], bool]:
    """All results, with a line for each as it comes and a progress bar on stderr; True if interrupted."""
    import warnings

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from attackcheck.faults.selftest import run_selftest
    from attackcheck.reporters.console import plain_console

    runs = sum(len(case.severities) if arguments.curve else 1 for case in cases) * arguments.seeds
    err = plain_console(sys.stderr)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    results: list[Result] = []
    out.print(_HEAD)
    with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as bar:
        task = bar.add_task("selftest", total=runs)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of planted faults' own code
                for result in run_selftest(
                    cases, arguments.seeds, arguments.plan, audit=not arguments.no_audit,
                    all_severities=arguments.curve,
                ):  # fmt: skip
                    results.append(result)
                    (bar.console if out.is_terminal and err.is_terminal else out).print(_line(result))
                    bar.update(task, advance=1, description=result.case)
        except KeyboardInterrupt:
            return results, True
    return results, False


_HEAD = f"{'case':42} {'seed':>4} {'knob':>7}  {'outcome':8} {'ratio':>9} {'true':>9} {'first':>6}  found by"


def _line(result: Result) -> str:
    from attackcheck.faults.selftest import Outcome

    found = ", ".join(result.detected_by) or "-"
    trouble = result.outcome in (Outcome.MISSED, Outcome.ALARM)
    remark = f"  [{printable(result.remark)}]" if result.remark and trouble else ""
    first = "-" if result.first is None else f"{result.first:.1f} s"
    knob = "-" if result.severity == 1.0 and result.factor is None else f"{result.severity:g}"
    return (
        f"{result.case:42} {result.seed:>4} {knob:>7}  {result.outcome.name.lower():8} {_number(result.ratio):>9} "
        f"{_number(result.factor):>9} {first:>6}  {found}{remark}"
    )


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if value < 1000 else f"{value:.3g}"


def _print_totals(results: Sequence[Result], out: Console) -> None:
    from attackcheck.faults.selftest import Outcome

    unsound = [result for result in results if not result.sound]
    sound = [result for result in results if result.sound]
    detected = [result for result in unsound if result.outcome is Outcome.DETECTED]
    kinds = Counter(kind for result in detected for kind in result.detected_by)
    out.print()
    if kinds:
        out.print("Found by: " + ", ".join(f"{kind} {count}" for kind, count in kinds.most_common()))
        times = sorted(result.first for result in detected if result.first is not None)
        if times:
            out.print(f"Time to first detection: median {times[len(times) // 2]:.1f} s, longest {times[-1]:.1f} s")
        alone = sum(result.verify_alone for result in detected)
        out.print(f"Attacks alone, without the audit: {alone} of {len(unsound)}")
    for outcome in (Outcome.MISSED, Outcome.ALARM):
        names = list(dict.fromkeys(result.case for result in results if result.outcome is outcome))
        if names:
            out.print(f"{outcome.name.lower()}: {', '.join(names)}")
    seconds = sum(result.seconds for result in results)
    alarms = sum(result.outcome is Outcome.ALARM for result in sound)
    out.print(
        f"{len(detected)} of {len(unsound)} faults detected, {len(unsound) - len(detected)} missed, "
        f"{alarms} false alarms on {len(sound)} sound subjects ({seconds:.0f} s)"
    )


def _print_curves(results: Sequence[Result], cases: Sequence[Case], out: Console) -> None:
    from attackcheck.faults.selftest import curves

    points = list(curves(results, cases))
    out.print(f"\n{'case':42} {'severity':>9} {'factor':>9} {'found':>9}  knob")
    for point in points:
        out.print(
            f"{point.case:42} {point.severity:>9g} {_number(point.factor):>9} {point.detected:>4}/{point.seeds:<4}  "
            f"{point.knob}"
        )
    out.print(f"\n{'smallest factor found in':42} {'50 %':>9} {'95 %':>9} of seeds")
    for name in dict.fromkeys(point.case for point in points):
        own = [point for point in points if point.case == name]
        reached = [min((p.factor for p in own if p.share >= share), default=None) for share in (0.5, 0.95)]
        out.print(f"{name:42} {_number(reached[0]):>9} {_number(reached[1]):>9}")


def _print_catalogue(cases: Sequence[Case], out: Console) -> None:
    for family in dict.fromkeys(case.family for case in cases):
        own = [case for case in cases if case.family is family]
        out.print(f"{family.name.lower()}: {family.value}")
        for case in own:
            knob = f" ({case.knob}: {', '.join(f'{s:g}' for s in case.severities)})" if case.knob else ""
            out.print(f"  {'sound  ' if case.sound else 'unsound'} {case.name}: {case.sentence}{knob}")
    unsound = sum(not case.sound for case in cases)
    out.print(f"{unsound} faults, {len(cases) - unsound} sound subjects")


def _described(case: Case) -> dict[str, object]:
    return {
        "name": case.name,
        "family": case.family.name,
        "sentence": case.sentence,
        "sound": case.sound,
        "knob": case.knob or None,
        "severities": list(case.severities),
    }


def _document(results: Sequence[Result], cases: Sequence[Case], interrupted: bool) -> dict[str, object]:
    from attackcheck.faults.selftest import curves

    outcomes = Counter(result.outcome.name for result in results)
    return {
        "schema_version": 1,
        "interrupted": interrupted,
        "counts": dict(outcomes),
        "results": [result.to_dict() for result in results],
        "curve": [
            {
                "case": p.case, "knob": p.knob, "severity": p.severity,
                "factor": p.factor if p.factor < 1e300 else None,
                "detected": p.detected, "seeds": p.seeds,
            }
            for p in curves(results, cases)
        ],
    }  # fmt: skip
