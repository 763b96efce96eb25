"""The same network through every door: each format computes the same, keeps its hash, and is examined alike."""

import copy
import hashlib
import json
import os
import shlex
import signal
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import attackcheck as ac
from attackcheck.cli import main
from attackcheck.errors import InputError
from attackcheck.formats.recognising import Format, recognise
from attackcheck.formats.states import stripped
from attackcheck.models.isounet import IsoUNetConfig
from attackcheck.models.networks import build, export

IMAGES = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(3))
CLAIM = 50.0


class Net(nn.Module):
    """A residual, a concatenation, a batch norm, sizes taken from the image, an upsampling, a constant mask."""

    def __init__(self, width=4):
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.down = nn.Conv2d(width, width, 2, stride=2)
        self.skip, self.last = nn.Conv2d(3, width, 1), nn.Conv2d(2 * width, 5, 1)

    def forward(self, x):
        a = torch.relu(self.norm(self.first(x)))
        b = nn.functional.interpolate(self.down(a), size=a.shape[-2:], mode="bilinear")
        left, right = b.chunk(2, dim=1)
        return self.last(torch.cat([a + self.skip(x), torch.cat([right, left], 1).clamp(min=-0.1)], dim=1))


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    model = Net().train()
    with torch.no_grad():
        model(torch.rand(8, 3, 8, 8))
    return model.eval()


@pytest.fixture(scope="module")
def logits(net):
    with torch.no_grad():
        return net(IMAGES)


def exported(net, path, batch):
    shapes = ({0: torch.export.Dim("batch", min=1, max=256)},) if batch is None else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(torch.export.export(net, (IMAGES[: batch or 2],), dynamic_shapes=shapes), path)


