"""The plugin, the strategies and the shrinking: failures that come back, are shown in full, and are small."""

import re
import shlex
import subprocess
import sys

import pytest
import torch
from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as hst
from torch import nn

import attackcheck as ac
from attackcheck import strategies as st
from attackcheck.cli import main
from attackcheck.counterexample import Outcome, load_counterexample
from attackcheck.errors import InputError
from attackcheck.models import exact
from attackcheck.shrinking import changed_pixels, shrink
from attackcheck.testing import assert_certificate_holds, assert_lipschitz, disturb

IMAGES = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
FEW = settings(max_examples=15, suppress_health_check=list(HealthCheck))


def tight():
    return exact.orthonormal_rows(seed=1).float()


# Shown in full --------------------------------------------------------------------------------------------------------


def test_a_failure_shows_a_table_the_replay_and_the_worst_one_made_small(tmp_path, monkeypatch):
    with pytest.raises(AssertionError) as caught:
        assert_certificate_holds(tight(), IMAGES, ac.LipschitzClaim(0.8), pixels=4, counterexamples=tmp_path)
    text = str(caught.value)
    assert "PIXEL" in text
    assert "1.25" in text
    small = re.search(r"Made small: (\d+) changed pixels? in an image of (\d+)x(\d+)", text)
    assert small is not None
    assert small.groups() == ("1", "1", "1")  # a 1x1 convolution needs no neighbours
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text("from attackcheck.models import exact\n\ndef make():\n    return ")
    with (tmp_path / "net.py").open("a") as file:
        file.write("exact.orthonormal_rows(seed=1).float()\n")
    command = next(line for line in text.splitlines() if "attackcheck replay" in line)
    command = command.replace("FILE.py:NAME", "net.py:make")
    assert main(shlex.split(command)[1:]) == 1


def test_what_holds_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    report = assert_certificate_holds(tight(), IMAGES, ac.LipschitzClaim(1.0), pixels=4)
    assert report.sound
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kernel", [1, 3])
def test_shrinking_keeps_the_claim_broken(tmp_path, kernel):
    model = exact.affine_conv(kernel=kernel, seed=2).float()
    claim = ac.LipschitzClaim(model.lipschitz_joint(8, 8) / 1.5)
    report = ac.verify(model, IMAGES, claim, plan="quick", pixels=4, counterexamples=tmp_path, audit=False)
    for violation in report.violations[:2]:
        example = load_counterexample(violation.counterexample)
        small = shrink(example, model)
        again = ac.replay(small, model)
        assert again.outcome is Outcome.REPRODUCED
        assert changed_pixels(small) <= changed_pixels(example)
        assert max(small.clean.shape[1:]) <= max(example.clean.shape[1:])
        assert shrink(example, model, crop=False).clean.shape == example.clean.shape
        if kernel == 1:
            assert (changed_pixels(small), tuple(small.clean.shape[1:])) == (1, (1, 1))
    with pytest.raises(InputError, match="does not"):
        shrink(example, model, ac.LipschitzClaim(100.0))


# Norms of layers ------------------------------------------------------------------------------------------------------


def test_norms_of_layers_are_asserted():
    conv = nn.Conv2d(3, 4, 3, padding=1)
    report = ac.audit(conv, ac.LipschitzClaim(100.0), (3, 5, 7))
    assert assert_lipschitz(conv, report.bound * 1.0001, (3, 5, 7), prove=True).bound == pytest.approx(report.bound)
    with pytest.raises(AssertionError, match=r"Conv2d on inputs of shape \(3, 5, 7\) is not .*-Lipschitz; at least"):
        assert_lipschitz(conv, report.bound / 1.02, (3, 5, 7))
    assert_lipschitz(nn.Upsample(scale_factor=2), 1.0, (3, 4, 4), scope="pixel", prove=True)
    with pytest.raises(AssertionError):
        assert_lipschitz(nn.Upsample(scale_factor=2), 1.9, (3, 4, 4))
    with pytest.raises(InputError, match="scope"):
        assert_lipschitz(conv, 1.0, (3, 4, 4), scope="both")


def test_disturbing_moves_a_copy():
    conv = nn.Conv2d(3, 4, 1)
    before = conv.weight.detach().clone()
    assert torch.equal(disturb(conv, 1).weight, disturb(conv, 1).weight)
    assert not torch.equal(disturb(conv, 1).weight, disturb(conv, 2).weight)
    assert torch.equal(conv.weight, before)
    assert torch.equal(disturb(conv, 1, scale=0.0).weight, before)


