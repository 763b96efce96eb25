"""Refined radii and set costs: sound against everything that can be tried, and larger than the ordinary ones."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

import attackcheck as ac
from attackcheck import InputError, refine
from attackcheck.claims import margins
from attackcheck.measures.sharing import BARRED, DEAR, adding_up, blocks, in_order, steps, unblocked
from attackcheck.models import load_checkpoint, shipped
from attackcheck.models.datasets import load_data
from attackcheck.models.layers import MaxMin, OrthogonalConv2d, OrthogonalUp2d, conv, up
from attackcheck.refined import slopes


def network(seed: int, *, classes: int = 3, sort: bool = True, scale: float = 1.0) -> nn.Sequential:
    """Two channels of a pixel to features, and blocks of four pixels from each place of them."""
    generator = torch.Generator().manual_seed(seed)
    layers = [nn.Conv2d(2, 4, 2, 2), MaxMin(), nn.ConvTranspose2d(4, 4, 2, 2), MaxMin(), nn.Conv2d(4, classes, 1)]
    if not sort:
        del layers[3]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval().double()


def flip_distances(model: nn.Module, image: Tensor, count: int = 200) -> Tensor:
    """Smallest distance ``(H, W)`` seen at which each pixel changes its class, along many rays, by bisection."""
    generator = torch.Generator().manual_seed(1)
    image = image.double()
    clean = model(image[None]).argmax(1)
    leaf = image.clone().requires_grad_()
    logits = model(leaf[None])[0].flatten(1)
    rays = [torch.randn(count, *image.shape, generator=generator, dtype=torch.float64)]
    for pixel in range(logits.shape[1]):
        best = int(logits[:, pixel].argmax())
        for other in range(logits.shape[0]):
            gap = logits[other, pixel] - logits[best, pixel]
            if other != best:
                (way,) = torch.autograd.grad(gap, leaf, retain_graph=True)
                rays.append(way[None])
    way = torch.cat(rays)
    way = way / way.flatten(1).norm(dim=1).clamp_min(1e-12)[:, None, None, None]
    found = torch.full(clean.shape[1:], math.inf, dtype=torch.float64)
    with torch.no_grad():
        for length in torch.logspace(-4, 1, 120, dtype=torch.float64):
            flipped = (model(image + length * way).argmax(1) != clean).any(0)
            found = torch.where(flipped & found.isinf(), length, found)
    return found


@pytest.mark.parametrize("sort", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_no_ray_flips_a_pixel_inside_its_radius(seed: int, sort: bool) -> None:
    check_rays(network(seed, sort=sort), seed, sort)


@pytest.mark.parametrize("seed", range(4))
def test_nor_where_pairs_are_followed_one_by_one(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As networks with more pairs are."""
    model, image = network(seed), torch.rand(1, 2, 4, 4, generator=torch.Generator().manual_seed(seed)).double()
    exact = refine(model, (2, 4, 4)).radii(image)
    monkeypatch.setattr(slopes, "LOCAL_PAIRS", 0)
    check_rays(model, seed, sort=True)
    each = refine(model, (2, 4, 4)).radii(image)
    monkeypatch.setattr(slopes, "MOST_PAIRS", 0)
    any_order = refine(model, (2, 4, 4)).radii(image)
    assert bool((any_order <= each * (1 + 1e-9)).all())
    assert bool((each <= exact * (1 + 1e-9)).all())
    assert bool((any_order < each).any())


def check_rays(model: nn.Sequential, seed: int, sort: bool) -> None:
    image = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(seed)).double()
    certificate = refine(model, (2, 4, 4))
    assert certificate.pairs == (2 if sort else 0)
    assert certificate.joint
    radii = certificate.radii(image[None])[0]
    distances = flip_distances(model, image)
    assert bool((radii <= distances).all())
    assert float((radii / distances).max()) > 0.3  # it says something


