"""The benchmark against other libraries runs, and its numbers hang together."""

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "peers.py"


def compared(tmp_path: Path, *arguments: str) -> dict:
    file = tmp_path / "peers.json"
    markdown = tmp_path / "peers.md"
    command = [sys.executable, str(SCRIPT), "--json", str(file), "--markdown", str(markdown), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert "| attack |" in markdown.read_text(encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


def test_two_contestants_on_the_affine_model(tmp_path):
    content = compared(
        tmp_path, "--subjects", "affine", "--kinds", "pixel", "--pixels", "3", "--images", "1",
        "--only", "attackcheck quick,foolbox DeepFool",
    )  # fmt: skip
    (sheet,) = content["sheets"]
    rows = {row["attack"]: row for row in sheet["table"]}
    assert set(rows) == {"attackcheck quick", "foolbox DeepFool"}
    for result in sheet["results"]:
        assert result["failures"] == {}
        for distance, exact in zip(result["distance"], sheet["radius"], strict=True):
            assert exact * (1 - 1e-5) <= distance <= 1.03 * exact  # DeepFool goes 2 % too far
    for row in rows.values():
        assert row["found"] == "3/3"
        assert row["forward"] >= 1
        assert row["backward"] >= 1
        assert row["ms"] > 0
    foolbox = rows["foolbox DeepFool"]
    assert math.isclose(foolbox["behind peers' best"], 0, abs_tol=1e-12)
    assert foolbox["ours as tight"] == "quick"


@pytest.mark.slow
@pytest.mark.skipif(find_spec("adv_lib") is None, reason="adv-lib is not installed")
def test_adv_lib_takes_part(tmp_path):
    content = compared(
        tmp_path, "--subjects", "affine", "--pixels", "2", "--images", "1", "--kinds", "pixel,region", "--regions", "1",
        "--only", "attackcheck standard,adv-lib DeepFool,adv-lib FAB,adv-lib DAG",
    )  # fmt: skip
    for sheet in content["sheets"]:
        for result in sheet["results"]:
            assert result["failures"] == {}
            assert all(distance is not None for distance in result["distance"])


def test_unknown_subjects_are_refused(tmp_path):
    done = subprocess.run([sys.executable, str(SCRIPT), "--subjects", "nobody"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "expected subjects among" in done.stderr
