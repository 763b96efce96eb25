"""Numbers that verdicts hang on: exact distances, float64 logits with a measured error, one state of the hardware.

A float32 norm of a large difference can be 1.5e-4 (relative) too small, enough to fake a violation; TF32 moves logits
by 1e-3. Nothing here is fast, everything here is trusted.
"""

from __future__ import annotations

import copy
import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from attackcheck.memory import ran_out

__all__ = ["Reference", "exact_arithmetic", "exact_distance", "frozen", "guarded", "inexact"]

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
    """Float32 means float32: no TF32, no bfloat16 products, no autocast, no flushed denormals; set back afterwards."""
    cudnn, matmul = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    precisions, medium = [part.fp32_precision for part in _cpu_products()], _medium()
    flushed = _flushes()
    cast = {device: torch.is_autocast_enabled(device) for device in ("cpu", "cuda")}
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    for part in _cpu_products():
        part.fp32_precision = "ieee"
    torch.set_flush_denormal(False)
    for device in cast:
        torch.set_autocast_enabled(device, False)
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = cudnn
        torch.backends.cuda.matmul.allow_tf32 = matmul
        for part, precision in zip(_cpu_products(), precisions, strict=True):
            part.fp32_precision = precision
        if medium:  # two ways to say the same must agree, or torch refuses to tell
            torch.set_float32_matmul_precision("medium")
        if flushed:
            torch.set_flush_denormal(True)
        for device, enabled in cast.items():
            torch.set_autocast_enabled(device, enabled)


def inexact() -> list[str]:
    """What of the hardware's shortcuts is on at this moment, read back rather than remembered."""
    state = {
        "TF32 in convolutions": torch.backends.cudnn.allow_tf32,
        "TF32 in matrix products": torch.backends.cuda.matmul.allow_tf32,
        "products below float32": any(part.fp32_precision in ("bf16", "tf32") for part in _cpu_products()),
        "autocast": torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"),
        "flushing of denormal numbers": _flushes(),
    }
    return [name for name, on in state.items() if on]


def _cpu_products() -> list[Any]:
    """Where torch keeps the precision of products on a CPU; older versions know none."""
    parts = [getattr(torch.backends.mkldnn, name, None) for name in ("matmul", "conv")]
    return [part for part in parts if hasattr(part, "fp32_precision")]


def _medium() -> bool:
    try:
        return torch.get_float32_matmul_precision() == "medium"
    except RuntimeError:  # set in another way, backend by backend
        return False


def _flushes() -> bool:
    return not bool((torch.full((64,), 1e-39) * 0.5).all())


def frozen(model: Model) -> Model:
    """A copy with fixed weights: parametrisations resolved once, no gradients for weights.

    A callable that is not a module is returned as it is.
    """
    if not isinstance(model, nn.Module):
        return model
    try:
        twin = _copied(model)
    except (RuntimeError, TypeError, AttributeError):
        return model  # some graphs cannot be copied; they hold no parametrisations either
    for module in list(twin.modules()):
        if parametrize.is_parametrized(module):
            _resolve(module)
    for parameter in twin.parameters():
        parameter.requires_grad_(False)
    return twin


def _copied(model: nn.Module) -> nn.Module:
    if not isinstance(model, torch.jit.ScriptModule):
        return copy.deepcopy(model)
    # A deep copy of a scripted module has parameters that are no leaves.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stored = io.BytesIO()
        torch.jit.save(model, stored)
        stored.seek(0)
        twin: nn.Module = torch.jit.load(stored)  # type: ignore[no-untyped-call]
    return twin


def _resolve(module: nn.Module) -> None:
    """Put the present weights in the place of their parametrisations.

    ``remove_parametrizations`` would also take the property from the class, which the original shares with its copy.
    """
    weights = {name: getattr(module, name).detach().clone() for name in module.parametrizations}  # type: ignore
    del module._modules["parametrizations"]
    module.__class__ = type(module).__bases__[0]
    for name, weight in weights.items():
        module.register_parameter(name, nn.Parameter(weight, requires_grad=False))


