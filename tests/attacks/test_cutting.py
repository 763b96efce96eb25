"""Cutting planes against quadratic programmes with known solutions."""

import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

import attackcheck as ac
from attackcheck.attacks import ImageFlip, PixelFlip, RegionFlip, cutting_planes, ddn, linearised
from attackcheck.attacks._cutting import least_norm
from attackcheck.errors import InputError
from attackcheck.models import exact
from attackcheck.models.datasets import load_data
from attackcheck.models.shelf import NAMES, shipped

SIDE = 8
MASK = torch.zeros(SIDE, SIDE, dtype=torch.bool)
MASK[2:5, 2:6] = True
AFFINE = {
    "pixel": lambda seed: exact.affine_pixel(seed=seed),
    "convolution": lambda seed: exact.affine_conv(seed=seed),
    "five by five": lambda seed: exact.affine_conv(classes=6, kernel=5, seed=seed),
    "orthonormal": lambda seed: exact.orthonormal_rows(seed=seed),
}


def picture(seed: int) -> Tensor:
    return torch.rand((3, SIDE, SIDE), generator=torch.Generator().manual_seed(seed + 5), dtype=torch.float64)


def shortest(rows: Tensor, gap: Tensor) -> Tensor:
    """The shortest d with `rows @ d >= gap`, from the dual: least squares under a sign constraint."""
    values, vectors = torch.linalg.eigh(rows @ rows.T)
    root = vectors * values.clamp_min(1e-12 * values.max()).sqrt()
    weight, _ = nnls(root.T.numpy(), torch.linalg.lstsq(root, gap).solution.numpy(), maxiter=2000)
    return torch.from_numpy(weight) @ rows


def distance_to(model: nn.Module, image: Tensor, target: int) -> float:
    """How far it is until all pixels of the mask show `target`."""
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x[None])[0], image)
    rows = jacobian.reshape(jacobian.shape[0], SIDE * SIDE, -1)[:, MASK.flatten()]
    z = model(image[None])[0].flatten(1)[:, MASK.flatten()]
    others = [k for k in range(len(z)) if k != target]
    matrix = torch.cat([rows[target] - rows[k] for k in others])
    gap = torch.cat([z[k] - z[target] for k in others])
    found = shortest(matrix, gap)
    assert float((gap - matrix @ found).max()) < 1e-8
    return float(found.norm())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
@pytest.mark.parametrize("problem", AFFINE)
def test_the_smallest_perturbation_of_an_affine_model_is_reached_and_never_undercut(
    problem: str, dtype: torch.dtype
) -> None:
    for seed in range(3):
        model, image = AFFINE[problem](seed), picture(seed)
        truth = distance_to(model, image, 1)
        if truth == 0:
            continue
        found = cutting_planes(model, image[None].to(dtype), RegionFlip(MASK, 1), steps=40, planes=40).double()
        assert (model(found).argmax(1)[0][MASK] == 1).all()
        ratio = float((found - image).norm()) / truth
        assert 1 - (1e-9 if dtype == torch.float64 else 1e-5) <= ratio <= 1.01


