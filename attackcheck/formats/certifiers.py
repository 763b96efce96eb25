"""Certifiers of any framework: radii in files, and functions that take torch tensors or NumPy arrays."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attackcheck.claims import RadiusClaim, takes_model
from attackcheck.confidence import Confidence
from attackcheck.errors import InputError
from attackcheck.formats.factories import named

__all__ = ["in_numpy", "load_certifier", "read_radii"]

NUMPY = "numpy:"
"""Before FILE.py:NAME: the certifier takes and returns arrays, which is what every framework reads and writes."""


def load_certifier(spec: str, lipschitz: float | None, confidence: Confidence | None = None) -> RadiusClaim:
    """The certifier that ``[numpy:]FILE.py:NAME`` or ``[numpy:]pkg.mod:NAME`` names, with its constant.

    This runs the user's own code.

    Raises:
        InputError: if there is none, if it takes a constant and there is none, or the other way round.
    """
    certifier = named(spec.removeprefix(NUMPY))
    if takes_model(certifier) and lipschitz is None:
        raise InputError(f"expected --lipschitz L beside --radii {spec}, which takes (model, images, lipschitz)")
    if lipschitz is not None and not takes_model(certifier):
        raise InputError(
            f"expected one claim, got both a Lipschitz constant and radii: {spec} does not take "
            "(model, images, lipschitz)"
        )
    if spec.startswith(NUMPY):
        certifier = in_numpy(certifier)
    return RadiusClaim(certifier, lipschitz=lipschitz, source=spec, confidence=confidence)


def in_numpy(certifier: Callable[..., Any]) -> Callable[..., Any]:
    """A certifier of arrays as one of tensors; a model that it takes is handed over as a function of arrays, too."""
    if not takes_model(certifier):
        return lambda images: _tensor(certifier(_array(images)))

    def of_model(model: Callable[[Tensor], Tensor], images: Tensor, lipschitz: float) -> Tensor:
        def arrays(given: Any) -> np.ndarray[Any, Any]:
            with torch.no_grad():
                return _array(model(_tensor(given).to(images)))

        return _tensor(certifier(arrays, _array(images), lipschitz))

    return of_model


def _array(tensor: Tensor) -> np.ndarray[Any, Any]:
    array: np.ndarray[Any, Any] = tensor.detach().cpu().numpy()
    return array.copy()


def _tensor(array: Any) -> Tensor:
    # Arrays of other frameworks may share read-only memory.
    return array if isinstance(array, Tensor) else torch.from_numpy(np.array(array))


def read_radii(path: str | Path) -> RadiusClaim:
    """The claim in an .npz file: ``radii`` (N, H, W), 0 where the certifier abstains.

    With ``alpha`` (or ``confidence`` = 1 - alpha) the radii hold with a probability only; ``per`` says whether of a
    single pixel (``"pixel"``, the default) or of all pixels of an image at once (``"image"``), and ``independent``
    whether pixels err independently of each other. ``abstained`` (N, H, W) bool sets radii to 0.

    Raises:
        InputError: for anything else.
    """
    try:
        if Path(path).is_fifo():  # its writer would be waited for
            raise InputError(f"expected an .npz file with an array 'radii' in {path}, which is not a regular file")
        with open(path, "rb") as file, zipfile.ZipFile(file) as listing:
            declared = sum(entry.file_size for entry in listing.infolist())
        if declared > _LARGEST:
            raise InputError(f"expected radii of at most {_LARGEST >> 30} GiB in {path}, got {declared:,} bytes")
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as archive:
            if "radii" not in archive:
                raise InputError(f"expected an array 'radii' in {path}, got {', '.join(archive.files) or 'nothing'}")
            radii = archive["radii"]
            told = {name: archive[name] for name in ("alpha", "confidence", "per", "independent") if name in archive}
            odd = [name for name, value in {**told, "radii": radii}.items() if not isinstance(value, np.ndarray)]
            if odd:
                raise InputError(f"expected arrays in {path}, got something else as {odd[0]!r}")
            if "abstained" in archive:
                abstained = np.asarray(archive["abstained"])
                if abstained.shape != radii.shape or abstained.dtype != bool:
                    raise InputError(f"expected 'abstained' in {path} as truth values of the shape of the radii")
                radii = np.where(abstained, 0.0, radii)
    except InputError:
        raise
    except Exception as error:  # whatever a broken archive makes numpy or zipfile raise
        raise InputError(
            f"expected an .npz file with an array 'radii' in {path}, could not read it ({type(error).__name__})"
        ) from None
    plain = {name: value.item() if value.ndim == 0 else None for name, value in told.items()}
    return RadiusClaim(radii, source=str(path), confidence=Confidence.told(plain, str(path)))


_LARGEST = 1 << 33
