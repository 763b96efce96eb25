"""Attacks only propose: every proposal is examined alone, in float64, before a verdict is spoken."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from attackcheck.arithmetic import Reference, exact_distance
from attackcheck.certainty import Point, Scene, relative_error, share, sure_lead, sure_rival
from attackcheck.claims import Claim
from attackcheck.points import Points
from attackcheck.probe import Kind

__all__ = ["Judge", "Judgement", "Verdict"]


PUSHES = (1.0 + 1e-6, 1.0 + 1e-5, 1.0 + 1e-4)
"""How much further along its ray a point is examined when float64 sees a tie there."""

CLOSE = 0.99
"""Share of the distance up to which a bound may come from a crop: nearer to a violation, the whole image is judged."""

AROUND = 8
"""Random directions in which another class is looked for around a tie."""


class Verdict(Enum):
    """What a proposal came to; the value is the sentence that is shown."""

    VIOLATED = "the claim is broken: float64 confirms it beyond every rounding error"
    COUNTED = "flipped inside a radius that holds with a probability only: the rate is compared with it"
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
        base: ``(C, H, W)``, where the perturbation starts if that is not the clean image.
    """

    verdict: Verdict
    kind: Kind
    bound: float
    distance: float
    perturbed: Tensor
    target: int
    allowance: float
    pixels: Tensor
    base: Tensor | None = None

    @property
    def ratio(self) -> float:
        """``bound / distance``, above 1 for a violation."""
        return self.bound / self.distance if self.distance > 0 else math.inf


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
        self._points = Points(model, reference, self._device)

    def scene(self, index: int, image: Tensor, deployed: Tensor, radius: Tensor) -> Scene:
        """Float64 logits and error bounds of one clean image ``(C, H, W)`` with its deployed logits ``(K, H, W)``."""
        self._points.forget()
        exact = self._reference(image[None])
        error, norm_error = self._reference.error(image[None], exact)
        deployed, radius = deployed.detach().cpu(), radius.detach().cpu()
        predicted = deployed.argmax(dim=0)
        return Scene(
            index=index,
            image=image.detach().cpu(),
            deployed=deployed,
            reference=exact[0],
            error=error,
            norm_error=norm_error,
            predicted=predicted,
            radius=radius,
            rounding=share(radius, relative_error(deployed, exact[0], error, predicted)),
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
        tied = first.verdict is Verdict.UNDECIDED and first.bound - first.distance > first.allowance
        if tied and self._another_class(scene, perturbed, row, column):
            # Whatever class a tie at the clean image is given, the ball must not hold two.
            return replace(first, verdict=Verdict.VIOLATED)
        inside = first.verdict is Verdict.NOT_REPRODUCED and first.bound > first.distance
        if inside and self._deployed_flips(scene, perturbed, row, column):
            return replace(first, verdict=Verdict.DEPLOYED_ONLY)
        return first

    def _another_class(self, scene: Scene, perturbed: Tensor, row: int, column: int) -> bool:
        """Whether a point as far from the clean image as this one is for sure of a class that this one is not of."""
        there = self._reference(perturbed[None])
        error, _ = self._reference.error(perturbed[None], there)
        delta = perturbed.double() - scene.image.double()
        generator = torch.Generator().manual_seed(0)
        ways = torch.randn(AROUND, *delta.shape, generator=generator, dtype=torch.float64)
        ways *= (delta.norm() / ways.flatten(1).norm(dim=1))[:, None, None, None]
        for way in torch.cat([-delta[None], ways, ways * (delta != 0)]):
            point = (scene.image.double() + way).to(perturbed.dtype)
            logits = self._reference(point[None])
            own = logits[0].argmax(dim=0)
            beaten = bool(sure_rival(there[0], error, own)[row, column] > 0)
            if beaten and exact_distance(scene.image, point) < float(scene.radius[row, column]):
                around, _ = self._reference.error(point[None], logits)
                if bool(sure_lead(logits[0], around, own)[row, column] > 0):
                    return True
        return False

    def two_ball(self, scene: Scene, perturbed: Tensor, *, push: bool = True) -> Judgement | None:
        """TWO_BALL: are pixels flipped at ``perturbed`` closer than the sum of their radii here and there?

        The judgement is about the worst of them; all that are violated are in its ``pixels``, worst first. With
        ``push`` a point where float64 sees a tie is also tried a little further along its ray.
        """
        return self._pushed(self._two_ball, scene, perturbed, PUSHES if push else ())

    def _two_ball(self, scene: Scene, perturbed: Tensor, there: Point) -> Judgement | None:
        back = self._back(scene, perturbed, there)
        if back is None:
            return None
        radius, relative, flipped = back
        if not bool(flipped.any()):
            return None
        bound = torch.where(flipped, scene.radius + radius, 0.0)
        allowance = (scene.rounding + share(radius, relative)).clamp_min(self.tolerance * there.distance)
        excess = torch.where(flipped, bound - there.distance - allowance, -math.inf)
        worst = divmod(int(excess.argmax()), bound.shape[1])
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

    def flipped_set(self, scene: Scene, perturbed: Tensor, *, push: bool = True) -> Judgement | None:
        """SET: did all pixels flipped at ``perturbed`` together cost less than their joint budget?"""
        return self._pushed(self._flipped_set, scene, perturbed, PUSHES if push else ())

    def _flipped_set(self, scene: Scene, perturbed: Tensor, there: Point) -> Judgement | None:
        factor = self._claim.joint_factor
        if factor is None:
            return None
        here = self._claim.radii(scene.image[None], scene.reference[None], None)
        back = self._back(scene, perturbed, there)
        if here is None or back is None:
            return None
        radius, relative, flipped = back
        # Flipped beyond error only, and every radius with the error of the margin that it is made of.
        own = relative_error(scene.reference, scene.reference, scene.error, scene.predicted)
        bound = factor * float(torch.where(flipped, here[0] + radius, 0.0).norm())
        error = factor * float(torch.where(flipped, share(here[0], own) + share(radius, relative), 0.0).norm())
        return self._measured(Kind.SET, bound, error, there, perturbed)

    def expansion(self, scene: Scene, perturbed: Tensor, *, push: bool = True) -> Judgement | None:  # noqa: ARG002
        """LIPSCHITZ: did the logits move further than the claim permits?"""
        return self._examined(self._expansion, scene, perturbed.detach().cpu())

    def _expansion(self, scene: Scene, perturbed: Tensor, there: Point) -> Judgement | None:
        change = (there.logits - scene.reference)[None]
        distance = torch.tensor([there.distance], dtype=torch.float64)
        ratio = self._claim.expansions(change, distance)
        sure = self._claim.expansions(change, distance, scene.error + there.error)
        if ratio is None or sure is None:
            return None
        error = float(ratio - sure)
        if self._claim.single_constant:
            # Where single logits are below their error, that of the norm of the whole map may still be small.
            lost = (scene.norm_error + there.norm_error) / max(float(change.norm()), 1e-300)
            error = min(error, float(ratio) * lost)
        bound = float(ratio) * there.distance
        return self._measured(Kind.LIPSCHITZ, bound, error * there.distance, there, perturbed)

    def movement(self, index: int, base: Tensor, perturbed: Tensor) -> Judgement | None:
        """LIPSCHITZ between two free points ``(C, H, W)``: as :meth:`expansion`, from a scene at the first of them."""
        deployed = self._points.deployed(base.cpu())
        nothing = torch.zeros(deployed.shape[1:], dtype=torch.float64)
        judgement = self.expansion(self.scene(index, base, deployed, nothing), perturbed)
        return None if judgement is None else replace(judgement, base=base.detach().cpu())

    def _pushed(
        self,
        examine: Callable[[Scene, Tensor, Point], Judgement | None],
        scene: Scene,
        perturbed: Tensor,
        pushes: Sequence[float],
    ) -> Judgement | None:
        """Examine a point, and a little further along its ray: attacks stop where float32 has just flipped."""
        perturbed = perturbed.detach().cpu()
        first = self._examined(examine, scene, perturbed)
        if first is None or first.verdict is not Verdict.VIOLATED:
            for step in pushes:
                again = self._examined(examine, scene, _further(scene, perturbed, step))
                if again is not None and again.verdict is Verdict.VIOLATED:
                    return again
        return first

    def _examined(
        self, examine: Callable[[Scene, Tensor, Point], Judgement | None], scene: Scene, perturbed: Tensor
    ) -> Judgement | None:
        """From a crop where that is enough to see that nothing is violated, else from the whole image."""
        near = self._points.near(scene, perturbed)
        if near is not None:
            judgement = examine(scene, perturbed, near)
            if judgement is not None and judgement.ratio < CLOSE:
                return judgement
        return examine(scene, perturbed, self._points.whole(scene, perturbed))

    def _measured(self, kind: Kind, bound: float, error: float, there: Point, perturbed: Tensor) -> Judgement:
        allowance = max(error, self.tolerance * min(bound, there.distance))
        excess = bound - there.distance
        verdict = Verdict.VIOLATED if excess > allowance else Verdict.ROUNDING if excess > 0 else Verdict.HELD
        pixels = there.flipped.nonzero()
        return Judgement(verdict, kind, bound, there.distance, perturbed, -1, allowance, pixels)

    def _flip(self, scene: Scene, perturbed: Tensor, row: int, column: int) -> Judgement:
        there = self._points.whole(scene, perturbed)
        radius, distance = float(scene.radius[row, column]), there.distance
        allowance = max(float(scene.rounding[row, column]), self.tolerance * min(radius, distance))
        if not bool(scene.own_lead[row, column] > 0):
            # Either a tie, or the certifier's prediction is not the real-number function's.
            verdict = Verdict.DEPLOYED_ONLY if bool(scene.other_lead[row, column] > 0) else Verdict.UNDECIDED
        elif not bool(there.other_lead[row, column] > 0):
            verdict = Verdict.NOT_REPRODUCED if bool(there.own_lead[row, column] > 0) else Verdict.UNDECIDED
        elif radius - distance > allowance:
            verdict = Verdict.VIOLATED
        else:
            verdict = Verdict.ROUNDING if radius > distance else Verdict.HELD
        target = int(there.predicted[row, column])
        pixels = torch.tensor([[row, column]])
        return Judgement(verdict, Kind.PIXEL, radius, distance, perturbed, target, allowance, pixels)

    def _deployed_flips(self, scene: Scene, perturbed: Tensor, row: int, column: int) -> bool:
        own = int(scene.predicted[row, column])
        return all(int(self._points.deployed(perturbed)[:, row, column].argmax()) != own for _ in range(3))

    def _back(self, scene: Scene, perturbed: Tensor, there: Point) -> tuple[Tensor, Tensor, Tensor] | None:
        """How far flipped pixels are from their clean class again, its relative error, and which pixels those are.

        None where the claim does not say.
        """
        own = scene.predicted
        flipped = there.flipped
        if self._claim.cheap:
            others = there.logits.scatter(0, own[None], -math.inf)
            lead = others.amax(dim=0) - there.logits.gather(0, own[None])[0]
            radius = self._claim.way_back(lead[None], there.logits[None], own)[0]
            relative = (there.error[others.argmax(dim=0)] + there.error[own]) / lead.clamp_min(1e-300)
            return radius, torch.where(flipped, relative, 0.0), flipped
        deployed = self._points.deployed(perturbed)
        radii = self._claim.radii(perturbed[None].to(self._device), deployed[None].to(self._device), None)
        if radii is None:
            return None
        # The certifier's ball is about the class that the model as deployed predicts there.
        flipped = flipped & (deployed.argmax(dim=0) == there.predicted)
        return radii[0].cpu(), relative_error(deployed, there.logits, there.error, there.predicted), flipped


def _further(scene: Scene, perturbed: Tensor, step: float) -> Tensor:
    """The point whose perturbation is ``step`` times as long."""
    delta = perturbed.double() - scene.image.double()
    return (scene.image.double() + delta * step).to(perturbed.dtype)
