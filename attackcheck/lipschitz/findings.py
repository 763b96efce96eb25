"""What an audit found, as data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from torch import Tensor

from attackcheck.errors import InputError, in_one_line

__all__ = ["AuditReport", "AuditVerdict", "Layer", "Witness"]


class AuditVerdict(Enum):
    """What an audit came to; the value is the sentence that is shown."""

    PROVED = "the weights prove the claim: the bound is at most the claimed constant"
    REFUTED = "two images are further apart in logits than the claim permits, beyond every rounding error"
    PREMISE_REFUTED = "a layer's norm exceeds the constant that the claim counts it with"
    UNDECIDED = "the bound does not reach the claim, and no pair of images breaks it"


@dataclass(frozen=True)
class Layer:
    """One operation with a Lipschitz constant of its own.

    Attributes:
        name: dotted name of its module, with a number where a module has several.
        kind: of operation.
        shape: of its input, ``(C, H, W)``.
        detail: kernel, stride, padding, dilation, groups, as far as they are not the plain ones.
        upper, lower: the constant lies between.
        method: where the upper bound comes from.
        used: constant that the claim counts the module with, as far as that is known.
        refuted: whether ``lower`` exceeds ``used`` by more than the rounding of stored weights.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    detail: str
    upper: float
    lower: float
    method: str
    used: float | None = None
    refuted: bool = False


@dataclass(frozen=True)
class Witness:
    """Two images, and how far apart the claim and the exact float64 logits say they may be, and are.

    ``ratio`` is the movement of the logits over what the claim permits, after subtraction of its error.
    """

    ratio: float
    distance: float
    start: str
    image: Tensor = field(repr=False)  # (C, H, W)
    perturbed: Tensor = field(repr=False)


@dataclass(frozen=True)
class AuditReport:
    """The result of :func:`attackcheck.audit`.

    Attributes:
        claim: as plain values; ``claim_text`` the same for people.
        input_shape: ``(C, H, W)`` at which every operation was bounded.
        bound: proved Lipschitz constant of what the claim is about (the whole logit map; the features, times the
            largest ratio between the model's and the claim's differences of rows, for a class-pair claim), or None.
        pixel_bound: the same for each pixel's logit vector; None for a class-pair claim, or without a bound.
        lower: largest constant that a pair of images shows, None where none was tried.
        layers: in the order of the computation.
        missing: why there is no bound, empty otherwise.
        verdict, sentence: the answer, and what it hangs on.
        seconds: of the whole audit.
        witness: the pair of images behind ``lower``.
        counterexample: file of that pair for `attackcheck replay`, where it refutes the claim and was saved.
    """

    claim: Mapping[str, Any]
    claim_text: str
    input_shape: tuple[int, ...]
    bound: float | None
    pixel_bound: float | None
    lower: float | None
    layers: tuple[Layer, ...]
    missing: str
    verdict: AuditVerdict
    sentence: str
    seconds: float
    witness: Witness | None = None
    counterexample: Path | None = None

    @property
    def refuted(self) -> bool:
        """Whether the claim, or what it rests on, is shown to be wrong."""
        return self.verdict in (AuditVerdict.REFUTED, AuditVerdict.PREMISE_REFUTED)

    @property
    def worst(self) -> Layer | None:
        """The layer furthest above the constant that the claim counts it with, or with the largest bound."""
        counted = [layer for layer in self.layers if layer.refuted]
        if counted:
            return max(counted, key=lambda layer: layer.lower / (layer.used or 1.0))
        return max(self.layers, key=lambda layer: layer.upper, default=None)

    def exit_code(self) -> int:
        """1 if :attr:`refuted`, else 0."""
        return 1 if self.refuted else 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; numbers unrounded, None where a number is infinite or unknown."""
        witness = self.witness
        return {
            "schema_version": 1,
            "claim": dict(self.claim),
            "claim_text": self.claim_text,
            "input_shape": list(self.input_shape),
            "verdict": self.verdict.name,
            "sentence": self.sentence,
            "bound": _number(self.bound),
            "pixel_bound": _number(self.pixel_bound),
            "lower": _number(self.lower),
            "missing": self.missing or None,
            "layers": [_layer(layer) for layer in self.layers],
            "witness": None
            if witness is None
            else {"ratio": witness.ratio, "distance": witness.distance, "start": witness.start},
            "counterexample": None if self.counterexample is None else str(self.counterexample),
            "seconds": self.seconds,
        }

    @classmethod
    def of_dict(cls, plain: Mapping[str, Any]) -> AuditReport:
        """What :meth:`to_dict` gave; without the images of a witness, which are not in it.

        Raises:
            InputError: for anything else.
        """
        try:
            saved = plain.get("counterexample")
            layers = tuple(
                Layer(**{**layer, "shape": tuple(layer["shape"]), "upper": _infinite(layer["upper"])})
                for layer in plain["layers"]
            )
            return cls(
                claim=plain["claim"],
                claim_text=plain["claim_text"],
                input_shape=tuple(plain["input_shape"]),
                bound=plain["bound"],
                pixel_bound=plain["pixel_bound"],
                lower=plain["lower"],
                layers=layers,
                missing=plain["missing"] or "",
                verdict=AuditVerdict[plain["verdict"]],
                sentence=plain["sentence"],
                seconds=plain["seconds"],
                counterexample=None if saved is None else Path(saved),
            )
        except (KeyError, TypeError) as error:
            raise InputError(f"expected an audit written by attackcheck ({in_one_line(error)})") from None


def _infinite(value: float | None) -> float:
    return math.inf if value is None else value


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _layer(layer: Layer) -> dict[str, Any]:
    plain: dict[str, Any] = {name: getattr(layer, name) for name in layer.__dataclass_fields__}
    plain["shape"] = list(layer.shape)
    return plain | {name: _number(plain[name]) for name in ("upper", "lower", "used")}
