"""The stand-alone script judges as attackcheck does, on any number of threads and in any batch."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import attackcheck as ac
from attackcheck import Kind
from attackcheck.attacks.plans import Plan, Stage
from attackcheck.models import exact

SCRIPT = Path(__file__).parents[1] / "examples" / "replay_alone.py"
FACTORY = """
import torch
from attackcheck.models import exact

def broken():
    return exact.orthonormal_rows(seed=3).float(), "and more"

def repaired():
    model = exact.orthonormal_rows(seed=3).float()
    model.weight.data.mul_(0.5)
    model.bias.data.mul_(0.5)
    return model
"""


@pytest.fixture(scope="module")
def violations(tmp_path_factory):
    folder = tmp_path_factory.mktemp("found")
    (folder / "factory.py").write_text(FACTORY)
    model = exact.orthonormal_rows(seed=3).float()
    images = torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    claim = ac.LipschitzClaim(0.9)
    plan = Plan("all kinds", (Stage("linearised"), Stage("lipschitz", objective="map", options={"steps": 20})))
    report = ac.verify(model, images, claim, plan=plan, pixels=8, counterexamples=folder)
    return folder, report.violations


def judged(folder, violation, factory, *options):
    command = [sys.executable, str(SCRIPT), str(violation.counterexample), f"{folder / 'factory.py'}:{factory}"]
    return subprocess.run([*command, *options], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("options", [(), ("--threads", "2", "--batch", "5")], ids=["alone", "in a batch"])
@pytest.mark.parametrize("kind", [Kind.PIXEL, Kind.TWO_BALL, Kind.SET, Kind.LIPSCHITZ])
def test_the_script_agrees_about_every_kind(violations, kind, options):
    folder, found = violations
    violation = next(v for v in found if v.kind is kind)
    done = judged(folder, violation, "broken", *options)
    assert done.returncode == 1, done.stdout + done.stderr
    assert float(done.stdout.split("(x ")[1].split(")")[0]) == pytest.approx(violation.ratio, rel=1e-5)


def test_half_the_logits_obey_half_the_constant(violations):
    folder, found = violations
    for kind in (Kind.PIXEL, Kind.LIPSCHITZ):
        done = judged(folder, next(v for v in found if v.kind is kind), "repaired")
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_script_is_short_and_shares_no_code_with_attackcheck():
    text = SCRIPT.read_text()
    assert len(text.splitlines()) <= 60
    assert "import attackcheck" not in text
    assert "from attackcheck" not in text
