"""Numbers that verdicts hang on: exact distances, float64 logits with a measured error, one state of the hardware.

A float32 norm of a large difference can be 1.5e-4 (relative) too small, enough to fake a violation; TF32 moves logits
by 1e-3. Nothing here is fast, everything here is trusted.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

__all__ = ["Reference", "exact_arithmetic", "exact_distance", "frozen"]

Model = Callable[[Tensor], Tensor]
UNIT = 2.0**-53
"""Unit roundoff of float64."""

SAFETY = 100.0
"""Factor between a measured difference of two evaluation orders and the error bound taken from it."""


def exact_distance(clean: Tensor, perturbed: Tensor) -> float:
    """``||perturbed - clean||`` over everything, rounded so that it is never too small.

    Both are taken as the exact float32 (or float64) numbers that they hold. Differences and squares are formed in
    float64, each within one unit roundoff; the sum is correctly rounded (Shewchuk's algorithm, ``math.fsum``).
    """
    a = clean.detach().cpu().numpy().astype(np.float64).ravel()
    b = perturbed.detach().cpu().numpy().astype(np.float64).ravel()
    return math.sqrt(math.fsum(np.square(b - a).tolist())) * (1.0 + 8.0 * UNIT)


@contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Float32 means float32: TF32 off in convolutions and matrix products, and set back afterwards."""
    cudnn, matmul = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = cudnn
        torch.backends.cuda.matmul.allow_tf32 = matmul


def frozen(model: Model) -> Model:
    """A copy with fixed weights: parametrisations resolved once, no gradients for weights.

    A callable that is not a module is returned as it is.
    """
    if not isinstance(model, nn.Module):
        return model
    try:
        twin = copy.deepcopy(model)
    except (RuntimeError, TypeError, AttributeError):
        return model  # TorchScript and some graphs cannot be copied; they hold no parametrisations either
    for module in list(twin.modules()):
        if parametrize.is_parametrized(module):
            _resolve(module)
    return twin.requires_grad_(False)


def _resolve(module: nn.Module) -> None:
    """Put the present weights in the place of their parametrisations.

    ``remove_parametrizations`` would also take the property from the class, which the original shares with its copy.
    """
    weights = {name: getattr(module, name).detach().clone() for name in module.parametrizations}  # type: ignore
    del module._modules["parametrizations"]
    module.__class__ = type(module).__bases__[0]
    for name, weight in weights.items():
        module.register_parameter(name, nn.Parameter(weight, requires_grad=False))


class Reference:
    """The model as a function of real numbers: float64 on the CPU, with an error bound measured for every point.

    The bound is ``SAFETY`` times the largest difference between the float64 logits and float64 logits computed in
    another order of summation with every arithmetic result disturbed by one rounding (Vignes 1993, stochastic
    arithmetic, per tensor operation). It is measured, not proved; :attr:`precision` says what was possible.

    Args:
        model: the frozen model, as deployed.
        sample: one image ``(1, C, H, W)`` to find out whether it runs in float64.
    """

    def __init__(self, model: Model, sample: Tensor) -> None:
        self.precision = "float64"
        self._dtype = torch.float64
        self._model = model
        if isinstance(model, nn.Module):
            try:
                self._model = copy.deepcopy(model).cpu().double()
            except (RuntimeError, TypeError, AttributeError):
                self._model = model
        try:
            with torch.no_grad():
                if self._model(sample.detach().cpu().double()).dtype == torch.float64:
                    return
        except (RuntimeError, TypeError, ValueError):
            pass
        self.precision = "float32"
        self._dtype, self._model = sample.dtype, model
        self._device = sample.device

    def __call__(self, images: Tensor) -> Tensor:
        """Logits ``(B, K, H, W)`` in float64 (computed in float32 where the model permits nothing else)."""
        with torch.no_grad():
            device = torch.device("cpu") if self.precision == "float64" else self._device
            return self._model(images.detach().to(device=device, dtype=self._dtype)).double().cpu()

    def disturbances(self, images: Tensor, logits: Tensor) -> list[Tensor]:
        """Logits of other evaluation orders minus ``logits``, for error bounds."""
        differences = []
        for seed in range(2):
            with _Disturbed(seed, torch.finfo(self._dtype).eps):
                differences.append(self(images) - logits)
        return differences

    def error(self, images: Tensor, logits: Tensor) -> tuple[float, float]:
        """Error bounds of a single logit difference, and of the norm of the whole logit map."""
        differences = self.disturbances(images, logits)
        unit = torch.finfo(self._dtype).eps
        floor = 4.0 * unit * float(logits.abs().max())
        largest = max(float(difference.abs().max()) for difference in differences)
        norm = max(float(difference.norm()) for difference in differences)
        return 2.0 * (SAFETY * largest + floor), SAFETY * norm + floor * math.sqrt(logits.numel())


class _Disturbed(TorchFunctionMode):
    """Sums run over the input channels in reversed order, and every arithmetic result moves by up to one rounding."""

    def __init__(self, seed: int, unit: float) -> None:
        super().__init__()
        self._unit = unit
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = dict(kwargs or {})
        if func in _REVERSIBLE:
            args, keywords = _REVERSIBLE[func](args, keywords)
        result = func(*args, **keywords)
        if func in _ARITHMETIC and isinstance(result, Tensor) and result.is_floating_point():
            noise = torch.rand(result.shape, generator=self._generator, dtype=result.dtype).mul_(2).sub_(1)
            return result + result * noise.to(result.device) * self._unit
        return result


def _reverse_channels(args: Sequence[Any], keywords: dict[str, Any]) -> tuple[Sequence[Any], dict[str, Any]]:
    groups = args[6] if len(args) > 6 else keywords.get("groups", 1)
    if groups != 1 or len(args) < 2:
        return args, keywords
    return (args[0].flip(1), args[1].flip(1), *args[2:]), keywords


def _reverse_features(args: Sequence[Any], keywords: dict[str, Any]) -> tuple[Sequence[Any], dict[str, Any]]:
    if len(args) < 2:
        return args, keywords
    return (args[0].flip(-1), args[1].flip(-1), *args[2:]), keywords


_REVERSIBLE: dict[Any, Any] = {F.conv2d: _reverse_channels, F.linear: _reverse_features}
_ARITHMETIC = frozenset(
    {
        F.conv2d,
        F.conv_transpose2d,
        F.linear,
        torch.matmul,
        torch.add,
        torch.sub,
        torch.mul,
        torch.div,
        torch.einsum,
        Tensor.add,
        Tensor.sub,
        Tensor.mul,
        Tensor.div,
        Tensor.matmul,
        Tensor.__add__,
        Tensor.__radd__,
        Tensor.__sub__,
        Tensor.__rsub__,
        Tensor.__mul__,
        Tensor.__rmul__,
        Tensor.__truediv__,
        Tensor.__matmul__,
        F.interpolate,
        F.avg_pool2d,
        torch.softmax,
        F.softmax,
        Tensor.softmax,
        torch.exp,
        torch.mean,
        Tensor.mean,
        torch.sum,
        Tensor.sum,
    }
)
