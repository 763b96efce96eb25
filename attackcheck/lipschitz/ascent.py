"""The constant from below: pairs of images whose logits are far apart, found by ascent and judged in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from attackcheck.arithmetic import Reference, guarded
from attackcheck.attacks import lipschitz_ascent
from attackcheck.claims import ClassPairClaim, LipschitzClaim
from attackcheck.lipschitz.findings import Witness
from attackcheck.recheck import Judge

__all__ = ["best_witness"]

Model = Callable[[Tensor], Tensor]
View = Callable[[Tensor], Tensor]
RADII = (0.1, 1.0, 10.0)
LARGE = 3 * 256 * 512
"""Numbers in an image from which starts are climbed from one by one, to spare memory."""

JUDGED = 2
"""How many points are measured in float64."""


def best_witness(
    model: Model,
    claim: LipschitzClaim | ClassPairClaim,
    shape: Sequence[int],
    *,
    images: Tensor | None = None,
    seed: int = 0,
    device: str = "cpu",
    steps: int = 100,
) -> Witness | None:
    """The pair of images that moves the logits furthest for what the claim permits.

    Ascends from images of random numbers, from a flat one and from those given, by power iteration over small, middle
    and large distances; the best points are measured again one by one: exact distance, float64 logits, their error
    subtracted.

    Args:
        model: a frozen model on `device`.
        claim: what is claimed; the ascent follows the whole map, one pixel, or a pair of classes accordingly.
        shape: ``(C, H, W)``.
        images: ``(N, C, H, W)`` to start from as well; the first two are used.
        seed: of random starts and directions.
        steps: of each ascent.

    Returns:
        The witness with the largest ratio, or None if no point moved the logits at all.
    """
    starts, names = _starts(shape, images, seed, device)
    call = guarded(model)
    together = len(starts) if starts[0].numel() <= LARGE else 1
    with torch.no_grad():
        clean = call(starts)
    proposals: list[tuple[float, int, Tensor]] = []
    views: list[View] = [_whole]
    while views:
        view = views.pop(0)
        points = torch.cat([_climb(call, view, part, steps, seed) for part in torch.split(starts, together)])
        with torch.no_grad():
            change = call(points) - clean
        distance = (points - starts).double().flatten(1).norm(dim=1).clamp_min(1e-30)
        ratios = claim.expansions(change, distance).tolist()
        if view is _whole:
            views = _closer(claim, change[max(range(len(ratios)), key=ratios.__getitem__)])
        proposals += [(ratio, row, points[row]) for row, ratio in enumerate(ratios)]
    proposals.sort(key=lambda proposal: -proposal[0])
    judge = Judge(call, Reference(model, starts[:1]), claim, tolerance=0.0, device=device)
    best: Witness | None = None
    for _, row, point in proposals[:JUDGED]:
        witness = _judged(judge, claim, starts[row], clean[row], point, names[row])
        if witness is not None and (best is None or witness.ratio > best.ratio):
            best = witness
    return best


def _climb(model: Model, view: View, starts: Tensor, steps: int, seed: int) -> Tensor:
    """The best point around each start, ``(B, C, H, W)``."""
    generator = torch.Generator().manual_seed(seed)
    return lipschitz_ascent(lambda rows: view(model(rows)), starts, radii=RADII, steps=steps, generator=generator)


def _judged(
    judge: Judge, claim: LipschitzClaim | ClassPairClaim, start: Tensor, logits: Tensor, point: Tensor, name: str
) -> Witness | None:
    radius = claim.radii(start[None], logits[None], None)
    found = judge.expansion(judge.scene(0, start, logits, radius[0]), point)
    if found is None or not found.distance > 0:
        return None
    ratio = (found.bound - found.allowance) / found.distance
    return Witness(ratio, found.distance, name, start.detach().cpu(), point.detach().cpu())


def _starts(shape: Sequence[int], images: Tensor | None, seed: int, device: str) -> tuple[Tensor, list[str]]:
    given = [] if images is None else [image.detach().float().cpu() for image in images[:2]]
    noise = torch.rand(tuple(shape), generator=torch.Generator().manual_seed(seed))
    names = [f"image {i}" for i in range(len(given))] + ["random image", "grey image"]
    return torch.stack([*given, noise, torch.full(tuple(shape), 0.5)]).to(device), names


def _whole(logits: Tensor) -> Tensor:
    return logits


def _closer(claim: LipschitzClaim | ClassPairClaim, change: Tensor) -> list[View]:
    """What to climb next: the pixel that moves most, or the pair of classes of a pixel that the claim permits least.

    Args:
        change: ``(K, H, W)``, of the logits at the point found on the whole map.
    """
    if isinstance(claim, LipschitzClaim) and claim.single_constant:
        return []
    width = change.shape[2]
    row, column = divmod(int(change.double().square().sum(dim=0).argmax()), width)
    if isinstance(claim, LipschitzClaim):
        return [lambda logits: logits[:, :, row, column]]
    spread = (claim.weight[:, None] - claim.weight[None]).norm(dim=2).to(change.device)
    vector = change[:, row, column].double()
    ratio = torch.where(spread > 0, (vector[:, None] - vector[None]).abs() / spread, 0.0)
    first, second = divmod(int(ratio.argmax()), len(vector))
    return [lambda logits: logits[:, first, row, column, None] - logits[:, second, row, column, None]]
