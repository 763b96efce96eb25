"""Units of work: one attack call on a few pixels, regions or budgets of an image, or on the map."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from attackcheck.attacks import registry
from attackcheck.attacks._refine import bisect
from attackcheck.attacks._rows import of_rows
from attackcheck.attacks.objectives import ImageFlip, Objective, PixelFlip, RegionFlip
from attackcheck.attacks.plans import Plan, Stage
from attackcheck.certainty import Scene
from attackcheck.claims import Claim
from attackcheck.crop_probe import CropProbe
from attackcheck.crops import Crops
from attackcheck.in_parts import InParts
from attackcheck.memory import Room
from attackcheck.parts import Example
from attackcheck.probe import Kind, Probe
from attackcheck.recheck import Verdict
from attackcheck.regions import Region
from attackcheck.report import RegionResult
from attackcheck.selection import seed_of
from attackcheck.subject import Model, Settings
from attackcheck.tally import Tally

__all__ = ["BLIND", "Aim", "Attacker", "ImageWork", "Unit", "stages_that_run", "together", "usual_rows"]

SLOT_BYTES = 2**28
"""Memory for the closest points of the pixels under attack; more pixels are attacked in groups."""

ROW_PIXELS = {"cpu": 2**16, "cuda": 2**22}
"""Image pixels per attack call when the batch size is not given; beyond them, memory is measured."""

ANY_ROWS = 2**30
"""More than any attack has."""

CROP_ROWS = 256
"""Crops per attack call at most, unless more fit into ROW_PIXELS; all together are never more than one image."""


BLIND = Stage("boundary")
"""Added for pixels whose gradient leads nowhere."""


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
    masked: Tensor  # (H, W) bool on the CPU: its gradient leads nowhere
    class_after: Tensor  # (H, W) int16 on the CPU: class at the closest point, -1 where not known
    aimed_by: dict[str, Tensor] = field(default_factory=dict)  # attack -> (H, W) bool: it was aimed at these
    crops: Crops | None = None  # None: pixels are attacked on whole images
    verdicts: dict[tuple[int, int], Verdict] = field(default_factory=dict)  # of pixels, where it is not HELD
    examples: list[tuple[float, Example]] = field(default_factory=list)  # ratio, perturbed image


@dataclass(frozen=True, eq=False)
class Aim:
    """What one row of an attack on sets is after: a region, or the image or map if there is none, within a budget."""

    region: Region | None = None
    eps: float | None = None


@dataclass(frozen=True, eq=False)
class Unit:
    """One attack call; ``group`` are the pixels whose closest points are kept meanwhile."""

    stage: Stage
    eps: float | None  # of attacks on pixels
    group: Tensor
    pixels: Tensor | None = None  # (P, 2), None for sets
    aims: Sequence[Aim] = ()  # one for each row, for sets
    target: int | None = None


class Attacker:
    """Runs units of work through an image's probe.

    Args:
        model: the model as deployed.
        claim: asked for a region's joint distance.
        settings: seed, target, box, plan, batch.
        tally: receives results of regions and of fixed budgets.
        room: knows how many rows fit into memory; that of earlier images, if there were any.
    """

    def __init__(self, model: Model, claim: Claim, settings: Settings, tally: Tally, room: Room | None = None) -> None:
        self._model = model
        self._claim = claim
        self._settings = settings
        self._tally = tally
        self.room = Room(settings.device) if room is None else room

    def units(self, work: ImageWork) -> Iterator[Unit]:
        """All units of an image: sets first, while the first group of pixels is aimed at, then :meth:`pixel_units`."""
        groups = self.groups(work, work.pixels)
        target = self._settings.target
        size, kind = (work.image.shape[1], work.image.shape[2]), work.image.device.type
        for stage in stages_that_run(self._settings.plan, self._claim):
            if stage.objective != "pixel":
                for aims in together(stage, work.regions, size, kind):
                    yield Unit(stage, None, groups[0], aims=aims, target=target)
        yield from self.pixel_units(work, groups)

    def pixel_units(self, work: ImageWork, groups: Sequence[Tensor]) -> Iterator[Unit]:
        """The units that aim at pixels, group by group."""
        target = self._settings.target
        stages = [stage for stage in self._settings.plan.stages if stage.objective == "pixel"]
        if bool(work.masked.any()):
            stages.append(BLIND)
        for group in groups:
            for stage in stages:
                chosen = group[self._aimed(work, stage, group)]
                for eps in stage.eps or (None,):
                    for chunk in torch.split(chosen, self.rows(work)):
                        if len(chunk):
                            yield Unit(stage, eps, group, pixels=chunk, target=target)

    def _aimed(self, work: ImageWork, stage: Stage, pixels: Tensor) -> Tensor:
        """Which of ``pixels`` (M, 2) a stage aims at, (M,) bool; never those that are of the target class already."""
        aimed = torch.ones(len(pixels), dtype=torch.bool)
        if stage is BLIND:
            aimed = work.masked[pixels[:, 0], pixels[:, 1]].clone()
        if stage.pixels is not None:
            sampled = torch.zeros_like(work.attacked)
            chosen = work.pixels[: stage.pixels]
            sampled[chosen[:, 0], chosen[:, 1]] = True
            aimed &= sampled[pixels[:, 0], pixels[:, 1]]
        if self._settings.target is not None:
            aimed &= work.scene.predicted[pixels[:, 0], pixels[:, 1]] != self._settings.target
        return aimed

    def rows(self, work: ImageWork) -> int:
        """Rows per attack call on pixels."""
        crop = None if work.crops is None else self.place(work)
        return usual_rows(self._settings, (work.image.shape[1], work.image.shape[2]), crop)

    def groups(self, work: ImageWork, pixels: Tensor) -> Sequence[Tensor]:
        """Pixels ``(M, 2)`` in groups that fit the memory for closest points."""
        point = len(work.image) * math.prod(self.place(work)) * work.image.element_size()
        return torch.split(pixels, max(1, SLOT_BYTES // point))

    def aim(self, work: ImageWork, pixels: Tensor) -> None:
        """Keep the closest points of these pixels ``(M, 2)`` from now on."""
        work.probe.aim(pixels[:, 0], pixels[:, 1], None if work.crops is None else work.crops.windows)

    def confirm(self, work: ImageWork) -> bool:
        """Count what was found in crops; False if the whole image shows something else, and nothing was counted."""
        return work.crops is None or work.crops.confirm()

    def aim_again(self, work: ImageWork, pixels: Tensor) -> None:
        """Attack pixels ``(M, 2)`` that were overtaken, starting with the points that showed it, as far as kept."""
        self.aim(work, pixels)
        kept = work.probe.evidence.witnesses[Kind.PIXEL]
        points = kept.point[kept.ratio > 0]
        with work.probe.attributed("linearised"), torch.no_grad():
            if work.crops is not None:
                self._show_crops(work, work.crops, points, pixels)
            elif len(points):
                work.probe(points)
        for stage in (Stage("linearised"), *([BLIND] if bool(work.masked.any()) else [])):
            for part in torch.split(pixels, self.rows(work)):
                self.run(work, Unit(stage, None, pixels, pixels=part))

    def _show_crops(self, work: ImageWork, crops: Crops, points: Tensor, pixels: Tensor) -> None:
        """Points ``(P, C, H, W)`` with the perturbation outside each pixel's crop taken away."""
        rows, columns = pixels.to(work.image.device).unbind(dim=1)
        probe = CropProbe(crops, work.probe, rows, columns)
        for point in points:
            probe(crops.windows.cut(point, rows, columns))
        probe.commit()

    def run(self, work: ImageWork, unit: Unit) -> None:
        """Run one unit; what it visits is recorded by the image's probe."""
        if unit.pixels is not None:
            self._attack_pixels(work, unit, unit.pixels)
        else:
            self._attack_set(work, unit)

    def _attack_pixels(self, work: ImageWork, unit: Unit, pixels: Tensor) -> None:
        stage = unit.stage
        if stage.unflipped:
            pixels = pixels[_never_flipped(work)[pixels[:, 0], pixels[:, 1]]]
        place = self.place(work)
        kind = (stage.attack, repr(stage), place)
        large = self._settings.batch is None and len(pixels) * math.prod(place) > _usual(work.image.device.type)
        while len(pixels):
            rest = pixels

            def attack_first(rows: int, rest: Tensor = rest) -> int:
                self._attack_rows(work, unit, rest[:rows], alone=self.room.alone(kind))
                return min(rows, len(rest))

            pixels = pixels[self.room.fitted(kind, len(pixels), attack_first, measure=large) :]

    def place(self, work: ImageWork) -> tuple[int, int]:
        """Height and width of what attacks on pixels see."""
        if work.crops is None:
            return work.image.shape[1], work.image.shape[2]
        return work.crops.windows.height, work.crops.windows.width

    def _attack_rows(self, work: ImageWork, unit: Unit, pixels: Tensor, *, alone: bool = False) -> None:
        stage, attack = unit.stage, registry.get(unit.stage.attack)
        if len(pixels) == 1 and not alone:
            # Convolution libraries compute a batch of one by another algorithm; two rows agree with any larger number.
            pixels = pixels.expand(2, 2)
        seeds = [seed_of(self._settings.seed, work.index, f"{r},{c}", stage.attack) for r, c in pixels.tolist()]
        device = work.image.device
        rows, columns = pixels[:, 0].to(device), pixels[:, 1].to(device)
        crop = None if work.crops is None or attack.paired else CropProbe(work.crops, work.probe, rows, columns)
        if crop is None:
            images = work.image.expand(len(pixels), *work.image.shape).contiguous()
            logits = work.logits.expand(len(pixels), *work.logits.shape)
            own = PixelFlip(rows, columns, unit.target, loss=stage.loss).bind(logits)
        else:
            images = crop.clean
            logits = crop.logits[:, :, None, None].expand(-1, -1, *images.shape[2:])
            own = PixelFlip(crop.inner_rows, crop.inner_columns, unit.target, loss=stage.loss).bind(logits)
        model = _seen(work.probe, attack) if crop is None else crop
        options = self._options(stage, unit.eps)
        with work.probe.attributed(stage.attack):
            try:
                if not attack.flips:
                    view = _PixelLogits(model, own.pixel_rows, own.pixel_cols)
                    attack.function(view, images, generator=_generators(seeds), **options)
                    return
                work.attacked[pixels[:, 0], pixels[:, 1]] = True
                by = work.aimed_by.setdefault(stage.attack, torch.zeros_like(work.attacked))
                by[pixels[:, 0], pixels[:, 1]] = True
                found = attack.function(model, images, own, generator=_generators(seeds), **options)
                if not attack.refines:
                    bisect(model, images, found, own)
            finally:
                if crop is not None:
                    crop.commit()

    def _attack_set(self, work: ImageWork, unit: Unit) -> None:
        """All aims of the unit side by side, or fewer and fewer of them where memory runs out."""
        kind = (unit.stage.attack, repr(unit.stage), (work.image.shape[1], work.image.shape[2]))
        aims = unit.aims
        while aims:
            rest = aims

            def attack_first(count: int, rest: Sequence[Aim] = rest) -> int:
                self._attack_aims(work, replace(unit, aims=rest[:count]), kind)
                return count

            aims = aims[self.room.fitted(("aims", *kind), len(rest), attack_first) :]

    def _attack_aims(self, work: ImageWork, unit: Unit, kind: tuple[str, str, tuple[int, int]]) -> None:
        stage = unit.stage
        attack = registry.get(stage.attack)
        asked = 1

        def attempt(rows: int) -> tuple[Tensor, Tensor | None]:
            nonlocal asked
            model = InParts(_seen(work.probe, attack), work.probe.counted, rows)
            try:
                found = self._found(work, unit, model)
            finally:
                asked = model.widest
            return found, self._predicted(found, rows) if attack.flips else None

        if len(unit.aims) > 1:
            found, predicted = attempt(ANY_ROWS)
        else:
            # how many rows an aim has is the attack's own business: where they do not fit, the model sees fewer at once
            large = self._settings.batch is None and 2 * math.prod(kind[2]) > _usual(work.image.device.type)
            found, predicted = self.room.fitted(kind, ANY_ROWS, attempt, measure=large, asked=lambda: asked)
        if predicted is None:
            return
        for aim, point, shown in zip(unit.aims, found, predicted, strict=True):
            if aim.region is not None:
                result = self._region_result(work, stage, aim.region, point, shown)
                self._tally.regions.append(result)
                _keep_region(work, result, point, shown)
            elif aim.eps is not None:
                labels = None if work.labels is None else work.labels.numpy()
                self._tally.add_budget(aim.eps, stage.attack, work.scene.predicted.numpy(), shown.numpy(), labels)

    @torch.no_grad()
    def _predicted(self, points: Tensor, rows: int) -> Tensor:
        """Classes ``(R, H, W)`` on the CPU, of so many rows at once."""
        model = InParts(self._model, self._model, rows)
        return model(points).argmax(dim=1).cpu()

    def _found(self, work: ImageWork, unit: Unit, model: Model) -> Tensor:
        """What the attack on sets or on the map ends with, one point for each aim."""
        stage, aims = unit.stage, unit.aims
        attack = registry.get(stage.attack)
        images = work.image.expand(len(aims), *work.image.shape).contiguous()
        names = [stage.objective if aim.region is None else aim.region.name for aim in aims]
        generator = _generators([seed_of(self._settings.seed, work.index, name, stage.attack) for name in names])
        budgets = [aim.eps for aim in aims if aim.eps is not None]
        options = self._options(
            stage, torch.tensor(budgets, dtype=torch.float64, device=images.device) if budgets else None
        )
        with work.probe.attributed(stage.attack):
            if not attack.flips:
                return attack.function(model, images, generator=generator, **options)
            objective: Objective = ImageFlip(1.0, loss=stage.loss)
            regions = [aim.region for aim in aims if aim.region is not None]
            if regions:
                mask = regions[0].mask if len(regions) == 1 else torch.stack([region.mask for region in regions])
                objective = RegionFlip(mask, unit.target, regions[0].fraction, loss=stage.loss)
            found = attack.function(model, images, objective, generator=generator, **options)
            if regions and not budgets and not attack.refines:
                found = bisect(model, images, found, objective)
        return found

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

    def _options(self, stage: Stage, eps: float | Tensor | None) -> dict[str, Any]:
        options: dict[str, Any] = dict(stage.options)
        if self._settings.box is not None:
            options["box"] = self._settings.box
        if eps is not None:
            options["eps"] = eps
        return options


