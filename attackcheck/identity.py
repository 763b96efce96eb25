"""What must be the same for results of several runs to belong together."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from attackcheck.arithmetic import exact_arithmetic, frozen
from attackcheck.claims import RadiusClaim
from attackcheck.counterexample import digest
from attackcheck.errors import InputError
from attackcheck.preflight import check_image
from attackcheck.subject import Images, Settings, Subject

__all__ = ["differences", "identity_of", "listed", "model_of"]

SAMPLED = 32
"""Logits of the first image that are compared."""

ALIKE = 1e-3
"""Relative to the largest of them: another device or batch may change that much, another network changes more."""

_WORDS = {
    "attackcheck": "another version of attackcheck",
    "model": "another model",
    "claim": "another claim",
    "data": "other images or labels",
    "plan": "another plan",
}


def listed(data: Images) -> list[dict[str, Any]]:
    """Name, shape and SHA-256 of every image with its labels; reads the whole data set once.

    Raises:
        InputError: for an image that cannot be used.
    """
    images = []
    for index in range(len(data)):
        sample = data[index]
        check_image(sample.image, sample.name)
        images.append(
            {
                "name": sample.name,
                "shape": list(sample.image.shape),
                "sha256": digest(sample.image),
                "labels_sha256": None if sample.labels is None else digest(sample.labels),
            }
        )
    return images


def identity_of(subject: Subject, data: Images, settings: Settings, images: list[dict[str, Any]]) -> dict[str, Any]:
    """Everything that results depend on, as plain values; ``images`` are those of :func:`listed`."""
    pixels: Any = settings.pixels
    if isinstance(pixels, np.ndarray):
        pixels = {"sha256": hashlib.sha256(np.ascontiguousarray(pixels, np.int64).tobytes()).hexdigest()}
    identity = {
        "attackcheck": metadata.version("attackcheck"),
        "model": model_of(subject, data, settings.device),
        "claim": {**subject.claim.to_dict(), "sha256": _certifier(subject.claim)},
        "data": hashlib.sha256(json.dumps(images, sort_keys=True).encode()).hexdigest(),
        "plan": [vars(stage) for stage in settings.plan.stages],
        "pixels": pixels,
        "choose": settings.choose,
        "regions": [
            {**vars(region), "sha256": _file(region.argument) if region.kind == "mask" else None}
            for region in settings.regions
        ],
        "target": settings.target,
        "seed": settings.seed,
        "tolerance": settings.tolerance,
        "box": settings.box,
        "crops": settings.crops,
        "audit": settings.audit,
        "metrics": [claim.to_dict() for claim in settings.metrics],
        "device": torch.device(settings.device).type,
    }
    plain: dict[str, Any] = json.loads(json.dumps(identity))
    return plain


def model_of(subject: Subject, data: Images, device: str) -> dict[str, Any]:
    """What tells models apart: hashes of the weights and of the factory's file, some logits of the first image."""
    return {
        "weights_sha256": _weights(subject.model),
        "factory_sha256": subject.meta.get("factory_sha256"),
        "logits": _sample(subject, data, device),
    }


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, in words; nothing where results belong together."""
    return list(_differences(there, here))


def _differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> Iterator[str]:
    for name in {**there, **here}:
        was, now = there.get(name), here.get(name)
        if name == "model" and isinstance(was, dict) and isinstance(now, dict):
            if _same_model(was, now):
                continue
        elif was == now:
            continue
        if name == "model" and _factory(was) is not None and _factory(was) == _factory(now):
            yield "another model (the same file made other weights: seed it, or load them)"
        elif name in _WORDS:
            yield _WORDS[name]
        elif isinstance(was, (dict, list)) or isinstance(now, (dict, list)):
            yield f"other {name}"
        else:
            yield f"{name} {was} and not {now}"


def _factory(model: Any) -> str | None:
    return model.get("factory_sha256") if isinstance(model, dict) else None


def _same_model(was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Hashes must be equal, logits nearly: those also see code that changed under the same weights."""
    if any(was.get(name) != now.get(name) for name in ("weights_sha256", "factory_sha256")):
        return False
    first, second = was.get("logits"), now.get("logits")
    if first is None or second is None:
        return first == second
    if len(first) != len(second):
        return False
    scale = max((abs(value) for value in (*first, *second)), default=0.0)
    return all(abs(a - b) <= ALIKE * scale for a, b in zip(first, second, strict=True))


def _weights(model: object) -> str | None:
    if not isinstance(model, torch.nn.Module):
        return None
    whole = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        whole.update(f"{name}={digest(value) if isinstance(value, torch.Tensor) else value!r};".encode())
    return whole.hexdigest()


def _sample(subject: Subject, data: Images, device: str) -> list[float] | None:
    """Logits of the first image, evenly spread; None where the model fails, which is said when it is examined."""
    try:
        with exact_arithmetic(), torch.no_grad():
            model = frozen(subject.model)
            if isinstance(model, torch.nn.Module):
                model.to(device)
            logits = model(data[0].image[None].to(device)).flatten().double().cpu()
        places = torch.linspace(0, len(logits) - 1, min(SAMPLED, len(logits))).long()
        return [float(value) for value in logits[places]] if bool(logits.isfinite().all()) else None
    except Exception:  # whatever a stranger's model raises
        return None


def _certifier(claim: object) -> str | None:
    """SHA-256 of given radii, or of the file that a certifier is in."""
    if not isinstance(claim, RadiusClaim):
        return None
    if not callable(claim.certifier):
        return digest(torch.as_tensor(claim.certifier))
    try:
        return _file(inspect.getfile(inspect.unwrap(claim.certifier)))
    except (TypeError, OSError, InputError):
        return None


def _file(name: str) -> str:
    try:
        return hashlib.sha256(Path(name).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"could not read {name}: {error.strerror or error}") from None
