"""A folder with a network whose claim fails at some pixels, five small images with labels, and a plan of every kind."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from attackcheck.cli import main

# Ray reads these once in a process, and they have to be those of every cluster that it joins later.
os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}

NETS = """
import time
from pathlib import Path
import torch
import attackcheck as ac
from attackcheck.models import exact

def net():
    model = exact.affine_conv(classes=3, kernel=3, seed=4).float()
    return model, ac.LipschitzClaim(0.3 * model.double().lipschitz_joint(8, 8))

def sound():
    model = exact.orthonormal_rows(seed=1).float()
    return model, ac.LipschitzClaim(1.0)

def other():
    model = exact.affine_conv(classes=3, kernel=3, seed=5).float()
    return model, ac.LipschitzClaim(0.3 * model.double().lipschitz_joint(8, 8))

def slow():
    inner, claim = net()
    def forward(x):
        if Path("slow").exists():
            time.sleep(0.004)
        return inner(x)
    return forward, claim

def bare():
    return exact.orthonormal_rows(seed=1).float()

def certifier(model, images, lipschitz):
    top = model(images).topk(2, dim=1).values
    return (top[:, 0] - top[:, 1]).double() / lipschitz  # a square root of two forgotten

def interrupted():
    inner, claim = net()
    calls = []
    def forward(x):
        if not Path("go").exists() and (not Path("run").exists() or Path("run/parts/image-000001.npz").exists()):
            calls.append(1)
        if len(calls) == 30:  # in the middle of an image
            raise KeyboardInterrupt
        return inner(x)
    return forward, claim
"""

PLAN = """
[[stage]]
attack = "linearised"
classes = 2
search = 1
iterations = 2
refine = 2
[[stage]]
attack = "ddn"
pixels = 2
steps = 5
[[stage]]
attack = "linearised"
objective = "region"
descent = 4
iterations = 1
[[stage]]
attack = "pgd"
objective = "image"
steps = 2
eps = [0.1, 0.5]
[[stage]]
attack = "lipschitz"
objective = "map"
steps = 4
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "plan.toml").write_text(PLAN)
    generator = np.random.default_rng(0)
    images = generator.random((5, 3, 8, 8), dtype=np.float32)
    images[1] = (images[1] * 255).round() / np.float32(255)
    labels = generator.integers(0, 3, (5, 8, 8))
    labels[:, 0, :3] = 255
    np.savez("images.npz", images=images, labels=labels)
    return tmp_path


@pytest.fixture
def verify(place):
    """The command, on those images; returns the exit code."""

    def command(*arguments, net="net"):
        common = ["--data", "arrays:images.npz", "--plan", "plan.toml", "--pixels", "4", "--region", "rect:1,1,2,3"]
        return main(["verify", f"nets.py:{net}", *common, "--threads", "1", *arguments])

    return command


@pytest.fixture
def plain():
    """A report without what may differ between machines: times, and where counterexamples lie."""

    def strip(document):
        if isinstance(document, list):
            return [strip(entry) for entry in document]
        if not isinstance(document, dict):
            return document
        left = {key: strip(value) for key, value in document.items() if key != "seconds"}
        if left.get("counterexample"):
            left["counterexample"] = Path(left["counterexample"]).name
        return left

    def read(path):
        return strip(json.loads(Path(path).read_text()))

    return read
