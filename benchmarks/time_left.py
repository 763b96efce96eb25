"""How right the time left of the live view is, on real runs: CPU seconds, one thread, images one after the other.

    python benchmarks/time_left.py [--network lipnet-xs] [--plan standard] [--images 2]

Prints the guess and the truth at every tenth of the run, and the largest error after the first tenth.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

import attackcheck.models
from attackcheck.attacks.plans import plan
from attackcheck.commands.sources import First
from attackcheck.engine import run
from attackcheck.events import Advanced, ImageFinished, ImageStarted, RunFinished
from attackcheck.loading import load
from attackcheck.models.datasets import load_data
from attackcheck.reporters.time_left import TimeLeft
from attackcheck.subject import Settings

SHIPPED = Path(attackcheck.models.__file__).parent / "shipped"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="isounet-xs")
    parser.add_argument("--plan", default="standard")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--pixels", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    left = TimeLeft(arguments.images)
    guesses: list[tuple[float, float]] = []
    begin, end = None, 0.0
    settings = Settings(plan=plan(arguments.plan), pixels=arguments.pixels, audit=False)
    for event in run(
        load(str(SHIPPED / f"{arguments.network}.pt")), First(load_data(None), arguments.images), settings
    ):
        now = time.process_time()
        match event:
            case ImageStarted():
                begin = now if begin is None else begin
                left.started(event.image, event.attacks, now)
            case Advanced():
                left.advanced(event.image, event.attack, now)
            case ImageFinished():
                left.finished(event.image, now)
            case RunFinished():
                end = now
            case _:
                continue
        guess = left.seconds(now)
        if guess is not None and begin is not None and not isinstance(event, RunFinished):
            guesses.append((now, guess))
    whole = end - (begin or 0.0)
    print(f"{arguments.network}, plan {arguments.plan}, {arguments.images} images: {whole:.1f} CPU s")
    print("done  left (s)  guess (s)  error")
    tenth, worst = 1, 0.0
    for now, guess in guesses:
        done = 1 - (end - now) / whole
        if not 0.1 <= done <= 0.95:  # at the very end there is nothing left to be wrong about
            continue
        error = guess / (end - now) - 1
        worst = max(worst, abs(error))
        if done >= tenth / 10:
            print(f"{done:4.0%}  {end - now:8.1f}  {guess:9.1f}  {error:+5.0%}")
            tenth = int(done * 10) + 1
    print(f"largest error from 10 % to 95 %: {worst:.0%}")


if __name__ == "__main__":
    main()