@pytest.mark.parametrize("seed", range(3))
def test_away_from_one_of_two_classes_is_a_quadratic_programme_too(seed: int) -> None:
    weight = torch.randn((1, 3, 3, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    model, image = exact.AffineConv(torch.cat([weight, -weight])), picture(seed)
    z = model(image[None])[0, 0].flatten()[MASK.flatten()]
    rows = model.matrix(SIDE, SIDE)[: SIDE * SIDE][MASK.flatten()]
    truth = float(shortest(-z.sign()[:, None] * rows, z.abs()).norm())
    found = cutting_planes(model, image[None], RegionFlip(MASK), steps=40, planes=40)
    assert (model(found).argmax(1) != model(image[None]).argmax(1))[0][MASK].all()
    assert 1 - 1e-9 <= float((found - image).norm()) / truth <= 1.01


@pytest.mark.parametrize("problem", AFFINE)
def test_a_few_steps_flip_the_region_at_a_little_more(problem: str) -> None:
    for seed in range(3):
        model, image = AFFINE[problem](seed), picture(seed)
        truth = distance_to(model, image, 1)
        found = cutting_planes(model, image[None], RegionFlip(MASK, 1), steps=12, planes=12, refine=3)
        assert (model(found).argmax(1)[0][MASK] == 1).all()
        assert float((found - image).norm()) <= 1.1 * truth


@pytest.mark.parametrize("seed", range(3))
def test_a_fraction_takes_the_cheapest_pixels_where_they_are_known(seed: int) -> None:
    """Rows of unit norm at every pixel alone: the smallest margins are the closest, and squares add."""
    model, image = exact.orthonormal_rows(seed=seed), picture(seed)
    truth = model.flip_distance(image)[MASK].sort().values[:6].norm()
    found = cutting_planes(model, image[None], RegionFlip(MASK, fraction=0.5), steps=40, planes=40)
    flipped = (model(found).argmax(1) != model(image[None]).argmax(1))[0][MASK]
    assert int(flipped.sum()) >= 6
    assert 1 - 1e-9 <= float((found - image).norm() / truth) <= 1.01


def test_regions_of_a_trained_network_are_flipped_by_less_than_by_the_other_attacks() -> None:
    model = ac.load(shipped(NAMES[0])).model
    image = load_data(None)[0].image[None]
    with torch.no_grad():
        predicted = model(image)[0].argmax(0)
    mask = torch.zeros_like(predicted, dtype=torch.bool)
    mask[19:25, 58:66] = (predicted == predicted[21, 61])[19:25, 58:66]
    objective = RegionFlip(mask)
    lengths = []
    for attack in (cutting_planes, linearised, ddn):
        found = attack(model, image, objective)
        with torch.no_grad():
            assert (model(found).argmax(1)[0] != predicted)[mask].all()
        lengths.append(float((found - image).norm()))
    assert lengths[0] < 0.95 * min(lengths[1:])


def test_least_norm_solves_its_quadratic_programme() -> None:
    generator = torch.Generator().manual_seed(0)
    for size, spread in ((1, 1.0), (5, 0.7), (20, 0.7), (20, 0.1)):
        normal = torch.randn((6, 1, 200), generator=generator) + spread * torch.randn(
            (6, size, 200), generator=generator
        )
        normal = (normal / normal.norm(dim=2, keepdim=True)).double()
        offset = torch.rand((6, size), generator=generator, dtype=torch.float64) - 0.1
        weight = least_norm(normal @ normal.transpose(1, 2), offset, pivots=12)
        assert (weight >= 0).all()
        for row in range(6):
            truth = shortest(normal[row], offset[row])
            torch.testing.assert_close(weight[row] @ normal[row], truth, rtol=1e-4, atol=1e-5)


def test_rows_are_independent_and_the_box_is_kept() -> None:
    model = exact.affine_conv(seed=3)
    images = torch.stack([picture(seed) for seed in range(3)])
    together = cutting_planes(model, images, RegionFlip(MASK), classes=3, box=(0.0, 1.0))
    assert together.min() >= 0
    assert together.max() <= 1
    for i in range(3):
        alone = cutting_planes(model, images[i : i + 1], RegionFlip(MASK), classes=3, box=(0.0, 1.0))
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-9)


def test_costs_are_as_documented() -> None:
    model, count = exact.affine_conv(), 0

    def counted(x: Tensor) -> Tensor:
        nonlocal count
        count += x.shape[0]
        return model(x)

    cutting_planes(counted, picture(0)[None], RegionFlip(MASK), steps=7, classes=3, refine=4)
    assert count == 1 + 3 * (7 + 4)


def test_a_model_without_gradient_ends_finite() -> None:
    found = cutting_planes(lambda x: 0 * x + torch.eye(3)[0][:, None, None], picture(0)[None].float(), ImageFlip())
    assert torch.isfinite(found).all()


def test_a_single_pixel_is_refused_in_one_sentence() -> None:
    with pytest.raises(InputError, match="regions"):
        cutting_planes(exact.affine_pixel(), picture(0)[None], PixelFlip(torch.tensor([1]), torch.tensor([1])))
