"""Arithmetic on batches whose rows are independent attacks: norms, steps and random numbers, one row at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from attackcheck import synchrony
from attackcheck.errors import InputError

from .objectives import Goal

__all__ = [
    "Box",
    "Generators",
    "Model",
    "Noise",
    "across",
    "along",
    "clip",
    "dot",
    "downhill",
    "falling",
    "gaussian",
    "lengths",
    "loss_and_gradient",
    "of_rows",
    "parts",
    "per_row",
    "polar",
    "replaced",
    "rescaled",
    "select",
    "travelled",
]

Model = Callable[[Tensor], Tensor]
Box = tuple[float, float] | None
Generators = torch.Generator | Sequence[torch.Generator] | None


def of_rows(model: Model, index: Tensor) -> Model:
    """The model for calls whose rows are the rows `index` of the attack, as `objective.rows(index)` is the objective.

    A model that tells rows apart (one whose rows are crops of different places) has a method `for_rows`; others are
    returned as they are.
    """
    rows: Callable[[Tensor], Model] | None = getattr(model, "for_rows", None)
    return model if rows is None else rows(index)


def parts(model: Model, rows: int, together: int = 1) -> list[slice]:
    """The parts in which a call of this many rows is best made, each a multiple of `together` rows; usually one.

    A model that has room for fewer says so by a number `at_once`. The last part begins early rather than be shorter:
    a single row may round in another way than several.
    """
    most: int | None = getattr(model, "at_once", None)
    if most is None or rows <= max(most, together):
        return [slice(0, rows)]
    size = max(together, most // together * together)
    return [slice(start, start + size) for start in (*range(0, rows - size, size), rows - size)]


def across(values: Tensor, like: Tensor) -> Tensor:
    """Shapes one value per row (B,) so that it broadcasts over `like` (B, ...)."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def lengths(x: Tensor) -> Tensor:
    """L2 norm of each row, (B,)."""
    norm: Tensor = torch.linalg.vector_norm(x.flatten(1), dim=1)
    return norm


_LOST = 512  # roundings of every value: they change a distance of so many by two millionths, shorter ones by more


class Noise:
    """Random directions for rows that have none, drawn when first asked for: they hardly ever are."""

    def __init__(self, images: Tensor, generator: Generators) -> None:
        self._draw: Callable[[], Tensor] = lambda: polar(gaussian(images, generator))[0]

    @cached_property
    def unit(self) -> Tensor:
        """(B, C, H, W), of length 1."""
        return self._draw()

    def rows(self, index: Tensor) -> Noise:
        """That of the rows `index`."""
        part = object.__new__(Noise)
        part._draw = lambda: self.unit[index]
        return part


def polar(x: Tensor, otherwise: Tensor | Noise | None = None) -> tuple[Tensor, Tensor]:
    """Direction (B, ...) and length (B,) of each row; rows of 0, inf or NaN get `otherwise`, or 0.

    Divides by the largest entry first where squares would leave the range of the type: gradients of real networks go
    down to 1e-20, whose squares float32 cannot hold.
    """
    if synchrony.readable(x):  # where asking costs nothing, rows of ordinary length take a fraction of the time
        norm = lengths(x)
        direction = x / across(norm, x)
        odd = _odd(norm)
        if odd is not None:
            rest = otherwise.unit if isinstance(otherwise, Noise) else otherwise
            direction[odd], norm[odd] = _scaled_polar(x[odd], None if rest is None else rest[odd])
        return direction, norm
    return _scaled_polar(x, otherwise.unit if isinstance(otherwise, Noise) else otherwise)


def downhill(gradient: Tensor, otherwise: Tensor | Noise | None) -> tuple[Tensor, Tensor]:
    """As `polar` of minus the gradient (B, ...)."""
    vectors, unit, norm = falling(gradient, otherwise)
    return across(unit, vectors) * vectors, norm


def falling(gradient: Tensor, otherwise: Tensor | Noise | None) -> tuple[Tensor, Tensor, Tensor]:
    """As `downhill`, the direction not yet scaled: vectors (B, ...), what makes them the direction (B,), and lengths.

    For whoever multiplies them by another number anyway. The vectors may be the gradient itself.
    """
    if synchrony.readable(gradient):
        norm = lengths(gradient)
        if _odd(norm) is None:
            return gradient, -1 / norm, norm
    direction, norm = polar(-gradient, otherwise)
    return direction, torch.ones_like(norm), norm


def _odd(norm: Tensor) -> Tensor | None:
    """Which rows of this length (B,), on a CPU, float32 squares may have spoiled; None if there is none."""
    far = torch.finfo(norm.dtype).max ** 0.25
    usual = (norm > 1 / far) & (norm < far)
    return None if bool(usual.all()) else ~usual


