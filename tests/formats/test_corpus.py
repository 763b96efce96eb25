"""Hostile and broken inputs end in one sentence and exit code 2, quickly and small, and nothing of them runs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    command = [sys.executable, "-W", "error::ResourceWarning", str(HERE / "corpus.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_there_are_many(lines):
    assert len({line["case"] for line in lines}) >= 60
    assert len(lines) >= 200


def test_each_ends_in_exit_code_2_and_one_sentence(lines):
    for line in lines:
        what = f"{line['case']} {line['command']}: {line['code']} {line['err']}"
        assert line["code"] == 2, what
        sentences = [text for text in line["err"].splitlines() if text.startswith("attackcheck: ")]
        others = [text for text in line["err"].splitlines() if not text.startswith(("attackcheck: ", "warning "))]
        assert others == [], what
        # Where nothing is certified the run is made, and its last line says that nothing was checked.
        assert len(sentences) == 1 or "NOTHING CHECKED" in line["out"], what
        assert "could not go on" not in line["err"], what
        assert "Traceback" not in line["err"], what
        assert "\x1b" not in line["err"], what
        assert len(line["err"]) < 6000, what


def test_each_is_quick_and_small(lines):
    assert max(line["seconds"] for line in lines) < 5.0  # of CPU, on any machine
    assert max(line["megabytes"] for line in lines) < 1024.0


def test_nothing_ran_and_nothing_was_written(lines):
    assert [line["command"] for line in lines if line["made"]] == []


@pytest.mark.slow
def test_twenty_seconds_of_fuzzing():
    done = subprocess.run([sys.executable, str(HERE / "fuzz.py"), "20"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[0].replace(",", "")) > 50
