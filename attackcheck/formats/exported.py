"""Programs of `torch.export` (.pt2) without torch's own loader, which unpickles and evaluates what is in the file.

The file lists tensor operations by name. They are read as data, checked against what tensor operations of a network
are called, and run one after the other; weights are raw numbers. So nothing but arithmetic can happen, parameters are
parameters (another dtype or device, a copy), and there is no training mode to leave.
"""

from __future__ import annotations

import json
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attackcheck.errors import InputError, in_one_line
from attackcheck.models.archives import Archive

__all__ = ["ExportedProgram", "dtype_name", "load_exported"]

MAJOR = 8
"""Of the schema that is read here; torch has written it since 2.5."""

_DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
    8: torch.float64, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip


def dtype_name(number: object) -> str:
    """What the schema's number of a type stands for."""
    known = _DTYPES.get(number) if isinstance(number, int) else None
    return f"type {number}" if known is None else str(known).removeprefix("torch.")


_MEMORY = {1: torch.contiguous_format, 2: torch.channels_last, 4: torch.preserve_format}
_OPERATORS = ("add", "sub", "mul", "floordiv", "truediv", "mod", "neg", "getitem", "eq", "ne", "le", "ge", "lt", "gt")
_SCALARS: dict[str, Callable[..., Any]] = {name: getattr(operator, name) for name in _OPERATORS}
_NOT_ARITHMETIC = {"save", "from_file", "from_blob", "print", "set_data"}
_ASSERTIONS = ("_assert", "sym_constrain_range", "_functional_assert", "_functional_sym_constrain_range")


@dataclass(frozen=True)
class _Step:
    """One operation: arguments are constants or :class:`_Name`, results get names."""

    target: Callable[..., Any]
    positional: tuple[Any, ...]
    keywords: tuple[tuple[str, Any], ...]
    results: tuple[str, ...]
    many: bool  # several results, or a list of them
    done: tuple[str, ...] = ()  # values that nobody asks for afterwards


@dataclass(frozen=True)
class _Name:
    value: str


@dataclass(frozen=True)
class _Device:
    """Wherever the images are."""


class ExportedProgram(nn.Module):
    """Images (B, C, H, W) to the program's output; a program for one batch size is called as often as need be."""

    def __init__(
        self, steps: Sequence[_Step], weights: Mapping[str, Tensor], image: str, shape: Sequence[int | None],
        outputs: Sequence[str],
    ) -> None:  # fmt: skip
        super().__init__()
        self._steps, self._image, self._shape, self._outputs = tuple(steps), image, tuple(shape), tuple(outputs)
        self._places: dict[str, str] = {}
        for number, (name, value) in enumerate(weights.items()):
            place = f"weight{number}"
            self._places[name] = place
            if value.is_floating_point():
                self.register_parameter(place, nn.Parameter(value, requires_grad=False))
            else:
                self.register_buffer(place, value)

    def forward(self, images: Tensor) -> Any:
        expected = self._shape[1:]
        if images.dim() != 4 or any(
            want not in (None, got) for want, got in zip(expected, images.shape[1:], strict=True)
        ):
            wanted = ", ".join("any" if size is None else str(size) for size in expected)
            raise InputError(f"expected images of shape ({wanted}), as exported, got {tuple(images.shape[1:])}")
        batch = self._shape[0]
        if batch is None or batch == len(images):
            return self._run(images)
        parts = []
        for part in torch.split(images, batch):
            missing = batch - len(part)
            filled = torch.cat([part, part[-1:].expand(missing, -1, -1, -1)]) if missing else part
            parts.append(_rows(self._run(filled), len(part)))
        return _joined(parts)

    def _run(self, images: Tensor) -> Any:
        values: dict[str, Any] = {name: getattr(self, place) for name, place in self._places.items()}
        values[self._image] = images
        for step in self._steps:
            positional = [_given(value, values, images) for value in step.positional]
            keywords = {name: _given(value, values, images) for name, value in step.keywords}
            result = step.target(*positional, **keywords)
            if step.many:
                values.update(zip(step.results, result, strict=True))
            elif step.results:
                values[step.results[0]] = result
            for name in step.done:
                values.pop(name, None)
        found = tuple(values[name] for name in self._outputs)
        return found[0] if len(found) == 1 else found


def _given(value: Any, values: Mapping[str, Any], images: Tensor) -> Any:
    if isinstance(value, _Name):
        return values[value.value]
    if isinstance(value, _Device):
        return images.device
    return [_given(part, values, images) for part in value] if isinstance(value, list) else value


