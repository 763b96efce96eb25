"""Two or more runs side by side: what changed, in sums and pixel by pixel where the images are the same."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attackcheck.baseline import baseline_of
from attackcheck.errors import InputError, in_one_line
from attackcheck.recheck import Verdict
from attackcheck.run_folder import Run, is_run, read_run

__all__ = ["Compared", "Pairing", "comparison_of", "read_compared"]

Array = np.ndarray[Any, Any]
QUANTILES = (0.05, 0.5, 0.95)
VIOLATED = list(Verdict).index(Verdict.VIOLATED)


@dataclass(frozen=True)
class Compared:
    """One run: its report as plain values, and its folder where there is one."""

    name: str
    document: Mapping[str, Any]
    run: Run | None


@dataclass(frozen=True)
class Pairing:
    """Pixels that two runs both attacked, in images that are the same to the last bit.

    Ratios are of the second run to the first; distances where both flipped the pixel.
    """

    first: str
    second: str
    images: int
    radius: tuple[Array, Array]  # (M,) each
    distance: tuple[Array, Array]  # (M,) each, inf where not flipped
    violated: tuple[Array, Array]  # (M,) bool each
    classes_changed: int  # pixels of these images, attacked or not, whose clean class differs
    size: int  # of these images, in pixels

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        both = np.isfinite(self.distance[0]) & np.isfinite(self.distance[1])
        radii = (self.radius[0] > 0) & np.isfinite(self.radius[0]) & np.isfinite(self.radius[1])
        return {
            "first": self.first,
            "second": self.second,
            "images": self.images,
            "size": self.size,
            "classes_changed": self.classes_changed,
            "pixels": len(self.radius[0]),
            "flipped_in_both": int(both.sum()),
            "flipped_in_first_only": int((np.isfinite(self.distance[0]) & ~np.isfinite(self.distance[1])).sum()),
            "flipped_in_second_only": int((~np.isfinite(self.distance[0]) & np.isfinite(self.distance[1])).sum()),
            "violated_in_first_only": int((self.violated[0] & ~self.violated[1]).sum()),
            "violated_in_second_only": int((~self.violated[0] & self.violated[1]).sum()),
            "violated_in_both": int((self.violated[0] & self.violated[1]).sum()),
            "radius_ratio": _quantiles(self.radius[1][radii] / self.radius[0][radii]),
            "distance_ratio": _quantiles(self.distance[1][both] / self.distance[0][both]),
            "shorter_in_second": int((self.distance[1][both] < self.distance[0][both]).sum()),
            "shorter_in_first": int((self.distance[1][both] > self.distance[0][both]).sum()),
            "tightness": [
                _quantiles(radius[both] / distance[both])
                for radius, distance in zip(self.radius, self.distance, strict=True)
            ],
        }


def read_compared(path: str | Path) -> Compared:
    """Read a run folder, or a report written by ``--json``.

    Raises:
        InputError: if it is neither.
    """
    path = Path(path)
    if is_run(path):
        run = read_run(path)
        return Compared(str(path), run.report.to_dict(), run)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"expected a report or a run folder in {path}, got none ({in_one_line(error)})") from None
    baseline_of(document, str(path))
    return Compared(str(path), document, None)


def comparison_of(runs: Sequence[Compared]) -> tuple[dict[str, Any], list[Pairing]]:
    """What is the same and what changed, as plain values, and the pixels behind it: each run against the first.

    Raises:
        InputError: for fewer than two runs, or a damaged part.
    """
    if len(runs) < 2:
        raise InputError("expected at least two runs to compare")
    try:
        pairings = [pair for other in runs[1:] if (pair := _pair(runs[0], other)) is not None]
        document = {
            "schema_version": 1,
            "runs": [_row(run) for run in runs],
            "violations": [_changed(runs[0], other) for other in runs[1:]],
            "pixels": [pairing.to_dict() for pairing in pairings],
        }
    except (KeyError, TypeError) as error:
        raise InputError(f"expected reports written by attackcheck verify ({in_one_line(error)})") from None
    return document, pairings


def _row(run: Compared) -> dict[str, Any]:
    found = run.document
    subject = found["subject"]
    return {
        "run": run.name,
        "model": subject.get("model"),
        "sha256": subject.get("sha256"),
        "claim": subject.get("claim_text"),
        "plan": found["plan"],
        "seed": found["seed"],
        "images": found["images"],
        "attacked_pixels": found["attacked_pixels"],
        "violations": len(found["violations"]),
        "verdicts": found["counts"]["pixels"],
        "audit": None if found["audit"] is None else found["audit"]["verdict"],
        "detection_limit": found["detection_limit"]["least"],
        "attacks": [
            {
                "name": attack["name"],
                "attacked": attack["attacked"],
                "flipped": attack["flipped"],
                "median": attack["median"],
                "tightness": found["tightness"].get(attack["name"], {}).get("0.5"),
                "forward": attack["forward"],
                "seconds": attack["seconds"],
            }
            for attack in found["attacks"]
        ],
        "budgets": [
            {name: budget[name] for name in ("eps", "attack", "clean", "attacked", "stability")}
            for budget in found["budgets"]
        ],
        "seconds": found["seconds"],
        "stopped": found["stopped"],
    }


def _changed(first: Compared, second: Compared) -> dict[str, Any]:
    before = baseline_of(first.document, first.name).keys
    after = baseline_of(second.document, second.name).keys
    broken = [baseline_of({**run.document, "findings": []}, run.name).keys for run in (first, second)]
    return {
        "first": first.name,
        "second": second.name,
        "new": [_plain(key) for key in sorted(broken[1] - before, key=str)],
        "gone": [_plain(key) for key in sorted(broken[0] - after, key=str)],
        "both": len(broken[0] & broken[1]),
    }


def _plain(key: tuple[str, str, tuple[int, int] | None, str | None]) -> dict[str, Any]:
    kind, image, pixel, statement = key
    return {"kind": kind, "image_name": image, "pixel": None if pixel is None else list(pixel), "statement": statement}


def _pair(first: Compared, second: Compared) -> Pairing | None:
    """None where one of them is no folder, or no image is the same."""
    if first.run is None or second.run is None:
        return None
    there = {entry["sha256"]: number for number, entry in enumerate(second.run.description["images"])}
    done = set(second.run.numbers)
    columns: list[list[Array]] = [[] for _ in range(6)]
    images = changed = size = 0
    for part in first.run.parts():
        number = there.get(part.sha256 or "")
        other = second.run.part(number) if number in done and number is not None else None
        if part.maps is None or other is None or other.maps is None:
            continue
        if part.maps.radius.shape != other.maps.radius.shape:
            continue
        images += 1
        size += part.maps.predicted.numel()
        changed += int((part.maps.predicted != other.maps.predicted).sum())
        both = (part.maps.attacked & other.maps.attacked).numpy()
        for place, maps in enumerate((part.maps, other.maps)):
            columns[place].append(maps.radius.numpy()[both])
            columns[2 + place].append(maps.flip_distance.numpy()[both])
            columns[4 + place].append(maps.verdict.numpy()[both] == VIOLATED)
    if not images:
        return None
    joined = [np.concatenate(column) for column in columns]
    return Pairing(
        first=first.name,
        second=second.name,
        images=images,
        radius=(joined[0], joined[1]),
        distance=(joined[2], joined[3]),
        violated=(joined[4], joined[5]),
        classes_changed=changed,
        size=size,
    )


def _quantiles(values: Array) -> dict[str, float] | None:
    if not len(values):
        return None
    found = {str(q): float(np.quantile(values, q, method="inverted_cdf")) for q in QUANTILES}
    return found if all(math.isfinite(value) for value in found.values()) else None
