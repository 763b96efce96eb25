"""Weights published as a state_dict, with a factory that rebuilds the network they belong to.

    attackcheck verify weights.pt --model examples/lipnet_weights.py:net --model-args 'width = 8' --lipschitz 1.00001

The factory is the only code that is run; the weights may be a .pt, .pth or .safetensors file, with the prefix that
DataParallel, torch.compile or a trainer left on their names. For a directory with config.json and model.safetensors
name `configured`: a factory with a parameter `config` is given what is in config.json.
"""

from typing import Any

import torch
from torch import nn


class MaxMin(nn.Module):
    """Sorts pairs of channels: a permutation of its inputs, so 1-Lipschitz."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = x.chunk(2, dim=1)
        return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], dim=1)


class LipNet(nn.Module):
    """Down by orthogonal blocks of 2x2 pixels, features, up again: LipNets for segmentation in their smallest form."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, width, 2, stride=2)
        self.features = nn.Sequential(MaxMin(), nn.Conv2d(width, width, 1), MaxMin(), nn.Conv2d(width, width, 1))
        self.up = nn.ConvTranspose2d(width, classes, 2, stride=2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.up(self.features(self.down(images)))


def net(classes: int = 3, width: int = 8) -> nn.Module:
    """The network with weights that are to be overwritten."""
    return LipNet(classes, width)


def configured(config: dict[str, Any]) -> nn.Module:
    """The same from a config.json."""
    return LipNet(config["num_labels"], config["hidden_size"])


def trained(classes: int = 3, width: int = 8, seed: int = 0) -> dict[str, torch.Tensor]:
    """A state_dict as training would leave it: every layer orthogonal, so the network is 1-Lipschitz."""
    generator, network = torch.Generator().manual_seed(seed), net(classes, width)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            shape = layer.weight.shape
            raw = torch.randn(shape[0], layer.weight[0].numel(), generator=generator, dtype=torch.float64)
            tall = raw.shape[0] >= raw.shape[1]
            q = torch.linalg.qr(raw if tall else raw.T)[0]
            layer.weight.data = (q if tall else q.T).reshape(shape).float().contiguous()
            nn.init.zeros_(layer.bias)
    return network.state_dict()
