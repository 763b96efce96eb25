"""Bounds of activations, scalings and normalisations.

The suprema of derivatives that have no closed form are stored with their digits cut off below and above; the tests find
them again, from the derivative on a fine grid and a bound of its curvature.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from attackcheck.errors import InputError

from .bound import Bound, down, up

__all__ = ["ACTIVATIONS", "activation", "batch_norm", "normalisation", "scaling"]


def activation(name: str, **options: float | Tensor | str | None) -> Bound:
    """Bounds an activation by its name in lower case without underscores ("relu", "gelu", "maxmin", ...).

    Options carry the names that torch gives them: `negative_slope` (LeakyReLU), `weight` (PReLU, tensor or number),
    `alpha` (ELU, CELU), `lower` and `upper` (RReLU), `approximate` (GELU), `threshold` and `value` (Threshold),
    `classes` (log-softmax). Where the function jumps or steepens without end the bound is infinite.
    Raises InputError for names without a rule: `ACTIVATIONS` lists the others.
    """
    rule = ACTIVATIONS.get(name.lower().replace("_", "").replace("-", ""))
    if rule is None:
        raise InputError(f"no bound is known for the activation {name!r}; known: {', '.join(ACTIVATIONS)}")
    if isinstance(rule, float):
        return Bound(rule, rule, "largest slope")
    if isinstance(rule, tuple):
        return Bound(*rule, "largest slope")
    return rule(options)


def scaling(scale: Tensor | float) -> Bound:
    """Bounds the multiplication by `scale`, number by number or channel by channel: exact."""
    numbers = torch.as_tensor(scale, dtype=torch.float64).detach().abs()
    largest = float(numbers.max()) if numbers.numel() else 0.0
    return Bound(largest, largest, "largest scale") if math.isfinite(largest) else Bound(math.inf, 0.0, "not finite")


def batch_norm(gamma: Tensor | None, variance: Tensor, eps: float) -> Bound:
    """Bounds batch normalisation in evaluation: max |gamma| / sqrt(variance + eps) over channels."""
    spread = (variance.detach().to("cpu", torch.float64) + eps).sqrt()
    numerator = torch.ones_like(spread) if gamma is None else gamma.detach().to("cpu", torch.float64).abs()
    largest = float((numerator / spread).max())
    if not math.isfinite(largest):
        return Bound(math.inf, 0.0, "not finite")
    return Bound(up(largest), down(largest), "gamma / sqrt(var + eps)")


def normalisation(gamma: Tensor | float | None, eps: float, count: int = 0) -> Bound:
    """Bounds layer, instance and group normalisation (and RMS normalisation): max |gamma| / sqrt(eps).

    With s^2 = var + eps the Jacobian is gamma (P - z z' / n) / s, P the projection that removes the mean: its norm is
    at most max |gamma| / s, and s^2 comes down to eps where the input is constant. `count` is the number of values
    that share their statistics; with it the lower bound at a constant input is given too.
    """
    numbers = torch.as_tensor(1.0 if gamma is None else gamma).detach().to("cpu", torch.float64).abs()
    largest = float(numbers.max()) if numbers.numel() else 0.0
    if not eps > 0 or not math.isfinite(largest):
        return Bound(math.inf, 0.0, "no eps: unbounded")
    steep = largest / math.sqrt(eps)
    lower = down(steep * math.sqrt(1 - 1 / count), 8) if count > 1 else 0.0
    return Bound(up(steep) if largest else 0.0, lower, "gamma / sqrt(eps), at constant input")


def _number(value: float | Tensor | str | None, default: float) -> float:
    """An option as a number; of a tensor the largest magnitude."""
    if value is None:
        return default
    if isinstance(value, Tensor):
        return float(value.detach().double().abs().max())
    return float(value)


Options = dict[str, float | Tensor | str | None]


def _slope(option: str, default: float) -> Callable[[Options], Bound]:
    """Slope 1 on one side of zero, and `option` on the other."""

    def rule(options: Options) -> Bound:
        steepest = max(1.0, abs(_number(options.get(option), default)))
        return Bound(steepest, steepest, "largest slope")

    return rule


def _prelu(options: Options) -> Bound:
    if options.get("weight") is None:
        raise InputError("expected the option `weight` for prelu")
    return _slope("weight", 0.25)(options)


def _rrelu(options: Options) -> Bound:
    middle = (_number(options.get("lower"), 1 / 8) + _number(options.get("upper"), 1 / 3)) / 2
    steepest = max(1.0, up(abs(middle), 2)) if abs(middle) > 1 else 1.0
    return Bound(steepest, down(max(1.0, abs(middle)), 2) if abs(middle) > 1 else 1.0, "largest slope")


def _celu(options: Options) -> Bound:
    return Bound(1.0, 1.0, "largest slope") if _number(options.get("alpha"), 1.0) > 0 else _unbounded(options)


def _gelu(options: Options) -> Bound:
    return Bound(*(_GELU_TANH if options.get("approximate") == "tanh" else _GELU), "largest slope")


def _threshold(options: Options) -> Bound:
    threshold, value = _number(options.get("threshold"), 0.0), _number(options.get("value"), 0.0)
    return Bound(1.0, 1.0, "largest slope") if threshold == value else _unbounded(options)


def _softmax(options: Options) -> Bound:
    """The Jacobian diag(p) - p p' has norm at most 1/2, where two classes share all probability."""
    if _number(options.get("classes"), 2) < 2:
        return Bound(0.0, 0.0, "one class")
    return Bound(0.5, 0.5, "largest slope")


def _log_softmax(options: Options) -> Bound:
    """The Jacobian I - 1 p' is an oblique projection of norm |1| |p|, at most the root of the number of classes."""
    classes = options.get("classes")
    if classes is None:
        raise InputError("expected the option `classes` for logsoftmax")
    classes = int(_number(classes, 0))
    if classes < 2:
        return Bound(0.0, 0.0, "one class")
    return Bound(up(math.sqrt(classes)), down(math.sqrt(classes)), "root of the number of classes")


def _unbounded(_: Options) -> Bound:
    return Bound(math.inf, 0.0, "jumps or steepens without end")


_GELU = (1.12890414519, 1.12890414518)
_GELU_TANH = (1.12899306859, 1.12899306858)
_SILU = (1.09983932013, 1.09983932012)
_MISH = (1.08849816126, 1.08849816125)
_SELU = 1.0507009873554805 * 1.6732632423543772

Rule = float | tuple[float, float] | Callable[[Options], Bound]

ACTIVATIONS: dict[str, Rule] = {
    **dict.fromkeys(("identity", "relu", "relu6", "abs", "tanh", "hardtanh", "clamp", "softplus", "softsign",
                     "logsigmoid", "tanhshrink", "softshrink", "sin", "cos", "atan", "logsumexp", "maxmin",
                     "groupsort", "fullsort", "sort", "householder"), 1.0),
    "leakyrelu": _slope("negative_slope", 0.01),
    "prelu": _prelu,
    "rrelu": _rrelu,
    "elu": _slope("alpha", 1.0),
    "celu": _celu,
    "selu": (up(_SELU, 1), down(_SELU, 1)),
    "gelu": _gelu,
    "silu": _SILU,
    "swish": _SILU,
    "quickgelu": _SILU,
    "mish": _MISH,
    "hardswish": 1.5,
    "hardsigmoid": (up(1 / 6, 1), down(1 / 6, 1)),
    "sigmoid": 0.25,
    "erf": (up(2 / math.sqrt(math.pi)), down(2 / math.sqrt(math.pi))),
    "softmax": _softmax,
    "softmin": _softmax,
    "logsoftmax": _log_softmax,
    "threshold": _threshold,
    **dict.fromkeys(("hardshrink", "glu", "exp", "square", "sqrt", "sign", "round", "floor", "ceil"), _unbounded),
}  # fmt: skip
