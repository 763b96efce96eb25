"""Upper bounds of the norm of a convolution on the infinite grid, from the autocorrelation of its kernel.

A convolution with stride s is, after space-to-depth, one with stride 1 and s*s times the channels, y_p = sum_t K_t
x_{p+t}. Its norm is the largest singular value of its symbol K(w) = sum_t K_t exp(i w t) over all frequencies w, and
the Gram matrix K(w) K(w)* = sum_o C_o exp(i w o) has the coefficients C_o = sum_t K_{t+o} K_t'. Zero padding of any
width, cropping and any size only restrict the operator on the infinite grid, and a torus that the stride divides sees
some of the frequencies; so a bound over all frequencies holds for all of them.

Two bounds:

* **autocorrelation**: |K(w)|^2 <= c + |C_0 - c I| + sum_{o != 0} |C_o|, close where the kernel is nearly orthogonal.

* **frequency grid**: a real trigonometric polynomial T of degree n with sup |T| = M = T(t0) satisfies
  T(t) >= M cos(n (t - t0)) for |t - t0| <= pi / n (M. Riesz 1914; the lemma behind the grids of Ehlich and Zeller,
  "Schwankung von Polynomen zwischen Gitterpunkten", Math. Zeitschrift 1964). For unit vectors u, v and a kernel of
  k taps per axis, T(w) = Re(u* K(w) v) has after centring the frequencies -D .. D in steps of 1 with D = (k - 1)/2;
  for even k these are half-integers, and the lemma is applied to T(2 w), of degree 2 D, which changes nothing in the
  product. Choose u, v and w0 so that T(w0) = M = max_w |K(w)|. Then
  - on a line through w0 in direction h, T(w0 + t h) has degree D1 |h1| + D2 |h2| (rational directions, then all by
    continuity), so every point within r1, r2 of w0 has |K| >= M cos(D1 r1 + D2 r2): whatever the partition of the
    torus into cells, M <= max over cells of |K(centre)| / cos(D1 r1 + D2 r2). Cells are split where that is large;
  - on a uniform grid, axis after axis, M <= max |K(grid)| / (cos(D1 r1) cos(D2 r2)), r = pi / N.
  The same holds for K(w) K(w)* - c I, whose degrees are twice as large, and which is far better where the singular
  values are all close to each other: then |K|^2 <= c + max |K K* - c I| / cos(2 (D1 r1 + D2 r2)).
"""

import math

import torch
from torch import Tensor

from .bound import UNIT, gamma
from .spectral import gram_of, proved

__all__ = ["Symbol", "polyphase", "reduced"]

_CHUNK = 1 << 21  # complex numbers worked on at once


