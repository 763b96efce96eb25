"""How long a run will still take, from what its attack calls took."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["TimeLeft"]

USUAL: Mapping[str, float] = {
    "linearised": 2.85, "ddn": 1.35, "cw": 1.5, "cutting": 0.4, "guided": 0.25, "lipschitz": 0.65, "pairs": 0.4,
    "boundary": 0.05,
}  # fmt: skip
"""What a call of an attack costs as long as none of its calls is done: only the ratios matter.

CPU seconds of the standard plan on the network and images that ship.
"""

OTHERS = 1.6
"""The same of attacks that are not listed."""


JUDGING = 1.5
"""The same from the last call of an image to its end, as long as no image is done; of 64 pixels."""


@dataclass
class _Image:
    calls: Sequence[str]
    last: float  # when its last call ended
    done: Counter[str] = field(default_factory=Counter)


class TimeLeft:
    """Learns what a call of each attack takes, and multiplies with what is still to do.

    Images that have not begun are taken to be like those that have. All times are in seconds of any clock.

    Args:
        images: how many there are in all.
    """

    def __init__(self, images: int) -> None:
        self._total = images
        self._images: dict[int, _Image] = {}  # under way
        self._finished: Counter[str] = Counter()  # calls of those that are not
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._calls: Counter[str] = Counter()
        self._ends = 0  # images that are finished
        self._ending = 0.0  # from the last call of an image to its end, of all together: their judging
        self._begin: float | None = None
        self._skipped = 0

    def skipped(self) -> None:
        """One image was done before."""
        self._skipped += 1

    def started(self, image: int, calls: Sequence[str], now: float) -> None:
        """An image has begun, with these attacks to be called in this order."""
        self._begin = now if self._begin is None else self._begin
        self._images[image] = _Image(calls, now)

    def advanced(self, image: int, attack: str, now: float) -> None:
        """A call is done."""
        entry = self._images.get(image)
        if entry is not None:
            self._seconds[attack] += now - entry.last
            self._calls[attack] += 1
            entry.done[attack] += 1
            entry.last = now

    def finished(self, image: int, now: float) -> None:
        """An image is done."""
        entry = self._images.pop(image, None)
        if entry is not None:
            self._finished.update(entry.done)
            self._ends += 1
            self._ending += now - entry.last

    @property
    def share(self) -> float:
        """Share of the whole work that is done, by what it takes."""
        done, left = self._cost()
        return done / (done + left) if done + left > 0 else 0.0

    def seconds(self, now: float) -> float | None:
        """How long it will still take, None as long as nothing is known."""
        done, left = self._cost()
        if self._begin is None or done <= 0:
            return None
        # Several images may be under way at once, so time is not the sum of what calls take.
        return (now - self._begin) * left / done

    def _cost(self) -> tuple[float, float]:
        """What was done and what is left, in seconds of calls."""
        price = self._prices()
        end = self._ending / self._ends if self._ends else JUDGING * price.scale
        done = sum(price(name) * count for name, count in self._finished.items()) + end * self._ends
        left = 0.0
        for entry in self._images.values():
            spent = sum(price(name) * count for name, count in entry.done.items())
            whole = sum(price(name) for name in entry.calls)
            done += spent
            left += max(0.0, whole - spent) + end
        begun = len(self._images) + self._ends
        if begun:
            left += (done + left) / begun * max(0, self._total - self._skipped - begun)
        return done, left

    def _prices(self) -> _Prices:
        known = {name: self._seconds[name] / count for name, count in self._calls.items()}
        usual = sum(USUAL.get(name, OTHERS) * count for name, count in self._calls.items())
        return _Prices(known, sum(self._seconds.values()) / usual if usual else 1.0)


@dataclass(frozen=True)
class _Prices:
    known: Mapping[str, float]
    scale: float  # seconds of what a unit of the usual cost takes here

    def __call__(self, attack: str) -> float:
        return self.known.get(attack, USUAL.get(attack, OTHERS) * self.scale)
