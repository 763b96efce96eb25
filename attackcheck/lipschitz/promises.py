"""Which constant a claim counts each layer with: stated in the claim, or promised by the layer's own type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

__all__ = ["promises", "taken_whole"]

_WITH_WEIGHTS = (nn.Conv1d, nn.Conv2d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.Linear)
_PARAMETRISATIONS = ("_SpectralNorm", "_Orthogonal")
_NO_PROMISE = ("UnitNormLinear", "FrobeniusLinear")
"""Each row has norm one: a promise about single outputs, from which nothing follows for all of them together."""


def promises(model: nn.Module) -> Mapping[str, float]:
    """Constants that layers promise by their type, by dotted name.

    Layers with weights of orthogonium and deel-torchlip, this package's orthogonal layers, and torch's own layers under
    ``spectral_norm`` or ``orthogonal``; the exact type counts, a subclass of somebody else's promises nothing.
    """
    found = {}
    for name, module in model.named_modules():
        constant = _promise(module)
        if constant is not None:
            found[name] = constant
    return found


def _promise(module: nn.Module) -> float | None:
    kind = _kind(module)
    home, name = kind.__module__, kind.__name__
    if home.startswith("attackcheck.models.layers") and name in ("OrthogonalConv2d", "OrthogonalUp2d"):
        return None if getattr(module, "scaled", False) else 1.0
    if name in _NO_PROMISE:
        return None
    if home.startswith("deel.torchlip.") and hasattr(module, "_coefficient_lip"):
        pooling = name in ("ScaledAvgPool2d", "ScaledAdaptiveAvgPool2d")
        promised: Any = module._coefficient_lip
        return float(promised) if pooling or isinstance(module, _WITH_WEIGHTS) else None
    if home.startswith("orthogonium.") and isinstance(module, _WITH_WEIGHTS):
        return 1.0
    if home.startswith("torch.nn.modules.") and isinstance(module, _WITH_WEIGHTS) and _normalised(module):
        return 1.0
    return None


def _kind(module: nn.Module) -> type:
    """The class, seen through the one that torch makes for a parametrised module."""
    kind = type(module)
    return kind.__bases__[0] if parametrize.is_parametrized(module) else kind


def _normalised(module: nn.Module) -> bool:
    if parametrize.is_parametrized(module, "weight"):
        applied: Any = module.parametrizations
        return any(type(step).__name__ in _PARAMETRISATIONS for step in applied["weight"])
    hooks = module._forward_pre_hooks.values()
    return any(type(hook).__name__ == "SpectralNorm" for hook in hooks)


def taken_whole(module: nn.Module) -> Mapping[str, Any] | None:
    """Layers whose forward is one operation for the rules, by exact type; the keywords go with it.

    A Householder reflection chooses between two linear maps by the sign of a third, which as single operations is no
    continuous function any more.
    """
    kind = _kind(module)
    if kind.__name__ == "HouseHolder" and getattr(module, "axis", 1) == 1:
        if kind.__module__ == "orthogonium.layers.custom_activations":
            return {"factor": 0.5**0.5 * (1.0 + 2.0**-50)}  # it divides by the root of two
        if kind.__module__ == "deel.torchlip.modules.activation":
            return {"factor": 1.0}
    return None
