"""Certify a data set at many budgets, attack it image by image, and examine whatever contradicts a certificate."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from attackcheck import preflight
from attackcheck.arithmetic import Reference, exact_arithmetic, frozen, guarded
from attackcheck.certification_table import CertificationTable, MetricFinding, Row
from attackcheck.claims import RadiusClaim
from attackcheck.errors import InputError
from attackcheck.image_attacks import AttackedImage, Candidate, ImageAttack, Shift, candidates
from attackcheck.measures import dataset
from attackcheck.measures.components import connected
from attackcheck.measures.costs import FlipCosts
from attackcheck.measures.image import ImageBounds, bounds
from attackcheck.measures.names import Measure
from attackcheck.measures.shared import Weights, most_lost
from attackcheck.metric_counterexample import save_metric
from attackcheck.metrics import MetricClaim, Pictures, judge_metric
from attackcheck.recheck import Verdict
from attackcheck.refined import RefinedCertificate, refine
from attackcheck.refined.costs import RefinedCosts
from attackcheck.refined.tail import sorted_values
from attackcheck.subject import Images, Subject

__all__ = ["ATTACKS", "EPSILONS", "Plan", "certify_data"]

EPSILONS = (0.001, 0.003, 0.01, 0.03, 0.05, 0.1, 0.17, 0.25, 0.3, 0.5, 0.7, 1.0, 1.5)

ATTACKS = (ImageAttack(),)

KEPT_BYTES = 2**29
"""Logits of the data set are kept between the two passes if they fit here; else the model is called again.

