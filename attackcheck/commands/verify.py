"""`attackcheck verify`: try to break a certificate."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from attackcheck.commands.sources import (
    CHECKPOINT,
    First,
    add_source_arguments,
    load_subject,
    metrics_of,
    replay_options,
)
from attackcheck.errors import InputError

if TYPE_CHECKING:
    from attackcheck.attacks.plans import Plan
    from attackcheck.events import Event
    from attackcheck.report import Report
    from attackcheck.subject import Images, Settings

__all__ = ["add_arguments"]

COUNTEREXAMPLES = "attackcheck-counterexamples"


def add_arguments(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "verify",
        help="try to break a certificate",
        description="Attacks a model and judges every flip against the certificate. Exit code: 0 no violation found, "
        "1 at least one violation, 2 could not check, 130 interrupted.",
    )
    parser.add_argument("checkpoint", nargs="?", help=CHECKPOINT)
    add_source_arguments(parser)
    parser.add_argument(
        "--data", metavar="SPEC", help="scenes[:N], folder:DIR, arrays:FILE.npz, cityscapes:DIR; none: images that ship"
    )
    parser.add_argument("--images", type=int, metavar="N", help="only the first N images")
    parser.add_argument("--pixels", default="64", metavar="N|all|FILE", help="pixels per image (default: 64)")
    parser.add_argument(
        "--choose", choices=_CHOOSE, default=_CHOOSE[0], help="what they are drawn by (default: radius)"
    )
    parser.add_argument("--region", action="append", metavar="SPEC", help=_REGION_HELP)
    parser.add_argument("--target", type=int, metavar="CLASS", help="attack towards this class")
    parser.add_argument("--plan", default="standard", help="quick, standard, thorough or FILE.toml (default: standard)")
    parser.add_argument("--attack", metavar="NAME,...", help="run these attacks instead of a plan")
    parser.add_argument("--box", action="store_true", help="keep perturbed images in [0, 1] (certificates need none)")
    parser.add_argument(
        "--metric", metavar="FILE", help="also attack the claims about the whole data in this TOML or JSON"
    )
    parser.add_argument("--budget", metavar="TIME", help="stop after this long, such as 90s, 10m or 1h")
    parser.add_argument("--seed", type=int, default=0, help="seed of every random choice (default: 0)")
    parser.add_argument("--batch", type=int, metavar="ROWS", help="rows per attack call (default: fits the image)")
    parser.add_argument("--no-crops", action="store_true", help="attack pixels on whole images, not on crops of them")
    parser.add_argument("--threads", type=int, metavar="N", help="images side by side on a CPU (default: all cores)")
    parser.add_argument(
        "--tolerance", type=float, default=1e-5, help="relative excess that is rounding (default: 1e-5)"
    )
    parser.add_argument("--strict", action="store_true", help="ROUNDING and DEPLOYED_ONLY fail too")
    parser.add_argument("--no-audit", action="store_true", help="do not look at the weights first")
    parser.add_argument("-x", "--maxfail", type=int, metavar="N", help="stop after N violations")
    parser.add_argument(
        "--out", metavar="DIR", default=COUNTEREXAMPLES, help=f"counterexamples (default: {COUNTEREXAMPLES})"
    )
    parser.add_argument("--json", metavar="FILE|-", help="write the report as JSON")
    parser.add_argument("-q", "--quiet", action="store_true", help="only violations and the last line")
    parser.set_defaults(run=_run)


_CHOOSE = ("radius", "class", "random", "weakest")
_REGION_HELP = (
    "region to flip as a whole: components[:N] of the prediction (default), class:K, rect:TOP,LEFT,HEIGHT,WIDTH or "
    "mask:FILE, each with an optional @FRACTION; may be repeated"
)


def _run(arguments: argparse.Namespace) -> int:
    settings, data = _settings(arguments)
    from attackcheck.engine import INTERRUPTED, run
    from attackcheck.events import RunFinished
    from attackcheck.reporters.console import ConsoleReporter
    from attackcheck.reporters.json import JsonReporter

    written = None if arguments.json is None else JsonReporter(arguments.json)
    subject = load_subject(arguments, lambda: data[0].image)
    console = ConsoleReporter(
        ["attackcheck", "replay", *replay_options(arguments)], quiet=arguments.quiet, tables=arguments.json != "-"
    )
    reporters: list[Callable[[Event], None]] = [console] if written is None else [console, written]
    report: Report | None = None
    with console:
        for event in _to_the_end(run(subject, data, settings), reporters):
            if isinstance(event, RunFinished):
                report = event.report
    if report is None:
        raise InputError("the run ended without a report")
    return 130 if report.stopped == INTERRUPTED else report.exit_code(settings.strict)


def _to_the_end(events: Iterator[Event], reporters: list[Callable[[Event], None]]) -> Iterator[Event]:
    """Pass events on; Ctrl-C inside a reporter is handed to the engine, which judges what it has."""
    throw: Callable[[type[BaseException]], Event] = events.throw  # type: ignore[attr-defined]
    event = next(events, None)
    while event is not None:
        try:
            for reporter in reporters:
                reporter(event)
            yield event
            event = next(events, None)
        except KeyboardInterrupt:
            event = throw(KeyboardInterrupt)


def _settings(arguments: argparse.Namespace) -> tuple[Settings, Images]:
    budget = _seconds(arguments.budget)
    if arguments.images is not None and arguments.images < 1:
        raise InputError(f"expected --images of at least 1, got {arguments.images}")
    if arguments.threads is not None and arguments.threads < 1:
        raise InputError(f"expected --threads of at least 1, got {arguments.threads}")
    if not arguments.out:
        raise InputError("expected --out to name a folder, got nothing")
    if Path(arguments.out).exists() and not Path(arguments.out).is_dir():
        raise InputError(f"expected --out to be a folder, {arguments.out} is a file")
    import torch

    from attackcheck.attacks.plans import plan, plan_of_attacks
    from attackcheck.models.datasets import load_data
    from attackcheck.regions import parse_region
    from attackcheck.selection import read_pixels
    from attackcheck.subject import Settings
    from attackcheck.verification import check_settings

    pixels = read_pixels(arguments.pixels)
    check_settings(
        seed=arguments.seed,
        tolerance=arguments.tolerance,
        maxfail=arguments.maxfail,
        budget=budget,
        batch=arguments.batch,
        pixels=pixels,
    )
    chosen = plan(arguments.plan)
    if arguments.attack is not None:
        chosen = plan_of_attacks([name.strip() for name in arguments.attack.split(",") if name.strip()])
    if arguments.region:
        chosen = _with_regions(chosen)
    data: Images = load_data(arguments.data)
    if arguments.images is not None:
        data = First(data, arguments.images)
    # Threads for whole images do not wait for each other; those inside an operation do, and get in each other's way.
    threads = arguments.threads or torch.get_num_threads()
    workers = min(threads, len(data)) if arguments.device == "cpu" else 1
    torch.set_num_threads(max(1, threads // max(1, workers)))
    settings = Settings(
        plan=chosen,
        pixels=pixels,
        choose=arguments.choose,
        regions=[parse_region(spec) for spec in arguments.region or ["components:1"]],
        target=arguments.target,
        seed=arguments.seed,
        tolerance=arguments.tolerance,
        strict=arguments.strict,
        maxfail=arguments.maxfail,
        budget=budget,
        batch=arguments.batch,
        box=(0.0, 1.0) if arguments.box else None,
        counterexamples=Path(arguments.out),
        device=arguments.device,
        crops=not arguments.no_crops,
        workers=workers,
        audit=not arguments.no_audit,
        metrics=metrics_of(arguments),
    )
    return settings, data


def _with_regions(chosen: Plan) -> Plan:
    """The plan, with a region stage for its attacks where it has none: the user asked for regions."""
    from attackcheck.attacks import registry
    from attackcheck.attacks.plans import Plan, Stage

    if any(stage.objective == "region" for stage in chosen.stages):
        return chosen
    names = {s.attack: None for s in chosen.stages if "region" in registry.get(s.attack).objectives and not s.eps}
    extra = tuple(Stage(name, "region") for name in names)
    if not extra:
        raise InputError(f"expected an attack that takes regions in the plan {chosen.name!r}, such as ddn; found none")
    return Plan(chosen.name, (*chosen.stages, *extra))


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)?", text.strip())
    if found is None or float(found[1]) <= 0:
        raise InputError(f"expected --budget like 90s, 10m or 1h, got {text!r}")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2] or "s"]
