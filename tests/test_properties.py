"""Soundness as properties: sound claims hold on anything hypothesis draws, inflated ones are caught."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import nn

import attackcheck as ac
from attackcheck.attacks.plans import Plan, Stage
from attackcheck.models import exact
from attackcheck.testing import assert_certificate_holds

AFFINE = [exact.affine_pixel, exact.affine_conv, exact.orthonormal_rows, exact.opposite_rows]
PIECEWISE = [exact.folded_pixel, exact.relu_pixel]
PLAN = Plan(
    "properties",
    (
        Stage("linearised"),
        Stage("linearised", objective="region"),
        Stage("lipschitz", objective="map", options={"steps": 80}),
    ),
)

seeds = st.integers(0, 10_000)
sides = st.integers(1, 6)


def pictures(seed, height, width):
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


@given(
    make=st.sampled_from(AFFINE + PIECEWISE),
    seed=seeds,
    height=sides,
    width=sides,
    scope=st.sampled_from(["joint", "pixel"]),
)
@hypothesis_settings(max_examples=60)
def test_exact_constants_hold(make, seed, height, width, scope):
    model = make(seed=seed).float().eval()
    claim = ac.LipschitzClaim(getattr(model, f"lipschitz_{scope}")(height, width), scope)
    images = pictures(seed, height, width)
    if not bool((claim.radii(images, model(images), 0) > 0).any()):
        return
    assert_certificate_holds(model, images, claim, plan=PLAN, pixels=6, seed=seed)


@given(make=st.sampled_from(AFFINE), seed=seeds, side=st.integers(2, 5), percent=st.floats(3.0, 50.0))
@hypothesis_settings(max_examples=40)
def test_inflated_constants_are_caught(make, seed, side, percent):
    model = make(seed=seed).float().eval()
    claim = ac.LipschitzClaim(model.lipschitz_joint(side, side) / (1 + percent / 100))
    with pytest.raises(AssertionError, match="VIOLATED"):
        assert_certificate_holds(model, pictures(seed, side, side), claim, plan=PLAN, pixels=6, seed=seed)


@given(make=st.sampled_from(AFFINE), seed=seeds, side=st.integers(2, 5), factor=st.floats(1.001, 3.0))
@hypothesis_settings(max_examples=40)
def test_exact_radii_hold_and_inflated_ones_are_caught_at_every_pixel(make, seed, side, factor):
    model = make(seed=seed).float().eval()
    images = pictures(seed, side, side)
    truth = model.double().flip_distance(images[0].double())[None]
    model = model.float()
    assert_certificate_holds(model, images, ac.RadiusClaim(truth * (1 - 1e-5)), pixels="all", seed=seed)
    report = ac.verify(model, images, ac.RadiusClaim(truth * factor), attacks=["linearised"], pixels="all", seed=seed)
    assert len(report.violations) >= 0.99 * side * side


class SmallLipschitz(nn.Module):
    """Orthogonal 1x1 layers and MaxMin: exactly 1-Lipschitz."""

    def __init__(self, seed, width=6, depth=3, classes=4):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        sizes = [3] + [width] * depth + [classes]
        self.weights = nn.ParameterList(
            torch.linalg.qr(torch.randn(max(a, b), min(a, b), generator=generator, dtype=torch.float64))[0].reshape(
                max(a, b), min(a, b)
            )
            for a, b in itertools.pairwise(sizes)
        )

    def forward(self, x):
        for i, weight in enumerate(self.weights):
            kernel = weight if weight.shape[1] == x.shape[1] else weight.T
            x = torch.einsum("oc,bchw->bohw", kernel.to(x), x)
            if i + 1 < len(self.weights):
                first, second = x.chunk(2, dim=1)
                x = torch.cat([torch.maximum(first, second), torch.minimum(first, second)], dim=1)
        return x


@given(seed=seeds, height=sides, width=sides)
@hypothesis_settings(max_examples=30)
def test_small_lipschitz_networks_hold(seed, height, width):
    images = pictures(seed + 1, height, width)
    assert_certificate_holds(
        SmallLipschitz(seed).eval(), images, ac.LipschitzClaim(1.0), plan=PLAN, pixels=4, seed=seed
    )


@given(seed=seeds, side=st.integers(2, 4))
@hypothesis_settings(max_examples=20)
def test_small_lipschitz_networks_with_a_quarter_of_their_constant_are_caught(seed, side):
    images = pictures(seed + 1, side, side)
    with pytest.raises(AssertionError, match="VIOLATED"):
        assert_certificate_holds(
            SmallLipschitz(seed).eval(), images, ac.LipschitzClaim(0.25), plan=PLAN, pixels=4, seed=seed
        )


def test_the_assertion_names_the_violation_and_an_empty_check_fails():
    model = exact.orthonormal_rows(seed=1).float()
    with pytest.raises(AssertionError, match=r"PIXEL +0 \d, \d .* VIOLATED"):
        assert_certificate_holds(model, pictures(0, 3, 3), ac.LipschitzClaim(0.5))
    with pytest.raises(AssertionError, match="no pixel was attacked"):
        assert_certificate_holds(model, pictures(0, 3, 3), ac.RadiusClaim(torch.zeros(1, 3, 3)))
