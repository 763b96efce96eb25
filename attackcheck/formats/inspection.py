"""What is inside a file, read without running any of it."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from attackcheck.errors import InputError, in_one_line
from attackcheck.formats.exported import dtype_name
from attackcheck.formats.recognising import Format, recognise, recognise_bytes
from attackcheck.models.archives import Archive, is_archive, read_file
from attackcheck.models.checkpoint import load_checkpoint, load_state
from attackcheck.models.pickles import harmless, imports_of

__all__ = ["Inspection", "TensorEntry", "inspect_file"]

OWN = "an attackcheck checkpoint"


@dataclass(frozen=True)
class TensorEntry:
    """One tensor: its name, type and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numbers(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)


@dataclass
class Inspection:
    """What was seen.

    Attributes:
        imports: globals that its pickles name, harmless ones included.
        refused: those that run more than the rebuilding of tensors, which loading refuses unless they are allowed.
        programs: what a program calls, with counts.
        notes: sentences for the reader.
    """

    path: str
    format: str
    size: int
    sha256: str | None
    tensors: list[TensorEntry] = field(default_factory=list)
    imports: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    programs: dict[str, int] = field(default_factory=dict)
    claim: str | None = None
    card: Mapping[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def inspect_file(path: Path) -> Inspection:
    """Look into a file or directory of weights, a program, a checkpoint or an .npz.

    Raises:
        InputError: if there is none, or it cannot be read at all.
    """
    kind = recognise(path)
    if kind is Format.DIRECTORY:
        return _directory(path)
    data = read_file(path)
    seen = Inspection(str(path), kind.value, len(data), hashlib.sha256(data).hexdigest())
    if kind is Format.SAFETENSORS:
        _safetensors(data, seen)
    elif kind is Format.ONNX:
        _onnx(path, seen)
    elif is_archive(data):
        archive = Archive(data, path)
        if any(name.endswith(".npy") for name in archive):
            seen.format = "an .npz archive of arrays"
            _arrays(path, seen)
        else:
            _archive(archive, recognise_bytes(data, path), seen)
    else:
        _pickle(data, "the file", seen)
        seen.format = f"{seen.format}, in the format before torch 1.6, or a plain pickle"
    if kind is Format.TORCH and not seen.refused and not seen.tensors:
        _weights(path, seen)
    return seen


def _directory(path: Path) -> Inspection:
    files = sorted(entry for entry in path.iterdir() if entry.is_file())
    seen = Inspection(str(path), Format.DIRECTORY.value, sum(entry.stat().st_size for entry in files), None)
    for entry in files:
        if entry.suffix == ".safetensors":
            _safetensors(read_file(entry), seen)
        elif entry.name == "config.json":
            try:
                seen.card = dict(json.loads(read_file(entry)))
            except (ValueError, RecursionError, TypeError) as error:
                raise InputError(f"expected a JSON object in {entry}, got {type(error).__name__}") from error
        elif entry.suffix in (".py", ".bin", ".pkl", ".pt"):
            seen.notes.append(f"{entry.name} is not read from a directory")
    if "auto_map" in seen.card:
        seen.notes.append("its config names code of its own (auto_map), which is never run")
    return seen


def _archive(archive: Archive, kind: Format, seen: Inspection) -> None:
    for name in archive:
        if name.endswith(".pkl") and not name.endswith(".debug_pkl"):
            _pickle(archive[name], name, seen)
        elif name.endswith((".pt", ".pth")) and kind is not Format.EXPORTED:
            seen.notes.append(f"{name} is an archive within the archive, which is not looked into")
    if kind is Format.TORCHSCRIPT:
        source = "\n".join(
            archive[name].decode("utf-8", "replace")
            for name in archive
            if name.startswith("code/") and name.endswith(".py")
        )
        calls = re.findall(r"(?:\b|\.)(torch\.[\w.]+|ops\.[\w.]+|print|save|from_file)\s*\(", source)
        seen.programs = dict(Counter(calls).most_common())
        # The pickles name classes of the program itself, which are no Python.
        seen.refused = [name for name in seen.refused if not name.startswith(("__torch__.", "torch.jit."))]
    if kind is Format.EXPORTED:
        _exported(archive, seen)


def _exported(archive: Archive, seen: Inspection) -> None:
    try:
        document = json.loads(archive["models/model.json"])
        nodes = document["graph_module"]["graph"]["nodes"]
        seen.programs = dict(Counter(str(node["target"]) for node in nodes).most_common())
        for folder, listing in (("weights", "model_weights_config"), ("constants", "model_constants_config")):
            config = json.loads(archive[f"data/{folder}/{listing}.json"])["config"]
            for name, told in config.items():
                meta = told["tensor_meta"]
                shape = tuple(int(size["as_int"]) for size in meta["sizes"])
                seen.tensors.append(TensorEntry(str(name), dtype_name(meta["dtype"]), shape))
                if told["use_pickle"]:
                    seen.notes.append(f"{name} is stored as a pickle, which is refused")
    except Exception as error:  # whatever a stranger's document is
        seen.notes.append(f"its list of operations cannot be read: {in_one_line(error)}")


def _pickle(data: bytes, where: str, seen: Inspection) -> None:
    try:
        found = imports_of(data)
    except InputError:
        seen.notes.append(f"{where} is a pickle that breaks off or makes no sense")
        return
    seen.imports += [name for name in found if name not in seen.imports]
    seen.refused += [name for name in found if not harmless(name) and name not in seen.refused]


def _weights(path: Path, seen: Inspection) -> None:
    """Tensors of a file whose globals are harmless."""
    try:
        loaded = load_checkpoint(path)
        seen.format = OWN
        seen.claim = f"L = {loaded.lipschitz_joint:.9g} (joint), {loaded.lipschitz_pixel:.9g} (pixel)"
        seen.card = json.loads(json.dumps(dict(loaded.card), default=str, skipkeys=True))
        state: Mapping[str, Tensor] = loaded.model.state_dict()
    except InputError as reason:
        try:
            state, _ = load_state(path)
        except InputError:
            seen.notes.append(str(reason))
            return
    seen.tensors = [
        TensorEntry(name, str(value.dtype).removeprefix("torch."), tuple(value.shape)) for name, value in state.items()
    ]


def _safetensors(data: bytes, seen: Inspection) -> None:
    length = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + length])
        for name, told in header.items():
            if name == "__metadata__":
                seen.card = {**seen.card, **told}
            else:
                shape = tuple(int(size) for size in told["shape"])
                seen.tensors.append(TensorEntry(str(name), str(told["dtype"]), shape))
    except Exception as error:  # whatever a stranger's header is
        raise InputError(f"expected a safetensors file in {seen.path}, got {in_one_line(error)}") from error


