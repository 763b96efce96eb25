"""Thousands of tiny images through the whole of `attackcheck verify`: does anything grow, or become slower?

    python benchmarks/soak.py [--images 5000] [--engine ray] [--threads 2] [--constant 1.05]

The real engine, run folder and reporters (console, JSON, JUnit) examine 8x8 images one after the other. After every
tenth of them a line says what the images of this tenth took, and what the process holds: resident memory, open files,
threads. Since a busy machine is slower, a bench of its own examines one and the same image all along: times are also
given in units of what that takes meanwhile. The page of `--html` keeps pictures of every image, and is left out. With
Ray, CPU seconds are those of the driver alone. The claim is exactly true, so that some flips are within rounding: the
report lists every one. With a larger constant there are none.
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
from attackcheck.arithmetic import exact_arithmetic
from attackcheck.attacks.plans import Plan, Stage
from attackcheck.crew import Crew
from attackcheck.engine import header_of, run
from attackcheck.events import Event, PartFinished, RunFinished
from attackcheck.examination import Bench
from attackcheck.identity import identity_of, listed
from attackcheck.models import exact
from attackcheck.on_ray.cluster import read_engine
from attackcheck.reporters.console import ConsoleReporter
from attackcheck.reporters.json import JsonReporter
from attackcheck.reporters.junit import JunitReporter
from attackcheck.run_folder import RunFolder
from attackcheck.subject import Settings, Subject
from attackcheck.tally import Tally
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


def subject_and_images(count: int, constant: float = 1.0) -> tuple[Subject, ArrayImages]:
    """A linear network whose claim is exactly true with a constant of 1, and noise."""
    subject = Subject(exact.orthonormal_rows(seed=1).float(), ac.LipschitzClaim(constant), {"model": "soak"})
    return subject, ArrayImages(torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)))


class Yardstick:
    """The same image again and again: CPU seconds."""

    def __init__(self) -> None:
        subject, data = subject_and_images(1)
        self._bench = Bench(subject, data, Settings(PLAN, pixels=2))
        self._seconds: list[float] = []
        self.measure()

    def measure(self) -> float:
        """Examine it, and say how long that took."""
        begin = time.process_time()
        with exact_arithmetic(), torch.enable_grad():
            for _ in self._bench.examine(0, Tally(255), lambda: None):
                pass
        self._seconds.append(time.process_time() - begin)
        return self._seconds[-1]

    def mean(self) -> float:
        """Since it was asked last."""
        mean, self._seconds = sum(self._seconds) / len(self._seconds), []
        return mean


def events(images: int, engine: str, threads: int, folder: Path, constant: float = 1.0) -> Iterator[Event]:
    """A whole run, as the command line makes it."""
    subject, data = subject_and_images(images, constant)
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
    parser.add_argument("--constant", type=float, default=1.0, help="that is claimed; above 1 nothing is on the edge")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| images | CPU ms per image | of the yardstick | ms per image | resident MB | open files | threads |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    rows, done, report, yardstick = [], 0, None, Yardstick()
    aside = 0.0  # CPU seconds that the yardstick took
    with tempfile.TemporaryDirectory() as place:
        spent, begun = time.process_time(), time.perf_counter()
        for event in events(options.images, options.engine, options.threads, Path(place), options.constant):
            if isinstance(event, RunFinished):
                report = event.report
            if not isinstance(event, PartFinished):
                continue
            done += 1
            if done % max(1, options.images // 200) == 0:
                aside += yardstick.measure()
            if done == max(1, options.images // 100):  # what is loaded late is loaded now
                spent, begun, first, aside = time.process_time(), time.perf_counter(), done, 0.0
                yardstick.mean()
            elif done % (options.images // 10) == 0:
                count = done - first
                cpu = (time.process_time() - spent - aside) / count * 1000
                wall = (time.perf_counter() - begun) / count * 1000
                rows.append((done, cpu, cpu / yardstick.mean() / 1000, wall, *held()))
                print("| {} | {:.2f} | {:.3f} | {:.2f} | {:.1f} | {} | {} |".format(*rows[-1]), flush=True)
                spent, begun, first, aside = time.process_time(), time.perf_counter(), done, 0.0
        ended = time.process_time() - spent
    assert report is not None
    early, late = rows[0], rows[-1]
    print(
        f"\nlast tenth against first: CPU {late[1] / early[1] - 1:+.1%}, in yardsticks {late[2] / early[2] - 1:+.1%}, "
        f"time {late[3] / early[3] - 1:+.1%}, {(late[4] - early[4]) / (late[0] - early[0]) * 1000:+.1f} kB an image, "
        f"{late[5] - early[5]:+d} files, {late[6] - early[6]:+d} threads; the report took {ended:.1f} CPU s; "
        f"{report.images} images, {report.attacked_count} pixels attacked"
    )
    if options.json:
        Path(options.json).write_text(json.dumps(rows))


if __name__ == "__main__":
    main()
