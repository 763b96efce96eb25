"""Both families: structure, exported weights, proven constants against the true norms."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from attackcheck.errors import InputError
from attackcheck.models import isounet, lipnet
from attackcheck.models.constants import layer_norm
from attackcheck.models.isounet import IsoUNetConfig
from attackcheck.models.lipnet import LipNetConfig
from attackcheck.models.networks import Config, Network, build, describe, export

SMALL: dict[str, Config] = {
    "lipnet": LipNetConfig(5, widths=(6, 8), stages=(1, 1), branch=6, dilations=(1, 2, 3), decoder=(6, 4)),
    "lipnet-rms": LipNetConfig(5, widths=(6, 8), stages=(1, 0), branch=6, decoder=(6, 4), std=(0.5, 0.4, 0.8),
                               rms=True),
    "lipnet-upsampled": LipNetConfig(3, widths=(6, 8), stages=(0, 1), branch=4, decoder=(6,), refine=(0,), upsample=2),
    "lipnet-torus": LipNetConfig(3, widths=(6,), stages=(1,), branch=4, dilations=(1, 2), decoder=(4,),
                                 refine=(1,), padding="circular"),
    "isounet": IsoUNetConfig(5, width=6, depth=2, bottom=1, head=4),
    "isounet-std": IsoUNetConfig(4, width=4, depth=1, before=2, after=0, head=4, refine=1, std=(0.3, 0.2, 0.25)),
    "isounet-flat": IsoUNetConfig(2, channels=1, width=4, depth=0, head=2, mean=(0.5,)),
}  # fmt: skip


def used(config: Config) -> Network:
    """A network whose running statistics have seen pictures."""
    network = build(config, seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _ in range(5):
            network(torch.rand(4, config.channels, 16, 16, generator=generator))
    return network.eval()


def jacobian(network: nn.Module, image: Tensor) -> Tensor:
    """(K, H, W, C*H*W) at one image, in float64: row n of a batch of copies gives the gradient of logit n."""
    shape = network(image.double()[None]).shape[1:]
    images = image.double().expand(shape.numel(), -1, -1, -1).clone().requires_grad_()
    (rows,) = torch.autograd.grad(network(images).flatten(1).diagonal().sum(), images)
    return rows.reshape(*shape, -1)


@pytest.fixture(params=SMALL)
def config(request: pytest.FixtureRequest) -> Config:
    return SMALL[request.param]


def test_export_is_the_same_function(config: Config) -> None:
    network = used(config)
    images = torch.rand(3, config.channels, 16, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = export(network)(images)
        assert logits.shape == (3, config.classes, 16, 24)
        torch.testing.assert_close(logits, network(images), rtol=1e-5, atol=3e-6)


def test_export_is_plain_and_frozen(config: Config) -> None:
    plain = export(used(config))
    kinds = {type(module).__name__ for module in plain.modules() if list(module.parameters(recurse=False))}
    assert kinds <= {"Conv2d", "ConvTranspose2d"}
    assert not plain.training
    assert not any(value.requires_grad for value in plain.parameters())
    assert all(value.dtype == torch.float32 for value in plain.state_dict().values())


def test_constants_bound_the_jacobian(config: Config) -> None:
    plain = export(used(config))
    constants = plain.constants()
    assert constants.pixel <= constants.joint
    plain = plain.double()
    generator = torch.Generator().manual_seed(4)
    for _ in range(2):
        full = jacobian(plain, torch.rand(config.channels, 8, 8, generator=generator))
        assert float(torch.linalg.matrix_norm(full.flatten(0, 2), 2)) <= constants.joint
        pixels = full.permute(1, 2, 0, 3).flatten(0, 1)
        assert float(torch.linalg.matrix_norm(pixels, 2).max()) <= constants.pixel


@pytest.mark.parametrize("name", ["isounet-flat", "lipnet-upsampled"])
def test_constants_are_reached_where_nothing_is_lost(name: str) -> None:
    """A flat network of square layers is an isometry; upsampling a constant picture costs all of its factor."""
    config = SMALL[name]
    if isinstance(config, IsoUNetConfig):
        plain = export(used(config))
        full = jacobian(plain.double(), torch.rand(1, 8, 8)).flatten(0, 2)
        norm = float(torch.linalg.matrix_norm(full, 2))
        assert norm <= plain.constants().joint
        assert norm > 1 - 1e-3
        assert plain.constants().joint < 1 + 1e-4
    else:
        assert export(used(config)).constants().joint == pytest.approx(2, rel=1e-4)
        assert export(used(config)).constants().pixel == pytest.approx(1, rel=1e-4)


def test_the_isometric_network_is_tight() -> None:
    plain = export(used(IsoUNetConfig(8, width=12, depth=1, bottom=1, head=8)))
    full = jacobian(plain.double(), torch.rand(3, 8, 8)).flatten(0, 2)
    norm = float(torch.linalg.matrix_norm(full, 2))
    assert plain.constants().joint * (1 - 1e-3) <= norm <= plain.constants().joint


@pytest.mark.parametrize("family", ["lipnet", "isounet"])
def test_distances_never_grow(family: str) -> None:
    plain = export(used(SMALL[family]))
    constants = plain.constants()
    assert constants.joint < 1.0001
    generator = torch.Generator().manual_seed(2)
    first, second = torch.rand(2, 64, 3, 16, 16, generator=generator, dtype=torch.float64)
    second = torch.where(torch.rand(64, 1, 1, 1, generator=generator) < 0.5, second, first + 0.01 * second)
    plain = plain.double()
    moved = (plain(first) - plain(second)).flatten(1).norm(dim=1)
    assert bool((moved <= constants.joint * (first - second).flatten(1).norm(dim=1)).all())


@pytest.mark.parametrize("family", ["lipnet", "isounet"])
def test_training_mode_is_differentiable_and_rows_are_independent_in_evaluation(family: str) -> None:
    network = build(SMALL[family], seed=0)
    network(torch.rand(2, 3, 16, 16)).square().sum().backward()
    assert all(value.grad is not None and bool(value.grad.isfinite().all()) for value in network.parameters())
    plain = export(network)
    images = torch.rand(3, 3, 16, 16)
    torch.testing.assert_close(plain(images)[1:2], plain(images[1:2]), rtol=0, atol=1e-6)


def test_seeds_decide_the_weights(config: Config) -> None:
    first, again, other = (build(config, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(("config", "size", "stride"), [
    (SMALL["lipnet"], (18, 16), 4), (SMALL["isounet"], (16, 12), 8), (SMALL["lipnet-torus"], (7, 8), 2),
])  # fmt: skip
def test_odd_sizes_are_refused(config: Config, size: tuple[int, int], stride: int) -> None:
    with pytest.raises(InputError, match=f"divisible by {stride}, got {size[0]}x{size[1]}"):
        build(config, plain=True)(torch.rand(1, 3, *size))
    with pytest.raises(InputError, match="shape"):
        build(config, plain=True)(torch.rand(3, 16, 16))


@pytest.mark.parametrize("table", [lipnet.SIZES, isounet.SIZES], ids=["lipnet", "isounet"])
def test_sizes_are_entries_of_one_description_and_grow(table: dict[str, Config]) -> None:
    counts = []
    for entry in table.values():
        with torch.device("meta"):
            network = build(entry, plain=True)
        counts.append(sum(value.numel() for value in network.parameters()))
        assert network(torch.empty(1, 3, 64, 128, device="meta")).shape == (1, 7, 64, 128)
    assert list(table) == ["XS", "S", "M1", "M2", "L", "XL"]
    assert counts == sorted(counts)


def test_a_width_rescales_the_description() -> None:
    assert lipnet.SIZES["XS"].resized(16) == lipnet.SIZES["XS"]
    wide = lipnet.SIZES["XS"].resized(24)
    assert (wide.widths, wide.decoder, wide.branch) == ((24, 48), (24, 12), 48)
    assert isounet.SIZES["XS"].resized(24) == dataclasses.replace(isounet.SIZES["XS"], width=24)


def test_a_description_is_plain_data() -> None:
    described = describe(SMALL["lipnet-rms"])
    assert described["family"] == "lipnet"
    assert described["widths"] == [6, 8]
    assert described["std"] == [0.5, 0.4, 0.8]


def test_an_unknown_layer_has_no_norm() -> None:
    with pytest.raises(TypeError, match="no norm is known for Bilinear"):
        layer_norm(nn.Sequential(nn.Bilinear(2, 2, 2)))
