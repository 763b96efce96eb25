"""Exactly orthogonal convolutions, and the other layers of norm one, from which the networks of this room are built.

Every layer is 1-Lipschitz in the Euclidean norm whatever its raw parameters are: orthogonal matrices come from a QR
decomposition, orthogonal kernels from products of symmetric projectors (Li, Haque, Anil, Lucas, Grosse and Jacobsen,
"Preventing gradient attenuation in Lipschitz constrained convolutional networks", NeurIPS 2019), strided ones from
such a kernel followed by an orthogonal matrix over blocks (Boissin, Mamalet, Fel, Picard, Massena and Serrurier, "An
adaptive orthogonal convolution scheme for efficient and flexible CNN architectures", 2025). Zero padding can only
shrink the norm: it restricts the operator on the infinite grid to a part of it.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attackcheck.errors import InputError

from .centring import centred
from .processes import average

__all__ = [
    "Frozen",
    "MaxMin",
    "Normalise",
    "OrthogonalConv2d",
    "OrthogonalUp2d",
    "check_size",
    "conv",
    "orthonormal",
    "up",
]

Padding = Literal["zeros", "circular"]


class Frozen(NamedTuple):
    """The plain convolution that a parametrised layer amounts to in evaluation mode."""

    weight: Tensor
    bias: Tensor


def orthonormal(raw: Tensor) -> Tensor:
    """The matrix with orthonormal columns (rows, if it is wide) that QR finds in `raw`, of shape (..., m, n).

    The signs are fixed so that the result is a continuous function of `raw` and leaves an orthonormal `raw` as it is.
    """
    if raw.shape[-2] < raw.shape[-1]:
        return orthonormal(raw.mT).mT
    q, r = torch.linalg.qr(raw)
    signs = torch.where(torch.diagonal(r, dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q.dtype)
    result: Tensor = q * signs.unsqueeze(-2)
    return result


def _times_projector(taps: Tensor, basis: Tensor, axis: int) -> Tensor:
    """A kernel (vertical, horizontal, O, C) times `P + (I - P) s`: one tap longer along `axis`, `s` the shift by one.

    P is the projector onto the columns of `basis` (C, r); two products with the thin basis cost less than one with P.
    """
    onto = (taps @ basis) @ basis.mT
    behind, ahead = [0] * 2 * taps.dim(), [0] * 2 * taps.dim()
    place = 2 * (-axis - 1)  # F.pad counts from the last axis
    behind[place + 1], ahead[place] = 1, 1
    return F.pad(onto, behind) + F.pad(taps - onto, ahead)


def _times_orthogonal(weight: Tensor, planes: Tensor) -> Tensor:
    """The kernel (O, C, k, k) of an orthogonal convolution followed by `weight` (O, C, j, j).

    The first of the two is made of pairs of projectors onto `planes` (2n, C, r), a vertical and a horizontal one in
    turn, and k = j + n. It is never computed by itself: the product grows tap by tap from the (small) weight.
    """
    taps = weight.permute(2, 3, 0, 1)  # (j, j, O, C)
    for index, basis in enumerate(orthonormal(planes)):
        taps = _times_projector(taps, basis, -4 if index % 2 == 0 else -3)
    return taps.permute(2, 3, 0, 1).contiguous()


def _orthogonal_times(planes: Tensor, weight: Tensor) -> Tensor:
    """The kernel (C, I, k, k) of `weight` (C, I, j, j) followed by the orthogonal convolution: the adjoint case."""
    taps = weight.permute(2, 3, 1, 0)  # (j, j, I, C), transposed: projectors are symmetric
    for index, basis in reversed(list(enumerate(orthonormal(planes)))):
        taps = _times_projector(taps, basis, -4 if index % 2 == 0 else -3)
    return taps.permute(3, 2, 0, 1).contiguous()


def _random(*shape: int, generator: torch.Generator | None) -> nn.Parameter:
    # Orthonormal from the start: Gaussian raw matrices cost five points of accuracy at equal steps.
    raw = torch.randn(*shape, dtype=torch.float64, generator=generator)
    return nn.Parameter(orthonormal(raw).to(torch.get_default_dtype()))


class _Centred(nn.Module):
    """What both orthogonal layers share: subtract the channel means, add a bias, perhaps divide by one scalar.

    In training the means are those of the batch, and a running mean of fixed size follows them; in evaluation the
    stored mean is subtracted, a constant that leaves the Lipschitz constant alone. With `rms=True` the output is also
    divided by its root mean square (one number for the layer, stored likewise): this multiplies the constant by its
    inverse.
    """

    bias: nn.Parameter
    mean: Tensor
    rms: Tensor

    def __init__(self, outputs: int, rms: bool, momentum: float) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.register_buffer("mean", torch.zeros(outputs))
        self.register_buffer("rms", torch.ones(()))
        self.scaled, self.momentum = rms, momentum
        self.together = False  # whether the batch of other processes counts, too: set while they train together

    def _centre(self, values: Tensor) -> Tensor:
        if not self.scaled:
            values, mean = centred(values, self.bias, self.together)
            with torch.no_grad():
                self.mean.lerp_(mean, self.momentum)
            return values
        values, mean = centred(values, torch.zeros_like(self.bias), self.together)
        square = values.square().mean(dtype=self.bias.dtype)
        rms = (average(square) if self.together else square).sqrt().clamp(min=1e-6)
        with torch.no_grad():
            self.mean.lerp_(mean, self.momentum)
            self.rms.lerp_(rms, self.momentum)
        return values / rms + self.bias[:, None, None]

    def kernel(self) -> Tensor:
        """The kernel in the layout of nn.Conv2d or nn.ConvTranspose2d, differentiable in the raw parameters.

        It is computed in the parameters' own precision, also where autocast lets convolutions run in a lower one.
        """
        with torch.autocast(self.bias.device.type, enabled=False):
            return self._kernel()

    def _kernel(self) -> Tensor:
        raise NotImplementedError

    def freeze(self) -> Frozen:
        """Weight and bias of the plain convolution that equals this layer in evaluation mode, in the layer's dtype."""
        return Frozen(self.kernel() / self.rms, self.bias - self.mean / self.rms)


