"""Search for the decision boundary without gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attackcheck.errors import InputError

from ._refine import shrink
from ._rows import Box, Generators, Model, across, clip, dot, gaussian, lengths, polar
from .objectives import Objective, PixelFlip

__all__ = ["boundary"]

_STRETCHES = (1.0, 4.0, 32.0)  # of each first direction: certificates are not limited to [0, 1]
_MIXES = (1.0, 0.75, 0.5, 0.25)  # how far a ray turns from the best one towards the estimated normal
_SLACKS = (1.02, 1.15)  # how far beyond the predicted boundary a ray is tried: the prediction is a linearisation
_CLASSES = 3  # rivals whose boundaries are linearised, nearest first
_SIGN = 0.25  # of the largest entry: smaller ones are tried without, since quantised inputs do not feel them


def boundary(
    model: Model,
    images: Tensor,
    objective: Objective,
    *,
    directions: int = 4,
    samples: int = 128,
    rounds: int = 3,
    refine: int = 10,
    box: Box = None,
    generator: Generators = None,
) -> Tensor:
    """Minimum-norm attack that asks for logits only, for models whose gradients are zero, wrong or missing.

    1. The window of inputs that each row's pixel depends on is found by replacing everything outside of it.
    2. Large steps inside the window: towards black, white and the negative, towards the image shifted by
       `directions` random offsets (what the model calls another class elsewhere), along `directions` random colours
       and their opposites and as many patterns of noise; the shortest flip is bisected back, and all directions are
       tried again at a part of its distance.
    3. `rounds` times the normal of the boundary is estimated there from margins at steps of the size of the
       perturbation itself, which look over the stairs of a quantised model (Chen et al. 2020, HopSkipJumpAttack, with
       margins for decisions). Steps go along single inputs where the window has at most `samples` of them, else along
       blocks that grow with the distance from the pixel. Rays turned towards the normal are tried where the
       linearised boundary predicts it, and the shortest is bisected.
    Returns (B, C, H, W): the closest success of each row, or its last point.
    Raises InputError for an objective that is not about one pixel per row.
    Costs per row about 20 + 5 (3 + 4 `directions`) + `rounds` (2 min(3 window^2, `samples`) + 16) + 4 `refine` forward
    passes, and no backward pass.
    """
    if not isinstance(objective, PixelFlip):
        raise InputError("boundary searches for single pixels: expected the objective 'pixel'")
    images = images.detach()
    generators = generator
    if generators is None:
        generators = [torch.Generator().manual_seed(0) for _ in range(len(images))]
    with torch.no_grad():
        objective = objective.by_margin().bind(model(images))
        search = _Search(model, images, objective, box, generators)
        search.find_window()
        search.leap(directions, refine)
        for number in range(rounds):
            search.turn(samples, 1.0 / (1 + number), refine)
        search.thin(refine)
    return search.best


@dataclass
class _Window:
    offset_rows: Tensor  # (B, H, 1) rows relative to the pixel
    offset_columns: Tensor  # (B, 1, W)
    reach: Tensor  # (B,) largest offset that matters
    mask: Tensor  # (B, 1, H, W) bool


class _Search:
    """The closest success of every row so far; `step` is the length of `best - images`, infinite before the first."""

    def __init__(self, model: Model, images: Tensor, objective: PixelFlip, box: Box, generators: Generators) -> None:
        self.model, self.images, self.objective, self.box, self.generators = model, images, objective, box, generators
        self.best = images
        self.step = torch.full((len(images),), torch.inf, dtype=images.dtype, device=images.device)
        logits = model(images)
        self.rivals = objective.rivals(logits, _CLASSES)
        self.margin = objective.margins(logits, self.rivals)  # (V, B)
        self.window = self._everything()

    def _everything(self) -> _Window:
        _, _, height, width = self.images.shape
        device = self.images.device
        rows = torch.arange(height, device=device)[None] - self.objective.pixel_rows.to(device)[:, None]
        columns = torch.arange(width, device=device)[None] - self.objective.pixel_cols.to(device)[:, None]
        rows, columns = rows[:, :, None], columns[:, None, :]
        reach = torch.full((len(self.images),), max(height, width), device=device)
        mask = torch.ones_like(self.images[:, :1], dtype=torch.bool)
        return _Window(rows, columns, reach, mask)

    def _try(self, point: Tensor) -> Tensor:
        """Look at a point (B, C, H, W); returns the margins against `rivals` there, (V, B)."""
        point = clip(point, self.box)
        logits = self.model(point)
        goal = self.objective(logits)
        step = lengths(point - self.images)
        closer = goal.success & (step < self.step)
        self.best = torch.where(across(closer, point), point, self.best)
        self.step = torch.where(closer, step, self.step)
        return self.objective.margins(logits, self.rivals)

    def _bisect(self, steps: int) -> None:
        """From the closest success straight back towards the image."""
        found = self.step < torch.inf
        self.best = shrink(self.model, self.images, self.best, self.objective, found, steps)
        self.step = torch.where(found, lengths(self.best - self.images), self.step)

    def find_window(self) -> None:
        """Which offsets matter: the smallest square outside of which noise and other contents change nothing."""
        everything = self.window
        offset = torch.maximum(everything.offset_rows.abs(), everything.offset_columns.abs()).unsqueeze(1)
        last = max(self.images.shape[2:]) - 1
        reaches = sorted({min(reach, last) for reach in (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89)})
        size = self.margin.abs().amax(0) + 1e-30
        needed = torch.full_like(everything.reach, -1)  # the largest square that something outside of still mattered
        for tried in (-1, *reaches):
            outside = offset > tried
            changed = torch.zeros_like(size, dtype=torch.bool)
            for noise in (gaussian(self.images, self.generators), self._shifted() - self.images):
                margin = self._try(self.images + torch.where(outside, noise, 0))
                changed |= ((margin - self.margin).abs() > 1e-5 * size).any(0)
            needed = torch.where(changed, tried + 1, needed)
        # a reach between two that were tried is rounded up; where nothing ever mattered, everything may
        steps = torch.tensor([*reaches, last], device=needed.device)
        reach = steps[torch.searchsorted(steps, needed.clamp_min(0)).clamp_max(len(steps) - 1)]
        reach = torch.where(needed < 0, last, reach)
        self.window = _Window(everything.offset_rows, everything.offset_columns, reach, offset <= across(reach, offset))

    def _shifted(self) -> Tensor:
        """Each image moved by an offset of its own, cyclically."""
        batch, _, height, width = self.images.shape
        device = self.images.device
        draw = (gaussian(self.images.new_empty(batch, 2), self.generators) * 1e4).long()
        rows = (torch.arange(height, device=device)[None] + draw[:, :1]) % height  # (B, H)
        columns = (torch.arange(width, device=device)[None] + draw[:, 1:]) % width  # (B, W)
        row = torch.arange(batch, device=device)
        return self.images.movedim(1, 3)[row[:, None, None], rows[:, :, None], columns[:, None]].movedim(3, 1)

    def leap(self, directions: int, refine: int) -> None:
        """Large steps in directions that data suggests, then all of them again at a part of the distance found."""
        ways = list(self._ways(directions))
        for stretch in _STRETCHES:
            for way in ways:
                self._try(self.images + stretch * way)
        self._bisect(refine)
        for way in ways:
            unit, length = polar(way)
            self._try(self.images + across(torch.minimum(0.7 * self.step, 128 * length), unit) * unit)
        self._bisect(refine)

    def _ways(self, count: int) -> Iterator[Tensor]:
        images, mask = self.images, self.window.mask
        for way in (-images, 1 - images, 1 - 2 * images):
            yield torch.where(mask, way, 0)
        for channel in torch.eye(images.shape[1], dtype=images.dtype, device=images.device):
            yield torch.where(mask, channel[:, None, None], 0).expand_as(images)
            yield torch.where(mask, -channel[:, None, None], 0).expand_as(images)
        for _ in range(count):
            yield torch.where(mask, self._shifted() - images, 0)
        for _ in range(count):
            colour = gaussian(images.new_empty(images.shape[:2]), self.generators)[:, :, None, None]
            yield torch.where(mask, colour.expand_as(images), 0)
            yield torch.where(mask, -colour.expand_as(images), 0)
        for _ in range(count):
            yield torch.where(mask, gaussian(images, self.generators), 0)

    def turn(self, samples: int, scale: float, refine: int) -> None:
        """Estimate the normal at the closest success with steps `scale` times as long as it, and turn the ray to it."""
        found = self.step < torch.inf
        # where nothing was found yet: half the range of values for every input, and more each time
        size = torch.where(found, self.step, 0.5 / scale**2)
        start, delta = self.best, self.best - self.images
        way, _ = polar(delta)
        self.rivals = self.objective.rivals(self.model(start), _CLASSES)
        margin = self._try(start)  # (V, B)
        slope = delta.new_zeros(len(margin), *delta.shape)
        fine = self.images.shape[1] * (2 * int(self.window.reach.max()) + 1) ** 2 <= samples
        pattern = torch.ones_like(delta)
        if not fine and scale < 1:
            pattern = gaussian(self.images, self.generators).sign()
        for block in self._blocks(fine):
            unit, length = polar(torch.where(block & self.window.mask, pattern, 0))
            there = self._try(start + across(scale * size, unit) * unit)
            back = self._try(start - across(scale * size, unit) * unit)
            change = (there - back) / (2 * scale * size) * (length > 0)  # (V, B)
            slope = slope + change[:, :, None, None, None] * unit
        wide = 0.5 * self.window.mask.flatten(1).sum(1).sqrt()
        for here, gradient in zip(margin, slope, strict=True):
            normal, steepness = polar(-gradient)
            # to first order the boundary is where normal . (point - image) = offset
            offset = here / steepness.clamp_min(torch.finfo(here.dtype).tiny) + dot(normal, delta)
            for mix in _MIXES:
                turned, _ = polar((1 - mix) * way + mix * normal)
                predicted = offset / dot(normal, turned).clamp_min(1e-3)
                usable = found & (predicted > 0) & (predicted < torch.inf)
                for slack in _SLACKS:
                    # where nothing was found: farther and farther along the normal
                    guess = torch.where(usable, predicted, wide / mix**2) * slack
                    self._try(self.images + across(guess, turned) * turned)
        self._bisect(refine)

    def _blocks(self, fine: bool) -> Iterator[Tensor]:
        """Disjoint sets of inputs (B, C, H, W) bool: single ones, or squares that grow with the distance."""
        rows, columns = self.window.offset_rows, self.window.offset_columns
        largest = int(self.window.reach.max())
        squares: Sequence[tuple[int, int, int]]
        if fine:
            span = range(-largest, largest + 1)
            squares = [(row, column, 1) for row in span for column in span]
        else:
            squares = [(row, column, 1) for row in (-1, 0, 1) for column in (-1, 0, 1)]
            side = 3
            while side // 2 < largest:
                ring = [(r * side, c * side, side) for r in (-1, 0, 1) for c in (-1, 0, 1) if (r, c) != (0, 0)]
                squares = [*squares, *ring]
                side *= 3
        channels = torch.arange(self.images.shape[1], device=self.images.device)
        for row, column, side in squares:
            half = side // 2
            inside = ((rows - row).abs() <= half) & ((columns - column).abs() <= half)  # (B, H, W)
            for channel in channels:
                yield inside.unsqueeze(1) & (channels == channel)[None, :, None, None]

    def thin(self, refine: int) -> None:
        """Leave out what is small in the perturbation: quantised inputs do not feel it."""
        for share in (0.5 * _SIGN, _SIGN, 2 * _SIGN):
            delta = self.best - self.images
            peak = delta.flatten(1).abs().amax(1)
            self._try(self.images + torch.where(delta.abs() > across(share * peak, delta), delta, 0))
        self._bisect(refine)
