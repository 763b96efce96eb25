"""Checkpoints come back as they went, and every hostile or broken file is one sentence."""

import copy
import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from attackcheck.errors import InputError
from attackcheck.models.checkpoint import load_checkpoint, load_state, save_checkpoint
from attackcheck.models.constants import Constants
from attackcheck.models.datasets import load_data
from attackcheck.models.isounet import IsoUNetConfig
from attackcheck.models.lipnet import LipNetConfig
from attackcheck.models.networks import Config, build, export
from attackcheck.models.shelf import NAMES, shipped
from attackcheck.models.training import measure

CONFIGS: list[Config] = [
    LipNetConfig(4, widths=(4, 6), stages=(1, 0), branch=4, decoder=(4, 4), std=(0.5, 0.4, 0.3), upsample=1),
    IsoUNetConfig(4, width=4, depth=1, head=4),
]
Content = dict[str, Any]


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> Content:
    path = tmp_path_factory.mktemp("good") / "net.pt"
    save_checkpoint(path, export(build(CONFIGS[1], seed=0)), card={"seed": 0})
    found: Content = torch.load(path, weights_only=True)
    return found


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


@pytest.mark.parametrize("config", CONFIGS, ids=["lipnet", "isounet"])
def test_what_is_saved_is_loaded(config: Config, tmp_path: Path) -> None:
    network = export(build(config, seed=0))
    save_checkpoint(tmp_path / "net.pt", network, card={"accuracy": 0.5, "classes": ["a", "b"]})
    loaded = load_checkpoint(tmp_path / "net.pt")
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(loaded.model(images), network(images))
    assert not loaded.model.training
    assert not any(value.requires_grad for value in loaded.model.parameters())
    assert (loaded.lipschitz_joint, loaded.lipschitz_pixel) == network.constants()
    assert loaded.card == {"accuracy": 0.5, "classes": ["a", "b"]}
    assert loaded.sha256 == hashlib.sha256((tmp_path / "net.pt").read_bytes()).hexdigest()
    assert load_state(tmp_path / "net.pt")[0].keys() == network.state_dict().keys()
    assert os.listdir(tmp_path) == ["net.pt"]


def test_a_claim_is_kept_as_given(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "n.pt", export(build(CONFIGS[0])), card={}, lipschitz=Constants(0.5, 0.25))
    loaded = load_checkpoint(tmp_path / "n.pt")
    assert (loaded.lipschitz_joint, loaded.lipschitz_pixel) == (0.5, 0.25)


@pytest.mark.parametrize("name", NAMES)
def test_shipped_checkpoints_keep_their_promises(name: str) -> None:
    loaded = load_checkpoint(shipped(name))
    proven = loaded.model.constants()  # type: ignore[operator]
    assert loaded.lipschitz_joint == pytest.approx(proven.joint, rel=1e-11)
    assert loaded.lipschitz_pixel <= loaded.lipschitz_joint < 1.0001
    found = measure(loaded.model, load_data("shipped"), lipschitz=loaded.lipschitz_pixel, classes=7)
    assert found.accuracy > 0.94
    assert found.miou > 0.8
    assert found.radius > 0.12
    assert str(loaded.card["command"]).startswith("attackcheck train")
    assert float(str(loaded.card["accuracy"])) > 0.94


def test_no_file_and_no_checkpoint(tmp_path: Path, content: Content) -> None:
    assert "there is no" in refusal(tmp_path / "nowhere.pt")
    assert "directory" in refusal(tmp_path)
    path = tmp_path / "net.pt"
    path.write_bytes(b"")
    assert "empty" in refusal(path)
    for text in (b"hello", b"# a page\n", b'{"a": 1}'):
        path.write_bytes(text)
        assert "no torch file" in refusal(path)
    torch.save(content, path)
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert "truncated" in refusal(path)
    torch.save([1, 2], path)
    assert "a list" in refusal(path)
    torch.save({"epoch": 3}, path)
    assert "'epoch'" in refusal(path)


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused_by_name(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "net.pt"
    torch.save(
        {"format": "attackcheck", "card": Bomb(tmp_path / "trace")}, path, _use_new_zipfile_serialization=not legacy
    )
    message = refusal(path)
    assert "run code" in message
    assert "mkdir" in message
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "trace")))
    refusal(path)
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2)), path)
    with pytest.raises(InputError, match="refused"):
        load_state(path)
    assert not (tmp_path / "trace").exists()


def test_a_foreign_state_dict_asks_for_its_network(tmp_path: Path, content: Content) -> None:
    path = tmp_path / "net.pt"
    for foreign in (
        content["state_dict"],
        torch.nn.Conv2d(3, 4, 3).state_dict(),
        {"state_dict": content["state_dict"]},
    ):
        torch.save(foreign, path)
        assert "--model FILE.py:NAME" in refusal(path)
    assert "bare state_dict" in refusal(path) or "'state_dict'" in refusal(path)


def edited(content: Content, *keys: str, value: object) -> Content:
    result = copy.deepcopy(content)
    place = result
    for key in keys[:-1]:
        place = place[key]
    if value is ...:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return result


WEIGHT = "layers.1.weight"


