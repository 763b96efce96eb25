"""Sheets of several runs read back, and the few tables that say what all of them amount to."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from .report import Sheet
from .tape import Result

__all__ = ["digest", "joined"]

Table = list[list[str]]


def joined(paths: Sequence[Path]) -> tuple[list[Sheet], dict[str, str]]:
    """The sheets of runs that `peers.py --json` wrote, each named for its run, and how they were made."""
    sheets: list[Sheet] = []
    head: dict[str, str] = {}
    for number, path in enumerate(paths, 1):
        content = json.loads(path.read_text(encoding="utf-8"))
        words = shlex.split(content["command"])
        seed = words[words.index("--seed") + 1] if "--seed" in words else "0"
        run = (", papers' budgets" if content["budgets"] == "full" else "") + (f", seed {seed}" if seed != "0" else "")
        for sheet in content["sheets"]:
            kept = {field.name: sheet[field.name] for field in fields(Sheet) if field.name != "around"}
            kept["around"] = tuple(sheet["around"]) if sheet.get("around") else None  # runs of old know none
            kept["results"] = [_result(result) for result in sheet["results"]]
            kept["row"] = None if sheet["row"] is None else tuple(sheet["row"])
            told = Sheet(**kept)
            kind = ", regions" if told.unit == "region" and "region" not in told.subject else ""
            sheets.append(replace(told, subject=f"{told.subject}{kind}{run}"))
        head[f"run {number}, {content['date']}"] = f"`{_typed(words)}`"
        head |= {key: content[key] for key in ("machine", "versions")}
    return sheets, head


def _typed(words: Sequence[str]) -> str:
    """The command line, without where its output went and where files of that machine lay."""
    outputs = ("--json", "--markdown", "--plot")
    kept = [word for i, word in enumerate(words) if word not in outputs and (not i or words[i - 1] not in outputs)]
    named = [word if word.startswith("benchmarks/") else re.sub(r"(^|:)/\S*/", r"\1", word) for word in kept]
    return shlex.join(named)


def _result(content: dict[str, Any]) -> Result:
    return Result(**{**content, "distance": [math.inf if d is None else d for d in content["distance"]]})


def digest(sheets: Sequence[Sheet]) -> str:
    """Markdown: strength and time on pixels, then regions, then images; a table without a sheet is left out."""
    parts = []
    for unit, tables in (("pixel", (_strength, _times, _short)), ("region", (_regions,)), ("image", (_images,))):
        chosen = [sheet for sheet in sheets if sheet.unit == unit]
        parts += [lines for table in tables for lines in _markdown(table(chosen))] if chosen else []
    return "\n".join(parts)


def _markdown(table: Table) -> Iterator[str]:
    for number, row in enumerate(table):
        yield "| " + " | ".join(row) + " |"
        if not number:
            yield "| " + " | ".join("---" for _ in row) + " |"
    yield ""


def _strength(sheets: Sequence[Sheet]) -> Table:
    """How far mean tightness is behind the best of all peers for each pixel, and of all contestants."""
    table = [["behind the best of all peers for each pixel", "pixels", "quick", "standard, first stage", "standard",
              "thorough", "nearest single peer", "standard behind all, ours included", "ms, first stage"]]  # fmt: skip
    standard = "attackcheck standard"
    for sheet in sheets:
        tight = sheet.tightness()
        names = [result.contestant for result in sheet.results]
        peers = [i for i, result in enumerate(sheet.results) if result.kind != "ours"]
        if not peers:
            continue
        best, everybody = tight[peers].max(axis=0).mean(), tight.max(axis=0).mean()
        behind = dict(zip(names, 100 * (1 - tight.mean(axis=1) / best), strict=True))
        nearest = min((names[i] for i in peers), key=behind.__getitem__)
        spent = {result.contestant: result.milliseconds for result in sheet.results}
        plans = ("attackcheck quick", f"{standard}, linearised", standard, "attackcheck thorough")
        cells = [f"{behind[name]:+.1f} %" if name in behind else "" for name in plans]
        last = 100 * (1 - tight[names.index(standard)].mean() / everybody) if standard in names else None
        table.append(
            [
                sheet.subject,
                str(len(sheet.radius)),
                *cells,
                f"{nearest} {behind[nearest]:+.1f} %",
                "" if last is None else f"{last:.1f} %",
                f"{spent[plans[1]]:.0f}" if plans[1] in spent else "",
            ]
        )
    return table


def _times(sheets: Sequence[Sheet]) -> Table:
    """For each peer, how many times as long it takes as the cheapest of ours that is at least as tight."""
    rows = [{row["attack"]: row for row in sheet.table() if row["ours as tight"]} for sheet in sheets]
    table = [["time over that of our cheapest as tight", *(sheet.subject for sheet in sheets)]]
    for name in dict.fromkeys(name for row in rows for name in row):
        table.append([name, *(_slower(row[name]) if name in row else "" for row in rows)])
    return table


def _short(sheets: Sequence[Sheet]) -> Table:
    """Where a peer, one pixel at a time, takes less than ten times as long: what a tenth of its time would pay for."""
    table = [["less than ten times as long", "peer", "times", "its passes", "passes that a tenth of its time pays for",
              "passes of ours as tight", "which"]]  # fmt: skip
    for sheet in sheets:
        rows = {row["attack"]: row for row in sheet.table()}
        for name, row in rows.items():
            times, rival = row["times slower"], row["ours as tight"]
            if times is None or times >= 10 or "(" in name:
                continue
            own = rows[f"attackcheck {rival}"]
            passes = own["forward"] + own["backward"]
            theirs = row["forward"] + row["backward"]
            affordable = f"{passes * times / 10:.1f}"
            table.append([sheet.subject, name, f"{times:.1f}", f"{theirs:.0f}", affordable, f"{passes:.0f}", rival])
    return table


def _slower(row: dict[str, Any]) -> str:
    return "none" if row["times slower"] is None else f"{row['times slower']:.1f}"


def _regions(sheets: Sequence[Sheet]) -> Table:
    """For each of ours and each peer, on how many regions it is shorter and how much of the peer's time it takes."""
    peers = list(dict.fromkeys(r.contestant for sheet in sheets for r in sheet.results if r.kind != "ours"))
    table = [["shorter on, in this part of its time", "attack", "tightness", "ms", *peers]]
    for sheet in sheets:
        found = {result.contestant: result for result in sheet.results}
        tight = dict(zip(found, sheet.tightness().mean(axis=1), strict=True))
        for name, own in found.items():
            cells = []
            for peer in peers:
                rival = found.get(peer)
                if rival is None or own.kind != "ours":
                    cells.append("")
                    continue
                wins = sum(a < b for a, b in zip(own.distance, rival.distance, strict=True))
                cells.append(f"{wins} of {len(own.distance)}, {own.milliseconds / rival.milliseconds:.2f}")
            label = name.removeprefix("attackcheck ")
            table.append([sheet.subject, label, f"{tight[name]:.4f}", f"{own.milliseconds:.0f}", *cells])
    return table


def _images(sheets: Sequence[Sheet]) -> Table:
    """Pixels that keep their class, on average over the images."""
    table = [["unchanged pixels", "guided", "our best PGD", "best peer", "fewer than that peer", "ms, guided",
              "ms, that peer"]]  # fmt: skip
    for sheet in sheets:
        kept = {result.contestant: float(np.mean(result.distance)) for result in sheet.results}
        spent = {result.contestant: result.milliseconds for result in sheet.results}
        guided, pgd = "attackcheck guided", [name for name in kept if name.startswith("attackcheck pgd")]
        peers = [result.contestant for result in sheet.results if result.kind != "ours"]
        if guided not in kept or not pgd or not peers:
            continue
        ours, theirs = min(pgd, key=kept.__getitem__), min(peers, key=kept.__getitem__)
        table.append(
            [
                sheet.subject,
                f"{kept[guided]:.0f}",
                f"{kept[ours]:.0f} ({ours.removeprefix('attackcheck ')})",
                f"{kept[theirs]:.0f} ({theirs})",
                f"{100 * (1 - kept[guided] / kept[theirs]):.1f} %",
                f"{spent[guided]:.0f}",
                f"{spent[theirs]:.0f}",
            ]
        )
    return table
