"""Refined bounds of whole measures: never above the enumeration of all outputs, nor above what attacks reach."""

from __future__ import annotations

import csv
import importlib.util
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attackcheck import LipschitzClaim, audit, certify
from attackcheck.measures import Measure, bounds, dataset
from attackcheck.measures.components import connected, prices, surviving
from attackcheck.measures.image import DROPS, ImageBounds, counts
from attackcheck.measures.shared import Weights, most_lost
from attackcheck.models.layers import MaxMin
from attackcheck.refined import refine
from attackcheck.refined.costs import RefinedCosts
from attackcheck.reporters.certification import smallest_text

_spec = importlib.util.spec_from_file_location("brute", Path(__file__).parents[1] / "measures" / "brute.py")
assert _spec is not None
assert _spec.loader is not None
brute = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(brute)

IGNORE = 255
EPS = torch.tensor([0.0, 0.2, 0.45, 0.7, 1.1, 1.6, 5.0], dtype=torch.float64)


def priced(seed: int, classes: int) -> tuple[RefinedCosts, Tensor, Any]:
    """Two blocks of four pixels with distances of their own; labels; all outputs with what they cost."""
    random = np.random.default_rng(seed)
    width, pixels = (4, 8) if classes == 2 else (2, 4)
    logits = random.normal(size=(classes, 2, width))
    flat = logits.reshape(classes, pixels)
    truth = np.where(random.random(pixels) < 0.7, flat.argmax(axis=0), random.integers(0, classes, pixels))
    truth = np.where(random.random(pixels) < 0.1, IGNORE, truth)
    constant = random.uniform(0.5, 1.5)
    changed = np.array([[brute.projection(flat[:, i], k) for i in range(pixels)] for k in range(classes)]) / constant**2
    # A pixel alone may cost more than its change of logits.
    own = changed * random.uniform(1.0, 1.0 + 2.0 * random.random(), size=changed.shape)
    numbers = np.arange(classes)[:, None]
    maps = np.array(np.meshgrid(*[np.arange(classes)] * pixels, indexing="ij")).reshape(pixels, -1).T
    block = (np.arange(pixels) % width) // 2
    joint = np.zeros(len(maps))
    for b in np.unique(block):
        inside = np.flatnonzero(block == b)
        joint += np.maximum(own[maps[:, inside], inside].max(axis=1), changed[maps[:, inside], inside].sum(axis=1))
    picture = brute.Image(maps, joint, own[maps, np.arange(pixels)].max(axis=1), flat.argmax(axis=0), truth)
    distances = torch.from_numpy(np.where(numbers == flat.argmax(axis=0), 0.0, np.sqrt(own)))
    costs = RefinedCosts(torch.from_numpy(logits), distances, constant, scale=2)
    return costs, torch.from_numpy(truth.reshape(2, width)), picture


def check(seed: int, classes: int, images: int) -> list[float]:
    """How much of what could be lost is claimed to stay too much (never), and the ratios of losses."""
    cases = [priced(1000 * seed + number, classes) for number in range(images)]
    found = [bounds(costs, labels, IGNORE, EPS) for costs, labels, _ in cases]
    weights = Weights(
        torch.from_numpy(sum(i.clean.intersection for i in found)),
        torch.from_numpy(sum(i.clean.union for i in found)),
        torch.from_numpy(dataset.counted_classes([i.clean for i in found])),
    )
    lost = torch.zeros(len(EPS), dtype=torch.float64)
    for costs, labels, _ in cases:
        lost += most_lost(costs, labels.flatten(), labels.flatten() != IGNORE, weights, EPS)
    pictures = [picture for _, _, picture in cases]
    ratios = []
    for e, eps in enumerate(EPS.tolist()):
        for alone, value in ((False, dataset.certified), (True, dataset.per_pixel)):
            truth = brute.worst(pictures, eps, classes, IGNORE, alone=alone)
            for measure in (m for m in Measure if m is not Measure.COMPONENTS):
                for cls in range(classes) if measure.per_class else (None,):
                    exact = truth[measure.value] if cls is None else truth[measure.value].get(cls, math.nan)
                    more = (float(lost[e]),) if measure is Measure.MEAN_IOU and not alone else ()
                    ours = value(measure, cls, found, e, *more)
                    assert math.isnan(ours) == math.isnan(exact)
                    sign = 1 if measure.falls else -1
                    assert not sign * ours > sign * exact + 1e-12, (measure, cls, eps, alone)
                    clean = dataset.clean(measure, cls, [i.clean for i in found])
                    if not alone and abs(clean - ours) > 1e-9:
                        ratios.append(abs(clean - exact) / abs(clean - ours))
    if images == 1:
        check_smallest(found[0], pictures[0], classes)
    return ratios


