"""What a planted fault is: a subject that is wrong in one known way, or that only looks wrong, with its proof."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from torch import Tensor, nn

from attackcheck.attacks.plans import Plan
from attackcheck.claims import Claim
from attackcheck.metrics import MetricClaim

__all__ = ["Built", "Case", "Family", "Proof", "control", "fault", "scaled_fault"]


class Family(Enum):
    """Where a certificate went wrong; the value is the sentence that says it."""

    CONSTANT = "the constant of a single layer is understated"
    COMPOSITION = "the layers' constants are right, but put together wrongly"
    STATE = "the constant belongs to another state of the network"
    FORMULA = "the radius does not follow from margin and constant"
    PLUMBING = "right radii are given to the wrong pixels"
    SCOPE = "a true statement is used where it does not hold"
    MEASURE = "a measure of the data set is put together wrongly"
    ARITHMETIC = "numbers are rounded the wrong way, overflow or cancel"
    NETWORK = "the network hides from attacks that follow its gradient"
    SOUND = "nothing is wrong, but it tempts a false alarm"


@dataclass(frozen=True, eq=False)
class Built:
    """What is handed to the checker, and what a proof needs besides.

    Attributes:
        model: images ``(B, C, H, W)`` in [0, 1] -> logits ``(B, K, H, W)``.
        claim: what is claimed about it.
        images: ``(N, C, H, W)`` float32.
        labels: ``(N, H, W)``, or None.
        steep_at: ``(C, H, W)``, where the slope shows that breaks the claim; the first image if None.
        pair: clean and perturbed image ``(C, H, W)``, stored where a proof cannot be found by following the slope.
        elsewhere: the same certifier on a network where it can be caught, if this one is too loose for that.
        metrics: what is claimed about the images as a whole.
    """

    model: nn.Module
    claim: Claim
    images: Tensor
    labels: Tensor | None = None
    steep_at: Tensor | None = None
    pair: tuple[Tensor, Tensor] | None = None
    elsewhere: Built | None = None
    metrics: tuple[MetricClaim, ...] = ()


@dataclass(frozen=True)
class Proof:
    """What was shown about a subject without any attack.

    Attributes:
        factor: of an unsound claim what was witnessed over what is claimed (claimed radius over a distance at which
            the class does change, or movement of the logits over what the constant permits), above 1; of a sound one
            what can at most be witnessed, at most 1.
        how: one sentence.
    """

    factor: float
    how: str


Prove = Callable[[Built], Proof]


@dataclass(frozen=True, eq=False)
class Case:
    """One entry of the catalogue.

    Attributes:
        name: unique, the builder's name with hyphens.
        family: where it goes wrong; of a control the family whose right way it is, or SOUND.
        sentence: what is wrong, or why it is not.
        sound: whether the claim is true.
        make: seed and severity -> subject; seeds vary weights and images.
        prove: shows what `sound` says by means other than attacks; None for controls without a closed form.
        severities: values of the knob, the gravest first, which is the one that a plain run takes.
        knob: what a severity means; empty without one.
        refusable: whether a refusal of the model before any attack counts as detection.
        plan: plan that suits the subject's size.
        pixels: how many pixels to attack per image.
    """

    name: str
    family: Family
    sentence: str
    sound: bool
    make: Callable[[int, float], Built]
    prove: Prove | None
    severities: tuple[float, ...] = (1.0,)
    knob: str = ""
    refusable: bool = False
    plan: str | Plan = "standard"
    pixels: int = 16

    def build(self, seed: int, severity: float | None = None) -> Built:
        """The subject; the gravest severity unless another is given."""
        return self.make(seed, self.severities[0] if severity is None else severity)


def fault(
    family: Family, sentence: str, *, prove: Prove, refusable: bool = False
) -> Callable[[Callable[[int], Built]], Case]:
    """Turns a builder `seed -> Built` into an unsound case without a knob."""

    def enter(make: Callable[[int], Built]) -> Case:
        return Case(_name(make), family, sentence, False, lambda seed, _: make(seed), prove, refusable=refusable)

    return enter


def scaled_fault(
    family: Family, sentence: str, *, prove: Prove, knob: str, severities: Sequence[float], refusable: bool = False
) -> Callable[[Callable[[int, float], Built]], Case]:
    """Turns a builder `(seed, severity) -> Built` into an unsound case; `severities` start with the gravest."""

    def enter(make: Callable[[int, float], Built]) -> Case:
        return Case(_name(make), family, sentence, False, make, prove, tuple(severities), knob, refusable=refusable)

    return enter


def control(
    family: Family, sentence: str, *, prove: Prove | None = None, plan: str | Plan = "standard", pixels: int = 16
) -> Callable[[Callable[[int], Built]], Case]:
    """Turns a builder `seed -> Built` into a sound case."""

    def enter(make: Callable[[int], Built]) -> Case:
        return Case(_name(make), family, sentence, True, lambda seed, _: make(seed), prove, plan=plan, pixels=pixels)

    return enter


def _name(make: Callable[..., Built]) -> str:
    return str(make.__name__).replace("_", "-")