def _scaled_polar(x: Tensor, otherwise: Tensor | None) -> tuple[Tensor, Tensor]:
    peak = x.flatten(1).abs().amax(1)
    usable = (peak > 0) & (peak < torch.inf)
    scaled = torch.where(across(usable, x), x / across(torch.where(usable, peak, 1), x), 0)
    norm = lengths(scaled)
    direction = scaled / across(norm.clamp_min(1), x)  # the largest entry is 1, so a usable norm is at least 1
    if otherwise is not None:
        direction = torch.where(across(usable, x), direction, otherwise)
    return direction, torch.where(usable, peak * norm, 0)


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Inner product of matching rows, (B,)."""
    return (x * y).flatten(1).sum(1)


def along(images: Tensor, distance: Tensor, direction: Tensor, box: Box) -> Tensor:
    """The points at these distances (B,) from `images` in `direction` (B, ...), cut off at the box."""
    return clip(torch.addcmul(images, across(distance, images), direction), box)


def travelled(
    images: Tensor, points: Tensor, distance: Tensor, vectors: Tensor, dots: Tensor, box: Box
) -> tuple[Tensor, Tensor]:
    """How far the points of `along` are from `images`, and the inner products of that way with `vectors`, both (B,).

    `dots` (B,) are those of the unit direction. Without a box both follow from `distance` (B,) but where that is so
    small that points were rounded to others; only those rows are looked at, where asking which costs nothing.
    """
    if box is None and synchrony.readable(distance):
        short = distance < _LOST * torch.finfo(images.dtype).eps * images[0].numel() ** 0.5
        if not bool(short.any()):
            return distance, distance * dots
        rows = short.nonzero()[:, 0]
        delta = points[rows] - images[rows]
        norm = distance.index_copy(0, rows, lengths(delta))
        return norm, (distance * dots).index_copy(0, rows, dot(vectors[rows], delta))
    delta = points - images
    return lengths(delta), dot(vectors, delta)


def rescaled(images: Tensor, delta: Tensor, distance: Tensor, box: Box, otherwise: Noise) -> tuple[Tensor, Tensor]:
    """The points at `distance` (B,) from `images` in the direction of `delta` (B, ...), and the ways there.

    Both cut off at the box; rows of `delta` without a direction get that of `otherwise`.
    """
    way, scale = delta, distance
    if synchrony.readable(delta) and _odd(norm := lengths(delta)) is None:
        scale = distance / norm
    else:
        way, _ = polar(delta, otherwise)
    points = along(images, scale, way, box)
    return points, points - images


def select(condition: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Rows of x (B, ...) where the condition (B,) holds, of y elsewhere; x or y itself if all rows are its."""
    if not synchrony.readable(condition):
        return torch.where(across(condition, x), x, y)
    rows = condition.nonzero()[:, 0]  # where asking costs nothing, and mostly spares the copy
    if len(rows) == len(condition):
        return x
    return y.index_copy(0, rows, x[rows]) if len(rows) else y


def replaced(kept: Tensor, better: Tensor, new: Tensor) -> Tensor:
    """`kept` (B, ...) with the rows of `new` where `better` (B,); written to in place where asking costs nothing."""
    if not synchrony.readable(better):
        return torch.where(across(better, new), new, kept)
    rows = better.nonzero()[:, 0]
    if len(rows) == len(better):
        return kept.copy_(new)
    return kept.index_copy_(0, rows, new[rows]) if len(rows) else kept


def per_row(value: float | Tensor, images: Tensor) -> Tensor:
    """A number for each row (B,), in the images' precision, from one for all or one for each."""
    number = value.to(images) if isinstance(value, Tensor) else images.new_full((), value)
    if number.shape not in ((), (len(images),)):
        raise InputError(f"expected one number or {len(images)}, one for each image, got {tuple(number.shape)}")
    return number.expand(len(images))


def clip(images: Tensor, box: Box) -> Tensor:
    """Images cut off at the box, if there is one."""
    return images if box is None else images.clamp(box[0], box[1])


def gaussian(images: Tensor, generator: Generators) -> Tensor:
    """Standard normal numbers in the shape of `images`, from one generator per row, or from one for all rows.

    None means a fresh generator with seed 0 for each row, so every row gets the same numbers in any batch.
    Numbers are drawn in float64 on the generator's device, so that dtype and device do not change them.
    """
    shape = images.shape[1:]
    if generator is None:
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).expand(images.shape)
    elif isinstance(generator, torch.Generator):
        noise = torch.randn(images.shape, generator=generator, dtype=torch.float64, device=generator.device)
    else:
        if len(generator) != images.shape[0]:
            raise InputError(f"expected one generator per image, got {len(generator)} for {images.shape[0]} images")
        rows = [torch.randn(shape, generator=g, dtype=torch.float64, device=g.device) for g in generator]
        noise = torch.stack(rows) if rows else torch.empty(images.shape, dtype=torch.float64)
    return noise.to(images)


def loss_and_gradient(model: Model, objective: Callable[[Tensor], Goal], points: Tensor) -> tuple[Goal, Tensor]:
    """The goal at `points` (B, C, H, W), detached, and the gradient of each row's loss there."""
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        goal = objective(model(points))
        (gradient,) = torch.autograd.grad(goal.loss.sum(), points)
    return Goal(goal.loss.detach(), goal.success), gradient
