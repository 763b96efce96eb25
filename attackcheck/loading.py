"""A file, a factory or a name becomes a Subject: model, claim, and where both come from."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from attackcheck.claims import Claim, ClassPairClaim, LipschitzClaim, RadiusClaim, Scope, takes_model
from attackcheck.errors import InputError, in_one_line
from attackcheck.subject import Subject

__all__ = ["load", "load_certifier"]

CHECKPOINTS = (".pt", ".pth", ".safetensors", ".ckpt", ".bin")


def load(
    source: str | Path | None = None,
    *,
    model: str | None = None,
    lipschitz: float | None = None,
    scope: Scope | None = None,
    radii: str | None = None,
    code: bool = True,
) -> Subject:
    """Load what is to be checked.

    Args:
        source: our own checkpoint, a state_dict (with ``model``), or a factory; None is the checkpoint that ships.
        model: ``FILE.py:NAME`` or ``pkg.mod:NAME``, a factory ``() -> model | (model, claim) | Subject``. Only code
            that is named here (or as ``source``) is ever run.
        lipschitz: a constant that replaces the claim that came with the model.
        scope: ``"joint"`` or ``"pixel"``, what ``lipschitz`` is about (joint by default).
        code: False takes ``source`` for a file, whatever it looks like: for names that the user did not type.
        radii: ``FILE.npz`` with an array ``radii`` (N, H, W), or ``FILE.py:NAME`` or ``pkg.mod:NAME``, a certifier of
            images, or of model, images and ``lipschitz``; it replaces the claim.

    Raises:
        InputError: with one sentence, for anything that cannot be used.
    """
    if lipschitz is not None and radii is not None and radii.endswith(".npz"):
        raise InputError("expected one claim, got both a Lipschitz constant and radii")
    if scope is not None and radii is not None:
        raise InputError("expected --scope beside a Lipschitz claim: it says nothing of radii")
    if scope is not None and lipschitz is None:
        raise InputError("expected --lipschitz beside --scope: a scope alone says nothing")
    if code and model is None and source is not None and _is_factory(str(source)):
        model, source = str(source), None
    if model is not None:
        network, claim, meta = _from_factory(model)
        if source is not None:
            meta |= _fill(network, Path(source))
    else:
        network, claim, meta = _from_checkpoint(source)
    replacement = _claim(lipschitz, scope, radii)
    if replacement is not None:
        claim = replacement
    if claim is None:
        raise InputError(
            f"expected a claim about {meta['model']}, got none: give --lipschitz L or --radii FILE, "
            "or return (model, claim) from the factory"
        )
    return Subject(network, claim, meta)


def _is_factory(text: str) -> bool:
    path, colon, name = text.rpartition(":")
    return bool(colon) and name.isidentifier() and bool(path) and not Path(text).exists()


def _from_checkpoint(source: str | Path | None) -> tuple[nn.Module, Claim, dict[str, Any]]:
    from attackcheck.models.checkpoint import load_checkpoint
    from attackcheck.models.shelf import shipped

    path = shipped() if source is None else Path(source)
    loaded = load_checkpoint(path)
    where = "claimed by the checkpoint"
    claim = LipschitzClaim(loaded.lipschitz_joint, "joint", pixel=loaded.lipschitz_pixel, source=where)
    meta: dict[str, Any] = {"model": path.name if source is None else str(source), "sha256": loaded.sha256}
    meta |= {"shipped": True} if source is None else {"path": str(source)}
    meta["card"] = json.loads(json.dumps(dict(loaded.card), default=str, skipkeys=True))  # plain values for reports
    return loaded.model, claim, meta


def _from_factory(spec: str) -> tuple[Callable[[Tensor], Tensor], Claim | None, dict[str, Any]]:
    meta: dict[str, Any] = {"model": spec, "factory": spec}
    file = Path(spec.rpartition(":")[0])
    if file.suffix == ".py" and file.is_file():
        meta["factory_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    made = _call(_named(spec), spec)
    if isinstance(made, Subject):
        return made.model, made.claim, {**made.meta, **meta}
    claim: Claim | None = None
    if isinstance(made, tuple):
        if len(made) != 2 or not isinstance(made[1], (LipschitzClaim, ClassPairClaim, RadiusClaim)):
            raise InputError(f"expected {spec} to return a model, (model, claim) or a Subject, got {_describe(made)}")
        made, claim = made
    if not callable(made) or isinstance(made, type):
        raise InputError(f"expected {spec} to return a model, (model, claim) or a Subject, got {_describe(made)}")
    return made, claim, meta


def _fill(network: object, path: Path) -> Mapping[str, Any]:
    """Load a state_dict into the factory's network, strictly."""
    from attackcheck.models.checkpoint import load_state

    if not isinstance(network, nn.Module):
        raise InputError(f"expected the factory to make a torch module to load {path} into, got {_describe(network)}")
    state, sha256 = load_state(path)
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
        detail = lines[0] if lines else str(error)
        raise InputError(f"the weights in {path} do not fit the factory's network: {_cut(detail)}") from None
    network.eval()
    return {"path": str(path), "sha256": sha256}


