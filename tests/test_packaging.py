"""What is installed is what is in the tree, under one name."""

from importlib import metadata, resources
from pathlib import Path

import pytest

import attackcheck

ROOT = Path(__file__).parent.parent
ROOMS = {"attackcheck": "attackcheck", "attacks": "attackcheck.attacks", "models": "attackcheck.models"}


@pytest.mark.parametrize("folder", ROOMS)
def test_every_source_file_is_installed(folder):
    for source in (ROOT / folder).rglob("*.py"):
        package = ".".join([ROOMS[folder], *source.relative_to(ROOT / folder).parent.parts])
        assert (resources.files(package) / source.name).is_file(), f"{source} is not in the wheel"


def test_data_and_typing_marker_are_installed():
    assert (resources.files("attackcheck") / "py.typed").is_file()
    shipped = resources.files("attackcheck.models") / "shipped"
    assert {"isounet-xs.pt", "lipnet-xs.pt", "scenes.npz"} <= {entry.name for entry in shipped.iterdir()}


def test_shipped_checkpoints_are_small():
    shipped = resources.files("attackcheck.models") / "shipped"
    for entry in shipped.iterdir():
        assert len(entry.read_bytes()) < 3_000_000


def test_no_top_level_names_are_taken():
    names = {str(path).split("/")[0] for path in metadata.files("attackcheck") or ()}
    assert not names & {"models", "attacks", "tests"}


def test_everything_public_can_be_imported_and_nothing_is_hidden_by_a_module():
    for name in attackcheck.__all__:
        assert getattr(attackcheck, name).__module__.startswith("attackcheck.")
        assert not (resources.files("attackcheck") / f"{name}.py").is_file()


def test_readme_and_continuous_integration_say_the_same():
    readme, script = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    assert "pip install -c constraints.txt ." in readme
    assert "install --quiet --constraint constraints.txt ." in script
    assert "attackcheck verify" in readme
    assert "attackcheck verify" in script
    assert "tox" in readme
    assert '/tox"' in script
