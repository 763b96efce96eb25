"""A network of orthogonium layers, verified as it is.

    pip install 'attackcheck[deel]'
    attackcheck verify examples/orthogonium_network.py:net

Its layers compute their weights anew at every forward pass, and iterate while they do, also in evaluation mode.
attackcheck freezes a copy into plain convolutions, compares it with the model, and examines the copy. The iterations
must have come to rest: in training they do; fresh layers need some passes.
"""

import torch
from orthogonium.layers import MaxMin
from orthogonium.layers.conv.AOC import AdaptiveOrthoConv2d, AdaptiveOrthoConvTranspose2d
from torch import nn

import attackcheck as ac


def net(classes: int = 4, width: int = 8, seed: int = 0):
    """A network with its claim: orthogonal layers, 1-Lipschitz activations, and as much as float32 adds."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        AdaptiveOrthoConv2d(3, width, 3, padding=1, padding_mode="circular"),
        MaxMin(),
        AdaptiveOrthoConv2d(width, 2 * width, 2, stride=2, padding=0, padding_mode="zeros"),
        MaxMin(),
        AdaptiveOrthoConvTranspose2d(2 * width, width, 2, stride=2),
        MaxMin(),
        AdaptiveOrthoConv2d(width, classes, 1, padding=0, padding_mode="zeros"),
    )
    with torch.no_grad():
        for _ in range(20):
            model.train()(torch.rand(1, 3, 16, 16))
    return model.eval(), ac.LipschitzClaim(1.0 + 1e-5)
