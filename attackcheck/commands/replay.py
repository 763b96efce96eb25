"""`attackcheck replay`: judge a counterexample again."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attackcheck.commands.sources import add_source_arguments, check_device, file_options, tell_notices
from attackcheck.errors import InputError, in_one_line, printable

if TYPE_CHECKING:
    from attackcheck.counterexample import Counterexample, Replay

__all__ = ["add_arguments"]


def add_arguments(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "replay",
        help="judge a counterexample again",
        description="Judges a counterexample with nothing but the model, the file and the claim. Exit code: "
        "1 reproduced, 0 fixed or only counted (the radius holds with a probability), 2 cannot check. Without a "
        "checkpoint or --model, the one named in the file is used.",
    )
    parser.add_argument("file", help="counterexample written by attackcheck verify")
    parser.add_argument("checkpoint", nargs="?", help="checkpoint, state_dict (with --model) or factory")
    add_source_arguments(parser)
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from attackcheck.counterexample import load_counterexample, replay
    from attackcheck.loading import load
    from attackcheck.metric_counterexample import is_metric
    from attackcheck.probe import Kind

    check_device(arguments.device)
    if is_metric(Path(arguments.file)):
        return _replay_metric(arguments)
    example = load_counterexample(Path(arguments.file))
    recorded = example.subject
    given = any(value is not None for value in (arguments.lipschitz, arguments.radii, arguments.claim))
    if arguments.scope is not None and not given:
        raise InputError("expected --lipschitz beside --scope: a scope alone says nothing")
    if example.kind is Kind.GADGET:
        return _show(example, {}, _replayed_gadget(arguments, example))
    subject = load(
        _checkpoint(arguments, recorded),
        model=arguments.model,
        # Where the model comes without a claim, the recorded one is judged; a stand-in lets it load.
        lipschitz=arguments.lipschitz if given else 1.0,
        scope=arguments.scope,
        radii=arguments.radii,
        claim=arguments.claim,
        class_pair=arguments.class_pair,
        code=arguments.checkpoint is not None,
        image=example.clean,
        **file_options(arguments),
    )
    tell_notices(subject)
    result = replay(example, subject.model, subject.claim if given else None, device=arguments.device)
    return _show(example, subject.meta, result)


def _replayed_gadget(arguments: argparse.Namespace, example: Counterexample) -> Replay:
    """On a gadget the network is ours, and so is the constant; the certifier is asked again if --radii names it."""
    from attackcheck.claims import RadiusClaim
    from attackcheck.counterexample import replay
    from attackcheck.gadgets import gadget
    from attackcheck.loading import load_certifier
    from attackcheck.trial import radii_of

    tried = gadget(str(example.subject.get("model")))
    claim = None
    if arguments.radii is not None:
        certifier = load_certifier(arguments.radii, tried.lipschitz)
        try:
            claim = RadiusClaim(radii_of(certifier, tried, arguments.device), source=arguments.radii)
        except (Exception, SystemExit) as error:
            raise InputError(
                f"the certifier {arguments.radii} fails on {example.image_name}: {in_one_line(error)}"
            ) from error
    return replay(example, tried.network(), claim, device=arguments.device)


def _show(example: Counterexample, meta: Mapping[str, Any], result: Replay) -> int:
    from attackcheck.counterexample import Outcome
    from attackcheck.reporters.console import plain_console

    recorded = example.subject
    out = plain_console(sys.stdout)
    where = "the logit map" if example.pixel is None else "pixel {}, {}".format(*example.pixel)
    name, attack = printable(example.image_name), printable(example.attack)
    out.print(f"{example.kind.name} in image {example.image} ({name}), {where}, by {attack}")
    changed = [
        name
        for name in ("sha256", "factory_sha256")
        if recorded.get(name) and meta.get(name) and recorded[name] != meta[name]
    ]
    if changed:
        out.print("the model is not the one that the counterexample was made with (another SHA-256)")
    out.print(f"recorded: {_numbers(example.radius, example.distance)}")
    if result.judgement is not None:
        now = result.judgement
        out.print(f"now:      {_numbers(now.bound, now.distance)}, {now.verdict.name}")
    if result.outcome is Outcome.CANNOT_CHECK:
        raise InputError(f"{result.outcome.value}: {result.reason}")
    reason = f": {result.reason}" if result.outcome is Outcome.FIXED else ""
    out.print(f"{result.outcome.value}{reason}")
    return 1 if result.outcome is Outcome.REPRODUCED else 0


def _replay_metric(arguments: argparse.Namespace) -> int:
    """A claim about a whole data set, which is in the file."""
    from attackcheck.counterexample import Outcome
    from attackcheck.loading import load
    from attackcheck.metric_counterexample import load_metric, replay_metric
    from attackcheck.reporters.console import plain_console

    example = load_metric(Path(arguments.file))
    # The claim about the model is of no account here; a stand-in lets it load.
    subject = load(
        _checkpoint(arguments, example.subject),
        model=arguments.model,
        lipschitz=1.0,
        code=arguments.checkpoint is not None,
        image=example.clean[0],
        **file_options(arguments),
    )
    outcome, now = replay_metric(example, subject.model, device=arguments.device)
    out = plain_console(sys.stdout)
    images = f"{len(example.clean)} image{'' if len(example.clean) == 1 else 's'}"
    out.print(f"METRIC on {images}: claimed {example.claim.describe()}")
    if example.subject.get("sha256") != subject.meta.get("sha256"):
        out.print("the model is not the one that the counterexample was made with (another SHA-256)")
    out.print(f"recorded: {example.value:.9g}")
    out.print(f"now:      {now.value:.9g} at a distance of up to {now.distance:.9g}, {now.verdict.name}")
    if outcome is Outcome.CANNOT_CHECK:
        raise InputError(f"{outcome.value}: an image moved by more than eps")
    out.print(outcome.value)
    return 1 if outcome is Outcome.REPRODUCED else 0


def _checkpoint(arguments: argparse.Namespace, recorded: Mapping[str, Any]) -> str | None:
    """The checkpoint to load: the one given, or the one named in the file, which is never code."""
    if arguments.checkpoint is not None or arguments.model is not None:
        return None if arguments.checkpoint is None else str(arguments.checkpoint)
    if recorded.get("factory"):
        raise InputError(
            f"expected --model: the counterexample was made with {recorded['factory']!r}, "
            "and code is run only if you name it"
        )
    if recorded.get("shipped") is True:
        return None
    path = recorded.get("path")
    if not isinstance(path, str) or not path:
        raise InputError("expected a checkpoint or --model: the counterexample does not say where its model lies")
    return path


def _numbers(radius: float, distance: float) -> str:
    ratio = f"{radius / distance:.6f}" if distance > 0 else "inf"
    return f"radius {radius:.9g}, distance {distance:.9g}, ratio {ratio}"
