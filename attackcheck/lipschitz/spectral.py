"""Norms of matrices, proved after the fact.

Eigenvalue routines only propose. That no eigenvalue of a Hermitian matrix H exceeds s is proved by a Cholesky
factorisation of s I - H that runs to its end: in floating point it is then exact for a matrix within
gamma(n+1) / (1 - gamma(n+1)) trace(s I - H) of it (Higham, "Accuracy and Stability of Numerical Algorithms", theorem
10.3; Rump, "Verification of positive definiteness", BIT 2006). Complex arithmetic multiplies the roundings by less
than 4, which `_COMPLEX` counts everywhere.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .bound import UNIT, Bound, down, gamma, up

__all__ = ["LARGEST_SIDE", "gram_of", "krylov", "matrix", "proved", "scaled", "unscaled"]

_COMPLEX = 4
_DENSE = 192  # up to this side all eigenvalues are cheaper than a few
LARGEST_SIDE = 3072


def proved(hermitian: Tensor, proposal: Tensor) -> Tensor:
    """Upper bounds (B,) of the largest eigenvalues of `hermitian` (B, n, n) as stored, near the `proposal` (B,).

    Raises ArithmeticError when matrices or proposals are not finite.
    """
    side = hermitian.shape[-1]
    diagonal = torch.diagonal(hermitian, dim1=-2, dim2=-1).real
    size = torch.linalg.matrix_norm(hermitian)  # an upper bound of every |eigenvalue|, up to rounding
    if not bool(size.isfinite().all() and proposal.isfinite().all()):
        raise ArithmeticError("a matrix is not finite")
    if side == 1:
        return diagonal[:, 0]
    bound: Tensor = size * (1 + gamma(side**2 + 4))
    open_, slack = torch.ones_like(bound, dtype=torch.bool), 1e-13 * size + 1e-300
    for _ in range(16):
        shift = torch.minimum(proposal + slack, size)
        shifted = -hermitian[open_]
        torch.diagonal(shifted, dim1=-2, dim2=-1).add_(shift[open_, None])
        failed = torch.linalg.cholesky_ex(shifted).info != 0
        trace = side * shift.abs() + diagonal.abs().sum(-1)
        sure = shift + (gamma(_COMPLEX * (side + 2)) * 2) * trace + 4 * UNIT * (shift.abs() + size)
        done = open_.clone()
        done[open_] = ~failed
        bound = torch.where(done, torch.minimum(bound, sure), bound)
        open_ = open_ & ~done
        if not bool(open_.any()):
            break
        slack = slack * (8 if side <= _DENSE else 64)
    return bound


def gram_of(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """A A* on the smaller side, (B, n, n), and how far in norm (B,) rounding may have moved it, for A of (B, m, k)."""
    wide = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mH
    error = gamma(_COMPLEX * (wide.shape[-1] + 2)) * torch.linalg.matrix_norm(wide).square() * (1 + 1e-9)
    return wide @ wide.mH, error


def matrix(matrices: Tensor, method: str = "matrix norm") -> Bound:
    """The largest spectral norm among real matrices (B, m, k) or one (m, k), in float64.

    Beyond `LARGEST_SIDE` rows and columns the upper bound is sqrt(|A|_1 |A|_inf), the lower one a column's or row's.
    """
    if matrices.dim() == 2:
        matrices = matrices[None]
    matrices, exponent = scaled(matrices)
    if exponent is None:
        return Bound(math.inf, 0.0, "weights that are not finite")
    if not bool(matrices.any()):
        return Bound(0.0, 0.0, method)
    count, (rows, columns) = matrices[0].numel(), matrices.shape[1:]
    magnitudes = matrices.abs()
    largest = float((magnitudes.sum(-1).amax(-1) * magnitudes.sum(-2).amax(-1)).sqrt().max())
    upper = up(largest, rows + columns)
    lower = down(max(float(matrices.norm(dim=d).max()) for d in (-1, -2)), rows + columns)
    if min(rows, columns) > LARGEST_SIDE:
        return unscaled(Bound(upper, lower, "row and column sums"), exponent)
    if min(rows, columns) == 1:  # Frobenius
        upper = up(float(torch.linalg.matrix_norm(matrices).max()), count)
    else:
        gram, error = gram_of(matrices)
        values, vectors = _top(gram)
        squared = float((proved(gram, values) + error).max())
        upper = min(upper, up(math.sqrt(squared)))
        best = int(values.argmax())
        wide = matrices[best] if rows <= columns else matrices[best].mT
        vector = vectors[best]
        moved = float((wide.mT @ vector).norm()) / float(vector.norm())
        frobenius = float(torch.linalg.matrix_norm(wide))
        lower = max(lower, down(moved, rows + columns) - gamma(rows + columns + 4) * frobenius)
    return unscaled(Bound(upper, lower, method), exponent)


def krylov(apply: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Tensor:
    """The vector of largest Rayleigh quotient of the symmetric map `apply` in its Krylov space from `start` (n,).

    Lanczos' method with full reorthogonalisation: `steps` calls, and `steps` vectors kept.
    """
    basis = start.new_zeros(steps, start.numel())
    images = torch.zeros_like(basis)
    vector = start
    for step in range(steps):
        before = float(vector.norm())
        for _ in range(2):
            vector = vector - (basis[:step] @ vector) @ basis[:step]
        length = float(vector.norm())
        if not length > 1e-10 * before:  # the space is exhausted: what is left is rounding
            basis, images = basis[:step], images[:step]
            break
        basis[step] = vector / length
        images[step] = apply(basis[step])
        vector = images[step]
    if not len(basis):
        return start
    inside = basis @ images.mT
    _, vectors = torch.linalg.eigh((inside + inside.mT) / 2)
    found: Tensor = vectors[:, -1] @ basis
    return found


def scaled(values: Tensor) -> tuple[Tensor, int | None]:
    """`values` in float64 times a power of two, largest about 1, and the exponent that undoes it (None: not finite)."""
    values = values.detach().to("cpu", torch.float64)
    largest = float(values.abs().max()) if values.numel() else 0.0
    if not math.isfinite(largest):
        return values, None
    exponent = max(-1000, math.frexp(largest)[1]) if largest else 0
    return values * math.ldexp(1.0, -exponent), exponent


def unscaled(bound: Bound, exponent: int) -> Bound:
    """The bound of weights that `scaled` made small, for the weights as they were."""
    try:
        upper = math.ldexp(bound.upper, exponent)
    except OverflowError:
        upper = math.inf
    if math.isinf(upper):
        return Bound(math.inf, 0.0, bound.method)
    lower = math.ldexp(bound.lower, exponent)
    if upper < 1e-290:  # near the smallest numbers a power of two rounds as well
        upper, lower = math.nextafter(upper, math.inf), max(0.0, math.nextafter(lower, -math.inf))
    return Bound(upper, lower, bound.method)


def _top(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Proposals for the largest eigenvalue (B,) and its vector (B, n) of real symmetric matrices."""
    side = gram.shape[-1]
    if side <= _DENSE:
        values, vectors = torch.linalg.eigh(gram)
        return values[:, -1], vectors[..., -1]
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(side, dtype=torch.float64, generator=generator)
    found = torch.stack([krylov(one.mv, start, 40) for one in gram])
    return torch.einsum("bi,bij,bj->b", found, gram, found) / found.square().sum(-1), found
