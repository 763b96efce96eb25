"""Attacks only propose: every proposal is examined alone, in float64, before a verdict is spoken."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from attackcheck.arithmetic import Reference, exact_distance
from attackcheck.claims import Claim
from attackcheck.probe import Kind

__all__ = ["Judge", "Judgement", "Scene", "Verdict"]


PUSHES = (1.0 + 1e-6, 1.0 + 1e-5, 1.0 + 1e-4)
"""How much further along its ray a point is examined when float64 sees a tie there."""


class Verdict(Enum):
    """What a proposal came to; the value is the sentence that is shown."""

    VIOLATED = "the claim is broken: float64 confirms it beyond every rounding error"
    ROUNDING = "float64 confirms the flip, but by no more than the rounding of the certificate itself"
    DEPLOYED_ONLY = "the model as deployed flips inside the radius, the real-number function does not"
    UNDECIDED = "a gap between two classes is within the float64 error: a tie decides nothing"
    NOT_REPRODUCED = "the proposal did not show again"
    HELD = "attacked, and no flip was found inside the certified radius"
    UNCHECKED = "not attacked"


@dataclass(frozen=True)
class Judgement:
    """A verdict with its numbers; distances are exact float64 norms on the [0, 1] pixel scale.

    Attributes:
        bound: what the claim says the perturbation must at least measure (for LIPSCHITZ: the norm of the logits'
            change divided by the constant).
        distance: what it does measure.
        perturbed: ``(C, H, W)``, the exact point judged.
        target: class that the pixel changed to, -1 for sets and maps.
        allowance: how far the bound may exceed the distance by rounding alone.
        pixels: ``(P, 2)`` rows and columns that are flipped beyond error (SET), else the pixel.
    """

    verdict: Verdict
    kind: Kind
    bound: float
    distance: float
    perturbed: Tensor
    target: int
    allowance: float
    pixels: Tensor

    @property
    def ratio(self) -> float:
        """``bound / distance``, above 1 for a violation."""
        return self.bound / self.distance if self.distance > 0 else math.inf


@dataclass(frozen=True)
class Scene:
    """One clean image as the judge sees it: exact image, deployed and float64 logits, radii, their rounding."""

    index: int
    image: Tensor  # (C, H, W) as stored
    deployed: Tensor  # (K, H, W)
    reference: Tensor  # (K, H, W) float64
    error: float  # of a float64 logit difference
    norm_error: float  # of the norm of the float64 logit map
    predicted: Tensor  # (H, W) the certifier's own prediction
    radius: Tensor  # (H, W) float64
    rounding: Tensor  # (H, W) rho: rounding of the certifier's own number


class Judge:
    """Examines proposals on one model and claim.

    Args:
        model: the frozen model as deployed; called with a batch of one.
        reference: the same model in float64.
        claim: what is claimed.
        tolerance: relative excess of a bound over a distance that still counts as rounding.
        device: where the model as deployed runs.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Tensor],
        reference: Reference,
        claim: Claim,
        *,
        tolerance: float = 1e-5,
        device: torch.device | str = "cpu",
    ) -> None:
        self._model = model
        self._device = torch.device(device)
        self._reference = reference
        self._claim = claim
        self.tolerance = tolerance

    def scene(self, index: int, image: Tensor, deployed: Tensor, radius: Tensor) -> Scene:
        """Float64 logits and error bounds of one clean image ``(C, H, W)`` with its deployed logits ``(K, H, W)``."""
        exact = self._reference(image[None])
        error, norm_error = self._reference.error(image[None], exact)
        deployed = deployed.detach().cpu()
        wrong = (deployed.double() - exact[0]).abs().amax(dim=0)  # (H, W)
        radius = radius.detach().cpu()
        return Scene(
            index=index,
            image=image.detach().cpu(),
            deployed=deployed,
            reference=exact[0],
            error=error,
            norm_error=norm_error,
            predicted=deployed.argmax(dim=0),
            radius=radius,
            rounding=self._rounding(wrong, radius),
        )

    def pixel(self, scene: Scene, perturbed: Tensor, row: int, column: int) -> Judgement:
        """PIXEL: is this pixel flipped at ``perturbed`` ``(C, H, W)``, closer than its radius?"""
        perturbed = perturbed.detach().cpu()
        first = self._flip(scene, perturbed, row, column)
        if first.verdict not in (Verdict.NOT_REPRODUCED, Verdict.UNDECIDED):
            return first
        # A flip seen in float32 may need a little more in float64: along its ray, up to the radius, never beyond.
        room = first.bound / first.distance if first.distance > 0 else 1.0
        if room > 1.0:
            steps = [step for step in PUSHES if step < room]
            steps += [room ** (k / 9.0) for k in range(1, 9) if room ** (k / 9.0) > PUSHES[-1]]
            for step in steps:
                pushed = self._flip(scene, _further(scene, perturbed, step), row, column)
                if pushed.verdict in (Verdict.VIOLATED, Verdict.ROUNDING):
                    return pushed
        if self._deployed_flips(scene, perturbed, row, column) and first.bound > first.distance:
            return replace(first, verdict=Verdict.DEPLOYED_ONLY)
        return first

    def two_ball(self, scene: Scene, perturbed: Tensor) -> Judgement | None:
        """TWO_BALL: are pixels flipped at ``perturbed`` closer than the sum of their radii here and there?

        The judgement is about the worst of them; all that are violated are in its ``pixels``, worst first.
        """
        return self._pushed(self._two_ball, scene, perturbed)

    def _two_ball(self, scene: Scene, perturbed: Tensor) -> Judgement | None:
        there = self._point(scene, perturbed)
        radius = self._back(scene, perturbed, there)
        if radius is None or not bool(there.flipped.any()):
            return None
        bound = torch.where(there.flipped, scene.radius + radius, 0.0)
        wrong = (self._deployed(perturbed).double() - there.logits).abs().amax(dim=0)
        allowance = (scene.rounding + self._rounding(wrong, radius)).clamp_min(self.tolerance * there.distance)
        excess = bound - there.distance - allowance
        worst = divmod(int(torch.where(there.flipped, bound - allowance, -math.inf).argmax()), bound.shape[1])
        broken = (excess > 0).nonzero()
        verdict = Verdict.VIOLATED if len(broken) else Verdict.ROUNDING
        if not len(broken) and bool((bound <= there.distance).all()):
            verdict = Verdict.HELD
        others = [pixel for pixel in broken.tolist() if tuple(pixel) != worst]
        others.sort(key=lambda pixel: -float(excess[pixel[0], pixel[1]]))
        return Judgement(
            verdict,
            Kind.TWO_BALL,
            float(bound[worst]),
            there.distance,
            perturbed,
            int(there.predicted[worst]),
            float(allowance[worst]),
            torch.tensor([list(worst), *others]),
        )

    def flipped_set(self, scene: Scene, perturbed: Tensor) -> Judgement | None:
        """SET: did all pixels flipped at ``perturbed`` together cost less than their joint budget?"""
        return self._pushed(self._flipped_set, scene, perturbed)

    def _flipped_set(self, scene: Scene, perturbed: Tensor) -> Judgement | None:
        factor = self._claim.joint_factor
        if factor is None:
            return None
        there = self._point(scene, perturbed)
        here = self._claim.radii(scene.image[None], scene.reference[None], None)
        back = self._back(scene, perturbed, there)
        if here is None or back is None:
            return None
        sums = torch.where(there.flipped, here[0] + back, 0.0)
        bound = factor * float(sums.norm())
        error = 2.0 * there.error * self._claim.slope * factor * math.sqrt(int(there.flipped.sum()))
        return self._measured(Kind.SET, bound, error, there, perturbed)

    def expansion(self, scene: Scene, perturbed: Tensor) -> Judgement | None:
        """LIPSCHITZ: did the logits move further than the claim permits?"""
        perturbed = perturbed.detach().cpu()
        there = self._point(scene, perturbed)
        change = (there.logits - scene.reference)[None]
        ratio = self._claim.expansions(change, torch.tensor([there.distance], dtype=torch.float64))
        if ratio is None:
            return None
        moved = float(change.norm())
        relative = (scene.norm_error + there.norm_error) / moved if moved > 0 else math.inf
        bound = float(ratio) * there.distance
        return self._measured(Kind.LIPSCHITZ, bound, bound * relative, there, perturbed)

    def _pushed(
        self, examine: Callable[[Scene, Tensor], Judgement | None], scene: Scene, perturbed: Tensor
    ) -> Judgement | None:
        """Examine a point, and a little further along its ray: attacks stop where float32 has just flipped."""
        perturbed = perturbed.detach().cpu()
        first = examine(scene, perturbed)
        if first is None or first.verdict is not Verdict.VIOLATED:
            for step in PUSHES:
                again = examine(scene, _further(scene, perturbed, step))
                if again is not None and again.verdict is Verdict.VIOLATED:
                    return again
        return first

    def _measured(self, kind: Kind, bound: float, error: float, there: _Point, perturbed: Tensor) -> Judgement:
        allowance = max(error, self.tolerance * min(bound, there.distance))
        excess = bound - there.distance
        verdict = Verdict.VIOLATED if excess > allowance else Verdict.ROUNDING if excess > 0 else Verdict.HELD
        pixels = there.flipped.nonzero()
        return Judgement(verdict, kind, bound, there.distance, perturbed, -1, allowance, pixels)

    def _flip(self, scene: Scene, perturbed: Tensor, row: int, column: int) -> Judgement:
        distance = exact_distance(scene.image, perturbed)
        there = self._reference(perturbed[None])
        error = max(scene.error, self._reference.error(perturbed[None], there)[0])
        own = int(scene.predicted[row, column])
        here_gap = _gap(scene.reference[:, row, column], own)
        logits = there[0, :, row, column]
        new = int(logits.argmax())
        there_gap = float(logits[new] - logits[own])
        radius = float(scene.radius[row, column])
        allowance = max(float(scene.rounding[row, column]), self.tolerance * min(radius, distance))
        if abs(here_gap) <= error:
            verdict = Verdict.UNDECIDED
        elif here_gap < 0:
            verdict = Verdict.DEPLOYED_ONLY  # the certifier's prediction is not the real-number function's
        elif new == own or there_gap <= error:
            near = new != own or -_gap(logits, own) >= -error
            verdict = Verdict.UNDECIDED if near else Verdict.NOT_REPRODUCED
        elif radius - distance > allowance:
            verdict = Verdict.VIOLATED
        else:
            verdict = Verdict.ROUNDING if radius > distance else Verdict.HELD
        return Judgement(
            verdict, Kind.PIXEL, radius, distance, perturbed, new, allowance, torch.tensor([[row, column]])
        )

    def _point(self, scene: Scene, perturbed: Tensor) -> _Point:
        logits = self._reference(perturbed[None])
        error, norm_error = self._reference.error(perturbed[None], logits)
        error = max(error, scene.error)
        z = logits[0]
        own = scene.predicted[None]
        lead = z.scatter(0, own, -math.inf).amax(dim=0) - z.gather(0, own)[0]
        here = scene.reference.gather(0, own)[0] - scene.reference.scatter(0, own, -math.inf).amax(dim=0)
        flipped = (lead > error) & (here > error)
        return _Point(z, z.argmax(dim=0), lead, flipped, error, norm_error, exact_distance(scene.image, perturbed))

    def _deployed(self, perturbed: Tensor) -> Tensor:
        with torch.no_grad():
            return self._model(perturbed[None].to(self._device))[0].detach().cpu()

    def _deployed_flips(self, scene: Scene, perturbed: Tensor, row: int, column: int) -> bool:
        own = int(scene.predicted[row, column])
        return all(int(self._deployed(perturbed)[:, row, column].argmax()) != own for _ in range(3))

    def _back(self, scene: Scene, perturbed: Tensor, there: _Point) -> Tensor | None:
        """How far flipped pixels ``(H, W)`` are from their clean class again, None where the claim does not say."""
        if self._claim.cheap:
            return self._claim.way_back(there.lead[None], there.logits[None], scene.predicted)[0]
        radius = self._claim.radii(perturbed[None].to(self._device), self._deployed(perturbed)[None], None)
        return None if radius is None else radius[0].cpu()

    def _rounding(self, wrong: Tensor, radius: Tensor) -> Tensor:
        """What float32 does to radii ``(H, W)`` computed from logits that are wrong by ``wrong`` ``(H, W)``."""
        finite = torch.where(radius.isfinite(), radius, 0.0)
        return 4.0 * 2.0**-24 * finite + 2.0 * wrong * self._claim.slope


@dataclass(frozen=True)
class _Point:
    logits: Tensor  # (K, H, W) float64
    predicted: Tensor  # (H, W)
    lead: Tensor  # (H, W) of the best other class over the clean one
    flipped: Tensor  # (H, W) bool, beyond error at both ends
    error: float
    norm_error: float
    distance: float


def _further(scene: Scene, perturbed: Tensor, step: float) -> Tensor:
    """The point whose perturbation is ``step`` times as long."""
    delta = perturbed.double() - scene.image.double()
    return (scene.image.double() + delta * step).to(perturbed.dtype)


def _gap(logits: Tensor, own: int) -> float:
    others = logits.clone()
    others[own] = -math.inf
    return float(logits[own] - others.max())