class OrthogonalConv2d(_Centred):
    """An orthogonal convolution (B, I, H, W) -> (B, O, H / stride, W / stride) with centred output.

    Kernels: 1 (stride 1), 2 (stride 2), 3 (stride 1, any dilation; or stride 2). Padding keeps the size: zeros, or
    circular, which asks for sizes that the stride divides. Without padding effects the map preserves norms when it does
    not lose dimensions, otherwise it is a projection. Raises InputError for other kernels.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        padding: Padding = "zeros",
        rms: bool = False,
        momentum: float = 0.05,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(outputs, rms, momentum)
        _check_kernel(kernel, stride, dilation)
        self.inputs, self.outputs, self.kernel_size = inputs, outputs, kernel
        self.stride, self.dilation, self.padding_mode = stride, dilation, padding
        self.matrix = _random(outputs, inputs * stride**2, generator=generator)
        self.planes: nn.Parameter | None = None
        width = inputs if stride == 2 else max(inputs, outputs)
        if kernel == 3 and width > 1:
            self.planes = _random(2 * (kernel - stride), width, width // 2, generator=generator)

    def _kernel(self) -> Tensor:
        weight = orthonormal(self.matrix).reshape(self.outputs, self.inputs, self.stride, self.stride)
        if self.planes is None:
            # One channel has no planes to project onto: the kernel is the centre tap (stride 1) or the block.
            missing = self.kernel_size - self.stride
            return F.pad(weight, (missing // 2, missing - missing // 2) * 2) if missing else weight
        if self.stride == 1 and self.outputs > self.inputs:
            return _orthogonal_times(self.planes, weight)
        return _times_orthogonal(weight, self.planes)

    def forward(self, values: Tensor) -> Tensor:
        weight, bias = (self.kernel(), None) if self.training else self.freeze()
        pad = self.dilation if self.kernel_size == 3 else 0
        if pad and self.padding_mode == "circular":
            values, pad = F.pad(values, (pad,) * 4, mode="circular"), 0
        result = F.conv2d(values, weight, bias, self.stride, pad, self.dilation)
        return self._centre(result) if self.training else result


class OrthogonalUp2d(_Centred):
    """The adjoint of an orthogonal 2x2 convolution with stride 2: (B, I, H, W) -> (B, O, 2H, 2W), output centred."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        rms: bool = False,
        momentum: float = 0.05,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(outputs, rms, momentum)
        self.inputs, self.outputs = inputs, outputs
        self.matrix = _random(inputs, 4 * outputs, generator=generator)

    def _kernel(self) -> Tensor:
        return orthonormal(self.matrix).reshape(self.inputs, self.outputs, 2, 2)

    def forward(self, values: Tensor) -> Tensor:
        if self.training:
            return self._centre(F.conv_transpose2d(values, self.kernel(), stride=2))
        weight, bias = self.freeze()
        return F.conv_transpose2d(values, weight, bias, stride=2)


