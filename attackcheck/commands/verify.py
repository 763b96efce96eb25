"""`attackcheck verify`: try to break a certificate."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attackcheck.commands.case import add_case_arguments, only, pixel_of
from attackcheck.commands.sources import (
    CHECKPOINT,
    COUNTEREXAMPLES,
    First,
    add_source_arguments,
    load_subject,
    metrics_of,
    replay_options,
)
from attackcheck.errors import CannotWrite, InputError, printable
from attackcheck.on_ray.cluster import read_engine

if TYPE_CHECKING:
    from torch import Tensor

    from attackcheck.crew import Crew
    from attackcheck.events import Event
    from attackcheck.report import Report
    from attackcheck.run_folder import RunFolder
    from attackcheck.subject import Images, Settings, Subject
    from attackcheck.summing import Header

__all__ = ["add_arguments"]


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
        "--data",
        metavar="SPEC",
        help="scenes[:N], arrays:FILE.npz; folder:, cityscapes:, pets:, kvasir: or voc:DIR[:SPLIT][@HxW]; none: ours",
    )
    parser.add_argument("--images", type=int, metavar="N", help="only the first N images")
    add_case_arguments(parser)
    parser.add_argument("--pixels", default="64", metavar="N|all|FILE", help="pixels per image (default: 64)")
    parser.add_argument(
        "--choose", choices=_CHOOSE, default=_CHOOSE[0], help="what they are drawn by (default: radius)"
    )
    parser.add_argument("--region", action="append", metavar="SPEC", help=_REGION_HELP)
    parser.add_argument("--target", type=int, metavar="CLASS", help="attack towards this class")
    parser.add_argument(
        "--refined", action="store_true", help="attack the refined certificate of these weights instead"
    )
    parser.add_argument("--plan", default="standard", help="quick, standard, thorough or FILE.toml (default: standard)")
    parser.add_argument("--attack", metavar="NAME,...", help="run these attacks instead of a plan")
    parser.add_argument("--box", action="store_true", help="keep perturbed images in [0, 1] (certificates need none)")
    parser.add_argument(
        "--metric", metavar="FILE", help="also attack the claims about the whole data in this TOML or JSON"
    )
    parser.add_argument("--budget", metavar="TIME", help="stop after this long, such as 90s, 10m or 1h")
    parser.add_argument("--seed", type=int, default=0, help="seed of every random choice (default: 0)")
    parser.add_argument(
        "--batch", type=int, metavar="ROWS", help="rows per attack call on pixels (default: fits the image)"
    )
    parser.add_argument("--no-crops", action="store_true", help="attack pixels on whole images, not on crops of them")
    parser.add_argument("--threads", type=int, metavar="N", help="images side by side on a CPU (default: all cores)")
    parser.add_argument(
        "--engine",
        default="threads",
        metavar="threads|ray[:ADDRESS]",
        help="who examines the images: threads of this process (default), or workers of a Ray cluster (extra `ray`)",
    )
    parser.add_argument(
        "--tolerance", type=float, default=1e-5, help="relative excess that is rounding (default: 1e-5)"
    )
    parser.add_argument("--strict", action="store_true", help="ROUNDING and DEPLOYED_ONLY fail too")
    parser.add_argument(
        "--exit-zero", action="store_true", help="violations are no failure: for shards, whose merge has the last word"
    )
    parser.add_argument(
        "--deterministic", action="store_true", help="the same bits in every run, also on a GPU, where it takes longer"
    )
    parser.add_argument("--no-audit", action="store_true", help="do not look at the weights first")
    parser.add_argument("-x", "--maxfail", type=int, metavar="N", help="stop after N violations")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="keep everything in this folder, where the same command goes on; none: only counterexamples, in "
        + COUNTEREXAMPLES,
    )
    parser.add_argument(
        "--shard", metavar="I/N", help="examine only every N-th image from the I-th on; auto: as torchrun or SLURM say"
    )
    parser.add_argument(
        "--estimate", action="store_true", help="attack nothing: say what the run would take in time, memory, passes"
    )
    parser.add_argument("--json", metavar="FILE|-", help="write the report (or the estimate) as JSON")
    parser.add_argument("--junit", metavar="FILE", help="write JUnit XML, a test case for each image and attack")
    parser.add_argument("--html", metavar="FILE", help="write the report as one HTML page (extra `html`)")
    parser.add_argument("--parquet", metavar="FILE", help="write all attacked pixels as a table (extra `parquet`)")
    parser.add_argument("--baseline", metavar="FILE", help="fail only on violations that this report or run has not")
    loud = parser.add_mutually_exclusive_group()
    loud.add_argument("-q", "--quiet", action="store_true", help="only warnings, violations and the last line")
    loud.add_argument("-v", "--verbose", action="store_true", help="every attack call, all findings")
    parser.set_defaults(run=_run)


_CHOOSE = ("radius", "class", "random", "weakest")
_REGION_HELP = (
    "region to flip as a whole: components[:N] of the prediction (default), class:K, rect:TOP,LEFT,HEIGHT,WIDTH or "
    "mask:FILE, each with an optional @FRACTION; may be repeated"
)


def _run(arguments: argparse.Namespace) -> int:
    address = read_engine(arguments.engine)
    settings, data = _settings(arguments)
    if arguments.estimate:
        return _estimate(arguments, settings, data)
    from attackcheck.baseline import read_baseline
    from attackcheck.engine import INTERRUPTED, run
    from attackcheck.events import RunFinished
    from attackcheck.reporters.console import ConsoleReporter
    from attackcheck.reporters.github import GithubReporter, on_github
    from attackcheck.reporters.json import JsonReporter
    from attackcheck.reporters.junit import JunitReporter

    baseline = None if arguments.baseline is None else read_baseline(arguments.baseline)
    written: list[Callable[[Event], None]] = []
    if arguments.json is not None:
        written.append(JsonReporter(arguments.json))
    if arguments.junit is not None:
        written.append(JunitReporter(arguments.junit))
    source = _Source(arguments)
    subject = source(lambda: data[settings.image or 0].image)
    replay = ["attackcheck", "replay", *replay_options(arguments)]
    if arguments.html is not None:
        from attackcheck.commands.report import command_of
        from attackcheck.reporters.html import HtmlReporter

        written.append(
            HtmlReporter(
                arguments.html,
                classes=data.classes,
                ignore=data.ignore,
                replay=(replay[:2], replay[2:]),
                command=command_of(vars(arguments)),
            )
        )
    if settings.image is not None and not arguments.quiet:
        from attackcheck.reporters.inspection import CaseReporter

        stream = sys.stderr if arguments.json == "-" else sys.stdout
        written.append(CaseReporter(stream, settings.image, pixel_of(arguments), data.classes))
    if on_github():
        written.append(GithubReporter(replay, baseline, sys.stderr if arguments.json == "-" else None))
    report: Report | None = None
    with ExitStack() as stack:
        past: RunFolder | None = None
        if arguments.parquet is not None:
            from attackcheck.reporters.parquet import ParquetReporter

            written.append(stack.enter_context(ParquetReporter(arguments.parquet)))
        if arguments.out is not None:
            past = stack.enter_context(_folder(arguments, subject, data, settings))
            settings = replace(settings, counterexamples=past.counterexamples)
            written.append(past)
        console = stack.enter_context(
            ConsoleReporter(replay, quiet=arguments.quiet, verbose=arguments.verbose, tables=arguments.json != "-")
        )
        crew = None if address is None else _on_ray(subject, data, settings, source, address)
        for event in _to_the_end(run(subject, data, settings, past, crew, maps=False), [console, *written]):
            if isinstance(event, RunFinished):
                report = event.report
    if report is None:
        raise InputError("the run ended without a report")
    code = report.exit_code(settings.strict)
    if baseline is not None:
        print(f"attackcheck: {printable(baseline.sentence(report))}", file=sys.stderr)
        code = baseline.without_known(report).exit_code(settings.strict)
    if past is not None and past.failure is not None:
        print(f"attackcheck: {printable(past.failure)}", file=sys.stderr)
        code = code or 2
    if arguments.exit_zero and code == 1:
        code = 0
    return 130 if report.stopped == INTERRUPTED else code


def _estimate(arguments: argparse.Namespace, settings: Settings, data: Images) -> int:
    from rich.console import Console

    from attackcheck.estimating import estimate
    from attackcheck.reporters.estimates import print_estimate
    from attackcheck.reporters.json import checked_target, write_json
    from attackcheck.run_folder import Run, earlier_run, folder_of_shard, is_run

    target = None if arguments.json is None else checked_target(arguments.json)
    subject = _Source(arguments)(lambda: data[0].image)
    past: Run | None = None
    if arguments.out is not None and is_run(folder_of_shard(Path(arguments.out), settings.shard)):
        path, header, identity, _ = _identified(arguments, subject, data, settings)
        past = earlier_run(path, header, identity)
    found = estimate(subject, data, settings, past)
    if arguments.json != "-":
        print_estimate(found, Console())
    if arguments.json is not None:
        write_json(target, found.to_dict())
    return 0


def _folder(arguments: argparse.Namespace, subject: Subject, data: Images, settings: Settings) -> RunFolder:
    from attackcheck.run_folder import RunFolder

    options = {name: value for name, value in vars(arguments).items() if name not in ("run", "command")}
    return RunFolder(*_identified(arguments, subject, data, settings), options)


def _identified(
    arguments: argparse.Namespace, subject: Subject, data: Images, settings: Settings
) -> tuple[Path, Header, dict[str, Any], list[dict[str, Any]]]:
    """The folder of this run, and what it must say to be this run's."""
    from attackcheck.engine import header_of
    from attackcheck.identity import identity_of, listed
    from attackcheck.run_folder import folder_of_shard

    images = listed(data)
    identity = identity_of(subject, data, settings, images)
    return folder_of_shard(Path(arguments.out), settings.shard), header_of(subject, data, settings), identity, images


