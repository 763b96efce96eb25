"""Operations that treat each axis on its own: padding, pooling and interpolation, through one matrix per axis.

Each of them is the Kronecker product of its matrices per axis, whose norm is the product of the norms. The matrices
are what torch's own operation makes of the identity, in float64, so that border rules, ceil_mode and odd scales are
torch's. Sizes may have any number of axes.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from attackcheck.errors import InputError, in_one_line

from .bound import Bound, down, gamma, product, root, up
from .spectral import matrix

__all__ = [
    "adaptive_average_pooling",
    "average_pooling",
    "interpolation",
    "interpolation_per_pixel",
    "max_pooling",
    "multiplicity",
    "padding",
]

Ints = int | tuple[int, ...]
_LINEAR = {"linear": "bilinear", "trilinear": "bilinear", "cubic": "bicubic"}
_PADS = {"zeros": "constant"}


def padding(size: Sequence[int], pads: Sequence[int], mode: str = "constant") -> Bound:
    """Bounds padding by constants ("constant", "zeros"), "reflect", "replicate" or "circular": exact.

    `pads` as in torch.nn.functional.pad: two numbers per axis, the last axis first; axes beyond are left alone. The
    squared norm is the largest number of copies of one position.
    """
    mode = _PADS.get(mode, mode)
    if mode not in ("constant", "reflect", "replicate", "circular") or len(pads) % 2 or len(pads) > 2 * len(size):
        raise InputError(f"expected two paddings per axis and a mode of F.pad, got {tuple(pads)} and {mode!r}")
    copies = math.prod(multiplicity(size[-1 - n // 2], pads[n], pads[n + 1], mode) for n in range(0, len(pads), 2))
    exact = root(copies)
    return Bound(exact.upper, exact.lower, "copies per position")


def multiplicity(size: int, before: int, after: int, mode: str, reached: int | None = None) -> int:
    """The largest number of copies of one position among the first `reached` positions of a padded axis (all: None)."""
    positions = torch.arange(size, dtype=torch.float64)[None, None]
    padded = _run(lambda x: F.pad(x, (before, after), mode, *((-1.0,) if mode == "constant" else ())), positions)
    kept = padded[0, 0, :reached].long()
    kept = kept[kept >= 0]
    return int(kept.bincount().max()) if len(kept) else 0


def average_pooling(size: Sequence[int], kernel: Ints, stride: Ints | None = None, padding: Ints = 0,
                    ceil_mode: bool = False, count_include_pad: bool = True,
                    divisor_override: int | None = None) -> Bound:  # fmt: skip
    """Bounds average pooling at an input of `size`, with the options of torch.nn.AvgPool2d."""
    windows = _each(kernel, size), _each(kernel if stride is None else stride, size), _each(padding, size)
    factors = []
    for axis, (length, *options) in enumerate(zip(size, *windows, strict=True)):
        k, s, p = options
        divisor = (divisor_override if axis == 0 else 1) if divisor_override else None

        def pool(x: Tensor, k: int = k, s: int = s, p: int = p, divisor: int | None = divisor) -> Tensor:
            return F.avg_pool2d(x, (k, 1), (s, 1), (p, 0), ceil_mode, count_include_pad, divisor)

        factors.append(_norm(_axis(pool, length)))
    return product(*factors, method="matrix per axis")


def adaptive_average_pooling(size: Sequence[int], output: int | Sequence[int | None]) -> Bound:
    """Bounds average pooling to an `output` size (None for an axis that keeps its own)."""
    wanted = [output] * len(size) if isinstance(output, int) else list(output)
    if len(wanted) != len(size):
        raise InputError(f"expected an output size for each of {len(size)} axes, got {output!r}")
    factors = [
        _norm(_axis(lambda x, n=length if n is None else n: F.adaptive_avg_pool2d(x, (n, 1)), length))  # type: ignore[misc]
        for length, n in zip(size, wanted, strict=True)
    ]
    return product(*factors, method="matrix per axis")


def max_pooling(size: Sequence[int], kernel: Ints, stride: Ints | None = None, padding: Ints = 0,
                dilation: Ints = 1, ceil_mode: bool = False) -> Bound:  # fmt: skip
    """Bounds max pooling: the root of the largest number of windows that share an input, exact.

    Each output moves by no more than the largest change in its window, so the squares of all outputs' changes sum to at
    most that number times those of the inputs; an input that is far above all others reaches it.
    """
    options = (_each(kernel, size), _each(kernel if stride is None else stride, size), _each(padding, size),
               _each(dilation, size))  # fmt: skip
    windows = 1
    for length, k, s, p, d in zip(size, *options, strict=True):

        def pool(x: Tensor, k: int = k, s: int = s, p: int = p, d: int = d) -> Tensor:
            return F.max_pool2d(x, (k, 1), (s, 1), (p, 0), (d, 1), ceil_mode)

        seen = _axis(pool, length)  # impulses over zeros; -inf where a window lies in the padding
        windows *= int((seen > 0).sum(0).max())
    exact = root(windows)
    return Bound(exact.upper, exact.lower, "windows per input")


def interpolation(size: Sequence[int], output_or_scale: int | float | Sequence[int | float], mode: str = "nearest",
                  align_corners: bool | None = None, antialias: bool = False) -> Bound:  # fmt: skip
    """Bounds resizing of a whole map, in every mode of torch.nn.functional.interpolate.

    Integers are an output size, floats are scale factors (as nn.Upsample keeps them).
    """
    rows = _resizing(size, output_or_scale, mode, align_corners, antialias)
    if mode.startswith("nearest"):  # every output is a copy
        copies = [[int(m.sum(0).max()) for m in variants] for variants in rows]
        most, least = root(math.prod(map(max, copies))), root(math.prod(map(min, copies)))
        return Bound(most.upper, least.lower, "copies per position")
    return product(*(_norm(m) for (m,) in rows), method="matrix per axis")


def interpolation_per_pixel(size: Sequence[int], output_or_scale: int | float | Sequence[int | float],
                            mode: str = "nearest", align_corners: bool | None = None, antialias: bool = False, *,
                            joint: bool = True) -> Bound:  # fmt: skip
    """Bounds what resizing does to the constant of each pixel's logit vector.

    With `joint` the map before it obeys its constant as a whole, and the factor is the largest root of the sum of
    squared weights of an output: at most 1 for averages, 1.24 for bicubic, whose weights merge at the border.
    Without, it is only known that each pixel before it obeys its constant, and the factor is the largest sum of
    absolute weights: 1 for averages, 1.6 to 1.9 for bicubic.
    """
    factors = []
    for variants in _resizing(size, output_or_scale, mode, align_corners, antialias):
        order, found = (2 if joint else 1), []
        for weights in variants:
            norm = float(torch.linalg.vector_norm(weights, order, dim=1).max())
            # Weights that are not negative are averages by construction; a norm near one is then exactly one.
            average = bool((weights >= 0).all()) and abs(norm - 1) < 1e-9
            found.append(Bound(1.0, 1.0, "") if average else Bound(up(norm, 64), down(norm, 64), ""))
        factors.append(Bound(max(b.upper for b in found), min(b.lower for b in found), ""))
    return product(*factors, method="root of squared weights" if joint else "sum of absolute weights")


def _resizing(size: Sequence[int], output_or_scale: int | float | Sequence[int | float], mode: str,
              align_corners: bool | None, antialias: bool) -> list[list[Tensor]]:  # fmt: skip
    """Per axis the matrices (output, input) to take into account."""
    wanted = [output_or_scale] * len(size) if isinstance(output_or_scale, int | float) else list(output_or_scale)
    if len(wanted) != len(size):
        raise InputError(f"expected an output size or scale for each of {len(size)} axes, got {output_or_scale!r}")
    mode = _LINEAR.get(mode, mode)
    result = []
    for length, number in zip(size, wanted, strict=True):
        target: dict[str, tuple[int, int] | tuple[float, float]] = (
            {"size": (1, number)} if isinstance(number, int) else {"scale_factor": (1.0, number)}
        )

        def resize(x: Tensor, target: dict[str, tuple[int, int] | tuple[float, float]] = target) -> Tensor:
            # Along the last axis: torch 2.13 mixes up the rows of an antialiased map that is one pixel wide.
            x = F.interpolate(x.mT, mode=mode, align_corners=align_corners, antialias=antialias, **target)  # type: ignore[arg-type]
            return x.mT

        # Which neighbour is nearest can depend on the precision in which a scale is stored.
        dtypes = (torch.float64, torch.float32) if mode.startswith("nearest") else (torch.float64,)
        result.append([_axis(resize, length, dtype) for dtype in dtypes])
    return result


def _axis(operation: Callable[[Tensor], Tensor], length: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """The matrix (output, input) in float64 of an operation on (B, 1, H, 1)."""
    units = torch.eye(length, dtype=dtype)[:, None, :, None]
    return _run(operation, units)[:, 0, :, 0].mT.double()


def _run(operation: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    try:
        return operation(values)
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise InputError(f"torch refuses this operation at this size: {in_one_line(error)}") from error


def _norm(weights: Tensor) -> Bound:
    """The norm of an axis' matrix, whose entries may be off by a few roundings of their row's sum."""
    found = matrix(weights)
    magnitude = weights.abs()
    error = gamma(64) * math.sqrt(float(magnitude.sum(1).max() * magnitude.sum(0).max()))
    return Bound(up(found.upper + error), max(0.0, found.lower - error), "")


def _each(given: Ints, size: Sequence[int]) -> tuple[int, ...]:
    numbers = (given,) * len(size) if isinstance(given, int) else tuple(given)
    if len(numbers) != len(size):
        raise InputError(f"expected one number for each of {len(size)} axes, got {given!r}")
    return numbers
