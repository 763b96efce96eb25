"""Lower bounds of convolutions: an input that torch's own operation is seen to stretch."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from .bound import down
from .grids import Peak
from .operations import Operation, rounding
from .spectral import krylov
from .symbols import reduced

__all__ = ["witness"]

_WORK = 2e7  # multiplications of one application


def witness(op: Operation, poly: Tensor, peak: Peak) -> float:
    """The largest ratio that Lanczos' method finds from a plane wave at the symbol's peak, on a part of a large map.

    With zero padding a smaller map is a restriction of the larger one. Otherwise the map is shortened by a multiple of
    the stride, and a strip in its middle is kept at zero, wider than a window, so that no window sees both sides of it:
    then the strip can be widened again without changing anything, and both borders keep their padding.
    """
    group = op.kernel[peak.group : peak.group + 1]
    op = replace(op, kernel=group)
    op, mask = _shortened(op)
    steps = int(min(30, max(10, _WORK / op.products)))
    shape = (1, op.channels, *op.size)

    def apply(vector: Tensor) -> Tensor:
        values = (vector.reshape(shape) * mask).requires_grad_()
        with torch.enable_grad():
            energy = op(values).square().sum() / 2
        return (torch.autograd.grad(energy, values)[0] * mask).flatten()

    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(shape, dtype=torch.float64, generator=generator)
    wave = _wave(op, poly[peak.group], peak)
    start = wave / wave.norm().clamp_min(1e-300) + 0.05 * noise / noise.norm()
    found = krylov(apply, (start * mask).flatten(), steps).reshape(shape) * mask
    moved = op(found)
    length = float(found.norm())
    if not length > 0:
        return 0.0
    ratio = down(float(moved.norm()) / length, moved.numel() + found.numel())
    return max(0.0, down(ratio - rounding(op)))


def _shortened(op: Operation) -> tuple[Operation, Tensor]:
    inputs, outputs = op.kernel.shape[2], op.kernel.shape[1]
    side = max(8, math.isqrt(int(_WORK / (op.kernel.numel() * (1 + 32 / min(inputs, outputs))))))
    mask, sizes = torch.ones(op.size, dtype=torch.float64), []
    for axis in (0, 1):
        size, span = op.size[axis], op.taps[axis] + max(abs(pad) for pad in op.along(axis))
        least = max(side * (1 if op.transposed else op.stride[axis]), 4 * span)
        spare = max(0, size - least) // op.stride[axis] * op.stride[axis]
        sizes.append(size - spare)
        if spare and op.mode != "constant":
            middle = sizes[axis] // 2
            strip = slice(middle - op.taps[axis] // 2 - 1, middle + op.taps[axis] // 2 + 1)
            mask[(strip, slice(None)) if axis == 0 else (slice(None), strip)] = 0
    return replace(op, size=(sizes[0], sizes[1])), mask[: sizes[0], : sizes[1]]


def _wave(op: Operation, poly: Tensor, peak: Peak) -> Tensor:
    """The plane wave that the infinite operation stretches most, faded out towards the borders, (1, channels, H, W)."""
    a, b = poly.shape[-2:]
    taps = torch.cartesian_prod(torch.arange(a).double(), torch.arange(b).double())  # (a b, 2)
    angle = taps @ torch.tensor(peak.frequency, dtype=torch.float64)
    at = torch.polar(torch.ones_like(angle), angle)
    left, _, right = torch.linalg.svd(poly.flatten(2).to(at.dtype) @ at, full_matrices=False)
    vector = left[:, 0] if op.transposed else right[0].conj()
    largest = vector[vector.abs().argmax()]
    vector = vector * (largest.conj() / largest.abs())
    steps = [reduced(s, d) for s, d in zip(op.stride, op.dilation, strict=True)]
    phases = [1 if op.transposed else s for s, _ in steps]
    vector = vector.reshape(-1, phases[0], phases[1])
    lines, picks = [], []
    for axis, (stride, dilation) in enumerate(steps):
        size = op.size[axis]
        fade = torch.sin(math.pi * (torch.arange(size) + 1.0).double() / (size + 1))
        if op.transposed:
            block, pick = torch.arange(size) // dilation, torch.zeros(size, dtype=torch.int64)
        else:  # the parts that `polyphase` tells apart
            common = op.stride[axis] // stride
            position = torch.arange(size) + op.along(axis)[0]
            fade = fade * (position % common == 0)
            position = position // common
            residue = position * pow(stride, -1, dilation) % dilation
            part = (position - stride * residue) // dilation
            block, pick = part // stride, part % stride
        picks.append(pick)
        lines.append(torch.polar(fade, block.double() * peak.frequency[axis]))
    wave: Tensor = vector[:, picks[0]][:, :, picks[1]] * lines[0][:, None] * lines[1]
    real: Tensor = wave.real[None]
    return real
