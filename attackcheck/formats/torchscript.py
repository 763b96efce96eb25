"""TorchScript programs: deprecated, still common, and able to write files unless their source is looked at first."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path

import torch
from torch import nn

from attackcheck.errors import InputError, in_one_line
from attackcheck.formats.storages import check_storages
from attackcheck.models.archives import Archive

__all__ = ["load_torchscript"]

# As functions, and as methods of tensors and strings: TorchScript finds either.
_CALLS = re.compile(r"\b(save|from_file|print|_print|rpc_async|rpc_sync|rpc_remote|set_data)\s*\(")
_NAMESPACES = re.compile(r"\bops\.(\w+)\.")
_CLASSES = re.compile(r"__torch__\.torch\.classes\.([\w.]+)")


def load_torchscript(archive: Archive, path: Path) -> nn.Module:
    """A scripted or traced module, on the CPU in evaluation mode.

    Raises:
        InputError: if it is broken, or its source calls what writes, prints or talks to other machines.
    """
    for name in archive:
        if name.startswith("code/") and name.endswith(".py"):
            _screen(archive[name].decode("utf-8", "replace"), path)
    check_storages(archive, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module: nn.Module = torch.jit.load(io.BytesIO(archive.repacked()), map_location="cpu")  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever a broken program makes torch raise
        raise InputError(f"expected a TorchScript program in {path}, got {in_one_line(error)}") from error
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module.eval()


def _screen(source: str, path: Path) -> None:
    called = [found[1] for found in _CALLS.finditer(source)]
    foreign = [found[1] for found in _NAMESPACES.finditer(source) if found[1] not in ("aten", "prim", "quantized")]
    custom = [found[1] for found in _CLASSES.finditer(source)]
    strange = [*called, *(f"ops.{name}" for name in foreign), *(f"torch.classes.{name}" for name in custom)]
    if strange:
        raise InputError(
            f"refused {path}: its program calls {strange[0][:80]!r}, which is no arithmetic; "
            "give the network as --model FILE.py:NAME"
        )
