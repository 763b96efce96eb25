"""Connected components of the prediction: the smallest perturbation found that turns 99 % of their pixels away.

adv-lib's attacks on segmentation run with their defaults but for steps, in terms of D, the linearised distance of the
summed margins, and for logits scaled to a mean margin of 12 (of 1 for those whose loss is a margin). ALMA-prox knows
the maximum norm alone; its points are measured in L2 like all others. ASMA needs a target to flip anything: every pixel
is given its runner-up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attackcheck.attacks import RegionFlip, registry
from attackcheck.attacks.plans import Stage, plan, with_regions
from attackcheck.regions import Region, RegionRequest

from .dense import DenseView, RegionTape
from .libraries import fenced, installed, library
from .report import Sheet
from .subjects import Subject
from .tape import Clock, Result

__all__ = ["sheets"]

SHARE = 0.99


@dataclass
class Stretch:
    """A region as a library sees it."""

    view: DenseView
    seen: Tensor  # (1, C, H, W) in [0, 1]
    label: Tensor  # (1, H, W)
    runner_up: Tensor  # (1, H, W)
    mask: Tensor  # (1, H, W)
    distance: float  # D in the view's units
    entries: float  # how many entries of the image matter
    full: bool


def _asma(stretch: Stretch) -> None:
    # its step is beta times the gradient of summed logits, whose norm is about margin / distance
    rate = stretch.distance**2 / (float(stretch.mask.sum()) * stretch.view.scale)
    steps = 1000 if stretch.full else 200
    library("adv_lib.attacks.segmentation").asma(
        stretch.view,
        stretch.seen,
        stretch.runner_up,
        masks=stretch.mask,
        targeted=True,
        adv_threshold=SHARE,
        num_steps=steps,
        τ=rate / 2,
        β=rate,
    )


def _dag(stretch: Stretch) -> None:
    library("adv_lib.attacks.segmentation").dag(
        stretch.view,
        stretch.seen,
        stretch.label,
        masks=stretch.mask,
        adv_threshold=SHARE,
        max_iter=200,
        γ=stretch.distance / 10,
        p=2,
    )


def _pdpgd(stretch: Stretch) -> None:
    library("adv_lib.attacks.segmentation").pdpgd(
        stretch.view,
        stretch.seen,
        stretch.label,
        norm=2,
        masks=stretch.mask,
        adv_threshold=SHARE,
        num_steps=500 if stretch.full else 200,
        primal_lr=_entrywise(stretch),
    )


def _pdgd(stretch: Stretch) -> None:
    library("adv_lib.attacks.segmentation").pdgd(
        stretch.view,
        stretch.seen,
        stretch.label,
        masks=stretch.mask,
        adv_threshold=SHARE,
        num_steps=500 if stretch.full else 200,
        primal_lr=_entrywise(stretch),
    )


def _alma_prox(stretch: Stretch) -> None:
    library("adv_lib.attacks.segmentation").alma_prox(
        stretch.view,
        stretch.seen,
        stretch.label,
        masks=stretch.mask,
        adv_threshold=SHARE,
        num_steps=500 if stretch.full else 200,
        lr_init=_entrywise(stretch),
    )


def _entrywise(stretch: Stretch) -> float:
    """A first step of D / 10 of an optimiser that moves all entries alike."""
    return 0.1 * stretch.distance / math.sqrt(stretch.entries)


PEERS: dict[str, tuple[str, Callable[[Stretch], None]]] = {
    "adv-lib DAG": ("200 steps of D/10, p = 2", _dag),
    "adv-lib ASMA": ("200 or 1000 steps, towards runners-up", _asma),
    "adv-lib PDPGD": ("200 or 500 steps from D/10", _pdpgd),
    "adv-lib PDGD": ("200 or 500 steps from D/10", _pdgd),
    "adv-lib ALMA-prox": ("200 or 500 steps from D/10, maximum norm", _alma_prox),
}


def _stages(name: str) -> tuple[Stage, ...]:
    minimal = (s for s in with_regions(plan(name)).stages if s.objective == "region" and not s.eps)
    return tuple(minimal)


def _ours() -> dict[str, tuple[Stage, ...]]:
    standard, thorough = _stages("standard"), _stages("thorough")
    return {
        "quick": _stages("quick"),
        "cutting, 7 steps": (Stage("cutting", objective="region", options={"steps": 7, "planes": 7, "refine": 3}),),
        "cutting, 12 steps": (Stage("cutting", objective="region", options={"steps": 12, "planes": 12, "refine": 3}),),
        f"{standard[0].attack} alone": standard[:1],
        "standard": standard,
        "thorough": thorough,
    }


def sheets(subject: Subject, full: bool, count: int, seed: int, wanted: Callable[[str], bool]) -> Iterator[Sheet]:
    """One sheet: `count` components of 16 to 1000 pixels, spread over sizes; none where there are none."""
    places = _components(subject, count)
    if not places:
        return
    results = []
    for name, stages in _ours().items():
        if stages and wanted(f"attackcheck {name}"):
            results.append(_run_ours(subject, places, name, stages))
    if installed("adv_lib"):
        for name, (budget, run) in PEERS.items():
            if wanted(name):
                results.append(_run_peer(subject, places, name, budget, run, full, seed))
    joint = [_joint(subject, image, region) for image, region in places]
    sizes = ", ".join(str(int(region.mask.sum())) for _, region in places)
    note = f"{subject.note}; components of {sizes} pixels, {100 * SHARE:.0f} % of them to flip"
    yield Sheet(subject.name, note, joint, subject.certified, results, unit="region")


def _components(subject: Subject, count: int) -> list[tuple[int, Region]]:
    found = []
    for image in range(len(subject.images)):
        with torch.no_grad():
            predicted = subject.model(subject.images[image : image + 1])[0].argmax(0)
        for region in RegionRequest("components", "1000", SHARE).resolve(predicted, subject.radii[image]):
            if 16 <= int(region.mask.sum()) <= 1000:
                found.append((image, region))
    found.sort(key=lambda pair: (int(pair[1].mask.sum()), pair[0], pair[1].name))
    step = max(1.0, len(found) / count)
    return [found[int(i * step)] for i in range(min(count, len(found)))]


def _joint(subject: Subject, image: int, region: Region) -> float:
    """The least distance at which the claim lets 99 % of the region flip: its weakest pixels together."""
    factor = subject.claim.joint_factor or 0.0
    radii = subject.radii[image][region.mask].sort().values
    return factor * float(radii[: math.ceil(SHARE * len(radii) * (1 - 1e-9))].norm())


def _run_ours(subject: Subject, places: list[tuple[int, Region]], name: str, stages: tuple[Stage, ...]) -> Result:
    budget = ", ".join(stage.attack for stage in stages)
    result = Result(f"attackcheck {name}", "ours", budget, [], 0.0, 0.0, 0.0)
    for warm in (True, False):
        for index, region in places[:1] if warm else places:
            image = subject.images[index]
            tape = RegionTape(subject.model, image, region.mask, SHARE)
            clock = Clock()
            for stage in stages:
                attack = registry.get(stage.attack)
                objective = RegionFlip(region.mask, None, SHARE, loss=stage.loss)
                attack.function(tape, image[None], objective, **dict(stage.options))
            if not warm:
                _add(result, tape, clock.milliseconds(), len(places))
    return result


def _run_peer(
    subject: Subject,
    places: list[tuple[int, Region]],
    name: str,
    budget: str,
    run: Callable[[Stretch], None],
    full: bool,
    seed: int,
) -> Result:
    result = Result(name, "adv_lib", budget, [], 0.0, 0.0, 0.0)
    for warm in (True, False):
        for index, region in places[:1] if warm else places:
            image = subject.images[index]
            tape = RegionTape(subject.model, image, region.mask, SHARE)
            stretch = _stretch(tape, image, region.mask, full and not warm)
            tape.forward = tape.backward = 0
            with fenced(seed):
                clock = Clock()
                try:
                    run(stretch)
                except Exception as error:
                    kind = f"{type(error).__name__}: {error}"[:200]
                    result.failures[kind] = result.failures.get(kind, 0) + (not warm)
                spent = clock.milliseconds()
            if not warm:
                _add(result, tape, spent, len(places))
    result.failures = {kind: count for kind, count in result.failures.items() if count}
    return result


def _add(result: Result, tape: RegionTape, milliseconds: float, count: int) -> None:
    result.distance.append(tape.distance)
    result.forward += tape.forward / count
    result.backward += tape.backward / count
    result.milliseconds += milliseconds / count


def _stretch(tape: RegionTape, image: Tensor, mask: Tensor, full: bool) -> Stretch:
    point = image[None].clone().requires_grad_()
    order = tape.clean.topk(2, dim=0).indices  # (2, H, W)
    logits = tape(point)[0]
    margin = (logits.gather(0, order[:1]) - logits.gather(0, order[1:]))[0][mask]
    (slope,) = torch.autograd.grad(margin.sum(), point)
    distance = float(margin.sum().detach() / slope.norm().clamp_min(1e-30))
    room = max(0.25, distance)
    box = (float(image.min()) - room, float(image.max()) + room)
    scale = 12 / max(float(margin.detach().mean()), 1e-12)
    entries = float(slope.abs().sum().square() / slope.square().sum().clamp_min(1e-30))
    view = DenseView(tape, box, scale).eval()
    seen, unit = view.enter(image[None]).clamp(0, 1), 1 / (box[1] - box[0])
    return Stretch(view, seen, order[:1].clone(), order[1:].clone(), mask[None], distance * unit, entries, full)
