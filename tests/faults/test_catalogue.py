"""The catalogue says the truth: unsound cases are unsound and sound ones sound, by proofs without attacks."""

import importlib
import pkgutil

import pytest
import torch
from torch import nn

from attackcheck import faults
from attackcheck.claims import LipschitzClaim
from attackcheck.faults import CATALOGUE, Case, Family
from attackcheck.faults.networks import (
    convolution,
    isometric,
    patches,
    pictures,
    random,
    unpatch,
)
from attackcheck.faults.norms import operator_norm, product_of_norms
from attackcheck.faults.proofs import expanded, flipped, jacobian

UNSOUND = [case for case in CATALOGUE if not case.sound]
SOUND = [case for case in CATALOGUE if case.sound]
PROVABLE = [case for case in SOUND if case.prove is not None]


def named(case):
    return case.name


def sample(cases, every):
    """Every so many of them by default, the others among the slow tests."""
    return [
        pytest.param(case, id=case.name, marks=[] if number % every == 0 else [pytest.mark.slow])
        for number, case in enumerate(cases)
    ]


def test_there_are_enough_and_each_says_what_is_wrong():
    assert len(UNSOUND) >= 40
    assert len(SOUND) >= 15
    assert sum(bool(case.knob) for case in UNSOUND) >= 20
    assert len({case.name for case in CATALOGUE}) == len(CATALOGUE)
    assert len({case.sentence for case in CATALOGUE}) == len(CATALOGUE)
    for case in CATALOGUE:
        assert len(case.sentence) > 20, case.name
        assert not case.sentence.endswith("."), case.name
        assert bool(case.knob) == (len(case.severities) > 1), case.name
    for family in Family:
        assert any(case.family is family for case in SOUND), family


def test_no_case_is_left_out_of_the_catalogue():
    for module in pkgutil.iter_modules(faults.__path__):
        inside = vars(importlib.import_module(f"attackcheck.faults.{module.name}")).values()
        for case in inside:
            if isinstance(case, Case):
                assert case in CATALOGUE, case.name


@pytest.mark.parametrize("case", sample(UNSOUND, 3))
def test_unsound_cases_are_unsound_at_their_mildest(case):
    built = case.build(0, case.severities[-1])
    assert case.prove(built).factor > 1.0


@pytest.mark.slow
@pytest.mark.parametrize("case", UNSOUND, ids=named)
def test_unsound_cases_are_unsound_at_all_severities_and_milder_ones_less_so(case):
    for seed in range(1, 4):
        factors = [case.prove(case.build(seed, severity)).factor for severity in case.severities]
        assert min(factors) > 1.0
        if case.family is not Family.NETWORK and case.name != "map-shifted":
            assert factors == sorted(factors, reverse=True)


@pytest.mark.parametrize("case", sample(PROVABLE, 4))
def test_sound_cases_are_sound(case):
    assert case.prove(case.build(0)).factor <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("case", PROVABLE, ids=named)
def test_sound_cases_are_sound_for_many_seeds(case):
    for seed in range(1, 6):
        assert case.prove(case.build(seed)).factor <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in SOUND if c.name not in ("large-image", "bfloat16-model")], ids=named)
def test_the_proofs_of_unsoundness_do_not_apply_to_sound_cases(case):
    for seed in range(2):
        built = case.build(seed)
        prove = expanded if isinstance(built.claim, LipschitzClaim) else flipped
        assert prove(built).factor <= 1.0 + 2e-6


@pytest.mark.parametrize("case", sample(CATALOGUE, 8))
def test_subjects_can_be_given_to_the_checker(case):
    built = case.build(3)
    assert isinstance(built.model, nn.Module)
    assert built.images.dtype is torch.float32
    assert float(built.images.min()) >= 0.0
    assert float(built.images.max()) <= 1.0
    again = case.build(3)
    assert torch.equal(built.images, again.images)
    assert all(torch.equal(a, b) for a, b in zip(built.model.parameters(), again.model.parameters(), strict=True))
    assert not torch.equal(built.images, case.build(4).images)


def test_the_isometry_around_a_layer_is_one():
    g = random(0, "test")
    images = pictures(g)
    model = isometric(images, g)
    assert product_of_norms(model, images[0]) == pytest.approx(1.0, abs=1e-6)
    _, rows = jacobian(model, images[0])
    assert float(torch.linalg.matrix_norm(rows, 2)) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("make", [patches, unpatch])
def test_norms_of_tiling_windows_are_those_of_the_explicit_matrix(make):
    g = random(1, "tiles")
    layer = make(4, g)
    with torch.no_grad():
        layer.weight += 0.1 * torch.randn(layer.weight.shape, generator=g)
    _, rows = jacobian(layer, torch.rand(4, 4, 4, generator=g))
    assert operator_norm(layer, (4, 4, 4)) == pytest.approx(float(torch.linalg.matrix_norm(rows, 2)), rel=1e-10)


def test_an_overlapping_convolution_is_not_taken_for_a_tiling_one():
    g = random(1, "tiles")
    layer = convolution(torch.randn(3, 3, 3, 3, generator=g), padding=1)
    _, rows = jacobian(layer, torch.rand(3, 5, 5, generator=g))
    assert operator_norm(layer, (3, 5, 5)) == pytest.approx(float(torch.linalg.matrix_norm(rows, 2)), rel=1e-10)
