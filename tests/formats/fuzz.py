"""A fuzzer over everything that reads a file: `python fuzz.py SECONDS [SEED]`.

Hypothesis takes good files apart: bytes are changed, cut, repeated and spliced; members of archives are changed with
their sums put right; JSON documents get other values. Whatever comes of it, a reader returns or raises InputError,
within 5 seconds of CPU, and writes nothing.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import attackcheck as ac
from attackcheck.attacks.plans import plan
from attackcheck.counterexample import load_counterexample
from attackcheck.formats.certifiers import read_radii
from attackcheck.formats.claim_files import read_claim
from attackcheck.formats.factories import read_arguments
from attackcheck.formats.inspection import inspect_file
from attackcheck.metric_counterexample import load_metric
from attackcheck.metrics import read_metrics
from attackcheck.models.checkpoint import load_checkpoint, load_state
from attackcheck.models.datasets import load_data
from attackcheck.models.shelf import shipped
from attackcheck.regions import parse_region
from attackcheck.selection import read_pixels

LONGEST = 5.0
NETWORK = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1)).eval()


def stored(save) -> bytes:
    """What a function of an open file writes."""
    target = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(target)
    return target.getvalue()


def arrays(**content) -> bytes:
    return stored(lambda file: np.savez_compressed(file, **content))


def picture() -> bytes:
    from PIL import Image

    return stored(lambda file: Image.new("L", (6, 5), 3).save(file, format="PNG"))


def examples() -> dict[str, bytes]:
    """One good file of every kind, by the name that it must have."""
    image = torch.rand(1, 3, 6, 6)
    exported = torch.export.export(NETWORK, (image,))
    scripted = torch.jit.trace(NETWORK, image)
    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"a": one}).encode()
    claim = 'kind = "lipschitz"\nL = 1.0\nscope = "joint"\npixel = 0.5\n[layers]\nhead = 1.0\n'
    rows = 'kind = "class-pair"\nL = 2.0\nweight = [[1.0, 0.0], [0.0, 1.0]]\n'
    metric = '[[metric]]\nmeasure = "accuracy"\neps = 0.1\nvalue = 0.9\n'
    stage = 'name = "mine"\n[[stage]]\nattack = "ddn"\nsteps = 3\npixels = 2\n'
    meta = {
        "format": "attackcheck counterexample", "version": 1, "kind": "PIXEL", "pixel": [1, 2],
        "predicted": 0, "target": 1,
        "radius": 1.0, "radius_clean": 1.0, "distance": 0.5, "image": 0, "image_name": "a", "attack": "ddn", "seed": 0,
        "tolerance": 1e-5, "claim": {"kind": "lipschitz", "L": 1.0, "scope": "joint", "pixel": None}, "subject": {},
        "clean_sha256": "0", "perturbed_sha256": "0",
    }  # fmt: skip
    return {
        "net.pt": shipped("lipnet-xs").read_bytes(),
        "state.pt": stored(lambda file: torch.save(NETWORK.state_dict(), file)),
        "old.pt": stored(lambda file: torch.save(NETWORK.state_dict(), file, _use_new_zipfile_serialization=False)),
        "program.pt2": stored(lambda file: torch.export.save(exported, file)),
        "script.ts": stored(lambda file: torch.jit.save(scripted, file)),
        "a.safetensors": len(header).to_bytes(8, "little") + header + b"12345678",
        "radii.npz": arrays(radii=np.ones((1, 4, 4)), alpha=0.1, per="image"),
        "images.npz": arrays(images=np.zeros((2, 3, 4, 4), np.uint8), labels=np.zeros((2, 4, 4), np.uint8)),
        "example.npz": arrays(clean=image[0].numpy(), perturbed=image[0].numpy() + 0.1, meta=json.dumps(meta)),
        "claim.toml": claim.encode(), "rows.toml": rows.encode(), "metric.toml": metric.encode(),
        "plan.toml": stage.encode(), "arguments.toml": b'width = 3\nnames = ["a"]\n',
        "claim.json": json.dumps({"kind": "radii", "file": "radii.npz", "alpha": 0.1}).encode(),
        "mask.npy": stored(lambda file: np.save(file, np.eye(4))), "mask.png": picture(),
        "pixels.npy": stored(lambda file: np.save(file, np.array([[0, 1, 2]]))),
        "pixels.csv": b"image,row,column\n0,1,2\n",
    }  # fmt: skip


def load(path: Path) -> None:
    subject = ac.load(path, lipschitz=1.0, code=False)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            subject.model(torch.rand(2, 3, 6, 6))
        except ac.InputError:
            raise
        except Exception as error:  # a graph that was changed may well fail; verify says so in one sentence
            raise ac.InputError(str(error)) from error


def claim(path: Path) -> None:
    told = read_claim(path)
    if not told.metrics_only:
        told.about(NETWORK)


def read_all(path: Path) -> None:
    data = load_data(f"arrays:{path}")
    for index in range(min(3, len(data))):
        _ = data[index]


def mask(path: Path) -> None:
    parse_region(f"mask:{path}").resolve(torch.zeros(4, 4, dtype=torch.int64), torch.ones(4, 4))


READERS = {
    ".pt": [load, load_checkpoint, load_state, inspect_file],
    ".pt2": [load, inspect_file],
    ".ts": [load, inspect_file],
    ".safetensors": [load_state, inspect_file],
    ".npz": [read_radii, read_all, load_counterexample, load_metric, inspect_file],
    ".toml": [claim, read_metrics, plan, lambda path: read_arguments(str(path))],
    ".json": [claim, read_metrics],
    ".npy": [mask, lambda path: read_pixels(str(path))],
    ".png": [mask],
    ".csv": [lambda path: read_pixels(str(path))],
}
PIECES = [
    b"", b"\0", b"\xff", b"\x80", b".", b"..", b"/", b"\n", b'"', b"[", b"]", b"{", b"}", b"nan", b"-1", b"1e999",
    b"true",
    b"os.system", b"cos\nsystem\n", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"9" * 40,
]  # fmt: skip
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["../x", "os.system"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


def spoiled(draw, content: bytes) -> bytes:
    """Some bytes changed."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["change", "cut", "put", "over", "repeat"])):
            case "change" if at < len(data):
                data[at] ^= draw(st.integers(1, 255))
            case "cut":
                del data[at:]
            case "put":
                data[at:at] = draw(st.sampled_from(PIECES) | st.binary(max_size=8))
            case "over":
                piece = draw(st.sampled_from(PIECES))
                data[at : at + len(piece)] = piece
            case "repeat":
                data[at:at] = data[at : at + draw(st.integers(1, 64))]
    return bytes(data)


