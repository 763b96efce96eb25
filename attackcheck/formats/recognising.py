"""What a file is, seen from its content; its name is asked only where the content has no mark of its own."""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum
from pathlib import Path

from attackcheck.errors import InputError, in_one_line
from attackcheck.models.archives import Archive, is_archive, is_safetensors, read_file

__all__ = ["Format", "recognise", "recognise_bytes"]


class Format(Enum):
    """Formats of networks; the value is what a sentence calls it."""

    TORCH = "a file of torch.save"
    SAFETENSORS = "a safetensors file"
    EXPORTED = "a program of torch.export"
    TORCHSCRIPT = "a TorchScript program"
    ONNX = "an ONNX graph"
    DIRECTORY = "a directory with safetensors and a config"


_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "diffusion_pytorch_model.safetensors")


def recognise(path: Path) -> Format:
    """The format of a file or directory.

    Raises:
        InputError: if there is none, or nothing that can be read.
    """
    try:
        folder = path.is_dir()
    except (OSError, ValueError) as error:  # a name that is too long, or has a zero in it
        raise InputError(f"expected a checkpoint file, got a name that is none: {in_one_line(error)}") from error
    if folder:
        if any((path / name).is_file() for name in _WEIGHTS):
            return Format.DIRECTORY
        raise InputError(
            "expected a checkpoint file, or a directory with config.json and model.safetensors, got the directory "
            f"{path}"
        )
    return recognise_bytes(read_file(path), path)


def recognise_bytes(data: bytes, path: Path) -> Format:
    """The same for content that was read; ``path`` is for its ending, and for messages."""
    if path.suffix == ".onnx":
        return Format.ONNX
    if path.suffix == ".safetensors" or is_safetensors(data):
        return Format.SAFETENSORS
    if is_archive(data):
        names = Archive(data, path)
        if _has(names, "models/", ".json") or "serialized_exported_program.json" in names:
            return Format.EXPORTED
        if _has(names, "code/", ".py") or ("constants.pkl" in names and "data.pkl" in names):
            return Format.TORCHSCRIPT
        if path.suffix == ".pt2":
            raise InputError(f"expected a program of torch.export in {path}, got an archive of something else")
    elif path.suffix == ".pt2":
        raise InputError(f"expected a program of torch.export in {path}, which is truncated or something else")
    return Format.TORCH


def _has(names: Collection[str], folder: str, ending: str) -> bool:
    return any(name.startswith(folder) and name.endswith(ending) for name in names)
