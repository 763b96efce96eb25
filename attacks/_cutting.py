"""Cutting planes for sets of pixels that have to flip together."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attackcheck.errors import InputError

from ._refine import shoot
from ._rows import Box, Generators, Model, across, clip, dot, gaussian, lengths, polar
from .objectives import Objective, SetFlip

__all__ = ["cutting_planes", "least_norm"]

_SLACK = 2e-3  # of the mean clean margin: without it the limit of the planes is reached from outside only
_WIDER, _NARROWER = 1.5, 0.7
_PIVOTS = 6
_STEP_BACK = 2e-4  # relative; in float32 a point exactly on the boundary flips in one batch and not in another


class Planes(NamedTuple):
    """Half-spaces `normal . delta >= offset` of each row; the one of least weight gives way to the newest.

    A place not yet used has the normal 0 and the offset -1, which every delta fulfils.
    """

    normal: Tensor  # (B, T, C*H*W) unit
    offset: Tensor  # (B, T) without slack
    run: Tensor  # (B, T) how much further a slack of 1 moves the plane: 1 / slope
    gram: Tensor  # (B, T, T) float64


def cutting_planes(
    model: Model,
    images: Tensor,
    objective: Objective,
    *,
    steps: int = 24,
    planes: int = 24,
    classes: int = 1,
    refine: int = 8,
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
    planes keep a slack to the far side, which in the second half of the steps widens until a point succeeds and
    narrows after each that does.
    A set of which only a fraction has to flip is aimed at through its smallest margins at the image. The set is aimed
    at the runners-up of the moment, and as a whole at each of `classes` - 1 nearest classes; the ray to each end point
    is searched by `refine` points. The shortest success wins.
    Returns (B, C, H, W): the closest success of each row, or its iterate of lowest loss.
    Costs 2 + classes * (steps + refine) forward and classes * steps backward passes.
    Raises InputError for an objective that is no set of pixels.
    """
    if not isinstance(objective, SetFlip):
        raise InputError(f"cutting_planes attacks regions, got {type(objective).__name__}: use linearised or ddn")
    images = images.detach()
    batch = images.shape[0]
    with torch.no_grad():
        logits = model(images).detach()
    variants = objective.bind(logits).candidates(logits, classes)
    count = len(variants)
    index = torch.arange(batch, device=images.device)
    wide, clean = images.repeat(count, 1, 1, 1), logits.repeat(count, 1, 1, 1)
    margin = variants[0].joined(variants)
    noise, _ = polar(gaussian(images, generator).repeat(count, 1, 1, 1))
    delta = torch.zeros_like(wide)
    best, best_norm = wide, wide.new_full((len(wide),), torch.inf)
    lowest = torch.full_like(best_norm, torch.inf)
    chosen = margin.cheapest(clean)
    slack = _SLACK * _mean(margin.margins(clean), chosen)
    stack, weights = _empty(wide, planes), None
    for step in range(steps):
        with torch.enable_grad():
            point = clip(wide + delta, box).requires_grad_()
            z = model(point)
            missing = margin.margins(z)
            goal = margin.goal_of(z.detach(), missing.detach())
            weight = chosen * (missing.detach() + across(slack, missing)).clamp_min(0)
            weight = torch.where(across(weight.flatten(1).amax(1) > 0, weight), weight, chosen)
            weight = weight / across(weight.flatten(1).sum(1), weight)
            value = dot(weight, missing)
            (gradient,) = torch.autograd.grad(value.sum(), point)
        point, value = point.detach(), value.detach()
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
        place = stack.offset.argmin(1) if weights is None else weights.argmin(1)
        _add(stack, place, normal.flatten(1), dot(normal, delta) + ahead, run)
        if 2 * step >= steps:
            slack = slack * torch.where(goal.success, _NARROWER, _WIDER)
        weights = least_norm(stack.gram, (stack.offset + across(slack, stack.run) * stack.run).double()).to(delta)
        delta = torch.bmm(weights.unsqueeze(1), stack.normal).reshape(delta.shape)
    way, distance = polar(delta, noise)
    start = margin(clean).loss
    end = shoot(model, wide, way, distance * 1.0005, margin, start=start, steps=refine, reach=4.0, box=box)
    length = torch.where(end.success, lengths(end.points - wide), torch.inf)
    point = torch.where(across((length < best_norm) | ~(best_norm < torch.inf) & end.success, best), end.points, best)
    # rows without a success are told apart by how near they came
    key = torch.minimum(length, best_norm)
    key = torch.where(key < torch.inf, key, 1e9 + lowest).reshape(count, batch)
    found = point.reshape(count, batch, *images.shape[1:])[key.argmin(0), index]
    beyond = clip(images + (1 + _STEP_BACK) * (found - images), box)
    with torch.no_grad():
        firm = variants[0](model(beyond)).success
    return torch.where(across(firm, images), beyond, found)


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean of each row, (B,)."""
    return dot(values, weights) / weights.flatten(1).sum(1).clamp_min(1e-30)


def _empty(images: Tensor, planes: int) -> Planes:
    normal = torch.zeros((len(images), planes, images[0].numel()), dtype=images.dtype, device=images.device)
    gram = torch.zeros((len(images), planes, planes), dtype=torch.float64, device=images.device)
    return Planes(normal, torch.full_like(normal[:, :, 0], -1.0), torch.zeros_like(normal[:, :, 0]), gram)


def _add(stack: Planes, place: Tensor, normal: Tensor, offset: Tensor, run: Tensor) -> None:
    """Writes one more plane for each row at its `place` (B,)."""
    row = torch.arange(len(place), device=place.device)
    stack.normal[row, place], stack.offset[row, place], stack.run[row, place] = normal, offset, run
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
        used = torch.where(used, weight > 0, lacking)
    weight = weight.nan_to_num().clamp_min(0)
    square = (weight.unsqueeze(1) @ gram @ weight.unsqueeze(2)).flatten()
    gain = (weight * offset).sum(1)
    best = torch.where(square > 0, gain / square.clamp_min(1e-300), 1)
    settled = torch.isfinite(best) & (best > 0)
    return weight * torch.where(settled, best, 1).clamp(0.5, 2).unsqueeze(1)
