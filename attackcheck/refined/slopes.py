"""How fast every difference of two logits can move with the features, by place, class pair and order of sorted values.

All numbers are rounded upwards: the rows of the affine part are computed in float64 together with those of its absolute
values, which bound what the sums may have lost (Higham, "Accuracy and stability", section 3.1).
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from attackcheck.lipschitz import bounds
from attackcheck.refined.tail import Tail, linear_part

__all__ = ["Slopes", "measure_slopes"]

LOCAL_PAIRS = 6
"""Up to so many sorted pairs per pixel, slopes are kept for every set of pairs that can change their order."""

MOST_PAIRS = 10
"""Up to so many, slopes are kept for every order; what changes of order add is bounded pair by pair."""

CHUNK = 2**22
"""Numbers of a Jacobian at a time."""


@dataclass(frozen=True, eq=False)
class Slopes:
    """Upper bounds of slopes along the features.

    Attributes:
        table: ``(T, K, K, S, M)`` float64: at a pixel of place t, of the logit of class y less that of class k, where
            the sorted pairs are in order s now (a bit per pair, set where swapped) and those of the mask m may change
            it. ``M = S`` masks, or 1: none of them changes; ``S = 1`` where orders are not told apart: any may.
        swaps: ``(T, P)``, of the difference of each pair; P = 0 where orders are not told apart.
        contrasts: ``(K, K, P)``: times the slope of a pair, what a change of its order adds at most; used where M is 1.
        largest: ``(T, K, K)``, over all orders.
        block: norm of the map from one place of the features to the logits of its pixels, None without such blocks.
        rows, columns: how many places there are along each axis, ``T = rows * columns``.
        scale, reach: of the tail, the latter rounded up to a multiple of the former.
    """

    table: Tensor
    swaps: Tensor
    contrasts: Tensor
    largest: Tensor
    block: float | None
    rows: int
    columns: int
    scale: int
    reach: int

    @property
    def pairs(self) -> int:
        """P."""
        return int(self.swaps.shape[1])

    @property
    def masks(self) -> int:
        """M."""
        return int(self.table.shape[-1])

    def places(self, height: int, width: int, device: torch.device) -> Tensor:
        """The place of every pixel of a map, ``(H * W,)``."""
        down = _place(height, self.scale, self.reach, device)
        right = _place(width, self.scale, self.reach, device)
        return (down[:, None] * self.columns + right[None]).flatten()


def measure_slopes(tail: Tail, channels: int, height: int, width: int) -> Slopes:
    """Slopes of a tail whose features have ``channels`` channels, for maps of this size."""
    scale = tail.scale
    # Pixels farther from all borders than the reach have the rows of any other such pixel a scale further: rows are
    # computed on the smallest map that has every kind of pixel.
    reach = -(-tail.reach // scale) * scale
    cells = [min(size // scale, 2 * reach // scale + 1) for size in (height, width)]
    gram, loose, block = _row_grams(tail, channels, cells)
    table, swaps, contrasts, largest = _differences(tail, gram, loose)
    return Slopes(table, swaps, contrasts, largest, block, cells[0] * scale, cells[1] * scale, scale, reach)


def _place(size: int, scale: int, reach: int, device: torch.device) -> Tensor:
    index = torch.arange(size, device=device)
    if size <= 2 * reach + scale:
        return index
    inside = reach + index % scale
    return torch.where(
        index < reach, index, torch.where(index >= size - reach, index - size + 2 * reach + scale, inside)
    )


def _row_grams(tail: Tail, channels: int, cells: list[int]) -> tuple[Tensor, Tensor, float | None]:
    """Inner products of the rows of the values at every pixel, ``(T, O, O)``; by how much they may be wrong; block."""
    linear = linear_part(tail.affine)
    absolute = linear_part(tail.affine)
    with torch.no_grad():
        for parameter in absolute.parameters():
            parameter.abs_()
    total = channels * cells[0] * cells[1]
    per = max(1, CHUNK // max(1, channels * cells[0] * cells[1] * tail.scale**2))
    gram = loose = torch.zeros(())
    parts = []
    with torch.no_grad():
        for start in range(0, total, per):
            unit = torch.zeros(min(per, total - start), total, dtype=torch.float64)
            unit[torch.arange(len(unit)), torch.arange(start, start + len(unit))] = 1.0
            unit = unit.reshape(-1, channels, *cells)
            rows = linear(unit).flatten(2).permute(2, 1, 0)  # (T, O, chunk)
            sizes = absolute(unit).flatten(2).permute(2, 1, 0)
            gram, loose = gram + rows @ rows.mT, loose + sizes @ sizes.mT
            if tail.reach == 0:
                parts.append(rows)
    outputs = gram.shape[-1]
    loose = loose * (8.0 * (tail.terms + total + outputs + 16) * 2.0**-53)
    block = None
    if tail.reach == 0:
        jacobian = torch.cat(parts, dim=2)  # (scale^2, O, C)
        if tail.last is not None:
            norm = bounds.linear(tail.last.weight.detach().double().cpu().flatten(1)).upper
        else:
            norm = 1.0
        lost = float(loose.diagonal(dim1=-2, dim2=-1).sum().sqrt())
        block = norm * (bounds.linear(jacobian.flatten(0, 1)).upper + lost) * (1.0 + 1e-14)
    return gram, loose, block


def _differences(tail: Tail, gram: Tensor, loose: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Table, swaps, contrasts and largest of the slopes."""
    if tail.last is None:
        rows, pairs = torch.eye(gram.shape[-1], dtype=torch.float64), 0
    else:
        rows = tail.last.weight.detach().double().cpu().flatten(1)  # (K, O)
        pairs = rows.shape[1] // 2
    if pairs > MOST_PAIRS:
        return _any_order(rows, gram, loose)
    orders = torch.tensor(list(itertools.product([False, True], repeat=pairs)))  # (S, P)
    slopes = torch.stack([_slopes_from(rows[own] - rows, orders, gram, loose) for own in range(len(rows))], 1)
    largest = slopes.amax(dim=-1)
    if not pairs:
        return _untold(largest)
    apart = torch.eye(2 * pairs, dtype=torch.float64)
    swaps = _norms(apart[:pairs] - apart[pairs:], gram, loose)
    # A pair that changes places hands (v_j - v_{j + P}) (U_{j + P} - U_j) to the gradient.
    each = rows[:, None] - rows
    contrasts = (each[..., :pairs] - each[..., pairs:]).abs() * (1.0 + 1e-14)
    if pairs > LOCAL_PAIRS:
        return slopes[..., None], swaps, contrasts, largest
    count = len(orders)
    table = torch.empty(*slopes.shape, count, dtype=torch.float64)  # (T, K, K, S, S)
    table[..., 0] = slopes
    codes = torch.arange(count)
    for mask in range(1, count):
        bit = mask & -mask
        rest = table[..., mask ^ bit]
        table[..., mask] = torch.maximum(rest, rest[..., codes ^ bit])
    return table, swaps, contrasts, largest


