"""The cone that a pixel's logits depend on: of every layer of a network, the part around that pixel.

A crop of the image that holds a pixel's receptive field gives the pixel's logits, but most of what the last layers make
of it is about other pixels. The network is written down as tensor operations, and each is computed on the part that
matters for the logits of one cell (as many pixels as the total stride is wide): on the whole crop at first, on ever
less towards the end. That this gives the logits and the gradients of the whole crop is not believed of the arithmetic:
both are compared, at random crops with the pixel in corners, at borders and inside.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from attackcheck.cones.plan import Part, Step, planned
from attackcheck.memory import ran_out
from attackcheck.receptive import random_images
from attackcheck.tracing import Untraceable, Value, trace_as_is

__all__ = ["Cone", "Spot", "cone_of"]

Model = Callable[[Tensor], Tensor]

ROUNDINGS, COARSE = 64, 8
"""Units in the last place of the largest number by which logits and gradients may differ; in types below float32."""


class Spot:
    """Where the pixels of a batch are in their crops, and so where each part begins in each row."""

    def __init__(self, cone: Cone, rows: Tensor, columns: Tensor) -> None:
        self.cells = rows // cone.stride, columns // cone.stride
        self.inside = rows % cone.stride, columns % cone.stride
        self._entries: dict[Part, Tensor] = {}

    def rows(self, index: Tensor) -> Spot:
        """Where the pixels of these rows are."""
        part = object.__new__(Spot)
        part.cells = self.cells[0][index], self.cells[1][index]
        part.inside = self.inside[0][index], self.inside[1][index]
        part._entries = {}
        return part

    def cut(self, part: Part, values: Tensor) -> Tensor:
        """The part of what there is of a value (B, ..., H, W), in each row where it belongs."""
        height, width = part.box.rows.length, part.box.columns.length
        flat = values.flatten(-2).flatten(1, -2)
        index = self._index(part, values.shape[-1]).expand(-1, flat.shape[1], -1)
        return flat.gather(2, index).reshape(*values.shape[:-2], height, width)

    def _index(self, part: Part, row: int) -> Tensor:
        """Which entries of what there is, ``row`` of them in a row, belong to the part: (B, 1, height * width)."""
        if part not in self._entries:
            down, across = self.cells
            top = part.box.rows.start(down) - part.before.rows.start(down)
            left = part.box.columns.start(across) - part.before.columns.start(across)
            rows = top[:, None] + torch.arange(part.box.rows.length, device=top.device)
            columns = left[:, None] + torch.arange(part.box.columns.length, device=top.device)
            self._entries[part] = (rows[:, :, None] * row + columns[:, None, :]).flatten(1)[:, None]
        return self._entries[part]


class Cone:
    """A network on crops (B, C, h, w), computed for the cell of one pixel in each row: (B, K, stride, stride).

    Attributes:
        stride: rows and columns of a cell.
        share: part of the network's work that is left, about.
    """

    def __init__(self, stride: int, steps: Sequence[Step], last: Part, share: float) -> None:
        self.stride, self.share = stride, share
        self._steps, self._last = steps, last

    def at(self, rows: Tensor, columns: Tensor) -> tuple[Model, Tensor, Tensor]:
        """The network for crops whose pixels are at ``rows`` and ``columns`` (B,), and where their logits are then."""
        spot = Spot(self, rows, columns)
        return lambda images: self(images, spot), *spot.inside

    def __call__(self, images: Tensor, spot: Spot) -> Tensor:
        """The logits of the cells at ``spot``; the pixels are at ``spot.inside`` of them."""
        known: dict[Value, Tensor] = {Value(-1): images}
        parts: dict[Part, Tensor] = {}

        def given(argument: Any) -> Any:
            if isinstance(argument, Value):
                return known[argument]
            if isinstance(argument, Part):
                if argument not in parts:
                    parts[argument] = spot.cut(argument, known[argument.value])
                return parts[argument]
            if isinstance(argument, list | tuple):
                return [given(one) for one in argument]
            return argument

        for step in self._steps:
            result = step.run(*given(step.args), **{name: given(value) for name, value in step.kwargs.items()})
            for output, tensor in enumerate(result if isinstance(result, list | tuple) else [result]):
                known[Value(step.number, output)] = tensor
            for value in step.last:
                del known[value]
        logits: Tensor = given(self._last)
        return logits


def cone_of(model: Model, crop: Tensor, stride: int) -> Cone | None:
    """The cone of a network at crops like this one, None where it cannot be made or saves little.

    Args:
        model: the frozen model as deployed; only modules can be written down.
        crop: ``(C, h, w)``, for its shape, type and device.
        stride: the network's total stride.
    """
    if not isinstance(model, nn.Module) or any(side % stride for side in crop.shape[1:]):
        return None
    try:
        plan = planned(trace_as_is(_twin(model), crop), stride)
        if plan is None:
            return None
        cone = Cone(stride, plan.steps, plan.last, plan.share)
        return cone if _agrees(model, cone, crop) else None
    except Untraceable:
        return None
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
        if ran_out(error):
            raise
        return None


def _twin(model: nn.Module) -> nn.Module:
    """A copy with the same weights: a network may keep what it saw, and what it sees while it is traced is empty."""
    return copy.deepcopy(model, {id(kept): kept for kept in (*model.parameters(), *model.buffers())})


def _agrees(model: Model, cone: Cone, crop: Tensor) -> bool:
    """Whether logits and gradients are those of the whole crop, for pixels in corners, at borders and inside."""
    height, width = crop.shape[1:]
    generator = torch.Generator().manual_seed(height * 65537 + width)
    anywhere = torch.randint(2**31, (2, 3), generator=generator)
    rows = torch.cat([torch.tensor([0, height - 1, 0, height - 1, height // 2]), anywhere[0] % height])
    columns = torch.cat([torch.tensor([0, width - 1, width - 1, width // 2, width // 2]), anywhere[1] % width])
    images = random_images(crop, height, width)[[0, 2, 3]]  # where values are equal, rounding decides on gradients
    images = torch.cat([images, 3 * images - 1])  # attacks leave the range of images, where a network may bend
    both = torch.arange(2, device=crop.device)
    for pair in torch.split(torch.arange(len(rows)), 2):  # few at once: crops may be large
        places = rows[pair].to(crop.device), columns[pair].to(crop.device)
        seen = []
        for call, down, across in ((model, *places), cone.at(*places)):
            points = images[pair % len(images)].clone().requires_grad_(True)
            with torch.enable_grad():
                logits = call(points)[both, :, down, across]  # (2, K)
                if call is model and _own_gradients(logits):
                    return False
                weights = torch.linspace(-1, 2, logits.shape[1]).to(logits)
                (gradient,) = torch.autograd.grad((logits * weights).sum(), points)
            seen.append((logits.detach(), gradient))
        if not all(_alike(one, other) for one, other in zip(*seen, strict=True)):
            return False
    return True


def _own_gradients(logits: Tensor) -> bool:
    """Whether a gradient that somebody wrote takes part: operations do not show it."""
    waiting, seen = [logits.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, torch.autograd.function.BackwardCFunction):
            return True
        waiting += [following for following, _ in node.next_functions]
    return False


def _alike(values: Tensor, others: Tensor) -> bool:
    if values.shape != others.shape or values.dtype != others.dtype:
        return False
    eps = torch.finfo(values.dtype).eps
    allowed = (ROUNDINGS if eps < 1e-6 else COARSE) * eps * values.abs().amax()
    return bool(((values - others).abs() <= allowed).all())
