"""Layers that are orthogonal on paper and were not built so: padding, odd sizes, unfinished iterations.

Each claims norm 1, and what it has instead is in its explicit matrix.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attackcheck.faults.case import Built, Family, control, fault
from attackcheck.faults.networks import Affine, convolution, orthogonal_convolution, pictures, random, rotation
from attackcheck.faults.proofs import bounded, expanded
from attackcheck.faults.subjects import CHANNELS, claimed
from attackcheck.models.layers import MaxMin

__all__ = ["CASES"]


@fault(Family.CONSTANT, "an orthogonal kernel under reflecting padding counts border pixels twice", prove=expanded)
def orthogonal_under_reflection(seed: int) -> Built:
    """Orthogonality is a statement about zero or circular padding; libraries accept the mode silently."""
    g = random(seed, "reflect")
    images = pictures(g)
    return claimed(orthogonal_convolution(CHANNELS, g, mode="reflect"), 1.0, images, g, "orthogonal by construction")


@fault(Family.CONSTANT, "an orthogonal kernel under replicating padding counts border pixels twice", prove=expanded)
def orthogonal_under_replication(seed: int) -> Built:
    """The same with the border's own value."""
    g = random(seed, "replicate")
    images = pictures(g)
    return claimed(orthogonal_convolution(CHANNELS, g, mode="replicate"), 1.0, images, g, "orthogonal by construction")


@control(Family.CONSTANT, "an orthogonal kernel under circular padding", prove=bounded)
def orthogonal_under_circular_padding(seed: int) -> Built:
    """The twin, tight up to the rounding of its weights."""
    g = random(seed, "circular")
    images = pictures(g)
    layer = orthogonal_convolution(CHANNELS, g, mode="circular")
    return claimed(layer, 1.0, images, g, "orthogonal by construction")


@control(Family.CONSTANT, "an orthogonal kernel under zero padding", prove=bounded)
def orthogonal_under_zero_padding(seed: int) -> Built:
    """The other twin: a part of the operator on the infinite grid."""
    g = random(seed, "zeros")
    images = pictures(g)
    return claimed(orthogonal_convolution(CHANNELS, g), 1.0, images, g, "orthogonal by construction")


def _two_by_two(g: torch.Generator) -> Tensor:
    """An orthogonal 2x2 kernel of stride 1 from two projectors (block convolution orthogonal parametrisation)."""
    kernel = torch.zeros(CHANNELS, CHANNELS, 2, 2, dtype=torch.float64)
    onto = []
    for _ in range(2):
        basis = rotation(CHANNELS, g)[:, : CHANNELS // 2]
        onto.append(basis @ basis.T)
    one = torch.eye(CHANNELS, dtype=torch.float64)
    for row, first in enumerate((onto[0], one - onto[0])):
        for column, second in enumerate((onto[1], one - onto[1])):
            kernel[:, :, row, column] = first @ second
    return kernel


@fault(
    Family.CONSTANT,
    "an even kernel is padded circularly by half its width on both sides, so that one row and one column count twice",
    prove=expanded,
)
def even_kernel_padded_on_both_sides(seed: int) -> Built:
    """`padding = k // 2` suits odd kernels; a 2x2 kernel without padding made room for the extra row and column."""
    g = random(seed, "even")
    images = pictures(g)
    wide = convolution(_two_by_two(g), padding=1, padding_mode="circular")
    return claimed(nn.Sequential(convolution(_two_by_two(g)), wide), 1.0, images, g, "orthogonal by construction")


class _Trimmed(Affine):
    """A transposed convolution whose last row and column are cut off."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x)[:, :, :-1, :-1]
        return result


@fault(
    Family.CONSTANT,
    "a strided circular convolution on an odd number of rows wraps one of them into two blocks",
    prove=expanded,
)
def odd_size_under_a_circular_stride(seed: int) -> Built:
    """The blocks no longer tile the image: 7 rows are read as 8."""
    g = random(seed, "odd")
    images = pictures(g, height=14, width=14)
    weight = rotation(4 * CHANNELS, g).reshape(4 * CHANNELS, CHANNELS, 2, 2)
    down = nn.Sequential(nn.CircularPad2d((0, 1, 0, 1)), convolution(weight, stride=2))
    back = rotation(4 * CHANNELS, g).reshape(4 * CHANNELS, CHANNELS, 2, 2)
    up = _Trimmed(convolution(back, transposed=True, stride=2))
    return claimed(nn.Sequential(down, MaxMin(), up), 1.0, images, g, "orthogonal by construction")


@fault(
    Family.CONSTANT,
    "a transposed convolution whose 4x4 windows overlap is orthogonalised as a matrix",
    prove=expanded,
)
def transposed_windows_overlap(seed: int) -> Built:
    """Right for windows that do not overlap; here every pixel belongs to four."""
    g = random(seed, "overlap")
    images = pictures(g)
    weight = rotation(16 * 3, g)[:CHANNELS].reshape(CHANNELS, 3, 4, 4)
    up = convolution(weight, transposed=True, stride=2, padding=1)
    down = convolution(rotation(CHANNELS, g).reshape(CHANNELS, 3, 2, 2), stride=2)
    return claimed(nn.Sequential(up, down), 1.0, images, g, "orthogonal by construction")


def _transposed(seed: int, wrong_axis: bool) -> Built:
    g = random(seed, "axis")
    images = pictures(g)
    spread = torch.full((CHANNELS,), 0.1, dtype=torch.float64)
    spread[0] = 1.0
    kernel = (rotation(CHANNELS, g) @ torch.diag(spread) @ rotation(CHANNELS, g)).reshape(
        CHANNELS, 3, 2, 2
    )  # (I, O, 2, 2), as torch stores it
    matrix = kernel.transpose(0, 1).flatten(1) if wrong_axis else kernel.flatten(1)
    up = convolution(kernel, transposed=True, stride=2)
    down = convolution(rotation(CHANNELS, g).reshape(CHANNELS, 3, 2, 2), stride=2)
    constant = float(torch.linalg.matrix_norm(matrix, 2))
    return claimed(nn.Sequential(up, down), constant, images, g, "norm of the kernel's matrix")


@fault(Family.CONSTANT, "a transposed convolution's kernel is flattened along the wrong axis", prove=expanded)
def transposed_flattened_wrongly(seed: int) -> Built:
    """torch stores it as inputs first."""
    return _transposed(seed, wrong_axis=True)


@control(Family.CONSTANT, "a transposed convolution's kernel is flattened with inputs first", prove=bounded)
def transposed_flattened_rightly(seed: int) -> Built:
    """The twin."""
    return _transposed(seed, wrong_axis=False)


CASES = (
    orthogonal_under_reflection,
    orthogonal_under_replication,
    orthogonal_under_circular_padding,
    orthogonal_under_zero_padding,
    even_kernel_padded_on_both_sides,
    odd_size_under_a_circular_stride,
    transposed_windows_overlap,
    transposed_flattened_wrongly,
    transposed_flattened_rightly,
)
