"""Fixtures for soundness tests in pytest. Opt in with ``pytest_plugins = ["attackcheck.pytest_plugin"]``.

Nothing of torch is imported until a test asks for a fixture.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import torch

    from attackcheck.report import Report

__all__ = ["attackcheck_generator", "attackcheck_plan", "attackcheck_seed", "certificate"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --attackcheck-seed, --attackcheck-plan and --attackcheck-out."""
    group = parser.getgroup("attackcheck", "tests of robustness certificates")
    group.addoption("--attackcheck-seed", type=int, default=0, metavar="N", help="seed of all attacks (default: 0)")
    group.addoption(
        "--attackcheck-plan", default="quick", metavar="PLAN", help="quick, standard, thorough or FILE.toml"
    )
    group.addoption("--attackcheck-out", metavar="DIR", help="keep counterexamples here (default: the test's tmp_path)")


def pytest_report_header(config: pytest.Config) -> str | None:
    """Seed and plan, where they are not the usual ones."""
    seed, plan = config.getoption("--attackcheck-seed"), config.getoption("--attackcheck-plan")
    return None if (seed, plan) == (0, "quick") else f"attackcheck: plan {plan}, seed {seed}"


@pytest.fixture
def attackcheck_seed(request: pytest.FixtureRequest) -> int:
    """The seed given by --attackcheck-seed."""
    return int(request.config.getoption("--attackcheck-seed"))


@pytest.fixture
def attackcheck_plan(request: pytest.FixtureRequest) -> str:
    """The plan given by --attackcheck-plan."""
    return str(request.config.getoption("--attackcheck-plan"))


@pytest.fixture
def attackcheck_generator(attackcheck_seed: int) -> torch.Generator:
    """A generator with that seed, for the test's own random numbers."""
    import torch

    return torch.Generator().manual_seed(attackcheck_seed)


@pytest.fixture
def certificate(
    request: pytest.FixtureRequest, attackcheck_seed: int, attackcheck_plan: str, tmp_path: Path
) -> Callable[..., Report]:
    """``certificate(model, images, claim, **options)`` fails the test if attacks break the claim.

    It is :func:`attackcheck.testing.assert_certificate_holds` with seed, plan and the folder for counterexamples
    of this session; options win over them.
    """
    from attackcheck.testing import assert_certificate_holds

    out = request.config.getoption("--attackcheck-out")

    def check(model: Any, images: Any, claim: Any, **options: Any) -> Report:
        __tracebackhide__ = True
        folder = tmp_path / "counterexamples" if out is None else Path(out)
        given: dict[str, Any] = {"seed": attackcheck_seed, "plan": attackcheck_plan, "counterexamples": folder}
        return assert_certificate_holds(model, images, claim, **(given | options))

    return check