def scripted(net, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(net).save(path)


def traced(net, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(net, IMAGES[:2]).save(path)


def onnx(net, path, batch=None):
    if any(find_spec(name) is None for name in ("onnx2torch", "onnxruntime", "onnxscript")):
        pytest.skip("the extra onnx is not installed")
    shapes = ({0: torch.export.Dim("batch", min=1, max=256)},) if batch is None else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (IMAGES[: batch or 2],), path, dynamo=True, dynamic_shapes=shapes, verbose=False, external_data=True
        )


PROGRAMS = {
    "one.pt2": lambda net, path: exported(net, path, 1),
    "two.pt2": lambda net, path: exported(net, path, 2),
    "any.pt2": lambda net, path: exported(net, path, None),
    "scripted.pt": scripted,
    "traced.pt": traced,
    "any.onnx": onnx,
    "one.onnx": lambda net, path: onnx(net, path, 1),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_computes_what_the_network_did(net, logits, tmp_path, name):
    path = tmp_path / name
    PROGRAMS[name](net, str(path))
    subject = ac.load(path, lipschitz=CLAIM)
    with torch.no_grad():
        assert torch.allclose(subject.model(IMAGES), logits, atol=2e-6)  # five rows through programs for one or two
    assert subject.meta["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert isinstance(subject.claim, ac.LipschitzClaim)
    report = ac.verify(subject.model, IMAGES[:1], subject.claim, plan="quick", pixels=2, audit=False)
    assert report.attacked_count == 2
    assert not ac.verify(subject.model, IMAGES[:1], ac.LipschitzClaim(1e-4), plan="quick", pixels=2).sound


def test_an_exported_program_runs_in_float64_and_can_be_audited(net, tmp_path):
    exported(net, tmp_path / "net.pt2", None)
    model = ac.load(tmp_path / "net.pt2", lipschitz=CLAIM).model
    with torch.no_grad():
        exact = copy.deepcopy(net).double()(IMAGES.double())
        assert torch.allclose(copy.deepcopy(model).double()(IMAGES.double()), exact, atol=1e-12)
    found = ac.audit(model, ac.LipschitzClaim(CLAIM), (3, 8, 8))
    own = ac.audit(net, ac.LipschitzClaim(CLAIM), (3, 8, 8))
    assert found.bound == pytest.approx(own.bound, rel=1e-6)


def test_an_exported_program_agrees_with_torchs_own_loader(net, tmp_path):
    exported(net, tmp_path / "net.pt2", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.export.load(tmp_path / "net.pt2").module()
    with torch.no_grad():
        assert torch.equal(theirs(IMAGES), ac.load(tmp_path / "net.pt2", lipschitz=CLAIM).model(IMAGES))


def test_our_own_network_goes_through_a_program(tmp_path):
    network = export(build(IsoUNetConfig(4, width=4, depth=1, head=4), seed=0))
    exported(network, tmp_path / "net.pt2", None)
    report = ac.verify(
        ac.load(tmp_path / "net.pt2", lipschitz=1.0).model,
        IMAGES[:1],
        ac.LipschitzClaim(1.00001),
        plan="quick",
        pixels=2,
    )
    assert report.sound
    assert report.audit is not None
    assert report.audit.verdict is ac.AuditVerdict.PROVED


def test_a_program_in_training_mode_is_refused(tmp_path):
    torch.manual_seed(0)
    exported(Net().train(), tmp_path / "net.pt2", 2)
    with pytest.raises(InputError, match=r"model\.eval"):
        ac.load(tmp_path / "net.pt2", lipschitz=1.0)


def test_other_image_sizes_than_exported_are_one_sentence(net, tmp_path):
    exported(net, tmp_path / "net.pt2", None)
    with pytest.raises(InputError, match=r"shape \(3, 8, 8\), as exported, got \(3, 8, 9\)"):
        ac.load(tmp_path / "net.pt2", lipschitz=1.0, image=torch.rand(3, 8, 9))


# Weights for a network that the user names ---------------------------------------------------------------------------

FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.body = nn.Conv2d(3, width, 3, padding=1)
        self.head = nn.Conv2d(width, 4, 1)
    def forward(self, x):
        return self.head(self.body(x))

def net(width=4):
    torch.manual_seed(1)
    return Net(width)

def configured(config):
    return net(config["width"])

def with_constant(image=None):
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = net()
        def forward(self, x):
            return self.inner(x), torch.tensor(3.5)
    return Both()

def with_local_constant():
    inner = net()
    return lambda x: (inner(x), x.flatten(1).norm(dim=1))
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets.py").write_text(FACTORY)
    np.savez("images.npz", images=IMAGES[:2].numpy())
    scope = {}
    exec(FACTORY, scope)
    return scope["net"]


def verify(*arguments):
    return main(["verify", "--data", "arrays:images.npz", "--plan", "quick", "--pixels", "2", "--no-audit", *arguments])


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module."])
@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_known_prefixes_are_taken_off_with_a_notice(place, capsys, prefix, ending):
    state = {prefix + name: value * 2 for name, value in place().state_dict().items()}
    if ending == ".pt":
        torch.save({"state_dict": state, "epoch": 3}, "w.pt")
    else:
        pytest.importorskip("safetensors.torch").save_file(state, "w.safetensors")
    assert verify(f"w{ending}", "--model", "nets.py:net", "--lipschitz", "100") == 0
    assert capsys.readouterr().err.count("note: took the prefix") == prefix.count(".")
    subject = ac.load(f"w{ending}", model="nets.py:net", lipschitz=100.0)
    assert torch.equal(subject.model.state_dict()["head.weight"], place().state_dict()["head.weight"] * 2)
    assert subject.meta["sha256"] == hashlib.sha256(Path(f"w{ending}").read_bytes()).hexdigest()


def test_code_that_is_named_may_import_what_lies_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [folder for folder in sys.path if folder not in ("", str(tmp_path))])
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "beside_the_factory.py").write_text("import torch\nlayer = torch.nn.Conv2d(3, 2, 1)\n")
    (tmp_path / "far" / "json.py").write_text("raise SystemExit('a name of the standard library was taken')\n")
    (tmp_path / "far" / "code.py").write_text(
        "import json\nfrom beside_the_factory import layer\ndef net(): return layer\n"
    )
    (tmp_path / "in_this_folder").mkdir()
    (tmp_path / "in_this_folder" / "nets.py").write_text("import torch\ndef net(): return torch.nn.Conv2d(3, 2, 1)\n")
    assert isinstance(ac.load("far/code.py:net", lipschitz=9.0).model, nn.Conv2d)
    assert str(tmp_path) not in sys.path
    assert isinstance(ac.load("in_this_folder.nets:net", lipschitz=9.0).model, nn.Conv2d)
    with pytest.raises(InputError, match="nowhere_at_all"):
        ac.load("nowhere_at_all.nets:net", lipschitz=9.0)


def timed_out(*_):
    raise TimeoutError("waited for a pipe")


@pytest.mark.parametrize("option", ["--model-args", "--metric", "--radii", "--claim", "--plan"])
def test_nobody_waits_for_the_other_end_of_a_pipe(tmp_path, monkeypatch, capsys, option):
    monkeypatch.chdir(tmp_path)
    name = "pipe.npz" if option == "--radii" else "pipe.toml"
    os.mkfifo(name)
    (tmp_path / "code.py").write_text("import torch\ndef net(): return torch.nn.Conv2d(3, 2, 1)\n")
    claim = [] if option in ("--radii", "--claim") else ["--lipschitz", "9"]
    before = signal.signal(signal.SIGALRM, timed_out)
    signal.alarm(20)
    try:
        assert main(["verify", "code.py:net", option, name, "--images", "1", *claim]) == 2
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert name in said
    assert "not a regular file" in said or "found none" in said


@pytest.mark.parametrize(
    "names",
    [
        {"module.head.weight": "module.head.weights"},
        {"module.head.weight": None},
        {"module.head.weight": "head.weight"},
        {"module.head.weight": "other.head.weight"},
        {"module.extra": "module.head.weight"},
    ],
)
def test_names_stay_strict_behind_a_prefix(place, names):
    state = {f"module.{name}": value for name, value in place().state_dict().items()}
    for old, new in names.items():
        value = state.pop(old, torch.zeros(1)) if old in state else torch.zeros(1)
        if new is not None:
            state[new if old in names and new not in state else old] = value
    torch.save(state, "w.pt")
    with pytest.raises(InputError, match="do not fit"):
        ac.load("w.pt", model="nets.py:net", lipschitz=1.0)


def test_a_network_with_such_names_keeps_them():
    wanted = {"model.a": torch.zeros(1), "model.b": torch.zeros(1)}
    assert stripped(wanted, wanted.keys()) == (wanted, [])
    state = {f"module.{name}": value for name, value in wanted.items()}
    assert stripped(state, wanted.keys())[0].keys() == wanted.keys()


@pytest.mark.parametrize("given", ["width = 6", "{width = 6}", "args.toml"])
def test_arguments_of_a_factory(place, given, capsys):
    Path("args.toml").write_text("width = 6\n")
    torch.save(place(6).state_dict(), "w.pt")
    assert verify("w.pt", "--model", "nets.py:net", "--model-args", given, "--lipschitz", "0.001") == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if line.strip().startswith("attackcheck replay"))
    assert main(shlex.split(line.strip())[1:]) == 1  # the command has the arguments


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("width", "FILE.toml"),
        ("width = 6\nother = 3", "FILE.toml"),
        ("none.toml", "none.toml"),
        ("depth = 6", "fit nets.py:net"),
        ("}; import os", "FILE.toml"),
        ("width = 0.5", "calling nets.py:net failed"),
    ],
)
def test_wrong_arguments_are_one_sentence(place, capsys, given, message):
    assert verify("--model", "nets.py:net", "--model-args", given, "--lipschitz", "1") == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("sharded", [False, True])
