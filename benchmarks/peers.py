"""Our attacks against those of foolbox, torchattacks and adv-lib: the same networks, images, pixels and recorder.

    python benchmarks/peers.py [--full] [--subjects trial,affine] [--only "attackcheck,adv-lib FAB"]
        [--kinds pixel,region,image] [--pixels N] [--json FILE] [--markdown FILE] [--plot FILE.png]
    python benchmarks/peers.py --join FILE.json ... [--markdown FILE] [--plot FILE.png]

See benchmarks/README.md for the environment, what the columns mean and how each library is run. One thread; times are
CPU milliseconds of this process, network and recorder included, after a warm-up. Exit code 2 for bad arguments.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parent))  # the interpreter leaves it out when asked for safe paths

from yardstick import imagewise, pixelwise, regionwise
from yardstick.classifiers import PEERS
from yardstick.digest import digest, joined
from yardstick.floor import Peak, network_passes
from yardstick.libraries import installed
from yardstick.report import Sheet, picture, printed, written
from yardstick.subjects import NAMES, Subject, subject

from attackcheck.allocator import keep_freed

LIBRARIES = {"foolbox": "foolbox", "torchattacks": "torchattacks", "adv_lib": "adv-lib"}
QUICK = ("trial", "affine", "isounet-xs")
FEW_PASSES = ("foolbox DeepFool", "torchattacks DeepFool", "adv-lib DeepFool", "adv-lib SuperDeepFool")


def main() -> None:
    """Run what the command line asks for."""
    arguments = _arguments()
    if arguments.join:
        try:
            told, made = joined(arguments.join)
        except (OSError, ValueError, KeyError, TypeError) as error:
            print(f"peers.py: expected files that --json wrote, got {error!r}", file=sys.stderr)
            sys.exit(2)
        report = f"{digest(told)}\n{written(told, made)}\n"
        if arguments.markdown is None:
            print(report)
        else:
            arguments.markdown.write_text(report, encoding="utf-8")
        if arguments.plot is not None:
            picture(told, arguments.plot)
        return
    torch.set_num_threads(1)
    keep_freed()  # as the command does, for both sides
    console = Console(width=150)
    sheets = []
    for sheet in _sheets(arguments, console):
        sheets.append(sheet)
        console.print(printed(sheet))
        if sheet.unit == "region":
            console.print(sheet.wins())
        # written after each sheet: a run of hours that is cut off has told what it knew
        head = _head(arguments)
        if arguments.json is not None:
            content = {**head, "sheets": [sheet.to_dict() for sheet in sheets]}
            arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        if arguments.markdown is not None:
            arguments.markdown.write_text(written(sheets, head) + "\n", encoding="utf-8")
        if arguments.plot is not None:
            picture(sheets, arguments.plot)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all subjects, the papers' budgets: hours")
    parser.add_argument("--subjects", help=f"among {', '.join(NAMES)}; {', '.join(QUICK)} by default")
    parser.add_argument("--only", help="beginnings of names of attacks, all by default")
    parser.add_argument("--kinds", default="pixel,region,image", help="pixel, region, image")
    parser.add_argument("--pixels", type=int, help="in all: 24 on the trial network, else 4, or 24 with --full")
    parser.add_argument("--images", type=int, help="that the pixels are spread over")
    parser.add_argument("--regions", type=int, help="in all: 2, or 8 with --full")
    parser.add_argument("--batch", type=int, default=1, help="pixels per call of a library where windows agree")
    parser.add_argument("--no-crops", action="store_true", help="whole images instead of windows of what a pixel sees")
    parser.add_argument("--checkpoint", type=Path, help="of the subject photos: attackcheck train --data folder:DIR")
    parser.add_argument("--data", help="images of the subject photos")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    parser.add_argument("--join", type=Path, nargs="+", metavar="FILE", help="attack nothing: sum up what --json wrote")
    arguments = parser.parse_args()
    photos = arguments.checkpoint is not None and arguments.data is not None
    default = tuple(name for name in NAMES if name != "photos" or photos) if arguments.full else QUICK
    arguments.subjects = tuple(arguments.subjects.split(",")) if arguments.subjects else default
    for name in arguments.subjects:
        if name not in NAMES:
            parser.error(f"expected subjects among {', '.join(NAMES)}, got {name!r}")
    known = [*(f"attackcheck {own}" for own in pixelwise.OURS), *PEERS]
    for part in arguments.only.split(",") if arguments.only and arguments.kinds == "pixel" else ():
        if not any(name.startswith(part.strip()) for name in known):
            parser.error(f"expected beginnings of names such as {', '.join(known)}, got {part.strip()!r}")
    if "photos" in arguments.subjects and not photos:
        parser.error("the subject photos needs --checkpoint and --data")
    return arguments


def _head(arguments: argparse.Namespace) -> dict[str, str]:
    versions = []
    for name in ("torch", "foolbox", "torchattacks", "adv-lib"):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"no {name}")
    return {
        "command": shlex.join(["python", "benchmarks/peers.py", *sys.argv[1:]]),
        "date": f"{datetime.now():%Y-%m-%d %H:%M}",
        "machine": f"{platform.machine()}, one thread, CPU milliseconds",
        "versions": ", ".join(versions),
        "budgets": "full" if arguments.full else "quick",
    }


def _wanted(arguments: argparse.Namespace, name: str) -> bool:
    return arguments.only is None or any(name.startswith(part.strip()) for part in arguments.only.split(","))


def _sheets(arguments: argparse.Namespace, console: Console) -> Iterator[Sheet]:
    missing = [title for module, title in LIBRARIES.items() if not installed(module)]
    if missing:
        console.print(f"not installed, so left out: {', '.join(missing)} (see benchmarks/README.md)")
    kinds, peak = arguments.kinds.split(","), Peak.measured()
    console.print(f"{peak}; the floor of a contestant: its passes at this peak")
    for name in arguments.subjects:
        many = arguments.full or name == "trial"
        pixels = arguments.pixels or (24 if many else 4)
        began = time.process_time()
        given = subject(
            name,
            images=arguments.images or (4 if arguments.full else 2),
            pixels=pixels,
            seed=arguments.seed,
            crops=not arguments.no_crops,
            checkpoint=arguments.checkpoint,
            data=arguments.data,
        )
        console.print(f"{name}: {given.note} ({time.process_time() - began:.0f} s to prepare)")
        if "pixel" in kinds:
            results = []
            for own in pixelwise.OURS:
                if _wanted(arguments, f"attackcheck {own}"):
                    results.append(pixelwise.run_ours(given, own))
            for peer in PEERS.values():
                named = arguments.only is not None or arguments.full or not peer.slow
                if installed(peer.library) and named and _wanted(arguments, peer.name):
                    size = min(arguments.batch, pixelwise.largest_group(given))
                    # those that stop after a few passes are also given what ours have
                    ways = [(batch, False) for batch in sorted({1, size})]
                    if peer.name in FEW_PASSES and pixelwise.narrowed(given):
                        ways.append((1, True))
                    for batch, around in ways:
                        print(f"  {peer.name}, {batch} at once", file=sys.stderr, flush=True)
                        results.append(
                            pixelwise.run_peer(
                                given, peer, full=arguments.full, batch=batch, around=around, seed=arguments.seed
                            )
                        )
            note = f"{given.note}; windows {_windows(given)}"
            rows = [_floor(peak, given, windows=True, around=around) for around in (False, True)]
            yield Sheet(
                name, note, [p.radius for p in given.pixels], given.certified, results, row=rows[0], around=rows[1]
            )
        for kind, room in (("region", regionwise), ("image", imagewise)):
            if kind in kinds:
                count = arguments.regions or (8 if arguments.full else 2)
                for sheet in room.sheets(given, arguments.full, count, arguments.seed, lambda n: _wanted(arguments, n)):
                    yield replace(sheet, row=_floor(peak, given, windows=False))


def _floor(peak: Peak, given: Subject, *, windows: bool, around: bool = False) -> tuple[float, float]:
    """Milliseconds of a row at the machine's peak, forward and backward: of a window, on average, or a whole image."""
    seen = [pixel.crop.cut(given.images[pixel.image]) for pixel in given.pixels] if windows else [given.images[0]]
    sizes = {tuple(part.shape): part for part in seen}
    counts = Counter(tuple(part.shape) for part in seen)
    both = [0.0, 0.0]
    for size, part in sizes.items():
        cone = given.cone(part) if around else None
        middle = [torch.tensor([side // 2]) for side in size[1:]]
        model = given.model if cone is None else cone.at(*middle)[0]
        for way, work in enumerate(network_passes(model, part, many=True)):
            both[way] += 1e3 * peak.seconds(work) * counts[size] / len(seen)
    return both[0], both[1]


def _windows(given: object) -> str:
    sizes = {(p.crop.bottom - p.crop.top, p.crop.right - p.crop.left) for p in given.pixels}  # type: ignore[attr-defined]
    return ", ".join(f"{h}x{w}" for h, w in sorted(sizes))


if __name__ == "__main__":
    main()