def changed_value(draw, document: object) -> object:
    """Some value in a document changed, taken out or put elsewhere."""
    place, key, inner = None, None, document
    while isinstance(inner, dict | list) and inner and (place is None or draw(st.integers(0, 3))):
        key = draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else list(range(len(inner)))))
        place, inner = inner, inner[key]
    if place is None:
        return draw(VALUES)
    if draw(st.booleans()):
        place[key] = draw(VALUES)
    else:
        del place[key]
    return document


def spoiled_archive(draw, content: bytes) -> bytes:
    """A member changed, its sum put right; documents in JSON keep being JSON."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    small = sorted(members, key=lambda name: (len(members[name]) > 20_000, name))
    name = draw(st.sampled_from(small))
    if name.endswith(".json") and draw(st.integers(0, 3)):
        with_change = changed_value(draw, json.loads(members[name]))
        members[name] = json.dumps(with_change).encode()
    else:
        members[name] = spoiled(draw, members[name])
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return target.getvalue()


@st.composite
def cases(draw, files: dict[str, bytes]):
    """A file's name, a reader's number, and what the file holds now."""
    name = draw(st.sampled_from(sorted(files)))
    content = files[name]
    if name.endswith(".json") and draw(st.booleans()):
        content = json.dumps(changed_value(draw, json.loads(content))).encode()
    elif zipfile.is_zipfile(io.BytesIO(content)) and draw(st.integers(0, 2)):
        content = spoiled_archive(draw, content)
    else:
        content = spoiled(draw, content)
    return name, draw(st.sampled_from(range(len(READERS[Path(name).suffix])))), content


def main(seconds: float, start: int = 0) -> int:
    """Fuzz for so long; returns how many inputs were tried."""
    torch.set_num_threads(1)
    files, tried, end = examples(), 0, time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        number = start
        while time.monotonic() < end:

            @seed(number)
            @settings(
                max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck),
                phases=[Phase.generate, Phase.shrink], print_blob=False,
                report_multiple_bugs=False,
            )  # fmt: skip
            @given(cases(files))
            def one(case: tuple[str, int, bytes]) -> None:
                nonlocal tried
                if time.monotonic() >= end:
                    return
                name, reader, content = case
                path = Path(name)
                path.write_bytes(content)
                begin = time.process_time()
                try:
                    with contextlib.suppress(ac.InputError):
                        READERS[path.suffix][reader](path)
                    took, found = time.process_time() - begin, os.listdir()
                finally:
                    path.unlink()
                assert took < LONGEST, f"{took:.1f} s for {name}"
                assert found == [name], f"something was written: {found}"
                tried += 1

            one()
            number += 1
        os.chdir("/")
    return tried


if __name__ == "__main__":
    count = main(float(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    print(f"{count:,} inputs, each read or refused")
