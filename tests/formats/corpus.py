"""Hostile and broken inputs, made from scratch: for each a command that must end in one sentence and exit code 2.

`python corpus.py FOLDER` writes them, runs all in this one process with little memory, and prints a line for each.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

MARK = "run-by-a-file"
CASES: dict[str, object] = {}


def case(make):
    CASES[make.__name__] = make
    return make


class Calls:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.made = function, arguments

    def __reduce__(self):
        return self.made


def verify(*arguments):
    return ["verify", *arguments, "--images", "1", "--pixels", "1", "--plan", "quick", "--no-audit"]


# Pickles that run something -------------------------------------------------------------------------------------------


def evil(name, thing):
    def make(folder):
        import torch

        (folder / "raw.pkl").write_bytes(pickle.dumps(thing()))
        torch.save({"format": "attackcheck", "state_dict": thing()}, folder / "evil.pt")
        torch.save({"a": thing()}, folder / "old.pt", _use_new_zipfile_serialization=False)
        return [verify("evil.pt"), verify("old.pt"), verify("raw.pkl"), verify("evil.pt", "--model", "net.py:net")]

    make.__name__ = f"pickle_{name}"
    case(make)


evil("os", lambda: Calls(os.mkdir, MARK))
evil("subprocess", lambda: Calls(__import__("subprocess").call, ["touch", MARK]))
evil("eval", lambda: Calls(eval, f"open({MARK!r}, 'w')"))
evil("exec", lambda: Calls(exec, f"open({MARK!r}, 'w')"))
evil("open", lambda: Calls(open, MARK, "w"))
evil("import", lambda: Calls(__import__, "antigravity"))
evil("importlib", lambda: Calls(__import__("importlib").import_module, "this"))
evil("nested", lambda: [{"x": (Calls(os.mkdir, MARK), {"y": [Calls(os.mkdir, MARK)]})}])
evil("partial", lambda: __import__("functools").partial(os.mkdir, MARK))
evil("torch_save", lambda: Calls(__import__("torch").save, {}, MARK))
evil("numpy_save", lambda: Calls(np.save, MARK, np.zeros(3)))
evil("code", lambda: Calls(__import__("pickle").loads, pickle.dumps(Calls(os.mkdir, MARK))))


@case
def pickle_never_permitted(folder):
    evil_pt = folder / "evil.pt"
    import torch

    torch.save({"a": Calls(os.mkdir, MARK)}, evil_pt)
    names = ["os.mkdir", "posix.mkdir", "builtins.eval", "subprocess.Popen", "mkdir", "..", "", "os", "nowhere.thing"]
    return [verify("evil.pt", f"--allow-global={name}") for name in names]


@case
def pickle_of_deep_lists(folder):
    (folder / "deep.pt").write_bytes(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")
    return [verify("deep.pt"), ["inspect", "nothing.pt"]]


@case
def pickle_of_a_huge_number(folder):
    (folder / "huge.pt").write_bytes(b"\x80\x04\x8e" + struct.pack("<Q", 1 << 50) + b"x.")
    (folder / "frame.pt").write_bytes(b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"K\x01.")
    return [verify("huge.pt"), verify("frame.pt")]


# Archives -------------------------------------------------------------------------------------------------------------


def archive(path, *members, compress=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compress) as made:
        for name, content in members:
            made.writestr(zipfile.ZipInfo(name), content, compress_type=compress)


@case
def archive_with_paths(folder):
    for number, name in enumerate(["../out", "/tmp/out", "a/../../out", "..\\out", "C:\\out", "a/\0b"]):
        archive(folder / f"{number}.pt", (name, b"x"), ("archive/data.pkl", pickle.dumps({})))
    return [verify(f"{number}.pt") for number in range(6)]


@case
def archive_bomb(folder):
    archive(folder / "bomb.pt", ("archive/data.pkl", b"\0" * 50_000_000), compress=zipfile.ZIP_DEFLATED)
    archive(folder / "bomb.npz", ("radii.npy", b"\0" * 50_000_000), compress=zipfile.ZIP_DEFLATED)
    return [verify("bomb.pt"), verify("net.py:net", "--radii", "bomb.npz")]


@case
def archive_that_declares_too_much(folder):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 34, 8, 8)})
    archive(folder / "huge.npz", ("radii.npy", header.getvalue()), ("images.npy", header.getvalue()))
    return [verify("net.py:net", "--radii", "huge.npz"), verify("net.py:net", "--data", "arrays:huge.npz")]


@case
def archive_in_archive(folder):
    inner = io.BytesIO()
    archive(inner, ("archive/data.pkl", pickle.dumps(Calls(os.mkdir, MARK))))
    archive(folder / "outer.pt", ("archive/data.pkl", inner.getvalue()), ("archive/inner.pt", inner.getvalue()))
    return [verify("outer.pt"), verify("outer.pt", "--model", "net.py:net")]


@case
def archive_with_a_password(folder):
    archive(folder / "locked.pt", ("archive/data.pkl", pickle.dumps({})))
    data = bytearray((folder / "locked.pt").read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + at] |= 1
    (folder / "locked.pt").write_bytes(data)
    return [verify("locked.pt")]


@case
def archive_with_doubles(folder):
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive(
            folder / "twice.pt", ("a/data.pkl", pickle.dumps({})), ("a/data.pkl", pickle.dumps(Calls(os.mkdir, MARK)))
        )
    return [verify("twice.pt")]


@case
def archive_with_wrong_sums(folder):
    archive(folder / "sum.pt", ("archive/data.pkl", b"content of a member"))
    data = (folder / "sum.pt").read_bytes().replace(b"content of", b"another of")
    (folder / "sum.pt").write_bytes(data)
    return [verify("sum.pt")]


# Broken checkpoints ---------------------------------------------------------------------------------------------------


def shipped():
    from attackcheck.models.shelf import shipped as path

    return path("lipnet-xs")


@case
def truncated_at_every_tenth(folder):
    whole = shipped().read_bytes()
    commands = []
    for tenth in range(10):
        (folder / f"cut{tenth}.pt").write_bytes(whole[: len(whole) * tenth // 10])
        commands.append(verify(f"cut{tenth}.pt"))
    return commands


def changed(name, change):
    def make(folder):
        import torch

        content = torch.load(shipped(), weights_only=True)
        change(content)
        torch.save(content, folder / "net.pt")
        return [verify("net.pt")]

    make.__name__ = f"checkpoint_{name}"
    case(make)


def first(content):
    return next(iter(content["state_dict"]))


def put(content, value):
    content["state_dict"][first(content)] = value(content["state_dict"][first(content)])


changed("without_a_version", lambda c: c.pop("version"))
changed("of_the_future", lambda c: c.update(version=99))
changed("without_weights", lambda c: c.update(state_dict={}))
changed("with_a_list_of_weights", lambda c: c.update(state_dict=[1, 2]))
changed("with_another_key", lambda c: c["state_dict"].update(strange=c["state_dict"][first(c)]))
changed("with_a_missing_key", lambda c: c["state_dict"].pop(first(c)))
changed("in_float16", lambda c: put(c, lambda t: t.half()))
changed("in_integers", lambda c: put(c, lambda t: t.int()))
changed("of_another_shape", lambda c: put(c, lambda t: t.flatten()))
changed("with_nan", lambda c: put(c, lambda t: t * float("nan")))
changed("with_infinity", lambda c: put(c, lambda t: t / 0))
changed("with_a_negative_constant", lambda c: c["lipschitz"].update(joint=-1.0))
changed("with_an_infinite_constant", lambda c: c["lipschitz"].update(joint=float("inf")))
changed("with_a_huge_width", lambda c: c["architecture"].update(widths=(1 << 40,) * 3))
changed("with_a_string_as_width", lambda c: c["architecture"].update(widths="32"))
changed("of_an_unknown_family", lambda c: c["architecture"].update(family="../../etc"))
changed("with_a_deep_card", lambda c: c.update(card=[c["card"]]))
changed("with_repeated_numbers", lambda c: put(c, lambda t: t.flatten()[:1].expand(1 << 40)))


@case
def tensors_with_negative_strides(folder):
    # A rebuild with strides that no torch.save writes.
    import torch

    torch.save({"a": torch.arange(6.0)}, folder / "s.pt")
    with zipfile.ZipFile(folder / "s.pt") as old:
        members = [(entry.filename, old.read(entry)) for entry in old.infolist()]
    out = []
    for number, (size, stride) in enumerate([(b"K\x06", b"J\xff\xff\xff\xff"), (b"J\xff\xff\xff\x7f", b"K\x01")]):
        pickled = dict(members)
        name = next(entry for entry in pickled if entry.endswith("data.pkl"))
        pickled[name] = pickled[name].replace(b"K\x06\x85", size + b"\x85", 2).replace(b"K\x01\x85", stride + b"\x85")
        archive(folder / f"n{number}.pt", *pickled.items())
        out.append(verify(f"n{number}.pt", "--model", "net.py:net"))
    return out


@case
def no_files(folder):
    (folder / "empty.pt").write_bytes(b"")
    (folder / "empty.pt2").write_bytes(b"")
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "a folder").mkdir()
    (folder / "loop.pt").symlink_to("loop.pt")
    (folder / "gone.pt").symlink_to("nowhere.pt")
    (folder / "device.pt").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.pt")
    names = ["empty.pt", "empty.pt2", "empty.safetensors", "empty.onnx", "a folder", "loop.pt", "gone.pt", "device.pt"]
    return [verify(name) for name in [*names, "pipe.pt", "no\nfile.pt", "x" * 5000 + ".pt", "a\0b.pt"]]


# Safetensors and directories ------------------------------------------------------------------------------------------


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@case
def safetensors_that_lie(folder):
    one = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    contents = [
        struct.pack("<Q", 1 << 60) + b"{}", safetensors({"a": one}),
        safetensors({"a": one | {"shape": [1 << 40]}}, b"1234"),
        safetensors({"a": one | {"dtype": "F99"}}, b"1234"),
        safetensors({"a": one | {"data_offsets": [4, 0]}}, b"1234"),
        safetensors({"a": one, "b": one}, b"1234"), safetensors(b"[" * 100_000), safetensors({"a": 3}, b"1234"),
        safetensors({}), safetensors(b"{" + b" " * 100),
    ]  # fmt: skip
    for number, content in enumerate(contents):
        (folder / f"{number}.safetensors").write_bytes(content)
    return [verify(f"{number}.safetensors", "--model", "net.py:net") for number in range(len(contents))]


@case
def directories_that_lie(folder):
    good = safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"1234")
    commands = []
    for number, (name, content) in enumerate([
        ("model.safetensors.index.json", {"weight_map": {"a": "../outside.safetensors"}}),
        ("model.safetensors.index.json", {"weight_map": {"a": "/etc/passwd"}}),
        ("model.safetensors.index.json", {"weight_map": {"a": 3}}),
        ("model.safetensors.index.json", {"weight_map": {"a": "gone.safetensors"}}),
        ("model.safetensors.index.json", [1]),
        ("config.json", [1, 2]),
    ]):  # fmt: skip
        (folder / f"d{number}").mkdir()
        if name == "config.json":
            (folder / f"d{number}" / "model.safetensors").write_bytes(good)
        (folder / f"d{number}" / name).write_text(json.dumps(content))
        commands.append(verify(f"d{number}", "--model", "net.py:net"))
    (folder / "outside.safetensors").write_bytes(good)
    return commands


# Programs -------------------------------------------------------------------------------------------------------------


class Parts(NamedTuple):
    """A program's list of operations, its first operation, and everything else in the file."""

    document: dict
    node: dict
    members: dict


