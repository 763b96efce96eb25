"""Networks computed around one pixel: the same logits and gradients as of the whole crop, at every pixel of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import attackcheck as ac
from attackcheck import Kind, examination
from attackcheck.attacks.plans import Plan, Stage
from attackcheck.cones import Spot, cone_of
from attackcheck.cones import rules as cone_rules
from attackcheck.cones.plan import planned
from attackcheck.cones.spans import Span
from attackcheck.counterexample import Outcome, load_counterexample, replay
from attackcheck.models import exact
from attackcheck.models.isounet import SIZES as ISOUNETS
from attackcheck.models.isounet import IsoUNet
from attackcheck.models.lipnet import SIZES as LIPNETS
from attackcheck.models.lipnet import LipNet
from attackcheck.models.networks import build
from attackcheck.tracing import trace_as_is


def seeded(make, seed=0):
    torch.manual_seed(seed)
    return make().eval().requires_grad_(False)


class Residual(nn.Module):
    """Convolutions beside a shortcut, normalised by stored statistics; in place where torch allows it."""

    def __init__(self, channels, dilation=1):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=dilation, dilation=dilation, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)
        self.second = nn.Conv2d(channels, channels, 3, padding=1, groups=2)

    def forward(self, x):
        y = F.relu(self.norm(self.first(x)), inplace=True)
        y = self.second(y)
        y += x
        return F.silu(y)


class Sorted(nn.Module):
    """Sorts pairs of channels through a view of five axes."""

    def forward(self, x):
        pairs = x.view(x.shape[0], x.shape[1] // 2, 2, *x.shape[2:])
        low, high = pairs.min(2).values, pairs.amax(2)
        return torch.stack([low, high], 2).flatten(1, 2)


class Ladder(nn.Module):
    """Down by pooling, up bilinearly and by larger transposed kernels, with channels attended to."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 5, padding=2)
        self.low = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.back = nn.ConvTranspose2d(8, 8, 4, stride=2, padding=1)
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x):
        fine = F.leaky_relu(self.stem(2 * (x - 0.5)), 0.2)
        pooled = F.max_pool2d(fine, 3, 2, 1)
        deep = self.low(torch.softmax(pooled, 1))
        up = self.back(F.interpolate(deep, scale_factor=2, mode="bilinear", align_corners=False))
        other = F.interpolate(F.avg_pool2d(fine, 2), scale_factor=2, mode="nearest")
        return self.head(torch.cat([up, torch.maximum(fine, other)], 1)).clamp(-3, 3)


def residual():
    return nn.Sequential(nn.Conv2d(3, 8, 2, 2), Residual(8), Residual(8, 2), nn.ConvTranspose2d(8, 5, 2, 2))


def grouped():
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Sorted(), nn.PReLU(8), nn.Conv2d(8, 5, 3, padding=1))


def uneven():
    """Other strides and kernels down than across."""
    down = nn.Conv2d(3, 6, (3, 2), (1, 2), (1, 0))
    return nn.Sequential(
        down, nn.Tanh(), nn.Conv2d(6, 6, (1, 3), padding=(0, 1)), nn.ConvTranspose2d(6, 5, (1, 2), (1, 2))
    )


