"""What a certificate says: radii, joint distances and ratios, as pure functions of logits.

Notation: logits ``z`` of shape ``(B, K, H, W)``; margin of a pixel against class k ``m_k = z_y - z_k`` with ``y`` the
predicted class; distances are L2 norms over the whole image, on the [0, 1] pixel scale. Everything is computed in
float64 from the logits as they come: the difference of two float32 numbers is then exact enough never to matter.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from attackcheck import synchrony
from attackcheck.confidence import Confidence
from attackcheck.errors import InputError, in_one_line

__all__ = ["Claim", "ClassPairClaim", "LipschitzClaim", "RadiusClaim", "Scope", "margins", "takes_model"]

Scope = Literal["joint", "pixel"]
SQRT2 = math.sqrt(2.0)


def margins(logits: Tensor) -> Tensor:
    """Margin of every pixel's predicted class over the runner-up.

    Args:
        logits: ``(B, K, H, W)`` with ``K >= 2``.

    Returns:
        ``(B, H, W)`` float64, zero at a tie.
    """
    best, predicted = logits.max(dim=1, keepdim=True)  # (B, 1, H, W)
    rival = logits.scatter(1, predicted, -math.inf).amax(dim=1)  # (B, H, W)
    return best.squeeze(1).double() - rival.double()


def _lengths(change: Tensor) -> Tensor:
    """L2 norm of each row of a float32 tensor ``(B, ...)``, in float64: long sums and large ranges lose nothing."""
    if synchrony.readable(change):  # where asking costs nothing, float32 within rows of an image does in half the time
        norm: Tensor = torch.linalg.vector_norm(change, dim=-1).flatten(1).double().square_().sum(dim=1).sqrt_()
        if bool(((norm > 1e-6) & (norm < 1e15)).all()):  # what squares below 1e-38 have lost is nothing beside this
            return norm
    length: Tensor = torch.linalg.vector_norm(change.flatten(1), dim=1, dtype=torch.float64)
    return length


@runtime_checkable
class Claim(Protocol):
    """What every kind of certificate can be asked."""

    @property
    def joint_factor(self) -> float | None:
        """``s`` such that flipping a set S takes at least ``s * sqrt(sum of squared radii)``; None: no joint claim."""

    @property
    def single_constant(self) -> bool:
        """Whether :meth:`expansions` is one norm of the whole map over one constant."""

    @property
    def cheap(self) -> bool:
        """Whether radii follow from the logits alone, so that they can be had at every point an attack visits."""

    def describe(self) -> str:
        """One line for a header."""

    def radii(self, images: Tensor, logits: Tensor, index: int | None) -> Tensor | None:
        """Certified radii ``(B, H, W)`` in float64 at these images.

        Args:
            images: ``(B, C, H, W)``.
            logits: the model's logits there, ``(B, K, H, W)``.
            index: which image of the data this is (``B = 1``), or None for a point that is not in the data.

        Returns:
            The radii, or None where the claim says nothing about such a point.
        """

    def way_back(self, lead: Tensor, logits: Tensor, clean: Tensor) -> Tensor:
        """How far a flipped pixel at least is from its clean class again, given where it is now.

        It is a radius towards one class, so never smaller than the pixel's certified radius there, and just as sound:
        on the segment from x to x' the pixel leaves class y no sooner than its radius from x, and no later than this
        from x'.

        Args:
            lead: ``(B, H, W)``, the best other logit minus the clean class's.
            logits: ``(B, K, H, W)``.
            clean: ``(H, W)``, the clean class y.

        Returns:
            ``(B, H, W)``, meaningful where ``lead`` is positive; zero for a claim that is not :attr:`cheap`.
        """

    def expansions(self, change: Tensor, distance: Tensor, error: Tensor | None = None) -> Tensor | None:
        """How far the logits moved, relative to what the claim permits.

        Args:
            change: ``f(x') - f(x)``, ``(B, K, H, W)``.
            distance: ``||x' - x||``, ``(B,)`` float64, positive.
            error: ``(K,)``, by how much the change of each class's logit may be wrong; only movement beyond it counts.

        Returns:
            ``(B,)`` float64, above 1 where the claim is broken; None if the claim is not about the logits' movement.
        """

    def to_dict(self) -> dict[str, Any]:
        """The claim as plain numbers and strings, for reports and counterexamples."""


@dataclass(frozen=True)
class LipschitzClaim:
    """``||f(x') - f(x)|| <= L ||x' - x||`` for all x and x'.

    ``scope="joint"`` takes both norms over everything, so that a set of pixels shares one budget;
    ``scope="pixel"`` says it of each pixel's logit vector only. From either follows the radius
    ``m / (sqrt(2) L)`` (Tsuzuku et al. 2018, Lipschitz-margin training, proposition 1, applied per pixel).

    Args:
        lipschitz: the constant L, positive and finite.
        scope: what the constant is about.
        pixel: a smaller constant that holds for each pixel's logit vector; a joint claim's radii then use it.
        source: where the constant comes from, for the reader of a report.
        layers: constants that single layers are counted with, by dotted name, for an audit to look at.

    Raises:
        InputError: if a constant is not positive and finite, the scope is unknown, or ``pixel`` exceeds ``lipschitz``.
    """

    lipschitz: float
    scope: Scope = "joint"
    pixel: float | None = None
    source: str = "given"
    layers: Mapping[str, float] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        if self.scope not in ("joint", "pixel"):
            raise InputError(f"expected scope 'joint' or 'pixel', got {self.scope!r}")
        constants: list[tuple[str, Any]] = [("Lipschitz constant", self.lipschitz)]
        if self.pixel is not None:
            constants.append(("pixel Lipschitz constant", self.pixel))
        constants += [(f"constant of layer {name}", value) for name, value in (self.layers or {}).items()]
        for name, value in constants:
            if not (isinstance(value, int | float) and math.isfinite(value) and value > 0):
                raise InputError(f"expected a positive, finite {name}, got {value!r}")
        if self.pixel is not None and (self.scope == "pixel" or self.pixel > self.lipschitz):
            raise InputError(
                f"expected a pixel constant of at most the joint constant {self.lipschitz:g} beside a joint claim, "
                f"got {self.pixel:g} with scope {self.scope!r}"
            )

    @property
    def pixel_constant(self) -> float:
        """The constant behind every pixel's radius."""
        return self.lipschitz if self.pixel is None else self.pixel

    @property
    def joint_factor(self) -> float | None:
        """Ratio of the pixel to the joint constant, None for a claim about single pixels."""
        return self.pixel_constant / self.lipschitz if self.scope == "joint" else None

    @property
    def cheap(self) -> bool:
        """True: radii are functions of the logits."""
        return True

    @property
    def slope(self) -> float:
        """``1 / (sqrt(2) L)``."""
        return 1.0 / (SQRT2 * self.pixel_constant)

    @property
    def single_constant(self) -> bool:
        """For joint claims without a constant of their own for pixels."""
        return self.scope == "joint" and self.pixel_constant == self.lipschitz

    def describe(self) -> str:
        """The constant, its scope and where it comes from."""
        pixel = "" if self.pixel is None or self.pixel == self.lipschitz else f", {self.pixel:.6g} per pixel"
        return f"L = {self.lipschitz:.6g} ({self.scope}{pixel}), {self.source}"

    def radii(self, images: Tensor, logits: Tensor, index: int | None) -> Tensor:  # noqa: ARG002
        """Radii ``m / (sqrt(2) L)``, ``(B, H, W)`` float64, at any image."""
        return margins(logits) / (SQRT2 * self.pixel_constant)

    def radii_towards(self, logits: Tensor, target: int) -> Tensor:
        """How far every pixel is at least from class ``target``, ``(B, H, W)`` float64; 0 where it is that class."""
        gap = logits.amax(dim=1).double() - logits[:, target].double()
        distance: Tensor = gap / (SQRT2 * self.pixel_constant)
        return distance

    def way_back(self, lead: Tensor, logits: Tensor, clean: Tensor) -> Tensor:  # noqa: ARG002
        """``lead / (sqrt(2) L)``."""
        return lead * self.slope

    def expansions(self, change: Tensor, distance: Tensor, error: Tensor | None = None) -> Tensor:
        """The larger of the joint and the pixel ratio over its constant, ``(B,)`` float64."""
        if error is not None:
            change = change.sign() * (change.abs() - error[:, None, None]).clamp_min(0.0)
        if self.single_constant and change.dtype == torch.float32:  # no pixel moves further than the whole map
            return _lengths(change) / (self.lipschitz * distance)
        # Squares of numbers below 1e-19 vanish in float32: measured relative to the largest of them.
        least, most = change.aminmax()
        scale = torch.maximum(most, -least).clamp_min(torch.finfo(change.dtype).tiny)
        squares = (change * scale.reciprocal()).square_().sum(dim=1).flatten(1)  # (B, H * W)
        ratio = squares.amax(dim=1).double().sqrt() * scale.double() / (self.pixel_constant * distance)
        if self.scope == "joint":
            joint = squares.sum(dim=1, dtype=torch.float64).sqrt() * scale.double()
            ratio = torch.maximum(ratio, joint / (self.lipschitz * distance))
        return ratio

    def to_dict(self) -> dict[str, Any]:
        """Kind, constants, scope and source."""
        return {
            "kind": "lipschitz",
            "L": float(self.lipschitz),
            "scope": self.scope,
            "pixel": None if self.pixel is None else float(self.pixel),
            "source": self.source,
            **({} if self.layers is None else {"layers": {name: float(value) for name, value in self.layers.items()}}),
        }


@dataclass(frozen=True, eq=False)
class ClassPairClaim:
    """The last layer is a 1x1 convolution whose rows are known: ``r = min_k m_k / (L_features ||w_y - w_k||)``.

    Args:
        lipschitz_features: joint Lipschitz constant of everything before the last layer.
        weight: ``(K, C)`` rows of the last layer, or its ``(K, C, 1, 1)`` kernel.
        source: where the constant comes from.

    Raises:
        InputError: for a constant that is not positive and finite, or a weight of another shape.
    """

    lipschitz_features: float
    weight: Tensor
    source: str = "given"
    _spread: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lipschitz_features) and self.lipschitz_features > 0):
            raise InputError(f"expected a positive, finite Lipschitz constant, got {self.lipschitz_features!r}")
        weight = torch.as_tensor(self.weight).detach().double().cpu()
        if weight.dim() == 4 and weight.shape[2:] == (1, 1):
            weight = weight.flatten(1)
        if weight.dim() != 2 or not bool(weight.isfinite().all()):
            raise InputError(f"expected finite rows of shape (K, C), got {tuple(weight.shape)}")
        object.__setattr__(self, "weight", weight)
        object.__setattr__(self, "_spread", (weight[:, None] - weight[None]).norm(dim=2))

    @property
    def joint_factor(self) -> float | None:
        """One: flipped pixels' features share the budget."""
        return 1.0

    @property
    def cheap(self) -> bool:
        """True: radii are functions of the logits."""
        return True

    @property
    def single_constant(self) -> bool:
        """False: every pair of classes has its own."""
        return False

    def describe(self) -> str:
        """The constant of the features and where it comes from."""
        return f"L = {self.lipschitz_features:.6g} up to the last layer, class-pair radii, {self.source}"

    def radii(self, images: Tensor, logits: Tensor, index: int | None) -> Tensor:  # noqa: ARG002
        """Minimum over ALL classes, not the runner-up alone, ``(B, H, W)`` float64."""
        spread: Tensor = self._spread.to(logits.device)
        if spread.shape[0] != logits.shape[1]:
            raise InputError(f"expected logits of {spread.shape[0]} classes for these rows, got {logits.shape[1]}")
        z = logits.double()
        best, predicted = z.max(dim=1, keepdim=True)
        allowed = spread[predicted.squeeze(1)].movedim(-1, 1)  # (B, K, H, W)
        gap = best - z
        radius = torch.where(gap > 0, gap / allowed, torch.zeros_like(gap))
        radius = radius.scatter(1, predicted, math.inf)
        return radius.amin(dim=1) / self.lipschitz_features

    def way_back(self, lead: Tensor, logits: Tensor, clean: Tensor) -> Tensor:
        """``lead / (L_features ||w_y - w_k||)`` with k the class that leads."""
        allowed = self._spread.to(logits.device)[clean.expand_as(lead), logits.max(dim=1).indices]
        return torch.where(lead > 0, lead / (self.lipschitz_features * allowed).to(lead.dtype), 0.0)

    def expansions(self, change: Tensor, distance: Tensor, error: Tensor | None = None) -> Tensor:
        """Largest movement of a logit difference over what its pair of rows permits, ``(B,)`` float64."""
        spread: Tensor = self._spread.to(change.device)
        worst = torch.zeros_like(distance)
        for k in range(spread.shape[0]):
            moved = (change[:, k : k + 1].double() - change.double()).abs().flatten(2).amax(dim=2)  # (B, K)
            if error is not None:
                moved = (moved - error[k] - error).clamp_min(0.0)
            pair = torch.where(spread[k] > 0, moved / spread[k], torch.zeros_like(moved))
            worst = torch.maximum(worst, pair.amax(dim=1))
        return worst / (self.lipschitz_features * distance)

    def to_dict(self) -> dict[str, Any]:
        """Kind, constant and rows."""
        return {
            "kind": "class-pair",
            "L": float(self.lipschitz_features),
            "weight": self.weight.tolist(),
            "source": self.source,
        }