def program(folder, change, name="net.pt2"):
    """A program of torch.export whose list of operations was changed."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(
            torch.export.export(torch.nn.Conv2d(3, 2, 1).eval(), (torch.rand(1, 3, 4, 4),)), folder / "g.pt2"
        )
    with zipfile.ZipFile(folder / "g.pt2") as old:
        members = {entry.filename.split("/", 1)[1]: old.read(entry) for entry in old.infolist()}
    document = json.loads(members["models/model.json"])
    node = document["graph_module"]["graph"]["nodes"][0]
    result = change(Parts(document, node, members))
    members["models/model.json"] = result if isinstance(result, bytes) else json.dumps(document).encode()
    archive(folder / name, *((f"x/{key}", value) for key, value in members.items()))
    return [verify(name, "--lipschitz", "9")]


def graph(name, change):
    def make(folder):
        return program(folder, change)

    make.__name__ = f"program_{name}"
    case(make)


graph("with_a_custom_operation", lambda parts: parts.node.update(target="torch.ops.mylib.evil.default"))
graph("that_calls_python", lambda parts: parts.node.update(target="torch.hub.load"))
graph("that_evaluates", lambda parts: parts.node.update(target=f"#__import__('os').mkdir('{MARK}')"))
graph("that_opens_files", lambda parts: parts.node.update(target="torch.ops.aten.from_file.default"))
graph("with_control_flow", lambda parts: parts.node.update(target="torch.ops.higher_order.cond"))
graph("with_a_dunder", lambda parts: parts.node.update(target="torch.ops.aten.__class__.default"))
graph("of_the_future", lambda parts: parts.document["schema_version"].update(major=99))
graph("without_a_graph", lambda parts: parts.document.pop("graph_module"))
graph("of_nothing", lambda _: b"[]")
graph("of_no_json", lambda _: b"{")
graph("of_deep_json", lambda _: b"[" * 100_000)
graph("with_missing_weights", lambda parts: parts.members.pop("data/weights/weight_0"))
graph("with_short_weights", lambda parts: parts.members.update({"data/weights/weight_0": b"1234"}))
graph("with_unknown_values", lambda parts: parts.node["inputs"][0]["arg"]["as_tensor"].update(name="nobody"))
graph("with_a_graph_argument", lambda parts: parts.node["inputs"][0].update(arg={"as_graph": {"name": "g"}}))
graph(
    "with_a_string_of_code",
    lambda parts: parts.node["inputs"][0].update(arg={"as_expr": {"expr_str": "os.system('x')"}}),
)


def _pickled_weights(parts):
    members = parts.members
    listing = json.loads(members["data/weights/model_weights_config.json"])
    for told in listing["config"].values():
        told["use_pickle"] = True
        members[f"data/weights/{told['path_name']}"] = pickle.dumps(Calls(os.mkdir, MARK))
    members["data/weights/model_weights_config.json"] = json.dumps(listing).encode()


def _huge_weights(parts):
    members = parts.members
    text = members["data/weights/model_weights_config.json"].decode()
    members["data/weights/model_weights_config.json"] = text.replace(
        '{"as_int": 3}', '{"as_int": 1099511627776}'
    ).encode()


graph("with_pickled_weights", _pickled_weights)
graph("with_huge_weights", _huge_weights)


@case
def program_with_evil_sample_inputs(folder):
    """Torch's own loader unpickles these; here they are never looked at, so the program is fine but for its claim."""

    def change(parts):
        parts.members["data/sample_inputs/model.pt"] = pickle.dumps(Calls(os.mkdir, MARK))

    return [program(folder, change)[0][:2]]  # without --lipschitz: no claim


