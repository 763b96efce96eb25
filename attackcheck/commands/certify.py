"""`attackcheck certify`: worst-case measures of a data set, and what attacks reach."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from attackcheck.commands.sources import (
    CHECKPOINT,
    COUNTEREXAMPLES,
    First,
    add_source_arguments,
    load_subject,
    metrics_of,
    replay_options,
)
from attackcheck.errors import InputError

if TYPE_CHECKING:
    from attackcheck.certification_table import CertificationTable
    from attackcheck.certifier import Plan
    from attackcheck.reporters.certification import CertificationReporter
    from attackcheck.smoothing import Smoothing
    from attackcheck.subject import Images, Subject

__all__ = ["add_arguments"]


def add_arguments(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "certify",
        help="worst-case accuracy, IoU and more at every eps, and what attacks reach",
        description="Certifies how far accuracy, IoU and other measures of a data set can fall when every image moves "
        "by at most eps, and attacks what was certified. Exit code: 0 no certified value was beaten, 1 at least one "
        "was, 2 could not check, 130 interrupted.",
    )
    parser.add_argument("checkpoint", nargs="?", help=CHECKPOINT)
    add_source_arguments(parser)
    parser.add_argument(
        "--data",
        metavar="SPEC",
        help="scenes[:N], arrays:FILE.npz; folder:, cityscapes:, pets:, kvasir: or voc:DIR[:SPLIT][@HxW]; none: ours",
    )
    parser.add_argument("--images", type=int, metavar="N", help="only the first N images")
    parser.add_argument("--eps", metavar="LIST", help="budgets such as 0.1,0.3 (default: 0.001 to 1.5)")
    parser.add_argument("--metric", metavar="FILE", help="also attack the metric claims in this TOML or JSON file")
    parser.add_argument(
        "--smoothing",
        metavar="SPEC",
        help="also certify the smoothed network by sampling, e.g. sigma=0.25,n=100 (n0, tau, alpha, correction)",
    )
    parser.add_argument("--no-attack", action="store_true", help="certify only")
    parser.add_argument("--no-refine", action="store_true", help="leave out the refined certificate")
    parser.add_argument("--steps", type=int, default=15, metavar="N", help="steps of every attack (default: 15)")
    parser.add_argument("--box", action="store_true", help="keep perturbed images in [0, 1] (certificates need none)")
    parser.add_argument("--seed", type=int, default=0, help="seed of every random choice (default: 0)")
    parser.add_argument("--threads", type=int, metavar="N", help="CPU threads")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="relative excess of a value that is rounding")
    parser.add_argument("--strict", action="store_true", help="ROUNDING fails too")
    parser.add_argument(
        "--out", metavar="DIR", default=COUNTEREXAMPLES, help=f"counterexamples (default: {COUNTEREXAMPLES})"
    )
    parser.add_argument("--json", metavar="FILE|-", help="write everything as JSON")
    parser.add_argument("--csv", metavar="FILE", help="write one line for each measure and eps")
    parser.add_argument("--smallest", metavar="FILE", help="write the smallest eps of every measure and loss as CSV")
    parser.add_argument("--plot", metavar="FILE", help="draw the curves (.png or .svg; needs matplotlib)")
    parser.add_argument("-q", "--quiet", action="store_true", help="no tables, only broken claims and the last line")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    plan = _plan(arguments)
    smoothing = None
    if arguments.smoothing is not None:
        from attackcheck.smoothing import read_smoothing

        smoothing = read_smoothing(arguments.smoothing)
        plan = dataclasses.replace(plan, epsilons=tuple(sorted({*plan.epsilons, smoothing.radius})))
    from attackcheck.certifier import certify_data
    from attackcheck.models.datasets import load_data
    from attackcheck.reporters.certification import CertificationReporter, csv_text, smallest_text
    from attackcheck.reporters.json import write_whole

    data: Images = load_data(arguments.data)
    if arguments.images is not None:
        data = First(data, arguments.images)
    subject = load_subject(arguments, lambda: data[0].image)
    reporter = CertificationReporter(
        ["attackcheck", "replay", *replay_options(arguments)], quiet=arguments.quiet, tables=arguments.json != "-"
    )
    table: CertificationTable | None = None
    with reporter:
        try:
            for table, done, total in certify_data(subject, data, plan):
                reporter.progress(table, done, total)
        except KeyboardInterrupt:
            if table is None:
                raise
            table = dataclasses.replace(table, stopped="interrupted")
        if table is not None and smoothing is not None and not table.stopped:
            table = _smoothed(table, smoothing, subject, data, arguments, reporter)
    if table is None:
        raise InputError("the certification ended without a table")
    reporter.finish(table)
    try:
        text = json.dumps(table.to_dict(), indent=2, allow_nan=False) + "\n"
        if arguments.json == "-":
            sys.stdout.write(text)
        elif arguments.json is not None:
            write_whole(Path(arguments.json), text)
        if arguments.csv is not None:
            write_whole(Path(arguments.csv), csv_text(table))
        if arguments.smallest is not None:
            write_whole(Path(arguments.smallest), smallest_text(table))
    except OSError as error:
        raise InputError(f"could not write {error.filename}: {error.strerror or error}") from None
    if arguments.plot is not None:
        from attackcheck.reporters.curves import draw

        draw(table, Path(arguments.plot))
    return 130 if table.stopped else table.exit_code(arguments.strict)


def _smoothed(
    table: CertificationTable,
    smoothing: Smoothing,
    subject: Subject,
    data: Images,
    arguments: argparse.Namespace,
    reporter: CertificationReporter,
) -> CertificationTable:
    """The table with what smoothing of the same network says of the same images."""
    from attackcheck.smoothing import smooth_data

    try:
        found = smooth_data(
            subject, data, smoothing, seed=arguments.seed, device=arguments.device, on_progress=reporter.sampled
        )
    except KeyboardInterrupt:
        return dataclasses.replace(table, stopped="interrupted")
    return dataclasses.replace(table, smoothing=(found,))


def _plan(arguments: argparse.Namespace) -> Plan:
    for name, least in (("images", 1), ("steps", 1), ("threads", 1), ("seed", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise InputError(f"expected --{name} of at least {least}, got {value}")
    if not arguments.out or (Path(arguments.out).exists() and not Path(arguments.out).is_dir()):
        raise InputError(f"expected --out to be a folder, got {arguments.out!r}")
    from attackcheck.reporters.json import checked_target

    for option in ("json", "csv", "smallest", "plot"):
        target = getattr(arguments, option)
        if target is not None and checked_target(target, f"--{option}") is None and option != "json":
            raise InputError(f"expected --{option} to name a file, got {target!r}")
    if arguments.plot is not None:
        from attackcheck.reporters.plots import check_plot

        check_plot(Path(arguments.plot))
    import torch

    from attackcheck.certifier import ATTACKS, EPSILONS, Plan

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    attacks = tuple(dataclasses.replace(attack, steps=arguments.steps) for attack in ATTACKS)
    return Plan(
        epsilons=EPSILONS if arguments.eps is None else _epsilons(arguments.eps),
        attacks=() if arguments.no_attack else attacks,
        metrics=metrics_of(arguments),
        seed=arguments.seed,
        device=arguments.device,
        box=(0.0, 1.0) if arguments.box else None,
        tolerance=arguments.tolerance,
        counterexamples=Path(arguments.out),
        refine=not arguments.no_refine,
    )


def _epsilons(text: str) -> tuple[float, ...]:
    try:
        values = sorted({float(part) for part in text.split(",")})
    except ValueError:
        values = []
    if not values or not all(math.isfinite(value) and value >= 0 for value in values):
        raise InputError(f"expected --eps like 0.1 or 0.05,0.1,0.3, got {text!r}")
    return tuple(values)
