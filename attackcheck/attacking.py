"""Units of work: one attack call on a few pixels, a region or a whole image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attackcheck.attacks import registry
from attackcheck.attacks._refine import bisect
from attackcheck.attacks.objectives import ImageFlip, Objective, PixelFlip, RegionFlip
from attackcheck.attacks.plans import Stage
from attackcheck.claims import Claim
from attackcheck.probe import Probe
from attackcheck.recheck import Scene, Verdict
from attackcheck.regions import Region
from attackcheck.report import RegionResult
from attackcheck.selection import seed_of
from attackcheck.subject import Model, Settings
from attackcheck.tally import Tally

__all__ = ["Attacker", "ImageWork", "Unit"]

SLOT_BYTES = 2**28
"""Memory for the closest points of the pixels under attack; more pixels are attacked in groups."""

ROW_PIXELS = {"cpu": 2**17, "cuda": 2**22}
"""Image pixels per attack call when the batch size is not given."""


@dataclass
class ImageWork:
    """One image on its way through the attacks."""

    index: int
    name: str
    image: Tensor  # (C, H, W) on the device
    labels: Tensor | None  # (H, W) on the CPU
    logits: Tensor  # (K, H, W)
    scene: Scene
    probe: Probe
    pixels: Tensor  # (M, 2) chosen, on the CPU
    regions: Sequence[Region]
    attacked: Tensor  # (H, W) bool on the CPU: aimed at so far
    verdicts: dict[tuple[int, int], Verdict] = field(default_factory=dict)  # of pixels, where it is not HELD


@dataclass(frozen=True, eq=False)
class Unit:
    """One attack call; ``group`` are the pixels whose closest points are kept meanwhile."""

    stage: Stage
    eps: float | None
    group: Tensor
    pixels: Tensor | None = None  # (P, 2), None for sets
    region: Region | None = None
    target: int | None = None


class Attacker:
    """Runs units of work through an image's probe.

    Args:
        model: the model as deployed.
        claim: asked for a region's joint distance.
        settings: seed, target, box, plan, batch.
        tally: receives results of regions and of fixed budgets.
    """

    def __init__(self, model: Model, claim: Claim, settings: Settings, tally: Tally) -> None:
        self._model = model
        self._claim = claim
        self._settings = settings
        self._tally = tally

    def units(self, work: ImageWork) -> Iterator[Unit]:
        """All units of an image: sets first, then pixels in groups that fit the memory for points."""
        size = max(1, SLOT_BYTES // (work.image.numel() * work.image.element_size()))
        groups = torch.split(work.pixels, size)
        target = self._settings.target
        for stage in self._settings.plan.stages:
            places: Sequence[Region | None] = work.regions if stage.objective == "region" else [None]
            if stage.objective != "pixel":
                for place in places:
                    for eps in stage.eps or (None,):
                        yield Unit(stage, eps, groups[0], region=place, target=target)
        for group in groups:
            for stage in self._settings.plan.stages:
                if stage.objective != "pixel":
                    continue
                chosen = group[self.aimed(work, stage, group)]
                for eps in stage.eps or (None,):
                    for chunk in torch.split(chosen, self.rows(work)):
                        if len(chunk):
                            yield Unit(stage, eps, group, pixels=chunk, target=target)

    def aimed(self, work: ImageWork, stage: Stage, pixels: Tensor) -> Tensor:
        """Which of ``pixels`` (M, 2) a stage aims at, (M,) bool; never those that are of the target class already."""
        aimed = torch.ones(len(pixels), dtype=torch.bool)
        if stage.pixels is not None:
            sampled = torch.zeros_like(work.attacked)
            chosen = work.pixels[: stage.pixels]
            sampled[chosen[:, 0], chosen[:, 1]] = True
            aimed &= sampled[pixels[:, 0], pixels[:, 1]]
        if self._settings.target is not None:
            aimed &= work.scene.predicted[pixels[:, 0], pixels[:, 1]] != self._settings.target
        return aimed

    def rows(self, work: ImageWork) -> int:
        """Rows per attack call."""
        if self._settings.batch is not None:
            return self._settings.batch
        pixels = work.image.shape[1] * work.image.shape[2]
        return max(1, ROW_PIXELS.get(work.image.device.type, ROW_PIXELS["cpu"]) // pixels)

    def run(self, work: ImageWork, unit: Unit) -> None:
        """Run one unit; what it visits is recorded by the image's probe."""
        if unit.pixels is not None:
            self._attack_pixels(work, unit, unit.pixels)
        else:
            self._attack_set(work, unit)

    def _attack_pixels(self, work: ImageWork, unit: Unit, pixels: Tensor) -> None:
        stage, attack = unit.stage, registry.get(unit.stage.attack)
        if len(pixels) == 1:
            # Convolution libraries compute a batch of one by another algorithm; two rows agree with any larger number.
            pixels = pixels.expand(2, 2)
        seeds = [seed_of(self._settings.seed, work.index, f"{r},{c}", stage.attack) for r, c in pixels.tolist()]
        device = work.image.device
        objective = PixelFlip(pixels[:, 0].to(device), pixels[:, 1].to(device), unit.target, loss=stage.loss).bind(
            work.logits.expand(len(pixels), *work.logits.shape)
        )
        images = work.image.expand(len(pixels), *work.image.shape).contiguous()
        if not attack.flips:
            view = _PixelLogits(work.probe, objective.pixel_rows, objective.pixel_cols)
            with work.probe.attributed(stage.attack):
                attack.function(view, images, generator=_generators(seeds), **self._options(stage, unit.eps))
            return
        work.attacked[pixels[:, 0], pixels[:, 1]] = True
        with work.probe.attributed(stage.attack):
            found = attack.function(
                work.probe, images, objective, generator=_generators(seeds), **self._options(stage, unit.eps)
            )
            if not attack.refines:
                bisect(work.probe, images, found, objective)

    def _attack_set(self, work: ImageWork, unit: Unit) -> None:
        stage, region = unit.stage, unit.region
        attack = registry.get(stage.attack)
        images = work.image[None]
        name = stage.objective if region is None else region.name
        generator = _generators([seed_of(self._settings.seed, work.index, name, stage.attack)])
        options = self._options(stage, unit.eps)
        with work.probe.attributed(stage.attack):
            if not attack.flips:
                attack.function(work.probe, images, generator=generator, **options)
                return
            objective: Objective = ImageFlip(1.0, loss=stage.loss)
            if region is not None:
                objective = RegionFlip(region.mask, unit.target, region.fraction, loss=stage.loss)
            found = attack.function(work.probe, images, objective, generator=generator, **options)
            if region is not None and unit.eps is None and not attack.refines:
                found = bisect(work.probe, images, found, objective)
        with torch.no_grad():
            predicted = self._model(found)[0].argmax(dim=0).cpu()
        if region is not None:
            self._tally.regions.append(self._region_result(work, stage, region, found[0], predicted))
        elif unit.eps is not None:
            labels = None if work.labels is None else work.labels.numpy()
            self._tally.add_budget(unit.eps, stage.attack, work.scene.predicted.numpy(), predicted.numpy(), labels)

    def _region_result(
        self, work: ImageWork, stage: Stage, region: Region, found: Tensor, predicted: Tensor
    ) -> RegionResult:
        mask = region.mask.cpu()
        count, target = int(mask.sum()), self._settings.target
        reached = predicted != work.scene.predicted if target is None else predicted == target
        flipped = int((reached & mask).sum()) >= region.fraction * count * (1 - 1e-9)
        factor, joint = self._claim.joint_factor, None
        if factor is not None:
            # The claim's least cost for this share of the region: its weakest pixels.
            weakest = work.scene.radius[mask].sort().values[: math.ceil(region.fraction * count * (1 - 1e-9))]
            joint = factor * float(weakest.norm())
        distance = float((found.cpu().double() - work.scene.image.double()).norm()) if flipped else math.inf
        return RegionResult(work.index, region.name, count, region.fraction, target, joint, distance, stage.attack)

    def _options(self, stage: Stage, eps: float | None) -> dict[str, Any]:
        options: dict[str, Any] = dict(stage.options)
        if self._settings.box is not None:
            options["box"] = self._settings.box
        if eps is not None:
            options["eps"] = eps
        return options


class _PixelLogits:
    """The logits of one pixel per row, ``(B, K)``; a batch ``n`` times as long repeats each row ``n`` times."""

    def __init__(self, probe: Probe, rows: Tensor, columns: Tensor) -> None:
        self._probe, self._rows, self._columns = probe, rows, columns

    def __call__(self, images: Tensor) -> Tensor:
        logits = self._probe(images)
        times = len(images) // len(self._rows)
        rows, columns = self._rows.repeat_interleave(times), self._columns.repeat_interleave(times)
        return logits[torch.arange(len(images), device=logits.device), :, rows, columns]


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]