@case
def program_older_than_its_reader(folder):
    archive(folder / "old.pt2", ("version", b"8.1"), ("serialized_exported_program.json", b"{}"))
    archive(folder / "else.pt2", ("a/b", b"x"))
    (folder / "text.pt2").write_text("hello")
    return [verify(name, "--lipschitz", "1") for name in ("old.pt2", "else.pt2", "text.pt2")]


def script(body):
    def write(folder, name):
        import warnings

        import torch

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.jit.script(torch.nn.Identity()).save(str(folder / "g.ts"))
        with zipfile.ZipFile(folder / "g.ts") as old:
            members = [(entry.filename, old.read(entry)) for entry in old.infolist()]
        changed = [(key, body(value) if key.endswith(".py") else value) for key, value in members]
        archive(folder / name, *changed)
        return verify(name, "--lipschitz", "1")

    return write


@case
def scripts_that_do_more(folder):
    bodies = [
        lambda text: text.replace(b"return input", f"torch.save(input, '{MARK}')\n    return input".encode()),
        lambda text: text.replace(b"return input", f"input.save('{MARK}')\n    return input".encode()),
        lambda text: text.replace(b"return input", f"return torch.from_file('{MARK}', True, 9)".encode()),
        lambda text: text.replace(b"return input", b"print(1)\n    return input"),
        lambda text: text.replace(b"return input", b"return ops.evil.op(input)"),
        lambda text: text.replace(b"return input", b"x = __torch__.torch.classes.c10d.Store()\n    return input"),
        lambda text: text[: len(text) // 2],
        lambda _: b"",
    ]
    return [script(body)(folder, f"{number}.ts") for number, body in enumerate(bodies)]


@case
def scripts_with_weights_that_are_not_there(folder):
    """Torch takes a script's word for how large its tensors are, and reads on."""
    import warnings

    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(torch.nn.Conv2d(3, 2, 1).eval()).save(str(folder / "g.ts"))
    with zipfile.ZipFile(folder / "g.ts") as old:
        members = {entry.filename.split("/", 1)[1]: old.read(entry) for entry in old.infolist()}
    shape = b"K\x02K\x03K\x01K\x01t"
    assert members["data.pkl"].count(shape) == 1
    changes = [
        {"data/0": b""},
        {"data/0": b"1234"},
        {"data.pkl": members["data.pkl"].replace(shape, b"K\x02K\x7fK\x01K\x01t")},
        {"data.pkl": members["data.pkl"][:-20]},
    ]
    for number, change in enumerate(changes):
        archive(folder / f"{number}.ts", *((f"x/{key}", value) for key, value in (members | change).items()))
    return [verify(f"{number}.ts", "--lipschitz", "9") for number in range(len(changes))]


@case
def onnx_that_is_none(folder):
    (folder / "text.onnx").write_text("hello " * 100)
    (folder / "bytes.onnx").write_bytes(b"\x08\x09\x12\xff\xff\xff\xff\x0f")
    return [verify(name, "--lipschitz", "1") for name in ("text.onnx", "bytes.onnx")]


# Claims, options, data ------------------------------------------------------------------------------------------------


@case
def claims_of_the_wrong_type(folder):
    texts = [
        "kind = 3", "kind = [", 'kind = "lipschitz"\nL = "one"', 'kind = "lipschitz"\nL = [1]',
        'kind = "radii"\nfile = 3',
        'kind = "class-pair"\nL = 1\nweight = "x"', '[[metric]]\nmeasure = "accuracy"\neps = "x"\nvalue = 1',
        "\xff" * 9,
        'kind = "lipschitz"\nL = 1e400', "a = 1\n" * 3, 'kind = "lipschitz"\nL = 1\n[layers]\nx = "y"', "kind = true",
    ]  # fmt: skip
    for number, text in enumerate(texts):
        (folder / f"{number}.toml").write_text(text, encoding="latin-1")
    commands = [verify("net.py:net", "--claim", f"{number}.toml") for number in range(len(texts))]
    commands += [verify("net.py:net", "--metric", f"{number}.toml") for number in (0, 1, 6, 7)]
    commands += [verify("net.py:net", "--plan", f"{number}.toml") for number in (0, 1, 7, 9)]
    return [*commands, verify("net.py:net", "--claim", "."), verify("net.py:net", "--claim", "/dev/zero")]


@case
def arguments_of_the_wrong_type(folder):
    texts = ["width = 'x'", "width = 1e400", "width = {}", "= 3", "a.b = 3", "self = 1", "width = 0x", "'" * 99]
    return [verify("--model", "net.py:sized", "--lipschitz", "1", "--model-args", text) for text in texts]


@case
def radii_that_are_none(folder):
    good = np.zeros((1, 64, 128))
    arrays = [
        {"radii": good * np.nan}, {"radii": good - 1}, {"radii": good[0]}, {"radii": good.astype(str)}, {"other": good},
        {"radii": np.zeros((1, 8, 8))}, {"radii": good.astype(complex)}, {"radii": np.zeros((0, 64, 128))},
        {"radii": good, "alpha": -1.0}, {"radii": good, "alpha": "x"}, {"radii": good, "confidence": 1.0},
        {"radii": good, "per": "row"}, {"radii": good, "abstained": good},
    ]  # fmt: skip
    for number, content in enumerate(arrays):
        np.savez(folder / f"{number}.npz", **content)
    objects = np.empty(1, object)
    objects[0] = Calls(os.mkdir, MARK)
    np.savez(folder / "objects.npz", radii=objects)
    return [verify("net.py:net", "--radii", f"{name}.npz") for name in [*range(len(arrays)), "objects"]]


@case
def data_that_is_none(folder):
    image, labels = np.zeros((1, 3, 8, 8), np.float32), np.zeros((1, 8, 8), np.int64)
    arrays = [
        {"images": image + 2}, {"images": image * np.nan}, {"images": image[0]}, {"images": image.astype(str)},
        {"images": image, "labels": labels + 999}, {"images": image, "labels": labels - 1}, {"other": image},
        {"images": image, "labels": labels[:, :4]}, {"images": image, "labels": labels.astype(float)},
        {"images": np.asfortranarray(np.zeros((2, 3, 8, 8)))}, {"images": np.zeros((0, 3, 8, 8))},
    ]  # fmt: skip
    for number, content in enumerate(arrays):
        np.savez(folder / f"{number}.npz", **content)
    objects = np.empty(1, object)
    objects[0] = Calls(os.mkdir, MARK)
    np.savez(folder / "objects.npz", images=objects)
    return [verify("net.py:net", "--data", f"arrays:{name}.npz") for name in [*range(len(arrays)), "objects"]]


@case
def masks_that_do_not_fit(folder):
    from PIL import Image

    for name in ("images", "masks"):
        (folder / "d" / name).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "d" / "images" / "a.png")
    Image.new("L", (4, 4)).save(folder / "d" / "masks" / "a.png")
    np.save(folder / "small.npy", np.ones((3, 3), bool))
    np.save(folder / "none.npy", np.zeros((64, 128), bool))
    objects = np.empty(1, object)
    objects[0] = Calls(os.mkdir, MARK)
    np.save(folder / "objects.npy", objects)
    (folder / "text.npy").write_text("hello")
    masks = [verify("net.py:net", "--region", f"mask:{name}.npy") for name in ("small", "none", "objects", "text")]
    pixels = [verify("net.py:net", "--pixels", f"{name}.npy") for name in ("small", "objects", "text")]
    return [verify("net.py:net", "--data", "folder:d"), *masks, *pixels]