UPSAMPLED = replace(LIPNETS["XS"], decoder=(16,), refine=(1,), upsample=2)
NETWORKS = {  # a network, its total stride, and a size of crops
    "lipnet": (lambda: build(LIPNETS["XS"], plain=True), 4, (48, 64)),
    "lipnet, upsampled": (lambda: LipNet(UPSAMPLED, plain=True), 4, (48, 48)),
    "lipnet, parametrised": (lambda: LipNet(LIPNETS["XS"]), 4, (32, 48)),
    "isounet": (lambda: IsoUNet(ISOUNETS["XS"], plain=True), 8, (64, 72)),
    "residual": (residual, 2, (28, 24)),
    "grouped": (grouped, 1, (19, 16)),
    "uneven": (uneven, 2, (16, 22)),
    "ladder": (Ladder, 4, (36, 40)),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_gradients_are_those_of_the_whole_crop_at_every_pixel(name):
    make, stride, (height, width) = NETWORKS[name]
    model = seeded(make)
    crop = torch.rand(3, height, width, generator=torch.Generator().manual_seed(3))
    cone = cone_of(model, crop, stride)
    assert cone is not None
    assert 0 < cone.share < 0.75
    rows, columns = torch.cartesian_prod(torch.arange(height), torch.arange(width)).unbind(1)
    if len(rows) > 1000:  # every row and every column still
        kept = torch.arange(0, len(rows), 7)
        rows, columns = rows[kept], columns[kept]
    assert (len(set(rows.tolist())), len(set(columns.tolist()))) == (height, width)
    # another point at every pixel of the crop, not only at those that cones are compared at when they are made
    for part in torch.split(torch.arange(len(rows)), 64):
        points = crop + 0.3 * torch.randn(len(part), 3, height, width, generator=torch.Generator().manual_seed(1))
        index = torch.arange(len(part))
        places, seen = (rows[part], columns[part]), []
        for call, down, across in ((model, *places), cone.at(*places)):
            leaf = points.clone().requires_grad_()
            logits = call(leaf)[index, :, down, across]
            seen.append((logits.detach(), *torch.autograd.grad(logits[:, 0].sum() - logits[:, 1].sum(), leaf)))
        for one, other in zip(*seen, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(one.abs().max()))


def test_rows_may_be_repeated_and_chosen():
    model = seeded(residual)
    crop = torch.rand(3, 28, 24)
    cone = cone_of(model, crop, 2)
    rows, columns = torch.tensor([0, 13, 27]), torch.tensor([5, 23, 0])
    spot = Spot(cone, rows, columns)
    index = torch.tensor([2, 0, 0, 1])
    part, points = spot.rows(index), torch.rand(4, 3, 28, 24)
    found = cone(points, part)[torch.arange(4), :, part.inside[0], part.inside[1]]
    expected = model(points)[torch.arange(4), :, rows[index], columns[index]]
    torch.testing.assert_close(found, expected)


def test_gradients_of_gradients_are_those_of_the_whole_crop():
    model = seeded(Ladder).double()
    crop = torch.rand(3, 36, 40, dtype=torch.float64)
    place = torch.tensor([17]), torch.tensor([30])
    seen = []
    for call, down, across in ((model, *place), cone_of(model, crop, 4).at(*place)):
        points = crop[None].clone().requires_grad_()
        (gradient,) = torch.autograd.grad(call(points)[0, 0, down, across].sum(), points, create_graph=True)
        seen.append(torch.autograd.grad(gradient.square().sum(), points)[0])
    torch.testing.assert_close(*seen)
    assert float(seen[0].abs().max()) > 0


def test_most_of_the_work_is_saved_and_counted():
    model = nn.Sequential(*[nn.Conv2d(4, 4, 3, padding=1) for _ in range(10)]).requires_grad_(False)
    plan = planned(trace_as_is(model, torch.rand(4, 21, 21)), 1)
    # the k-th layer from the end needs (2k - 1)^2 of 441 entries
    least = sum((2 * k - 1) ** 2 for k in range(1, 11)) / 4410
    assert least < plan.share < 1.7 * least
    sizes = [max((p.box.rows.length for p in step.args if hasattr(p, "box")), default=21) for step in plan.steps]
    assert sizes[0] == 21
    assert sizes[-1] == 3


def test_spans_lie_inside_and_hold_what_they_should():
    for unit, size in ((1, 12), (2, 24), (4, 48)):
        for first in range(-9, 9):
            for length in range(1, 14):
                span = Span(first, length, size, unit)
                for grid in (1, 2, 4):
                    wide = span.aligned(grid)
                    start, cell = wide.start(torch.arange(size // unit)), torch.arange(size // unit)
                    assert int(start.min()) >= 0
                    assert int((start + wide.length).max()) <= size
                    assert wide.length <= size
                    if not wide.whole and size % grid == 0 and unit % grid == 0:
                        assert (start % grid == 0).all()
                    for entry in (first, first + length - 1):
                        at = cell * unit + entry
                        there = (at >= 0) & (at < size)
                        assert ((at >= start) & (at < start + wide.length))[there].all()
                both = span.union(Span(3, 2, size, unit))
                assert both.whole or (
                    both.first <= min(first, 3) and both.first + both.length >= max(first + length, 5)
                )


class Positional(nn.Module):
    def __init__(self, height, width):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.register_buffer("ramp", torch.rand(1, 4, height, width))
        self.rest = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))

    def forward(self, x):
        return self.rest(self.first(x) + self.ramp)


class Straight(torch.autograd.Function):
    """Rounds, and says that it did not."""

    @staticmethod
    def forward(ctx, x):  # noqa: ARG004
        return torch.round(8 * x) / 8

    @staticmethod
    def backward(ctx, gradient):  # noqa: ARG004
        return gradient


class Odd(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1))

    def forward(self, x):
        match self.kind:
            case "rounds":
                x = Straight.apply(x)
            case "looks at numbers":
                x = -x if float(x.sum()) < 0 else x
            case "draws":
                x = x + 0.01 * torch.randn_like(x)
            case "returns two":
                return self.layers(x), x
            case "turns":
                return self.layers(x.transpose(2, 3)).transpose(2, 3)
        return self.layers(x)


