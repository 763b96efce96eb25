"""The cookbook's suites run as they stand, and find in published layers what is wrong with them."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "cookbook.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)

AOC = """
from orthogonium.layers.conv.AOC import AdaptiveOrthoConv2d
def make(stride):
    return AdaptiveOrthoConv2d(4, 4 * stride**2, 3, stride=stride, padding=1, padding_mode="{mode}", bias=False)
"""
SOC = """
from orthogonium.layers.conv.adaptiveSOC import AdaptiveSOCConv2d
def make(stride):
    return AdaptiveSOCConv2d(4, 4, 3, stride=1, padding=1, padding_mode="zeros", bias=False)
"""
SPECTRAL = """
from deel.torchlip import SpectralConv2d
def make(stride):
    return SpectralConv2d(4, 4, 3, stride=1, padding=1, padding_mode="zeros", bias=False)
"""
LAYERS = {
    "zeros": AOC.format(mode="zeros"),
    "reflect": AOC.format(mode="reflect"),
    "circular": AOC.format(mode="circular"),
    "soc": SOC,
    "spectral": SPECTRAL,
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """(layer, test) -> passed or failed, of one run over all layers."""
    pytest.importorskip("orthogonium")
    pytest.importorskip("deel.torchlip")
    folder = tmp_path_factory.mktemp("cookbook")
    suite = next(block for block in BLOCKS if "from mylayer import make" in block)
    assert len([line for line in suite.splitlines() if line.strip()]) <= 20
    for name, source in LAYERS.items():
        (folder / f"layer_{name}.py").write_text(source)
        (folder / f"test_{name}.py").write_text(suite.replace("from mylayer import", f"from layer_{name} import"))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x" * 0 or "--tb=line",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
    ]
    done = subprocess.run(
        [*command, "--junitxml=out.xml", f"--rootdir={folder}", "-W", "ignore", str(folder)],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    found = {}
    for case in ElementTree.parse(folder / "out.xml").iter("testcase"):
        layer = case.get("classname").removeprefix("test_")
        assert case.find("error") is None, done.stdout
        failure = case.find("failure")
        found[layer, case.get("name")] = "passed" if failure is None else failure.get("message", "")
    return found


def failing(outcomes, layer):
    return {test for (name, test), outcome in outcomes.items() if name == layer and outcome != "passed"}


SIZES = [f"test_norm[{stride}-size{number}]" for stride in (1, 2) for number in range(3)]
MOVED = [f"test_norm_of_whatever_training_makes[{seed}]" for seed in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["zeros", "spectral"])
def test_sound_layers_pass(outcomes, layer):
    assert {test for name, test in outcomes if name == layer} == {*SIZES, *MOVED}
    assert failing(outcomes, layer) == set()


@pytest.mark.slow
def test_reflecting_padding_is_found_at_every_size(outcomes):
    assert failing(outcomes, "reflect") == {*SIZES, *MOVED}
    assert "is not 1-Lipschitz; at least " in outcomes["reflect", SIZES[0]]


@pytest.mark.slow
def test_circular_padding_is_found_under_stride_at_odd_sizes_only(outcomes):
    assert failing(outcomes, "circular") == {"test_norm[2-size1]", "test_norm[2-size2]"}


@pytest.mark.slow
def test_a_truncated_exponential_is_found(outcomes):
    assert set(MOVED) <= failing(outcomes, "soc")


@pytest.mark.parametrize("block", [b for b in BLOCKS if "mylayer" not in b], ids=range(len(BLOCKS) - 1))
def test_the_other_blocks_run(block, tmp_path):
    if "def test_certificate(certificate" in block:
        pytest.skip("run in test_pytest_plugin.py")
    scope = {}
    exec(compile(block, "cookbook", "exec"), scope)
    for name, function in scope.items():
        if name.startswith("test_"):
            function()
