"""Our layers and constants against independent libraries: orthogonium's norms of kernels, deel-torchlip's Jacobians."""

import pytest
import torch
from torch import nn

from attackcheck.models.constants import kernel_norm
from attackcheck.models.isounet import IsoUNetConfig
from attackcheck.models.layers import OrthogonalConv2d, conv
from attackcheck.models.networks import build, export

singular_values = pytest.importorskip("orthogonium.layers.conv.singular_values")

LAYERS = {
    "1x1": {"inputs": 6, "outputs": 6, "kernel": 1},
    "2x2 stride 2": {"inputs": 3, "outputs": 12, "kernel": 2, "stride": 2},
    "3x3": {"inputs": 8, "outputs": 8, "kernel": 3},
    "3x3 wider": {"inputs": 6, "outputs": 10, "kernel": 3},
    "3x3 stride 2": {"inputs": 4, "outputs": 16, "kernel": 3, "stride": 2},
}


def plain(options, padding="circular"):
    layer = OrthogonalConv2d(
        options["inputs"],
        options["outputs"],
        options["kernel"],
        stride=options.get("stride", 1),
        padding=padding,
        generator=torch.Generator().manual_seed(0),
    ).eval()
    frozen = layer.freeze()
    module = nn.Conv2d(
        options["inputs"],
        options["outputs"],
        options["kernel"],
        stride=options.get("stride", 1),
        padding=(options["kernel"] - 1) // 2,
        padding_mode=padding,
        bias=False,
    )
    with torch.no_grad():
        module.weight.copy_(frozen.weight)
    return module.double()


@pytest.mark.parametrize("name", LAYERS)
def test_orthogonium_bounds_the_norms_that_we_claim(name):
    options = LAYERS[name]
    module, stride = plain(options), options.get("stride", 1)
    bound = float(singular_values.get_conv_sv(module, n_iter=12, imsize=16, return_stab_rank=False))
    # Its estimate is an upper bound, and larger by the stride where strided kernels overlap: for its own layers, too.
    overlap = stride if options["kernel"] > stride else 1
    assert bound == pytest.approx(overlap, rel=2e-3)
    assert kernel_norm(module.weight, stride) == pytest.approx(1.0, abs=1e-4)
    assert kernel_norm(module.weight, stride) >= 1.0 - 1e-6


def test_torchlip_finds_no_jacobian_above_our_constant():
    lipschitz = pytest.importorskip("deel.torchlip.utils.evaluate_lip_const")
    network = export(build(IsoUNetConfig(3, width=4, depth=1, head=4), seed=0))
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    found = float(lipschitz.evaluate_lip_const_jacobian_norm(network, images))
    assert 0.9 < found <= network.constants().joint * (1 + 1e-5)


def test_layers_of_the_same_shape_are_as_orthogonal_as_orthoniums():
    """Both are norm preserving on the torus; ours is exact where theirs stops iterating."""
    aoc = pytest.importorskip("orthogonium.layers.conv.AOC")
    torch.manual_seed(0)
    theirs = aoc.AdaptiveOrthoConv2d(8, 8, 3, padding=1, padding_mode="circular", bias=False)
    ours = conv(8, 8, 3, padding="circular").eval()
    x = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert float(theirs(x).norm() / x.norm()) == pytest.approx(1.0, abs=1e-3)
        assert float(ours(x).norm() / x.norm()) == pytest.approx(1.0, abs=1e-5)
