"""The trial of a certifier: before anything is attacked it is run on gadgets, whose distances are known."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from attackcheck import gadgets, metamorphic
from attackcheck.arithmetic import Reference, guarded
from attackcheck.claims import RadiusClaim
from attackcheck.counterexample import Counterexample, save_counterexample
from attackcheck.errors import InputError, in_one_line
from attackcheck.events import Finding, Warned
from attackcheck.gadgets import Gadget
from attackcheck.probe import Kind
from attackcheck.recheck import Judge, Judgement, Verdict
from attackcheck.report import Violation
from attackcheck.subject import Settings
from attackcheck.tally import Tally

__all__ = ["radii_of", "trial"]


@dataclass
class _Notes:
    failed: dict[str, str] = field(default_factory=dict)  # gadget -> what the certifier said
    changed: dict[str, list[tuple[float, str]]] = field(default_factory=lambda: defaultdict(list))
    tied: int = 0
    asked: int = 0


def radii_of(claim: RadiusClaim, tried: Gadget, device: str = "cpu") -> Tensor:
    """What a certifier says of all images of a gadget at once, ``(N, H, W)`` float64 on the CPU.

    Raises:
        InputError: for radii of another shape, NaN or negative ones; and whatever the certifier raises.
    """
    network, images = tried.network().to(device), tried.images.to(device)
    with torch.no_grad():
        logits = network(images)
    asked = RadiusClaim(claim.certifier, lipschitz=tried.lipschitz, source=claim.source).of(network)
    radii = asked.radii(images, logits, 0)
    if radii is None:
        raise InputError("the certifier says nothing")
    return radii.cpu()


def trial(claim: RadiusClaim, settings: Settings, tally: Tally) -> Iterator[Warned | Finding]:
    """Run a certifier of three parameters on every gadget and its variants.

    A radius beyond the known distance is judged at the point that flips; at most one finding for each gadget. Where
    radii break a relation, or the certifier fails, there is a warning; neither is a violation.

    Args:
        claim: the certifier.
        settings: device, tolerance, seed, folder for counterexamples.
        tally: receives the findings, and the largest ratio of a radius to a distance.
    """
    notes = _Notes()
    for plain in gadgets.gadgets():
        radii = _ask(claim, plain, settings, notes)
        if radii is None:
            continue
        notes.tied += int((radii[plain.distances() == 0] > 0).sum())
        found = yield from _examine(claim, plain, radii, settings, tally)
        for vary in gadgets.VARIANTS:
            variant = vary(plain)
            others = _ask(claim, variant, settings, notes)
            if others is None:
                continue
            expected = _expected(vary.__name__, radii)
            worst = metamorphic.change(others, expected)
            if worst:
                notes.changed[vary.__name__].append((worst, plain.name))
            if not found:
                found = yield from _examine(claim, variant, others, settings, tally)
    yield from _said(notes)


def _expected(variant: str, radii: Tensor) -> Tensor:
    """What the radii of a variant are, given those of the plain gadget."""
    if variant == "stretched":
        return radii / gadgets.FACTOR
    if variant == "reordered":
        return radii.flip(0)
    return radii.flip(2) if variant == "mirrored" else radii


def _ask(claim: RadiusClaim, tried: Gadget, settings: Settings, notes: _Notes) -> Tensor | None:
    notes.asked += 1
    try:
        return radii_of(claim, tried, settings.device)
    except (Exception, SystemExit) as error:
        notes.failed[tried.name] = str(error) if isinstance(error, InputError) else in_one_line(error)
        return None


def _said(notes: _Notes) -> Iterator[Warned]:
    if notes.failed:
        name, reason = next(iter(notes.failed.items()))
        yield Warned("AC121", f"the certifier fails on {len(notes.failed)} of {notes.asked} gadgets ({name}: {reason})")
    for relation, broken in notes.changed.items():
        worst, name = max(broken)
        yield Warned(
            "AC122",
            f"radii on {len(broken)} gadgets change by up to {100 * worst:.2g} % ({name}) "
            f"when {metamorphic.RELATIONS[relation]}",
        )
    if notes.tied:
        yield Warned("AC123", f"the certifier gives a positive radius to {notes.tied} tied pixels of gadgets")


def _examine(
    claim: RadiusClaim, tried: Gadget, radii: Tensor, settings: Settings, tally: Tally
) -> Generator[Warned | Finding, None, bool]:
    """Judge the worst pixels of a gadget until one is violated; returns whether one is."""
    distances = tried.distances()
    ratio = torch.where(distances > 0, radii / distances, 0.0)
    tally.add_ratio(Kind.GADGET, None, float(ratio.max()))
    suspects = (ratio > 1.0 + settings.tolerance).nonzero()
    order = ratio[suspects[:, 0], suspects[:, 1], suspects[:, 2]].argsort(descending=True)
    if not len(suspects):
        return False
    network = tried.network()
    judge = Judge(guarded(network), Reference(network, tried.images[:1]), claim, tolerance=settings.tolerance)
    with torch.no_grad():
        deployed = network(tried.images)
    for index, row, column in suspects[order[:3]].tolist():
        scene = judge.scene(index, tried.images[index], deployed[index], radii[index])
        judgement = judge.pixel(scene, tried.flip(index, row, column), row, column)
        if judgement.verdict is Verdict.VIOLATED:
            yield from _found(claim, tried, index, judgement, int(scene.predicted[row, column]), settings, tally)
            return True
    return False


def _found(
    claim: RadiusClaim,
    tried: Gadget,
    index: int,
    judgement: Judgement,
    predicted: int,
    settings: Settings,
    tally: Tally,
) -> Iterator[Warned | Finding]:
    pixel = (int(judgement.pixels[0, 0]), int(judgement.pixels[0, 1]))
    path: Path | None = None
    if settings.counterexamples is not None:
        example = Counterexample(
            kind=Kind.GADGET,
            clean=tried.images[index],
            perturbed=judgement.perturbed,
            pixel=pixel,
            predicted=predicted,
            target=judgement.target,
            radius=judgement.bound,
            radius_clean=judgement.bound,
            distance=judgement.distance,
            image=index,
            image_name=gadgets.PREFIX + tried.name,
            attack="closed form",
            seed=settings.seed,
            tolerance=settings.tolerance,
            claim=claim.to_dict() | {"L": tried.lipschitz},
            subject={"model": gadgets.PREFIX + tried.name},
        )
        try:
            path = save_counterexample(example, settings.counterexamples)
        except InputError as error:  # a full disk must not cost the finding
            if not tally.unsaved:
                yield Warned("AC112", str(error))
            tally.unsaved += 1
    violation = Violation(
        kind=Kind.GADGET,
        verdict=judgement.verdict,
        image=index,
        image_name=gadgets.PREFIX + tried.name,
        pixel=pixel,
        pixels=1,
        predicted=predicted,
        target=judgement.target,
        radius=judgement.bound,
        distance=judgement.distance,
        attack="closed form",
        counterexample=path,
    )
    tally.findings.append(violation)
    yield Finding(violation)