def _untold(largest: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What there is without orders, given the largest slopes ``(T, K, K)``."""
    swaps, contrasts = largest.new_zeros(len(largest), 0), largest.new_zeros(*largest.shape[1:], 0)
    return largest[..., None, None], swaps, contrasts, largest


def _any_order(rows: Tensor, gram: Tensor, loose: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Too many orders to look at: a combination of norm d is stretched at most d times the norm of all rows together.

    An eigenvalue is proposed, and a Cholesky factorisation that runs to its end shows that it is large enough; what
    that rounds away is far below the margin (Higham, "Accuracy and stability", section 10.3). Else the trace is.
    """
    unit = torch.eye(gram.shape[-1], dtype=torch.float64)
    wanted = torch.linalg.eigvalsh(gram)[..., -1] * (1.0 + 1e-9)
    failed = torch.linalg.cholesky_ex(wanted[:, None, None] * unit - gram).info
    square = torch.where(failed == 0, wanted * (1.0 + 1e-9), gram.diagonal(dim1=-2, dim2=-1).sum(-1))
    norm = (square + loose.abs().sum((-2, -1))).sqrt()
    return _untold(norm[:, None, None] * (rows[:, None] - rows).norm(dim=-1) * (1.0 + 1e-12))


def _slopes_from(apart: Tensor, orders: Tensor, gram: Tensor, loose: Tensor) -> Tensor:
    """Slopes ``(T, K, S)`` of combinations ``apart`` (K, O) of the sorted values, in every order."""
    pairs = orders.shape[1]
    large, small = apart[:, None, :pairs], apart[:, None, pairs:]
    if pairs == 0:
        return _norms(apart, gram, loose)[..., None]
    # A pair in order hands its larger value's weight to its first channel, a swapped one to its second.
    ways = torch.cat([torch.where(orders, small, large), torch.where(orders, large, small)], -1)  # (K, S, O)
    return _norms(ways.flatten(0, 1), gram, loose).reshape(len(gram), *ways.shape[:2])


def _norms(ways: Tensor, gram: Tensor, loose: Tensor) -> Tensor:
    """Upper bounds of the norms of ``ways`` (N, O) times the rows, ``(T, N)``."""
    squares = ((ways @ gram) * ways).sum(-1)  # (T, N)
    lost = ((ways.abs() @ loose) * ways.abs()).sum(-1)
    return (squares.clamp_min(0.0) + lost).sqrt() * (1.0 + 1e-14)