def _to_the_end(events: Iterator[Event], reporters: list[Callable[[Event], None]]) -> Iterator[Event]:
    """Pass events on; Ctrl-C inside a reporter, or a full disk, is handed to the engine, which judges what it has."""
    throw: Callable[[BaseException], Event] = events.throw  # type: ignore[attr-defined]
    event = next(events, None)
    while event is not None:
        try:
            for reporter in reporters:
                reporter(event)
            yield event
            event = next(events, None)
        except (KeyboardInterrupt, CannotWrite) as reason:
            event = throw(reason)


def _settings(arguments: argparse.Namespace) -> tuple[Settings, Images]:
    budget = _seconds(arguments.budget)
    if arguments.images is not None and arguments.images < 1:
        raise InputError(f"expected --images of at least 1, got {arguments.images}")
    if arguments.threads is not None and arguments.threads < 1:
        raise InputError(f"expected --threads of at least 1, got {arguments.threads}")
    if arguments.out == "":
        raise InputError("expected --out to name a folder, got nothing")
    if arguments.out is not None and Path(arguments.out).exists() and not Path(arguments.out).is_dir():
        raise InputError(f"expected --out to be a folder, {arguments.out} is a file")
    import torch

    from attackcheck.attacks.plans import plan, plan_of_attacks, with_regions
    from attackcheck.models.datasets import load_data
    from attackcheck.regions import parse_region
    from attackcheck.selection import read_pixels
    from attackcheck.sharding import read_shard, share
    from attackcheck.subject import Settings
    from attackcheck.verification import check_settings

    shard = read_shard(arguments.shard)
    device = _own_device(arguments)
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
        chosen = with_regions(chosen)
    data: Images = load_data(arguments.data)
    if arguments.images is not None:
        data = First(data, arguments.images)
    # Threads for whole images do not wait for each other; those inside an operation do, and get in each other's way.
    threads = arguments.threads or torch.get_num_threads()
    workers = min(threads, len(share(len(data), shard))) if device == "cpu" else 1
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
        counterexamples=Path(COUNTEREXAMPLES),
        device=device,
        crops=not arguments.no_crops,
        workers=workers,
        audit=not arguments.no_audit,
        metrics=metrics_of(arguments),
        shard=shard,
        deterministic=arguments.deterministic,
    )
    return only(arguments, settings, data), data


def _own_device(arguments: argparse.Namespace) -> str:
    """The device, and of several GPUs in one machine the one of this task."""
    device = str(arguments.device)
    if arguments.shard != "auto" or device != "cuda":
        return device
    import torch

    from attackcheck.sharding import local_rank

    return f"cuda:{local_rank() % max(1, torch.cuda.device_count())}"


@dataclass(frozen=True)
class _Source:
    """What is examined, loaded as the options say: here, and on every worker of a cluster."""

    arguments: argparse.Namespace

    def __call__(self, image: Callable[[], Tensor]) -> Subject:
        subject = load_subject(self.arguments, image)
        if not self.arguments.refined:
            return subject
        from attackcheck.refined import refine

        return replace(subject, claim=refine(subject.model, tuple(image().shape)).claim())


def _on_ray(subject: Subject, data: Images, settings: Settings, source: _Source, address: str) -> Crew:
    from attackcheck.on_ray.crew import RayCrew

    return RayCrew(subject, data, settings, source, address=address, limit=source.arguments.threads)


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(s|m|h)?", text.strip())
    if found is None or float(found[1]) <= 0:
        raise InputError(f"expected --budget like 90s, 10m or 1h, got {text!r}")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2] or "s"]
