"""Rigorous bounds of the L2 Lipschitz constant of single operations, one function per kind of operation."""

from dataclasses import dataclass

from torch import Tensor

Ints = int | tuple[int, ...]


@dataclass(frozen=True)
class Bound:
    """What is proved of one operation's L2 Lipschitz constant at one input size."""

    upper: float
    lower: float
    method: str


def convolution(weight: Tensor, size: tuple[int, ...], *, stride: Ints = 1, padding: Ints | str = 0,
                dilation: Ints = 1, groups: int = 1, padding_mode: str = "zeros") -> Bound:  # fmt: skip
    raise NotImplementedError


def transposed_convolution(weight: Tensor, size: tuple[int, ...], *, stride: Ints = 1, padding: Ints = 0,
                           output_padding: Ints = 0, dilation: Ints = 1, groups: int = 1) -> Bound:  # fmt: skip
    raise NotImplementedError


def linear(weight: Tensor) -> Bound:
    raise NotImplementedError


def scaling(scale: Tensor | float) -> Bound:
    raise NotImplementedError


def average_pooling(size: tuple[int, ...], kernel: Ints, stride: Ints | None = None, padding: Ints = 0,
                    ceil_mode: bool = False, count_include_pad: bool = True,
                    divisor_override: int | None = None) -> Bound:  # fmt: skip
    raise NotImplementedError


def max_pooling(size: tuple[int, ...], kernel: Ints, stride: Ints | None = None, padding: Ints = 0,
                dilation: Ints = 1, ceil_mode: bool = False) -> Bound:  # fmt: skip
    raise NotImplementedError


def adaptive_average_pooling(size: tuple[int, ...], output: int | tuple[int | None, ...]) -> Bound:
    raise NotImplementedError


def interpolation(size: tuple[int, ...], output_or_scale: int | float | tuple[int | float, ...], mode: str = "nearest",
                  align_corners: bool | None = None, antialias: bool = False) -> Bound:  # fmt: skip
    raise NotImplementedError


def padding(size: tuple[int, ...], pads: tuple[int, ...], mode: str = "constant") -> Bound:
    raise NotImplementedError


def activation(name: str, **options: float) -> Bound:
    raise NotImplementedError


def normalisation(gamma: Tensor | None, eps: float, count: int = 0) -> Bound:
    raise NotImplementedError
