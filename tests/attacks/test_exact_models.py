"""The closed forms themselves, against brute force over directions and against the gadgets' own formulas."""

import math

import pytest
import torch
from torch import Tensor

from attackcheck.models import exact

SEEDS = [0, 1, 2]
PIXELWISE = {
    "affine": exact.affine_pixel,
    "folded": exact.folded_pixel,
    "relu": exact.relu_pixel,
}


def picture(seed: int, channels: int = 3, height: int = 5, width: int = 4) -> Tensor:
    return torch.rand((channels, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force(model: torch.nn.Module, pixel: Tensor, target: int | None, radius: float) -> bool:
    """Does any of many points on the sphere of this radius, or inside it, show another prediction?"""
    generator = torch.Generator().manual_seed(7)
    directions = torch.randn((200_000, pixel.shape[0]), generator=generator, dtype=torch.float64)
    directions = directions / directions.norm(dim=1, keepdim=True)
    lengths = torch.linspace(0.25, 1, 8, dtype=torch.float64).repeat(directions.shape[0] // 8)
    points = pixel + radius * lengths[:, None] * directions
    prediction = model(points.T[None, :, :, None])[0, :, :, 0].argmax(0)
    clean = int(model(pixel[None, :, None, None]).argmax(1))
    return bool((prediction == target).any() if target is not None else (prediction != clean).any())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", PIXELWISE)
def test_distances_of_single_pixels_agree_with_brute_force(name: str, seed: int) -> None:
    model = PIXELWISE[name](seed=seed)
    image = picture(seed, height=2, width=2)
    distances = {None: model.flip_distance(image), 2: model.flip_distance_to(image, 2)}
    for target, distance in distances.items():
        for i in range(4):
            row, col = divmod(i, 2)
            d = float(distance[row, col])
            if not 0 < d < math.inf:
                continue
            assert not brute_force(model, image[:, row, col], target, d * 0.9999)
            # a far and narrow wedge may hide between 200,000 directions
            if d < 1:
                assert brute_force(model, image[:, row, col], target, d * 1.1)


@pytest.mark.parametrize("seed", SEEDS)
def test_targeted_distances_bound_the_untargeted_one(seed: int) -> None:
    for make in (*PIXELWISE.values(), exact.affine_conv):
        model = make(seed=seed)
        image = picture(seed + 10)
        clean = model(image[None])[0].argmax(0)
        to = torch.stack([model.flip_distance_to(image, k) for k in range(4)])
        assert (to.gather(0, clean[None]) == 0).all()
        to.scatter_(0, clean[None], math.inf)
        torch.testing.assert_close(to.amin(0), model.flip_distance(image), rtol=1e-9, atol=1e-12)


def test_convolution_rows_include_the_border() -> None:
    model = exact.affine_conv(seed=3)
    image = picture(1, height=4, width=6)
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x[None])[0], image)
    torch.testing.assert_close(jacobian.reshape(4 * 24, 3 * 24), model.matrix(4, 6))
    y = model(image[None])[0].argmax(0)
    logits = model(image[None])[0]
    flat = jacobian.reshape(4, 4, 6, -1)
    expected = min(
        float((logits[y[0, 0], 0, 0] - logits[k, 0, 0]) / (flat[y[0, 0], 0, 0] - flat[k, 0, 0]).norm())
        for k in range(4)
        if k != int(y[0, 0])
    )
    assert float(model.flip_distance(image)[0, 0]) == pytest.approx(expected, rel=1e-12)
    assert model.lipschitz_joint(4, 6) == pytest.approx(float(torch.linalg.matrix_norm(model.matrix(4, 6), 2)))
    assert model.lipschitz_pixel(4, 6) < model.lipschitz_joint(4, 6)


@pytest.mark.parametrize("seed", SEEDS)
def test_gadgets_are_tight(seed: int) -> None:
    image = picture(seed)
    for model, factor, constant in (
        (exact.orthonormal_rows(seed=seed), math.sqrt(2), 1.0),
        (exact.opposite_rows(seed=seed), 2.0, math.sqrt(2)),
    ):
        top = model(image[None])[0].topk(2, dim=0).values
        torch.testing.assert_close(model.flip_distance(image), (top[0] - top[1]) / factor)
        assert model.lipschitz_joint(5, 4) == pytest.approx(constant, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_models_run_in_the_images_dtype(dtype: torch.dtype) -> None:
    for make in (*PIXELWISE.values(), exact.affine_conv):
        assert make()(picture(0)[None].to(dtype)).dtype == dtype