@case
def pictures_that_are_none(folder):
    commands = []
    for number, content in enumerate([b"", b"hello", b"\x89PNG\r\n\x1a\n" + b"\0" * 30, b"BM" + b"\xff" * 60]):
        (folder / f"d{number}" / "images").mkdir(parents=True)
        (folder / f"d{number}" / "images" / "a.png").write_bytes(content)
        commands.append(verify("net.py:net", "--data", f"folder:d{number}"))
    return commands


@case
def counterexamples_of_strangers(folder):
    image = np.zeros((3, 8, 8), np.float32)
    metas = [
        {}, {"format": "attackcheck counterexample"}, {"format": "attackcheck counterexample", "version": 1},
        {"format": "attackcheck metric counterexample", "version": 1}, [], 3,
        {"format": "attackcheck metric counterexample", "version": 1, "claim": {}, "names": "../../x"},
    ]  # fmt: skip
    for number, meta in enumerate(metas):
        np.savez(folder / f"{number}.npz", clean=image, perturbed=image, meta=json.dumps(meta))
    objects = np.empty(1, object)
    objects[0] = Calls(os.mkdir, MARK)
    np.savez(folder / "objects.npz", clean=objects, perturbed=objects, meta=objects)
    archive(folder / "bomb.npz", ("meta.npy", b"\0" * 30_000_000), compress=zipfile.ZIP_DEFLATED)
    return [["replay", f"{name}.npz"] for name in [*range(len(metas)), "objects", "bomb"]]


NET = """
import torch
def net():
    return torch.nn.Conv2d(3, 4, 1)
def sized(width=3):
    return torch.nn.Conv2d(3, width, 1)
"""


def main(root: Path) -> None:
    """Run everything; one JSON line for each command."""
    import contextlib
    import resource
    import time

    import torch

    from attackcheck.cli import main as command_line

    torch.set_num_threads(1)
    for name, make in CASES.items():
        folder = root / name
        folder.mkdir()
        (folder / "net.py").write_text(NET)
        os.chdir(folder)
        for command in make(folder):  # type: ignore[operator]
            before = {str(path) for path in folder.rglob("*")}
            out, err = io.StringIO(), io.StringIO()
            start, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    code = command_line(command)
                except SystemExit as end:
                    code = f"exit {end.code}"
            made = {str(path) for path in folder.rglob("*") if "__pycache__" not in path.parts} - before
            line = {
                "case": name, "command": command, "code": code, "out": out.getvalue(), "err": err.getvalue(),
                "seconds": time.process_time() - start, "made": sorted(made),
                "megabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024,
            }  # fmt: skip
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
