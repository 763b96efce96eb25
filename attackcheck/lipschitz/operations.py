"""A convolution as it stands: weights, size, stride, padding; and its application by torch in float64."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from attackcheck.errors import InputError

from .axes import multiplicity
from .bound import gamma
from .spectral import scaled

__all__ = ["Operation", "per_axis", "prepare", "rounding", "sides"]


@dataclass(frozen=True)
class Operation:
    """A convolution with `kernel` (G, O / G, I / G, kh, kw), or transposed with (G, I / G, O / G, kh, kw)."""

    kernel: Tensor
    exponent: int
    size: tuple[int, int]
    flat: bool  # one dimension
    stride: tuple[int, int]
    dilation: tuple[int, int]
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)  # left, right, top, bottom
    mode: str = "constant"
    transposed: bool = False
    extra: tuple[int, int] = (0, 0)  # output_padding

    @property
    def taps(self) -> tuple[int, int]:
        """How many positions a window spans, per axis."""
        first, second = (d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel.shape[-2:], strict=True))
        return first, second

    @property
    def channels(self) -> int:
        """Input channels per group."""
        return int(self.kernel.shape[1 if self.transposed else 2])

    def windows(self, axis: int) -> int:
        """Output positions along an axis of the plain convolution."""
        before, after = self.along(axis)
        return (self.size[axis] + before + after - self.taps[axis]) // self.stride[axis] + 1

    def outputs(self, axis: int) -> int:
        """Output positions along an axis."""
        if not self.transposed:
            return self.windows(axis)
        return (self.size[axis] - 1) * self.stride[axis] + self.taps[axis] + self.extra[axis] - sum(self.along(axis))

    def along(self, axis: int) -> tuple[int, int]:
        """Padding before and after along an axis."""
        return (self.pads[2], self.pads[3]) if axis == 0 else (self.pads[0], self.pads[1])

    def __call__(self, values: Tensor) -> Tensor:
        """Applies every group to the same (B, I / G, H, W): (B, G O / G, H', W')."""
        if self.transposed:
            weight = self.kernel.permute(1, 0, 2, 3, 4).flatten(1, 2)
            return F.conv_transpose2d(values, weight, None, self.stride, (self.pads[2], self.pads[0]), self.extra, 1,
                                      self.dilation)  # fmt: skip
        if any(self.pads):
            values = F.pad(values, self.pads, self.mode)
        return F.conv2d(values, self.kernel.flatten(0, 1), None, self.stride, 0, self.dilation)

    @property
    def products(self) -> float:
        """Multiplications of one application."""
        positions = math.prod(self.size) if self.transposed else math.prod(self.windows(a) for a in (0, 1))
        return float(self.kernel.numel() * positions)


def prepare(weight: Tensor, size: tuple[int, ...], stride: int | tuple[int, ...], dilation: int | tuple[int, ...],
             groups: int) -> Operation:  # fmt: skip
    dimensions = weight.dim() - 2
    if dimensions not in (1, 2) or len(size) != dimensions or min(weight.shape, default=0) < 1 or min(size) < 1:
        raise InputError(
            f"expected a kernel (O, I, kh, kw) with a size (H, W), or (O, I, k) with (W,), got {tuple(weight.shape)} "
            f"and {tuple(size)}"
        )
    if groups < 1 or weight.shape[0] % groups:
        raise InputError(f"expected groups that divide {weight.shape[0]} channels, got {groups}")
    flat = dimensions == 1
    kernel, exponent = scaled(weight)
    if exponent is None:
        kernel, exponent = torch.full_like(kernel, math.nan), 0
    if flat:
        kernel, size = kernel[:, :, None], (1, *size)
    op = Operation(kernel.reshape(groups, -1, *kernel.shape[1:]), exponent, (size[0], size[1]), flat, (1, 1), (1, 1))
    return replace(op, stride=per_axis(stride, op, "stride", 1), dilation=per_axis(dilation, op, "dilation", 1))


def per_axis(given: int | tuple[int, ...], op: Operation, name: str, least: int = 0) -> tuple[int, int]:
    """One number per axis of a 2d convolution; a convolution in one dimension has an idle first axis."""
    idle = 1 if name in ("stride", "dilation") else 0
    numbers = (given,) * (1 if op.flat else 2) if isinstance(given, int) else tuple(given)
    if len(numbers) != (1 if op.flat else 2) or min(numbers) < least:
        raise InputError(f"expected {name} as one number per axis, at least {least}, got {given!r}")
    return (idle, numbers[0]) if op.flat else (numbers[0], numbers[1])


def sides(given: int | str | tuple[int, ...], op: Operation) -> tuple[int, int, int, int]:
    """Padding as (left, right, top, bottom)."""
    if isinstance(given, str):
        if given not in ("same", "valid") or (given == "same" and op.stride != (1, 1)):
            raise InputError(f"expected padding 'valid', 'same' (with stride 1) or numbers, got {given!r}")
        total = [t - 1 if given == "same" else 0 for t in op.taps]
        return total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2
    sides = 2 if op.flat else 4
    if not isinstance(given, int) and len(given) == sides:
        return (given[0], given[1], *(given[2:] if not op.flat else (0, 0)))  # type: ignore[return-value]
    top, left = per_axis(given, op, "padding")
    return left, left, top, top


def rounding(op: Operation) -> float:
    """How far the float64 operation may be from the one that it stands for, in norm."""
    magnitude = op.kernel.abs()
    rows, columns = magnitude.sum((2, 3, 4)).amax(), magnitude.sum((1, 3, 4)).amax()
    copies = 1 if op.transposed else math.prod(multiplicity(op.size[a], *op.along(a), op.mode) for a in (0, 1))
    products = op.kernel[0].numel()  # in one output, at most
    return gamma(products + 4) * math.sqrt(float(rows * columns) * copies) * (1 + 1e-9)
