"""Every fault planted in the judging code makes a test fail: what is not tested is not known to work."""

import os
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
LISTED = tomllib.loads((HERE / "mutants.toml").read_text())
MUTANTS = LISTED["mutant"]
PACKAGES = {"attackcheck": "", "attackcheck.attacks": "attacks", "attackcheck.models": "models"}


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A copy of the package under test, in the layout of an installed one."""
    folder = tmp_path_factory.mktemp("original")
    for package, below in PACKAGES.items():
        source = Path(find_spec(package).origin).parent
        shutil.copytree(
            source, folder / "attackcheck" / below, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
        )
    return folder


def failing(folder, tests):
    """Output of the first failing test against the package in ``folder``, None if all pass."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    command += [str(HERE.parent / name) for name in tests]
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    where = [sys.executable, "-c", "import attackcheck; print(attackcheck.__file__)"]
    used = subprocess.run(where, capture_output=True, text=True, env=environment, cwd=folder, check=True).stdout
    assert used.startswith(str(folder)), used
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=HERE.parent, check=False)
    assert done.returncode in (0, 1, 2), done.stdout + done.stderr
    assert done.returncode != 2 or "error" not in done.stdout.splitlines()[-1], done.stdout  # broken, not mutated
    return done.stdout if done.returncode else None


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant["name"])
def test_a_mutant_changes_one_place_that_exists(mutant, original):
    text = (original / "attackcheck" / mutant["file"]).read_text()
    assert text.count(mutant["old"]) == 1
    compile(text.replace(mutant["old"], mutant["new"]), mutant["file"], "exec")


def test_there_are_thirty_mutants_of_different_names():
    assert len({mutant["name"] for mutant in MUTANTS}) == len(MUTANTS) >= 30


@pytest.mark.mutation
def test_the_original_survives(original):
    assert failing(original, LISTED["tests"]) is None


@pytest.mark.mutation
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant["name"])
def test_a_mutant_dies(mutant, original, tmp_path):
    shutil.copytree(original, tmp_path / "mutated", dirs_exist_ok=True)
    file = tmp_path / "mutated" / "attackcheck" / mutant["file"]
    file.write_text(file.read_text().replace(mutant["old"], mutant["new"]))
    assert failing(tmp_path / "mutated", mutant.get("tests", LISTED["tests"])) is not None
