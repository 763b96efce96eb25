"""Models whose flip distances are known in closed form: the ground truth of attacks and certifiers.

Every model here is affine or piecewise affine at each pixel, so the smallest perturbation that changes a prediction is
the projection of the image onto a polyhedron given by few linear inequalities. That projection is solved exactly, in
float64, by trying every set of active inequalities (the Karush-Kuhn-Tucker conditions single out one).
All distances are L2 over the whole image, in image units, without any box.
"""

from __future__ import annotations

from itertools import combinations, product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "AffineConv",
    "AffinePixel",
    "FoldedPixel",
    "Piece",
    "PiecewisePixel",
    "ReluPixel",
    "affine_conv",
    "affine_pixel",
    "folded_pixel",
    "opposite_rows",
    "orthonormal_rows",
    "polyhedron_distance",
    "relu_pixel",
]


def polyhedron_distance(gram: Tensor, gap: Tensor, rank: int) -> Tensor:
    """Length of the shortest d with `a_m . d >= gap_m` for all m, by enumeration of the active inequalities.

    `gram` (N, M, M) holds the products `a_m . a_n`, `gap` (N, M); at most `rank` inequalities are active at once.
    Returns (N,) float64, infinite where no d exists (or only degenerate ones).
    """
    return _shortest(gram, gap, rank)[0]