# Strategies -----------------------------------------------------------------------------------------------------------


@FEW
@given(image=st.images(channels=2, batch=2, height=(2, 6), width=(4, 9), multiple=2))
def test_images_are_images(image):
    assert image.dtype == torch.float32
    assert image.shape[:2] == (2, 2)
    assert image.shape[2] in (2, 4, 6)
    assert image.shape[3] in (4, 6, 8)
    assert 0 <= float(image.min()) <= float(image.max()) <= 1


@FEW
@given(delta=st.perturbations((2, 3, 4, 5), largest=0.7), mask=st.regions(4, 5))
def test_perturbations_and_regions(delta, mask):
    assert delta.shape == (2, 3, 4, 5)
    assert float(delta.double().flatten(1).norm(dim=1).max()) <= 0.7
    assert mask.shape == (4, 5)
    assert mask.any()


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(made=hst.integers(1, 4).flatmap(lambda channels: hst.tuples(hst.just(channels), st.layers(channels, stride=2))))
def test_the_constant_of_a_layer_holds(made):
    channels, layer = made
    report = ac.audit(layer.module, ac.LipschitzClaim(layer.lipschitz), (channels, 4, 6), steps=0)
    assert report.bound is not None
    assert report.bound <= layer.lipschitz * (1 + 1e-9)
    assert layer.module(torch.rand(1, channels, 4, 6)).shape[1] == layer.channels


@settings(max_examples=8, suppress_health_check=list(HealthCheck))
@given(network=st.networks(channels=2, classes=3))
def test_the_constant_of_a_network_holds(network):
    shape = (2, 2 * network.stride, network.stride)
    assert network.module(torch.rand(1, *shape)).shape == (1, 3, *shape[1:])
    assert_lipschitz(network.module, network.lipschitz, shape, prove=True, steps=0)


def test_failures_shrink_to_something_small():
    options = settings(max_examples=200, phases=[Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck))
    assert find(st.images(), lambda _: True, settings=options).shape == (1, 3, 1, 1)
    bright = find(st.images(), lambda image: float(image.max()) == 1.0, settings=options)
    assert bright.shape == (1, 3, 1, 1)
    moved = find(st.perturbations((1, 3, 6, 6)), lambda delta: bool((delta != 0).any()), settings=options)
    assert int((moved != 0).any(dim=1).sum()) == 1
    assert len(find(st.networks(), lambda _: True, settings=options).module) == 1


# The plugin -----------------------------------------------------------------------------------------------------------

SUITE = """
import sys
import attackcheck as ac

def test_no_torch_until_it_is_used():
    assert "torch" not in sys.modules

def test_certificate(certificate, attackcheck_generator, attackcheck_seed):
    import torch
    assert attackcheck_generator.initial_seed() == attackcheck_seed
    images = torch.rand(1, 3, 8, 8, generator=attackcheck_generator)
    report = certificate(torch.nn.Identity(), images, ac.LipschitzClaim(1.0), pixels=4)
    assert (report.plan, report.seed) == ({plan!r}, {seed})

def test_broken(certificate):
    import torch
    certificate(torch.nn.Identity(), torch.rand(1, 3, 4, 4), ac.LipschitzClaim(0.7), pixels=2)
"""


@pytest.mark.parametrize(("plan", "seed"), [("mine.toml", 7), pytest.param("quick", 0, marks=pytest.mark.slow)])
def test_the_plugin(tmp_path, plan, seed):
    (tmp_path / "conftest.py").write_text('pytest_plugins = ["attackcheck.pytest_plugin"]\n')
    (tmp_path / "mine.toml").write_text('name = "mine.toml"\n[[stage]]\nattack = "linearised"\n')
    (tmp_path / "test_it.py").write_text(SUITE.format(plan=plan, seed=seed))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:hypothesispytest",
        str(tmp_path),
    ]
    options = ["--attackcheck-plan", plan, "--attackcheck-seed", str(seed), "--attackcheck-out", "found"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "1 failed, 2 passed" in done.stdout, done.stdout
    assert "attackcheck replay found/" in done.stdout
    assert "Made small: 1 changed pixel in" in done.stdout
    assert list((tmp_path / "found").glob("*.npz"))