@pytest.mark.parametrize("kind", ["rounds", "looks at numbers", "draws", "returns two", "turns"])
def test_networks_that_cannot_be_narrowed_are_left_alone(kind):
    assert cone_of(seeded(lambda: Odd("plain")), torch.rand(3, 24, 24), 1) is not None
    assert cone_of(seeded(lambda: Odd(kind)), torch.rand(3, 24, 24), 1) is None


def test_other_networks_without_a_cone():
    crop = torch.rand(3, 24, 24)
    circular = nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1, padding_mode="circular") for _ in range(3)])
    assert cone_of(circular.requires_grad_(False), crop, 1) is None
    assert cone_of(lambda x: x, crop, 1) is None  # nobody can look inside
    assert cone_of(seeded(residual), torch.rand(3, 25, 24), 2) is None  # cells do not fit
    gradientless = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Threshold(1e9, 0.0), nn.Conv2d(4, 4, 3, padding=1))
    cone_of(gradientless.requires_grad_(False), crop, 1)  # whatever it says, it does not fail


class Crossed(nn.Module):
    """A value that goes down a stride and is added to one that does not: their boxes have other grids."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.p = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.c, self.down, self.up = (
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Conv2d(4, 4, 2, 2),
            nn.ConvTranspose2d(4, 4, 2, 2),
        )

    def forward(self, x):
        a, b = self.a(x), self.p(self.b(x))
        return self.c(a + b) + self.up(self.down(a))


class Keeping(nn.Module):
    """Keeps what it saw for the next image of that size."""

    def __init__(self):
        super().__init__()
        self.seen, self.layers = None, nn.Sequential(*[nn.Conv2d(4, 4, 3, padding=1) for _ in range(4)])

    def forward(self, x):
        if self.seen is None or self.seen.shape[-2:] != x.shape[-2:]:
            self.seen = torch.ones_like(x[:1, :1])
        return self.layers(torch.cat([x, self.seen.expand(len(x), -1, -1, -1)], 1))


class Clamp(torch.autograd.Function):
    """Says that it let everything through; the same as nothing inside the range of images."""

    @staticmethod
    def forward(ctx, x):  # noqa: ARG004
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx, gradient):  # noqa: ARG004
        return gradient


class Apart(nn.Module):
    """Scaled by what gradients do not see, outside the range of images only."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*[nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)])

    def forward(self, x):
        with torch.no_grad():
            beyond = F.relu(x - 1.0)
        return self.layers(x * (1 + beyond))


class Clamped(Apart):
    def forward(self, x):
        return self.layers(Clamp.apply(x))


def test_boxes_of_other_grids_meet():
    assert cone_of(seeded(Crossed), torch.rand(3, 32, 32), 2) is not None