The costs of flips that are made of them may take half as much besides.
"""

PROOF_SECONDS = 60.0
"""Seconds of work for the proof that a refined certificate rests on."""

ERROR_MARGIN = 8.0
"""Logit differences count as wrong by so many times the largest float32 error of a logit seen on the first image."""


@dataclass(frozen=True)
class Plan:
    """How to certify and attack.

    Args:
        epsilons: budgets, ascending.
        attacks: image-level attacks, none to certify only.
        metrics: further claims to attack.
        seed, device, box, tolerance, counterexamples: as for :func:`attackcheck.verify`.
        refine: also certify by the refined certificate, where the network has one.
    """

    epsilons: tuple[float, ...] = EPSILONS
    attacks: tuple[ImageAttack, ...] = ATTACKS
    metrics: tuple[MetricClaim, ...] = ()
    seed: int = 0
    device: str = "cpu"
    box: tuple[float, float] | None = None
    tolerance: float = 1e-5
    counterexamples: Path | None = None
    refine: bool = True

    def __post_init__(self) -> None:
        if not self.epsilons or not all(math.isfinite(eps) and 0 <= eps <= 1e6 for eps in self.epsilons):
            raise InputError(f"expected at least one eps, each from 0 to 1e6, got {list(self.epsilons)}")
        if self.metrics and not self.attacks:
            raise InputError("expected attacks for metric claims: without any, nothing can break them")
        if not 0 <= self.tolerance < 1:
            raise InputError(f"expected a relative tolerance in [0, 1), got {self.tolerance:g}")


def certify_data(subject: Subject, data: Images, plan: Plan) -> Iterator[tuple[CertificationTable, int, int]]:
    """Certify, then attack image by image: the table so far, and how many of how many attacked images are done.

    The first table has no attacked values; the last one has everything, also after Ctrl-C.

    Raises:
        InputError: if the model, the claim or an image cannot be used.
    """
    if len(data) == 0:
        raise InputError(f"expected at least one image, got none in {data.name}")
    preflight.check_model(subject.model)
    with exact_arithmetic(), torch.enable_grad():
        yield from _Certifier(subject, data, plan).tables()


class _Certifier:
    def __init__(self, subject: Subject, data: Images, plan: Plan) -> None:
        copy = frozen(subject.model)
        copied = copy is not subject.model
        if isinstance(copy, torch.nn.Module):
            copy.to(plan.device)
        if isinstance(subject.claim, RadiusClaim):
            subject = replace(subject, claim=subject.claim.of(copy))
        self._subject, self._data, self._plan = subject, data, plan
        self._frozen = copy
        self._model = guarded(copy)
        self._own = copied
        # Claims may ask for budgets of their own: they are attacked, and shown with the others.
        self._epsilons = tuple(sorted({*plan.epsilons, *(float(m.eps) for m in plan.metrics)}))
        self._budgets = torch.tensor(self._epsilons, dtype=torch.float64)
        self._bounds: list[ImageBounds] = []
        self._refined: list[ImageBounds] = []
        self._refinements: dict[tuple[int, ...], RefinedCertificate] = {}
        self._refinement = "" if plan.refine else "not asked for"
        self._sorted: Tensor | None = None
        self._lost = torch.full((len(self._epsilons),), math.inf, dtype=torch.float64)
        self._refined_lost = self._lost
        self._found: list[list[Candidate]] = []
        self._findings: list[MetricFinding] = []
        self._certified: list[Row] = []
        self._kept: dict[int, Tensor] = {}
        self._priced: dict[int, FlipCosts] = {}
        self._kept_bytes = self._priced_bytes = 0
        self._error = 0.0
        self._classes = 0
        self._reference: Reference | None = None
        self._seconds = {"model": 0.0, "certificate": 0.0, "refined": 0.0, "attacks": 0.0}
        self._stopped: str | None = None

    def tables(self) -> Iterator[tuple[CertificationTable, int, int]]:
        for index in range(len(self._data)):
            self._bounds.append(self._bound(index))
        self._share()
        attacks = self._plan.attacks
        total = len(self._data) if attacks else 0
        first = self._table()
        yield first, 0, total
        if not attacks:
            return
        start = time.perf_counter()
        try:
            for index in range(len(self._data)):
                self._found.append(self._attack(index))
                self._seconds["attacks"] = time.perf_counter() - start
                if index + 1 < len(self._data):
                    yield first, index + 1, total
            self._contradictions()
        except KeyboardInterrupt:
            self._stopped = "interrupted"
        self._seconds["attacks"] = time.perf_counter() - start
        yield self._table(), total, total

    # Certificates ------------------------------------------------------------------------------------------------

    def _read(self, index: int) -> tuple[str, Tensor, Tensor | None]:
        sample = self._data[index]
        preflight.check_image(sample.image, sample.name)
        labels = None if sample.labels is None else sample.labels.to(self._plan.device)
        return sample.name, sample.image.to(self._plan.device), labels

    def _logits(self, index: int, image: Tensor) -> Tensor:
        """Logits ``(K, H, W)`` of an image, remembered while there is room."""
        if index in self._kept:
            return self._kept[index]
        start = time.perf_counter()
        if self._reference is None:
            preflight.check_mode(self._frozen, image[None], own=self._own)
        with sorted_values(self._frozen if self._plan.refine else None) as values:
            logits = preflight.check_logits(self._model, image[None])[0].clone()
        self._sorted = values[-1][0] if values else None
        self._seconds["model"] += time.perf_counter() - start
        size = logits.numel() * logits.element_size()
        if self._kept_bytes + size <= KEPT_BYTES:
            self._kept[index], self._kept_bytes = logits, self._kept_bytes + size
        return logits

    def _costs(self, index: int, image: Tensor, logits: Tensor) -> FlipCosts:
        """What flips of an image cost, remembered while there is room."""
        if index in self._priced:
            return self._priced[index]
        found = self._new_costs(index, image, logits)
        size = sum(each.numel() * each.element_size() for each in (*[found.nearest] * 3, found.predicted))
        if index in self._kept and self._priced_bytes + size <= KEPT_BYTES // 2:
            self._priced[index], self._priced_bytes = found, self._priced_bytes + size
        return found

    def _new_costs(self, index: int, image: Tensor, logits: Tensor) -> FlipCosts:
        radius = None
        if not self._subject.claim.cheap:
            radii = self._subject.claim.radii(image[None], logits[None], index)
            if radii is None:
                raise InputError(f"expected a claim about image {index}, got none")
            radius = radii[0]
        return FlipCosts(self._subject.claim, logits, radius, error=self._error)

    def _bound(self, index: int) -> ImageBounds:
        name, image, labels = self._read(index)
        logits = self._logits(index, image)
        if labels is not None and tuple(labels.shape) != tuple(logits.shape[1:]):
            expected, got = tuple(logits.shape[1:]), tuple(labels.shape)
            raise InputError(f"expected labels of shape {expected} for {name}, got {got}")
        if self._reference is None:
            self._reference = Reference(self._frozen, image[None])
            exact = self._reference(image[None])[0]
            self._error = ERROR_MARGIN * float((exact - logits.cpu().double()).abs().max())
            self._classes = int(logits.shape[0])
        if logits.shape[0] != self._classes:
            raise InputError(f"expected {self._classes} classes for every image, got {logits.shape[0]} for {name}")
        start = time.perf_counter()
        found = bounds(self._costs(index, image, logits), labels, self._data.ignore, self._budgets)
        self._seconds["certificate"] += time.perf_counter() - start
        if self._plan.refine and len(self._refined) == index:
            self._refine(image, logits, labels)
        return found

    def _refine(self, image: Tensor, logits: Tensor, labels: Tensor | None) -> None:
        """The same by the refined certificate, unless it was found for another image that there is none."""
        start = time.perf_counter()
        try:
            costs = self._refined_costs(image, logits, self._sorted)
            self._refined.append(bounds(costs, labels, self._data.ignore, self._budgets))
        except InputError as none:
            self._refined, self._refinement = [], f"none: {none}"
        self._seconds["refined"] += time.perf_counter() - start

    def _refined_costs(self, image: Tensor, logits: Tensor, values: Tensor | None = None) -> RefinedCosts:
        shape = tuple(image.shape)
        if shape not in self._refinements:
            self._refinements[shape] = refine(self._frozen, shape, budget=PROOF_SECONDS)
        certificate = self._refinements[shape]
        self._refinement = certificate.describe()
        return certificate.costs(image, logits, error=self._error, values=values)

    @property
    def _refined_jointly(self) -> bool:
        """Whether the refined certificate says something about sets of pixels of every image."""
        return len(self._refined) == len(self._data) and all(c.joint for c in self._refinements.values())

    def _share(self) -> None:
        """Mean IoU under a budget that all classes share, once the sums over the data set are known."""
        clean = [image.clean for image in self._bounds]
        present = dataset.counted_classes(clean)
        if not present.any():
            return
        weights = Weights(
            torch.from_numpy(np.sum([c.intersection for c in clean], axis=0)),
            torch.from_numpy(np.sum([c.union for c in clean], axis=0)),
            torch.from_numpy(present),
        )
        ordinary = self._subject.claim.joint_factor is not None
        if ordinary:
            self._lost = self._most_lost(weights, self._costs, "certificate")
        if self._refined_jointly:
            self._refined_lost = self._most_lost(
                weights, lambda _, image, logits: self._refined_costs(image, logits), "refined"
            )

    def _most_lost(self, weights: Weights, costs: Callable[[int, Tensor, Tensor], FlipCosts], clock: str) -> Tensor:
        total = torch.zeros_like(self._lost)
        for index in range(len(self._data)):
            _, image, labels = self._read(index)
            if labels is None:
                continue
            logits = self._logits(index, image)
            start = time.perf_counter()
            flat = labels.flatten()
            priced = costs(index, image, logits)
            if priced.share is None:
                return torch.full_like(self._lost, math.inf)
            total += most_lost(priced, flat, flat != self._data.ignore, weights, self._budgets)
            self._seconds[clock] += time.perf_counter() - start
        return total

    # Attacks -----------------------------------------------------------------------------------------------------

    def _prepared(self, index: int) -> AttackedImage:
        _, image, labels = self._read(index)
        logits = self._logits(index, image)
        predicted = logits.flatten(1).argmax(dim=0)
        flat = None if labels is None else labels.flatten()
        valid = None if flat is None else flat != self._data.ignore
        shape = (int(logits.shape[1]), int(logits.shape[2]))
        return AttackedImage(index, image, logits, flat, valid, predicted, connected(predicted, shape))

    def _attack(self, index: int) -> list[Candidate]:
        """The clean image first, then what every attack found."""
        image = self._prepared(index)
        clean = Candidate(self._bounds[index].clean, 0.0, None, 0.0)
        return [clean, *(found for found, _ in self._run(image, self._attacks(), self._epsilons))]

    def _attacks(self) -> tuple[ImageAttack, ...]:
        """Those of the plan, and one at every class that a claim is about."""
        labels = sorted({claim.cls for claim in self._plan.metrics if claim.cls is not None})
        first = self._plan.attacks[0]
        return (*self._plan.attacks, *(replace(first, cls=cls) for cls in labels))

    def _run(
        self, image: AttackedImage, attacks: Sequence[ImageAttack], epsilons: Sequence[float]
    ) -> Iterator[tuple[Candidate, Shift]]:
        return candidates(self._model, image, attacks, epsilons, seed=self._plan.seed, box=self._plan.box)

    def _under_attack(self, measure: Measure, cls: int | None, eps: float) -> tuple[float, list[Candidate]]:
        """The worst value that the points found within ``eps`` add up to, and one point of each image."""
        within = [[c for c in found if c.distance <= eps] for found in self._found]
        # Images that were not attacked yet take part as they are.
        within += [[Candidate(b.clean, 0.0, None, 0.0)] for b in self._bounds[len(within) :]]
        value, chosen = dataset.attacked(measure, cls, [[c.counts for c in found] for found in within])
        return value, [found[place] for found, place in zip(within, chosen, strict=True)]

    def _contradictions(self) -> None:
        """Examine what attacks seem to have broken: the claims given, and for every measure its worst certificate."""
        for claim in self._plan.metrics:
            if claim.cls is not None and claim.cls >= self._classes:
                raise InputError(f"expected a class below {self._classes} in {claim.describe()!r}")
            value, points = self._under_attack(claim.measure, claim.cls, claim.eps)
            if math.isnan(value):
                raise InputError(f"expected a measure that has a value on this data, got {claim.describe()!r}")
            if claim.excess(value) > 0:
                self._examine(claim, points)
        worst: dict[tuple[Measure, int | None, str], tuple[float, MetricClaim]] = {}
        for row in self._rows():
            refined = row.refined_per_pixel if row.refined is None else row.refined
            for source, bound in (("certified", row.certified), ("refined", refined)):
                if row.attacked is None or bound is None or math.isnan(bound):
                    continue
                claim = MetricClaim(row.measure, row.eps, bound, row.cls, source)
                key, excess = (row.measure, row.cls, source), claim.excess(row.attacked)
                if excess > 0 and (key not in worst or excess > worst[key][0]):
                    worst[key] = excess, claim
        for _, claim in worst.values():
            self._examine(claim, self._under_attack(claim.measure, claim.cls, claim.eps)[1])

    def _examine(self, claim: MetricClaim, points: Sequence[Candidate]) -> None:
        if self._reference is None:
            raise RuntimeError("nothing was certified")
        pictures, shifts = [], []
        for index, point in enumerate(points):
            image = self._prepared(index)
            shift = Shift(torch.zeros_like(image.image, dtype=torch.float16), 1.0)
            if point.attack is not None:
                shift = next(again for _, again in self._run(image, [point.attack], [point.eps]))
            labels = None if image.labels is None else image.labels.reshape(image.logits.shape[1:]).cpu()
            predicted = image.predicted.reshape(image.logits.shape[1:]).cpu()
            clean, shift = image.image.cpu(), Shift(shift.numbers.cpu(), shift.scale)
            name = self._data[index].name
            pictures.append(Pictures(name, clean, shift.added_to(clean), labels, predicted))
            shifts.append(shift)
        judgement = judge_metric(
            self._reference,
            claim,
            pictures,
            classes=self._classes,
            ignore=self._data.ignore,
            tolerance=self._plan.tolerance,
        )
        names = dict.fromkeys(point.attack.describe() for point in points if point.attack is not None)
        path = None
        if judgement.verdict is Verdict.VIOLATED and self._plan.counterexamples is not None:
            path = save_metric(
                claim,
                pictures,
                shifts,
                folder=self._plan.counterexamples,
                classes=self._classes,
                ignore=self._data.ignore,
                tolerance=self._plan.tolerance,
                value=judgement.value,
                subject=self._subject.meta,
            )
        self._findings.append(
            MetricFinding(claim, judgement.verdict, judgement.value, judgement.distance, ", ".join(names), path)
        )

    # The table ---------------------------------------------------------------------------------------------------

    def _rows(self) -> Iterator[Row]:
        """The certificate's rows, with the attacks' values once there are any."""
        if not self._certified:
            self._certified = list(self._certificates())
        for row in self._certified:
            value = self._under_attack(row.measure, row.cls, row.eps)[0] if self._found else None
            yield replace(row, attacked=value)

    def _certificates(self) -> Iterator[Row]:
        clean = [image.clean for image in self._bounds]
        present = np.flatnonzero(dataset.counted_classes(clean)).tolist()
        for measure in Measure:
            if measure.labelled and not any(c.valid for c in clean):
                continue
            for cls in present if measure.per_class else (None,):
                value = dataset.clean(measure, cls, clean)
                constant = dataset.constant(measure, cls, clean)
                refined, shared = len(self._refined) == len(self._bounds), self._refined_jointly
                for place, eps in enumerate(self._epsilons):
                    lost = float(self._refined_lost[place])
                    yield Row(
                        measure=measure,
                        cls=cls,
                        eps=eps,
                        clean=value,
                        certified=dataset.certified(measure, cls, self._bounds, place, float(self._lost[place])),
                        per_pixel=dataset.per_pixel(measure, cls, self._bounds, place),
                        attacked=None,
                        constant=constant,
                        refined=dataset.certified(measure, cls, self._refined, place, lost) if shared else None,
                        refined_per_pixel=dataset.per_pixel(measure, cls, self._refined, place) if refined else None,
                    )

    def _table(self) -> CertificationTable:
        names = self._data.classes
        return CertificationTable(
            subject={
                **self._subject.meta,
                "claim": self._subject.claim.to_dict(),
                "claim_text": self._subject.claim.describe(),
                "data": self._data.name,
                "device": self._plan.device,
                "seed": self._plan.seed,
                "torch": torch.__version__,
            },
            epsilons=self._epsilons,
            images=len(self._data),
            rows=tuple(self._rows()),
            smallest=tuple(dataset.smallest(self._bounds, self._refined if self._refined_jointly else ())),
            classes=None if names is None else tuple(names),
            attacks=tuple(attack.describe() for attack in self._attacks()) if self._plan.attacks else (),
            metrics=self._plan.metrics,
            findings=tuple(self._findings),
            logit_error=self._error,
            seconds=dict(self._seconds),
            stopped=self._stopped,
            refinement=self._refinement,
        )