@dataclass(frozen=True, eq=False)
class RadiusClaim:
    """Radii from somebody's certifier; nothing else is known about them.

    Args:
        certifier: an array ``(N, H, W)`` of radii for the images in order; or a function from images ``(B, C, H, W)``
            to radii ``(B, H, W)``; or one with three required positional parameters, ``(model, images, lipschitz)``.
            A function is also asked at perturbed images (TWO_BALL), and one of three parameters at gadgets: networks
            with known distances.
        lipschitz: the constant that is handed to a certifier of three parameters.
        source: where the radii come from.
        confidence: with what probability they hold, as those of randomized smoothing do; None: certainly. A rate of
            violations is then compared with it, and nothing is asked at perturbed images.

    Raises:
        InputError: if an array is not three-dimensional, or holds NaN or a negative radius; if the certifier takes a
            constant and there is none, or there is one that it does not take.
    """

    certifier: np.ndarray[Any, Any] | Tensor | Callable[..., Any]
    lipschitz: float | None = field(default=None, kw_only=True)
    source: str = "given"
    confidence: Confidence | None = field(default=None, kw_only=True)
    _stored: Tensor | None = field(init=False, repr=False, default=None)
    _model: Callable[[Tensor], Tensor] | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if self.takes_model and self.lipschitz is None:
            raise InputError("expected a Lipschitz constant for a certifier (model, images, lipschitz), got none")
        if self.lipschitz is not None:
            if not self.takes_model:
                raise InputError("expected a Lipschitz constant only for a certifier (model, images, lipschitz)")
            if not (math.isfinite(self.lipschitz) and self.lipschitz > 0):
                raise InputError(f"expected a positive, finite Lipschitz constant, got {self.lipschitz!r}")
        if callable(self.certifier):
            return
        given = self.certifier
        if not isinstance(given, Tensor) and np.asarray(given).dtype.kind not in "fiu":
            raise InputError(f"expected numbers as radii, got {np.asarray(given).dtype}")
        radii = torch.as_tensor(given).detach().double().cpu()
        if radii.dim() != 3:
            raise InputError(f"expected radii of shape (N, H, W), got {tuple(radii.shape)}")
        _check_radii(radii)
        object.__setattr__(self, "_stored", radii)

    @property
    def takes_model(self) -> bool:
        """Whether the certifier is a function of model, images and constant, so that it can be run on any model."""
        return callable(self.certifier) and takes_model(self.certifier)

    def of(self, model: Callable[[Tensor], Tensor]) -> RadiusClaim:
        """The same claim about this very model; without effect unless the certifier takes one."""
        if not self.takes_model:
            return self
        bound = copy.copy(self)
        object.__setattr__(bound, "_model", model)
        return bound

    @property
    def joint_factor(self) -> float | None:
        """None: nothing is claimed about sets."""
        return None

    @property
    def cheap(self) -> bool:
        """False: the certifier may be costly, and is asked about the final points only."""
        return False

    @property
    def single_constant(self) -> bool:
        """False: nothing is claimed about logits."""
        return False

    def describe(self) -> str:
        """Where the radii come from."""
        constant = "" if self.lipschitz is None else f" with L = {self.lipschitz:.6g}"
        sure = "" if self.confidence is None else f", {self.confidence.describe()}"
        return f"certified radii{constant}{sure}, {self.source}"

    def radii(self, images: Tensor, logits: Tensor, index: int | None) -> Tensor | None:
        """The given radii of image ``index``, or the certifier's answer; None where an array says nothing."""
        shape = (images.shape[0], *logits.shape[2:])
        if index is None and self.confidence is not None:
            return None  # at points that an attack chose, nothing is claimed with any probability
        if self._stored is not None:
            if index is None:
                return None
            if index >= self._stored.shape[0]:
                raise InputError(f"expected radii for image {index}, got {self._stored.shape[0]} maps of radii")
            radii = self._stored[index : index + 1]
        elif callable(self.certifier):
            radii = torch.as_tensor(self._ask(self.certifier, images)).detach().double()
            if index is None and bool(radii.isnan().any()):
                return None
            _check_radii(radii)
        if tuple(radii.shape) != shape:
            raise InputError(f"expected radii of shape {shape}, got {tuple(radii.shape)}")
        return radii.to(logits.device)

    def way_back(self, lead: Tensor, logits: Tensor, clean: Tensor) -> Tensor:  # noqa: ARG002
        """Zero: radii elsewhere are the certifier's to say."""
        return torch.zeros_like(lead)

    def expansions(self, change: Tensor, distance: Tensor, error: Tensor | None = None) -> Tensor | None:  # noqa: ARG002
        """None: nothing is claimed about logits."""
        return None

    def to_dict(self) -> dict[str, Any]:
        """Kind and source."""
        sure = {} if self.confidence is None else {"confidence": self.confidence.to_dict()}
        return {"kind": "radii", "L": self.lipschitz, "source": self.source, **sure}

    def _ask(self, certifier: Callable[..., Any], images: Tensor) -> Any:
        images = images.clone()  # a certifier that works in place must not reach the image
        if self.lipschitz is not None and self._model is None:
            raise InputError("expected a claim about a model: call claim.of(model) first")
        try:
            if self.lipschitz is None:
                return certifier(images)
            return certifier(self._model, images, self.lipschitz)
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(f"the certifier failed: {in_one_line(error)}") from error


def takes_model(certifier: Callable[..., Any]) -> bool:
    """Whether a certifier has three required positional parameters: model, images, Lipschitz constant."""
    try:
        parameters = inspect.signature(certifier).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is inspect.Parameter.empty for p in parameters) == 3


def _check_radii(radii: Tensor) -> None:
    if bool(radii.isnan().any()):
        raise InputError("expected certified radii, got NaN among them; use 0 where the certifier abstains")
    if bool((radii < 0).any()):
        raise InputError(f"expected radii of at least 0, got {radii.min().item():g}")
