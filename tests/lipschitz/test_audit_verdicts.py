"""What the audit says of claims: never PROVED where a claim is wrong, never refuted where only rounding is."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

import attackcheck as ac
from attackcheck.cli import main
from attackcheck.errors import InputError
from attackcheck.models.exact import affine_conv, affine_pixel, orthonormal_rows
from attackcheck.models.isounet import IsoUNet, IsoUNetConfig
from attackcheck.testing import assert_certificate_holds

SHAPE = (3, 16, 16)
V = ac.AuditVerdict


class Resized(nn.Module):
    """A network whose logits are resized at the end."""

    def __init__(self, inner: nn.Module, mode: str, factor: int = 2) -> None:
        super().__init__()
        self.inner, self.mode, self.factor = inner, mode, factor

    def forward(self, images: Tensor) -> Tensor:
        small = self.inner(F.avg_pool2d(images, self.factor) * self.factor)
        return F.interpolate(small, scale_factor=self.factor, mode=self.mode)


def shipped(name: str) -> ac.Subject:
    import attackcheck.models

    return ac.load(Path(attackcheck.models.__file__).parent / "shipped" / name)


@pytest.mark.parametrize("name", ["isounet-xs.pt", "lipnet-xs.pt"])
def test_shipped_networks_are_proved_with_the_constants_they_ship_with(name: str) -> None:
    subject = shipped(name)
    report = ac.audit(subject.model, subject.claim, (3, 32, 64), steps=0)
    assert report.verdict is V.PROVED
    assert report.bound == pytest.approx(subject.claim.lipschitz, rel=1e-5)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e6])
@pytest.mark.parametrize("make", [affine_pixel, affine_conv, orthonormal_rows])
def test_an_affine_constant_is_judged_from_both_sides(make: object, scale: float) -> None:
    model = make()  # type: ignore[operator]
    for tensor in model.buffers():
        tensor.mul_(scale)
    exact = float(torch.linalg.matrix_norm(_jacobian(model), 2))
    # Zero padding takes two percent of this kernel's norm at this size, of which the bound knows nothing.
    enough = exact * (1.03 if make is affine_conv else 1 + 1e-9)
    assert ac.audit(model, ac.LipschitzClaim(enough), SHAPE, steps=0).verdict is V.PROVED
    wrong = ac.audit(model, ac.LipschitzClaim(exact / 1.01), SHAPE)
    assert wrong.verdict is V.REFUTED
    assert wrong.witness is not None
    assert wrong.lower is not None
    assert exact / 1.005 < wrong.lower <= exact * (1 + 1e-9)
    moved = model(wrong.witness.perturbed[None].double()) - model(wrong.witness.image[None].double())
    distance = (wrong.witness.perturbed.double() - wrong.witness.image.double()).norm()
    assert float(moved.norm() / distance) == pytest.approx(wrong.lower, rel=1e-6)


def test_a_bound_that_exceeds_the_claim_by_rounding_is_told_with_digits_that_show_it() -> None:
    model = affine_pixel()
    exact = float(torch.linalg.matrix_norm(_jacobian(model), 2))
    near = ac.audit(model, ac.LipschitzClaim(exact * (1 - 3e-7)), SHAPE, steps=0)
    assert near.verdict is V.UNDECIDED
    assert near.sentence.startswith("the bound is 1 + 3e-07 times the claimed ")
    far = ac.audit(model, ac.LipschitzClaim(exact / 1.25), SHAPE, steps=0)
    assert far.sentence.startswith("the bound ")
    assert "is 25 % above the claimed" in far.sentence


def _rotation() -> nn.Conv2d:
    torch.manual_seed(0)
    rotation = nn.Conv2d(3, 3, 1, bias=False)
    nn.init.orthogonal_(rotation.weight)
    return rotation


def _jacobian(model: nn.Module) -> Tensor:
    image = torch.rand(1, *SHAPE, dtype=torch.float64)
    matrix = torch.autograd.functional.jacobian(model, image, vectorize=True)
    return matrix.reshape(-1, math.prod(SHAPE))


@pytest.mark.parametrize("factor", [1.001, 1.02, 1.5, 4.0])
def test_a_constant_that_is_too_small_is_never_proved(factor: float) -> None:
    for seed in range(2):
        model = affine_conv(seed=seed)
        exact = float(torch.linalg.matrix_norm(_jacobian(model), 2))
        report = ac.audit(model, ac.LipschitzClaim(exact / factor), SHAPE, steps=40)
        assert report.verdict in (V.REFUTED, V.UNDECIDED)
        if factor >= 1.02:
            assert report.verdict is V.REFUTED


def test_isometric_network_with_a_skip_is_proved_at_one() -> None:
    model = IsoUNet(IsoUNetConfig(classes=4, width=8, depth=2)).eval()
    report = ac.audit(model, ac.LipschitzClaim(1.0), (3, 16, 16), steps=0)
    assert report.bound == pytest.approx(1.0, abs=2e-6)
    # In training mode only the statistics differ; the audit looks at evaluation.
    assert ac.audit(model.train(), ac.LipschitzClaim(1.00001), (3, 16, 16), steps=0).verdict is V.PROVED
    assert model.training


@pytest.mark.parametrize(("mode", "pixel"), [("nearest", 1.0), ("bilinear", 1.0), ("bicubic", 1.25)])
def test_a_final_resizing_costs_the_joint_constant_and_hardly_the_pixels(mode: str, pixel: float) -> None:
    model = Resized(orthonormal_rows(), mode)
    report = ac.audit(model, ac.LipschitzClaim(pixel, scope="pixel"), SHAPE, steps=0)
    assert report.verdict is V.PROVED
    assert report.bound is not None
    assert report.pixel_bound is not None
    assert report.bound > 1.9
    assert report.pixel_bound <= pixel * (1 + 1e-9)
    assert ac.audit(model, ac.LipschitzClaim(1.5), SHAPE).verdict is V.REFUTED
    both = ac.LipschitzClaim(2.5, pixel=pixel)
    assert ac.audit(model, both, SHAPE, steps=0).verdict is V.PROVED
    low = ac.audit(model, ac.LipschitzClaim(2.5, pixel=0.7), SHAPE)
    assert low.verdict is V.REFUTED


def test_class_pairs_are_judged_by_the_features_and_the_rows() -> None:
    head = nn.Conv2d(3, 4, 1)
    rotation = _rotation()
    model = nn.Sequential(rotation, nn.ReLU(), head)
    rows = head.weight.detach()
    assert ac.audit(model, ac.ClassPairClaim(1.0 + 1e-6, rows), SHAPE, steps=0).verdict is V.PROVED
    assert ac.audit(model, ac.ClassPairClaim(0.7, rows), SHAPE, steps=0).verdict is V.UNDECIDED
    assert ac.audit(model, ac.ClassPairClaim(0.7, rows), SHAPE).verdict is V.REFUTED
    # Rows that promise half as much: the features' bound is doubled.
    assert ac.audit(model, ac.ClassPairClaim(1.0, rows / 2), SHAPE, steps=0).bound == pytest.approx(2.0, rel=1e-6)
    other = ac.audit(nn.Sequential(model, nn.ReLU()), ac.ClassPairClaim(1.0, rows), SHAPE, steps=0)
    assert other.bound is None
    assert "not a 1x1 convolution" in other.missing


def test_a_stated_constant_is_refuted_by_the_layer_alone() -> None:
    big = nn.Conv2d(3, 3, 3, padding=1)
    small = nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        small.weight.mul_(1e-3)
    model = nn.Sequential(big, nn.ReLU(), small, nn.Upsample(scale_factor=2), nn.AvgPool2d(2))
    claim = ac.LipschitzClaim(1e-6, layers={"3": 1.0})
    report = ac.audit(model, claim, SHAPE, steps=0)
    assert report.verdict is V.PREMISE_REFUTED
    assert "layer 3 counts as 1" in report.sentence
    assert [layer.name for layer in report.layers if layer.refuted] == ["3"]
    assert report.exit_code() == 1
    fine = ac.audit(model, ac.LipschitzClaim(1e-6, layers={"3": 2.0}), SHAPE, steps=0)
    assert fine.verdict is V.UNDECIDED
    with pytest.raises(InputError, match="'nowhere'"):
        ac.audit(model, ac.LipschitzClaim(1.0, layers={"nowhere": 1.0}), SHAPE, steps=0)
    # A claim that the weights prove stands, whatever somebody counted.
    assert ac.audit(model, ac.LipschitzClaim(100.0, layers={"3": 1.0}), SHAPE, steps=0).verdict is V.PROVED


def test_a_promise_of_spectral_norm_is_not_kept_by_convolutions() -> None:
    torch.manual_seed(0)
    convolution = parametrizations.spectral_norm(nn.Conv2d(3, 8, 3, padding=1), n_power_iterations=50)
    head = parametrizations.spectral_norm(nn.Conv2d(8, 4, 1), n_power_iterations=50)
    model = nn.Sequential(convolution, nn.ReLU(), head).eval()
    with torch.no_grad():  # the same values everywhere: the reshaped kernel's norm is a third of the convolution's
        convolution.parametrizations.weight.original.fill_(1.0)
        convolution.train()(torch.rand(1, *SHAPE))
        convolution.eval()
    report = ac.audit(model, ac.LipschitzClaim(1.0), SHAPE, steps=0)
    assert report.verdict is V.PREMISE_REFUTED
    assert "layer 0 counts as 1" in report.sentence
    # Who counts the layer with more does not rest on the promise.
    assert ac.audit(model, ac.LipschitzClaim(2.5), SHAPE, steps=0).verdict is not V.PREMISE_REFUTED


def test_rounding_of_stored_weights_refutes_nothing() -> None:
    claim = ac.LipschitzClaim(1.0, layers={"0": 1.0, "2": 1.0})
    for seed in range(10):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(3, 24, 1), nn.ReLU(), nn.Conv2d(24, 4, 1)).eval()
        with torch.no_grad():
            for layer in (model[0], model[2]):
                nn.init.orthogonal_(layer.weight)
                layer.weight.mul_(1 + 2.0**-23)  # beyond one by the last bit
        report = ac.audit(model, claim, SHAPE)
        assert all(layer.lower > 1.0 for layer in report.layers)
        assert not report.refuted, report.sentence


def test_orthogonal_parametrisation_of_a_kernel_is_not_one_of_the_convolution() -> None:
    # It makes every kernel's last two axes orthogonal, matrices of one number here: the norm is that of a sign matrix.
    model = nn.Sequential(parametrizations.orthogonal(nn.Conv2d(3, 3, 1)), nn.ReLU()).eval()
    assert ac.audit(model, ac.LipschitzClaim(1.0), SHAPE, steps=0).verdict is V.PREMISE_REFUTED


def test_libraries_of_orthogonal_layers_are_within_a_thousandth_of_one() -> None:
    layers = pytest.importorskip("orthogonium.layers")
    activations = pytest.importorskip("orthogonium.layers.custom_activations")
    torchlip = pytest.importorskip("deel.torchlip")
    torch.manual_seed(0)
    zeros = {"padding_mode": "zeros"}
    model = nn.Sequential(
        layers.AdaptiveOrthoConv2d(3, 8, 3, **zeros),
        activations.MaxMin(),
        layers.AdaptiveOrthoConv2d(8, 16, 3, stride=2, padding=1, **zeros),
        torchlip.GroupSort2(),
        layers.AdaptiveOrthoConv2d(16, 16, 3, padding_mode="circular"),
        torchlip.MaxMin(),
        torchlip.HouseHolder(32),
        layers.AdaptiveOrthoConvTranspose2d(32, 8, 2, stride=2),
        activations.MaxMin(),
        torchlip.ScaledAvgPool2d(2),
        torchlip.InvertibleUpSampling(2),
        torchlip.SpectralConv2d(2, 4, 1),
    ).eval()
    report = ac.audit(model, ac.LipschitzClaim(1.0), SHAPE, steps=0)
    assert report.bound == pytest.approx(1.0, abs=1e-3)
    assert not report.refuted
    assert {layer.used for layer in report.layers} == {1.0, None}


def test_orthogonal_layers_of_libraries_with_padding_that_copies_are_refuted() -> None:
    layers = pytest.importorskip("orthogonium.layers")
    model = nn.Sequential(layers.AdaptiveOrthoConv2d(3, 3, 3, padding=1, padding_mode="reflect")).eval()
    report = ac.audit(model, ac.LipschitzClaim(1.0), SHAPE, steps=0)
    assert report.verdict is V.PREMISE_REFUTED
    # A circular padding, stride 2 and an odd size: the first column is seen twice.
    odd = nn.Sequential(layers.AdaptiveOrthoConv2d(3, 8, 3, stride=2, padding=1, padding_mode="circular"), nn.ReLU())
    report = ac.audit(odd.eval(), ac.LipschitzClaim(1.0), (3, 15, 15), steps=0)
    assert report.bound is not None
    assert report.bound > 1.01
    assert report.verdict is V.PREMISE_REFUTED


def test_what_cannot_be_audited_is_said() -> None:
    model = affine_pixel()
    with pytest.raises(InputError, match="Lipschitz or class-pair"):
        ac.audit(model, ac.RadiusClaim(lambda x: x[:, 0]), SHAPE)
    with pytest.raises(InputError, match="input shape"):
        ac.audit(model, ac.LipschitzClaim(1.0), (3, 16))
    with pytest.raises(InputError, match="does not accept"):
        ac.audit(model, ac.LipschitzClaim(1.0), (7, 16, 16))
    report = ac.audit(lambda images: 3.0 * images, ac.LipschitzClaim(1.0), SHAPE)
    assert report.bound is None
    assert report.verdict is V.REFUTED  # two images suffice
    constant = nn.Conv2d(3, 2, 1)
    nn.init.zeros_(constant.weight)
    assert ac.audit(constant, ac.LipschitzClaim(1e-9), SHAPE).verdict is V.PROVED


# verify and the command ----------------------------------------------------------------------------------------------


def test_verify_audits_first_and_its_refutation_counts() -> None:
    convolution = _rotation()
    shifted = nn.Conv2d(3, 3, 3, padding=1, padding_mode="replicate", bias=False)
    with torch.no_grad():
        shifted.weight.zero_()
        shifted.weight[:, :, 0, 0] = torch.eye(3)
    model = nn.Sequential(convolution, shifted).eval()
    images = torch.rand(1, *SHAPE)
    claim = ac.LipschitzClaim(1.0, layers={"1": 1.0})
    report = ac.verify(model, images, claim, plan="quick", pixels=2)
    assert report.audit is not None
    assert report.audit.refuted
    assert not report.sound
    assert report.exit_code() == 1
    assert report.to_dict()["audit"]["verdict"] in ("REFUTED", "PREMISE_REFUTED")
    with pytest.raises(AssertionError):
        assert_certificate_holds(model, images, claim, pixels=2)
    assert ac.verify(model, images, claim, plan="quick", pixels=2, audit=False).audit is None
    good = ac.verify(model[:1], images, ac.LipschitzClaim(1.0001), plan="quick", pixels=2)
    assert good.sound
    assert good.audit is not None
    assert good.audit.verdict is V.PROVED


def test_a_broken_audit_does_not_stop_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    import attackcheck.engine

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(attackcheck.engine, "quick_audit", fail)
    seen: list[object] = []
    report = ac.verify(
        affine_pixel(), torch.rand(1, *SHAPE), ac.LipschitzClaim(9.0), plan="quick", pixels=2, on_event=seen.append
    )
    assert report.audit is None
    assert report.attacked_count == 2
    assert any(getattr(event, "code", "") == "AC116" for event in seen)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "audit.json"
    assert main(["audit", "--input-shape", "3,16,16", "--json", str(target)]) == 0
    shown = capsys.readouterr().out
    assert "PROVED" in shown
    assert "layers.1" in shown
    document = json.loads(target.read_text())
    assert document["verdict"] == "PROVED"
    assert document["bound"] <= document["claim"]["L"] * (1 + 1e-9)
    assert len(document["layers"]) == 13
    assert main(["audit", "--input-shape", "3,16,16", "--lipschitz", "0.5"]) == 1
    assert "REFUTED" in capsys.readouterr().out
    for wrong in (["--input-shape", "3,16"], ["--input-shape", "3,15,16"], ["--radii", "os:getcwd"], ["--json", "/"]):
        assert main(["audit", *wrong]) == 2
        assert capsys.readouterr().err.startswith("attackcheck: ")


def test_two_images_that_refute_a_claim_can_be_replayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("nets.py").write_text(
        "import torch\n\n\ndef steep():\n    layer = torch.nn.Conv2d(3, 3, 1, bias=False)\n"
        "    layer.weight.data = 2.0 * torch.eye(3)[:, :, None, None]\n    return layer\n",
        encoding="utf-8",
    )
    options = ["--lipschitz", "1.5"]
    assert main(["audit", "nets.py:steep", *options, "--input-shape", "3,8,8", "--json", "audit.json"]) == 1
    saved = json.loads(Path("audit.json").read_text(encoding="utf-8"))["counterexample"]
    assert main(["replay", saved, "nets.py:steep"]) == 1
    assert main(["replay", saved, "nets.py:steep", "--lipschitz", "2.001"]) == 0  # the constant that it has
    images = ["--data", "scenes:1:0:16x16", "--attack", "linearised", "--pixels", "1", "--json", "report.json"]
    assert main(["verify", "nets.py:steep", *options, *images]) == 1
    report = json.loads(Path("report.json").read_text(encoding="utf-8"))
    assert report["audit"]["verdict"] == "REFUTED"
    assert main(["replay", report["audit"]["counterexample"], "nets.py:steep"]) == 1
    proved = ["audit", "nets.py:steep", "--lipschitz", "2.0", "--input-shape", "3,8,8", "--json", "audit.json"]
    assert main(proved) == 0
    assert json.loads(Path("audit.json").read_text(encoding="utf-8"))["counterexample"] is None


def test_a_refuted_audit_is_told_where_its_images_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("attackcheck-counterexamples").write_text("a file in the way", encoding="utf-8")
    model = nn.Conv2d(3, 3, 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(2.0 * torch.eye(3)[:, :, None, None])
    torch.save(model.state_dict(), "steep.pt")
    Path("nets.py").write_text(
        "import torch\n\n\ndef net():\n    return torch.nn.Conv2d(3, 3, 1, bias=False)\n", "utf-8"
    )
    command = ["audit", "steep.pt", "--model", "nets.py:net", "--lipschitz", "1.5", "--input-shape", "3,8,8"]
    assert main(command) == 1
    told = capsys.readouterr()
    assert "REFUTED" in told.out
    assert "could not write the counterexample" in told.err
