"""Networks of norm one, exact models, training, pictures and checkpoints; imported piece by piece when asked for."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .checkpoint import Loaded as Loaded
    from .checkpoint import load_checkpoint as load_checkpoint
    from .checkpoint import load_state as load_state
    from .checkpoint import save_checkpoint as save_checkpoint
    from .constants import Constants as Constants
    from .datasets import Dataset as Dataset
    from .datasets import Sample as Sample
    from .datasets import load_data as load_data
    from .isounet import IsoUNet as IsoUNet
    from .isounet import IsoUNetConfig as IsoUNetConfig
    from .lipnet import LipNet as LipNet
    from .lipnet import LipNetConfig as LipNetConfig
    from .networks import build as build
    from .networks import export as export
    from .shelf import shipped as shipped
    from .training import Measured as Measured
    from .training import Progress as Progress
    from .training import Recipe as Recipe
    from .training import measure as measure
    from .training import train as train

_HOMES = {
    "Constants": "constants",
    "Dataset": "datasets",
    "IsoUNet": "isounet",
    "IsoUNetConfig": "isounet",
    "LipNet": "lipnet",
    "LipNetConfig": "lipnet",
    "Loaded": "checkpoint",
    "Measured": "training",
    "Progress": "training",
    "Recipe": "training",
    "Sample": "datasets",
    "build": "networks",
    "export": "networks",
    "load_checkpoint": "checkpoint",
    "load_data": "datasets",
    "load_state": "checkpoint",
    "measure": "training",
    "save_checkpoint": "checkpoint",
    "shipped": "shelf",
    "train": "training",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
