"""The Lipschitz ascent from one point: affine maps, folds, rows apart."""

import pytest
import torch
from torch import Tensor

from attackcheck.attacks import lipschitz_ascent
from attackcheck.models import exact


def picture(seed: int, side: int = 6) -> Tensor:
    return torch.rand((3, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
@pytest.mark.parametrize("seed", range(3))
def test_lipschitz_ascent_reaches_the_norm_of_an_affine_map(seed: int, dtype: torch.dtype) -> None:
    for model in (
        exact.affine_conv(seed=seed),
        exact.affine_conv(classes=7, kernel=5, seed=seed),
        exact.affine_pixel(seed=seed),
    ):
        truth = model.lipschitz_joint(8, 8)
        images = torch.stack([picture(s, 8) for s in range(2)]).to(dtype)
        found = lipschitz_ascent(model, images, steps=60).double()
        change = (model(found) - model(images.double())).flatten(1).norm(dim=1)
        ratio = change / (found - images.double()).flatten(1).norm(dim=1)
        assert (ratio <= truth * (1 + 1e-9)).all()
        assert (ratio >= truth * 0.99).all()


def test_lipschitz_ascent_of_a_folded_model_crosses_folds() -> None:
    model = exact.folded_pixel(seed=0)
    images = picture(3)[None]
    found = lipschitz_ascent(model, images, radii=(0.01, 0.3), steps=60)
    ratio = (model(found) - model(images)).norm() / (found - images).norm()
    assert 0.99 * model.lipschitz_joint(6, 6) <= float(ratio) <= model.lipschitz_joint(6, 6) * (1 + 1e-9)


def test_lipschitz_ascent_keeps_rows_apart_and_the_box() -> None:
    model = exact.affine_conv(seed=4)
    images = torch.stack([picture(s) for s in range(3)])

    def run(part: slice) -> Tensor:
        generators = [torch.Generator().manual_seed(seed) for seed in range(3)[part]]
        return lipschitz_ascent(model, images[part], steps=20, generator=generators, box=(0.0, 1.0))

    together = run(slice(0, 3))
    assert together.min() >= 0
    assert together.max() <= 1
    for i in range(3):
        torch.testing.assert_close(run(slice(i, i + 1)), together[i : i + 1], rtol=0, atol=1e-12)


def test_lipschitz_ascent_of_a_constant_map_is_finite() -> None:
    found = lipschitz_ascent(lambda x: 0 * x[:, :2], picture(0)[None], steps=5)
    assert torch.isfinite(found).all()