def polyphase(weight: Tensor, stride: tuple[int, int], dilation: tuple[int, int]) -> Tensor:
    """The kernel (G, O, I s1 s2, a, b) with stride 1 and no dilation that has the norm of `weight` (G, O, I, k1, k2).

    A stride and a dilation with a common divisor only see positions that are multiples of it. Without one the dilation
    only splits the grid: with p = d q + r, the sum over t of W_t x[s p + d t] is that of W_t z_r[s q + t] for
    z_r[m] = x[s r + d m], and the residues s r modulo d are all different, so that the z_r share no position.
    """
    groups, outputs, inputs, k1, k2 = weight.shape
    s1, s2 = (reduced(s, d)[0] for s, d in zip(stride, dilation, strict=True))
    a, b = -(-k1 // s1), -(-k2 // s2)
    wide = weight.new_zeros(groups, outputs, inputs, a * s1, b * s2)
    wide[..., :k1, :k2] = weight
    phases = wide.reshape(groups, outputs, inputs, a, s1, b, s2).permute(0, 1, 2, 4, 6, 3, 5)
    return phases.reshape(groups, outputs, inputs * s1 * s2, a, b)


def reduced(stride: int, dilation: int) -> tuple[int, int]:
    """Stride and dilation without their common divisor."""
    common = math.gcd(stride, dilation)
    return stride // common, dilation // common


class Symbol:
    """The Gram matrices K(w) K(w)* (on the smaller side, n x n) of G kernels (G, O, M, a, b) in float64."""

    def __init__(self, kernel: Tensor) -> None:
        if kernel.shape[1] > kernel.shape[2]:
            kernel = kernel.transpose(1, 2)
        groups, side, inner, a, b = kernel.shape
        self.side, self.degrees = side, ((a - 1) / 2, (b - 1) / 2)
        half = [(y, x) for y in range(a) for x in range(1 - b, b) if (y, x) > (0, 0)]
        self.offsets = torch.tensor([(0, 0), *half], dtype=torch.float64)  # the others are the transposes
        self.coefficients = torch.stack([_correlation(kernel, y, x) for y, x in [(0, 0), *half]], 1)  # (G, o, n, n)
        size = kernel.flatten(1).square().sum(1) * (1 + 1e-9)  # |K|_F^2
        # Every entry of C_o is off by at most gamma |row i| |row j|, hence C_o by gamma |K|_F^2, and there are 2 o - 1.
        self.error = gamma(inner * a * b + 2) * size * (2 * len(self.offsets))  # (G,)
        terms = 2 * torch.linalg.matrix_norm(self.coefficients).sum(1)
        # At a frequency: cosines of angles up to 2 pi (a + b), then a sum over the offsets.
        self.rounding = terms * (gamma(len(self.offsets) + 4) + 4 * UNIT * (2 * math.pi * (a + b) + 2))  # (G,)
        per_frequency = side**2 + (len(self.offsets) * side**2 if groups > 1 else 0)
        self.chunk = max(1, _CHUNK // per_frequency)

    def autocorrelation(self) -> Tensor:
        """Upper bounds (G,) of |K|^2 over all frequencies."""
        centre = self.coefficients[:, 0]
        level = torch.diagonal(centre, dim1=-2, dim2=-1).mean(-1)
        rest = self.coefficients.clone()
        torch.diagonal(rest[:, 0], dim1=-2, dim2=-1).sub_(level[:, None])
        norms = torch.linalg.matrix_norm(rest)  # (G, o)
        if self.side > 2 and float((norms.sum(1) / level.clamp_min(1e-300)).max()) > 1e-6:
            flat = rest.flatten(0, 1)
            gram, error = gram_of(flat)
            largest = proved(gram, torch.linalg.eigvalsh(gram)[:, -1]) + error
            norms = torch.minimum(norms, largest.clamp_min(0).sqrt().reshape(norms.shape))
        total = level + norms[:, 0] + 2 * norms[:, 1:].sum(1)
        bound: Tensor = (total + self.error + UNIT * level) * (1 + gamma(self.side**2 + 4 * len(self.offsets)))
        return bound

    def grams(self, group: Tensor, frequency: Tensor) -> Tensor:
        """K(w) K(w)*, (F, n, n) complex128, for groups (F,) and frequencies (F, 2)."""
        angle = frequency @ self.offsets.mT  # (F, o)
        cosine, sine = angle.cos(), angle.sin()
        cosine[:, 0] /= 2
        if len(self.coefficients) == 1:
            real, imaginary = (torch.tensordot(c, self.coefficients[0], 1) for c in (cosine, sine))
        else:
            own = self.coefficients[group].flatten(2)  # (F, o, n n)
            real, imaginary = ((c[:, None] @ own).reshape(-1, self.side, self.side) for c in (cosine, sine))
        return torch.complex(real + real.mT, imaginary - imaginary.mT)

    def extremes(self, group: Tensor, frequency: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Bounds of the least and the largest eigenvalue, and the largest seen, for groups (F,), frequencies (F, 2)."""
        parts = []
        for g, w in zip(torch.split(group, self.chunk), torch.split(frequency, self.chunk), strict=True):
            grams = self.grams(g, w)
            values = torch.linalg.eigvalsh(grams) if self.side > 1 else grams[..., 0].real
            error = self.error[g] + self.rounding[g]
            lowest = -(proved(-grams, -values[:, 0]) + error)
            parts.append((lowest, proved(grams, values[:, -1]) + error, values[:, -1]))
        lowest, largest, seen = (torch.cat(part) for part in zip(*parts, strict=True))
        return lowest, largest, seen

    @property
    def cost(self) -> float:
        """Nanoseconds, about, that one frequency takes."""
        return self.side**3 + 2e4 * min(self.side - 1, 1) + 1e3


def _correlation(kernel: Tensor, y: int, x: int) -> Tensor:
    """C_o = sum_t K_{t+o} K_t', (G, n, n), for an offset o = (y, x) with y >= 0."""
    a, b = kernel.shape[-2:]
    ahead = kernel[..., y:, max(x, 0) : b + min(x, 0)]
    behind = kernel[..., : a - y, max(-x, 0) : b + min(-x, 0)]
    return ahead.flatten(2) @ behind.flatten(2).mT
