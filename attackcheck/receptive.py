"""What a pixel's logits depend on, measured, and the crops of an image that show the same logits.

The field is the support of gradients of random combinations of logits at random inputs, and the total stride the
smallest shift of a crop at which its logits are those of the whole. Neither is trusted: :func:`agrees` compares crops
with every image before it is attacked, and the points that an attack brings back are shown to the whole image
(:mod:`attackcheck.crops`). Whatever depends on the whole image (circular padding, global pooling or normalisation,
positions) fails one of these tests and is attacked on whole images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attackcheck.memory import ran_out

__all__ = ["Field", "Windows", "agrees", "around", "measure_field", "random_images", "windows"]

Model = Callable[[Tensor], Tensor]
Narrow = Callable[[Tensor, Tensor], tuple[Model, Tensor, Tensor]]

BLOCK = 32
"""Strides up to this are told apart; fields are measured around a block of so many rows and columns."""

SMALLEST = 16
"""Rows and columns of a crop at least; smaller ones cost as much time."""

WORTHWHILE = 0.5
"""Share of an image's pixels up to which crops are used."""

SAMPLED = 24
"""Pixels at which crops are compared with every whole image."""


@dataclass(frozen=True)
class Field:
    """How far the logits of an aligned cell of ``stride`` x ``stride`` pixels look beyond it, in pixels."""

    up: int
    down: int
    left: int
    right: int
    stride: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of what a cell sees."""
        return self.up + self.stride + self.down, self.left + self.stride + self.right


@dataclass(frozen=True, eq=False)
class Windows:
    """Crops of one shape: for every row and column of an image where the crop of a pixel there begins.

    Crops are aligned to the total stride and lie inside the image, so those of pixels near a border keep that border.
    """

    height: int
    width: int
    tops: Tensor  # (H,)
    lefts: Tensor  # (W,)
    field: Field

    def origins(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """First row and column ``(P,)`` of the crops of these pixels ``(P,)``."""
        return self.tops.to(rows.device)[rows], self.lefts.to(columns.device)[columns]

    def inside(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns ``(P,)`` of these pixels in their crops."""
        top, left = self.origins(rows, columns)
        return rows - top, columns - left

    def cut(self, image: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """The crops ``(P, C, h, w)`` of an image ``(C, H, W)`` around these pixels."""
        down, across = self._places(rows, columns)
        return image[:, down, across].transpose(0, 1).contiguous()

    def pasted(self, image: Tensor, rows: Tensor, columns: Tensor, crops: Tensor) -> Tensor:
        """The image with these crops ``(P, C, h, w)``, which must not overlap, in their places."""
        down, across = self._places(rows, columns)
        result = image.clone()
        result[:, down, across] = crops.transpose(0, 1)
        return result

    def _places(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        top, left = self.origins(rows, columns)
        down = top[:, None] + torch.arange(self.height, device=top.device)
        across = left[:, None] + torch.arange(self.width, device=left.device)
        return down[:, :, None], across[:, None, :]


def measure_field(model: Model, image: Tensor) -> Field | None:
    """The receptive field of a model at images like this one ``(C, H, W)``, None where it is as good as global.

    Random images of growing size are shown to the model; those that it refuses end the search.
    """
    try:
        extent = _extent(model, image)
        return None if extent is None else _with_stride(model, image, extent)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if ran_out(error):
            raise
        return None  # a model of one size only, or one without gradient


def windows(field: Field, height: int, width: int) -> Windows | None:
    """Crops for images of this size, None where they would save little."""
    tall, tops = _axis(height, field.up, field.down, field.stride)
    wide, lefts = _axis(width, field.left, field.right, field.stride)
    if tall * wide > WORTHWHILE * height * width:
        return None
    return Windows(tall, wide, tops, lefts, field)


def around(field: Field, image: Tensor, perturbed: Tensor) -> tuple[tuple[slice, slice], tuple[slice, slice]] | None:
    """A crop that holds what a perturbation reaches and all that this depends on, and what it reaches.

    Both are rows and columns of images ``(C, H, W)``. None where nothing is perturbed, or the crop would save little.
    """
    changed = (perturbed != image).any(dim=0)
    crop, reached = [], []
    for axis, (before, after) in enumerate(((field.up, field.down), (field.left, field.right))):
        size = changed.shape[axis]
        touched = changed.any(dim=1 - axis).nonzero()[:, 0].tolist()
        if not touched:
            return None
        # Cells see `before` and `after` beyond themselves, so they are seen by those as far behind and ahead.
        first, last = touched[0] - after - field.stride, touched[-1] + 1 + before + field.stride
        reached.append(slice(max(0, first), min(size, last)))
        start = max(0, first - before - field.stride) // field.stride * field.stride
        stop = min(size, -(-(last + after + field.stride) // field.stride) * field.stride)
        crop.append(slice(start, stop))
    area = math.prod(part.stop - part.start for part in crop)
    if area > WORTHWHILE * changed.numel():
        return None
    return (crop[0], crop[1]), (reached[0], reached[1])


def agrees(
    model: Model,
    image: Tensor,
    logits: Tensor,
    crops: Windows,
    *,
    tolerance: Tensor,
    scale: float,
    seed: int,
    at: Narrow | None = None,
) -> bool:
    """Whether crops show the logits of the whole image: at the image, and at two random perturbations of it.

    Args:
        model: the model as deployed.
        image: ``(C, H, W)``.
        logits: the model's logits there, ``(K, H, W)``.
        crops: what is to be examined.
        tolerance: ``(K,)``, what rounding may change in the logits of each class.
        scale: length of a perturbation of one crop; the other perturbation is 16 times as long.
        seed: of the pixels and perturbations.
        at: what computes the logits of pixels of crops, if not the model: given their rows and columns there, a model
            and where it puts their logits.
    """
    try:
        with torch.enable_grad():
            if not _supported(model, image, crops, seed):
                return False
        with torch.no_grad():
            return _same_logits(model, image, logits, crops, tolerance, scale, seed, at)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if ran_out(error):
            raise
        return False  # a crop's size is refused


def _extent(model: Model, image: Tensor) -> Field | None:
    """Reach beyond a block of BLOCK pixels, by gradients on random images whose sides are odd multiples of BLOCK."""
    height, width = image.shape[1:]
    margin = BLOCK
    while True:
        tall, wide = (2 * margin + BLOCK + side % BLOCK for side in (height, width))
        inputs = random_images(image, tall, wide).requires_grad_(True)
        with torch.enable_grad():
            outputs = model(inputs)
            block = outputs[:, :, margin : margin + BLOCK, margin : margin + BLOCK]
            weights = torch.randn(block.shape, generator=torch.Generator().manual_seed(margin), dtype=torch.float64)
            gradient = torch.autograd.grad((block * weights.to(block)).sum(), inputs)[0]
        touched = (gradient != 0).any(dim=0).any(dim=0)  # (tall, wide); NaN counts
        rows, columns = touched.any(dim=1).nonzero()[:, 0].tolist(), touched.any(dim=0).nonzero()[:, 0].tolist()
        if not rows:
            return None  # no gradient says nothing
        up, down = margin - rows[0], rows[-1] - margin - BLOCK + 1
        left, right = margin - columns[0], columns[-1] - margin - BLOCK + 1
        if rows[0] > 0 and rows[-1] < tall - 1 and columns[0] > 0 and columns[-1] < wide - 1:
            return Field(max(0, up), max(0, down), max(0, left), max(0, right), BLOCK)
        # the field is wider than twice the margin: is a crop still worth its while?
        if min(height, 2 * margin) * min(width, 2 * margin) > WORTHWHILE * height * width:
            return None
        margin *= 2


def _with_stride(model: Model, image: Tensor, extent: Field) -> Field | None:
    """The extent with the smallest shift of a crop at which its logits are those of the whole."""
    reach = BLOCK * math.ceil((max(extent.up, extent.down, extent.left, extent.right) + BLOCK) / BLOCK)
    crop = [2 * reach + BLOCK + side % BLOCK for side in image.shape[1:]]
    with torch.no_grad():
        inputs = random_images(image, crop[0] + BLOCK, crop[1] + BLOCK)
        whole = model(inputs)
        allowed = 1e-5 * whole.abs().amax(dim=(0, 2, 3))[:, None, None]
        for shift in range(1, BLOCK + 1):
            part = model(inputs[:, :, shift : shift + crop[0], shift : shift + crop[1]])
            # What lies well inside the crop; the cells of two crops need not begin at the same pixel.
            seen = part[:, :, reach : reach + BLOCK, reach : reach + BLOCK]
            first = shift + reach
            if bool(((whole[:, :, first : first + BLOCK, first : first + BLOCK] - seen).abs() <= allowed).all()):
                # a block is a whole number of cells, or else cells may begin up to one stride beyond it
                more = shift if BLOCK % shift else 0
                return Field(extent.up + more, extent.down + more, extent.left + more, extent.right + more, shift)
    return None


def random_images(image: Tensor, height: int, width: int) -> Tensor:
    """Noise in [0, 1], fine and coarse, and faint noise around two greys: kinks of the model are met on both sides."""
    generator = torch.Generator().manual_seed(height * 65537 + width)
    fine = torch.rand(4, image.shape[0], height, width, generator=generator, dtype=torch.float64)
    coarse = torch.rand(1, image.shape[0], height // 8 + 1, width // 8 + 1, generator=generator, dtype=torch.float64)
    fine[1] = coarse.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)[0, :, :height, :width]
    fine[2] = 0.3 + 0.02 * fine[2]
    fine[3] = 0.7 + 0.02 * fine[3]
    return fine.to(image)


def _axis(size: int, before: int, after: int, stride: int) -> tuple[int, Tensor]:
    """Length of crops along one axis, and where they begin for every position."""
    before = stride * math.ceil(before / stride)
    length = max(before + stride + after, SMALLEST)
    length += (size - length) % stride  # so that a crop at the far border is aligned too
    if length >= size:
        return size, torch.zeros(size, dtype=torch.int64)
    cell = torch.arange(size) // stride * stride
    return length, (cell - before).clamp(0, size - length)


def _supported(model: Model, image: Tensor, crops: Windows, seed: int) -> bool:
    """Whether the gradients of pixels far apart stay inside their crops on the whole image: one pass for all."""
    height, width = image.shape[1:]
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (
        torch.arange(int(torch.randint(min(side, 2 * size), (1,), generator=generator)), side, 2 * size)
        for side, size in ((height, crops.height), (width, crops.width))
    )
    rows, columns = torch.cartesian_prod(rows, columns).unbind(dim=1)
    points = image[None].clone().requires_grad_(True)
    chosen = model(points)[0][:, rows, columns]
    weights = torch.randn(chosen.shape, generator=generator, dtype=torch.float64)
    gradient = torch.autograd.grad((chosen * weights.to(chosen)).sum(), points)[0][0]
    top, left = crops.origins(rows, columns)
    allowed = torch.zeros(height, width, dtype=torch.bool)
    for y, x in {(y, x) for y, x in zip(top.tolist(), left.tolist(), strict=True)}:
        allowed[y : y + crops.height, x : x + crops.width] = True
    return not bool(((gradient != 0).any(dim=0) & ~allowed.to(image.device)).any())


def _same_logits(
    model: Model,
    image: Tensor,
    logits: Tensor,
    crops: Windows,
    tolerance: Tensor,
    scale: float,
    seed: int,
    at: Narrow | None,
) -> bool:
    height, width = image.shape[1:]
    generator = torch.Generator().manual_seed(seed + 1)
    rows = torch.randint(height, (SAMPLED,), generator=generator)
    columns = torch.randint(width, (SAMPLED,), generator=generator)
    # corners and borders are where crops and images differ most
    rows[:6] = torch.tensor([0, 0, height - 1, height - 1, 0, height - 1])
    columns[:4] = torch.tensor([0, width - 1, 0, width - 1])
    columns[6:8] = torch.tensor([0, width - 1])
    device = image.device
    rows, columns = rows.to(device), columns.to(device)
    inner_rows, inner_columns = crops.inside(rows, columns)
    small = model
    if at is not None:
        small, inner_rows, inner_columns = at(inner_rows, inner_columns)
    index = torch.arange(SAMPLED, device=device)
    noise = torch.randn(image.shape, generator=generator, dtype=torch.float64).to(image)
    noise *= scale / math.sqrt(image.shape[0] * crops.height * crops.width)
    for length in (0.0, 1.0, 16.0):
        perturbed = image + length * noise
        whole = logits if length == 0.0 else model(perturbed[None])[0]
        part = small(crops.cut(perturbed, rows, columns))
        difference = part[index, :, inner_rows, inner_columns] - whole[:, rows, columns].T  # (P, K)
        if not bool((difference.abs() <= tolerance.to(device)).all()):
            return False
    return True
