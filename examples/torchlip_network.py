"""A network of deel-torchlip layers, verified as it is.

    pip install 'attackcheck[deel]'
    attackcheck verify examples/torchlip_network.py:net

Spectral convolutions in it bound the norm of the kernel's matrix, not of the convolution, and correct for the overlap
of windows: 1-Lipschitz with zero padding, often far below. `audit` says by how much.
"""

import torch
from deel import torchlip
from torch import nn

import attackcheck as ac


def net(classes: int = 4, width: int = 8, seed: int = 0):
    """A network with its claim; `vanilla_export` is not needed, a frozen copy is examined."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        torchlip.SpectralConv2d(3, width, 3, padding=1),
        torchlip.GroupSort2(),
        torchlip.SpectralConv2d(width, width, 3, padding=1),
        torchlip.GroupSort2(),
        torchlip.SpectralConv2d(width, classes, 1),
    )
    with torch.no_grad():
        for _ in range(20):
            model.train()(torch.rand(1, 3, 16, 16))
    return model.eval(), ac.LipschitzClaim(1.0 + 1e-4)
