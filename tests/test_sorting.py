"""Sorting on a CPU is sorting anywhere."""

from __future__ import annotations

import pytest
import torch

from attackcheck import synchrony
from attackcheck.sorting import ascending


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("readable", [True, False])
def test_rows_are_sorted_as_torch_sorts_them(
    dtype: torch.dtype, readable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synchrony, "readable", lambda _: readable)
    values = torch.randn(3, 100, generator=torch.Generator().manual_seed(0)).mul(50).to(dtype)
    if dtype.is_floating_point:
        values[0, 5], values[1, 7], values[2, 9] = torch.inf, -torch.inf, torch.nan
    before = values.clone()
    found = ascending(values.t().contiguous().t())
    assert found.dtype == dtype
    torch.testing.assert_close(found, values.sort().values, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(values, before, rtol=0, atol=0, equal_nan=True)


def test_a_gradient_is_left_behind() -> None:
    assert not ascending(torch.rand(4, requires_grad=True)).requires_grad
