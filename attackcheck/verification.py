"""The Python face of a run: tensors in, a report out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attackcheck.attacks.plans import Plan, plan_of_attacks
from attackcheck.attacks.plans import plan as read_plan
from attackcheck.claims import Claim
from attackcheck.crew import Crew
from attackcheck.engine import run
from attackcheck.errors import InputError
from attackcheck.events import Event, RunFinished
from attackcheck.metrics import MetricClaim
from attackcheck.on_ray.cluster import read_engine
from attackcheck.regions import RegionRequest, parse_region
from attackcheck.report import Report
from attackcheck.selection import HOW, Choose, PixelChoice, check_pixels
from attackcheck.subject import Settings, Subject

__all__ = ["ArrayImages", "verify"]

Array = np.ndarray[Any, Any]
IGNORE = 255


@dataclass(frozen=True)
class _Sample:
    name: str
    image: Tensor
    labels: Tensor | None


class ArrayImages:
    """Images and labels in memory, seen as a data set.

    Args:
        images: ``(N, C, H, W)``, or one ``(C, H, W)``; floating point in [0, 1] (float64 is rounded to float32).
        labels: ``(N, H, W)`` integers, 255 is ignored; None without.

    Raises:
        InputError: for other shapes or types.
    """

    name = "images in memory"
    classes: Sequence[str] | None = None
    ignore = IGNORE

    def __init__(self, images: Tensor | Array, labels: Tensor | Array | None = None) -> None:
        tensor = torch.as_tensor(images).detach()
        if tensor.dim() == 3:
            tensor = tensor[None]
        if tensor.dim() != 4 or not tensor.is_floating_point():
            raise InputError(
                f"expected floating-point images of shape (N, C, H, W), got {tensor.dtype} of {tuple(tensor.shape)}"
            )
        self._images = tensor
        self._labels = None if labels is None else torch.as_tensor(labels).detach().cpu()
        if self._labels is not None:
            if self._labels.dim() == 2:
                self._labels = self._labels[None]
            expected = (tensor.shape[0], *tensor.shape[2:])
            if tuple(self._labels.shape) != expected or self._labels.is_floating_point():
                got = f"{self._labels.dtype} of {tuple(self._labels.shape)}"
                raise InputError(f"expected integer labels of shape {expected}, got {got}")

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> _Sample:
        labels = None if self._labels is None else self._labels[index].long()
        return _Sample(f"image {index}", self._images[index].float(), labels)


def verify(
    model: Callable[[Tensor], Tensor],
    images: Tensor | Array,
    claim: Claim,
    labels: Tensor | Array | None = None,
    plan: str | Path | Plan = "standard",
    pixels: PixelChoice = 64,
    seed: int = 0,
    *,
    attacks: Sequence[str] | None = None,
    choose: Choose = "radius",
    regions: Sequence[str | RegionRequest] = ("components:1",),
    target: int | None = None,
    box: tuple[float, float] | None = None,
    tolerance: float = 1e-5,
    strict: bool = False,
    maxfail: int | None = None,
    budget: float | None = None,
    batch: int | None = None,
    device: str = "cpu",
    crops: bool = True,
    workers: int = 1,
    engine: str = "threads",
    audit: bool = True,
    counterexamples: str | Path | None = None,
    metrics: Sequence[MetricClaim] = (),
    on_event: Callable[[Event], None] | None = None,
) -> Report:
    """Try to break a claim about a model on these images.

    Args:
        model: ``(B, C, H, W) -> (B, K, H, W)``, rows independent; a module is copied, never changed.
        images: ``(N, C, H, W)`` in [0, 1]; distances are L2 norms over a whole image on this scale.
        claim: what is claimed.
        labels: ``(N, H, W)``, 255 is ignored; used for accuracies only, attacks go for the clean prediction.
        plan: ``"quick"``, ``"standard"``, ``"thorough"``, a TOML file, or a plan.
        pixels: how many per image, ``"all"``, or ``(M, 3)`` integers (image, row, column).
        seed: seed of every random choice.
        choose: what a number of pixels is drawn by: ``"radius"`` (stratified), ``"class"`` (in turn), ``"random"`` or
            ``"weakest"`` (smallest radii first).
        attacks: names of attacks to run instead of a plan.
        regions: regions for the plan's region stages, e.g. ``"components:1"``, ``"class:3@0.5"``.
        target: class that attacks aim at.
        box: range that perturbed images must keep, e.g. ``(0, 1)``; L2 certificates need none.
        tolerance: relative excess of a radius over a distance that still counts as rounding.
        strict: see :meth:`Report.exit_code`; has no influence on verdicts.
        maxfail: stop after so many violations.
        budget: stop after so many seconds.
        batch: rows per attack call on pixels.
        device: where the model runs.
        crops: attack pixels on crops where the receptive field is small enough; False: on whole images.
        workers: images examined side by side on a CPU, each on a copy of the model.
        engine: who examines the images: ``"threads"`` of this process, or with ``"ray"`` or ``"ray:ADDRESS"`` workers
            of a Ray cluster (extra ``ray``), as many as it has processors or GPUs; the model is pickled.
        audit: first see what the weights of a module prove of a Lipschitz or class-pair claim.
        counterexamples: folder for counterexamples; None saves none.
        metrics: claims about all these images together, such as ``MetricClaim("accuracy", eps=0.1, value=0.9)``.
        on_event: is called with every event as it happens.

    Returns:
        The report; after Ctrl-C, of what was found until then.

    Raises:
        InputError: if something given cannot be used.
    """
    check_settings(seed=seed, tolerance=tolerance, maxfail=maxfail, budget=budget, batch=batch, pixels=pixels)
    address = read_engine(engine)
    if choose not in HOW:
        raise InputError(f"expected pixels to be chosen by {', '.join(HOW)}, got {choose!r}")
    settings = Settings(
        plan=plan_of_attacks(attacks) if attacks is not None else plan if isinstance(plan, Plan) else read_plan(plan),
        pixels=pixels,
        choose=choose,
        regions=[region if isinstance(region, RegionRequest) else parse_region(region) for region in regions],
        target=target,
        seed=seed,
        tolerance=tolerance,
        strict=strict,
        maxfail=maxfail,
        budget=budget,
        batch=batch,
        box=box,
        counterexamples=None if counterexamples is None else Path(counterexamples),
        device=device,
        crops=crops,
        workers=workers,
        audit=audit,
        metrics=tuple(metrics),
    )
    subject, data = Subject(model, claim, {"model": type(model).__name__}), ArrayImages(images, labels)
    crew = None if address is None else _on_ray(subject, data, settings, address)
    report: Report | None = None
    for event in run(subject, data, settings, crew=crew):
        if on_event is not None:
            on_event(event)
        if isinstance(event, RunFinished):
            report = event.report
    if report is None:
        raise RuntimeError("the run ended without a report")
    return report


def _on_ray(subject: Subject, data: ArrayImages, settings: Settings, address: str) -> Crew:
    from attackcheck.on_ray.crew import RayCrew
    from attackcheck.on_ray.worker import Given

    return RayCrew(subject, data, settings, Given(subject), address=address)


def check_settings(
    *,
    seed: int,
    tolerance: float,
    maxfail: int | None,
    budget: float | None,
    batch: int | None,
    pixels: PixelChoice,
) -> None:
    """Raise :class:`InputError` for a number out of range."""
    if seed < 0:
        raise InputError(f"expected a seed of at least 0, got {seed}")
    if not 0.0 <= tolerance < 1.0:
        raise InputError(f"expected a relative tolerance in [0, 1), got {tolerance:g}")
    for name, value in (("maxfail", maxfail), ("batch", batch)):
        if value is not None and value < 1:
            raise InputError(f"expected {name} of at least 1, got {value}")
    if budget is not None and not budget > 0:
        raise InputError(f"expected a budget above 0 seconds, got {budget:g}")
    if isinstance(pixels, np.ndarray):
        check_pixels(pixels, "pixels")
    elif pixels != "all" and pixels < 1:
        raise InputError(f"expected at least 1 pixel per image, got {pixels}")
