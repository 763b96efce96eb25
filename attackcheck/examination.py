"""One image: from its clean logits to findings, as a generator of events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from attackcheck import masking, metamorphic, preflight
from attackcheck.arithmetic import Reference, frozen, guarded
from attackcheck.attacking import Attacker, ImageWork
from attackcheck.certainty import Scene
from attackcheck.claims import RadiusClaim
from attackcheck.cones import Cone, cone_of
from attackcheck.counterexample import digest
from attackcheck.crops import Crops
from attackcheck.errors import InputError
from attackcheck.events import TIGHTNESS_STEP, Advanced, Event, ImageFinished, ImageStarted, PartFinished, Warned
from attackcheck.judging import Examiner
from attackcheck.memory import Room, ran_out, too_large
from attackcheck.parts import Part
from attackcheck.probe import Probe
from attackcheck.receptive import Field, Windows, agrees, measure_field, windows
from attackcheck.recheck import Judge
from attackcheck.regions import Region
from attackcheck.selection import choose_pixels, seed_of
from attackcheck.subject import Images, Sample, Settings, Subject
from attackcheck.tally import Tally

__all__ = ["Bench", "Enough", "StopEarly"]


SMALLEST_IMAGE = 64 * 64
"""Pixels of an image from which on crops are considered."""


class StopEarly(Exception):  # noqa: N818
    """The run is to end; the argument says why."""


class Enough(StopEarly):
    """Thrown in at an event: nothing more is to be judged, what is in hand is to be summed up."""


class Bench:
    """A frozen copy of the model with its judge, to examine images on, one after the other.

    Args:
        subject: model and claim.
        data: the images.
        settings: how to attack.
    """

    def __init__(self, subject: Subject, data: Images, settings: Settings) -> None:
        self._data = data
        self._settings = settings
        self._frozen = frozen(subject.model)
        self._given = subject.model
        self._copied = self._frozen is not subject.model
        if isinstance(self._frozen, torch.nn.Module):
            self._frozen.to(settings.device)
        if isinstance(subject.claim, RadiusClaim):
            subject = replace(subject, claim=subject.claim.of(self._frozen))
        self._subject = subject
        self._model = guarded(self._frozen)
        self._judge: Judge | None = None
        self._fields: dict[tuple[int, ...], Field | None] = {}
        self._cones: dict[tuple[int, int], Cone | None] = {}
        self._room = Room(settings.device, settings.workers)

    @property
    def independent(self) -> bool:
        """Whether the model could be copied, so that other benches may work at the same time."""
        return self._copied

    def examine(self, index: int, tally: Tally, stop: Callable[[], str | None]) -> Iterator[Event]:
        """Attack one image, judge what was found and add it to ``tally``.

        Args:
            index: number of the image.
            tally: receives everything.
            stop: asked between attack calls; a reason ends the attacks, and what is in hand is judged.

        Raises:
            InputError: if the image or the model cannot be used; nothing is in the tally then.
            StopEarly: after judging, if there was a reason to stop; also KeyboardInterrupt and errors of the model.
        """
        try:
            yield from self._examine(index, tally, stop)
        except Exception as error:
            if not ran_out(error):
                raise
            raise InputError(too_large(self._settings.device)) from error

    def _examine(self, index: int, tally: Tally, stop: Callable[[], str | None]) -> Iterator[Event]:
        start = time.perf_counter()
        sample = self._data[index]
        preflight.check_image(sample.image, sample.name)
        image = sample.image.to(self._settings.device)
        judge, logits, radius, warnings = self._clean(index, sample, image)
        yield from warnings
        work = self._work(index, sample, image, logits, radius, judge)
        yield from self._odd(work)
        attacker = Attacker(self._model, self._subject.claim, self._settings, tally, self._room)
        yield from self._look(work, attacker)
        examiner = Examiner(self._subject, self._model, judge, self._settings, tally)
        reason: BaseException | None = None
        try:
            yield from self._attack(work, attacker, examiner, stop)
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            reason = error
        enough = self._settings.maxfail is not None and tally.violations >= self._settings.maxfail
        enough = enough or isinstance(reason, Enough)
        try:
            if not enough:
                yield from examiner.harvest(work, attacker)
                yield from examiner.overtaken(work, attacker)
                yield from examiner.witnesses(work)
        except Enough as stop:
            reason = stop
        finally:
            # Whoever presses Ctrl-C twice gets what is judged by now.
            examiner.finish(work, self._data.ignore)
        yield ImageFinished(work.index, int(work.attacked.sum()), tally.violations)
        part = Part(
            number=index,
            name=sample.name,
            complete=reason is None,
            seconds=time.perf_counter() - start,
            tally=tally,
            sha256=digest(sample.image),
            maps=examiner.maps(work),
        )
        yield PartFinished(part)
        if reason is not None:
            raise reason

    def _clean(self, index: int, sample: Sample, image: Tensor) -> tuple[Judge, Tensor, Tensor, list[Warned]]:
        """Logits ``(1, K, H, W)`` and radii ``(1, H, W)`` of the clean image, a judge, and what there is to say."""
        settings, claim = self._settings, self._subject.claim
        if self._judge is None:
            preflight.check_mode(self._frozen, image[None], own=self.independent)
        logits = preflight.check_logits(self._model, image[None]).clone()
        radius = claim.radii(image[None], logits, index)
        if radius is None:
            raise InputError(f"expected a claim about image {sample.name}, got none")
        if settings.target is not None and not 0 <= settings.target < logits.shape[1]:
            raise InputError(f"expected a target class from 0 to {logits.shape[1] - 1}, got {settings.target}")
        if sample.labels is not None and sample.labels.shape != radius.shape[1:]:
            expected, got = tuple(radius.shape[1:]), tuple(sample.labels.shape)
            raise InputError(f"expected labels of shape {expected} for {sample.name}, got {got}")
        warnings: list[Warned] = []
        first = settings.image or 0
        if self._judge is None:
            reference = Reference(self._frozen, image[None])
            self._judge = Judge(self._model, reference, claim, tolerance=settings.tolerance, device=settings.device)
            found = preflight.warnings_of(self._model, image[None], logits, radius, reference.precision)
            warnings = [Warned(code, message) for code, message in found] if index == first else []
            if index == first:
                said = preflight.check_frozen(self._given, self._frozen, image[None])
                warnings += [Warned(code, message) for code, message in said]
            if index == first and isinstance(claim, RadiusClaim) and claim.confidence is None:
                said = metamorphic.warnings_of(claim, self._given, self._frozen, image[None], radius)
                warnings += [Warned(code, message) for code, message in said]
        if sample.labels is not None and not claim.cheap:
            # What a certifier says of ignored pixels binds nobody.
            radius = torch.where((sample.labels == self._data.ignore).to(radius.device), 0.0, radius)
        return self._judge, logits, radius, warnings

    def _work(
        self, index: int, sample: Sample, image: Tensor, logits: Tensor, radius: Tensor, judge: Judge
    ) -> ImageWork:
        settings = self._settings
        scene = judge.scene(index, image, logits[0], radius[0])
        eligible = scene.radius > 0
        if sample.labels is not None:
            eligible &= sample.labels != self._data.ignore
        regions: list[Region] = []
        if any(stage.objective == "region" for stage in settings.plan.stages):
            for request in settings.regions:
                regions += request.resolve(logits[0].argmax(dim=0), radius[0])
        probe = Probe(self._model, image, logits[0], radius[0], self._subject.claim)
        crops = self._crops(scene, probe)
        if crops is not None:
            scene = replace(scene, field=crops.windows.field)
        return ImageWork(
            index=index,
            name=sample.name,
            image=image,
            labels=sample.labels,
            logits=logits[0],
            scene=scene,
            probe=probe,
            pixels=choose_pixels(
                settings.pixels,
                scene.radius,
                eligible,
                settings.seed,
                index,
                how=settings.choose,
                predicted=scene.predicted,
            ),
            regions=regions,
            attacked=torch.zeros_like(eligible),
            masked=torch.zeros_like(eligible),
            class_after=torch.full_like(scene.predicted, -1, dtype=torch.int16),
            crops=crops,
        )

    def _look(self, work: ImageWork, attacker: Attacker) -> Iterator[Warned]:
        """Where gradients lead nowhere, a search without them is added."""
        first, others = work.pixels[: masking.SAMPLE], work.pixels[masking.SAMPLE :]
        radius = work.scene.radius

        def look(pixels: Tensor) -> Tensor:
            return self._room.fitted(
                ("gradients", attacker.place(work)),
                max(2, attacker.rows(work)),
                lambda rows: masking.masked(self._model, work.image, work.logits, radius, pixels, rows, work.crops),
            )

        found = look(first)
        if not bool(found.any()):
            return
        found = torch.cat([found, look(others)])
        chosen = work.pixels[found]
        work.masked[chosen[:, 0], chosen[:, 1]] = True
        work.crops = None  # the receptive field was measured with such gradients
        yield Warned(
            "AC107",
            f"the gradient is zero or misleading at {len(chosen)} of {len(work.pixels)} pixels of {work.name}: "
            "a search without gradients is added",
        )

    def _crops(self, scene: Scene, probe: Probe) -> Crops | None:
        """Crops for attacks on pixels, None where they save too little or are not what the whole image shows."""
        image, settings = probe.image, self._settings
        height, width = image.shape[1:]
        aimed = any(stage.objective == "pixel" for stage in settings.plan.stages)
        if not settings.crops or not aimed or height * width < SMALLEST_IMAGE:
            return None
        size = (len(image), height, width)
        if size not in self._fields:
            self._fields[size] = measure_field(self._model, image)
        field = self._fields[size]
        chosen = None if field is None else windows(field, height, width)
        if chosen is None:
            return None
        # What rounding does to logits here, with room for other points and other batches.
        rounding = (scene.deployed.double() - scene.reference).abs().flatten(1).amax(dim=1)
        tolerance = 16.0 * rounding + 1e-5 * scene.reference.abs().flatten(1).amax(dim=1)
        usual = scene.radius[(scene.radius > 0) & scene.radius.isfinite()]
        scale = float(usual.median()) if len(usual) else 0.1
        seed = seed_of(settings.seed, scene.index, "crops")
        look = partial(agrees, self._model, image, probe.logits, chosen, tolerance=tolerance, scale=scale, seed=seed)
        cone = self._cone(chosen, image)
        if cone is not None and look(at=cone.at):
            return Crops(probe, chosen, tolerance, cone)
        same = look()
        return Crops(probe, chosen, tolerance) if same else None

    def _cone(self, crops: Windows, image: Tensor) -> Cone | None:
        """The network around one pixel of crops of this shape."""
        if (crops.height, crops.width) not in self._cones:
            crop = image[:, : crops.height, : crops.width]
            self._cones[crops.height, crops.width] = cone_of(self._frozen, crop, crops.field.stride)
        return self._cones[crops.height, crops.width]

    def _odd(self, work: ImageWork) -> Iterator[Warned]:
        """What a user may not expect of this image."""
        stages = self._settings.plan.stages
        if not work.regions and any(stage.objective == "region" for stage in stages):
            wanted = " or ".join(request.describe() for request in self._settings.regions)
            yield Warned("AC114", f"image {work.name} has no {wanted}")
        ties = 0 if self._subject.claim.cheap else metamorphic.tied(work.logits[None].cpu(), work.scene.radius[None])
        if ties:
            yield Warned("AC123", f"{ties} tied pixels of {work.name} have a positive radius: a tie has distance 0")
        if work.labels is not None:
            beyond = int(((work.labels != self._data.ignore) & (work.labels >= work.logits.shape[0])).sum())
            if beyond:
                yield Warned("AC115", f"{beyond} labels of {work.name} are {work.logits.shape[0]} or above")

    def _attack(
        self, work: ImageWork, attacker: Attacker, examiner: Examiner, stop: Callable[[], str | None]
    ) -> Iterator[Event]:
        units = list(attacker.units(work))
        yield ImageStarted(
            work.index, work.name, len(work.pixels), len(units), tuple(unit.stage.attack for unit in units)
        )
        done, begun, group, worst = 0, 0, None, 0.0
        while True:
            for unit in units[done:]:
                if unit.group is not group:
                    if not attacker.confirm(work):
                        break
                    yield from examiner.harvest(work, attacker)
                    begun += 0 if group is None else len(group)
                    group = unit.group
                    attacker.aim(work, group)
                attacker.run(work, unit)
                done += 1
                ratios = self._ratios(work)
                worst = max(worst, float(ratios.max()) if len(ratios) else 0.0)
                yield Advanced(work.index, unit.stage.attack, done, len(units), worst, _binned(ratios))
                reason = stop()
                if reason is not None:
                    raise StopEarly(reason)
            if attacker.confirm(work):
                return
            # Crops did not show what the whole image does: this group and those after it are attacked on whole images.
            yield Warned("AC120", f"crops of image {work.name} do not show the logits of the whole image: not used")
            work.crops = None
            units = units[:done] + list(attacker.pixel_units(work, attacker.groups(work, work.pixels[begun:])))
            group = None
            attacker.aim(work, work.pixels[:0])

    def _ratios(self, work: ImageWork) -> Tensor:
        """radius / distance of the pixels aimed at just now, 0 where not flipped, on the CPU."""
        slots = work.probe.evidence.slots
        radius = work.scene.radius[slots.rows.cpu(), slots.columns.cpu()]
        return radius / slots.distance.cpu()


def _binned(ratios: Tensor) -> tuple[int, ...]:
    last = round(1 / TIGHTNESS_STEP)
    places = (ratios[ratios > 0] / TIGHTNESS_STEP).ceil().sub(1).clamp(0, last)
    return tuple(places.long().bincount(minlength=last + 1).tolist())