def guarded(model: Model) -> Model:
    """The model on a copy of its input, so that one that works in place cannot reach the image."""

    def call(images: Tensor) -> Tensor:
        return model(images.clone())

    return call


class Reference:
    """The model as a function of real numbers: float64 on the CPU, with an error bound measured for every point.

    The bound is ``SAFETY`` times the largest difference between the logits and those of other evaluations in which sums
    run in another order and every rounded result moves by up to one unit in its own last place (Vignes 1993, stochastic
    arithmetic, per tensor operation). It is measured, not proved; :attr:`precision` says what was possible: a model
    that computes in a lower precision inside is judged with the roundings of that precision.

    Args:
        model: the frozen model, as deployed.
        sample: one image ``(1, C, H, W)`` to find out whether it runs in float64.
    """

    def __init__(self, model: Model, sample: Tensor) -> None:
        self._dtype, self._device, self._model = torch.float64, torch.device("cpu"), model
        if isinstance(model, nn.Module):
            with suppress(RuntimeError, TypeError, AttributeError):
                self._model = _copied(model).cpu().double()
        try:
            with torch.no_grad(), _Watched(torch.float64) as watched:
                self._model(sample.detach().cpu().double())
            self.precision = watched.coarsest
            return
        except (RuntimeError, TypeError, ValueError) as error:
            if ran_out(error):
                raise  # that it did not fit does not mean that it does not run
            self._dtype, self._device, self._model = sample.dtype, sample.device, model
        with torch.no_grad(), _Watched(sample.dtype) as watched:
            self._model(sample.detach().clone())
        self.precision = watched.coarsest

    def __call__(self, images: Tensor) -> Tensor:
        """Logits ``(B, K, H, W)`` in float64, or in what the model permits, as float64 numbers on the CPU."""
        with torch.no_grad():
            # A copy always: a model that works in place must not reach the image.
            return self._model(images.detach().to(device=self._device, dtype=self._dtype, copy=True)).double().cpu()

    def error(self, image: Tensor, logits: Tensor) -> tuple[Tensor, float]:
        """Error bounds at one image.

        Args:
            image: ``(1, C, H, W)``.
            logits: this reference's logits there, ``(1, K, H, W)``.

        Returns:
            ``(K,)`` float64, of each class's logit anywhere on the map, and the bound of the norm of the whole map.
        """
        largest, norms = torch.zeros(logits.shape[1], dtype=logits.dtype), []
        for seed in range(2):
            with _Disturbed(seed):
                difference = self(image)[0] - logits[0]  # one map at a time: full-size images have large ones
            norms.append(float(difference.norm()))
            largest = torch.maximum(largest, difference.abs_().flatten(1).amax(dim=1))
            del difference
        unit = torch.finfo(torch.float64).eps
        floor = 4.0 * unit * _largest(logits[0])
        return SAFETY * largest + floor, SAFETY * max(norms) + 8.0 * unit * float(logits.norm())


def _largest(maps: Tensor) -> Tensor:
    """Largest magnitude of each map (K, H, W), without a copy of them."""
    flat = maps.flatten(1)
    return torch.maximum(flat.amax(dim=1), -flat.amin(dim=1))


def _first(args: Any) -> Tensor | None:
    return next((a for a in args if isinstance(a, Tensor) and a.is_floating_point()), None)