@pytest.mark.parametrize("seed", range(4))
def test_an_affine_network_is_met_exactly(seed: int) -> None:
    """The tail is everything: radii are distances, pixel by pixel, also at the border."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Upsample(scale_factor=2, mode="bilinear")).double().eval()
    image = torch.rand(2, 6, 7, generator=generator).double()
    radii = refine(model, (2, 6, 7)).radii(image[None])[0]
    rows = torch.autograd.functional.jacobian(lambda x: model(x[None])[0], image).flatten(3)  # (K, H, W, n)
    logits = model(image[None])[0]
    best = logits.argmax(0, keepdim=True)
    gap = logits.gather(0, best) - logits
    slope = (rows.gather(0, best[..., None].expand(1, *rows.shape[1:])) - rows).norm(dim=-1)
    exact = torch.where(gap > 0, gap / slope, math.inf).amin(0)
    assert bool((radii <= exact).all())
    torch.testing.assert_close(radii, exact, rtol=1e-6, atol=0)


def test_a_constant_that_is_given_scales_the_radii() -> None:
    model, image = network(0), torch.rand(1, 2, 4, 4).double()
    proved = refine(model, (2, 4, 4))
    double = refine(model, (2, 4, 4), features=2 * proved.features)
    torch.testing.assert_close(double.radii(image), proved.radii(image) / 2)


def test_radii_are_zero_at_ties_and_infinite_where_rows_are_equal() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 1)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]])[:, :, None, None])
        model[0].bias.zero_()
    image = torch.tensor([[[0.5, 0.75]], [[0.5, 0.25]]]).double()
    radii = refine(model, (2, 1, 2)).radii(image[None])[0, 0]
    assert float(radii[0]) == 0.0
    assert float(radii[1]) == pytest.approx(0.5 / 2**0.5, rel=1e-9)
    with torch.no_grad():
        model[0].weight.copy_(torch.ones(2, 2, 1, 1))
        model[0].bias.copy_(torch.tensor([0.0, 1.0]))
    assert float(refine(model, (2, 1, 2)).radii(image[None]).min()) > 1e5


def test_a_pair_that_changes_its_order_on_the_way_makes_the_margin_fall_faster() -> None:
    """1 - max(a, 10 b) at a = 0, b = -0.5: along a it takes 1 to bring it to 0, along b no more than 0.6."""
    model = nn.Sequential(nn.Conv2d(2, 2, 1), MaxMin(), nn.Conv2d(2, 2, 1)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 10.0]])[:, :, None, None])
        model[0].bias.zero_()
        model[2].weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]])[:, :, None, None])
        model[2].bias.copy_(torch.tensor([1.0, 0.0]))
    image = torch.tensor([0.0, -0.5]).double().reshape(1, 2, 1, 1)
    order_changes = 5.0 / 101**0.5  # the gap over the rate at which it closes
    expected = order_changes + (1.0 - order_changes) / 10.0
    radius = float(refine(model, (2, 1, 1)).radii(image))
    assert radius <= 0.6
    assert radius == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["isounet-xs", "lipnet-xs"])
def test_shipped_networks_gain(name: str) -> None:
    loaded = load_checkpoint(shipped(name))
    data = load_data(None)
    images = torch.stack([data[index].image for index in range(2)])
    certificate = refine(loaded.model, images.shape[1:])
    assert certificate.pairs == 4
    assert certificate.features < loaded.lipschitz_joint * (1 + 1e-5)
    radii = certificate.radii(images)
    with torch.no_grad():
        ordinary = margins(loaded.model(images)) / (2**0.5 * loaded.lipschitz_pixel)
    gain = (radii / ordinary)[ordinary > 1e-3]  # what rounding may take away matters below
    assert float(gain.min()) > 1.0
    assert float(gain.median()) > 1.3


def test_batches_and_images_alone_agree() -> None:
    model = network(1).float()
    images = torch.rand(3, 2, 4, 6)
    certificate = refine(model, (2, 4, 6))
    together = certificate.radii(images)
    for index in range(3):
        assert torch.equal(together[index], certificate.radii(images[index : index + 1])[0])


class Squared(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x


def test_refusals() -> None:
    certificate = refine(network(0), (2, 4, 4))
    with pytest.raises(InputError, match=r"shape \(2, 4, 4\)"):
        certificate.radii(torch.rand(1, 2, 6, 4).double())
    with pytest.raises(InputError, match="got a function"):
        refine(lambda x: x, (2, 4, 4))
    unknown = nn.Sequential(Squared(), nn.Conv2d(2, 3, 1))
    with pytest.raises(InputError, match="can be proved"):
        refine(unknown, (2, 4, 4))
    assert refine(unknown, (2, 4, 4), features=3.0).features == 3.0


# Sets ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9, 16])
def test_columns_are_sorted_and_blocks_are_cut(count: int) -> None:
    keys = torch.rand(count, 50, generator=torch.Generator().manual_seed(count))
    assert torch.equal(torch.stack(in_order(keys.unbind())), keys.sort(dim=0).values)
    image = torch.rand(6 * 8)
    assert torch.equal(unblocked(blocks(image, 6, 2), 6, 2), image)
    assert sorted(blocks(image, 6, 2)[:, 0].tolist()) == sorted(image.reshape(6, 8)[:2, :2].flatten().tolist())


def of_sets(own: Tensor, shared: Tensor, chosen: list[int]) -> Tensor:
    """F^2 of the rows chosen, in every block."""
    return torch.maximum(own[chosen].amax(dim=0), shared[chosen].sum(dim=0))


@pytest.mark.parametrize("power", [0.0, 0.3, 1.0, 4.0])
@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_costs_that_add_up_are_below_the_cost_of_every_set(count: int, power: float) -> None:
    """A thousand blocks, with pixels that are not for sale."""
    generator = torch.Generator().manual_seed(count)
    own = torch.rand(count, 1000, generator=generator) ** 2
    shared = own * torch.rand(count, 1000, generator=generator) ** power
    barred = torch.rand(count, 1000, generator=generator) < 0.2
    own, shared = own.masked_fill(barred, BARRED), shared.masked_fill(barred, BARRED)
    costs, number = adding_up(own, shared)
    costs = torch.empty_like(costs).scatter_(0, number.long(), costs).double()
    assert torch.equal(costs > DEAR, barred)
    cheapest = steps(own, shared).double()
    assert torch.equal((cheapest < DEAR).sum(dim=0), (~barred).sum(dim=0))
    own, shared = own.double(), shared.double()
    reached = torch.zeros(1000).double()
    for size in range(1, count + 1):
        sets = [of_sets(own, shared, list(chosen)) for chosen in itertools.combinations(range(count), size)]
        added = [costs[list(chosen)].sum(dim=0) for chosen in itertools.combinations(range(count), size)]
        least = torch.stack(sets).amin(dim=0)
        possible = least < 1e20
        assert bool((cheapest[:size].sum(dim=0) <= least)[possible].all())
        for true, sum_ in zip(sets, added, strict=True):
            there = true < 1e20
            assert bool((sum_ <= true)[there].all())
            reached = torch.where(there, torch.maximum(reached, sum_ / true), reached)
        all_of_them = (~barred).sum(dim=0) == size
        torch.testing.assert_close(cheapest[:size].sum(dim=0)[all_of_them], least[all_of_them], rtol=1e-5, atol=0)
    sold = (~barred).any(dim=0)
    assert float(reached[sold].mean()) > 0.95  # some set of nearly every block is met


@pytest.mark.parametrize("seed", range(20))
def test_steps_bound_sets_over_blocks(seed: int) -> None:
    """Against every subset of two blocks."""
    generator = torch.Generator().manual_seed(seed)
    own = torch.rand(4, 2, generator=generator) ** 2
    shared = own * torch.rand(4, 2, generator=generator)
    sums = torch.cat([torch.zeros(1), steps(own, shared).flatten().sort().values]).double().cumsum(0)
    own, shared = own.double(), shared.double()
    least = torch.full((9,), math.inf, dtype=torch.float64)
    for chosen in itertools.product([False, True], repeat=8):
        mask = torch.tensor(chosen).reshape(4, 2)
        cost = 0.0
        for b in range(2):
            rows = mask[:, b].nonzero()[:, 0].tolist()
            cost += float(of_sets(own, shared, rows)[b]) if rows else 0.0
        least[int(mask.sum())] = min(least[int(mask.sum())], cost)
    assert bool((sums <= least).all())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("sort", [True, False])
def test_no_perturbation_flips_more_pixels_than_it_pays_for(seed: int, sort: bool) -> None:
    model = network(seed, sort=sort)
    image = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(seed)).double()
    certificate = refine(model, (2, 4, 4))
    logits = model(image[None])[0].detach()
    costs = certificate.costs(image, logits)
    steps = costs.counted(torch.ones(16, dtype=torch.bool))
    sums = torch.cat([torch.zeros(1).double(), steps.sort().values.cumsum(0)])
    generator = torch.Generator().manual_seed(9)
    leaf = image.clone().requires_grad_()
    own = model(leaf[None])[0].gather(0, logits.argmax(0, keepdim=True))
    (down,) = torch.autograd.grad(own.sum(), leaf)
    ways = torch.cat([torch.randn(2000, 2, 4, 4, generator=generator).double(), -down[None]])
    ways = ways / ways.flatten(1).norm(dim=1)[:, None, None, None]
    most = 0.0
    with torch.no_grad():
        for length in torch.logspace(-3, 1, 40, dtype=torch.float64):
            flipped = (model(image + length * ways).argmax(1) != logits.argmax(0)).flatten(1).sum(1)
            price = sums[flipped].sqrt()
            assert bool((price <= length).all())
            most = max(most, float((price / length).max()))
    assert most > 0.15  # it says something


# As a claim, and in the table -----------------------------------------------------------------------------------------


def orthogonal(seed: int) -> nn.Sequential:
    generator = torch.Generator().manual_seed(seed)
    layers = [
        conv(4, 16, 2, stride=2, generator=generator), MaxMin(),
        conv(16, 16, 3, generator=generator), MaxMin(),
        up(16, 8, generator=generator), MaxMin(),
        conv(8, 4, 1, generator=generator),
    ]  # fmt: skip
    return nn.Sequential(*map(plain, layers)).eval()


def plain(layer: nn.Module) -> nn.Module:
    """The convolution that a parametrised layer amounts to."""
    if isinstance(layer, OrthogonalUp2d):
        made = up(layer.inputs, layer.outputs, plain=True)
    elif isinstance(layer, OrthogonalConv2d):
        made = conv(layer.inputs, layer.outputs, layer.kernel_size, stride=layer.stride, plain=True)
    else:
        return layer
    weight, bias = layer.freeze()
    made.load_state_dict({"weight": weight, "bias": bias})
    return made


def test_verify_attacks_it_and_finds_one_that_claims_too_much() -> None:
    model, images = orthogonal(0), torch.rand(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    certificate = refine(model, (4, 8, 8))
    report = ac.verify(model, images, certificate.claim(), pixels=12, audit=False)
    assert report.sound
    assert int(report.attacked.sum()) == 12
    seen = report.flip_distance[report.attacked] / report.radius[report.attacked]
    inflated = refine(model, (4, 8, 8), features=certificate.features / (1.05 * float(seen.min())))
    found = ac.verify(model, images, inflated.claim(), pixels=12, audit=False)
    assert not found.sound


def test_the_table_shows_both_certificates() -> None:
    model = orthogonal(1)
    images = torch.rand(2, 4, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[0, :3] = 255
    labels[1, :, :2] = (labels[1, :, :2] + 1) % 4
    eps = (0.0, 0.01, 0.05, 0.2, 1.0)
    table = ac.certify(model, images, labels, ac.LipschitzClaim(1.0 + 1e-5), eps, steps=10)
    assert table.sound
    assert table.refinement.startswith("refined in the last layers")
    gained = 0
    for row in table.rows:
        assert row.refined_per_pixel is not None
        assert row.attacked is not None
        sign = 1 if row.measure.falls else -1
        assert sign * row.refined_per_pixel <= sign * row.attacked
        if row.refined is not None and not math.isnan(row.refined):
            assert sign * row.refined_per_pixel <= sign * row.refined <= sign * row.attacked
            assert sign * row.certified <= sign * row.refined + 1e-9
            gained += sign * row.refined > sign * row.certified
    assert gained > 5
    plain = ac.certify(model, images, labels, ac.LipschitzClaim(1.0 + 1e-5), eps, attack=False, refine=False)
    assert all(row.refined is None and row.refined_per_pixel is None for row in plain.rows)
    assert plain.refinement == "not asked for"


def test_a_function_has_no_refined_rows() -> None:
    model = orthogonal(1)
    table = ac.certify(lambda x: model(x), torch.rand(1, 4, 8, 8), None, ac.LipschitzClaim(1.1), (0.1,), attack=False)
    assert all(row.refined is None for row in table.rows)
    assert "got a function" in table.refinement