def check_smallest(image: ImageBounds, picture: Any, classes: int) -> None:
    """Nothing is lost at less than the distance that is said to be the smallest."""
    clean = brute.worst([picture], 1e-12, classes, IGNORE)
    for (measure, cls), distances in image.smallest.items():
        if measure is Measure.COMPONENTS:
            continue
        for drop, distance in zip(DROPS, distances.tolist(), strict=True):
            worst = brute.worst([picture], min(distance * (1 - 1e-6), 100.0), classes, IGNORE)[measure.value]
            before = clean[measure.value] if cls is None else clean[measure.value][cls]
            after = worst if cls is None else worst[cls]
            assert abs(after - before) < drop - 1e-9 or distance == 0.0


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("classes", "images"), [(2, 1), (2, 2), (3, 1), (3, 3), (4, 1)])
def test_no_output_is_worse_than_the_bound(seed: int, classes: int, images: int) -> None:
    check(seed, classes, images)


def test_the_bounds_say_something() -> None:
    ratios = [ratio for seed in range(20) for ratio in check(seed, 3, 2)]
    assert float(np.mean(ratios)) > 0.8
    assert float(np.mean(np.array(ratios) > 1 - 1e-9)) > 0.4


def test_components_are_destroyed_block_by_block() -> None:
    """Where the four pixels of a block move in step, half of 16 pixels and one more cost what three blocks do."""
    logits = torch.zeros(2, 4, 4, dtype=torch.float64)
    logits[0] = 1.0
    distances = torch.zeros(2, 16, dtype=torch.float64)
    distances[1] = 2**0.5  # one flip costs 2, and changes logits by 1/2
    costs = RefinedCosts(logits, distances, 1.0, scale=2)
    total, dearest = prices(connected(costs.predicted, (4, 4)), costs.nearest, costs.adding_up())
    assert float(dearest) == pytest.approx(2.0)
    assert 4.4 < float(total) <= 3 * 2.0


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_a_thousand_cases(block: int) -> None:
    for seed in range(1000 + 100 * block, 1100 + 100 * block):
        check(seed, 2 + seed % 3, 1 + (seed % 2) * (seed % 3 != 2))


# Networks -------------------------------------------------------------------------------------------------------------


def network(seed: int, classes: int) -> nn.Sequential:
    """Two channels to features, and blocks of four pixels from each place of them."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 2, 2), MaxMin(), nn.ConvTranspose2d(4, 4, 2, 2), MaxMin(), nn.Conv2d(4, classes, 1)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.eval()


def attack(model: nn.Module, image: Tensor, labels: Tensor, seed: int) -> Tensor:
    """Directions that bring pixels over, alone and together, and random ones: unit vectors (D, C, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    leaf = image.clone().requires_grad_()
    logits = model(leaf[None])[0].flatten(1)
    own = logits.gather(0, logits.argmax(dim=0, keepdim=True))
    margin = (own - logits).masked_fill(own == logits, math.inf).amin(dim=0)
    order = margin.argsort()
    ways = [torch.randn(60, *image.shape, generator=generator)]
    # The weakest pixels together: as far as each needs, as in one step of a projection.
    for count in (1, 2, 3, 4, 6, 9, 16, 32, 64):
        (way,) = torch.autograd.grad(-margin[order[:count]].sum(), leaf, retain_graph=True)
        ways.append(way[None])
    for cls in labels.unique().tolist():
        if 0 <= cls < len(logits):
            (way,) = torch.autograd.grad((logits[cls] - own[0]).sum(), leaf, retain_graph=True)
            ways += [way[None], -way[None]]
    found = torch.cat(ways)
    return found / found.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]


