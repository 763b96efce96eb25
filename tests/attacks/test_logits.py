"""What is said of logits the fast way is what the plain operators say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attackcheck import synchrony
from attackcheck.attacks import _logits


def drawn(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Logits (2, 5, 3, 4) with many ties between classes, and labels (2, 3, 4)."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randint(0, 4, (2, 5, 3, 4), generator=generator).to(dtype)
    return logits, torch.randint(0, 5, (2, 3, 4), generator=generator)


def plain_lead(logits: Tensor, label: Tensor) -> Tensor:
    index = label.unsqueeze(1)
    return (logits.gather(1, index) - logits.scatter(1, index, -torch.inf).amax(1, keepdim=True)).squeeze(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_lead_and_its_gradient_are_those_of_plain_operators(dtype: torch.dtype) -> None:
    logits, label = drawn(dtype)
    weight = torch.rand(label.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    gradients = []
    for function in (_logits.lead, plain_lead):
        points = logits.clone().requires_grad_()
        value = function(points, label)
        assert torch.equal(value, plain_lead(logits, label))
        gradients += torch.autograd.grad(value, points, weight)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6 if dtype != torch.bfloat16 else 0.02, atol=0)
    assert torch.count_nonzero(gradients[0]) > 2 * label.numel()  # equal rivals share


def test_the_lead_of_one_pixel_in_each_row() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 5.0]])
    assert torch.equal(_logits.lead(logits, torch.tensor([0, 1])), torch.tensor([1.0, 0.0]))


@pytest.mark.parametrize("readable", [True, False])
def test_predictions_are_those_of_argmax_at_ties_and_broken_values(
    readable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synchrony, "readable", lambda _: readable)
    logits, label = drawn()
    for broken in (None, torch.nan, torch.inf, -torch.inf):
        if broken is not None:
            logits[1, 2, :2] = broken
            logits[0, :2, 1] = broken
        expected = logits.argmax(1)
        assert torch.equal(_logits.predicted(logits), expected)
        assert torch.equal(_logits.predicts(logits, label), expected == label)
        ahead = _logits.lead(logits, label)
        assert torch.equal(_logits.predicts(logits, label, ahead), expected == label)
        assert 0 < int((expected == label).sum()) < label.numel()
