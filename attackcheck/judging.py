"""From evidence to findings: every proposal that contradicts the claim goes to the judge."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attackcheck.attacking import Attacker, ImageWork
from attackcheck.claims import Claim, LipschitzClaim, RadiusClaim
from attackcheck.confidence import Attacked
from attackcheck.counterexample import Counterexample, save_counterexample
from attackcheck.errors import InputError
from attackcheck.events import Finding, Warned
from attackcheck.parts import Example, Maps
from attackcheck.probe import Kind, Slots, Witnesses
from attackcheck.recheck import Judge, Judgement, Verdict
from attackcheck.report import STUCK, Violation
from attackcheck.subject import Model, Settings, Subject
from attackcheck.tally import AttackedPixels, Tally

__all__ = ["Examiner"]

OVERTAKEN = 16
"""Pixels per image that nobody aimed at, yet were seen flipped inside their radius, and are therefore aimed at."""


SHOWN = 3
"""Pixels per image whose perturbed image is kept to be looked at."""

CERTIFIED = 8
"""Points that are judged for overlapping balls of a certifier that is a function of images, worst first."""


class Examiner:
    """Judges what a probe has seen of an image, and adds it to the sums.

    Args:
        subject: the claim, and what is written into counterexamples.
        model: the model as deployed.
        judge: speaks the verdicts.
        settings: seed, tolerance, folder for counterexamples.
        tally: receives numbers and findings.
    """

    def __init__(self, subject: Subject, model: Model, judge: Judge, settings: Settings, tally: Tally) -> None:
        self._subject = subject
        self._claim: Claim = subject.claim
        self._model = model
        self._judge = judge
        self._settings = settings
        self._tally = tally
        self._confidence = subject.claim.confidence if isinstance(subject.claim, RadiusClaim) else None

    def harvest(self, work: ImageWork, attacker: Attacker) -> Iterator[Finding | Warned]:
        """Judge the pixels aimed at since the last time; their points are dropped afterwards."""
        slots = work.probe.evidence.slots
        pixels = torch.stack([slots.rows.cpu(), slots.columns.cpu()], dim=1)
        aimed = work.attacked[pixels[:, 0], pixels[:, 1]]
        if not attacker.confirm(work):
            work.attacked[pixels[:, 0], pixels[:, 1]] = False
        elif bool(aimed.any()):
            yield from self._judge_pixels(work, slots, pixels, aimed)
            yield from self._ask_certifier(work, slots)
            self._add_pixels(work, attacker, slots, pixels, aimed)
            self._keep_examples(work, slots, aimed)
        nothing = torch.zeros(0, dtype=torch.int64)
        work.probe.aim(nothing, nothing)

    def overtaken(self, work: ImageWork, attacker: Attacker) -> Iterator[Finding | Warned]:
        """Aim at the worst of the pixels that were seen flipped inside their radius, yet are not judged for it.

        They start with the points that showed it, as far as these were kept.
        """
        pixels = self._unjudged(work)[:OVERTAKEN]
        if len(pixels):
            attacker.aim_again(work, pixels)
            if not attacker.confirm(work):
                work.crops = None
                attacker.aim_again(work, pixels)
            slots, all_of_them = work.probe.evidence.slots, torch.ones(len(pixels)) > 0
            yield from self._judge_pixels(work, slots, pixels, all_of_them)
            self._keep_examples(work, slots, all_of_them)
        missed = len(self._unjudged(work))
        if missed:
            text = f"{missed} pixels of image {work.index} were seen flipped inside their radius and not judged for it"
            yield Warned("AC113", text)

    def witnesses(self, work: ImageWork) -> Iterator[Finding | Warned]:
        """Judge the worst points of the other kinds, largest ratio first, until none can beat what is confirmed."""
        seen = work.probe.evidence
        judges = {
            Kind.TWO_BALL: self._judge.two_ball,
            Kind.SET: self._judge.flipped_set,
            Kind.LIPSCHITZ: self._judge.expansion,
        }
        for kind, judge in judges.items():
            kept = [seen.witnesses[kind]]
            if kind is Kind.LIPSCHITZ and seen.pairs is not None:
                kept.append(seen.pairs)
            found = [entry for one in kept if (entry := self._surest(work, kind, judge, one)) is not None]
            if found and max(float(one.ratio.max()) for one in kept) > 1.0:
                _, judgement, attack = max(found, key=lambda entry: entry[0])
                yield from self._find(work, judgement, attack)

    def _surest(
        self, work: ImageWork, kind: Kind, judge: Callable[..., Judgement | None], kept: Witnesses
    ) -> tuple[float, Judgement, int] | None:
        """The largest ratio beyond all errors among points kept, with its judgement and attack; added to the sums."""
        confirmed, best = 0.0, None
        for place in kept.ratio.argsort(descending=True).tolist():
            ratio, attack = float(kept.ratio[place]), int(kept.attack[place])
            if ratio <= confirmed:
                break
            if kept.base is None:
                judgement = judge(work.scene, kept.point[place], push=ratio > 1.0)
            else:
                judgement = self._judge.movement(work.index, kept.base[place], kept.point[place])
            if judgement is None:
                continue
            sure = (judgement.bound - judgement.allowance) / judgement.distance if judgement.distance > 0 else 0.0
            if best is None or sure > best[0]:
                best = sure, judgement, attack
            if sure > confirmed:
                confirmed = sure
                name = work.probe.evidence.attacks[attack] if attack >= 0 else None
                self._tally.add_ratio(kind, name, sure)
        return best

    def _unjudged(self, work: ImageWork) -> Tensor:
        """Pixels ``(P, 2)`` seen flipped inside their radius without a verdict for it, worst first."""
        distance = work.probe.evidence.flip_distance.cpu()
        inside = distance.isfinite() & (distance < work.scene.radius * (1.0 - self._settings.tolerance))
        for row, column in work.verdicts:
            inside[row, column] = False
        pixels = inside.nonzero()
        order = (work.scene.radius / distance)[inside].argsort(descending=True)
        return pixels[order]

    def finish(self, work: ImageWork, ignore: int) -> None:
        """Add an image's maps, costs and largest ratios to the sums."""
        seen, tally, radius = work.probe.evidence, self._tally, work.scene.radius
        # Neither gradients nor the search without them moved these: that says nothing about their radius.
        stuck = work.attacked & work.masked & seen.flip_distance.cpu().isinf()
        work.attacked &= ~stuck
        tally.unchecked[STUCK] += int(stuck.sum())
        ignored = torch.zeros_like(work.attacked) if work.labels is None else work.labels == ignore
        tally.add_maps(radius.numpy(), seen.flip_distance.cpu().numpy(), work.attacked.numpy())
        rest = ~work.attacked & ~stuck
        tally.unchecked["ignored label"] += int((ignored & rest).sum())
        tally.unchecked["radius 0"] += int(((radius <= 0) & ~ignored & rest).sum())
        tally.unchecked["not chosen"] += int(((radius > 0) & ~ignored & rest).sum())
        labels = None if work.labels is None else work.labels.numpy()
        tally.add_classes(work.scene.predicted.numpy(), radius.numpy(), labels)
        for name, cost in zip(seen.attacks, seen.costs, strict=True):
            objectives = [stage.objective for stage in self._settings.plan.stages if stage.attack == name]
            tally.add_cost(name, "+".join(dict.fromkeys(objectives)) or "pixel", cost)
        if self._confidence is not None:
            tally.rates.append(self._rate(work, ignored))
        tally.verdicts.update(verdict.name for verdict in work.verdicts.values())
        tally.verdicts[Verdict.HELD.name] += int(work.attacked.sum()) - len(work.verdicts)

    def _rate(self, work: ImageWork, ignored: Tensor) -> Attacked:
        """How many certificates were tried here and how many failed; pixels aimed at because they flipped are left out.

        Pixels drawn at random from the certified ones stand for their share of all, abstentions included; of those
        drawn for what their certificates look like, only that there are no more broken than in the whole image.
        """
        chosen = torch.zeros_like(work.attacked)
        chosen[work.pixels[:, 0], work.pixels[:, 1]] = True
        chosen &= work.attacked
        broken = sum(verdict is Verdict.COUNTED and bool(chosen[place]) for place, verdict in work.verdicts.items())
        tried, every = int(chosen.sum()), int((~ignored).sum())
        certified = int(((work.scene.radius > 0) & ~ignored).sum())
        if isinstance(self._settings.pixels, np.ndarray):
            stand_for = float(len(work.pixels))
        elif self._settings.pixels == "all" or self._settings.choose in ("radius", "random"):
            stand_for = tried * every / max(1, certified)
        else:
            stand_for = float(every)
        return Attacked(tried, broken, max(stand_for, float(tried)))

    def _judge_pixels(self, work: ImageWork, slots: Slots, pixels: Tensor, aimed: Tensor) -> Iterator[Finding | Warned]:
        radius = work.scene.radius[pixels[:, 0], pixels[:, 1]]
        inside = aimed & (slots.distance.cpu() < radius)
        worst_first = torch.where(inside, radius / slots.distance.cpu(), 0.0).argsort(descending=True)
        for i in worst_first[: int(inside.sum())].tolist():
            row, column = int(pixels[i, 0]), int(pixels[i, 1])
            judgement = self._judge.pixel(work.scene, work.probe.closest(i), row, column)
            if judgement.verdict is Verdict.VIOLATED and self._confidence is not None:
                judgement = replace(judgement, verdict=Verdict.COUNTED)
            if judgement.verdict is not Verdict.HELD:
                work.verdicts[row, column] = judgement.verdict
            yield from self._find(work, judgement, int(slots.attack[i]))

    def _add_pixels(self, work: ImageWork, attacker: Attacker, slots: Slots, pixels: Tensor, aimed: Tensor) -> None:
        by_attack = {
            name: distance.cpu()[aimed].numpy()
            for name, distance in zip(work.probe.evidence.attacks, slots.per_attack, strict=True)
        }
        chosen = pixels[aimed]
        self._tally.add_pixels(
            AttackedPixels(
                radius=work.scene.radius[chosen[:, 0], chosen[:, 1]].numpy(),
                distance=slots.distance.cpu()[aimed].numpy(),
                confirmed=np.array(
                    [work.verdicts.get((r, c)) in (None, Verdict.VIOLATED) for r, c in chosen.tolist()], dtype=bool
                ),
                lipschitz_slack=attacker.room.fitted(
                    ("slack", attacker.place(work)),
                    attacker.rows(work),
                    lambda rows: self._lipschitz_slack(work, slots, rows),
                )[aimed].numpy(),
                predicted=work.scene.predicted[chosen[:, 0], chosen[:, 1]].numpy(),
                pixels=chosen.numpy(),
                aimed={
                    name: by[chosen[:, 0], chosen[:, 1]].numpy()
                    for name, by in work.aimed_by.items()
                    if name in by_attack
                },
                by_attack=by_attack,
            )
        )

    def _keep_examples(self, work: ImageWork, slots: Slots, aimed: Tensor) -> None:
        """Keep the classes after, and the points of the pixels with the largest radius / distance, to be looked at."""
        rows, columns, distance = slots.rows.cpu(), slots.columns.cpu(), slots.distance.cpu()
        work.class_after[rows[aimed], columns[aimed]] = slots.target.cpu()[aimed].to(torch.int16)
        ratio = torch.where(aimed & distance.isfinite(), work.scene.radius[rows, columns] / distance, 0.0)
        best, places = ratio.topk(min(SHOWN, len(ratio)))
        for value, i in zip(best.tolist(), places.tolist(), strict=True):
            kept = [entry for entry in work.examples if entry[1].kind == "pixel"]
            least = min(kept, key=lambda entry: entry[0], default=None)
            if value <= 0 or (len(kept) >= SHOWN and least is not None and value <= least[0]):
                break
            if len(kept) >= SHOWN:
                work.examples = [entry for entry in work.examples if entry is not least]
            point, pixel = work.probe.closest(i), (int(rows[i]), int(columns[i]))
            with torch.no_grad():
                after = self._model(point.expand(2, *point.shape))[0].argmax(dim=0)  # as in any larger batch
            example = Example(
                kind="pixel",
                name="{}, {}".format(*pixel),
                pixel=pixel,
                predicted=int(work.scene.predicted[pixel]),
                target=int(slots.target[i]),
                radius=float(work.scene.radius[pixel]),
                distance=float(distance[i]),
                attack=work.probe.evidence.attacks[int(slots.attack[i])] if slots.attack[i] >= 0 else "none",
                perturbed=point.detach().cpu().clone(),
                after=after.cpu().to(torch.int16),
            )
            work.examples.append((value, example))

    def maps(self, work: ImageWork) -> Maps:
        """What is known of every pixel; after :meth:`finish`."""
        seen = work.probe.evidence
        names = list(Verdict)
        verdict = torch.where(work.attacked, names.index(Verdict.HELD), -1).to(torch.int8)
        for pixel, spoken in work.verdicts.items():
            verdict[pixel] = names.index(spoken)
        return Maps(
            image=work.image.detach().cpu(),
            labels=None if work.labels is None else work.labels.to(torch.int32),
            predicted=work.scene.predicted.to(torch.int16),
            radius=work.scene.radius,
            flip_distance=seen.flip_distance.cpu(),
            flipped_by=seen.flipped_by.cpu().to(torch.int16),
            class_after=work.class_after,
            attacked=work.attacked,
            verdict=verdict,
            attacks=tuple(seen.attacks),
            examples=tuple(example for _, example in sorted(work.examples, key=lambda entry: -entry[0])),
        )

    def _ask_certifier(self, work: ImageWork, slots: Slots) -> Iterator[Finding | Warned]:
        """A certifier that is a function of images: its balls at the flipped points, and a little beyond them."""
        reached = slots.distance.isfinite().nonzero()[:, 0].tolist()
        if self._claim.cheap or not reached or self._claim.radii(work.image[None], work.logits[None], None) is None:
            return
        found: list[tuple[float, Tensor, int]] = []
        for i in reached:
            row, column = int(slots.rows[i]), int(slots.columns[i])
            delta = work.probe.closest(i) - work.image
            beyond = torch.stack([work.image + delta * factor for factor in (1.0, 1.25, 1.5, 2.0)])
            with torch.no_grad():
                logits = self._model(beyond)
            radius = self._claim.radii(beyond, logits, None)
            if radius is None:
                return
            flipped = logits.argmax(dim=1)[:, row, column] != int(work.scene.predicted[row, column])
            distance = (beyond - work.image).flatten(1).double().norm(dim=1)
            ratio = (radius[:, row, column] + float(work.scene.radius[row, column])) / distance
            ratio = torch.where(flipped, ratio, 0.0)
            if float(ratio.max()) > 1.0:
                found.append((float(ratio.max()), beyond[int(ratio.argmax())], int(slots.attack[i])))
        found.sort(key=lambda entry: -entry[0])
        for _, point, attack in found[:CERTIFIED]:
            judgement = self._judge.two_ball(work.scene, point)
            if judgement is not None:
                yield from self._find(work, judgement, attack)
                if judgement.verdict is Verdict.VIOLATED:
                    return

    def _find(self, work: ImageWork, judgement: Judgement, attack: int) -> Iterator[Finding | Warned]:
        if judgement.verdict is Verdict.HELD:
            return
        pixel: tuple[int, int] | None = None
        if judgement.kind in (Kind.PIXEL, Kind.TWO_BALL):
            pixel = (int(judgement.pixels[0, 0]), int(judgement.pixels[0, 1]))
        predicted = -1 if pixel is None else int(work.scene.predicted[pixel])
        name = work.probe.evidence.attacks[attack] if attack >= 0 else "none"
        path: Path | None = None
        saved = judgement.verdict in (Verdict.VIOLATED, Verdict.COUNTED)
        if saved and self._settings.counterexamples is not None:
            example = Counterexample(
                kind=judgement.kind,
                clean=work.scene.image if judgement.base is None else judgement.base,
                perturbed=judgement.perturbed,
                pixel=pixel,
                predicted=predicted,
                target=judgement.target,
                radius=judgement.bound,
                radius_clean=0.0 if pixel is None else float(work.scene.radius[pixel]),
                distance=judgement.distance,
                image=work.index,
                image_name=work.name,
                attack=name,
                seed=self._settings.seed,
                tolerance=self._settings.tolerance,
                claim=self._claim.to_dict(),
                subject=self._subject.meta,
            )
            try:
                path = save_counterexample(example, self._settings.counterexamples)
            except InputError as error:  # a full disk must not cost the finding
                if not self._tally.unsaved:
                    yield Warned("AC112", str(error))
                self._tally.unsaved += 1
        violation = Violation(
            kind=judgement.kind,
            verdict=judgement.verdict,
            image=work.index,
            image_name=work.name,
            pixel=pixel,
            pixels=len(judgement.pixels),
            predicted=predicted,
            target=judgement.target,
            radius=judgement.bound,
            distance=judgement.distance,
            attack=name,
            counterexample=path,
        )
        self._tally.findings.append(violation)
        yield Finding(violation)

    def _lipschitz_slack(self, work: ImageWork, slots: Slots, rows: int) -> Tensor:
        """``||grad m|| / (sqrt(2) L)`` of each slot, m the margin over the class it flipped to; NaN where unknown."""
        slack = torch.full((len(slots.rows),), math.nan, dtype=torch.float64)
        if not isinstance(self._claim, LipschitzClaim):
            return slack
        flipped = slots.distance.isfinite().nonzero()[:, 0]
        own = work.scene.predicted.to(flipped.device)[slots.rows, slots.columns]
        for part in torch.split(flipped, rows):
            at_row, at_column = slots.rows[part], slots.columns[part]
            model = self._model
            if work.crops is None:
                images = work.image.expand(len(part), *work.image.shape).clone()
            else:
                images = work.crops.cut(at_row, at_column)
                model, at_row, at_column = work.crops.around(model, at_row, at_column)
            logits = model(images.requires_grad_(True))
            if not logits.requires_grad:
                return slack
            row = torch.arange(len(part), device=logits.device)
            at = logits[row, :, at_row, at_column]  # (P, K)
            margin = at.gather(1, own[part][:, None]) - at.gather(1, slots.target[part][:, None])
            gradient = torch.autograd.grad(margin.sum(), images)[0].flatten(1)
            slack[part.cpu()] = torch.linalg.vector_norm(gradient, dim=1, dtype=torch.float64).cpu() * self._claim.slope
        return slack
