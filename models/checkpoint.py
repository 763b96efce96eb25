"""Files: checkpoints of this package's networks, and state dictionaries of other people's.

A checkpoint is a dictionary of plain values and tensors, `{"format": "attackcheck", "version": 1, "architecture": ...,
"state_dict": ..., "lipschitz": {"joint": L, "pixel": L}, "card": {...}}`, read without running any code from the file.
"""

import hashlib
import importlib
import io
import json
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attackcheck.errors import InputError, in_one_line, printable

from .archives import Archive, is_archive, is_safetensors, read_file
from .constants import Constants
from .isounet import IsoUNetConfig
from .networks import FAMILIES, Config, Network, build, describe
from .pickles import harmless, imports_of, never_permitted

__all__ = ["Loaded", "load_checkpoint", "load_module", "load_state", "save_atomically", "save_checkpoint"]

FORMAT, VERSION = "attackcheck", 1
_OWN = "give the network as --model FILE.py:NAME"


@dataclass(frozen=True)
class Loaded:
    """A network of plain convolutions in evaluation mode, the constants claimed for it, its card, the SHA-256."""

    model: nn.Module
    lipschitz_joint: float
    lipschitz_pixel: float
    card: Mapping[str, object]
    sha256: str


def save_atomically(content: object, path: Path) -> None:
    """torch.save to `path`: a reader (or an interruption) never meets half a file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    torch.save(content, partial)
    os.replace(partial, path)


def save_checkpoint(
    path: str | Path, network: Network, *, card: Mapping[str, object], lipschitz: Constants | None = None
) -> None:
    """Writes a plain network (see `export`) with proven constants, or the given ones, as a checkpoint."""
    claimed = lipschitz or network.constants()
    content = {
        "format": FORMAT,
        "version": VERSION,
        "architecture": describe(network.config),
        "state_dict": dict(network.state_dict()),
        "lipschitz": {"joint": claimed.joint, "pixel": claimed.pixel},
        "card": json.loads(json.dumps(dict(card))),  # plain values only: subclasses of str would be refused at loading
    }
    save_atomically(content, Path(path))


def load_checkpoint(path: str | Path, *, allowed: Sequence[str] = ()) -> Loaded:
    """Reads a checkpoint onto the CPU; `allowed` are globals that it may import, each spelled out by the user.

    Raises InputError, with one sentence, for whatever is wrong with the file.
    """
    data = read_file(path)
    try:
        return _read(data, path, allowed)
    except InputError:
        raise
    except Exception as error:  # whatever numbers and tensors of a stranger's making make torch raise
        raise InputError(f"expected an attackcheck checkpoint in {path}, got {in_one_line(error)}") from error


def load_module(path: str | Path, *, allowed: Sequence[str]) -> tuple[nn.Module, str] | None:
    """A whole module that was saved with torch.save, and the file's SHA-256; None if the file holds something else.

    Raises InputError unless every global that it imports is allowed.
    """
    data = read_file(path)
    content = _unpickle(data, path, allowed)
    if not isinstance(content, nn.Module):
        return None
    return content.eval(), hashlib.sha256(data).hexdigest()


def _read(data: bytes, path: str | Path, allowed: Sequence[str]) -> Loaded:
    content = _unpickle(data, path, allowed)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        if isinstance(content, nn.Module) or _tensors(content):
            raise InputError(f"expected an attackcheck checkpoint in {path}, got a bare state_dict; {_OWN} as well")
        raise InputError(f"expected an attackcheck checkpoint in {path}, got {_kind(content)}; {_OWN}")
    version = content.get("version")
    if not isinstance(version, int) or version != VERSION:
        shown = version if isinstance(version, int | str) else _kind(version)
        raise InputError(f"expected checkpoint version {VERSION} in {path}, got {shown!r}")
    config = _config(content.get("architecture"), path)
    state = content.get("state_dict")
    if not isinstance(state, dict) or not _tensors(state):
        raise InputError(f"expected a state_dict of tensors in {path}, got {_kind(state)}")
    model = _fill(config, state, len(data), path)
    claimed = content.get("lipschitz")
    joint, pixel = (_constant(claimed, scope, path) for scope in ("joint", "pixel"))
    card = content.get("card")
    if not isinstance(card, dict):
        raise InputError(f"expected a card (a dictionary) in {path}, got {_kind(card)}")
    return Loaded(model, joint, pixel, card, hashlib.sha256(data).hexdigest())


def load_state(path: str | Path, *, allowed: Sequence[str] = ()) -> tuple[dict[str, Tensor], str]:
    """A state_dict (.pt, .pth, .safetensors; bare, or under "state_dict" or "model") and the file's SHA-256.

    Args:
        path: the file.
        allowed: dotted names of globals that the file may import, each spelled out by the user.

    Raises InputError when the file is missing, unreadable, would run code, or holds anything but finite tensors.
    """
    data = read_file(path)
    if Path(path).suffix == ".safetensors" or is_safetensors(data):
        content: object = _safetensors(data, path)
    else:
        content = _unpickle(data, path, allowed)
    for name in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    if isinstance(content, nn.Module):
        content = dict(content.state_dict())
    if not isinstance(content, dict) or not _tensors(content):
        raise InputError(f"expected a state_dict of tensors in {path}, got {_kind(content)}")
    _check_numbers(content, len(data), path)
    return content, hashlib.sha256(data).hexdigest()


def _safetensors(data: bytes, path: str | Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load
    except ImportError as error:
        raise InputError("safetensors is not installed: pip install safetensors") from error
    try:
        state: dict[str, Tensor] = load(data)
    except Exception as error:
        raise InputError(
            f"expected a safetensors file, got {path}, which cannot be read: {in_one_line(error)}"
        ) from error
    return state


def _unpickle(data: bytes, path: str | Path, allowed: Sequence[str] = ()) -> object:
    """The content of a torch file, read with torch's own restricted unpickler.

    Raises InputError, which lists the globals that any other way of loading would import, for all but plain content.
    """
    archive = Archive(data, path) if is_archive(data) else None
    try:
        with _permitted(allowed), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says of odd protocols what is said below
            content: object = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except InputError:
        raise
    except Exception as error:
        names = [name for name in _imports(data, archive) if not harmless(name) and name not in allowed]
        if names:
            listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            possible = not any(map(never_permitted, names))
            hint = f", or permit what you trust with --allow-global {printable(names[0])}" if possible else ""
            raise InputError(
                f"refused {path}: loading it would run code ({printable(listed)}); {_OWN} and give a state_dict{hint}"
            ) from error
        pickled = archive is not None or data.startswith(b"\x80")  # torch's own complaint is the same about any text
        if pickled and "weights only" in str(error).lower().replace("_", " "):
            raise InputError(f"refused {path}: it holds more than tensors, loading it could run code") from error
        raise InputError(
            f"expected a checkpoint, got {path}, which is truncated or no torch file ({type(error).__name__})"
        ) from error
    return content


def _imports(data: bytes, archive: Archive | None) -> tuple[str, ...]:
    try:
        return imports_of(data if archive is None else archive["data.pkl"])
    except (InputError, KeyError):
        return ()


@contextmanager
def _permitted(names: Sequence[str]) -> Iterator[None]:
    """Let torch's unpickler import these globals, which the user has named one by one."""
    found: list[Any] = []
    for name in names:
        module, _, attribute = name.rpartition(".")
        if not module or never_permitted(name):
            raise InputError(f"refused --allow-global {name!r}: that runs programs, whatever is in the file")
        try:
            # Under the name in the file, which need not be the one that the object gives itself.
            found.append((getattr(importlib.import_module(module), attribute), name))
        except ModuleNotFoundError as error:
            raise InputError(
                f"expected --allow-global MODULE.NAME, {name!r} fails: {in_one_line(error)} (a module that is not "
                "installed is found if its folder is in PYTHONPATH)"
            ) from error
        except (Exception, SystemExit) as error:
            raise InputError(f"expected --allow-global MODULE.NAME, {name!r} fails: {in_one_line(error)}") from error
    with torch.serialization.safe_globals(found):
        yield


