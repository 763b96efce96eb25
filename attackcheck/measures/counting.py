"""Counts of one prediction of one image: what every measure is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attackcheck.measures.components import Components
from attackcheck.measures.costs import pieces

__all__ = ["Counts", "counts", "number", "truths"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Counts:
    """One prediction of one image, counted.

    ``right`` of ``valid`` pixels are as labelled; ``kept`` of ``pixels`` are as in the clean prediction; ``alive`` of
    ``components`` survive; per class ``(K,)``: labelled ``positives``, ``intersection`` and ``union``.
    """

    pixels: int
    kept: int
    valid: int
    right: int
    components: int
    alive: int
    positives: Array
    intersection: Array
    union: Array


def truths(labels: Tensor, valid: Tensor, classes: int) -> Tensor:
    """Labels ``(n,)`` as int16: K for what is no class, K + 1 for what does not count."""
    found = torch.empty(labels.shape, dtype=torch.int16, device=labels.device)
    known = torch.full((classes + 2,), classes, dtype=torch.int16, device=labels.device)
    known[1:-1] = torch.arange(classes, device=labels.device)
    for some in pieces(len(labels), labels.device):
        truth = known.index_select(0, labels[some].clamp(-1, classes).long().add_(1))
        found[some] = truth.masked_fill_(~valid[some], classes + 1)
    return found


def counts(
    predicted: Tensor,
    clean: Tensor,
    labels: Tensor | None,
    valid: Tensor | None,
    classes: int,
    components: Components,
    survivors: int,
    truth: Tensor | None = None,
) -> Counts:
    """Count a prediction.

    Args:
        predicted: ``(n,)`` int64; -1 is no class.
        clean: ``(n,)`` the clean prediction.
        labels, valid: ``(n,)``, None without labels.
        classes: K.
        components: of the clean prediction.
        survivors: how many of them survive here.
        truth: :func:`truths` of these labels, if they are known.
    """
    zeros = np.zeros(classes, dtype=np.int64)
    positives, intersection, union, right, total = zeros, zeros, zeros, 0, 0
    if labels is not None and valid is not None:
        truth = truths(labels, valid, classes) if truth is None else truth
        table = _confusion(truth, predicted, classes)
        hit = table.diagonal()[:classes]
        positives, intersection = table.sum(dim=1)[:classes].numpy(), hit.numpy()
        union = positives + table.sum(dim=0)[:classes].numpy() - intersection
        right, total = int(hit.sum()), int(table.sum())
    return Counts(
        pixels=len(predicted),
        kept=len(predicted) if predicted is clean else number(predicted == clean),
        valid=total,
        right=right,
        components=len(components.needed),
        alive=survivors,
        positives=positives,
        intersection=intersection,
        union=union,
    )


def number(mask: Tensor) -> int:
    """How many are true."""
    return int(mask.sum()) if mask.device.type != "cpu" else int(np.count_nonzero(mask.numpy()))  # much faster there


def _confusion(truth: Tensor, predicted: Tensor, classes: int) -> Tensor:
    """How many pixels that count have which truth and which prediction, ``(K + 1, K + 1)`` int64 on the CPU."""
    # One class more for predictions that are none.
    shown = torch.full((classes + 1,), classes, dtype=torch.int64, device=predicted.device)
    shown[1:] = torch.arange(classes, device=predicted.device)
    table = torch.zeros((classes + 2) * (classes + 1), dtype=torch.int64)
    for some in pieces(len(truth), truth.device):
        code = shown.index_select(0, predicted[some] + 1).add_(truth[some], alpha=classes + 1)
        table += _histogram(code, len(table))
    return table.reshape(classes + 2, classes + 1)[:-1]


def _histogram(codes: Tensor, count: int) -> Tensor:
    if codes.device.type != "cpu":
        return torch.bincount(codes, minlength=count).cpu()
    return torch.from_numpy(np.bincount(codes.numpy(), minlength=count))  # several times as fast on a CPU