def _claim(lipschitz: float | None, scope: Scope | None, radii: str | None) -> Claim | None:
    if lipschitz is not None and not (math.isfinite(lipschitz) and lipschitz > 0):
        raise InputError(f"expected --lipschitz above 0 and finite, got {lipschitz:g}")
    if radii is None:
        return None if lipschitz is None else LipschitzClaim(lipschitz, scope or "joint", source="given by --lipschitz")
    if not radii.endswith(".npz"):
        return load_certifier(radii, lipschitz)
    try:
        with np.load(radii, allow_pickle=False) as archive:
            if "radii" not in archive:
                raise InputError(f"expected an array 'radii' in {radii}, got {', '.join(archive.files) or 'nothing'}")
            return RadiusClaim(archive["radii"], source=radii)
    except InputError:
        raise
    except Exception as error:  # whatever a broken archive makes numpy or zipfile raise
        raise InputError(
            f"expected an .npz file with an array 'radii' in {radii}, could not read it ({type(error).__name__})"
        ) from None


def load_certifier(spec: str, lipschitz: float | None) -> RadiusClaim:
    """The certifier that ``FILE.py:NAME`` or ``pkg.mod:NAME`` names, with its constant; this runs the user's own code.

    Raises:
        InputError: if there is none, if it takes a constant and there is none, or the other way round.
    """
    certifier = _named(spec)
    if takes_model(certifier) and lipschitz is None:
        raise InputError(f"expected --lipschitz L beside --radii {spec}, which takes (model, images, lipschitz)")
    if lipschitz is not None and not takes_model(certifier):
        raise InputError(
            f"expected one claim, got both a Lipschitz constant and radii: {spec} does not take "
            "(model, images, lipschitz)"
        )
    return RadiusClaim(certifier, lipschitz=lipschitz, source=spec)


def _named(spec: str) -> Callable[..., Any]:
    """The object that ``FILE.py:NAME`` or ``pkg.mod:NAME`` names; this runs the user's own code."""
    place, colon, name = spec.rpartition(":")
    if not colon or not name.isidentifier():
        raise InputError(f"expected FILE.py:NAME or pkg.mod:NAME, got {spec!r}")
    try:
        if place.endswith(".py"):
            path = Path(place)
            if not path.is_file():
                raise InputError(f"expected a Python file at {place}, found none")
            module_spec = importlib.util.spec_from_file_location(path.stem, path)
            if module_spec is None or module_spec.loader is None:
                raise InputError(f"expected a Python file at {place}, could not load it")
            module = importlib.util.module_from_spec(module_spec)
            module_spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
        found = getattr(module, name)
    except InputError:
        raise
    except AttributeError as error:
        raise InputError(f"expected {name!r} in {place}: {in_one_line(error)}") from None
    except (Exception, SystemExit) as error:
        raise InputError(f"importing {place} failed: {in_one_line(error)}") from error
    if not callable(found):
        raise InputError(f"expected {spec} to be callable, got {_describe(found)}")
    return found  # type: ignore[no-any-return]


def _call(factory: Callable[..., Any], spec: str) -> Any:
    try:
        made = factory()
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"calling {spec} failed: {in_one_line(error)}") from error
    model = made[0] if isinstance(made, tuple) and made else made
    if isinstance(model, nn.Module):
        model.eval()
    return made


def _describe(value: object) -> str:
    return f"the class {value.__name__}, not an instance" if isinstance(value, type) else f"a {type(value).__name__}"


def _cut(text: str, length: int = 200) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