class MaxMin(nn.Module):
    """Sorts channel i of the first half against channel i of the second: a permutation, so gradients keep their norm.

    Source: Anil, Lucas and Grosse, "Sorting out Lipschitz function approximation", ICML 2019 (GroupSort of size 2).
    """

    def forward(self, values: Tensor) -> Tensor:
        first, second = values.chunk(2, 1)
        # As a mixture with weights of 0 and 1: the same finite numbers as a choice or as maximum and minimum, forwards
        # and backwards, and much faster on a CPU, which mispredicts every other branch among activations.
        swap = (first < second).to(values.dtype)
        return torch.cat([torch.lerp(first, second, swap), torch.lerp(second, first, swap)], 1)


class Normalise(nn.Module):
    """Subtracts a mean per channel and divides by a standard deviation; the constant is 1 / min(std)."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...] | None) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.std = torch.ones(())
        if std is not None:
            del self.std
            self.register_buffer("std", torch.tensor(std)[:, None, None])
        self.divides = std is not None

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1] != self.mean.shape[0]:  # one channel would be spread over all of them
            raise InputError(f"expected images of {self.mean.shape[0]} channels, got {images.shape[1]}")
        centred = images - self.mean
        return centred / self.std if self.divides else centred


def conv(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    *,
    stride: int = 1,
    dilation: int = 1,
    padding: Padding = "zeros",
    rms: bool = False,
    plain: bool = False,
    generator: torch.Generator | None = None,
) -> nn.Module:
    """An OrthogonalConv2d, or with `plain` the nn.Conv2d of the same shape that takes up its frozen weights."""
    if not plain:
        return OrthogonalConv2d(
            inputs, outputs, kernel, stride=stride, dilation=dilation, padding=padding, rms=rms, generator=generator
        )
    _check_kernel(kernel, stride, dilation)
    pad = dilation if kernel == 3 else 0
    return nn.Conv2d(inputs, outputs, kernel, stride, pad, dilation, padding_mode=padding)


def up(
    inputs: int, outputs: int, *, rms: bool = False, plain: bool = False, generator: torch.Generator | None = None
) -> nn.Module:
    """An OrthogonalUp2d, or with `plain` the nn.ConvTranspose2d of the same shape that takes up its frozen weights."""
    if plain:
        return nn.ConvTranspose2d(inputs, outputs, 2, 2)
    return OrthogonalUp2d(inputs, outputs, rms=rms, generator=generator)


def _check_kernel(kernel: int, stride: int, dilation: int) -> None:
    if (kernel, stride) not in {(1, 1), (2, 2), (3, 1), (3, 2)} or (dilation != 1 and (kernel, stride) != (3, 1)):
        raise InputError(
            "expected a kernel of 1, 2 with stride 2, 3 with any dilation, or 3 with stride 2, "
            f"got kernel {kernel}, stride {stride}, dilation {dilation}"
        )


def check_size(images: Tensor, stride: int) -> None:
    """Raises InputError unless `images` is (B, C, H, W) with H and W multiples of `stride`."""
    if images.dim() != 4:
        raise InputError(f"expected images of shape (B, C, H, W), got {tuple(images.shape)}")
    height, width = images.shape[-2:]
    if height % stride or width % stride:
        raise InputError(f"expected height and width divisible by {stride}, got {height}x{width}; crop or resize")
