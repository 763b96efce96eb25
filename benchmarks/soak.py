"""Thousands of tiny images through the whole of `attackcheck verify`: does anything grow, or become slower?

    python benchmarks/soak.py [--images 5000] [--engine ray] [--threads 2]

The real engine, run folder and reporters (console, JSON, JUnit) examine 8x8 images one after the other. After every
tenth of them a line says what the images of this tenth took, and what the process holds: resident memory, open files,
threads. The page of `--html` keeps pictures of every image, and is left out. With Ray, CPU seconds are those of the
driver alone.
"""

import argparse
import gc
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

import attackcheck as ac
from attackcheck.attacks.plans import Plan, Stage
from attackcheck.crew import Crew
from attackcheck.engine import header_of, run
from attackcheck.events import Event, PartFinished, RunFinished
from attackcheck.identity import identity_of, listed
from attackcheck.models import exact
from attackcheck.on_ray.cluster import read_engine
from attackcheck.reporters.console import ConsoleReporter
from attackcheck.reporters.json import JsonReporter
from attackcheck.reporters.junit import JunitReporter
from attackcheck.run_folder import RunFolder
from attackcheck.subject import Settings, Subject
from attackcheck.verification import ArrayImages

SIZE = 8
PLAN = Plan(
    "soak",
    (
        Stage("linearised", "pixel", options={"classes": 2, "search": 1, "iterations": 1, "refine": 1}),
        Stage("linearised", "region", options={"descent": 2, "iterations": 1}),
        Stage("lipschitz", "map", options={"steps": 2}),
    ),
)


def held() -> tuple[float, int, int]:
    """Resident MB, open files and threads of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    files, threads = (len(os.listdir(f"/proc/self/{name}")) for name in ("fd", "task"))
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, files, threads


def events(images: int, engine: str, threads: int, folder: Path) -> Iterator[Event]:
    """A whole run, as the command line makes it."""
    model = exact.orthonormal_rows(seed=1).float()
    subject = Subject(model, ac.LipschitzClaim(1.0), {"model": "soak"})
    data = ArrayImages(torch.rand(images, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)))
    settings = Settings(PLAN, pixels=2, workers=threads, counterexamples=folder / "counterexamples")
    address, crew = read_engine(engine), None
    if address is not None:
        crew = on_ray(subject, data, settings, address, threads)
    known = listed(data)
    identity = identity_of(subject, data, settings, known)
    with (
        RunFolder(folder / "run", header_of(subject, data, settings), identity, known) as past,
        ConsoleReporter(["attackcheck", "replay"], quiet=True) as console,
    ):
        reporters = [console, JsonReporter(str(folder / "r.json")), JunitReporter(str(folder / "r.xml")), past]
        for event in run(subject, data, settings, past, crew, maps=False):
            for reporter in reporters:
                reporter(event)
            yield event


def on_ray(subject: Subject, data: ArrayImages, settings: Settings, address: str, threads: int) -> Crew:
    """The workers of a cluster."""
    from attackcheck.on_ray.crew import RayCrew
    from attackcheck.on_ray.worker import Given

    return RayCrew(subject, data, settings, Given(subject), address=address, limit=threads)


def main() -> None:
    """Print a table, and what changed from the first tenth to the last."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--engine", default="threads")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="FILE", help="also write the numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| images | CPU ms per image | ms per image | resident MB | open files | threads |")
    print("| --- | --- | --- | --- | --- | --- |")
    rows, done, report = [], 0, None
    with tempfile.TemporaryDirectory() as place:
        spent, begun = time.process_time(), time.perf_counter()
        for event in events(options.images, options.engine, options.threads, Path(place)):
            if isinstance(event, RunFinished):
                report = event.report
            if not isinstance(event, PartFinished):
                continue
            done += 1
            if done == max(1, options.images // 100):  # what is loaded late is loaded now
                spent, begun, first = time.process_time(), time.perf_counter(), done
            elif done % (options.images // 10) == 0:
                count = done - first
                cpu, wall = ((end - start) / count * 1000 for start, end in
                             ((spent, time.process_time()), (begun, time.perf_counter())))  # fmt: skip
                rows.append((done, cpu, wall, *held()))
                print("| {} | {:.2f} | {:.2f} | {:.1f} | {} | {} |".format(*rows[-1]), flush=True)
                spent, begun, first = time.process_time(), time.perf_counter(), done
        ended = time.process_time() - spent
    assert report is not None
    early, late = rows[0], rows[-1]
    print(
        f"\nlast tenth against first: CPU {late[1] / early[1] - 1:+.1%}, time {late[2] / early[2] - 1:+.1%}, "
        f"{(late[3] - early[3]) / (late[0] - early[0]) * 1000:+.1f} kB an image, {late[4] - early[4]:+d} files, "
        f"{late[5] - early[5]:+d} threads; the report took {ended:.1f} CPU s; {report.images} images, "
        f"{report.attacked_count} pixels attacked"
    )
    if options.json:
        Path(options.json).write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
