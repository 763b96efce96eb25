"""Cutting planes for sets of pixels that have to flip together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attackcheck import synchrony
from attackcheck.errors import InputError

from ._refine import Track
from ._rows import Box, Generators, Model, across, clip, dot, gaussian, lengths, polar
from .objectives import Objective, SetFlip

__all__ = ["cutting_planes", "least_norm"]

_SLACK = 2.0  # of the mean clean margin, over steps^2: without it the limit of the planes is reached from outside only
_WIDER, _NARROWER = 1.3, 0.7
_FURTHER, _REACH = 1.015, 1.6  # beyond what the margins say, and at most: rays that do not reach are cheap to miss
_MARGIN = 0.05  # of a bracket's width
_PIVOTS = 6
_STEP_BACK = 2e-4  # relative; in float32 a point exactly on the boundary flips in one batch and not in another


class Planes(NamedTuple):
    """Half-spaces `normal . delta >= offset` of each row; once all places are used, that of least weight gives way."""

    normal: Tensor  # (B, T, C*H*W) unit
    offset: Tensor  # (B, T) without slack
    run: Tensor  # (B, T) how much further a slack of 1 moves the plane: 1 / slope
    gram: Tensor  # (B, T, T) float64

    def first(self, count: int) -> Planes:
        """Views of the places used first."""
        normal, offset, run, gram = self
        return Planes(normal[:, :count], offset[:, :count], run[:, :count], gram[:, :count, :count])


def cutting_planes(
    model: Model,
    images: Tensor,
    objective: Objective,
    *,
    steps: int = 24,
    planes: int = 24,
    classes: int = 1,
    refine: int = 4,
    box: Box = None,
    generator: Generators = None,
) -> Tensor:
    """Minimum-norm attack on a set of pixels: projects the image onto an intersection of half-spaces that grows.

    All pixels of the set are wanted beyond their boundaries. At each point the margins still missing, summed with
    themselves as weights and linearised, give one half-space that holds every perturbation with no margin missing, as
    far as the margins are convex; the next point is the projection of the image onto the last `planes` half-spaces
    (outer approximation with surrogate cuts: Haugazeau's method, Bauschke & Combettes, Convex Analysis and Monotone
    Operator Theory, section 30.2; one pixel and no memory is DeepFool's step). So a step costs one forward and one
    backward pass whatever the size of the set, and on an affine model the limit is the smallest perturbation. All
    planes keep a slack to the far side, the larger the fewer steps there are, which widens until a point succeeds and
    narrows after each that does.
    A set of which only a fraction has to flip is aimed at through the margins that are smallest at the moment. The set
    is aimed at the runners-up of the moment, and as a whole at each of `classes` - 1 nearest classes; the ray to each
    end point is searched by `refine` points, each where the margins of the last two say that enough pixels cross.
    The shortest success wins.
    Returns (B, C, H, W): the closest success of each row, or its iterate of lowest loss.
    Costs 1 + classes * (steps + refine) forward and classes * steps backward passes.
    Raises InputError for an objective that is no set of pixels.
    """
    if not isinstance(objective, SetFlip):
        raise InputError(f"cutting_planes attacks regions, got {type(objective).__name__}: use linearised or ddn")
    images = images.detach()
    batch = images.shape[0]
    count = 1 if objective.target is not None else classes
    seen = _Narrowed(model, objective.places())
    objective = objective.narrowed(seen.places)
    wide = images.repeat(count, 1, 1, 1)
    noise, _ = polar(gaussian(images, generator).repeat(count, 1, 1, 1))
    delta, stack = torch.zeros_like(wide), _empty(wide, planes)
    place = torch.zeros(len(wide), dtype=torch.int64, device=wide.device)
    best, best_norm = wide, wide.new_full((len(wide),), torch.inf)
    lowest = torch.full_like(best_norm, torch.inf)
    for step in range(steps):
        with torch.enable_grad():
            point = clip(wide + delta, box).requires_grad_()
            z = seen(point)
            if step == 0:  # at the images themselves
                variants = list(objective.bind(z[:batch]).candidates(z[:batch].detach(), count))
                # where there are fewer classes than asked for, the last is aimed at again
                margin = variants[0].joined(variants + variants[-1:] * (count - len(variants)))
            missing = margin.margins(z)
            now = missing.detach()
            goal = margin.goal_of(z.detach(), now)
            chosen = margin.smallest(now)
            if step == 0:
                clean, slack = now, _SLACK / steps**2 * _mean(now, chosen)
            weight = chosen * (now + across(slack, now)).clamp_min(0)
            weight = torch.where(across(weight.flatten(1).amax(1) > 0, weight), weight, chosen)
            weight = weight / across(weight.flatten(1).sum(1), weight)
            (gradient,) = torch.autograd.grad(missing, point, weight)
        point, value = point.detach(), dot(weight, now)
        delta = point - wide
        norm = lengths(delta)
        better = torch.where(goal.success, norm < best_norm, ~(best_norm < torch.inf) & (goal.loss < lowest))
        best = torch.where(across(better, best), point, best)
        best_norm = torch.where(goal.success & better, norm, best_norm)
        lowest = torch.minimum(lowest, goal.loss)
        normal, slope = polar(-gradient, noise)
        steep = slope > 0
        run = torch.where(steep, 1 / slope.clamp_min(torch.finfo(slope.dtype).tiny), 0)
        ahead = torch.where(steep, value * run, 1)
        used = stack.first(min(step + 1, planes))
        _add(used, place, normal.flatten(1), dot(normal, delta) + ahead, run)
        slack = slack * torch.where(goal.success, _NARROWER, _WIDER)
        weights = least_norm(used.gram, (used.offset + across(slack, used.run) * used.run).double()).to(delta)
        place = place + 1 if step + 1 < planes else weights.argmin(1)
        delta = torch.bmm(weights.unsqueeze(1), used.normal).reshape(delta.shape)
    end = _along(seen, wide, *polar(delta, noise), margin, clean, refine, box)
    length = torch.where(end.success, lengths(end.points - wide), torch.inf)
    point = torch.where(across((length < best_norm) | ~(best_norm < torch.inf) & end.success, best), end.points, best)
    # rows without a success are told apart by how near they came
    key = torch.minimum(length, best_norm)
    key = torch.where(key < torch.inf, key, 1e9 + lowest).reshape(count, batch)
    index = torch.arange(batch, device=images.device)
    found = point.reshape(count, batch, *images.shape[1:])[key.argmin(0), index]
    beyond = clip(images + (1 + _STEP_BACK) * (found - images), box)
    with torch.no_grad():
        firm = variants[0](seen(beyond)).success
    return torch.where(across(firm, images), beyond, found)


class _Narrowed:
    """The model's logits at the pixels `places` (P,) alone, (B, K, 1, P); at all pixels if there are none."""

    def __init__(self, model: Model, places: Tensor | None) -> None:
        self._model, self.places = model, places

    def __call__(self, images: Tensor) -> Tensor:
        logits = self._model(images)
        return logits if self.places is None else logits.flatten(2)[:, :, None, self.places.to(logits.device)]


@torch.no_grad()
def _along(
    model: Model,
    images: Tensor,
    way: Tensor,
    guess: Tensor,
    margin: SetFlip,
    clean: Tensor,
    steps: int,
    box: Box,
) -> Track:
    """Where enough pixels have crossed on the rays from `images` in unit direction `way`, first tried at `guess` (B,).

    Each pixel's crossing is where the line through its margins at the last two points is 0; the largest of those that
    have to cross is tried next. `clean` (B, H, W) are the margins at the images.
    """
    low, high = torch.zeros_like(guess), torch.full_like(guess, torch.inf)
    before, behind = torch.zeros_like(guess), clean
    t = guess
    for _ in range(steps):
        z = model(clip(images + across(t, way) * way, box))
        now = margin.margins(z)
        success = margin.goal_of(z, now).success
        high, low = torch.where(success & (t < high), t, high), torch.where(~success & (t > low), t, low)
        slope = (now - behind) / across((t - before).abs().clamp_min(torch.finfo(t.dtype).tiny), now)
        slope = slope * across((t - before).sign(), now)
        # a pixel that does not come nearer has crossed already, or never will
        never = torch.where(now < 0, -torch.inf, torch.inf)
        crossing = across(t, now) + torch.where(slope < 0, -now / slope.clamp_max(-1e-30), never)
        last = torch.where(margin.smallest(crossing) > 0, crossing, -torch.inf).flatten(1).amax(1)
        before, behind = t, now
        width = high - low
        between = torch.minimum(torch.maximum(1.0005 * last, low + _MARGIN * width), high - _MARGIN * width)
        onward = torch.minimum(torch.maximum(_FURTHER * last, 1.003 * low), _REACH * low)
        t = torch.where(high < torch.inf, between, onward)
    success = high < torch.inf
    distance = torch.where(success, high, low)
    return Track(clip(images + across(distance, way) * way, box), way, distance, success)


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of each row, (B,)."""
    return dot(values, weights) / weights.flatten(1).sum(1).clamp_min(1e-30)


def _empty(images: Tensor, planes: int) -> Planes:
    normal = images.new_empty(len(images), planes, images[0].numel())
    gram = torch.empty((len(images), planes, planes), dtype=torch.float64, device=images.device)
    return Planes(normal, torch.empty_like(normal[:, :, 0]), torch.empty_like(normal[:, :, 0]), gram)


def _add(stack: Planes, place: Tensor, normal: Tensor, offset: Tensor, run: Tensor) -> None:
    """Writes one more plane for each row at its `place` (B,)."""
    row = torch.arange(len(place), device=place.device)
    stack.normal[row, place], stack.offset[row, place], stack.run[row, place] = normal, offset, run
    if synchrony.readable(normal):  # where a batch of such products takes five times as long as one after the other
        products = torch.stack([planes @ way for planes, way in zip(stack.normal, normal, strict=True)]).double()
    else:
        products = torch.einsum("btn,bn->bt", stack.normal, normal).double()
    stack.gram[row, place], stack.gram[row, :, place] = products, products


def least_norm(gram: Tensor, offset: Tensor, pivots: int = _PIVOTS) -> Tensor:
    """Weights w >= 0 (B, T) of the shortest d = sum w_t a_t with `a_t . d >= offset_t`; `gram` (B, T, T) float64.

    Block principal pivoting (Kim & Park 2011, Fast nonnegative matrix factorization): the half-spaces in use are solved
    as equations; those with a negative weight leave, those that are not fulfilled enter. Rows that have not settled
    after `pivots` rounds get what is feasible of the last one, at its best length.
    """
    size = gram.shape[1]
    eye = torch.eye(size, dtype=gram.dtype, device=gram.device)
    # parallel planes: a little less than exact rather than singular
    ridge = gram + 1e-9 * eye
    used = offset > 0
    weight = torch.zeros_like(offset)
    for _ in range(pivots):
        both = used.unsqueeze(1) & used.unsqueeze(2)
        system = torch.where(both, ridge, eye)
        weight, _ = torch.linalg.solve_ex(system, torch.where(used, offset, 0).unsqueeze(2))
        weight = weight.squeeze(2)
        lacking = offset - (gram @ weight.unsqueeze(2)).squeeze(2) > 1e-9
        before, used = used, torch.where(used, weight > 0, lacking)
        if synchrony.readable(used) and torch.equal(before, used):  # elsewhere asking costs more than going on
            break
    weight = weight.nan_to_num().clamp_min(0)
    square = (weight.unsqueeze(1) @ gram @ weight.unsqueeze(2)).flatten()
    gain = (weight * offset).sum(1)
    best = torch.where(square > 0, gain / square.clamp_min(1e-300), 1)
    settled = torch.isfinite(best) & (best > 0)
    return weight * torch.where(settled, best, 1).clamp(0.5, 2).unsqueeze(1)