def stages_that_run(plan: Plan, claim: Claim) -> list[Stage]:
    """All but ascents on single pixels where one constant bounds the map: no pixel moves further than the map."""
    return [s for s in plan.stages if not (claim.single_constant and registry.get(s.attack).about_pixels)]


def usual_rows(settings: Settings, image: tuple[int, int], crop: tuple[int, int] | None) -> int:
    """Rows per attack call on pixels of images of this height and width, or crops of them, if memory permits."""
    if settings.batch is not None:
        return settings.batch
    usual = _usual(torch.device(settings.device).type)
    if crop is None:
        return max(2, usual // math.prod(image))  # a single pixel is attacked in two rows anyway
    return max(1, usual // math.prod(crop), min(CROP_ROWS, math.prod(image) // math.prod(crop)))


def together(stage: Stage, regions: Sequence[Region], size: tuple[int, int], device: str) -> Iterator[Sequence[Aim]]:
    """What the calls of a stage that does not aim at pixels are after on an image of this height and width.

    As many rows as a call on pixels has by itself, evenly divided. They do not depend on a batch size that was asked
    for, since a row alone is computed by another algorithm than several.
    """
    if stage.objective != "region":
        yield from _divided([Aim(None, eps) for eps in stage.eps or (None,)], size, device)
        return
    for _, alike in itertools.groupby(regions, key=lambda region: region.fraction):
        yield from _divided([Aim(region, eps) for region in alike for eps in stage.eps or (None,)], size, device)


def _divided(aims: Sequence[Aim], size: tuple[int, int], device: str) -> Iterator[Sequence[Aim]]:
    most = max(1, _usual(device) // math.prod(size))
    calls = math.ceil(len(aims) / most)
    for call in range(calls):
        yield aims[len(aims) * call // calls : len(aims) * (call + 1) // calls]


def _usual(device: str) -> int:
    return ROW_PIXELS.get(device, ROW_PIXELS["cpu"])


def _keep_region(work: ImageWork, result: RegionResult, found: Tensor, predicted: Tensor) -> None:
    """Keep the region that comes nearest to its joint distance, to be looked at."""
    if math.isinf(result.distance):
        return
    ratio = (1.0 if result.joint_distance is None else result.joint_distance) / result.distance
    if any(kept >= ratio for kept, example in work.examples if example.kind == "region"):
        return
    work.examples = [entry for entry in work.examples if entry[1].kind != "region"]
    example = Example(
        kind="region",
        name=result.name,
        pixel=None,
        predicted=-1,
        target=-1 if result.target is None else result.target,
        radius=result.joint_distance,
        distance=result.distance,
        attack=result.attack,
        perturbed=found.detach().cpu().clone(),
        after=predicted.to(torch.int16),
    )
    work.examples.append((ratio, example))


def _never_flipped(work: ImageWork) -> Tensor:
    """(H, W) bool on the CPU; what was found in crops is in the slots first."""
    seen = work.probe.evidence
    never = seen.flip_distance.cpu().isinf()
    found = seen.slots.distance.isfinite()
    never[seen.slots.rows[found].cpu(), seen.slots.columns[found].cpu()] = False
    return never


def _seen(probe: Probe, attack: registry.Attack) -> Model:
    """The probe as an attack calls it."""
    return probe.pairs if attack.paired else probe


class _PixelLogits:
    """The logits of one pixel per row, ``(B, K)``."""

    def __init__(self, model: Model, rows: Tensor, columns: Tensor) -> None:
        self._model, self._rows, self._columns = model, rows, columns

    def for_rows(self, index: Tensor) -> _PixelLogits:
        return _PixelLogits(of_rows(self._model, index), self._rows[index], self._columns[index])

    def __call__(self, images: Tensor) -> Tensor:
        logits = self._model(images)
        return logits[torch.arange(len(images), device=logits.device), :, self._rows, self._columns]


def _generators(seeds: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]
