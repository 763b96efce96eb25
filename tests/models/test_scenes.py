"""Drawn scenes: deterministic, of any size, with every class, and learnable from colour and place."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from attackcheck.models.scenes import CLASSES, export, scene


def test_a_scene_is_a_function_of_seed_and_index() -> None:
    image, labels = scene(3, 5)
    again, same = scene(3, 5)
    assert np.array_equal(image, again)
    assert np.array_equal(labels, same)
    assert not np.array_equal(image, scene(3, 6)[0])
    assert not np.array_equal(image, scene(4, 5)[0])


@pytest.mark.parametrize("size", [(16, 16), (33, 47), (64, 128), (120, 90), (256, 512)])
def test_any_size(size: tuple[int, int]) -> None:
    for index in range(4):
        image, labels = scene(0, index, *size)
        assert image.shape == (*size, 3)
        assert labels.shape == size
        assert image.dtype == labels.dtype == np.uint8
        assert labels.max() < len(CLASSES)


def test_every_class_appears_and_none_dominates() -> None:
    labels = np.stack([scene(1, index)[1] for index in range(60)])
    shares = np.bincount(labels.ravel(), minlength=len(CLASSES)) / labels.size
    assert shares.min() > 0.004
    assert shares.max() < 0.5


def test_pictures_are_neither_flat_nor_saturated() -> None:
    images = np.stack([scene(2, index)[0] for index in range(20)]).astype(float)
    assert images.std((1, 2)).min() > 10
    assert (images == 255).mean() < 0.05
    assert (images == 0).mean() < 0.05


def test_street_like_places() -> None:
    labels = np.stack([scene(1, index)[1] for index in range(60)])
    road, sky = CLASSES.index("road"), CLASSES.index("sky")
    assert (labels[:, -1] == road).mean() > 0.5
    assert (labels[:, :30] == road).mean() < 0.02
    assert (labels[:, 36:] == sky).sum() == 0


def test_export_and_its_command(tmp_path: Path) -> None:
    export(tmp_path / "direct.npz", count=2, seed=9, height=32, width=48)
    subprocess.run(
        [sys.executable, "-m", "attackcheck.models.scenes", "--export", str(tmp_path / "command.npz"),
         "--count", "2", "--seed", "9", "--size", "32x48"], check=True,
    )  # fmt: skip
    with np.load(tmp_path / "direct.npz") as direct, np.load(tmp_path / "command.npz") as command:
        assert direct["images"].shape == (2, 3, 32, 48)
        assert direct["labels"].shape == (2, 32, 48)
        assert np.array_equal(direct["images"], command["images"])


@pytest.mark.slow
def test_drawing_is_quick() -> None:
    scene(0, 0)
    began = time.process_time()
    for index in range(50):
        scene(0, index)
    assert (time.process_time() - began) / 50 < 0.05
