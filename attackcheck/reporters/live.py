"""What a terminal shows while a run works: progress, time left, the worst ratio, every attack, how tight it gets."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from attackcheck.events import Advanced, ImageFinished, ImageStarted
from attackcheck.reporters.tables import counted
from attackcheck.reporters.time_left import TimeLeft

__all__ = ["LiveView", "duration", "histogram"]

BLOCKS = " ▁▂▃▄▅▆▇█"


class LiveView:
    """A few lines at the bottom of a terminal. Events go in; it draws itself anew a few times a second.

    Args:
        console: a terminal.
        images: how many images this run examines.
        clock: seconds.
    """

    def __init__(self, console: Console, images: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._begin = clock()
        self._images = images
        self._left = TimeLeft(images)
        self._planned: Counter[str] = Counter()
        self._done: Counter[str] = Counter()
        self._finished = 0
        self._now: dict[int, str] = {}  # what each image under way is attacked with
        self._bins: dict[int, tuple[int, ...]] = {}
        self._finished_bins: tuple[int, ...] = ()  # of all images that are done
        self._worst = 0.0
        self.violations = 0
        self._live = Live(get_renderable=self.render, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        self._live.stop()

    def skipped(self) -> None:
        """One image was done before."""
        self._left.skipped()
        self._finished += 1

    def __call__(self, event: ImageStarted | Advanced | ImageFinished) -> None:
        """Take in what happened."""
        now = self._clock()
        match event:
            case ImageStarted():
                self._left.started(event.image, event.attacks, now)
                self._planned.update(event.attacks)
                self._now[event.image] = event.name
            case Advanced():
                self._left.advanced(event.image, event.attack, now)
                self._done[event.attack] += 1
                self._now[event.image] = event.attack
                self._worst = max(self._worst, event.worst)
                self._bins[event.image] = event.tightness
            case ImageFinished():
                self._left.finished(event.image, now)
                self._now.pop(event.image, None)
                if event.image in self._bins:
                    self._finished_bins = tuple(_summed([self._finished_bins, self._bins.pop(event.image)]))
                self._finished += 1

    def render(self) -> RenderableType:
        """The lines."""
        width = self._console.width
        return Group(self._first(), self._attacks(width), self._tightness())

    def _first(self) -> RenderableType:
        now = self._clock()
        left = self._left.seconds(now)
        head = Table.grid(padding=(0, 1), expand=True)
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True, justify="right")
        said = f"{duration(now - self._begin)}" + ("" if left is None else f", {duration(left)} left")
        where = f"{self._finished}/{self._images} images"
        head.add_row(
            Text(where, "bold"),
            ProgressBar(total=1.0, completed=self._left.share),
            Text(f"{self._left.share:4.0%} {said}"),
        )
        return head

    def _attacks(self, width: int) -> RenderableType:
        """Calls done and planned of every attack, and what is being done."""
        running = set(self._now.values())
        line = Text(no_wrap=False)
        for name, planned in self._planned.items():
            style = "bold" if name in running else "dim" if self._done[name] == 0 else ""
            part = Text(f"{name} {self._done[name]}/{planned}", style)
            gap = 2 if len(line) else 0
            last = len(line.plain.rpartition("\n")[2])
            if gap and last + gap + len(part) > width:
                line.append("\n")
                gap = 0
            line.append(" " * gap)
            line.append_text(part)
        return line

    def _tightness(self) -> RenderableType:
        """The largest ratio, and how many pixels are how tight."""
        bins = _summed([self._finished_bins, *self._bins.values()])
        worst = Text(f"worst r/d {self._worst:.4f}", "bold red" if self._worst > 1 else "bold")
        found = Text(counted(self.violations, "violation"), "bold red" if self.violations else "")
        line = Text.assemble(worst, "  ", found)
        if any(bins):
            line.append("  0 ")
            line.append_text(histogram(bins))
        return line


def _summed(rows: Iterable[tuple[int, ...]]) -> list[int]:
    return [sum(column) for column in zip(*filter(None, rows), strict=True)]


def histogram(bins: list[int]) -> Text:
    """Counts as bars of one character each; the last one, of violations, stands apart behind the 1."""
    top = max(bins)
    bars = ["".join(BLOCKS[-(-count * 8 // top)] for count in part) for part in (bins[:-1], bins[-1:])]
    return Text.assemble((bars[0], "cyan"), " 1 ", (bars[1] if bins[-1] else "", "bold red"))


def duration(seconds: float) -> str:
    """Such as 8 s, 2:05 or 1:10:00."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