def _rows(result: Any, count: int) -> Any:
    return tuple(_rows(part, count) for part in result) if isinstance(result, tuple) else result[:count]


def _joined(parts: Sequence[Any]) -> Any:
    if isinstance(parts[0], tuple):
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))
    return torch.cat(list(parts))


def load_exported(archive: Archive, path: Path) -> ExportedProgram:
    """The program in an archive of `torch.export.save`, torch 2.8 or later.

    Raises:
        InputError: if it is broken, of another version, or does anything but tensor operations on one image batch.
    """
    if "models/model.json" not in archive:
        raise InputError(f"expected a program saved by torch 2.8 or later in {path}: export it again")
    try:
        return _program(json.loads(archive["models/model.json"]), archive, path)
    except InputError:
        raise
    except Exception as error:  # whatever a stranger's numbers and names make the reading raise
        raise InputError(
            f"expected a program of torch.export in {path}, could not read it: {in_one_line(error)}"
        ) from error


def _program(document: Any, archive: Archive, path: Path) -> ExportedProgram:
    major = document["schema_version"]["major"]
    if major != MAJOR:
        raise InputError(f"expected version {MAJOR} of torch.export's schema in {path}, got {major!r}: export it again")
    graph, signature = document["graph_module"]["graph"], document["graph_module"]["signature"]
    stored = _payloads(archive, "data/weights/", "model_weights_config.json", path)
    stored |= _payloads(archive, "data/constants/", "model_constants_config.json", path)
    weights, images = {}, []
    for spec in signature["input_specs"]:
        ((kind, content),) = spec.items()
        if kind == "user_input":
            images.append(content["arg"]["as_tensor"]["name"])
        elif kind in ("parameter", "buffer", "tensor_constant"):
            weights[str(content["arg"]["name"])] = stored[content[f"{kind}_name"]]
        else:
            raise InputError(f"expected weights and one image as inputs in {path}, got {str(kind)[:40]!r}")
    if len(images) != 1:
        raise InputError(f"expected a program of one image batch in {path}, got {len(images)} inputs")
    outputs = []
    for spec in signature["output_specs"]:
        ((kind, content),) = spec.items()
        if kind != "user_output":
            raise InputError(f"expected a program that changes nothing in {path}, got {str(kind)[:40]!r}: model.eval()")
        outputs.append(str(content["arg"]["as_tensor"]["name"]))
    steps = [step for node in graph["nodes"] if (step := _step(node, path)) is not None]
    sizes = [size.get("as_int") for size in graph["tensor_values"][images[0]]["sizes"]]
    if len(sizes) != 4 or not all(size is None or (isinstance(size, int) and size > 0) for size in sizes):
        raise InputError(f"expected a program of images (B, C, H, W) in {path}, got {len(sizes)} dimensions")
    return ExportedProgram(_forgetting(steps, outputs), weights, str(images[0]), sizes, outputs)


def _forgetting(steps: Sequence[_Step], outputs: Sequence[str]) -> list[_Step]:
    """Every value is let go of after the last step that asks for it."""
    kept, reversed_steps = set(outputs), []
    for step in reversed(steps):
        asked = set(_names([*step.positional, *(value for _, value in step.keywords)]))
        done = tuple(sorted((asked | set(step.results)) - kept))
        kept |= asked
        reversed_steps.append(_Step(step.target, step.positional, step.keywords, step.results, step.many, done))
    return reversed_steps[::-1]


def _names(values: Sequence[Any]) -> list[str]:
    found: list[str] = []
    for value in values:
        if isinstance(value, _Name):
            found.append(value.value)
        elif isinstance(value, list):
            found += _names(value)
    return found


def _step(node: Mapping[str, Any], path: Path) -> _Step | None:
    name = str(node["target"])
    last = name.split(".")[-2] if name.count(".") >= 2 else name
    if last.startswith(_ASSERTIONS):
        return None
    positional, keywords = [], []
    for given in node["inputs"]:
        value = _argument(given["arg"], path)
        if given["name"] in ("training", "train") and value is True:
            raise InputError(f"expected a program exported in evaluation mode in {path}: model.eval() first")
        if given.get("kind") == 1:
            positional.append(value)
        else:
            keywords.append((str(given["name"]), value))
    results, many = _results(node["outputs"], path)
    return _Step(_operation(name, path), tuple(positional), tuple(keywords), results, many)


