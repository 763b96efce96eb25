"""Weights for a network that the user names: prefixes that wrappers leave behind, and directories with a config."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from attackcheck.errors import InputError, printable
from attackcheck.models.archives import read_file
from attackcheck.models.checkpoint import load_state

__all__ = ["fill", "load_directory", "stripped"]

PREFIXES = ("module.", "_orig_mod.", "model.")
"""What DataParallel, torch.compile and trainers put in front of every name."""

_LARGEST_CONFIG = 1 << 20


def stripped(state: Mapping[str, Tensor], wanted: Collection[str]) -> tuple[dict[str, Tensor], list[str]]:
    """The state with known prefixes taken off all its names, where the network knows the names only without them.

    Returns:
        The state, and one sentence for every prefix taken off.
    """
    current, notices = dict(state), list[str]()
    while set(current) != set(wanted):
        prefix = next((p for p in PREFIXES if current and all(name.startswith(p) for name in current)), None)
        if prefix is None:
            return (dict(state), []) if not notices or not set(current) & set(wanted) else (current, notices)
        current = {name.removeprefix(prefix): value for name, value in current.items()}
        notices.append(f"took the prefix {prefix!r} off the names of {len(current)} tensors")
    return current, notices


def fill(network: object, state: Mapping[str, Tensor], path: Path) -> list[str]:
    """Load a state_dict into the factory's network, strictly; returns what there is to tell.

    Raises:
        InputError: if names or shapes differ.
    """
    if not isinstance(network, nn.Module):
        got = type(network).__name__
        raise InputError(f"expected the factory to make a torch module to load {path} into, got a {got}")
    fitting, notices = stripped(state, network.state_dict().keys())
    try:
        network.load_state_dict(fitting, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
        detail = printable(lines[0] if lines else str(error))
        cut = detail if len(detail) <= 200 else detail[:197] + "..."
        raise InputError(f"the weights in {path} do not fit the factory's network: {cut}") from None
    network.eval()
    return notices


def load_directory(folder: Path, *, allowed: Sequence[str] = ()) -> tuple[dict[str, Tensor], str, dict[str, Any]]:
    """Weights, SHA-256 and config of a directory as model hubs lay them out: config.json beside safetensors.

    The hash of weights in several files is that of their names and hashes. Code that the config names is never run.

    Raises:
        InputError: if something is missing, broken, or lies outside the directory.
    """
    config = _json(folder / "config.json") if (folder / "config.json").is_file() else {}
    listing = next((folder / n for n in ("model.safetensors.index.json",) if (folder / n).is_file()), None)
    if listing is None:
        names = [n for n in ("model.safetensors", "diffusion_pytorch_model.safetensors") if (folder / n).is_file()][:1]
    else:
        told = _json(listing).get("weight_map")
        if not isinstance(told, dict) or not told or not all(isinstance(name, str) for name in told.values()):
            raise InputError(f"expected a weight_map from names to files in {listing}")
        names = sorted(set(told.values()))
    state: dict[str, Tensor] = {}
    digests = []
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise InputError(f"refused {folder}: its weights lie outside it, at {printable(name[:80])}")
        part, digest = load_state(folder / name, allowed=allowed)
        twice = state.keys() & part.keys()
        if twice:
            raise InputError(f"expected every tensor once in {folder}, got {printable(sorted(twice)[0])} twice")
        state |= part
        digests.append((name, digest))
    if len(digests) == 1:
        return state, digests[0][1], config
    return state, hashlib.sha256(json.dumps(digests).encode()).hexdigest(), config


def _json(path: Path) -> dict[str, Any]:
    data = read_file(path, "a JSON file")
    try:
        content = json.loads(data) if len(data) <= _LARGEST_CONFIG else None
    except (ValueError, RecursionError) as error:
        raise InputError(f"expected JSON in {path}, got {type(error).__name__}") from error
    if not isinstance(content, dict):
        raise InputError(f"expected a small JSON object in {path}, got something else")
    return content