@pytest.mark.parametrize("make", [Clamped, Apart])
def test_gradients_that_operations_do_not_show_are_noticed(make):
    assert cone_of(seeded(make), torch.rand(3, 32, 32), 1) is None


def test_tracing_leaves_nothing_in_the_network():
    model, image = seeded(Keeping), torch.rand(1, 3, 32, 32)
    cone_of(model, image[0], 1)
    assert type(model.seen) in (type(None), torch.Tensor)  # none without numbers
    assert type(model(image)) is torch.Tensor


def test_a_network_without_operations_has_no_cone():
    assert cone_of(nn.Identity(), torch.rand(3, 32, 32), 1) is None


def test_what_comes_before_an_unknown_operation_is_computed_as_a_whole():
    model = seeded(lambda: Positional(24, 24))
    crop = torch.rand(3, 24, 24)
    plan = planned(trace_as_is(model, crop), 1)
    assert plan is not None
    assert cone_of(model, crop, 1) is not None  # positions inside the crop are what they were: nothing was cut before


def drawn(seed):
    """A random network, of layers that have rules and of some that have none, and the total stride of its cells."""
    torch.manual_seed(seed)
    some = [
        nn.Conv2d(4, 4, (3, 5), padding=(2, 4), dilation=2, groups=2),
        nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.Tanh(), nn.ConvTranspose2d(4, 4, 3, 2, 1, output_padding=1)),
        nn.Sequential(nn.MaxPool2d(3, 2, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Upsample(scale_factor=2)),
        nn.Sequential(nn.AvgPool2d(4, 2, 1, count_include_pad=False), nn.Upsample(scale_factor=2, mode="bilinear")),
        nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(16, 16, 3, padding=1), nn.PixelShuffle(2)),
        nn.Sequential(nn.ZeroPad2d((2, 1, 1, 0)), nn.Conv2d(4, 4, (2, 4))),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="replicate"),
        nn.GroupNorm(2, 4),
        nn.BatchNorm2d(4),
        nn.Softmax(1),
        Residual(4),
        Sorted(),
        nn.Conv2d(4, 4, 3, padding=1),
    ]
    chosen = [some[i] for i in torch.randint(len(some), (4,)).tolist()]
    ends = nn.Conv2d(3, 4, 2, 2), nn.ConvTranspose2d(4, 4, 2, 2), nn.Conv2d(4, 4, 3, padding=1)
    return nn.Sequential(ends[0], *chosen, *ends[1:]).eval().requires_grad_(False)


def test_cones_of_random_networks():
    made = 0
    for seed in range(24):
        model, crop = drawn(seed), torch.rand(3, 36, 40, generator=torch.Generator().manual_seed(seed))
        cone = cone_of(model, crop, 4)
        assert not any(part._forward_pre_hooks or part._forward_hooks for part in model.modules())
        if cone is None:
            continue
        made += 1
        rows, columns = torch.randint(36, (24,)), torch.randint(40, (24,))
        points = crop + 0.3 * torch.randn(24, 3, 36, 40)
        found = []
        for call, down, across in ((model, rows, columns), cone.at(rows, columns)):
            leaf = points.clone().requires_grad_()
            logits = call(leaf)[torch.arange(24), :, down, across]
            found.append((logits.detach(), *torch.autograd.grad(logits[:, 0].sum() - logits[:, 1].sum(), leaf)))
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(one.abs().max()), msg=f"seed {seed}")
    assert made >= 8


@pytest.mark.parametrize("fault", ["kernels are thought smaller", "padding is forgotten"])
def test_a_wrong_rule_is_noticed(monkeypatch, fault):
    model, crop = seeded(residual), torch.rand(3, 28, 24)
    assert cone_of(model, crop, 2) is not None
    right = cone_rules._sliding

    def wrong(stride, padding, reach):
        if fault == "padding is forgotten":
            return right(stride, (0, 0), reach)
        return right(stride, padding, (max(0, reach[0] - 1), max(0, reach[1] - 1)))

    monkeypatch.setattr(cone_rules, "_sliding", wrong)
    assert cone_of(model, crop, 2) is None


