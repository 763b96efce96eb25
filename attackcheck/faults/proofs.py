"""Proofs that a case is what it says, by means that share nothing with the attacks.

An unsound claim is refuted by an explicit pair of points in float64. Where the pair lies is read off the full Jacobian:
its largest singular vector is the way in which the logits move furthest, its rows are the ways in which pixels flip. A
sound claim is shown by an upper bound made of exact layer norms.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn

from attackcheck.claims import ClassPairClaim, LipschitzClaim, RadiusClaim, margins
from attackcheck.faults.case import Built, Proof
from attackcheck.faults.networks import Tiled
from attackcheck.faults.norms import product_of_norms

__all__ = [
    "bounded",
    "exactly_affine",
    "expanded",
    "flipped",
    "flipped_elsewhere",
    "jacobian",
    "paired",
    "pixel_bounded",
    "repeated",
    "steepest_way",
    "within_radii",
    "within_rows",
]

STEPS = (1e-1, 1e-2, 1e-3, 1e-4)
SLACK = 1e-6
"""Relative excess of a sound claim that float32 weights and radii may have."""


def jacobian(model: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """Logits `(K, H, W)` and their full Jacobian `(K * H * W, C * H * W)` at one image, in float64."""
    point = image.double()[None].requires_grad_()
    with torch.enable_grad():
        logits = _double(model)(point)[0]
        if not logits.requires_grad:
            return logits, torch.zeros(logits.numel(), image.numel(), dtype=torch.float64)
        units = torch.eye(logits.numel(), dtype=torch.float64).reshape(-1, *logits.shape)
        (rows,) = torch.autograd.grad(logits, point, units, is_grads_batched=True)
    return logits.detach(), rows.flatten(1)


@torch.no_grad()
def expanded(built: Built) -> Proof:
    """Two points whose logits differ by more than the constant times their distance, joint or of one pixel."""
    claim = _lipschitz(built)
    model = _double(built.model)
    start = (built.images[0] if built.steep_at is None else built.steep_at).double()
    logits, rows = jacobian(built.model, start)
    ways: list[tuple[float, int | None, Tensor]] = []
    if claim.scope == "joint":
        ways.append((claim.lipschitz, None, _steepest(rows)))
    blocks = rows.reshape(logits.shape[0], -1, start.numel())  # (K, H * W, C * H * W)
    grams = torch.einsum("kpn,jpn->pkj", blocks, blocks)
    pixel = int(torch.linalg.eigvalsh(grams)[:, -1].argmax())
    ways.append((claim.pixel_constant, pixel, _steepest(blocks[:, pixel])))
    best = 0.0
    here = model(start[None])
    for constant, only, way in ways:
        for step in (*STEPS, *(-s for s in STEPS)):
            there = start + step * way.reshape(start.shape)
            change = model(there[None]) - here
            moved = change.norm() if only is None else change[0].flatten(1)[:, only].norm()
            best = max(best, float(moved / (there - start).norm()) / constant)
    return Proof(best, "two points along the largest singular vector of the Jacobian")


@torch.no_grad()
def flipped(built: Built, candidates: int = 48) -> Proof:
    """A point within a pixel's claimed radius at which its class is another one.

    Pixels whose radius is largest beside what their gradient promises, and those with the smallest margins, are
    followed along the gradient of their margin, with bisection, from the image and once more from where they flipped.
    """
    best = 0.0
    model = _double(built.model)
    for n, image in enumerate(built.images):
        start = image.double()
        radius = _radii(built, n)
        logits, rows = jacobian(built.model, image)
        flat = logits.flatten(1)  # (K, P)
        predicted = flat.argmax(0)
        pixels = torch.arange(flat.shape[1])
        blocks = rows.reshape(logits.shape[0], -1, start.numel())
        gaps = flat[predicted, pixels] - flat  # (K, P)
        slopes = (blocks[predicted, pixels] - blocks).norm(dim=2)
        nearest = torch.where(gaps > 0, gaps / slopes.clamp_min(1e-12), math.inf)  # (K, P)
        promise, rival = nearest.min(0)
        # Less what float32 logits may have added to it.
        rounding = 2 * (built.model(image[None])[0].double() - logits).abs().max()
        runner_up = torch.where(gaps > 0, gaps, math.inf).amin(0)
        claimed = radius.flatten() * (1 - rounding / runner_up).clamp_min(0.0)
        ratio = torch.where(claimed > 0, claimed / promise, 0.0)
        worst = torch.zeros_like(ratio, dtype=torch.bool)
        worst[ratio.argsort(descending=True)[:candidates]] = True
        worst[promise.argsort()[:candidates]] = True
        chosen = pixels[worst]
        way = blocks[rival[chosen], chosen] - blocks[predicted[chosen], chosen]  # (M, N)
        distance = _along(model, start, way, chosen, predicted[chosen], promise[chosen])
        ratios = torch.where(distance.isfinite(), claimed[chosen] / distance, 0.0)
        best = max(best, float(ratios.max()))
    return Proof(best, "a pixel that changes its class along the gradient of its margin")


def steepest_way(model: nn.Module, image: Tensor) -> Tensor:
    """The unit perturbation `(C, H, W)` that moves the logits most, to first order."""
    _, rows = jacobian(model, image)
    return _steepest(rows).reshape(image.shape)


@torch.no_grad()
def repeated(built: Built) -> Proof:
    """The same image, evaluated twice, has two predictions or two logit maps."""
    image = built.images[:1]
    first, second = built.model(image), built.model(image)
    moved = float((first - second).abs().max())
    return Proof(math.inf if moved > 1e-3 * float(first.abs().max()) else 0.0, f"logits move by {moved:.3g} at rest")


def flipped_elsewhere(built: Built) -> Proof:
    """The same certifier is refuted on another network."""
    if built.elsewhere is None:
        raise ValueError("expected another subject of the same certifier")
    return flipped(built.elsewhere)


def paired(built: Built) -> Proof:
    """The stored pair of points, one after the other, each alone: largest ratio of radius or movement to distance."""
    if built.pair is None:
        raise ValueError("expected a stored pair of points")
    clean, perturbed = built.pair
    model = _double(built.model)
    with torch.no_grad():
        before = model(clean.double()[None])
        after = model(perturbed.double()[None])
    distance = max(float((perturbed.double() - clean.double()).norm()), 1e-12)
    changed = (before.argmax(1) != after.argmax(1))[0]
    radius = built.claim.radii(clean[None], before, 0)
    factor = 0.0
    if radius is not None:
        factor = float(torch.where(changed, radius[0], 0.0).max()) / distance
    if isinstance(built.claim, LipschitzClaim):
        moved = (after - before).norm() if built.claim.scope == "joint" else (after - before).norm(dim=1).max()
        factor = max(factor, float(moved) / distance / built.claim.lipschitz)
    return Proof(factor, "a stored pair of points")


@torch.no_grad()
def bounded(built: Built) -> Proof:
    """The product of exact layer norms is at most the constant."""
    bound = max(product_of_norms(_double(built.model), image.double()) for image in built.images[:1])
    return Proof(bound / _lipschitz(built).pixel_constant / (1 + SLACK), "the product of the layers' exact norms")


@torch.no_grad()
def exactly_affine(built: Built) -> Proof:
    """Of an affine model: the exact norm of the whole map, or of the worst pixel, against the constant or the radii."""
    factor = 0.0
    for n, image in enumerate(built.images):
        logits, rows = jacobian(built.model, image)
        blocks = rows.reshape(logits.shape[0], -1, image.numel())
        if isinstance(built.claim, LipschitzClaim):
            if built.claim.scope == "joint":
                factor = float(torch.linalg.matrix_norm(rows, 2)) / built.claim.lipschitz
            pixel = torch.linalg.matrix_norm(blocks.transpose(0, 1), 2).max()
            factor = max(factor, float(pixel) / built.claim.pixel_constant)
            break
        flat = logits.flatten(1)
        predicted, pixels = flat.argmax(0), torch.arange(flat.shape[1])
        gaps = flat[predicted, pixels] - flat
        slopes = (blocks[predicted, pixels] - blocks).norm(dim=2)
        distance = torch.where(slopes > 0, gaps / slopes, math.inf).scatter(0, predicted[None], math.inf).amin(0)
        claimed = _radii(built, n).flatten()
        factor = max(factor, float(torch.where(claimed > 0, claimed / distance, 0.0).max()))
    return Proof(factor / (1 + SLACK), "the exact matrix of an affine map")


@torch.no_grad()
def within_rows(built: Built) -> Proof:
    """Radii are at most `min_k m_k / (L ||w_y - w_k||)`, L the product of exact norms up to the last convolution."""
    model = built.model
    if not isinstance(model, nn.Sequential) or not isinstance(model[-1], nn.Conv2d):
        raise TypeError("expected a chain that ends in a convolution")
    exact = _double(model)
    features = product_of_norms(exact[:-1], built.images[0].double())  # type: ignore[index]
    sound = ClassPairClaim(features, model[-1].weight.detach())
    factor = 0.0
    for n, image in enumerate(built.images):
        logits = exact(image.double()[None])
        rounding = SLACK * float(logits.abs().max()) / features
        allowed = sound.radii(image[None], logits, None)[0] * (1 + SLACK) + rounding
        claimed = _radii(built, n)
        factor = max(factor, float(torch.where(claimed > 0, claimed / allowed, 0.0).max()))
    return Proof(factor, "class-pair radii with the product of the layers' exact norms")


@torch.no_grad()
def within_radii(built: Built) -> Proof:
    """Radii are at most `m / (sqrt(2) L)` of float64 logits, with the exact norms that bound one pixel's logits."""
    exact = _double(built.model)
    lipschitz = _pixel_constant(exact, built.images[0].double())
    factor = 0.0
    for n, image in enumerate(built.images):
        logits = exact(image.double()[None])
        rounding = SLACK * float(logits.abs().max()) / lipschitz
        allowed = margins(logits)[0] / (2**0.5 * lipschitz) * (1 + SLACK) + rounding
        claimed = _radii(built, n)
        factor = max(factor, float(torch.where(claimed > 0, claimed / allowed, 0.0).max()))
    return Proof(factor, "margins of float64 logits over exact norms of the layers, and of one pixel of the last")


