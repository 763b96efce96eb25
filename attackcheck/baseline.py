"""Violations that are known already: only new ones are to fail."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attackcheck.errors import InputError, in_one_line
from attackcheck.probe import Kind
from attackcheck.report import Report, Violation
from attackcheck.run_folder import is_run, read_run

__all__ = ["Baseline", "baseline_of", "read_baseline"]

_Key = tuple[str, str, tuple[int, int] | None, str | None]


@dataclass(frozen=True)
class Baseline:
    """What an earlier report found.

    A violation is known if the earlier report has one of the same kind about the same image (by name), and about the
    same pixel where the kind is about one (PIXEL, GADGET), or the same measure. How large it is plays no part.
    """

    source: str
    keys: frozenset[_Key]
    refuted: bool  # by the audit

    def knows(self, found: Violation) -> bool:
        """Whether the earlier report has this one."""
        pixel = found.pixel if found.kind in (Kind.PIXEL, Kind.GADGET) else None
        return (found.kind.name, found.image_name, pixel, found.statement) in self.keys

    def without_known(self, report: Report) -> Report:
        """The report with what is new alone; maps and tables stay as they are."""
        fresh = tuple(finding for finding in report.findings if not self.knows(finding))
        return replace(report, findings=fresh, audit=None if self.refuted else report.audit)

    def sentence(self, report: Report) -> str:
        """For people."""
        fresh = len(self.without_known(report).violations)
        return f"{len(report.violations) - fresh} violations are in the baseline {self.source}, {fresh} are new"


def read_baseline(path: str | Path) -> Baseline:
    """Read a report written by ``--json``, or a run folder.

    Raises:
        InputError: if it is neither.
    """
    path = Path(path)
    if is_run(path):
        report = read_run(path).report
        found: Any = report.to_dict()
    else:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"expected a report or a run folder in {path}, got none ({in_one_line(error)})") from None
    return baseline_of(found, str(path))


def baseline_of(found: Mapping[str, Any], source: str) -> Baseline:
    """What a report as plain values has.

    Raises:
        InputError: if it is none.
    """
    try:
        if found["schema_version"] != 1:
            raise InputError(f"expected a report of version 1 in {source}, got {found['schema_version']!r}")
        keys = frozenset(_key(entry) for entry in (*found["violations"], *found["findings"]))
        audit = found["audit"]
        refuted = audit is not None and audit["verdict"] in ("REFUTED", "PREMISE_REFUTED")
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"expected a report written by attackcheck verify in {source} ({in_one_line(error)})"
        ) from None
    return Baseline(source, keys, refuted)


def _key(entry: Mapping[str, Any]) -> _Key:
    pixel = entry["pixel"] if entry["kind"] in (Kind.PIXEL.name, Kind.GADGET.name) else None
    where = None if pixel is None else (int(pixel[0]), int(pixel[1]))
    return str(entry["kind"]), str(entry["image_name"]), where, entry["statement"]
