# ruff: noqa: ARG005  functions of a network and an image that need no network
"""The audit against networks whose constant is known: linear ones, by the singular values of their whole Jacobian."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attackcheck.claims import LipschitzClaim
from attackcheck.lipschitz.auditing import audit
from attackcheck.lipschitz.findings import AuditReport, AuditVerdict

SHAPE = (4, 8, 6)


class Net(nn.Module):
    """A network from a function and its modules."""

    def __init__(self, function: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, images: Tensor) -> Tensor:
        return self.function(self, images)


def jacobian(model: nn.Module, shape: tuple[int, ...] = SHAPE) -> Tensor:
    """Float64 Jacobian at a random image, (outputs, inputs)."""
    image = torch.rand(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    model = model.double().eval()
    matrix = torch.autograd.functional.jacobian(model, image, vectorize=True)
    return matrix.reshape(-1, math.prod(shape))


def norm(model: nn.Module, shape: tuple[int, ...] = SHAPE) -> float:
    return float(torch.linalg.matrix_norm(jacobian(model, shape), 2))


def conv(inputs: int = 4, outputs: int = 4, kernel: int = 3, **options: object) -> nn.Conv2d:
    torch.manual_seed(3)
    options = {"padding": kernel // 2} | options
    return nn.Conv2d(inputs, outputs, kernel, **options)  # type: ignore[arg-type]


def examine(model: nn.Module, claimed: float = 1.0, **options: object) -> AuditReport:
    claim = LipschitzClaim(claimed, **options)  # type: ignore[arg-type]
    return audit(model, claim, SHAPE, steps=0)


def half_down(net: Net, x: Tensor) -> Tensor:
    skip, low = x[:, :2], x[:, 2:]
    return torch.cat([skip, net.up(net.down(low))], 1)


def coupling(net: Net, x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return torch.cat([a + net.inner(b), b], 1)


def rows_apart(net: Net, x: Tensor) -> Tensor:
    parts = [x[:, :, 0::2, 0::2], x[:, :, 1::2, 0::2], x[:, :, 0::2, 1::2], x[:, :, 1::2, 1::2]]
    return F.pixel_shuffle(torch.cat(parts, 1), 2)


def overlapping(net: Net, x: Tensor) -> Tensor:
    return torch.cat([x[:, :3], x[:, 1:]], 1)[:, :4]


def in_place(net: Net, x: Tensor) -> Tensor:
    y = net.inner(x)
    y += x
    return y.mul_(0.5)


def orthogonal() -> nn.Conv2d:
    """A mirror: one eigenvalue is 1 for certain, so that its sum with the identity has norm 2 and not less."""
    layer = nn.Conv2d(4, 4, 1, bias=False)
    normal = F.normalize(torch.arange(1.0, 5.0), dim=0)
    with torch.no_grad():
        layer.weight.copy_((torch.eye(4) - 2 * torch.outer(normal, normal))[:, :, None, None])
    return layer


# function, modules, how far above the exact norm the bound may be
LINEAR: dict[str, tuple[Callable[..., Tensor], dict[str, nn.Module], float]] = {
    "chain": (lambda n, x: n.a(x), {"a": conv()}, 1.001),
    "normalisation of the input": (
        lambda n, x: (x - 0.4) / torch.tensor([0.2, 0.3, 0.4, 0.5])[:, None, None],
        {},
        1.001,
    ),
    "x + x": (lambda n, x: x + x, {}, 1.001),
    "x - half x": (lambda n, x: x - x * 0.5, {}, 3.001),
    "residual": (lambda n, x: x + n.a(x), {"a": orthogonal()}, 1.001),
    "cat twice": (lambda n, x: torch.cat([x, x], 1)[:, 2:6], {}, 1.001),
    "cat of branches": (lambda n, x: torch.cat([n.a(x), x], 1) / 2**0.5, {"a": orthogonal()}, 1.001),
    "half skips": (half_down, {"down": conv(2, 8, 2, stride=2, padding=0), "up": nn.ConvTranspose2d(8, 2, 2, 2)}, 2.5),
    "coupling": (coupling, {"inner": conv(2, 2)}, 1.3),
    "space to depth by slices": (rows_apart, {}, 1.001),
    "overlapping slices": (overlapping, {}, 1.001),
    "in place": (in_place, {"inner": conv()}, 1.3),
    "circular conv": (lambda n, x: n.a(x), {"a": conv(padding_mode="circular")}, 1.01),
    "reflect conv": (lambda n, x: n.a(x), {"a": conv(padding_mode="reflect")}, 1.01),
    "replicate pad": (lambda n, x: F.pad(x, (1, 1, 1, 1), mode="replicate")[:, :, 1:-1, 1:-1], {}, 2.001),
    "dilated strided groups": (
        lambda n, x: F.interpolate(n.a(x), scale_factor=2.0),
        {"a": conv(dilation=2, padding=2, stride=2, groups=2)},
        1.3,
    ),
    "nearest": (lambda n, x: F.avg_pool2d(F.interpolate(x, scale_factor=2, mode="nearest"), 2), {}, 1.001),
    "bilinear": (lambda n, x: F.interpolate(x, size=(16, 12), mode="bilinear")[:, :, ::2, ::2], {}, 3.0),
    "bicubic of odd size": (
        lambda n, x: F.interpolate(x, size=(13, 11), mode="bicubic", align_corners=True),
        {},
        1.001,
    ),
    "average pooling with padding": (
        lambda n, x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
        {},
        1.001,
    ),
    "adaptive pooling": (lambda n, x: x + F.adaptive_avg_pool2d(x, 1), {}, 1.001),
    "centred": (lambda n, x: x - x.mean((2, 3), keepdim=True), {}, 1.001),
    "linear over channels": (
        lambda n, x: n.a(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
        {"a": nn.Linear(4, 3)},
        1.001,
    ),
    "einsum": (lambda n, x: torch.einsum("bchw,kc->bkhw", x, n.a.weight), {"a": nn.Linear(4, 3)}, 1.001),
    "overlapping transposed": (lambda n, x: n.a(x), {"a": nn.ConvTranspose2d(4, 4, 3, 1, 1)}, 1.001),
    "batch norm": (lambda n, x: n.a(x), {"a": nn.BatchNorm2d(4)}, 1.001),
    "rolled and flipped": (lambda n, x: x.roll(3, 2).flip(3).transpose(2, 3).transpose(2, 3), {}, 1.001),
    "expanded": (lambda n, x: x.mean(1, keepdim=True).expand(-1, 4, -1, -1), {}, 1.001),
    "index": (lambda n, x: x[:, [0, 0, 1, 2]], {}, 1.001),
    "masked": (lambda n, x: torch.where(torch.arange(6) < 3, x, 0.5 * x), {}, 1.2),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_networks_are_bounded_from_above_and_not_far(name: str) -> None:
    function, parts, slack = LINEAR[name]
    model = Net(function, **parts).float()
    report = examine(model)
    exact = norm(model)
    assert report.missing == "", report.missing
    assert report.bound is not None
    assert exact <= report.bound * (1 + 1e-12)
    assert report.bound <= exact * slack
    assert report.pixel_bound is not None
    pixels = jacobian(model).reshape(-1, *_logits(model).shape[1:], math.prod(SHAPE))[0]
    largest = torch.linalg.matrix_norm(pixels.flatten(1, 2).movedim(1, 0), 2).max()
    assert float(largest) <= report.pixel_bound * (1 + 1e-12)


def _logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(torch.zeros(1, *SHAPE, dtype=torch.float64))
    return logits


# Networks that are not linear: the bound, and a pair of points that shows that it cannot be much smaller


def max_min(net: Net, x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], 1)


def sort_by_where(net: Net, x: Tensor) -> Tensor:
    a, b = x[:, ::2], x[:, 1::2]
    swap = a > b
    return torch.cat([torch.where(swap, a, b), torch.where(swap, b, a)], 1)


def sort_by_mixture(net: Net, x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    swap = (a < b).to(x.dtype)
    return torch.cat([torch.lerp(a, b, swap), torch.lerp(b, a, swap)], 1)


def group_sort(net: Net, x: Tensor) -> Tensor:
    pairs = x.view(x.shape[0], 2, 2, *x.shape[2:])
    return torch.cat([pairs.min(2, keepdim=True)[0], pairs.max(2, keepdim=True)[0]], 2).view(x.shape)


def crelu(net: Net, x: Tensor) -> Tensor:
    return torch.cat([F.relu(x), F.relu(-x)], 1)


ACTIVE: dict[str, tuple[Callable[..., Tensor], float]] = {
    "MaxMin by halves": (max_min, 1.0),
    "MaxMin by where": (sort_by_where, 1.0),
    "MaxMin by weights of 0 and 1": (sort_by_mixture, 1.0),
    "larger of two by weights": (lambda n, x: torch.lerp(x, 0.5 * x, (x < 0.5 * x).to(x.dtype)), 1.25**0.5),
    "GroupSort by minimum and maximum": (group_sort, 1.0),
    "sort": (lambda n, x: x.view(1, 2, 2, 8, 6).sort(2).values.view(x.shape), 1.0),
    "positive and negative part": (crelu, 1.0),
    "larger of two": (lambda n, x: torch.maximum(x, 0.5 * x), 1.25**0.5),
    "relu in place": (lambda n, x: F.relu(x * 1.0, inplace=True), 1.0),
    "clamp": (lambda n, x: x.clamp(0, 1) + x, 2.0),
    "GELU": (lambda n, x: F.gelu(x), 1.1289041452),
    "SiLU": (lambda n, x: F.silu(x), 1.0998393202),
    "Hardswish": (lambda n, x: F.hardswish(x), 1.5),
    "SELU": (lambda n, x: F.selu(x), 1.7580993408),
    "leaky with slope 1.5": (lambda n, x: F.leaky_relu(x, 1.5), 1.5),
    "PReLU": (lambda n, x: F.prelu(x, torch.tensor([0.2, 0.3, -1.2, 0.5], dtype=x.dtype)), 1.2),
    "max pooling 3, stride 1": (lambda n, x: F.max_pool2d(x, 3, 1, 1), 3.0),
    "max pooling 3, stride 2": (lambda n, x: F.max_pool2d(x, 3, 2, 1), 2.0),
    "max pooling 2": (lambda n, x: F.max_pool2d(x, 2), 1.0),
    "nearest inside": (lambda n, x: F.relu(F.interpolate(x, scale_factor=2)), 2.0),
    "softmax": (lambda n, x: x.softmax(1), 0.5),
    "group norm": (lambda n, x: F.group_norm(x, 2, eps=1e-2), 10.0),
    "instance norm": (lambda n, x: F.instance_norm(x, eps=1e-2), 10.0),
    "layer norm": (lambda n, x: F.layer_norm(x, x.shape[1:], eps=1e-2), 10.0),
    "length of pixels": (lambda n, x: x.norm(dim=1, keepdim=True).expand(-1, 2, -1, -1), 2**0.5),
}


@pytest.mark.parametrize("name", ACTIVE)
def test_operations_that_are_not_linear(name: str) -> None:
    function, expected = ACTIVE[name]
    report = examine(Net(function))
    assert report.missing == ""
    assert report.bound == pytest.approx(expected, rel=1e-9)


NO_BOUND: dict[str, tuple[Callable[..., Tensor], str]] = {
    "product": (lambda n, x: x * x, "mul at the network itself"),
    "attention": (lambda n, x: (x.flatten(2).mT.softmax(2) @ x.flatten(2)).mT[..., :4, None], "bmm"),
    "choice": (lambda n, x: torch.where(x > 0.5, x, 0 * x), "where"),
    "choice by weights": (lambda n, x: torch.lerp(0 * x, x, (x > 0.5).to(x.dtype)), "lerp"),
    "mixture": (lambda n, x: torch.lerp(x, 3 * x, x.abs()), "lerp"),
    "mixture in the middle": (lambda n, x: torch.lerp(x, 3 * x, (x < 3 * x) * 2.0), "lerp"),
    "rounding": (lambda n, x: x.round(), "round"),
    "branch": (lambda n, x: x * 2 if float(x.sum()) > 1 else x, "depends on the numbers of the image"),
    "numbers": (lambda n, x: torch.from_numpy(x.detach().numpy() * 5.0), "without numbers"),
    "random": (lambda n, x: x + torch.rand_like(x), "random"),
    "view in place": (lambda n, x: _through_a_view(x), "through a view"),
    "written into zeros": (lambda n, x: _into_zeros(x), "writes into a constant"),
    "square root": (lambda n, x: x.abs().sqrt(), "sqrt"),
}


def _through_a_view(x: Tensor) -> Tensor:
    y = x + 0.0
    y[:, :1].mul_(5.0)
    return y


def _into_zeros(x: Tensor) -> Tensor:
    y = torch.zeros(x.shape, dtype=x.dtype)
    y[:, 1:] = 5.0 * x[:, 1:]
    return y


@pytest.mark.parametrize("name", NO_BOUND)
def test_what_has_no_rule_is_named_and_not_guessed(name: str) -> None:
    function, words = NO_BOUND[name]
    report = examine(Net(function))
    assert report.bound is None
    assert words in report.missing
    assert report.verdict is AuditVerdict.UNDECIDED
    assert report.sentence.startswith("no bound: ")


def test_a_class_that_overrides_forward_is_not_believed() -> None:
    class Conv2d(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return 7.0 * super().forward(input)

    layer = Conv2d(4, 4, 1)
    nn.init.orthogonal_(layer.weight)
    report = examine(nn.Sequential(layer, nn.ReLU()))
    assert report.bound == pytest.approx(7.0, rel=1e-6)
    assert report.verdict is AuditVerdict.UNDECIDED


def test_a_hook_is_part_of_the_computation() -> None:
    layer = nn.Conv2d(4, 4, 1)
    nn.init.orthogonal_(layer.weight)
    layer.register_forward_hook(lambda module, args, result: 3.0 * result)
    assert examine(nn.Sequential(layer)).bound == pytest.approx(3.0, rel=1e-6)


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    examine(model)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert next(model.parameters()).dtype is torch.float32
    assert not model[0]._forward_hooks
    assert not model[0]._forward_pre_hooks


# Random graphs


def _random_net(seed: int) -> Net:
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> int:
        return int(torch.randint(count, (1,), generator=generator))

    steps = [(draw(9), draw(1000), draw(1000)) for _ in range(7)]
    weights = [torch.randn(4, 4, 3, 3, generator=generator) / 6 for _ in steps]

    def function(net: Net, x: Tensor) -> Tensor:
        values = [x]
        for (kind, first, second), weight in zip(steps, weights, strict=True):
            a, b = values[first % len(values)], values[second % len(values)]
            half = a.shape[1] // 2
            made = [
                lambda: F.conv2d(a, weight.to(a), padding=1),  # noqa: B023
                lambda: a + b,  # noqa: B023
                lambda: torch.cat([a[:, :half], b[:, half:]], 1),  # noqa: B023
                lambda: torch.cat([a[:, half:], b[:, :half]], 1) - 0.5 * a,  # noqa: B023
                lambda: torch.cat([a[:, 1:], b[:, :1]], 1),  # noqa: B023
                lambda: F.interpolate(F.avg_pool2d(a, 2), scale_factor=2),  # noqa: B023
                lambda: a[:, [3, 2, 1, 0]] * 0.7 + a.mean(1, keepdim=True),  # noqa: B023
                lambda: torch.cat([a[:, :, ::2], a[:, :, 1::2]], 2) - b,  # noqa: B023
                lambda: torch.cat([a[:, ::2], -a[:, 1::2]], 1),  # noqa: B023
            ][kind]()
            values.append(made)
        return values[-1] + 0.1 * values[-2]

    return Net(function)


@pytest.mark.parametrize("seed", range(25))
def test_random_linear_graphs_stay_below_their_bound(seed: int) -> None:
    model = _random_net(seed)
    report = examine(model)
    exact = norm(model)
    assert report.bound is not None, report.missing
    assert exact <= report.bound * (1 + 1e-12)
    assert report.bound <= 30 * exact


def test_two_reflections_of_one_value_are_two_values() -> None:
    torchlip = pytest.importorskip("deel.torchlip")
    first, second = torchlip.HouseHolder(4), torchlip.HouseHolder(4, theta_initializer=0.3)
    report = examine(Net(lambda n, x: n.first(x) - n.second(x), first=first, second=second))
    assert report.bound == pytest.approx(2.0)


def test_the_same_bits_read_as_other_numbers_have_no_bound() -> None:
    report = examine(Net(lambda n, x: x.float().view(torch.bfloat16).float()[..., :6]))
    assert report.bound is None


def test_dropout_that_is_always_on_has_no_bound() -> None:
    assert examine(nn.Sequential(nn.Dropout2d())).bound == 1.0
    assert examine(Net(lambda n, x: F.dropout(x))).bound is None