EDGES = np.array([[0, r, c] for r in (0, 1, 50, 98, 99) for c in (0, 46, 91)])
PLAN = Plan(
    "many",
    (
        Stage("linearised", options={"rays": 2}),
        Stage("ddn", pixels=6, options={"steps": 15}),
        Stage("cw", pixels=3, options={"steps": 8, "searches": 3}),
        Stage("foolbox.ddn", pixels=2, options={"steps": 10}),
        Stage("lipschitz", pixels=2, options={"steps": 10, "radii": (0.01, 0.1)}),
    ),
)


def test_runs_with_and_without_cones_find_the_same(monkeypatch):
    model, image = seeded(residual), torch.rand(3, 100, 92, generator=torch.Generator().manual_seed(1))
    made, reports = [], []
    for narrow in (True, False):

        def make(*given, narrow=narrow):
            cone = cone_of(*given) if narrow else None
            made.append(cone)
            return cone

        monkeypatch.setattr(examination, "cone_of", make)
        reports.append(ac.verify(model, image, ac.LipschitzClaim(2.0, "pixel"), plan=PLAN, pixels=EDGES))
    assert made[0] is not None
    assert made[1] is None
    with_cones, without = reports
    assert with_cones.counts == without.counts
    found, expected = (report.flip_distance[report.attacked] for report in reports)
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    assert np.median(np.abs(found / expected - 1)) < 1e-5
    for one, other in zip(with_cones.attacks, without.attacks, strict=True):
        assert (one.name, one.attacked, one.flipped) == (other.name, other.attacked, other.flipped)
        assert one.forward == pytest.approx(other.forward, rel=0.1)


def test_closed_forms_are_reached_and_violations_replay_through_cones(tmp_path, monkeypatch):
    model = exact.affine_conv(kernel=5, seed=1).float()
    # a bottleneck of ones and zeros after it: the same function with layers that a cone can leave out most of
    chain = nn.Sequential(model, *[nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(3)]).requires_grad_(False)
    for layer in list(chain)[1:]:
        nn.init.dirac_(layer.weight)
    made = []
    monkeypatch.setattr(examination, "cone_of", lambda *given: made.append(cone_of(*given)) or made[-1])
    image = torch.rand(3, 97, 90, generator=torch.Generator().manual_seed(0))
    report = ac.verify(chain, image, ac.LipschitzClaim(100.0, "pixel"), attacks=["linearised"], pixels=40)
    assert made[0] is not None
    truth = model.double().flip_distance(image.double()).numpy()[report.attacked[0]]
    found = report.flip_distance[report.attacked]
    assert (found >= truth * (1 - 1e-5)).all()
    assert (found <= truth * 1.01).all()
    model.float()
    true = float(torch.linalg.matrix_norm(model.weight.flatten(1).double(), 2))
    report = ac.verify(
        chain, image, ac.LipschitzClaim(true / 2.5, "pixel"), plan="quick", pixels=10, counterexamples=tmp_path
    )
    assert Kind.PIXEL in {violation.kind for violation in report.violations}
    for violation in report.violations:
        example = load_counterexample(violation.counterexample)
        assert replay(example, chain).outcome is Outcome.REPRODUCED


def test_a_cone_that_differs_from_this_image_is_not_used(monkeypatch):
    """A network whose rare branch a cone does not have: the crop is right, and is used without the cone."""
    model, image = seeded(residual), torch.rand(3, 100, 92, generator=torch.Generator().manual_seed(1))
    other = seeded(residual, 1)
    used = []
    monkeypatch.setattr(examination, "cone_of", lambda _, crop, stride: cone_of(other, crop, stride))
    original = examination.Crops
    monkeypatch.setattr(examination, "Crops", lambda *given: used.append(given) or original(*given))
    report = ac.verify(model, image, ac.LipschitzClaim(2.0, "pixel"), attacks=["linearised"], pixels=6)
    assert [len(given) for given in used] == [3]
    assert np.isfinite(report.flip_distance[report.attacked]).all()
