"""Bisection along segments."""

import torch
from torch import Tensor

from attackcheck.attacks import PixelFlip, bisect
from attackcheck.models import exact


def picture(seed: int) -> Tensor:
    return torch.rand((3, 4, 4), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_successful_rows_end_on_the_near_side_of_the_boundary_and_others_stay() -> None:
    model = exact.affine_conv(seed=0)
    images = torch.stack([picture(seed) for seed in range(8)])
    rows, cols = torch.arange(8) % 4, torch.arange(8) // 2 % 4
    far = images + torch.stack([picture(seed + 100) - 0.5 for seed in range(8)]) * 2
    index = torch.arange(8)

    def predictions(x: Tensor) -> Tensor:
        return model(x)[index, :, rows, cols].argmax(1)

    success = predictions(far) != predictions(images)
    assert 0 < int(success.sum()) < 8
    found = bisect(model, images, far, PixelFlip(rows, cols), steps=12)
    assert torch.equal(found[~success], far[~success])
    assert (predictions(found) != predictions(images))[success].all()
    # on the segment, and not flipped any more a 2^-12 of it further back
    part = (found - images).flatten(1).norm(dim=1) / (far - images).flatten(1).norm(dim=1)
    torch.testing.assert_close(found, torch.lerp(images, far, part[:, None, None, None]))
    back = torch.lerp(images, far, (part - 1.01 * 2.0**-12)[:, None, None, None])
    assert (predictions(back) == predictions(images))[success & (part > 2.0**-12)].all()


def test_a_bound_objective_gives_the_same() -> None:
    model, images = exact.affine_pixel(seed=1), picture(0)[None]
    far = images + 2
    objective = PixelFlip(torch.tensor([1]), torch.tensor([1]))
    assert torch.equal(bisect(model, images, far, objective), bisect(model, images, far, objective.bind(model(images))))
