"""What a run would work on, without the run: for attack calls that are only counted.

Most attacks make as many passes on any network, so they are counted on one that costs nothing
(:mod:`attackcheck.passes`). Where the number depends on the network's boundaries, the stage is rehearsed: it runs on a
few pixels of the network itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attackcheck.attacking import Attacker, ImageWork, Unit
from attackcheck.attacks import registry
from attackcheck.attacks.plans import Stage
from attackcheck.certainty import Scene
from attackcheck.claims import Claim
from attackcheck.cones import Cone
from attackcheck.crops import Crops
from attackcheck.probe import Probe
from attackcheck.receptive import Windows
from attackcheck.regions import Region
from attackcheck.subject import Settings
from attackcheck.tally import Tally

__all__ = ["Rehearsed", "depends_on_boundaries", "rehearse", "usual_calls", "work_on"]

Model = Callable[[Tensor], Tensor]


def work_on(
    model: Model,
    claim: Claim,
    image: Tensor,
    logits: Tensor,
    radius: Tensor,
    pixels: Tensor,
    *,
    predicted: Tensor | None = None,
    regions: Sequence[Region] = (),
    windows: Windows | None = None,
    cone: Cone | None = None,
) -> ImageWork:
    """An image as attack calls want it, of which nothing will be judged.

    Args:
        model: what the probe shows points to.
        claim: about the model.
        image: ``(C, H, W)`` on the device.
        logits: ``(K, H, W)`` there.
        radius: ``(H, W)`` float64.
        pixels: ``(M, 2)`` under attack, on the CPU.
        predicted: ``(H, W)`` on the CPU, where it is not what the logits say.
        regions: under attack.
        windows: crops that attacks on pixels see; None: the whole image.
        cone: the model on them, computed around a pixel.
    """
    scene = Scene(
        index=0,
        image=image.cpu(),
        deployed=logits.cpu(),
        reference=logits.cpu().double(),
        error=torch.zeros(len(logits), dtype=torch.float64),
        norm_error=0.0,
        predicted=logits.argmax(dim=0).cpu() if predicted is None else predicted,
        radius=radius.cpu(),
        rounding=torch.zeros_like(radius).cpu(),
    )
    probe = Probe(model, image, logits, radius, claim)
    nowhere = torch.zeros(radius.shape, dtype=torch.bool)
    return ImageWork(
        index=0,
        name="rehearsal",
        image=image,
        labels=None,
        logits=logits,
        scene=scene,
        probe=probe,
        pixels=pixels,
        regions=regions,
        attacked=nowhere.clone(),
        masked=nowhere.clone(),
        class_after=torch.full(radius.shape, -1, dtype=torch.int16),
        crops=None if windows is None else Crops(probe, windows, torch.ones(len(logits)), cone),
    )


@dataclass(frozen=True)
class Rehearsed:
    """Rows sent forward and backward, for each row of the attack."""

    forward: float
    backward: float


def depends_on_boundaries(stage: Stage) -> bool:
    """Whether this attack makes more passes where boundaries are far from flat: pixels that it attacks again."""
    parameters = inspect.signature(registry.get(stage.attack).function).parameters
    options = [name for name in ("anew", "leaps", "crossings") if name in parameters]
    numbers = [stage.options.get(name, parameters[name].default) for name in options]
    return stage.objective == "pixel" and any(numbers)


def usual_calls(stage: Stage) -> Stage:
    """The stage without what few rows do anew: those calls are small, and the others would be taken to be as small."""
    return replace(stage, options={name: value for name, value in stage.options.items() if name != "anew"})


def rehearse(stage: Stage, settings: Settings, model: Model, work: ImageWork) -> Rehearsed:
    """Run a stage at its first budget on the pixels of ``work``, all in one call, and count."""
    rows = max(2, len(work.pixels))  # a single pixel is attacked in two rows
    attacker = Attacker(model, work.probe.claim, replace(settings, batch=rows), Tally(255))
    attacker.aim(work, work.pixels)
    eps = stage.eps[0] if stage.eps else None
    attacker.run(work, Unit(replace(stage, unflipped=False), eps, work.pixels, work.pixels, target=settings.target))
    costs = work.probe.evidence.costs
    return Rehearsed(sum(cost.forward for cost in costs) / rows, sum(cost.backward for cost in costs) / rows)