def survives(seed: int) -> int:
    """Compares every measure at every point with its bound; how many points lost something."""
    classes = 2 + seed % 3
    model = network(seed, classes).double()
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(2, 8, 8, generator=generator).double()
    with torch.no_grad():
        logits = model(image[None])[0]
    predicted = logits.argmax(dim=0).flatten()
    other = torch.randint(0, classes, predicted.shape, generator=generator)
    labels = torch.where(torch.rand(64, generator=generator) < 0.8, predicted, other)
    labels = torch.where(torch.rand(64, generator=generator) < 0.1, torch.tensor(IGNORE), labels)
    eps = torch.logspace(-2.5, 0.7, 12, dtype=torch.float64)
    costs = refine(model, (2, 8, 8)).costs(image, logits)
    found = bounds(costs, labels.reshape(8, 8), IGNORE, eps)
    valid = labels != IGNORE
    present = torch.from_numpy(dataset.counted_classes([found.clean]))
    weights = Weights(torch.from_numpy(found.clean.intersection), torch.from_numpy(found.clean.union), present)
    lost = most_lost(costs, labels, valid, weights, eps)
    islands = connected(predicted, (8, 8))
    ways, changed = attack(model, image, labels, seed), 0
    before = counts(predicted, predicted, labels, valid, classes, islands, len(islands.needed))
    each = [(measure, cls) for measure in Measure for cls in (range(classes) if measure.per_class else (None,))]
    intact = {(measure, cls): dataset.clean(measure, cls, [before]) for measure, cls in each}
    for e, length in enumerate(eps.tolist()):
        bound = {}
        for measure, cls in each:
            more = (float(lost[e]),) if measure is Measure.MEAN_IOU else ()
            bound[measure, cls] = dataset.certified(measure, cls, [found], e, *more)
        with torch.no_grad():
            maps = model(image + length * ways).argmax(dim=1).flatten(1)
        for shown in maps.unique(dim=0):
            alive = surviving(islands, shown != predicted)
            now = counts(shown, predicted, labels, valid, classes, islands, alive)
            reached = {(measure, cls): dataset.clean(measure, cls, [now]) for measure, cls in each}
            for (measure, cls), value in reached.items():
                sign = 1 if measure.falls else -1
                assert not sign * bound[measure, cls] > sign * value + 1e-12, (measure, cls, length)
            for (measure, cls), distances in found.smallest.items():
                fall = intact[measure, cls] - reached[measure, cls]
                fall = fall if measure.falls else -fall
                assert (distances[np.array(DROPS) <= fall - 1e-9] <= length).all(), (measure, cls, length)
            changed += int((shown != predicted).any())
    return changed


@pytest.mark.parametrize("block", range(4))
def test_no_attack_on_a_network_falls_below_the_bound(block: int) -> None:
    assert sum(survives(seed) for seed in range(5 * block, 5 * block + 5)) > 100


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_nor_on_four_hundred_networks(block: int) -> None:
    assert sum(survives(seed) for seed in range(40 * block, 40 * block + 40)) > 400


def test_the_table_has_both() -> None:
    model = network(0, 3)
    images = torch.rand(3, 2, 24, 24, generator=torch.Generator().manual_seed(0))
    bound = audit(model, LipschitzClaim(1.0), (2, 24, 24)).bound
    assert bound is not None
    table = certify(model, images, None, LipschitzClaim(bound), (0.1,), attack=False)
    assert {entry.measure for entry in table.smallest} == {Measure.STABILITY, Measure.COMPONENTS}
    lines = list(csv.DictReader(io.StringIO(smallest_text(table))))
    for entry, line, told in zip(table.smallest, lines, table.to_dict()["smallest"], strict=True):
        assert entry.refined is not None
        assert float(line["mean"]) == entry.mean == told["mean"]
        assert float(line["refined_median"]) == entry.refined.quantiles[1] == told["refined"]["quantiles"]["0.5"]
        assert entry.refined.mean >= entry.mean * (1 - 1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_the_smallest_eps_is_where_the_bounds_begin_to_lose_so_much(seed: int) -> None:
    """Just below it no measure of the image can lose the share; just above it the same costs allow it."""
    generator = torch.Generator().manual_seed(seed)
    model = network(seed, 3).double()
    image = torch.rand(2, 24, 24, generator=generator).double()
    with torch.no_grad():
        logits = model(image[None])[0]
    labels = torch.where(torch.rand(24, 24, generator=generator) < 0.8, logits.argmax(dim=0), 1)
    costs = refine(model, (2, 24, 24)).costs(image, logits)
    smallest = bounds(costs, labels, IGNORE, EPS).smallest
    assert {measure for measure, _ in smallest} == set(Measure) - {Measure.MEAN_IOU}
    looked = 0
    for (measure, cls), distances in smallest.items():
        for drop, distance in zip(DROPS, distances.tolist(), strict=True):
            if not math.isfinite(distance) or distance == 0.0:
                continue
            around = torch.tensor([distance * (1 - 1e-4), distance * (1 + 1e-4)], dtype=torch.float64)
            near = bounds(costs, labels, IGNORE, around, smallest=False)
            clean = dataset.clean(measure, cls, [near.clean])
            lost = [abs(clean - dataset.certified(measure, cls, [near], e)) for e in range(2)]
            assert lost[0] < drop - 1e-9 or measure is Measure.COMPONENTS
            assert lost[1] >= drop - 1e-9 or measure is Measure.COMPONENTS
            looked += 1
    assert looked > 10
