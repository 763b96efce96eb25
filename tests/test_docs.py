"""Every command in the documentation runs, with the exit code that it says; every link leads somewhere.

The commands of docs/ci.md and docs/cluster.md run in tests/runs, on less work.
"""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
ELSEWHERE = ("ci.md", "cluster.md")
COMMANDS = [
    page
    for page in PAGES
    if page.name not in ELSEWHERE and any(kind == "sh" for kind, _ in BLOCK.findall(page.read_text()))
]


def run(command, folder):
    """One line of a page's shell block; its exit code is 0, or what a comment at its end says."""
    expected = re.search(r"# exit (\d+)$", command)
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    environment |= {"COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONSAFEPATH", None)  # a page's script imports the file beside it, as it does for its reader
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == (int(expected[1]) if expected else 0), f"{command}\n{done.stdout}"


@pytest.mark.slow
@pytest.mark.parametrize("page", COMMANDS, ids=lambda page: page.stem)
def test_commands_run(page, tmp_path):
    network = re.search(r"```python\n(# mynet.py\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[1]
    (tmp_path / "mynet.py").write_text(network)
    for kind, text in BLOCK.findall(page.read_text()):
        named = re.match(r"# (\S+\.(?:py|toml|yml|yaml))\n", text)
        if named:
            (tmp_path / named[1]).write_text(text)
        elif kind == "sh":
            for command in text.replace("\\\n", " ").splitlines():
                if command.strip() and not command.startswith(("#", "pip install")):
                    run(command, tmp_path)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "ARCHITECTURE.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_every_page_is_in_the_site():
    site = (ROOT / "mkdocs.yml").read_text()
    assert [page.name for page in PAGES if f": {page.name}\n" not in site] == []
    assert [name for name in re.findall(r"(\S+\.md)", site) if not (ROOT / "docs" / name).exists()] == []


def test_the_start_page_names_every_page():
    start = (ROOT / "docs" / "index.md").read_text()
    assert [page.name for page in PAGES if page.name != "index.md" and f"]({page.name})" not in start] == []


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {page.stem for page in PAGES} - {"index"} <= {entry.name for entry in (tmp_path / "site").iterdir()}


@pytest.mark.parametrize("name", ["cli", "python"])
def test_references_are_those_of_parser_and_docstrings(name):
    spec = importlib.util.spec_from_file_location("references", ROOT / "docs" / "references.py")
    references = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(references)
    again = "write it again: python docs/references.py"
    assert (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8") == getattr(references, name)(), again
