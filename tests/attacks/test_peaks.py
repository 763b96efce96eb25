"""Ascent on single pixels' ratios against the exact norms of affine maps."""

import pytest
import torch
from torch import nn

import attackcheck as ac
from attackcheck import Kind
from attackcheck.attacks import Plan, Stage, lipschitz_peaks
from attackcheck.models import exact

SIZE = (8, 10)


def picture(seed, channels=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1, channels, *SIZE, generator=generator)


def bicubic(seed):
    """An orthonormal map of 2x2 blocks, then bicubic upsampling: some pixels' logits move further than others'."""
    rows = exact.orthonormal_rows(channels=12, seed=seed)
    return nn.Sequential(nn.PixelUnshuffle(2), rows, nn.Upsample(scale_factor=2, mode="bicubic")).double()


def largest_of_pixels(model, image):
    """Largest norm of a pixel's Jacobian, from the explicit matrix."""
    jacobian = torch.autograd.functional.jacobian(model, image.double())[0].flatten(3)  # (K, H, W, 1 * n)
    return float(torch.linalg.matrix_norm(jacobian.movedim(0, -2), 2).max())


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("make", [bicubic, lambda seed: exact.affine_conv(seed=seed).double()])
def test_the_steepest_pixel_of_an_affine_map_is_found(make, seed):
    model, image = make(seed), picture(seed)
    truth = largest_of_pixels(model, image)
    point = lipschitz_peaks(model, image.double(), steps=25)
    change = (model(point) - model(image.double())).norm(dim=1).max()
    ratio = float(change / (point - image).norm())
    assert 0.99 * truth <= ratio <= truth * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_a_claim_about_pixels_that_forgets_bicubic_overshoot_is_violated(seed):
    model, image = bicubic(seed).float(), picture(seed)
    truth = largest_of_pixels(model.double(), image)
    model.float()
    assert truth > 1.05
    plan = Plan("peaks", (Stage("peaks", "map"), Stage("linearised", pixels=1)))
    broken = ac.verify(model, image, ac.LipschitzClaim(0.98 * truth, "pixel"), plan=plan, pixels=2, audit=False)
    assert Kind.LIPSCHITZ in {violation.kind for violation in broken.violations}
    sound = ac.verify(model, image, ac.LipschitzClaim(truth, "pixel"), plan=plan, pixels=2, audit=False)
    assert sound.sound


def test_rows_are_independent_and_more_places_than_pixels_are_as_many_as_there_are():
    model, images = exact.affine_conv(seed=1).double(), torch.cat([picture(0), picture(1)]).double()
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    both = lipschitz_peaks(model, images, generator=generators, places=1000, steps=2)
    alone = lipschitz_peaks(model, images[1:], generator=[torch.Generator().manual_seed(4)], places=1000, steps=2)
    torch.testing.assert_close(both[1:], alone, rtol=1e-9, atol=1e-12)
