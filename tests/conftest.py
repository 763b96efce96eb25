"""Small networks are fastest on one thread, and where freed memory is kept, as the command line keeps it.

Hypothesis keeps no data base in the tree, tests draw numbers apart.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator

import pytest
import torch
from hypothesis import HealthCheck, settings

from attackcheck.allocator import keep_freed

Report = pytest.CollectReport

torch.set_num_threads(1)
keep_freed()
settings.register_profile(
    "attackcheck", deadline=None, database=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("attackcheck")


def _seed(name: str) -> None:
    """Random numbers that nobody seeded belong to the place that draws them, not to what ran before it or beside it."""
    torch.manual_seed(zlib.crc32(name.encode()))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Report, Report]:
    _seed(collector.nodeid)
    return (yield)


@pytest.fixture(autouse=True)
def _own_numbers(request: pytest.FixtureRequest) -> None:
    _seed(request.node.nodeid)