def _kind(value: object) -> str:
    if isinstance(value, dict):
        return f"a dictionary with the keys {', '.join(repr(key)[:40] for key in list(value)[:4]) or '(none)'}"
    return "nothing" if value is None else f"a {type(value).__name__}"


def _tensors(content: object) -> bool:
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )


def _check_numbers(state: Mapping[str, Tensor], size: int, path: str | Path) -> None:
    # A tensor may repeat one stored number a billion times (stride 0): nothing may be larger than the file.
    if any(value.is_meta or value.layout != torch.strided for value in state.values()):
        raise InputError(f"expected plain dense tensors in {path}, got sparse ones or ones without numbers")
    if sum(value.numel() * value.element_size() for value in state.values()) > size:
        raise InputError(f"expected tensors that fit into the {size} bytes of {path}, got larger ones")
    for name, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise InputError(f"expected finite weights in {path}, got NaN or infinity in {name}")


_LIMITS = {"classes": (2, 4096), "channels": (1, 64), "upsample": (1, 64), "depth": (0, 8)}


def _config(found: object, path: str | Path) -> Config:
    if not isinstance(found, dict):
        raise InputError(f"expected an architecture (a dictionary) in {path}, got {_kind(found)}")
    family = found.get("family")
    if not isinstance(family, str) or family not in FAMILIES:
        raise InputError(f"expected an architecture of family {' or '.join(FAMILIES)} in {path}, got {family!r}")
    kind = FAMILIES[family]
    names = {field.name for field in fields(kind)}
    unknown = [str(name) for name in found if name not in names | {"family"}]
    missing = [f.name for f in fields(kind) if f.default is MISSING and f.name not in found]
    if unknown or missing:
        raise InputError(
            f"expected the fields of a {family} architecture in {path}, got "
            + (f"an unknown {unknown[0]!r}" if unknown else f"no {missing[0]!r}")
        )
    default = kind(classes=2)
    values: dict[str, Any] = {}
    for name, value in found.items():
        if name != "family":
            values[name] = _field(name, value, getattr(default, name), path)
    config = kind(**values)
    problem = _inconsistent(config)
    if problem:
        raise InputError(f"expected a consistent architecture in {path}, got {problem}")
    return config


