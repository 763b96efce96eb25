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
def test_orthogonium_says_the_same_of_our_kernels_as_of_its_own(name):
    aoc = pytest.importorskip("orthogonium.layers.conv.AOC")
    options = LAYERS[name]
    ours = plain(options)
    theirs = plain(options)
    layer = aoc.AdaptiveOrthoConv2d(
        options["inputs"],
        options["outputs"],
        options["kernel"],
        stride=options.get("stride", 1),
        padding=(options["kernel"] - 1) // 2,
        bias=False,
    )
    with torch.no_grad():
        theirs.weight.copy_(layer.weight)
    # Its estimate is an upper bound, twice the norm for overlapping strided kernels: only equality means anything.
    bounds = [
        float(singular_values.get_conv_sv(module, n_iter=10, imsize=16, return_stab_rank=False))
        for module in (ours, theirs)
    ]
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-3)
    norms = [kernel_norm(module.weight, options.get("stride", 1)) for module in (ours, theirs)]
    assert norms == pytest.approx([1.0, 1.0], abs=1e-4)
    assert min(norms) >= 1.0 - 1e-6


def test_torchlip_finds_no_jacobian_above_our_constant():
    lipschitz = pytest.importorskip("deel.torchlip.utils.evaluate_lip_const")
    network = export(build(IsoUNetConfig(3, width=4, depth=1, head=4), seed=0))
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    found = float(lipschitz.evaluate_lip_const_jacobian_norm(network, images))
    assert 0.9 < found <= network.constants().joint * (1 + 1e-5)


def test_layers_of_the_same_shape_are_as_orthogonal_as_orthoniums():
    """Both are norm preserving on the torus; ours is exact where theirs stops iterating."""
    aoc = pytest.importorskip("orthogonium.layers.conv.AOC")
    theirs = aoc.AdaptiveOrthoConv2d(8, 8, 3, padding=1, padding_mode="circular", bias=False)
    ours = conv(8, 8, 3, padding="circular").eval()
    x = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert float(theirs(x).norm() / x.norm()) == pytest.approx(1.0, abs=1e-3)
        assert float(ours(x).norm() / x.norm()) == pytest.approx(1.0, abs=1e-5)
