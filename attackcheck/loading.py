"""A file, a factory or a name becomes a Subject: model, claim, and where both come from."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attackcheck.arithmetic import frozen
from attackcheck.claims import Claim, ClassPairClaim, LipschitzClaim, RadiusClaim, Scope
from attackcheck.errors import InputError
from attackcheck.formats.certifiers import load_certifier, read_radii
from attackcheck.formats.claim_files import last_layer, read_claim
from attackcheck.formats.exported import load_exported
from attackcheck.formats.factories import call_factory, is_factory
from attackcheck.formats.onnx_graphs import load_onnx
from attackcheck.formats.outputs import FirstOutput, constant_beside_logits
from attackcheck.formats.recognising import Format, recognise
from attackcheck.formats.states import fill, load_directory
from attackcheck.formats.torchscript import load_torchscript
from attackcheck.models.archives import Archive, read_file
from attackcheck.models.checkpoint import load_checkpoint, load_module, load_state
from attackcheck.models.zoo import ZOO, in_zoo
from attackcheck.subject import Subject

__all__ = ["load", "load_certifier"]

Image = Tensor | Callable[[], Tensor]


@dataclass
class _Loaded:
    model: Callable[[Tensor], Any]
    claim: Claim | None
    meta: dict[str, Any]
    notices: list[str] = field(default_factory=list)


def load(
    source: str | Path | None = None,
    *,
    model: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    lipschitz: float | None = None,
    scope: Scope | None = None,
    radii: str | None = None,
    claim: str | Path | None = None,
    class_pair: str | None = None,
    allow_globals: Sequence[str] = (),
    code: bool = True,
    image: Image | None = None,
) -> Subject:
    """Load what is to be checked.

    Args:
        source: our own checkpoint; ``zoo:NAME``; a program of torch.export (.pt2), TorchScript or an ONNX graph; a
            state_dict or a directory with safetensors (with ``model``); or a factory. None is the one that ships.
        model: ``FILE.py:NAME`` or ``pkg.mod:NAME``, a factory ``() -> model | (model, claim) | Subject``. Only code
            that is named here (or as ``source``) is ever run.
        model_args: keywords for the factory. A factory with a parameter ``config`` gets a directory's config.json.
        lipschitz: a constant that replaces the claim that came with the model.
        scope: ``"joint"`` or ``"pixel"``, what ``lipschitz`` is about (joint by default).
        radii: ``FILE.npz`` with an array ``radii`` (N, H, W), or ``FILE.py:NAME`` or ``pkg.mod:NAME``, a certifier of
            images, or of model, images and ``lipschitz``, with ``numpy:`` in front if it takes arrays; it replaces the
            claim.
        claim: a TOML or JSON file with a claim (see :mod:`attackcheck.formats.claim_files`).
        class_pair: dotted name of the last layer, a 1x1 convolution; ``lipschitz`` is then that of the rest.
        allow_globals: dotted names that a pickle may import, each spelled out by the user.
        code: False takes ``source`` for a file, whatever it looks like: for names that the user did not type.
        image: an image ``(C, H, W)`` of the data, or a function that reads one: to see what the model returns.

    Raises:
        InputError: with one sentence, for anything that cannot be used.
    """
    _check_options(lipschitz, scope, radii, claim, class_pair)
    if code and model is None and source is not None and is_factory(str(source)):
        model, source = str(source), None
    if model is not None:
        loaded = _from_factory(model, model_args, None if source is None else Path(source), allow_globals)
    elif model_args:
        raise InputError("expected --model beside --model-args: a file takes no arguments")
    else:
        loaded = _from_file(source, allow_globals, _seen(image))
    given = _given_claim(loaded.model, lipschitz, scope, radii, claim, class_pair)
    if given is not None:
        loaded.claim = given
    if image is not None:
        _take_constant(loaded, image, scope)
    if loaded.claim is None:
        raise InputError(
            f"expected a claim about {loaded.meta['model']}, got none: give --lipschitz L, --claim FILE or "
            "--radii FILE, or return (model, claim) from the factory"
        )
    if loaded.notices:
        loaded.meta["notices"] = loaded.notices
    return Subject(loaded.model, loaded.claim, loaded.meta)


def _check_options(
    lipschitz: float | None, scope: Scope | None, radii: str | None, claim: str | Path | None, class_pair: str | None
) -> None:
    if lipschitz is not None and radii is not None and radii.endswith(".npz"):
        raise InputError("expected one claim, got both a Lipschitz constant and radii")
    if claim is not None and (lipschitz is not None or radii is not None):
        raise InputError("expected one claim, got both --claim and --lipschitz or --radii")
    if scope is not None and radii is not None:
        raise InputError("expected --scope beside a Lipschitz claim: it says nothing of radii")
    if scope is not None and lipschitz is None:
        raise InputError("expected --lipschitz beside --scope: a scope alone says nothing")
    if class_pair is not None and (lipschitz is None or scope is not None or radii is not None):
        raise InputError("expected --lipschitz L alone beside --class-pair: the constant of all before that layer")
    if lipschitz is not None and not (math.isfinite(lipschitz) and lipschitz > 0):
        raise InputError(f"expected --lipschitz above 0 and finite, got {lipschitz:g}")


def _from_file(source: str | Path | None, allowed: Sequence[str], image: Callable[[], Tensor] | None) -> _Loaded:
    name = None if source is None else str(source)
    if name is None or name.startswith("zoo:"):
        entry = ZOO[0] if name is None else in_zoo(name.removeprefix("zoo:"))
        loaded = _from_checkpoint(entry.path)
        loaded.meta |= {"model": entry.path.name, "shipped": True} if name is None else {"model": name, "path": name}
        if name is None:
            del loaded.meta["path"]
        return loaded
    path = Path(name)
    kind = recognise(path)
    if kind is Format.TORCH:
        return _from_torch(path, allowed)
    meta: dict[str, Any] = {"model": name, "path": name, "format": kind.value}
    if kind in (Format.SAFETENSORS, Format.DIRECTORY):
        raise InputError(f"expected a network for the weights in {path}: give it as --model FILE.py:NAME")
    data = read_file(path)
    meta["sha256"] = hashlib.sha256(data).hexdigest()
    if kind is Format.EXPORTED:
        return _Loaded(load_exported(Archive(data, path), path), None, meta)
    if kind is Format.TORCHSCRIPT:
        return _Loaded(load_torchscript(Archive(data, path), path), None, meta)
    return _Loaded(load_onnx(path, None if image is None else image()[None]), None, meta)


def _from_torch(path: Path, allowed: Sequence[str]) -> _Loaded:
    """Our own checkpoint, or a whole module whose classes the user permits one by one."""
    notices = [f"let {path} import {', '.join(allowed)}"] if allowed else []
    whole = load_module(path, allowed=allowed) if allowed else None
    if whole is not None:
        module, digest = whole
        return _Loaded(module, None, {"model": str(path), "path": str(path), "sha256": digest}, notices)
    loaded = _from_checkpoint(path, allowed)
    loaded.notices += notices
    return loaded


def _from_checkpoint(path: Path, allowed: Sequence[str] = ()) -> _Loaded:
    loaded = load_checkpoint(path, allowed=allowed)
    where = "claimed by the checkpoint"
    claim = LipschitzClaim(loaded.lipschitz_joint, "joint", pixel=loaded.lipschitz_pixel, source=where)
    meta: dict[str, Any] = {"model": str(path), "sha256": loaded.sha256, "path": str(path)}
    meta["card"] = json.loads(json.dumps(dict(loaded.card), default=str, skipkeys=True))  # plain values for reports
    return _Loaded(loaded.model, claim, meta)


def _from_factory(
    spec: str, arguments: Mapping[str, Any] | None, weights: Path | None, allowed: Sequence[str]
) -> _Loaded:
    meta: dict[str, Any] = {"model": spec, "factory": spec}
    file = Path(spec.rpartition(":")[0])
    if file.suffix == ".py" and file.is_file():
        meta["factory_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    if arguments:
        meta["factory_arguments"] = json.loads(json.dumps(dict(arguments), default=str))
    state, config = None, None
    if weights is not None:
        state, digest, config = _weights(weights, allowed)
        meta |= {"path": str(weights), "sha256": digest}
    made = call_factory(spec, arguments, config)
    loaded = _made(made, spec, meta)
    if state is not None and weights is not None:
        loaded.notices += fill(loaded.model, state, weights)
    return loaded


def _weights(path: Path, allowed: Sequence[str]) -> tuple[Mapping[str, Tensor], str, Mapping[str, Any] | None]:
    if path.is_dir():
        recognise(path)
        return load_directory(path, allowed=allowed)
    kind = recognise(path)
    if kind not in (Format.TORCH, Format.SAFETENSORS):
        raise InputError(f"expected weights for --model in {path}, got {kind.value}: give it without --model")
    return *load_state(path, allowed=allowed), None


def _made(made: Any, spec: str, meta: dict[str, Any]) -> _Loaded:
    if isinstance(made, Subject):
        return _Loaded(made.model, made.claim, {**made.meta, **meta})
    claim: Claim | None = None
    expected = f"expected {spec} to return a model, (model, claim) or a Subject, got"
    if isinstance(made, tuple):
        if len(made) != 2 or not isinstance(made[1], (LipschitzClaim, ClassPairClaim, RadiusClaim)):
            raise InputError(f"{expected} {_describe(made)}")
        made, claim = made
    if not callable(made) or isinstance(made, type):
        raise InputError(f"{expected} {_describe(made)}")
    return _Loaded(made, claim, meta)


def _given_claim(
    model: Callable[[Tensor], Any], lipschitz: float | None, scope: Scope | None, radii: str | None,
    file: str | Path | None, class_pair: str | None,
) -> Claim | None:  # fmt: skip
    """The claim that replaces the one that came with the model."""
    if file is not None:
        told = read_claim(file)
        return None if told.metrics_only else told.about(model)
    if radii is not None:
        return read_radii(radii) if radii.endswith(".npz") else load_certifier(radii, lipschitz)
    if lipschitz is None:
        return None
    if class_pair is not None:
        return ClassPairClaim(lipschitz, last_layer(model, class_pair), source="given by --class-pair")
    return LipschitzClaim(lipschitz, scope or "joint", source="given by --lipschitz")


def _take_constant(loaded: _Loaded, image: Image, scope: Scope | None) -> None:
    """A model that returns (logits, L) is examined for its logits, and for that L unless another claim was made."""
    read = _seen(image)
    if read is None or "card" in loaded.meta:  # our own networks return logits
        return
    kept = torch.get_rng_state()
    found = constant_beside_logits(frozen(loaded.model), read(), scope or "joint")
    torch.set_rng_state(kept)
    if found is not None:
        loaded.model, beside = FirstOutput(loaded.model), found
        loaded.claim = loaded.claim or beside
        loaded.notices.append(f"the model returns (logits, L) with L = {beside.lipschitz:.6g}; the logits are examined")


def _seen(image: Image | None) -> Callable[[], Tensor] | None:
    if image is None:
        return None
    return image if callable(image) and not isinstance(image, Tensor) else lambda: image


def _describe(value: object) -> str:
    return f"the class {value.__name__}, not an instance" if isinstance(value, type) else f"a {type(value).__name__}"