def _field(name: str, value: object, default: object, path: str | Path) -> object:
    """`value` in the type of `default`, when it is of sane size: InputError otherwise."""
    low, high = _LIMITS.get(name, (0 if name in {"stages", "refine", "before", "after", "bottom"} else 1, 8192))
    if name in {"stages", "refine", "before", "after", "bottom"}:
        high = 64
    good: bool
    if name in {"mean", "std"}:
        if value is None and name == "std":
            return None
        good = isinstance(value, list | tuple) and len(value) <= 64 and all(_number(part) for part in value)
        good = good and (name == "mean" or all(part > 0 for part in value))  # type: ignore[attr-defined]
    elif isinstance(default, tuple):
        good = isinstance(value, list | tuple) and len(value) <= 16 and all(_whole(part, low, high) for part in value)
    elif isinstance(default, bool):
        good = isinstance(value, bool)
    elif isinstance(default, int):
        good = _whole(value, low, high)
    else:
        good = value in ("zeros", "circular")
    if not good:
        raise InputError(f"expected a sane value for {name} of the architecture in {path}, got {str(value)[:60]}")
    return tuple(value) if isinstance(value, list) else value


def _whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _inconsistent(config: Config) -> str | None:
    if len(config.mean) != config.channels or (config.std is not None and len(config.std) != config.channels):
        return f"mean or std that do not have {config.channels} channels"
    if isinstance(config, IsoUNetConfig):
        if config.width % 2 or config.head % 2:
            return f"odd width {config.width} or head {config.head}"
        return f"a width of {config.width} at depth {config.depth}" if config.width << config.depth > 8192 else None
    if len(config.widths) != len(config.stages) or len(config.decoder) != len(config.refine):
        return "lists of different lengths"
    if not config.widths or len(config.decoder) > len(config.widths) or not config.dilations:
        return f"{len(config.widths)} stages, {len(config.decoder)} decoder steps, {len(config.dilations)} dilations"
    odd = [width for width in (*config.widths, *config.decoder, config.branch * len(config.dilations)) if width % 2]
    return f"odd width {odd[0]}" if odd else None


def _fill(config: Config, state: dict[str, Tensor], size: int, path: str | Path) -> Network:
    with torch.device("meta"):
        model = build(config, plain=True)
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    strange = [name for name in state if name not in wanted] + [name for name in wanted if name not in state]
    if strange:
        raise InputError(
            f"expected the weights of the architecture in {path}, got a state_dict differing in {strange[0]}"
        )
    for name, shape in wanted.items():
        value = state[name]
        if tuple(value.shape) != shape or value.dtype != torch.float32:
            raise InputError(
                f"expected {name} of {path} to be float32 of shape {shape}, got {value.dtype} {tuple(value.shape)}"
            )
    _check_numbers(state, size, path)
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def _constant(claimed: object, scope: str, path: str | Path) -> float:
    value = claimed.get(scope) if isinstance(claimed, dict) else None
    if not (isinstance(value, int | float) and _number(value) and value > 0):
        raise InputError(f"expected a positive Lipschitz constant ({scope}) in {path}, got {value!r}")
    return float(value)
