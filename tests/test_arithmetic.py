"""Distances are exact, copies are frozen, and the error bound of float64 logits covers their true error."""

import math
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

from attackcheck.arithmetic import Reference, exact_arithmetic, exact_distance, frozen


@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e10])
def test_distance_is_exact_and_never_too_small(scale):
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(3, 40, 50, generator=generator) * scale
    b = a + torch.randn(3, 40, 50, generator=generator) * scale * 1e-3
    truth = sum(
        (Fraction(q) - Fraction(p)) ** 2 for p, q in zip(a.flatten().tolist(), b.flatten().tolist(), strict=True)
    )
    measured = Fraction(exact_distance(a, b)) ** 2
    assert truth <= measured <= truth * (1 + Fraction(1, 2**45))


def test_distance_keeps_what_a_float32_norm_loses():
    a = torch.zeros(1, 2000, 2000)
    b = torch.full_like(a, 1e-4)
    b[0, 0, 0] = 3.0
    truth = math.sqrt(9.0 + (2000 * 2000 - 1) * float(torch.tensor(1e-4)) ** 2)
    assert exact_distance(a, b) == pytest.approx(truth, rel=1e-14)


def test_frozen_copy_has_plain_weights_and_leaves_the_model_alone():
    model = nn.Sequential(orthogonal(nn.Conv2d(3, 3, 1, bias=False)))
    twin = frozen(model)
    assert not any("parametrizations" in name for name, _ in twin.named_parameters())
    assert not any(p.requires_grad for p in twin.parameters())
    assert all(p.requires_grad for p in model.parameters())
    x = torch.rand(1, 3, 4, 4)
    assert torch.equal(twin(x), model(x))


OFFSETS = {
    "operator": lambda z, c: (z + c) - c,
    "in place": lambda z, c: z.clone().add_(c).sub_(c),
    "augmented": lambda z, c: augmented(z, c),
    "batch norm": lambda z, c: nn.functional.batch_norm(z, z.new_full((4,), -c), z.new_ones(4), eps=0.0) - c,
}


def augmented(z, c):
    z = z.clone()
    z += c
    z -= c
    return z


class Cancelling(nn.Module):
    """A huge number is added and taken away: float32 loses everything, float64 a part that depends on the number."""

    def __init__(self, offset, how):
        super().__init__()
        self.inner = nn.Conv2d(3, 4, 1)
        self.offset, self.how = offset, how

    def forward(self, x):
        return OFFSETS[self.how](self.inner(x), self.offset)


@pytest.mark.parametrize("offset", [0.0, 1e3, 2.0**40])
@pytest.mark.parametrize("how", OFFSETS)
@pytest.mark.parametrize("seed", range(2))
def test_error_bound_covers_the_true_error_of_float64(offset, how, seed):
    torch.manual_seed(seed)
    model = Cancelling(offset, how).eval()
    x = torch.rand(1, 3, 5, 5)
    reference = Reference(frozen(model), x)
    logits = reference(x)
    bound, norm_bound = reference.error(x, logits)
    weight = [[Fraction(v) for v in row] for row in model.inner.weight.flatten(1).tolist()]
    bias = [Fraction(v) for v in model.inner.bias.tolist()]
    worst, square = [Fraction(0)] * 4, Fraction(0)
    for r in range(5):
        for c in range(5):
            pixel = [Fraction(v) for v in x[0, :, r, c].tolist()]
            for k in range(4):
                truth = sum((w * p for w, p in zip(weight[k], pixel, strict=True)), bias[k])
                error = abs(Fraction(float(logits[0, k, r, c])) - truth)
                worst[k], square = max(worst[k], error), square + error**2
    assert all(error <= Fraction(limit) for error, limit in zip(worst, bound.tolist(), strict=True))
    assert square <= Fraction(norm_bound) ** 2
    assert bound.max() < 1e-13 * max(1.0, 100 * offset)  # and it is of use


@pytest.mark.parametrize(("weights", "exact"), [((0.0, 1.0, 1.0), True), ((0.0, 0.5, 1.0), False)])
def test_a_mixture_by_weights_of_0_and_1_is_a_choice_and_rounds_nothing(weights, exact):
    class Mixed(nn.Module):
        def forward(self, x):
            return torch.lerp(x, x.flip(3), torch.tensor(weights, dtype=x.dtype)[:, None, None])

    x = torch.rand(1, 3, 5, 5)
    reference = Reference(Mixed().eval(), x)
    logits = reference(x)
    bound, _ = reference.error(x, logits)
    floor = 4 * torch.finfo(torch.float64).eps * logits.abs().amax(dim=(0, 2, 3))
    assert bool((bound <= floor * (1 + 1e-9)).all()) is exact


def test_low_precision_inside_is_noticed_and_counts():
    weight = torch.rand(2, 3, 1, 1)

    def half(x):  # comes out in the type it was given, but is a thousand times coarser
        return torch.nn.functional.conv2d(x.bfloat16(), weight.bfloat16()).to(x.dtype)

    x = torch.rand(1, 3, 4, 4)
    reference = Reference(half, x)
    assert reference.precision == "bfloat16"
    logits = reference(x)
    truth = torch.nn.functional.conv2d(x.double(), weight.double())
    assert ((logits - truth).abs()[0].flatten(1).amax(1) <= reference.error(x, logits)[0]).all()


def test_a_model_that_cannot_run_in_float64_is_judged_in_float32_and_says_so():
    weight = torch.rand(2, 3, 1, 1)

    def stubborn(x):
        return torch.nn.functional.conv2d(x.float(), weight)

    assert Reference(stubborn, torch.rand(1, 3, 2, 2)).precision == "float32"
    assert Reference(frozen(nn.Conv2d(3, 2, 1)), torch.rand(1, 3, 2, 2)).precision == "float64"


def test_tf32_is_off_inside_and_as_before_outside():
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        with exact_arithmetic():
            assert not torch.backends.cudnn.allow_tf32
            assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before
