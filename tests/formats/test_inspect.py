"""`attackcheck inspect` and the zoo: what is inside, without running any of it."""

import json
import os
import warnings
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import nn

import attackcheck as ac
from attackcheck.cli import main
from attackcheck.errors import InputError
from attackcheck.models.checkpoint import load_checkpoint
from attackcheck.models.shelf import NAMES
from attackcheck.models.zoo import ZOO, in_zoo


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made",)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval()


def inspect(path, capsys, *options):
    assert main(["inspect", str(path), *options]) == 0
    return capsys.readouterr().out


def test_the_zoo_tells_its_claim_and_card(capsys):
    assert [entry.name for entry in ZOO] == list(NAMES)
    for entry in ZOO:
        out = inspect(f"zoo:{entry.name}", capsys)
        assert "an attackcheck checkpoint" in out
        assert "claim    L = 1.0000" in out
        assert f"accuracy: {entry.card['accuracy']}" in out
        assert load_checkpoint(entry.path).sha256 in out
        assert "nothing but what tensors are rebuilt with" in out
    with pytest.raises(InputError, match="isounet-xs, lipnet-xs"):
        in_zoo("resnet")


def test_a_network_of_the_zoo_is_verified_by_name(place, capsys):
    assert main(["verify", "zoo:lipnet-xs", "--images", "1", "--pixels", "1", "--plan", "quick", "--no-audit"]) == 0
    assert "zoo:lipnet-xs (SHA-256 24fc39048e06)" in capsys.readouterr().out
    assert main(["verify", "zoo:nothing"]) == 2
    assert ac.load("zoo:isounet-xs").meta["sha256"] == ac.load().meta["sha256"]


def test_state_dicts_and_safetensors(place, capsys):
    torch.save({"state_dict": place.state_dict()}, "state.pt")
    out = inspect("state.pt", capsys)
    assert "2: 16 float32" in out
    assert "0.weight  float32 4x3x1x1" in out
    save = pytest.importorskip("safetensors.torch").save_file
    save(place.state_dict(), "w.safetensors", metadata={"made by": "\x1b[2Ja test"})
    out = inspect("w.safetensors", capsys)
    assert "0.weight  F32 4x3x1x1" in out
    assert "made by: \\x1b[2Ja test" in out
    os.mkdir("hub")
    save(place.state_dict(), "hub/model.safetensors")
    with open("hub/config.json", "w") as file:
        json.dump({"hidden": 3, "auto_map": {"AutoModel": "code.Net"}}, file)
    with open("hub/code.py", "w") as file:
        file.write("open('made', 'w')\n")
    out = inspect("hub", capsys)
    assert "hidden: 3" in out
    assert "never run" in out


@pytest.mark.parametrize("legacy", [False, True])
def test_what_a_pickle_would_import_is_listed_and_not_run(place, capsys, legacy):
    torch.save({"a": Evil(), "net": place}, "evil.pt", _use_new_zipfile_serialization=not legacy)
    out = inspect("evil.pt", capsys)
    assert "posix.mkdir (which no option permits)" in out
    assert "torch.nn.modules.conv.Conv2d\n" in out
    assert "--allow-global" not in out
    torch.save(place, "whole.pt", _use_new_zipfile_serialization=not legacy)
    assert "--allow-global torch.nn.modules" in inspect("whole.pt", capsys)
    assert not os.path.exists("made")


def test_programs_tell_what_they_call(place, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(place, (torch.rand(1, 3, 4, 4),)), "net.pt2")
        torch.jit.trace(place, torch.rand(1, 3, 4, 4)).save("net.ts")
        if find_spec("onnxscript") is not None and find_spec("onnx") is not None:
            torch.onnx.export(place, (torch.rand(1, 3, 4, 4),), "net.onnx", dynamo=True, verbose=False)
            assert "Conv x 1, Relu x 1" in inspect("net.onnx", capsys)
    out = inspect("net.pt2", capsys)
    assert "torch.ops.aten.conv2d.default x 1" in out
    assert "0.weight  float32 4x3x1x1" in out
    assert "torch._convolution x 1" in inspect("net.ts", capsys)


def test_arrays_and_json(place, capsys):
    np.savez("a.npz", images=np.zeros((2, 3, 4, 4), np.uint8))
    document = json.loads(inspect("a.npz", capsys, "--json", "-"))
    assert document["tensors"] == [{"name": "images", "dtype": "uint8", "shape": [2, 3, 4, 4]}]
    assert inspect("a.npz", capsys, "--json", "out.json", "--all")
    with open("out.json") as file:
        assert json.load(file) == document


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x05\x06" + b"\0" * 18, b"\x80\x04\x8c"])
def test_what_cannot_be_read_is_a_sentence_or_a_note(place, capsys, content):
    with open("odd.pt", "wb") as file:
        file.write(content)
    assert main(["inspect", "odd.pt"]) in (0, 2)
    captured = capsys.readouterr()
    assert captured.err.count("\n") <= 1
    assert "Traceback" not in captured.err
    assert main(["inspect", "nowhere.pt"]) == 2
    assert main(["inspect", "."]) == 2