class _Watched(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Remembers the coarsest type that any number was narrowed to."""

    def __init__(self, given: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._coarsest = given

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        source = _first(args)
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, Tensor) and value.is_floating_point() and source is not None:
                unit = torch.finfo(value.dtype).eps
                if unit > max(torch.finfo(source.dtype).eps, torch.finfo(self._coarsest).eps):
                    self._coarsest = value.dtype
        return result

    @property
    def coarsest(self) -> str:
        """Its name, such as ``float64``."""
        return str(self._coarsest).removeprefix("torch.")


class _Disturbed(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sums run in reversed order, and every rounded result moves by up to one unit in its last place.

    What is exact is listed; whatever is not listed is taken to round, so that an unknown one errs on the safe side.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._generator = torch.Generator().manual_seed(seed)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in _REVERSIBLE:
            args = _REVERSIBLE[name](args)
        result = func(*args, **(kwargs or {}))
        value = result[0] if isinstance(result, tuple | list) and result else result
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return result
        source = _first(args)
        unit = torch.finfo(value.dtype).eps
        narrowed = name == "_to_copy" and source is not None and unit > torch.finfo(source.dtype).eps
        if (name in _EXACT and not narrowed) or (name == "lerp" and _chooses(args[2])):
            return result
        noise = torch.rand(value.shape, generator=self._generator, dtype=torch.float64).mul_(2).sub_(1).mul_(unit)
        moved = noise.add_(1.0).to(value.device).mul_(value.double()).to(value.dtype)
        if name.endswith("_"):
            value.copy_(moved)
            return result
        return (moved, *result[1:]) if isinstance(result, tuple) else moved


def _chooses(weight: Any) -> bool:
    """Whether a mixture with these weights is one or the other of what it mixes, to the last bit."""
    return isinstance(weight, Tensor) and bool(((weight == 0) | (weight == 1)).all())


def _reverse_channels(args: Sequence[Any]) -> Sequence[Any]:
    """Convolution: input, weight, bias, stride, padding, dilation, transposed, output padding, groups."""
    if args[8] != 1:
        return args
    return (args[0].flip(1), args[1].flip(0 if args[6] else 1), *args[2:])


def _reverse_product(args: Sequence[Any]) -> Sequence[Any]:
    return (*args[:-2], args[-2].flip(-1), args[-1].flip(-2))


_REVERSIBLE: dict[str, Callable[[Sequence[Any]], Sequence[Any]]] = {
    "convolution": _reverse_channels,
    "mm": _reverse_product,
    "bmm": _reverse_product,
}
# fmt: off
_EXACT = frozenset(
    {
        "abs", "alias", "amax", "amin", "arange", "argmax", "argmin", "as_strided", "bernoulli", "bitwise_not", "cat",
        "ceil", "chunk", "clamp", "clamp_", "clamp_max", "clamp_min", "clone", "constant_pad_nd", "contiguous",
        "copy", "copy_", "cummax", "cummin", "detach", "diagonal", "dropout", "empty", "empty_like", "empty_strided",
        "eq", "expand", "fill", "fill_", "flip", "floor", "full", "full_like", "gather", "ge", "gt", "im2col",
        "index", "index_put", "index_put_", "index_select", "isfinite", "isinf", "isnan", "le", "lift_fresh",
        "logical_not", "lt", "masked_fill", "masked_fill_", "max", "max_pool2d", "max_pool2d_with_indices", "maximum",
        "min", "minimum", "native_dropout", "ne", "neg", "neg_", "new_empty", "new_empty_strided", "new_full",
        "new_ones", "new_zeros", "ones", "ones_like", "permute", "pixel_shuffle", "pixel_unshuffle", "rand",
        "rand_like", "randn", "randn_like", "reflection_pad2d", "relu", "relu_", "repeat", "replication_pad2d",
        "reshape", "roll", "round", "scalar_tensor", "scatter", "select", "select_scatter", "sign", "slice",
        "slice_scatter", "sort", "split", "split_with_sizes", "squeeze", "stack", "t", "topk", "transpose", "tril",
        "triu", "unbind", "unfold", "unsqueeze", "upsample_nearest2d", "view", "where", "zero_", "zeros",
        "zeros_like", "_reshape_alias", "_to_copy", "_unsafe_view",
    }
)
# fmt: on
