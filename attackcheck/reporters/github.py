"""GitHub Actions: annotations in the log, and a summary of the job in Markdown."""

from __future__ import annotations

import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from attackcheck.baseline import Baseline
from attackcheck.errors import printable
from attackcheck.events import Event, RunFinished, Warned
from attackcheck.report import Report, Violation
from attackcheck.reporters.tables import counted

__all__ = ["GithubReporter", "on_github"]

ANNOTATED = 10
"""Annotations of one kind that GitHub shows for a step."""

LISTED = 50


def on_github(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is a step of GitHub Actions."""
    return environment.get("GITHUB_ACTIONS") == "true" or bool(environment.get("GITHUB_STEP_SUMMARY"))


class GithubReporter:
    """Writes workflow commands to the log where GITHUB_ACTIONS is set, and the summary where there is a file for it.

    Args:
        replay: how a replay command starts, with everything but the counterexample's path.
        baseline: violations that are known are counted, not annotated.
        stream: the log.
    """

    def __init__(
        self,
        replay: Sequence[str],
        baseline: Baseline | None = None,
        stream: TextIO | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._replay = replay
        self._baseline = baseline
        self._stream = sys.stdout if stream is None else stream
        self._annotate = environment.get("GITHUB_ACTIONS") == "true"
        self._summary = environment.get("GITHUB_STEP_SUMMARY")

    def __call__(self, event: Event) -> None:
        """Annotate warnings as they come, violations at the end."""
        if isinstance(event, Warned):
            self._say("warning", event.code, event.message)
        elif isinstance(event, RunFinished):
            self._report(event.report)

    def _report(self, report: Report) -> None:
        fresh = report if self._baseline is None else self._baseline.without_known(report)
        for found in fresh.violations[:ANNOTATED]:
            text = f"{_where(found)}: radius {found.radius:.6g}, distance {found.distance:.6g} ({found.attack})"
            if found.counterexample is not None:
                text += "\n" + self._command(found)
            self._say("error", f"{found.kind.name} x {found.ratio:.4f}", text)
        if fresh.audit is not None and fresh.audit.refuted:
            self._say("error", f"audit {fresh.audit.verdict.name}", fresh.audit.sentence)
        if self._summary:
            with suppress(OSError), Path(self._summary).open("a", encoding="utf-8") as file:
                file.write(self._markdown(report, fresh))

    def _say(self, level: str, title: str, text: str) -> None:
        if self._annotate:
            print(f"::{level} title={_property(f'attackcheck {title}')}::{_data(text)}", file=self._stream)

    def _command(self, found: Violation) -> str:
        return shlex.join([*self._replay[:2], str(found.counterexample), *self._replay[2:]])

    def _markdown(self, report: Report, fresh: Report) -> str:
        broken = report.violations
        verdict = "no violation found" if report.attacked_count else "nothing checked"
        verdict = verdict if report.sound else "UNSOUND"
        lines = [
            f"### attackcheck: {verdict}",
            "",
            f"{counted(len(broken), 'violation')} in {counted(report.attacked_count, 'attacked pixel')} of "
            f"{counted(report.images, 'image')}, "
            f"plan {_cell(report.plan)}, seed {report.seed}. {_cell(str(report.subject.get('claim_text', '')))}.",
            "",
        ]
        if report.stopped:
            lines += [f"The run is incomplete: {_cell(report.stopped)}.", ""]
        if self._baseline is not None:
            lines += [f"{_cell(self._baseline.sentence(report))}.", ""]
        if report.audit is not None:
            lines += [f"Audit of the weights: {report.audit.verdict.name}, {_cell(report.audit.sentence)}.", ""]
        if report.sound and math.isfinite(report.limit.least):
            lines += [f"Any uniform inflation of the radii above x {report.limit.least:.4f} would have been found.", ""]
        if broken:
            lines += [
                "| kind | where | radius | distance | ratio | attack | |",
                "| --- | --- | --- | --- | --- | --- | --- |",
            ]
            new = {id(found) for found in fresh.violations}
            lines += [
                f"| {found.kind.name} | {_cell(_where(found))} | {found.radius:.6g} | {found.distance:.6g} | "
                f"{found.ratio:.4f} | {found.attack} | {'new' if id(found) in new and self._baseline else ''} |"
                for found in broken[:LISTED]
            ]
            lines += ["", f"{len(broken) - LISTED} more.", ""] if len(broken) > LISTED else [""]
            example = next((found for found in broken if found.counterexample is not None), None)
            if example is not None:
                lines += ["```sh", printable(self._command(example)), "```", ""]
        if report.attacks:
            lines += ["| attack | pixels | flipped | median tightness | seconds |", "| --- | --- | --- | --- | --- |"]
            for attack in report.attacks:
                middle = attack.tightness.get(0.5)
                shown = "" if middle is None else f"{middle:.3f}"
                lines.append(
                    f"| {attack.name} | {attack.attacked} | {attack.flipped} | {shown} | {attack.seconds:.1f} |"
                )
            lines.append("")
        return "\n".join(lines) + "\n"


def _where(found: Violation) -> str:
    if found.statement is not None:
        return found.statement
    place = "the logit map" if found.pixel is None else "pixel {}, {}".format(*found.pixel)
    return f"{found.image_name}, {place}"


def _cell(text: str) -> str:
    """Text from a file in a cell of a Markdown table."""
    escaped = "".join(f"\\{c}" if c in "\\`*_[]|<>#" else c for c in printable(text))
    return escaped.replace("\n", " ")


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