def test_a_directory_of_a_model_hub(place, tmp_path, sharded):
    save = pytest.importorskip("safetensors.torch").save_file
    folder = tmp_path / "hub"
    folder.mkdir()
    state = place(6).state_dict()
    (folder / "config.json").write_text(json.dumps({"width": 6, "auto_map": {"AutoModel": "evil.Code"}}))
    if sharded:
        halves = {"model-1.safetensors": "body", "model-2.safetensors": "head"}
        for file, part in halves.items():
            save({name: value for name, value in state.items() if name.startswith(part)}, folder / file)
        weight_map = {name: file for file, part in halves.items() for name in state if name.startswith(part)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        save(state, folder / "model.safetensors")
    assert recognise(folder) is Format.DIRECTORY
    subject = ac.load(folder, model="nets.py:configured", lipschitz=100.0)
    assert torch.equal(subject.model.state_dict()["head.weight"], state["head.weight"])
    assert len(subject.meta["sha256"]) == 64
    with pytest.raises(InputError, match="--model"):
        ac.load(folder, lipschitz=1.0)


def test_weights_in_safetensors_need_no_ending(place):
    pytest.importorskip("safetensors.torch").save_file(place().state_dict(), "weights")
    assert recognise(Path("weights")) is Format.SAFETENSORS
    assert ac.load("weights", model="nets.py:net", lipschitz=1.0).meta["path"] == "weights"


REDUCTIONS = ("Mean", "Max", "Min", "Sum", "L1", "L2", "LogSumExp", "SumSquare")


def reducing(path, operation, *, opset, also="Pad", constant=False, axes=(-1, -2), **options):
    """A graph of one convolution, an operation that has no way down to older versions, and a reduction."""
    from onnx import TensorProto, helper, numpy_helper, save

    numbers = {"w": np.random.default_rng(0).random((3, 3, 1, 1), np.float32), "p": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    numbers |= {"axes": np.array(axes, np.int64)} if axes is not None and not constant else {}
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"])]
    nodes.append(helper.make_node(also, ["c", "p"] if also == "Pad" else ["c"], ["r"]))
    if constant:
        value = numpy_helper.from_array(np.array(axes, np.int64))
        nodes.append(helper.make_node("Constant", [], ["axes"], value=value))
    inputs = ["r"] if axes is None else ["r", "axes"]
    nodes.append(helper.make_node(f"Reduce{operation}", inputs, ["m"], keepdims=1, **options))
    nodes.append(helper.make_node("Sub", ["r", "m"], ["y"]))
    kind = TensorProto.FLOAT
    x, y = (helper.make_tensor_value_info(name, kind, ["b", 3, None, None]) for name in "xy")
    weights = [numpy_helper.from_array(value, name) for name, value in numbers.items()]
    graph = helper.make_graph(nodes, "reducing", [x], [y], weights)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), str(path))


