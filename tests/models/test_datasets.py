"""Every specification of pictures, read right, and every way in which one can be wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from attackcheck.errors import InputError
from attackcheck.models.datasets import load_data
from attackcheck.models.layouts import CITYSCAPES
from attackcheck.models.scenes import CLASSES, scene

RNG = np.random.default_rng(0)
PHOTOS = RNG.integers(0, 256, (3, 3, 16, 24)).astype(np.uint8)
MASKS = RNG.integers(0, 4, (3, 16, 24)).astype(np.uint8)


def test_shipped_scenes() -> None:
    for data in (load_data(), load_data(None), load_data("shipped")):
        assert (data.name, data.classes, data.ignore) == ("shipped", CLASSES, 255)
        assert 8 <= len(data) <= 12
    sample = data[0]
    assert sample.image.shape == (3, 64, 128)
    assert sample.image.dtype == torch.float32
    assert sample.labels is not None
    assert sample.labels.dtype == torch.int64
    assert set(sample.labels.flatten().tolist()) <= set(range(7))


def test_shipped_files_are_small() -> None:
    import attackcheck.models.shelf as shelf

    assert shelf.SCENES.stat().st_size < 400_000
    assert all(shelf.shipped(name).stat().st_size < 3_000_000 for name in shelf.NAMES)
    with pytest.raises(InputError, match="isounet-xs"):
        shelf.shipped("resnet")


@pytest.mark.parametrize(
    ("spec", "count", "seed", "size"),
    [("scenes", 16, 0, (64, 128)), ("scenes:3", 3, 0, (64, 128)), ("scenes:2:7", 2, 7, (64, 128)),
     ("scenes:2:7:32x48", 2, 7, (32, 48))],
)  # fmt: skip
def test_scenes(spec: str, count: int, seed: int, size: tuple[int, int]) -> None:
    data = load_data(spec)
    assert len(data) == count
    image, labels = scene(seed, 1, *size)
    sample = data[1]
    assert torch.equal((sample.image * 255).round().byte(), torch.from_numpy(image.transpose(2, 0, 1)))
    assert sample.labels is not None
    assert np.array_equal(sample.labels.numpy(), labels)
    with pytest.raises(IndexError):
        data[count]
    assert [s.name for s in data] == [data[i].name for i in range(count)]
    assert data[-1].name == data[count - 1].name


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("kind", ["uint8", "float32", "float64"])
def test_arrays(tmp_path: Path, save: Any, kind: str) -> None:
    images = PHOTOS if kind == "uint8" else (PHOTOS / 255).astype(kind)
    save(tmp_path / "a.npz", images=images, labels=MASKS)
    data = load_data(f"arrays:{tmp_path / 'a.npz'}")
    assert len(data) == 3
    assert data.classes is None
    for index in (2, 0, 1):
        sample = data[index]
        torch.testing.assert_close(sample.image, torch.from_numpy(PHOTOS[index] / 255).float())
        assert sample.labels is not None
        assert np.array_equal(sample.labels.numpy(), MASKS[index])


def test_arrays_without_labels(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", images=PHOTOS)
    assert load_data(f"arrays:{tmp_path / 'a.npz'}")[0].labels is None


def _with(value: float) -> np.ndarray:
    images = (PHOTOS / 255).astype(np.float32)
    images[1, 0, 0, 0] = value
    return images


@pytest.mark.parametrize(("arrays", "message"), [
    ({"images": _with(np.nan)}, r"in \[0, 1\]"),
    ({"images": _with(1.01)}, r"in \[0, 1\]"),
    ({"images": _with(-0.01)}, r"in \[0, 1\]"),
    ({"images": PHOTOS.astype(np.int32)}, "uint8 or float"),
    ({"images": PHOTOS[0]}, "shape"),
    ({"images": PHOTOS[:0]}, "shape"),
    ({"images": PHOTOS, "labels": MASKS[:2]}, "labels of shape"),
    ({"images": PHOTOS, "labels": MASKS[:, :5]}, "labels of shape"),
    ({"images": PHOTOS, "labels": MASKS.astype(float)}, "whole labels"),
    ({"images": PHOTOS, "labels": MASKS.astype(int) - 3}, "labels of .* in 0..255"),
    ({"pictures": PHOTOS}, "named images"),
    ({"images": np.array([{}, {}], dtype=object)}, "C-ordered"),
    ({"images": np.asfortranarray(PHOTOS)}, "C-ordered"),
])  # fmt: skip
def test_wrong_arrays(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=message):
        list(load_data(f"arrays:{tmp_path / 'a.npz'}"))


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 broken"])
def test_unreadable_arrays(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(InputError, match="cannot be read"):
        load_data(f"arrays:{tmp_path / 'a.npz'}")


def test_truncated_arrays(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", images=PHOTOS)
    whole = (tmp_path / "a.npz").read_bytes()
    (tmp_path / "a.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError):
        list(load_data(f"arrays:{tmp_path / 'a.npz'}"))


def _folder(root: Path, masks: bool = True) -> Path:
    for index in range(3):
        for kind in ("images", "masks"):
            (root / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(PHOTOS[index].transpose(1, 2, 0)).save(root / "images" / f"{index}.png")
        if masks:
            Image.fromarray(MASKS[index]).save(root / "masks" / f"{index}.png")
    return root


def test_folder(tmp_path: Path) -> None:
    data = load_data(f"folder:{_folder(tmp_path)}")
    assert [sample.name for sample in data] == ["0", "1", "2"]
    torch.testing.assert_close(data[1].image, torch.from_numpy(PHOTOS[1]).float() / 255)
    labels = data[1].labels
    assert labels is not None
    assert np.array_equal(labels.numpy(), MASKS[1])
    (tmp_path / "classes.txt").write_text("a\nb\nc\n")
    data = load_data(f"folder:{tmp_path}")
    labels = data[1].labels
    assert data.classes == ("a", "b", "c")
    assert labels is not None
    assert np.array_equal(labels.numpy(), np.where(MASKS[1] == 3, 255, MASKS[1]))


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load_data(f"folder:{tmp_path / 'nowhere'}")
    (tmp_path / "empty" / "images").mkdir(parents=True)
    with pytest.raises(InputError, match="got none"):
        load_data(f"folder:{tmp_path / 'empty'}")
    with pytest.raises(InputError, match="a mask for every image"):
        load_data(f"folder:{_folder(tmp_path / 'bare', masks=False)}")
    root = _folder(tmp_path / "full")
    (root / "images" / "1.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="cannot be read"):
        list(load_data(f"folder:{root}"))
    root = _folder(tmp_path / "coloured")
    (root / "masks" / "1.png").write_bytes((root / "images" / "1.png").read_bytes())
    with pytest.raises(InputError, match="one class index per pixel"):
        list(load_data(f"folder:{root}"))
    root = _folder(tmp_path / "resized")
    Image.fromarray(MASKS[0][:8]).save(root / "masks" / "1.png")
    with pytest.raises(InputError, match="labels of shape"):
        list(load_data(f"folder:{root}"))


def test_cityscapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.zeros((16, 24), np.uint8)
    ids[0, :4], ids[0, 4:8], ids[0, 8:12] = 7, 33, 26
    for split in ("val", "train"):
        for kind in ("leftImg8bit", "gtFine"):
            (tmp_path / kind / split / "bonn").mkdir(parents=True)
        stem = "bonn_000001_000019"
        Image.fromarray(PHOTOS[0].transpose(1, 2, 0)).save(
            tmp_path / "leftImg8bit" / split / "bonn" / f"{stem}_leftImg8bit.png"
        )
        Image.fromarray(ids).save(tmp_path / "gtFine" / split / "bonn" / f"{stem}_gtFine_labelIds.png")
    data = load_data(f"cityscapes:{tmp_path}")
    assert (len(data), data.classes, data.name) == (1, CITYSCAPES, "cityscapes:val")
    assert len(CITYSCAPES) == 19
    labels = data[0].labels
    assert labels is not None
    assert labels[0, [0, 4, 8, 12]].tolist() == [0, 18, 13, 255]
    assert CITYSCAPES[13] == "car"
    assert len(load_data(f"cityscapes:{tmp_path}:train")) == 1
    monkeypatch.setenv("CITYSCAPES_DATASET", str(tmp_path))
    assert len(load_data("cityscapes")) == 1
    with pytest.raises(InputError, match="no such folder"):
        load_data(f"cityscapes:{tmp_path}:test")
    monkeypatch.delenv("CITYSCAPES_DATASET")
    with pytest.raises(InputError, match="CITYSCAPES_DATASET"):
        load_data("cityscapes")


@pytest.mark.parametrize(
    "spec",
    ["", "shipped:3", "scene", "scenes:", "scenes:0", "scenes:x", "scenes:3:1:8x8", "scenes:3:1:64", "folder:",
     "folder", "arrays:", "arrays:/nowhere.npz", "imagenet", "scenes:3:1:99999x99999"],
)  # fmt: skip
def test_wrong_specifications(spec: str) -> None:
    if spec in {"", "scenes:"}:
        assert len(load_data(spec))
        return
    with pytest.raises(InputError, match="expected"):
        load_data(spec)
