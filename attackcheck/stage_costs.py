"""What the stages of a plan cost on one image: passes, counted or rehearsed, times what a pass takes here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attackcheck.attacking import together
from attackcheck.attacks import registry
from attackcheck.attacks.plans import Stage
from attackcheck.beside import Scope
from attackcheck.claims import Claim
from attackcheck.passes import Clock, Passes, count_passes, extra_forward
from attackcheck.receptive import Windows
from attackcheck.regions import Region
from attackcheck.rehearsal import depends_on_boundaries, rehearse, usual_calls, work_on
from attackcheck.subject import Settings
from attackcheck.timing import Timing

__all__ = ["StageCost", "StageCosts"]

Model = Callable[[Tensor], Tensor]

REHEARSED, FEWEST, MOST = 6.0, 4, 48
"""Seconds that a rehearsal may take, about; and the number of its pixels, whatever it takes, at least and at most."""


@dataclass(frozen=True)
class StageCost:
    """One stage of the plan, over all images of the run."""

    attack: str
    objective: str
    calls: int
    rows: int  # in a call
    forward: float  # rows sent forward
    backward: float
    seconds: float  # of one thread
    network: float  # seconds of these inside the network

    def times(self, images: int) -> StageCost:
        """Of so many images, where this is of one."""
        return replace(
            self,
            calls=self.calls * images,
            forward=self.forward * images,
            backward=self.backward * images,
            seconds=self.seconds * images,
            network=self.network * images,
        )


class StageCosts:
    """Costs of stages on one image.

    Args:
        model: as attacks call it.
        claim: about it.
        image: ``(C, H, W)`` on the device.
        logits: ``(K, H, W)`` there.
        radius: ``(H, W)``.
        settings: of the run.
        timing: of this model at this image.
        clock: seconds.
    """

    def __init__(
        self,
        model: Model,
        claim: Claim,
        image: Tensor,
        logits: Tensor,
        radius: Tensor,
        settings: Settings,
        timing: Timing,
        clock: Clock,
    ) -> None:
        self._model, self._claim, self._image, self._logits, self._radius = model, claim, image, logits, radius
        self._settings, self._timing, self._clock = settings, timing, clock

    def of(self, stage: Stage, scope: Scope, rows: int) -> tuple[StageCost, int]:
        """One stage on one image, and the bytes of its largest call."""
        settings, place, crops = self._settings, scope.place, scope.crops
        single = stage.objective != "pixel"
        if single or registry.get(stage.attack).paired:
            place, crops = scope.size, None
        if single:
            regions = self._regions() if stage.objective == "region" else []
            sets = list(together(stage, regions, place, self._image.device.type))
            aimed, rows, budgets = sum(map(len, sets)), max(map(len, sets), default=1), 1
            calls = len(sets)
        else:
            aimed, budgets = self._aimed(stage, scope), len(stage.eps) or 1
            rows = max(1, min(rows, aimed))
            calls = math.ceil(aimed / rows) * budgets
        if aimed == 0:
            return StageCost(stage.attack, stage.objective, 0, 0, 0.0, 0.0, 0.0, 0.0), 0
        passes = count_passes(
            usual_calls(stage),
            settings,
            channels=len(self._image),
            classes=len(self._logits),
            place=place,
            rows=rows,
            crops=crops is not None,
            clock=self._clock,
        )
        if depends_on_boundaries(stage):
            passes = self._rehearsed(stage, passes, scope, place, rows, crops)
        # a single pixel is attacked in two rows
        done = aimed + int(not single and aimed % rows == 1 and settings.batch != 1)
        network = self.network(passes, place, rows)
        whole = self._timing.one(scope.size, 1)
        inside = done * budgets * network + extra_forward(stage) * aimed * budgets * whole.forward
        outside = (aimed // rows) * passes.outside(rows, math.prod(place))
        outside += passes.outside(done % rows, math.prod(place)) if done % rows else 0.0
        taken = self._timing.one(place, passes.rows(rows)).bytes * math.ceil(passes.widest * max(2, rows))
        cost = StageCost(
            attack=stage.attack,
            objective=stage.objective,
            calls=calls,
            rows=rows,
            forward=passes.forward * done * budgets,
            backward=passes.backward * done * budgets,
            seconds=inside + outside * budgets,
            network=inside,
        )
        return cost, taken

    def _rehearsed(
        self, stage: Stage, passes: Passes, scope: Scope, place: tuple[int, int], rows: int, crops: Windows | None
    ) -> Passes:
        """The same with as many passes as a few of these pixels need on this network."""
        pixels, cone = scope.pixels, None if crops is None else scope.cone
        if not len(pixels):
            return passes
        each = self.network(passes, place, rows)
        count = min(max(FEWEST, min(MOST, int(REHEARSED / max(each, 1e-9)))), rows, len(pixels))
        # evenly over all of them: they may be ordered
        chosen = pixels[torch.linspace(0, len(pixels) - 1, count).round().long()]
        work = work_on(
            self._model, self._claim, self._image, self._logits, self._radius, chosen, windows=crops, cone=cone
        )
        found = rehearse(stage, self._settings, self._model, work)
        share = found.forward / passes.forward  # the curved dummy, where all was timed, may descend more often, or less
        return replace(
            passes,
            forward=found.forward,
            backward=found.backward,
            overhead=passes.overhead * share,
            beyond=passes.beyond * share,
        )

    def network(self, passes: Passes, place: tuple[int, int], rows: int) -> float:
        """Seconds of one row of an attack inside the network."""
        one = self._timing.one(place, passes.rows(rows))
        return passes.forward * one.forward + passes.backward * one.backward

    def _aimed(self, stage: Stage, scope: Scope) -> int:
        others = [other for other in self._settings.plan.stages if other.objective == "pixel" and not other.unflipped]
        if stage.unflipped and others:
            return 0  # as a rule every pixel is flipped before
        aimed = scope.count if stage.pixels is None else min(scope.count, stage.pixels)
        target, pixels = self._settings.target, scope.pixels
        if target is not None and len(pixels):
            predicted = self._logits.argmax(dim=0).cpu()[pixels[:, 0], pixels[:, 1]]
            aimed = round(aimed * float((predicted != target).double().mean()))
        return aimed

    def _regions(self) -> list[Region]:
        found: list[Region] = []
        for request in self._settings.regions:
            found += request.resolve(self._logits.argmax(dim=0), self._radius)
        return found