@pytest.mark.parametrize(("keys", "value", "expected"), [
    (("version",), 2, "version 1"),
    (("version",), ..., "version 1"),
    (("architecture",), ..., "an architecture"),
    (("architecture",), [1], "an architecture"),
    (("architecture", "family"), "resnet", "lipnet or isounet"),
    (("architecture", "family"), ["isounet"], "lipnet or isounet"),
    (("architecture", "family"), "lipnet", "unknown"),
    (("architecture", "hidden"), 3, "unknown 'hidden'"),
    (("architecture", "classes"), ..., "no 'classes'"),
    (("architecture", "classes"), 10**9, "classes"),
    (("architecture", "classes"), "7", "classes"),
    (("architecture", "classes"), True, "classes"),
    (("architecture", "width"), 10**6, "width"),
    (("architecture", "width"), 8192, "differing|float32 of shape|a width"),
    (("architecture", "width"), -4, "width"),
    (("architecture", "width"), 5, "odd width"),
    (("architecture", "depth"), 60, "depth"),
    (("architecture", "before"), 10**9, "before"),
    (("architecture", "mean"), [0.5], "mean"),
    (("architecture", "mean"), [0.5, "a", 1], "mean"),
    (("architecture", "std"), [0.0, 1.0, 1.0], "std"),
    (("architecture", "std"), [1.0, 1.0, 1.0], "differing"),
    (("architecture", "padding"), "reflect", "padding"),
    (("architecture", "bottom"), 3, "differing"),
    (("state_dict",), {}, "state_dict of tensors"),
    (("state_dict",), ..., "state_dict of tensors"),
    (("state_dict", WEIGHT), ..., "differing"),
    (("state_dict", WEIGHT), torch.zeros(4, 3, 2, 3), "shape"),
    (("state_dict", WEIGHT), torch.zeros(4, 3, 2, 2, dtype=torch.float64), "float32"),
    (("state_dict", WEIGHT), torch.full((4, 3, 2, 2), torch.nan), "NaN"),
    (("state_dict", WEIGHT), torch.full((4, 3, 2, 2), torch.inf), "NaN or infinity"),
    (("state_dict", "extra"), torch.zeros(1), "differing in extra"),
    (("lipschitz",), ..., "Lipschitz constant"),
    (("lipschitz", "joint"), ..., "Lipschitz constant"),
    (("lipschitz", "pixel"), 0.0, "positive"),
    (("lipschitz", "joint"), -1.0, "positive"),
    (("lipschitz", "joint"), float("nan"), "positive"),
    (("lipschitz", "joint"), float("inf"), "positive"),
    (("lipschitz", "joint"), True, "positive"),
    (("lipschitz", "joint"), "1", "positive"),
    (("card",), ..., "card"),
])  # fmt: skip
def test_a_wrong_field_is_named(
    keys: tuple[str, ...], value: object, expected: str, content: Content, tmp_path: Path
) -> None:
    import re

    torch.save(edited(content, *keys, value=value), tmp_path / "net.pt")
    assert re.search(expected, refusal(tmp_path / "net.pt"))


def test_a_tensor_that_repeats_one_number_allocates_nothing(content: Content, tmp_path: Path) -> None:
    huge = edited(content, "architecture", "width", value=8192)
    huge["architecture"]["depth"] = 0
    with torch.device("meta"):
        shapes = build(IsoUNetConfig(4, width=8192, depth=0, head=4), plain=True).state_dict()
    huge["state_dict"] = {name: torch.zeros(()).expand(value.shape) for name, value in shapes.items()}
    torch.save(huge, tmp_path / "net.pt")
    assert (tmp_path / "net.pt").stat().st_size < 100_000
    assert "fit into" in refusal(tmp_path / "net.pt")


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 1}, lambda s: {"model": s}])
def test_plain_state_dicts(wrap: Callable[[object], object], tmp_path: Path) -> None:
    state = torch.nn.Conv2d(3, 4, 3).state_dict()
    torch.save(wrap(state), tmp_path / "s.pth")
    found, digest = load_state(tmp_path / "s.pth")
    assert found.keys() == state.keys()
    assert torch.equal(found["weight"], state["weight"])
    assert digest == hashlib.sha256((tmp_path / "s.pth").read_bytes()).hexdigest()


def test_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    state = torch.nn.Conv2d(3, 4, 3).state_dict()
    path = tmp_path / "s.safetensors"
    safetensors.save_file(state, path)
    assert torch.equal(load_state(path)[0]["weight"], state["weight"])
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match="cannot be read"):
        load_state(path)


def test_wrong_state_dicts(tmp_path: Path) -> None:
    path = tmp_path / "s.pt"
    torch.save({"a": 1}, path)
    with pytest.raises(InputError, match="state_dict of tensors"):
        load_state(path)
    torch.save({"a": torch.tensor([1.0, torch.nan])}, path)
    with pytest.raises(InputError, match="NaN or infinity in a"):
        load_state(path)
    with pytest.raises(InputError, match="there is no"):
        load_state(tmp_path / "nowhere.pt")


def test_the_face_of_the_room_is_complete() -> None:
    import attackcheck.models as room

    assert all(getattr(room, name) is not None for name in room.__all__)
    assert set(room.__all__) <= set(dir(room))
    with pytest.raises(AttributeError, match="nothing"):
        _ = room.nothing