def _onnx(path: Path, seen: Inspection) -> None:
    try:
        import onnx
    except ImportError as error:
        raise InputError("ONNX graphs need the extra onnx: pip install 'attackcheck[onnx]'") from error
    try:
        graph = onnx.load(str(path), load_external_data=False)
        seen.programs = dict(Counter(node.op_type for node in graph.graph.node).most_common())
        seen.tensors = [
            TensorEntry(str(t.name), onnx.TensorProto.DataType.Name(t.data_type).lower(), tuple(t.dims))
            for t in graph.graph.initializer
        ]
        versions = ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in graph.opset_import)
        seen.notes.append(f"operations of {versions}, written by {graph.producer_name or 'nobody'}")
    except Exception as error:  # protobuf raises all kinds
        raise InputError(f"expected an ONNX graph in {path}, got {in_one_line(error)}") from error


def _arrays(path: Path, seen: Inspection) -> None:
    seen.tensors = list(_array_entries(path))
    if any(entry.dtype == "object" for entry in seen.tensors):
        seen.notes.append("arrays of objects are pickles, which are refused")


def _array_entries(path: Path) -> Iterator[TensorEntry]:
    import zipfile

    import numpy as np

    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.endswith(".npy"):
                    with archive.open(name) as stream:
                        version = np.lib.format.read_magic(stream)
                        old = version == (1, 0)
                        header = np.lib.format.read_array_header_1_0 if old else np.lib.format.read_array_header_2_0
                        shape, _, dtype = header(stream)
                    yield TensorEntry(name.removesuffix(".npy"), str(dtype), tuple(shape))
    except Exception as error:  # whatever a broken archive makes numpy or zipfile raise
        raise InputError(f"expected an .npz in {path}, got {in_one_line(error)}") from error


def summed(tensors: Sequence[TensorEntry]) -> dict[str, int]:
    """How many numbers there are of each type."""
    sums: Counter[str] = Counter()
    for entry in tensors:
        sums[entry.dtype] += entry.numbers
    return dict(sums.most_common())
