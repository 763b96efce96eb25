"""Published folder layouts, written here file by file as they are published, and pictures of another size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attackcheck.errors import InputError
from attackcheck.models.datasets import load_data
from attackcheck.models.layouts import CITYSCAPES, CITYSCAPES_COLOURS, KVASIR, PETS, VOC

RNG = np.random.default_rng(1)
SMOOTH = np.kron(RNG.integers(0, 256, (3, 4, 6)), np.ones((1, 8, 8))).astype(np.uint8)  # (3, 32, 48): JPEG keeps it


def save(path: Path, pixels: np.ndarray, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def written(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines))


def labels_of(spec: str, index: int = 0) -> np.ndarray:
    labels = load_data(spec)[index].labels
    assert labels is not None
    return labels.numpy()


def pets(root: Path) -> np.ndarray:
    trimap = RNG.integers(1, 4, (32, 48)).astype(np.uint8)
    for name in ("Abyssinian_1", "beagle_12"):
        save(root / "images" / f"{name}.jpg", SMOOTH.transpose(1, 2, 0), quality=95)
        save(root / "annotations" / "trimaps" / f"{name}.png", trimap)
        # The archive has such files, too, which are no pictures.
        (root / "annotations" / "trimaps" / f"._{name}.png").write_bytes(b"\0\5\26\7")
    written(root / "annotations" / "trainval.txt", ["Abyssinian_1 1 1 1", "beagle_12 5 2 4"])
    written(root / "annotations" / "test.txt", ["beagle_12 5 2 4"])
    return trimap


def test_pets(tmp_path: Path) -> None:
    trimap = pets(tmp_path)
    data = load_data(f"pets:{tmp_path}")
    assert (data.name, data.classes, len(data)) == ("pets:test", PETS, 1)
    assert data[0].name == "beagle_12"
    assert np.array_equal(labels_of(f"pets:{tmp_path}"), trimap.astype(np.int64) - 1)
    assert (data[0].image * 255 - torch.from_numpy(SMOOTH).float()).abs().mean() < 12
    assert [sample.name for sample in load_data(f"pets:{tmp_path}:trainval")] == ["Abyssinian_1", "beagle_12"]
    with pytest.raises(InputError, match="names of the pictures"):
        load_data(f"pets:{tmp_path / 'nowhere'}")
    written(tmp_path / "annotations" / "test.txt", ["#Image CLASS-ID SPECIES BREED ID"])
    with pytest.raises(InputError, match="got none"):
        load_data(f"pets:{tmp_path}")


def test_kvasir(tmp_path: Path) -> None:
    polyp = np.zeros((32, 48), bool)
    polyp[8:24, 16:40] = True
    mask = np.repeat((polyp * 255).astype(np.uint8)[:, :, None], 3, axis=2)
    for name in ("cju0qkwl35piu0993l0dewei2", "cju0qoxqj9q6s0835b43399p4"):
        save(tmp_path / "images" / f"{name}.jpg", SMOOTH.transpose(1, 2, 0))
        save(tmp_path / "masks" / f"{name}.jpg", mask, quality=75)
    (tmp_path / "kavsir_bboxes.json").write_text("{}")
    data = load_data(f"kvasir:{tmp_path}")
    assert (data.name, data.classes, len(data)) == ("kvasir", KVASIR, 2)
    assert np.array_equal(labels_of(f"kvasir:{tmp_path}", 1), polyp)
    (tmp_path / "masks" / "cju0qoxqj9q6s0835b43399p4.jpg").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        load_data(f"kvasir:{tmp_path}")[1]


def test_voc(tmp_path: Path) -> None:
    truth = np.zeros((32, 48), np.uint8)
    truth[4:, 6:20], truth[20:, 30:], truth[0] = 15, 20, 255
    root = tmp_path / "VOCdevkit" / "VOC2012"
    picture = Image.fromarray(truth)
    picture.putpalette([value % 256 for value in range(768)])
    (root / "SegmentationClass").mkdir(parents=True)
    picture.save(root / "SegmentationClass" / "2007_000032.png")
    save(root / "JPEGImages" / "2007_000032.jpg", SMOOTH.transpose(1, 2, 0))
    save(root / "JPEGImages" / "2007_000027.jpg", SMOOTH.transpose(1, 2, 0))  # not segmented
    for split in ("train", "val", "trainval"):
        written(root / "ImageSets" / "Segmentation" / f"{split}.txt", ["2007_000032"])
    data = load_data(f"voc:{root}")
    assert (data.name, data.classes, len(data)) == ("voc:val", VOC, 1)
    assert np.array_equal(labels_of(f"voc:{root}:train"), truth)
    assert len(VOC) == 21
    assert VOC[15] == "person"
    assert data.colours is not None
    assert [data.colours[k] for k in (0, 1, 8, 15, 20)] == [
        (0, 0, 0), (128, 0, 0), (64, 0, 0), (192, 128, 128), (0, 64, 128),
    ]  # fmt: skip


def test_cityscapes_has_its_colours() -> None:
    assert len(CITYSCAPES_COLOURS) == len(CITYSCAPES) == len(set(CITYSCAPES_COLOURS))
    assert CITYSCAPES_COLOURS[CITYSCAPES.index("car")] == (0, 0, 142)
    assert CITYSCAPES_COLOURS[CITYSCAPES.index("road")] == (128, 64, 128)


def folder(root: Path) -> tuple[np.ndarray, np.ndarray]:
    image = RNG.integers(0, 256, (12, 20, 3)).astype(np.uint8)
    mask = RNG.integers(0, 4, (12, 20)).astype(np.uint8)
    save(root / "images" / "a.png", image)
    save(root / "masks" / "a.png", mask)
    written(root / "classes.txt", list("wxyz"))
    return image, mask


def test_reduced_pictures_are_means_and_labels_stay_labels(tmp_path: Path) -> None:
    image, mask = folder(tmp_path)
    data = load_data(f"folder:{tmp_path}@12x20")
    assert torch.equal(data[0].image, load_data(f"folder:{tmp_path}")[0].image)
    assert np.array_equal(labels_of(f"folder:{tmp_path}@12x20"), mask)
    data = load_data(f"folder:{tmp_path}@4x5")
    assert (data.name, data.classes, tuple(data[0].image.shape)) == (f"folder:{tmp_path}@4x5", tuple("wxyz"), (3, 4, 5))
    # New pixel (i, j) has its centre at (3 i + 1.5, 4 j + 2): in row 3 i + 1, and between columns 4 j + 1 and 4 j + 2.
    assert np.array_equal(labels_of(f"folder:{tmp_path}@4x5"), mask[1::3, 1::4])
    save(tmp_path / "images" / "a.png", np.full((12, 20, 3), 77, np.uint8))
    torch.testing.assert_close(load_data(f"folder:{tmp_path}@4x5")[0].image, torch.full((3, 4, 5), 77 / 255))
    assert labels_of(f"folder:{tmp_path}@24x40").shape == (24, 40)
    assert np.array_equal(labels_of(f"folder:{tmp_path}@24x40"), np.kron(mask, np.ones((2, 2), np.uint8)))
    means = load_data(f"folder:{tmp_path}@6x10")[0].image
    assert float((means - image.mean() / 255).abs().mean()) < 0.3


def test_cropped_pictures_keep_their_shape(tmp_path: Path) -> None:
    image, mask = folder(tmp_path)
    data = load_data(f"folder:{tmp_path}@12x12+crop")
    assert data.name.endswith("@12x12+crop")
    torch.testing.assert_close(data[0].image, torch.from_numpy(image[:, 4:16]).permute(2, 0, 1).float() / 255)
    assert np.array_equal(labels_of(f"folder:{tmp_path}@12x12+crop"), mask[:, 4:16])
    assert labels_of(f"folder:{tmp_path}@6x6+crop").shape == (6, 6)
    assert labels_of(f"folder:{tmp_path}@24x12+crop").shape == (24, 12)


@pytest.mark.parametrize(
    "spec", ["pets:", "voc:", "kvasir:", "pets", "shipped@4x4", "folder:x@0x4", "nothing:x@4x4", "scenes:3@4x4"]
)
def test_wrong_specifications(spec: str) -> None:
    with pytest.raises(InputError, match="expected"):
        load_data(spec)
