"""Single pixels: our attacks and the libraries', each on the same windows, recorded by the same tape."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attackcheck.attacking import usual_rows
from attackcheck.attacks import PixelFlip, registry
from attackcheck.attacks.plans import Stage, plan
from attackcheck.attacks.views import PixelView
from attackcheck.subject import Settings

from .classifiers import Peer, Sight
from .libraries import fenced
from .subjects import Pixel, Subject
from .tape import Clock, Result, Tape, judged

__all__ = ["OURS", "Own", "largest_group", "narrowed", "run_ours", "run_peer", "run_stages"]


@dataclass(frozen=True)
class Own:
    """Attacks of ours that run one after the other."""

    budget: str
    stages: tuple[Stage, ...]


def _pixel_stages(name: str) -> tuple[Stage, ...]:
    return tuple(s for s in plan(name).stages if s.objective == "pixel" and registry.get(s.attack).flips)


def _turns(count: int, classes: int, anew: int = 0) -> Stage:
    options = {"classes": classes, "search": 1, "iterations": count, "refine": 1}
    return Stage("linearised", options={**options, "anew": anew} if anew else options)


def _scouted(**more: object) -> Stage:
    return Stage("linearised", options={"classes": 4, "rays": 2, "search": 1, "refine": 4, **more})


OURS = {
    "one ray": Own("runner-up alone", (Stage("linearised", options={"classes": 1, "iterations": 0}),)),
    "one point": Own("of that ray", (_turns(0, classes=1),)),
    "one look": Own(
        "at that point", (Stage("linearised", options={"classes": 1, "search": 1, "iterations": 0, "refine": 0}),)
    ),
    **{f"1 turn of {n}": Own("towards the nearest of so many classes", (_turns(1, classes=n),)) for n in (1, 2, 3)},
    "rays": Own("all classes", (Stage("linearised", options={"classes": 20, "rays": 20, "iterations": 0}),)),
    **{f"{n} turns": Own("towards the runner-up", (_turns(n, classes=1),)) for n in (2, 3, 4)},
    **{f"{n} turns of 2": Own("the nearer of two classes", (_turns(n, classes=2),)) for n in (2, 3, 4)},
    **{
        f"{n} turns of 3": Own("the nearest of three classes", (_turns(n, classes=3),))
        for n in (2, 3, 5, 6, 8, 16, 18, 32)
    },
    "16 turns searched": Own(
        "after two looks along the ray", (Stage("linearised", options={**_turns(16, classes=3).options, "search": 2}),)
    ),
    "5 turns anew": Own("of three, 8 where it began anew", (_turns(5, classes=3, anew=8),)),
    "12 turns anew": Own("of three, 16 where it began anew", (_turns(12, classes=3, anew=16),)),
    "crossed": Own("rays, scouts and two crossings, no leaps", (_scouted(scouts=4, crossings=2),)),
    "one leap": Own("rays, scouts, a leap of 100 steps, crossings", (_scouted(scouts=2, leaps=(100,), crossings=1),)),
    "quick": Own("the plan's pixel stages", _pixel_stages("quick")),
    "standard, linearised": Own("the plan's first stage", _pixel_stages("standard")[:1]),
    "standard": Own("the plan's pixel stages", _pixel_stages("standard")),
    "thorough, linearised": Own("the plan's first two stages", _pixel_stages("thorough")[:2]),
    "thorough": Own("the plan's pixel stages", _pixel_stages("thorough")),
    "ddn": Own("defaults", (Stage("ddn"),)),
    "fmn": Own("defaults", (Stage("fmn"),)),
    "fmn of 10": Own(
        "10 steps, 13 turns", (Stage("fmn", options={"steps": 10, "turns": 13, "classes": 2, "refine": 1}),)
    ),
    "cw": Own("defaults", (Stage("cw"),)),
}
FULL = 1024, 2048
"""Height and width of images of which ours attack as many crops in a call as the engine would."""


@dataclass
class Group:
    """Pixels whose windows have one shape, with the tape that watches them."""

    members: list[int]
    windows: Tensor  # (B, C, h, w)
    tape: Tape


def _groups(
    subject: Subject, members: Sequence[int], size: int | None, *, alike: bool, around: bool
) -> Iterator[Group]:
    """Groups of at most `size` pixels (None: what fits); with `alike` the pixel is at one place in all windows.

    With `around` the network is computed around the pixels only, where it can be.
    """
    sorted_by: dict[tuple[int, ...], list[int]] = {}
    for i in members:
        pixel = subject.pixels[i]
        crop = pixel.crop
        key: tuple[int, ...] = (crop.bottom - crop.top, crop.right - crop.left)
        sorted_by.setdefault((*key, *(_place(pixel) if alike else ())), []).append(i)
    for key, indices in sorted_by.items():
        step = size or usual_rows(Settings(plan("quick")), FULL, (key[0], key[1]))
        for start in range(0, len(indices), step):
            part = indices[start : start + step]
            pixels = [subject.pixels[i] for i in part]
            windows = torch.stack([p.crop.cut(subject.images[p.image]) for p in pixels])
            rows, columns = torch.tensor([_place(p) for p in pixels]).T
            cone = subject.cone(windows[0]) if around else None
            yield Group(part, windows, Tape(subject.model, windows, rows, columns, cone))


def largest_group(subject: Subject) -> int:
    """How many pixels a library could be given at once: those at one place of their windows."""
    everyone = range(len(subject.pixels))
    groups = _groups(subject, everyone, len(everyone), alike=True, around=False)
    return max((len(group.members) for group in groups), default=0)


def narrowed(subject: Subject) -> bool:
    """Whether the network can be computed around the pixels only."""
    return all(subject.cone(pixel.crop.cut(subject.images[pixel.image])) is not None for pixel in subject.pixels)


def _place(pixel: Pixel) -> tuple[int, int]:
    return pixel.row - pixel.crop.top, pixel.column - pixel.crop.left


class _Sum:
    """Costs and points of a contestant, pixel by pixel."""

    def __init__(self, subject: Subject, name: str, kind: str, budget: str) -> None:
        count = len(subject.pixels)
        self._subject, self._points = subject, [None] * count
        self._best = [math.inf] * count
        self.result = Result(name, kind, budget, [], 0.0, 0.0, 0.0)

    def add(self, group: Group, milliseconds: float) -> None:
        for place, i in enumerate(group.members):
            distance = float(group.tape.distance[place])
            if distance < self._best[i]:
                self._best[i], self._points[i] = distance, group.tape.point[place].clone()
        count = len(self._subject.pixels)
        self.result.forward += group.tape.forward / count
        self.result.backward += group.tape.backward / count
        self.result.milliseconds += milliseconds / count

    def found(self, i: int) -> bool:
        """Whether the pixel has been seen flipped."""
        return self._best[i] < math.inf

    def close(self, *, around: bool) -> Result:
        self.result.around = around
        self.result.distance = judged(self._subject, self._subject.pixels, self._points)
        return self.result


def run_ours(subject: Subject, name: str) -> Result:
    """Our contestant of this name on all pixels of the subject, as many at once as the engine would take."""
    return run_stages(subject, f"attackcheck {name}", OURS[name])


def run_stages(subject: Subject, label: str, own: Own) -> Result:
    """Stages of ours under any name, as :func:`run_ours` runs those of a contestant."""
    total = _Sum(subject, label, "ours", own.budget)
    for warm in (True, False):
        for stage in own.stages:
            attack = registry.get(stage.attack)
            per_image: dict[int, int] = {}
            members = []
            for i, pixel in enumerate(subject.pixels):
                per_image[pixel.image] = per_image.get(pixel.image, 0) + 1
                settled = stage.unflipped and (warm or total.found(i))
                if not settled and (stage.pixels is None or per_image[pixel.image] <= stage.pixels):
                    members.append(i)
            for group in _groups(subject, members[: 2 if warm else None], None, alike=False, around=True):
                tape = group.tape
                tape.ordered = "." not in stage.attack
                objective = PixelFlip(tape.rows, tape.columns, loss=stage.loss)
                tape.forward = tape.backward = 0
                with fenced(0):
                    clock = Clock()
                    attack.function(tape, group.windows, objective, **dict(stage.options))
                    spent = clock.milliseconds()
                if not warm:
                    total.add(group, spent)
    return total.close(around=True)


def run_peer(
    subject: Subject, peer: Peer, *, full: bool, batch: int = 1, around: bool = False, seed: int = 0
) -> Result:
    """A library's attack on all pixels, `batch` at once where windows and places in them agree.

    With `around` it is given the network around its pixel, as ours are. An attack that raises is counted in `failures`,
    with what it had shown until then.
    """
    label = peer.name + (" (batched)" if batch > 1 else "") + (" (around)" if around else "")
    total = _Sum(subject, label, peer.library, peer.budget(full))
    everyone = list(range(len(subject.pixels)))
    for warm in (True, False):
        for group in _groups(subject, everyone[:1] if warm else everyone, batch, alike=True, around=around):
            sight = _sight(group, full=False if warm else full)
            group.tape.forward = group.tape.backward = 0
            with fenced(seed):
                clock = Clock()
                try:
                    points = peer.run(sight)
                    with torch.no_grad():  # most never look at the point where they stop
                        for point in points if isinstance(points, list) else [points]:
                            sight.view(point)
                except Exception as error:
                    failures, kind = total.result.failures, f"{type(error).__name__}: {error}"[:200]
                    failures[kind] = failures.get(kind, 0) + (not warm) * len(group.members)
                spent = clock.milliseconds()
            if not warm:
                total.add(group, spent)
    total.result.failures = {kind: count for kind, count in total.result.failures.items() if count}
    return total.close(around=around)


def _sight(group: Group, *, full: bool) -> Sight:
    """The group as a classifier: constant place, logits scaled to a margin of 12, a box that nobody runs into."""
    tape, windows = group.tape, group.windows
    points = windows.clone().requires_grad_()
    tape.ordered = True
    logits = tape(points)[torch.arange(len(windows)), :, tape.rows, tape.columns]  # (B, K)
    order = logits.argsort(dim=1, descending=True)
    label, distance = order[:, 0], torch.full((len(windows),), math.inf)
    own = logits.gather(1, label[:, None])[:, 0]
    for rank in range(1, min(4, logits.shape[1])):
        margin = own - logits.gather(1, order[:, rank : rank + 1])[:, 0]
        (slope,) = torch.autograd.grad(margin.sum(), points, retain_graph=True)
        distance = torch.minimum(distance, margin.detach() / slope.flatten(1).norm(dim=1).clamp_min(1e-30))
    margins = (own - logits.gather(1, order[:, 1:2])[:, 0]).detach()
    reach = float(distance.max())
    low = float(windows.min()) - max(0.25, 4 * reach)
    high = float(windows.max()) + max(0.25, 4 * reach)
    scale = 12 / max(float(margins.median()), 1e-12)
    row, column = int(tape.rows[0]), int(tape.columns[0])
    view = PixelView(tape, row, column, box=(low, high), scale=scale, dtype=windows.dtype).eval()
    tape.ordered = len(windows) == 1
    seen = view.enter(windows).clamp(0, 1)
    unit = 1 / (high - low)
    return Sight(
        view, seen, label, float(distance.median()) * unit, scale * float(margins.median()), logits.shape[1], full
    )
