"""Networks that are no function of one image: other rows of a batch, and chance."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attackcheck.faults.case import Built, Family, Proof, fault, scaled_fault
from attackcheck.faults.proofs import repeated
from attackcheck.faults.subjects import behind

__all__ = ["CASES"]


class _BatchContrast(nn.Module):
    """Moves every image away from the mean of its batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.5 * (x - x.mean(0, keepdim=True))


def in_other_company(built: Built) -> Proof:
    """One image beside two others has two predictions."""
    image, other = built.images[0].double(), built.images[1].double()
    model = built.model.double()
    with torch.no_grad():
        first = model(torch.stack([image, other]))[0]
        second = model(torch.stack([image, 1 - other]))[0]
    built.model.float()
    changed = int((first.argmax(0) != second.argmax(0)).sum())
    return Proof(float("inf") if changed else 0.0, f"{changed} pixels change with the rest of the batch")


@fault(
    Family.NETWORK,
    "images are contrasted with the mean of their batch: the certificate holds for an image alone",
    prove=in_other_company,
    refusable=True,
)
def rows_depend_on_the_batch(seed: int) -> Built:
    """Without any perturbation another neighbour in the batch changes the prediction."""
    return behind(_BatchContrast(), seed, "company", count=2)


class _Noisy(nn.Module):
    """Noise on every number, also in evaluation."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def forward(self, x: Tensor) -> Tensor:
        return x + self.sigma * torch.randn_like(x)


@scaled_fault(
    Family.NETWORK,
    "noise is added to the image at every evaluation: two predictions of one image differ",
    prove=repeated,
    knob="standard deviation of the noise",
    severities=(0.1, 0.01),
    refusable=True,
)
def random_logits(seed: int, severity: float) -> Built:
    """A certificate of such a model is a statement on probabilities, which this one is not."""
    return behind(_Noisy(severity), seed, "noise", balance=False)


class _Dropping(nn.Module):
    """Dropout that stays on, written as a function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.1)


@fault(
    Family.NETWORK,
    "dropout is called as a function, whose default is training mode",
    prove=repeated,
    refusable=True,
)
def dropout_in_evaluation(seed: int) -> Built:
    """`eval()` does not reach it."""
    return behind(_Dropping(), seed, "dropout", balance=False)


CASES = (
    rows_depend_on_the_batch,
    random_logits,
    dropout_in_evaluation,
)
