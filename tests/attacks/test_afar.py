"""Gradients seen from afar lead to boundaries that no gradient near the image shows."""

import pytest
import torch
from torch import Tensor, nn

from attackcheck.attacks import PixelFlip, linearised
from attackcheck.attacks._afar import look_from_afar
from attackcheck.attacks._newton import outlook
from attackcheck.attacks._rows import Noise
from attackcheck.attacks.plans import plan

WHERE = torch.tensor([1, 2])


def signs() -> Tensor:
    return torch.randint(2, (108,), generator=torch.Generator().manual_seed(0)).double() * 2 - 1


class Aside(nn.Module):
    """A boundary straight ahead at distance 1, and one to the side at `near`, of a class whose logit is constant where
    the image is; ahead are one value of the image and a little of all others, to the side all others alike."""

    def __init__(self, near: float) -> None:
        super().__init__()
        self.near = near
        ahead, side = 0.02 * signs(), signs()
        ahead[0], side[0] = 1, 0
        self.ahead, self.side = ahead / ahead.norm(), side / side.norm()

    def forward(self, images: Tensor) -> Tensor:
        delta = (images - 0.5).flatten(1)
        ahead, side = delta @ self.ahead, delta @ self.side
        second = torch.where(side < 0.25, -4, 6 * (side - self.near))
        logits = torch.stack([torch.zeros_like(ahead), ahead - 1, second], 1)
        return logits[:, :, None, None].expand(-1, -1, 6, 6)


@pytest.mark.parametrize("near", [0.4, 0.6, 0.9])
def test_scouts_find_a_boundary_that_rays_of_all_classes_miss(near: float) -> None:
    images = torch.full((2, 3, 6, 6), 0.5, dtype=torch.float64)
    model, objective = Aside(near), PixelFlip(WHERE, WHERE)
    for scouts, truth in ((0, 1.0), (3, near), (12, near)):
        found = linearised(model, images, objective, rays=2, search=1, refine=4, scouts=scouts)
        assert (found - images).flatten(1).norm(dim=1).tolist() == pytest.approx([truth] * 2, rel=2e-3)
        assert (model(found)[:, :, 0, 0].argmax(1) != 0).all()


@pytest.mark.parametrize("name", ["standard", "thorough"])
def test_plans_send_scouts(name: str) -> None:
    """Without the leaps and crossings that might find the boundary as well."""
    images = torch.full((2, 3, 6, 6), 0.5, dtype=torch.float64)
    for stage in plan(name).stages:
        if stage.attack == "linearised" and stage.objective == "pixel":
            options = {key: value for key, value in stage.options.items() if key not in ("leaps", "crossings")}
            found = linearised(Aside(0.6), images, PixelFlip(WHERE, WHERE), **options)  # type: ignore[arg-type]
            assert (found - images).flatten(1).norm(dim=1).tolist() == pytest.approx([0.6] * 2, rel=2e-3)


class Cone(nn.Module):
    """The margin is the distance from a point, so that its gradient tells from where it was seen."""

    def __init__(self, centre: Tensor) -> None:
        super().__init__()
        self.centre = centre

    def forward(self, images: Tensor) -> Tensor:
        far = (images - self.centre).flatten(1).norm(dim=1) - 0.5
        return torch.stack([far, torch.zeros_like(far)], 1)[:, :, None, None].expand(-1, -1, 6, 6)


def test_places_are_eight_or_sixteen_linearised_distances_away() -> None:
    generator = torch.Generator().manual_seed(1)
    images, centre = (torch.rand((n, 3, 6, 6), generator=generator, dtype=torch.float64) for n in (2, 1))
    model, noise = Cone(centre), Noise(images, None)
    view = outlook(model, images, PixelFlip(WHERE, WHERE), 6, noise)
    count = 0

    def counted(x: Tensor) -> Tensor:
        nonlocal count
        count += len(x)
        return model(x)  # type: ignore[no-any-return]

    wider = look_from_afar(counted, images, view, 2, 3, None, noise)
    assert count == 2 * 3
    assert len(wider.direction) == len(wider.loss) == len(wider.distance) == 1 + 3  # of two classes one is nearest
    ahead = view.direction[0]
    aside = ahead.sign() / 108**0.5
    for seen, way, times in zip(wider.direction[1:], (aside, ahead, aside), (-8, 16, 8), strict=True):
        point = images + times * view.distance[0][:, None, None, None] * way
        down = centre - point
        assert torch.allclose(seen, down / down.flatten(1).norm(dim=1)[:, None, None, None])
    assert torch.allclose(wider.distance[1:], 1.2 * view.distance[:1])


def test_without_scouts_nothing_is_looked_at() -> None:
    images = torch.full((2, 3, 6, 6), 0.5, dtype=torch.float64)
    noise = Noise(images, None)
    view = outlook(Aside(0.6), images, PixelFlip(WHERE, WHERE), 6, noise)
    assert look_from_afar(nn.Identity(), images, view, 2, 0, None, noise) is view


def test_places_stay_in_the_box() -> None:
    images = torch.full((2, 3, 6, 6), 0.5, dtype=torch.float64)
    model, noise = Aside(0.6), Noise(images, None)
    view = outlook(model, images, PixelFlip(WHERE, WHERE), 6, noise)
    seen: list[Tensor] = []

    def watched(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return model(x)  # type: ignore[no-any-return]

    look_from_afar(watched, images, view, 1, 12, (0.0, 1.0), noise)
    assert 0 <= float(seen[0].min()) < float(seen[0].max()) <= 1