def _shortest(gram: Tensor, gap: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Length (N,) of the shortest d, and the multipliers (N, M) of the `a_m` that it is made of."""
    gram, gap = gram.double(), gap.double()
    scale = gap.abs().amax(1).clamp_min(torch.finfo(torch.float64).tiny)
    tolerance = 1e-9 * scale
    best = torch.where((gap <= 0).all(1), 0.0, torch.inf).double()
    multipliers = torch.zeros_like(gap)
    for size in range(1, min(rank, gap.shape[1]) + 1):
        for active in combinations(range(gap.shape[1]), size):
            s = list(active)
            block, right = gram[:, s][:, :, s], gap[:, s]
            multiplier, info = torch.linalg.solve_ex(block, right.unsqueeze(2))
            multiplier = multiplier.squeeze(2)  # (N, size)
            reached = (gram[:, :, s] @ multiplier.unsqueeze(2)).squeeze(2)  # a_m . d
            square = (multiplier * right).sum(1)
            valid = (info == 0) & (reached >= gap - tolerance.unsqueeze(1)).all(1) & (multiplier >= 0).all(1)
            length = torch.where(valid & (square >= 0), square.clamp_min(0).sqrt(), torch.inf)
            full = torch.zeros_like(gap).index_copy(1, torch.tensor(s, device=gap.device), multiplier)
            multipliers = torch.where((length < best).unsqueeze(1), full, multipliers)
            best = torch.minimum(best, length)
    return best, multipliers


class _Affine(nn.Module):
    """What affine models share: one set of linear inequalities per pixel."""

    def _rows(self, height: int, width: int) -> Tensor:
        """The map of each pixel as explicit rows over the image, (H*W, K, C*H*W), or (1, K, C) where all are alike."""
        raise NotImplementedError

    def _gram(self, height: int, width: int) -> Tensor:
        """Products of each pixel's rows, (H*W, K, K), or (1, K, K) where all are alike."""
        rows = self._rows(height, width).double()
        return rows @ rows.transpose(1, 2)

    def _logits(self, image: Tensor) -> Tensor:
        raise NotImplementedError

    def _differences(self, image: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        """Inequalities `z_reference >= z_k` for all k: gaps (H*W, K), and Gram matrices (H*W, K, K)."""
        _, height, width = image.shape
        logits = self._logits(image.double())  # (K, H, W)
        flat = logits.flatten(1).T  # (H*W, K)
        gram = self._gram(height, width).expand(flat.shape[0], -1, -1)
        pixel = torch.arange(flat.shape[0], device=flat.device)
        cross = gram[pixel, reference]  # (H*W, K): row_reference . row_k
        norm = cross[pixel, reference]
        # (row_r - row_k) . (row_r - row_l)
        products = norm[:, None, None] - cross[:, :, None] - cross[:, None, :] + gram
        gap = flat - flat[pixel, reference].unsqueeze(1)
        return gap, products

    @torch.no_grad()
    def flip_distance(self, image: Tensor) -> Tensor:
        """Distance of every pixel of `image` (C, H, W) to the nearest other prediction, (H, W) float64.

        The minimum over k of the margin against class k over `||row_y - row_k||`.
        """
        prediction = self._logits(image.double()).flatten(1).argmax(0)
        gap, gram = self._differences(image, prediction)
        lengths = gram.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
        distance = torch.where(lengths > 0, -gap / lengths, torch.inf)
        distance.scatter_(1, prediction.unsqueeze(1), torch.inf)
        return distance.amin(1).reshape(image.shape[1:])

    @torch.no_grad()
    def nearest_flip(self, image: Tensor, row: int, column: int) -> Tensor:
        """The closest point of the decision boundary of one pixel of `image` (C, H, W), in float64."""
        image = image.double()
        _, height, width = image.shape
        pixel = row * width + column
        logits = self._logits(image).flatten(1).T[pixel]  # (K,)
        rows = self._rows(height, width).double()
        own = rows[0] if len(rows) == 1 else rows[pixel]  # (K, C) of the pixel, or (K, C*H*W)
        label = int(logits.argmax())
        normal = own - own[label]  # towards each other class
        gap = logits[label] - logits
        norm = normal.norm(dim=1)
        rival = int(torch.where(norm > 0, gap / norm, torch.inf).argmin())
        delta = gap[rival] / norm[rival].square() * normal[rival]
        nearest = image.clone()
        if len(rows) == 1:
            nearest[:, row, column] += delta
        else:
            nearest += delta.reshape(image.shape)
        return nearest

    @torch.no_grad()
    def flip_distance_to(self, image: Tensor, target: int) -> Tensor:
        """Distance of every pixel of `image` (C, H, W) to where `target` beats all other classes, (H, W) float64."""
        count = image.shape[1] * image.shape[2]
        gap, gram = self._differences(image, torch.full((count,), target, device=image.device))
        others = [k for k in range(gap.shape[1]) if k != target]
        rank = min(len(others), self._rows(image.shape[1], image.shape[2]).shape[2])
        return polyhedron_distance(gram[:, others][:, :, others], gap[:, others], rank).reshape(image.shape[1:])


class AffinePixel(_Affine):
    """Logits `W x + b` at every pixel alone (a 1x1 convolution); `weight` (K, C), `bias` (K,)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", weight.new_zeros(weight.shape[0]) if bias is None else bias.detach().clone())

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(images, self.weight[:, :, None, None].to(images.dtype), self.bias.to(images.dtype))

    def _logits(self, image: Tensor) -> Tensor:
        return torch.einsum("kc,chw->khw", self.weight.double(), image) + self.bias.double()[:, None, None]

    def _rows(self, height: int, width: int) -> Tensor:  # noqa: ARG002  every size is alike
        return self.weight.unsqueeze(0)

    def lipschitz_joint(self, height: int, width: int) -> float:
        """Exact Lipschitz constant of the whole map."""
        return self.lipschitz_pixel(height, width)

    def lipschitz_pixel(self, height: int, width: int) -> float:  # noqa: ARG002  every size is alike
        """Exact Lipschitz constant of the logit vector of one pixel."""
        return float(torch.linalg.matrix_norm(self.weight.double(), 2))


class AffineConv(_Affine):
    """One zero-padded convolution with an odd square kernel; `weight` (K, C, k, k), `bias` (K,)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", weight.new_zeros(weight.shape[0]) if bias is None else bias.detach().clone())

    def forward(self, images: Tensor) -> Tensor:
        weight, bias = self.weight.to(images.dtype), self.bias.to(images.dtype)
        return F.conv2d(images, weight, bias, padding=self.weight.shape[2] // 2)

    def _logits(self, image: Tensor) -> Tensor:
        logits: Tensor = self.forward(image.unsqueeze(0))[0]
        return logits

    @torch.no_grad()
    def matrix(self, height: int, width: int) -> Tensor:
        """The linear part as an explicit matrix (K*H*W, C*H*W), float64, border included."""
        channels = self.weight.shape[1]
        basis = torch.eye(channels * height * width, dtype=torch.float64, device=self.weight.device)
        images = basis.reshape(-1, channels, height, width)
        return F.conv2d(images, self.weight.double(), padding=self.weight.shape[2] // 2).flatten(1).T

    def _gram(self, height: int, width: int) -> Tensor:
        # The products of two rows, tap by tap, summed over the taps that lie inside the image: no matrix is needed.
        weight = self.weight.double()
        products = (weight.unsqueeze(0) * weight.unsqueeze(1)).sum(2)  # (K, K, k, k)
        classes, size = weight.shape[0], weight.shape[2]
        inside = weight.new_ones(1, 1, height, width)
        summed = F.conv2d(inside, products.reshape(-1, 1, size, size), padding=size // 2)  # (1, K*K, H, W)
        return summed.reshape(classes, classes, -1).movedim(2, 0)

    def _rows(self, height: int, width: int) -> Tensor:
        rows = self.matrix(height, width).reshape(self.weight.shape[0], height * width, -1)
        return rows.transpose(0, 1)

    def lipschitz_joint(self, height: int, width: int) -> float:
        """Exact Lipschitz constant of the whole map at this size: the spectral norm of the explicit matrix."""
        return float(torch.linalg.matrix_norm(self.matrix(height, width), 2))

    def lipschitz_pixel(self, height: int, width: int) -> float:
        """Exact Lipschitz constant of the worst pixel's logit vector at this size."""
        return float(torch.linalg.matrix_norm(self._rows(height, width), 2).max())


class Piece(NamedTuple):
    """Where `region @ x >= edge` (R, C), (R,) the logits of a pixel are `weight @ x + bias` (K, C), (K,); float64."""

    weight: Tensor
    bias: Tensor
    region: Tensor
    edge: Tensor


class PiecewisePixel(nn.Module):
    """What piecewise affine models of single pixels share; the pieces cover the space and agree on common edges."""

    def pieces(self) -> list[Piece]:
        """All affine pieces of the map of one pixel."""
        raise NotImplementedError

    @torch.no_grad()
    def _logits(self, image: Tensor) -> Tensor:
        logits: Tensor = self.forward(image.double().unsqueeze(0))[0]
        return logits.flatten(1).T  # (H*W, K)

    def _inequalities(
        self, pixels: Tensor, piece: Piece, better: list[Tensor], worse: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Normals (N, M, C) and gaps (N, M) of: inside the piece, class better[j] reaches worse[j] (N,) for all j."""
        number = len(pixels)
        rows = [piece.region.expand(number, -1, -1)]
        gaps = [piece.edge - pixels @ piece.region.T]
        logits = pixels @ piece.weight.T + piece.bias
        index = torch.arange(number, device=pixels.device)
        for up, down in zip(better, worse, strict=True):
            rows.append((piece.weight[up] - piece.weight[down]).unsqueeze(1))
            gaps.append((logits[index, down] - logits[index, up]).unsqueeze(1))
        return torch.cat(rows, 1), torch.cat(gaps, 1)

    def _distance(self, pixels: Tensor, piece: Piece, better: list[Tensor], worse: list[Tensor]) -> Tensor:
        """Distance of pixels (N, C) to where, inside the piece, class better[j] reaches worse[j] (N,) for all j."""
        normals, gaps = self._inequalities(pixels, piece, better, worse)
        return polyhedron_distance(normals @ normals.transpose(1, 2), gaps, pixels.shape[1])

    @torch.no_grad()
    def nearest_flip(self, image: Tensor, row: int, column: int) -> Tensor:
        """The closest point of the decision boundary of one pixel of `image` (C, H, W), in float64."""
        pixel = image.double()[:, row, column].unsqueeze(0)
        logits = self._logits(pixel[0, :, None, None])
        label = logits.argmax(1)
        best, delta = torch.inf, torch.zeros_like(pixel[0])
        for piece in self.pieces():
            for step in range(1, logits.shape[1]):
                normals, gaps = self._inequalities(pixel, piece, [(label + step) % logits.shape[1]], [label])
                length, multipliers = _shortest(normals @ normals.transpose(1, 2), gaps, len(delta))
                if float(length) < best:
                    best, delta = float(length), multipliers[0] @ normals[0]
        nearest = image.double().clone()
        nearest[:, row, column] += delta
        return nearest

    @torch.no_grad()
    def flip_distance(self, image: Tensor) -> Tensor:
        """Distance of every pixel of `image` (C, H, W) to the nearest other prediction, (H, W) float64."""
        prediction = self._logits(image).argmax(1)
        best = torch.full(prediction.shape, torch.inf, dtype=torch.float64, device=image.device)
        pixels = image.double().flatten(1).T
        classes = self._logits(image[:, :1, :1]).shape[1]
        for piece in self.pieces():
            for step in range(1, classes):
                rival = (prediction + step) % classes
                best = torch.minimum(best, self._distance(pixels, piece, [rival], [prediction]))
        return best.reshape(image.shape[1:])

    @torch.no_grad()
    def flip_distance_to(self, image: Tensor, target: int) -> Tensor:
        """Distance of every pixel of `image` (C, H, W) to prediction `target`, (H, W) float64."""
        pixels = image.double().flatten(1).T
        classes = self._logits(image[:, :1, :1]).shape[1]
        best = torch.full((pixels.shape[0],), torch.inf, dtype=torch.float64, device=image.device)
        chosen = torch.full((pixels.shape[0],), target, device=image.device)
        others = [torch.full_like(chosen, k) for k in range(classes) if k != target]
        for piece in self.pieces():
            best = torch.minimum(best, self._distance(pixels, piece, [chosen] * len(others), others))
        return best.reshape(image.shape[1:])

    def lipschitz_joint(self, height: int, width: int) -> float:
        """Exact Lipschitz constant of the whole map (no piece may be empty)."""
        return self.lipschitz_pixel(height, width)

    def lipschitz_pixel(self, height: int, width: int) -> float:  # noqa: ARG002  every size is alike
        """Exact Lipschitz constant of one pixel's logit vector: the largest spectral norm of a piece."""
        return max(float(torch.linalg.matrix_norm(piece.weight, 2)) for piece in self.pieces())


class FoldedPixel(PiecewisePixel):
    """Logits `W |x - fold| + b` at every pixel alone: each channel is folded once, an isometry on each piece."""

    weight: Tensor
    bias: Tensor
    fold: Tensor

    def __init__(self, weight: Tensor, bias: Tensor, fold: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", bias.detach().clone())
        self.register_buffer("fold", fold.detach().clone())

    def forward(self, images: Tensor) -> Tensor:
        folded = (images - self.fold[:, None, None].to(images.dtype)).abs()
        return F.conv2d(folded, self.weight[:, :, None, None].to(images.dtype), self.bias.to(images.dtype))

    def pieces(self) -> list[Piece]:
        """One piece for each combination of signs of `x - fold`."""
        found = []
        for signs in product((1.0, -1.0), repeat=self.weight.shape[1]):
            sign = self.weight.new_tensor(signs).double()
            weight, fold = self.weight.double() * sign, self.fold.double()
            found.append(Piece(weight, self.bias.double() - weight @ fold, torch.diag(sign), sign * fold))
        return found


class ReluPixel(PiecewisePixel):
    """Logits `W relu(V x + a) + b` at every pixel alone; with no more hidden units than channels no piece is empty."""

    inner: Tensor
    shift: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, inner: Tensor, shift: Tensor, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.register_buffer("inner", inner.detach().clone())
        self.register_buffer("shift", shift.detach().clone())
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", bias.detach().clone())

    def forward(self, images: Tensor) -> Tensor:
        dtype = images.dtype
        hidden = F.conv2d(images, self.inner[:, :, None, None].to(dtype), self.shift.to(dtype)).relu()
        return F.conv2d(hidden, self.weight[:, :, None, None].to(dtype), self.bias.to(dtype))

    def pieces(self) -> list[Piece]:
        """One piece for each combination of active hidden units."""
        inner, shift, weight, bias = (t.double() for t in (self.inner, self.shift, self.weight, self.bias))
        found = []
        for active in product((1.0, 0.0), repeat=inner.shape[0]):
            on = inner.new_tensor(active)
            sign = 2 * on - 1
            found.append(
                Piece((weight * on) @ inner, (weight * on) @ shift + bias, sign[:, None] * inner, -sign * shift)
            )
        return found


def _normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def affine_pixel(classes: int = 4, channels: int = 3, seed: int = 0) -> AffinePixel:
    """A random 1x1 convolution."""
    return AffinePixel(_normal((classes, channels), seed), 0.3 * _normal((classes,), seed + 1))


def affine_conv(classes: int = 4, channels: int = 3, kernel: int = 3, seed: int = 0) -> AffineConv:
    """A random zero-padded convolution with an odd kernel."""
    return AffineConv(_normal((classes, channels, kernel, kernel), seed) / kernel, 0.3 * _normal((classes,), seed + 1))


def folded_pixel(classes: int = 4, channels: int = 3, seed: int = 0) -> FoldedPixel:
    """A random folded map; the folds lie between .2 and .8."""
    fold = 0.2 + 0.6 * torch.rand((channels,), generator=torch.Generator().manual_seed(seed + 2), dtype=torch.float64)
    return FoldedPixel(_normal((classes, channels), seed), 0.3 * _normal((classes,), seed + 1), fold)


def relu_pixel(classes: int = 4, channels: int = 3, hidden: int = 3, seed: int = 0) -> ReluPixel:
    """A random network with one hidden layer; its units switch near the middle of the unit cube."""
    inner = _normal((hidden, channels), seed)
    shift = 0.3 * _normal((hidden,), seed + 1) - inner.sum(1) / 2
    return ReluPixel(inner, shift, _normal((classes, hidden), seed + 2), 0.2 * _normal((classes,), seed + 3))


def orthonormal_rows(classes: int = 3, channels: int = 3, seed: int = 0) -> AffinePixel:
    """A tight gadget: orthonormal rows (classes <= channels), Lipschitz constant 1, flip distance m / sqrt(2)."""
    basis, _ = torch.linalg.qr(_normal((channels, classes), seed))
    return AffinePixel(basis.T)


def opposite_rows(channels: int = 3, seed: int = 0) -> AffinePixel:
    """A tight gadget: two classes with rows w and -w, ||w|| = 1, Lipschitz constant sqrt(2), flip distance m / 2."""
    row = _normal((channels,), seed)
    row = row / row.norm()
    return AffinePixel(torch.stack([row, -row]), torch.stack([-row.sum(), row.sum()]) / 2)
