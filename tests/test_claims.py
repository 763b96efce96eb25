"""Claims against closed forms: a radius never exceeds the flip distance, and equals it where the bound is tight."""

import math

import numpy as np
import pytest
import torch

from attackcheck import ClassPairClaim, InputError, LipschitzClaim, RadiusClaim
from attackcheck.claims import margins
from attackcheck.models import exact

MODELS = {
    "affine pixel": exact.affine_pixel,
    "affine convolution": exact.affine_conv,
    "folded": exact.folded_pixel,
    "relu": exact.relu_pixel,
    "orthonormal": exact.orthonormal_rows,
    "opposite": exact.opposite_rows,
}


def picture(seed, size=6):
    return torch.rand((1, 3, size, size), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_margin_is_the_gap_between_the_two_largest_logits_and_zero_at_a_tie():
    logits = torch.tensor([3.0, 1.0, 2.5]).reshape(1, 3, 1, 1)
    assert margins(logits).item() == 0.5
    assert margins(torch.tensor([2.0, 1.0, 2.0]).reshape(1, 3, 1, 1)).item() == 0.0


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("scope", ["joint", "pixel"])
@pytest.mark.parametrize("seed", range(5))
def test_radius_never_exceeds_the_closed_form_distance(name, scope, seed):
    model, image = MODELS[name](seed=seed), picture(seed)
    constant = getattr(model, f"lipschitz_{scope}")(6, 6)
    radius = LipschitzClaim(constant, scope).radii(image, model(image), None)[0]
    distance = model.flip_distance(image[0])
    assert (radius <= distance * (1 + 1e-9)).all()


@pytest.mark.parametrize("name", ["orthonormal", "opposite"])
def test_radius_equals_the_distance_on_tight_gadgets(name):
    model, image = MODELS[name](seed=3), picture(3)
    radius = LipschitzClaim(model.lipschitz_pixel(6, 6), "pixel").radii(image, model(image), None)[0]
    torch.testing.assert_close(radius, model.flip_distance(image[0]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_class_pair_radius_is_the_exact_distance_of_an_affine_model_when_pairs_are_taken_alone(seed):
    model, image = exact.affine_pixel(classes=2, seed=seed), picture(seed)
    radius = ClassPairClaim(1.0, model.weight).radii(image, model(image), None)[0]
    torch.testing.assert_close(radius, model.flip_distance(image[0]), rtol=1e-9, atol=1e-12)


def test_class_pair_radius_takes_the_minimum_over_all_classes_not_the_runner_up():
    rows = torch.tensor([[1.0, 0.0], [0.9, 0.0], [-5.0, 0.0]])  # the far class 2 has a much longer row difference
    logits = torch.tensor([1.0, 0.0, -0.5]).reshape(1, 3, 1, 1)
    radius = ClassPairClaim(1.0, rows).radii(torch.zeros(1, 2, 1, 1), logits, None).item()
    assert radius == pytest.approx(1.5 / 6.0)  # 1.5 / ||w0 - w2||, less than 1.0 / ||w0 - w1|| = 10


def test_a_tie_of_two_classes_has_radius_0():
    rows = torch.eye(3)
    logits = torch.tensor([1.0, 0.0, 1.0]).reshape(1, 3, 1, 1)
    for claim in (ClassPairClaim(1.0, rows), LipschitzClaim(1.0)):
        assert claim.radii(torch.zeros(1, 3, 1, 1), logits, None).item() == 0.0


def test_two_disjoint_pixels_share_one_budget():
    model, image = exact.orthonormal_rows(seed=1), picture(1, size=2)
    claim = LipschitzClaim(1.0, "joint")
    radius = claim.radii(image, model(image), None)[0]
    joint = claim.joint_factor * radius.flatten()[:2].norm()
    distance = model.flip_distance(image[0]).flatten()[:2]
    assert joint.item() == pytest.approx(math.sqrt(float(distance.square().sum())), rel=1e-9)


@pytest.mark.parametrize("factor", [1e-6, 3.0, 1e4])
def test_radius_is_unchanged_when_logits_and_constant_are_scaled_together(factor):
    model, image = exact.affine_pixel(seed=2), picture(2)
    logits = model(image)
    plain = LipschitzClaim(2.0).radii(image, logits, None)
    scaled = LipschitzClaim(2.0 * factor).radii(image, logits * factor, None)
    torch.testing.assert_close(plain, scaled, rtol=1e-12, atol=0)


def test_a_smaller_pixel_constant_gives_larger_radii_but_the_same_joint_distance():
    logits = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    joint, both = LipschitzClaim(2.0), LipschitzClaim(2.0, pixel=1.0)
    image = torch.zeros(1, 3, 3, 3)
    torch.testing.assert_close(both.radii(image, logits, None), 2 * joint.radii(image, logits, None))
    assert both.joint_factor == 0.5


def test_expansions_measure_movement_against_the_constant():
    change = torch.zeros(2, 3, 2, 2, dtype=torch.float64)
    change[0, 0, 0, 0], change[0, 1, 1, 1] = 3.0, 4.0  # joint norm 5, largest pixel norm 4
    distance = torch.tensor([2.0, 1.0], dtype=torch.float64)
    assert LipschitzClaim(2.0, "joint").expansions(change, distance).tolist() == [1.25, 0.0]
    assert LipschitzClaim(2.0, "pixel").expansions(change, distance).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, "1", None])
def test_a_constant_that_is_not_positive_and_finite_is_refused(value):
    with pytest.raises(InputError, match="positive, finite"):
        LipschitzClaim(value)


def test_claims_refuse_what_they_cannot_mean():
    with pytest.raises(InputError, match="scope"):
        LipschitzClaim(1.0, "image")
    with pytest.raises(InputError, match="at most the joint constant"):
        LipschitzClaim(1.0, pixel=2.0)
    with pytest.raises(InputError, match="NaN"):
        RadiusClaim(np.full((1, 2, 2), np.nan))
    with pytest.raises(InputError, match="at least 0"):
        RadiusClaim(np.full((1, 2, 2), -1.0))
    with pytest.raises(InputError, match="shape"):
        RadiusClaim(np.zeros((2, 2)))
    with pytest.raises(InputError, match="shape"):
        RadiusClaim(np.zeros((1, 2, 2))).radii(torch.zeros(1, 3, 3, 3), torch.zeros(1, 2, 3, 3), 0)
    with pytest.raises(InputError, match="image 1"):
        RadiusClaim(np.zeros((1, 3, 3))).radii(torch.zeros(1, 3, 3, 3), torch.zeros(1, 2, 3, 3), 1)


@pytest.mark.parametrize("size", [1e-30, 1e-22, 1e-10, 1.0, 1e20])
@pytest.mark.parametrize("claim", [LipschitzClaim(2.0), LipschitzClaim(2.0, pixel=1.5), LipschitzClaim(2.0, "pixel")])
def test_expansions_of_movements_of_any_size_in_float32_are_those_of_real_numbers(claim, size):
    change = (size * torch.randn(3, 4, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).float()
    distance = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    exact = change.double()
    whole = exact.flatten(1).norm(dim=1) / (claim.lipschitz * distance)
    alone = exact.norm(dim=1).flatten(1).amax(dim=1) / (claim.pixel_constant * distance)
    expected = torch.maximum(whole, alone) if claim.scope == "joint" else alone
    assert torch.allclose(claim.expansions(change, distance), expected, rtol=1e-6, atol=0.0)
