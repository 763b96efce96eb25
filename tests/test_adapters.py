"""The examples hold as they stand, and each stops holding once its norm is left out."""

import json
import math
from importlib import util
from pathlib import Path

import numpy as np
import pytest
import torch

import attackcheck as ac
from attackcheck.attacks.plans import Plan, Stage
from attackcheck.cli import main

EXAMPLES = Path(__file__).parents[1] / "examples"
PLAN = Plan("both", (Stage("linearised"), Stage("lipschitz", objective="map", options={"steps": 30})))


def imported(name):
    spec = util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ADAPTERS = imported("adapters")
IMAGES = torch.rand(1, 3, 8, 12, generator=torch.Generator().manual_seed(0))  # not square


def smaller(claim, factor):
    pixel = None if claim.pixel is None else claim.pixel / factor
    return ac.LipschitzClaim(claim.lipschitz / factor, pixel=pixel)


@pytest.mark.parametrize("case", ADAPTERS.CASES, ids=lambda case: case.__name__)
def test_an_adapter_holds_and_a_smaller_constant_does_not(case):
    model, claim = case()
    report = ac.verify(model, IMAGES, claim, plan=PLAN, pixels=8)
    assert report.sound, report.violations
    assert report.attacked_count == 8
    # without_void cuts a channel off: the norm of what is left is 0.916 of the constant
    room = 1.12 if case is ADAPTERS.without_void else 1.05
    assert not ac.verify(model, IMAGES, smaller(claim, room), plan=PLAN, pixels=8).sound
    model.double()(IMAGES.double())


def test_a_norm_that_is_forgotten_is_found():
    wrong = {
        ADAPTERS.low_resolution: ac.LipschitzClaim(0.5),
        ADAPTERS.one_class: ac.LipschitzClaim(0.5),
        ADAPTERS.normalised: ac.LipschitzClaim(1.0),
        ADAPTERS.grey: ac.LipschitzClaim(max(0.299, 0.587, 0.114)),
        ADAPTERS.bytes_and_channels_last: ac.LipschitzClaim(1 / 255),
    }
    for case, claim in wrong.items():
        assert not ac.verify(case()[0], IMAGES, claim, plan=PLAN, pixels=4).sound, case.__name__


def test_the_sigmoids_radius_is_that_of_one_output():
    model, claim = ADAPTERS.one_class()
    s = model.inner(IMAGES)[:, 0]
    assert torch.allclose(claim.radii(IMAGES, model(IMAGES), 0), s.abs().double(), atol=1e-6)


def test_images_of_several_sizes_and_ignored_labels(tmp_path, monkeypatch, capsys):
    Image = pytest.importorskip("PIL.Image")
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (tmp_path / "d" / folder).mkdir(parents=True)
    for number, (height, width) in enumerate([(9, 17), (16, 8), (11, 11)]):
        picture = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(picture).save(f"d/images/{number}.png")
        labels = generator.integers(0, 3, (height, width), dtype=np.uint8)
        labels[:, :4] = 255
        Image.fromarray(labels).save(f"d/masks/{number}.png")
    adapter = f"{EXAMPLES / 'adapters.py'}:any_size"
    command = ["verify", adapter, "--data", "folder:d", "--plan", "quick", "--pixels", "4"]
    assert main([*command, "--json", "-"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["attacked_pixels"] == 12
    assert document["counts"]["unchecked"]["ignored label"] == 4 * (9 + 16 + 11)


def test_weights_with_their_factory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    example = imported("lipnet_weights")
    state = example.trained(width=12)
    torch.save({f"module.{name}": value for name, value in state.items()}, "w.pth")
    np.savez("i.npz", images=IMAGES.numpy())
    factory = f"{EXAMPLES / 'lipnet_weights.py'}:net"
    command = ["verify", "w.pth", "--model", factory, "--model-args", "width = 12", "--data", "arrays:i.npz"]
    assert main([*command, "--lipschitz", "1.00001", "--pixels", "4", "--plan", "quick"]) == 0
    captured = capsys.readouterr()
    assert "PROVED" in captured.out
    assert "took the prefix 'module.'" in captured.err
    assert main([*command, "--lipschitz", "0.9", "--pixels", "4", "--attack", "linearised,lipschitz"]) == 1
    save = pytest.importorskip("safetensors.torch").save_file
    (tmp_path / "hub").mkdir()
    save(state, "hub/model.safetensors")
    (tmp_path / "hub" / "config.json").write_text(json.dumps({"num_labels": 3, "hidden_size": 12}))
    command = ["verify", "hub", "--model", factory.replace(":net", ":configured"), "--data", "arrays:i.npz"]
    assert main([*command, "--lipschitz", "1.00001", "--pixels", "4", "--plan", "quick"]) == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("library", "name"), [("orthogonium", "orthogonium_network"), ("deel.torchlip", "torchlip_network")]
)
def test_networks_of_published_libraries(library, name):
    pytest.importorskip(library)
    model, claim = imported(name).net()
    report = ac.verify(model, IMAGES, claim, plan=PLAN, pixels=4)
    assert report.sound, report.violations
    assert report.audit is not None
    assert report.audit.bound is not None
    assert math.isfinite(report.limit.least)
    reached = claim.lipschitz / report.limit.least
    assert not ac.verify(model, IMAGES, ac.LipschitzClaim(reached / 1.05), plan=PLAN, pixels=4).sound
