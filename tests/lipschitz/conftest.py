"""Exact norms, from the matrices of torch's own operations."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

Exact = Callable[[Callable[[Tensor], Tensor], tuple[int, ...]], float]


@pytest.fixture(scope="session")
def exact() -> Exact:
    """The largest singular value of an operation (B, *shape) -> (B, ...), without its constant part."""

    def norm(operation: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> float:
        units = torch.eye(torch.Size(shape).numel(), dtype=torch.float64).reshape(-1, *shape)
        rows = operation(units) - operation(torch.zeros_like(units[:1]))
        return float(torch.linalg.svdvals(rows.flatten(1)).max())

    return norm
