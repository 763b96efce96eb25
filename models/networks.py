"""The families of networks as a table, and the way from a trained parametrisation to plain convolutions."""

import copy
from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import nn

from . import isounet, lipnet
from .isounet import IsoUNet, IsoUNetConfig
from .layers import OrthogonalConv2d, OrthogonalUp2d
from .lipnet import LipNet, LipNetConfig

__all__ = ["FAMILIES", "SIZES", "Config", "Network", "build", "describe", "export"]

Network = LipNet | IsoUNet
Config = LipNetConfig | IsoUNetConfig

FAMILIES: dict[str, type[LipNetConfig] | type[IsoUNetConfig]] = {"lipnet": LipNetConfig, "isounet": IsoUNetConfig}
SIZES: dict[str, Mapping[str, Config]] = {"lipnet": lipnet.SIZES, "isounet": isounet.SIZES}


def build(config: Config, *, plain: bool = False, seed: int | None = None) -> Network:
    """The network that `config` describes; its raw matrices, or plain weights, are drawn from `seed`."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    family = LipNet if isinstance(config, LipNetConfig) else IsoUNet
    network: Network = family(config, plain=plain, generator=generator)  # type: ignore[arg-type]
    if plain and generator is not None:
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.bias is not None:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="linear", generator=generator)
                nn.init.zeros_(layer.bias)
    return network


def describe(config: Config) -> dict[str, object]:
    """`config` as a dictionary of plain values with the family's name, as it is written into checkpoints."""
    family = next(name for name, kind in FAMILIES.items() if isinstance(config, kind))
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(config).items()}
    return {"family": family, **values}


@torch.no_grad()
def export(network: Network) -> Network:
    """The same function as `network` in evaluation mode, of plain float32 convolutions that take no gradients.

    Weights are computed in float64 and rounded once. Dense, frozen and in evaluation mode: nothing is recomputed at a
    forward pass, and the centring has become part of the biases.
    """
    exact = copy.deepcopy(network).double().eval()
    if not any(isinstance(layer, OrthogonalConv2d | OrthogonalUp2d) for layer in exact.modules()):
        return exact.float().requires_grad_(False)  # plain already
    plain = build(network.config, plain=True)
    targets: dict[str, nn.Module] = dict(plain.named_modules())
    for name, layer in exact.named_modules():
        if isinstance(layer, OrthogonalConv2d | OrthogonalUp2d):
            target, frozen = targets[name], layer.freeze()
            target.load_state_dict({"weight": frozen.weight, "bias": frozen.bias})
    return plain.float().eval().requires_grad_(False)