@torch.no_grad()
def pixel_bounded(built: Built) -> Proof:
    """All layers but the last by their norms; the last one by the norm of its worst pixel's rows alone."""
    bound = _pixel_constant(_double(built.model), built.images[0].double())
    factor = bound / _lipschitz(built).pixel_constant / (1 + SLACK)
    return Proof(factor, "exact norms of the layers, and of one pixel of the last")


def _pixel_constant(model: nn.Module, image: Tensor) -> float:
    """An upper bound of how fast the logits of one pixel move."""
    if isinstance(model, Tiled):  # a mean of one or two tiles
        return product_of_norms(model.inner, image[..., : model.width])
    if not isinstance(model, nn.Sequential):
        raise TypeError(f"no bound is known for a {type(model).__name__}")
    features = model[:-1](image[None])[0]
    logits, rows = jacobian(model[-1], features)
    blocks = rows.reshape(logits.shape[0], -1, features.numel())
    pixel = float(torch.linalg.matrix_norm(blocks.transpose(0, 1), 2).max())
    return product_of_norms(model[:-1], image) * pixel


def _along(model: nn.Module, start: Tensor, way: Tensor, pixel: Tensor, own: Tensor, guess: Tensor) -> Tensor:
    """Smallest distance seen along each row of `way` at which `pixel` leaves class `own`, `(M,)`, else infinite."""
    unit = way / way.norm(dim=1, keepdim=True).clamp_min(1e-300)

    def left(length: Tensor) -> Tensor:
        points = start + (length[:, None] * unit).reshape(-1, *start.shape)
        logits = torch.cat([model(part) for part in points.split(64)])
        predicted = logits.flatten(2).argmax(1)  # (M, P)
        return predicted.gather(1, pixel[:, None])[:, 0] != own

    inside, outside = torch.zeros_like(guess), torch.full_like(guess, math.inf)
    for factor in (1 + 1e-6, 1.001, 1.01, 1.05, 1.2, 1.5, 2.0, 3.0):
        length = (guess * factor).clamp_max(1e6)
        out = left(length) & outside.isinf()
        inside = torch.where(~out & outside.isinf(), length, inside)
        outside = torch.where(out, length, outside)
    for _ in range(20):
        middle = torch.where(outside.isinf(), inside, (inside + outside) / 2)
        out = left(middle) & outside.isfinite()
        inside, outside = torch.where(out, inside, middle), torch.where(out, middle, outside)
    return outside


def _steepest(rows: Tensor) -> Tensor:
    """The first right singular vector."""
    gram = rows @ rows.T if rows.shape[0] <= rows.shape[1] else rows.T @ rows
    vector = torch.linalg.eigh(gram)[1][:, -1]
    way = rows.T @ vector if rows.shape[0] <= rows.shape[1] else vector
    unit: Tensor = way / way.norm().clamp_min(1e-300)
    return unit


def _radii(built: Built, index: int) -> Tensor:
    """What the claim says of an image, `(H, W)`, from the model as deployed."""
    image = built.images[index : index + 1]
    with torch.no_grad():
        radii = built.claim.radii(image, built.model(image), index)
    if radii is None:
        raise ValueError("expected a claim about the images")
    if built.labels is not None and isinstance(built.claim, RadiusClaim):
        radii = torch.where(built.labels[index] == 255, 0.0, radii)
    return radii[0]


def _lipschitz(built: Built) -> LipschitzClaim:
    if not isinstance(built.claim, LipschitzClaim):
        raise TypeError("expected a Lipschitz claim")
    return built.claim


def _double(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double()
