"""Constants of single layers, computed wrongly from the weights; beside each group the right way.

Every network here is an isometry around one layer, so its constant is that layer's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attackcheck.faults.case import Built, Family, control, fault, scaled_fault
from attackcheck.faults.networks import convolution, pictures, pixelwise, random, rotation
from attackcheck.faults.norms import operator_norm
from attackcheck.faults.proofs import bounded, expanded
from attackcheck.faults.subjects import CHANNELS, SHAPE, claimed

__all__ = ["CASES"]


def _kernel(g: torch.Generator, *shape: int) -> Tensor:
    kernel: Tensor = torch.randn(*shape, generator=g, dtype=torch.float64) / (shape[1] * shape[2] * shape[3]) ** 0.5
    return kernel


def iterated_norm(layer: nn.Module, start: Tensor, steps: int) -> float:
    """What power iteration on a convolution without its bias says after `steps` rounds: never above the norm."""
    weight, padding = layer.weight, layer.padding
    circular = layer.padding_mode == "circular"
    x = start.requires_grad_()
    norm = 0.0
    for _ in range(steps):
        unit = (x / x.norm()).detach().requires_grad_()
        padded = F.pad(unit, (1, 1, 1, 1), mode="circular") if circular else unit
        y = F.conv2d(padded, weight, padding=0 if circular else padding)  # type: ignore[arg-type]
        norm = float(y.detach().norm())
        (x,) = torch.autograd.grad((y * y.detach()).sum(), unit)
    return norm


@scaled_fault(
    Family.CONSTANT,
    "power iteration on a convolution is stopped after a few steps, and its lower bound is taken for the norm",
    prove=expanded,
    knob="steps of power iteration",
    severities=(1, 2, 3, 5, 10),
)
def power_iteration_stopped_early(seed: int, severity: float) -> Built:
    """One step of spectral normalisation per training step is usual, and enough only while the weights stand still."""
    g = random(seed, "power")
    images = pictures(g)
    layer = convolution(_kernel(g, CHANNELS, CHANNELS, 3, 3), padding=1)
    constant = iterated_norm(layer, torch.randn(1, *SHAPE, generator=g), int(severity))
    return claimed(layer, constant, images, g, "power iteration")


@fault(
    Family.CONSTANT,
    "power iteration starts from a constant image, which a circular convolution never leaves",
    prove=expanded,
)
def power_iteration_from_a_bad_start(seed: int) -> Built:
    """All that it finds is the response to constant images; a kernel that looks for edges has almost none."""
    g = random(seed, "start")
    images = pictures(g)
    kernel = _kernel(g, CHANNELS, CHANNELS, 3, 3)
    kernel -= 0.9 * kernel.mean((2, 3), keepdim=True)
    layer = convolution(kernel, padding=1, padding_mode="circular")
    return claimed(layer, iterated_norm(layer, torch.ones(1, *SHAPE), 5), images, g, "power iteration")


@fault(
    Family.CONSTANT, "the norm of the kernel reshaped to a matrix is taken for that of the convolution", prove=expanded
)
def reshaped_kernel(seed: int) -> Built:
    """As in spectral normalisation for GANs (Miyato et al. 2018), where no guarantee hangs on it."""
    g = random(seed, "reshaped")
    images = pictures(g)
    kernel = _kernel(g, CHANNELS, CHANNELS, 3, 3)
    constant = float(torch.linalg.matrix_norm(kernel.flatten(1), 2))
    return claimed(convolution(kernel, padding=1), constant, images, g, "norm of the reshaped kernel")


@control(Family.CONSTANT, "the convolution's norm from its explicit matrix at the actual size", prove=bounded)
def explicit_matrix(seed: int) -> Built:
    """The twin of the three cases before."""
    g = random(seed, "reshaped")
    images = pictures(g)
    layer = convolution(_kernel(g, CHANNELS, CHANNELS, 3, 3), padding=1)
    return claimed(layer, operator_norm(layer, SHAPE), images, g, "explicit matrix")


@scaled_fault(
    Family.CONSTANT,
    "the largest of some measured difference quotients is taken for the constant",
    prove=expanded,
    knob="number of random directions",
    severities=(10, 1000),
)
def sampled_slopes(seed: int, severity: float) -> Built:
    """In many dimensions no random direction comes near the steepest."""
    g = random(seed, "sampled")
    images = pictures(g)
    layer = convolution(_kernel(g, CHANNELS, CHANNELS, 3, 3), padding=1)
    steps = torch.randn(int(severity), *SHAPE, generator=g)
    with torch.no_grad():
        moved = layer(steps) - layer(torch.zeros_like(steps))
    quotients = moved.flatten(1).norm(dim=1) / steps.flatten(1).norm(dim=1)
    return claimed(layer, float(quotients.max()), images, g, f"largest of {len(steps)} slopes")


@scaled_fault(
    Family.CONSTANT,
    "an epsilon added to norms in the power iteration is not small beside tiny weights: its estimate is too small",
    prove=expanded,
    knob="epsilon over the layer's norm",
    severities=(0.3, 0.1, 0.03, 0.01, 0.003),
)
def epsilon_beside_tiny_weights(seed: int, severity: float) -> Built:
    """`v / (||v|| + eps)` is shorter than a unit vector, so `u W v` is less than the norm."""
    g = random(seed, "epsilon")
    images = pictures(g)
    weight = 1e-4 * _kernel(g, CHANNELS, CHANNELS, 1, 1)[:, :, 0, 0]
    eps = severity * float(torch.linalg.matrix_norm(weight, 2))
    v = torch.randn(CHANNELS, generator=g, dtype=torch.float64)
    for _ in range(500):
        v = v / (v.norm() + eps)
        u = weight @ v
        u = u / (u.norm() + eps)
        v = weight.T @ u
    estimate = float(u @ weight @ (v / (v.norm() + eps)))
    return claimed(pixelwise(weight / estimate), 1.0, images, g, "spectral normalisation")


@scaled_fault(
    Family.CONSTANT,
    "the symbol's maximum over a coarse grid of frequencies is taken for its maximum over all",
    prove=expanded,
    knob="frequencies per axis",
    severities=(3, 5, 7, 9, 15),
)
def coarse_frequency_grid(seed: int, severity: float) -> Built:
    """A maximum over points is a lower bound; this kernel looks for checkerboards, which odd grids miss."""
    g = random(seed, "grid")
    images = pictures(g)
    taps = torch.tensor([-0.3, 1.0, -0.3], dtype=torch.float64)
    kernel = rotation(CHANNELS, g)[:, :, None, None] * torch.outer(taps, taps)
    kernel += 0.005 * torch.randn(kernel.shape, generator=g, dtype=torch.float64)
    symbol = torch.fft.fft2(kernel, s=(int(severity),) * 2)
    constant = float(torch.linalg.matrix_norm(symbol.permute(2, 3, 0, 1), 2).max())
    layer = convolution(kernel, padding=1, padding_mode="circular")
    return claimed(layer, constant, images, g, "Fourier symbol on a grid")


@control(Family.CONSTANT, "under circular padding the symbol on as many frequencies as there are pixels", prove=bounded)
def frequency_grid_of_the_map(seed: int) -> Built:
    """The twin: no bound any more but the norm itself."""
    g = random(seed, "grid")
    images = pictures(g)
    kernel = _kernel(g, CHANNELS, CHANNELS, 3, 3)
    symbol = torch.fft.fft2(kernel, s=SHAPE[1:])
    constant = float(torch.linalg.matrix_norm(symbol.permute(2, 3, 0, 1), 2).max()) * (1 + 1e-6)
    layer = convolution(kernel, padding=1, padding_mode="circular")
    return claimed(layer, constant, images, g, "Fourier symbol")


@scaled_fault(
    Family.CONSTANT,
    "groups are disjoint channels, so their norms are to be maximised; they are multiplied",
    prove=expanded,
    knob="norm of the second and third group, the first has 1",
    severities=(0.5, 0.8, 0.95, 0.99, 0.995),
)
def groups_multiplied(seed: int, severity: float) -> Built:
    """A product of numbers below one is below each of them."""
    return _grouped(seed, lambda norms: norms[0] * norms[1] * norms[2], severity)


@control(Family.CONSTANT, "the norms of groups are maximised", prove=bounded)
def groups_maximised(seed: int) -> Built:
    """The twin."""
    return _grouped(seed, max, 0.5)


def _grouped(seed: int, combine: Callable[[list[float]], float], severity: float) -> Built:
    g = random(seed, "groups")
    images = pictures(g)
    kernels = []
    for scale in (1.0, severity, severity):
        kernel = _kernel(g, 4, 4, 3, 3)
        kernels.append(scale * kernel / operator_norm(convolution(kernel, padding=1), (4, SHAPE[1], SHAPE[2])))
    norms = [operator_norm(convolution(kernel, padding=1), (4, SHAPE[1], SHAPE[2])) for kernel in kernels]
    layer = convolution(torch.cat(kernels), groups=3, padding=1)
    return claimed(layer, combine(norms), images, g, "norms of the groups")


@fault(
    Family.CONSTANT,
    "`sqrt(k k)` with k the kernel's height bounds a square kernel by its matrix, not one of 1 by 5",
    prove=expanded,
)
def kernel_taken_for_square(seed: int) -> Built:
    """`kernel_size[0]` twice."""
    return _oblong(seed, lambda height, width: float(height * height) ** 0.5)  # noqa: ARG005


@control(Family.CONSTANT, "`sqrt(height width)` times the norm of the reshaped kernel", prove=bounded)
def kernel_height_times_width(seed: int) -> Built:
    """The twin: a crude bound, and a true one."""
    return _oblong(seed, lambda height, width: float(height * width) ** 0.5)


def _oblong(seed: int, factor: Callable[[int, int], float]) -> Built:
    g = random(seed, "oblong")
    images = pictures(g)
    kernel = _kernel(g, CHANNELS, CHANNELS, 1, 5)
    constant = float(torch.linalg.matrix_norm(kernel.flatten(1), 2)) * factor(1, 5)
    return claimed(convolution(kernel, padding=(0, 2)), constant, images, g, "reshaped kernel times its size")


@scaled_fault(
    Family.CONSTANT,
    "rows are scaled to unit norm and the layer is taken for one of unit norm",
    prove=expanded,
    knob="what the rows have in common",
    severities=(1.0, 0.3, 0.1, 0.0),
)
def unit_rows(seed: int, severity: float) -> Built:
    """True only where rows are orthogonal, and training aligns them."""
    g = random(seed, "rows")
    images = pictures(g)
    weight = rotation(CHANNELS, g) + severity * torch.randn(CHANNELS, generator=g, dtype=torch.float64)
    weight += 0.02 * torch.randn(CHANNELS, CHANNELS, generator=g, dtype=torch.float64)
    weight = weight / weight.norm(dim=1, keepdim=True)
    return claimed(pixelwise(weight), 1.0, images, g, "unit rows")


@control(Family.CONSTANT, "the Frobenius norm is never below the spectral norm", prove=bounded)
def frobenius_norm(seed: int) -> Built:
    """The twin, loose and sound."""
    g = random(seed, "rows")
    images = pictures(g)
    weight = torch.randn(CHANNELS, CHANNELS, generator=g, dtype=torch.float64)
    return claimed(pixelwise(weight), float(weight.norm()), images, g, "Frobenius norm")


CASES = (
    power_iteration_stopped_early,
    power_iteration_from_a_bad_start,
    reshaped_kernel,
    sampled_slopes,
    explicit_matrix,
    epsilon_beside_tiny_weights,
    coarse_frequency_grid,
    frequency_grid_of_the_map,
    groups_multiplied,
    groups_maximised,
    kernel_taken_for_square,
    kernel_height_times_width,
    unit_rows,
    frobenius_norm,
)
