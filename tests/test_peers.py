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


def sheet(subject: str, unit: str, results: list[tuple[str, str, list[float | None], float]]) -> dict:
    return {
        "subject": subject, "note": "two places", "radius": [1.0, 2.0], "certified": True, "unit": unit, "row": None,
        "results": [
            {"contestant": name, "kind": kind, "budget": "", "distance": distance, "forward": 1.0, "backward": 1.0,
             "milliseconds": time, "failures": {}}
            for name, kind, distance, time in results
        ],
    }  # fmt: skip


def test_runs_are_summed_up(tmp_path):
    pixels = [
        ("attackcheck quick", "ours", [2.0, 8.0], 1.0),  # tightness .5, .25
        ("attackcheck standard", "ours", [1.25, 4.0], 4.0),  # .8, .5
        ("foolbox DDN", "foolbox", [1.0, None], 10.0),  # 1, 0
        ("adv-lib FAB", "adv_lib", [1.6, 4.0], 8.0),  # .625, .5
    ]
    regions = [
        ("attackcheck quick", "ours", [4.0, 4.0], 3.0),
        ("adv-lib DAG", "adv_lib", [5.0, 4.0], 12.0),
    ]
    head = {"machine": "m", "versions": "v", "date": "d"}
    files = [tmp_path / "first.json", tmp_path / "second.json"]
    command = "python benchmarks/peers.py --only 'adv-lib FAB' --data folder:/home/me/val --json /home/me/x --seed 3"
    files[0].write_text(
        json.dumps({**head, "budgets": "full", "command": command, "sheets": [sheet("net", "pixel", pixels)]})
    )
    files[1].write_text(
        json.dumps({**head, "budgets": "quick", "command": "c", "sheets": [sheet("net", "region", regions)]})
    )
    command = [sys.executable, str(SCRIPT), "--join", *map(str, files)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    # best of all peers: 1 and .5; best of all: the same
    assert "| net, papers' budgets, seed 3 | 2 | +50.0 % |  | +13.3 % |  | adv-lib FAB +25.0 % | 13.3 % |  |" in told
    assert "| foolbox DDN | 2.5 |" in told  # a tightness of .5, and quick has .375
    assert "| adv-lib FAB | 2.0 |" in told
    assert "| net, papers' budgets, seed 3 | foolbox DDN | 2.5 | 2 | 0.5 | 2 | standard |" in told
    assert "| net, regions | quick | 0.3750 | 3 | 1 of 2, 0.25 |" in told
    assert "| net, regions | adv-lib DAG | 0.3500 | 12 |  |" in told
    assert "--only 'adv-lib FAB' --data folder:val --seed 3" in told
    assert "/home/me" not in told


def test_unknown_subjects_are_refused(tmp_path):
    done = subprocess.run([sys.executable, str(SCRIPT), "--subjects", "nobody"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "expected subjects among" in done.stderr