@pytest.mark.parametrize("opset", [18, 20, 22])
@pytest.mark.parametrize("operation", REDUCTIONS)
def test_reductions_whose_axes_are_an_input_agree_with_onnxruntime(tmp_path, operation, opset):
    onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "net.onnx"
    idle = [{"axes": None, "noop_with_empty_axes": 1}] if operation in ("Mean", "Max", "Min", "Sum") else []
    for given in ({}, {"constant": True}, {"axes": (1,)}, {"axes": None}, {"also": "Relu"}, *idle):
        reducing(path, operation, opset=opset, **given)
        model = ac.load(path, lipschitz=1.0).model
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        expected = torch.from_numpy(session.run(None, {"x": IMAGES.numpy()})[0])
        with torch.no_grad():
            assert torch.allclose(model(IMAGES), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())), given


def test_an_onnx_graph_that_disagrees_is_not_trusted(place, tmp_path, monkeypatch):
    onnx(place(), str(tmp_path / "net.onnx"))
    ac.load("net.onnx", lipschitz=1.0)
    import onnx2torch  # which cannot be imported alone beside every build of torch

    convert = onnx2torch.convert

    def wrong(graph):
        module = convert(graph)
        with torch.no_grad():
            next(iter(module.parameters())).mul_(1.01)
        return module

    monkeypatch.setattr(onnx2torch, "convert", wrong)
    with pytest.raises(InputError, match="differ from onnxruntime"):
        ac.load("net.onnx", lipschitz=1.0)
