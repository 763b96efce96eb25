"""Leaps to boundaries that no ray from the image leads to."""

import pytest
import torch
from torch import Tensor, nn

from attackcheck.attacks import PixelFlip, linearised
from attackcheck.attacks._lagrangian import Leap
from attackcheck.attacks._rows import Noise


def picture(seed: int, side: int = 6) -> Tensor:
    return torch.rand((3, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["double", "single"])
@pytest.mark.parametrize("unit", [1e-30, 5e-7, 1.0, 1e6])
@pytest.mark.parametrize("loss", [0.0, 1e-30, 1.0, 1e30])
def test_leaps_ask_for_finite_points_only(loss: float, unit: float, dtype: torch.dtype) -> None:
    """Ties, slopes of zero, margins and distances of any size, and logits that are not finite far away."""
    images = torch.stack([picture(0), picture(1), picture(2)]).to(dtype)
    largest = 0.0

    def model(x: Tensor) -> Tensor:
        nonlocal largest
        assert torch.isfinite(x).all()
        largest = max(largest, float((x - images).detach().abs().max()))
        s = (x - images).sum((1, 2, 3))[:, None, None, None]
        dead = torch.tensor([1.0, 0.0, 1.0], dtype=dtype).reshape(-1, 1, 1, 1)  # the second row has no gradient
        odd = torch.tensor([0.0, 0.0, torch.nan], dtype=dtype).reshape(-1, 1, 1, 1)  # the third gets lost
        rival = s * dead - loss + torch.where(s.abs() > unit, odd, 0)
        return torch.cat([torch.zeros_like(rival), rival, rival - 1], 1).expand(-1, -1, 6, 6)

    where = torch.tensor([1, 2, 3])
    objective = PixelFlip(where, where).bind(model(images))
    distance, start = torch.full((3,), unit, dtype=dtype), torch.full((3,), loss, dtype=dtype)
    noise = Noise(images, None)
    walk = Leap.of(images, distance, start, 4 * distance / unit, torch.full_like(distance, 30))
    walk = walk.gone(model, images, objective, range(30), box=None, noise=noise)
    points, norm = walk.best, walk.norm
    assert torch.isfinite(points).all()
    assert largest > 0 or unit < 1e-6  # less than float32 can add to an image
    assert torch.equal(torch.isfinite(norm), (points != images).flatten(1).any(1))


class Hidden(nn.Module):
    """A boundary straight ahead at distance 1, and a nearer one that no gradient shows near the image or the first."""

    def __init__(self, near: float, hint: float) -> None:
        super().__init__()
        self.near = near
        sign = torch.randint(2, (108,), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
        sign[0] = 0
        ahead = hint * sign  # all that the way ahead has of the way to the side
        ahead[0] = 1
        self.side, self.ahead = sign / sign.norm(), ahead / ahead.norm()

    def forward(self, images: Tensor) -> Tensor:
        delta = (images - 0.5).flatten(1)
        ahead, side = delta @ self.ahead, delta @ self.side
        first = torch.where(ahead < 0.5, ahead, 0.5 + 3 * (ahead - 0.5)) - 2
        second = torch.where(side < 0.3, 0.01 * ahead - 4, 6 * (side - self.near))
        logits = torch.stack([torch.zeros_like(first), first, second], 1)
        return logits[:, :, None, None].expand(-1, -1, 6, 6)


@pytest.mark.parametrize("near", [0.5, 0.7])
@pytest.mark.parametrize("hint", [0.03, 0.05])
def test_leaps_find_the_boundary_that_rays_and_crossings_cannot_see(near: float, hint: float) -> None:
    images, where = torch.full((2, 3, 6, 6), 0.5, dtype=torch.float64), torch.tensor([1, 2])
    model, objective = Hidden(near, hint), PixelFlip(where, where)
    options = {"rays": 2, "search": 2, "refine": 4, "crossings": 3}
    for leaps, least, most in (((), 1.0, 1.001), ((300, 200, 100), near, 1.005 * near)):
        found = linearised(model, images, objective, leaps=leaps, **options)  # type: ignore[arg-type]
        distance = (found - images).flatten(1).norm(dim=1)
        assert (model(found)[:, :, 0, 0].argmax(1) != 0).all()
        assert ((distance >= least) & (distance <= most)).all()