def _operation(name: str, path: Path) -> Callable[..., Any]:
    found = re.fullmatch(r"torch\.ops\.aten\.(\w+)\.(\w+)", name)
    if found is not None and found[1].strip("_") not in _NOT_ARITHMETIC and not found[1].startswith("__"):
        packet = getattr(torch.ops.aten, found[1], None)
        overload: Callable[..., Any] | None = getattr(packet, found[2], None)
        if isinstance(overload, torch._ops.OpOverload):
            return overload
    scalar = name.removeprefix("_operator.")
    if name.startswith("_operator.") and scalar in _SCALARS:
        return _SCALARS[scalar]
    raise InputError(
        f"refused {path}: it calls {name[:80]!r}, which is no tensor operation of torch (custom operations and control "
        "flow cannot be checked); give the network as --model FILE.py:NAME"
    )


def _results(outputs: Sequence[Mapping[str, Any]], path: Path) -> tuple[tuple[str, ...], bool]:
    names: list[str] = []
    many = len(outputs) > 1
    for output in outputs:
        ((kind, content),) = output.items()
        if kind == "as_tensors":
            many = True
            names += [str(part["name"]) for part in content]
        elif kind == "as_tensor":
            names.append(str(content["name"]))
        elif kind in ("as_sym_int", "as_sym_bool", "as_sym_float"):
            names.append(str(content["as_name"]))
        elif kind != "as_none":
            raise InputError(f"expected tensors as results in {path}, got {str(kind)[:40]!r}")
    return tuple(names), many


_PLAIN = {
    "as_int": int, "as_ints": int, "as_float": float, "as_floats": float, "as_bool": bool, "as_bools": bool,
    "as_string": str,
}  # fmt: skip


def _argument(argument: Mapping[str, Any], path: Path) -> Any:
    ((kind, content),) = argument.items()
    if kind in _PLAIN:
        values = content if isinstance(content, list) else [content]
        wanted = (int, float) if _PLAIN[kind] is float else _PLAIN[kind]
        if all(value in ("Infinity", "-Infinity") for value in values):
            return math.inf if content == "Infinity" else -math.inf
        if not all(isinstance(value, wanted) for value in values):
            raise InputError(f"expected {kind} in {path}, got {str(content)[:40]!r}")
        return content
    match kind:
        case "as_none":
            return None
        case "as_tensor":
            return _Name(str(content["name"]))
        case "as_tensors":
            return [_Name(str(part["name"])) for part in content]
        case "as_optional_tensor":
            return _argument(content, path)
        case "as_optional_tensors" | "as_sym_ints" | "as_sym_floats" | "as_sym_bools":
            return [_argument(part, path) for part in content]
        case "as_sym_int" | "as_sym_float" | "as_sym_bool":
            return _argument(content, path)
        case "as_name":
            return _Name(str(content))
        case "as_scalar_type":
            return _DTYPES[content]
        case "as_memory_format":
            return _MEMORY[content]
        case "as_layout":
            return torch.strided
        case "as_device":
            return _Device()
    raise InputError(f"expected numbers and tensors as arguments in {path}, got {str(kind)[:40]!r}")


def _payloads(archive: Archive, folder: str, listing: str, path: Path) -> dict[str, Tensor]:
    """Tensors stored as raw numbers, by name."""
    config = json.loads(archive[folder + listing])["config"] if folder + listing in archive else {}
    found: dict[str, Tensor] = {}
    total = sum(archive.size(name) for name in archive)
    for name, told in config.items():
        if told["use_pickle"] or not str(told["path_name"]).startswith(("weight_", "tensor_")):
            raise InputError(f"refused {path}: {name[:80]!r} is no plain tensor, loading it could run code")
        meta = told["tensor_meta"]
        sizes, strides = ([int(part["as_int"]) for part in meta[key]] for key in ("sizes", "strides"))
        dtype, offset = _DTYPES[meta["dtype"]], int(meta["storage_offset"]["as_int"])
        stored = archive[folder + str(told["path_name"])]
        flat = torch.frombuffer(bytearray(stored), dtype=dtype) if stored else torch.zeros(0, dtype=dtype)
        total -= max(0, math.prod(sizes)) * dtype.itemsize
        if total < 0 or min([*sizes, *strides, offset], default=0) < 0:
            raise InputError(f"expected tensors that fit into {path}, got larger ones")
        found[name] = flat.as_strided(sizes, strides, offset).clone()
    return found
