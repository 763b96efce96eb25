"""The networks that ship, by name, with their cards: what each was trained on, by which command, and how good it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from attackcheck.errors import InputError

from .shelf import NAMES, shipped

__all__ = ["ZOO", "Entry", "in_zoo"]


@dataclass(frozen=True)
class Entry:
    """One network: its name after ``zoo:``, what it is, and where its checkpoint lies."""

    name: str
    about: str
    path: Path

    @property
    def card(self) -> Mapping[str, object]:
        """The card inside the checkpoint, as it was written when the training ended."""
        from .checkpoint import load_checkpoint

        return load_checkpoint(self.path).card


_ABOUT = {
    "isounet-xs": "isometric U-Net, exactly 1-Lipschitz by its construction, street scenes of 7 classes",
    "lipnet-xs": "encoder and decoder with orthogonal convolutions as in the paper, street scenes of 7 classes",
}

ZOO = tuple(Entry(name, _ABOUT[name], shipped(name)) for name in NAMES)


def in_zoo(name: str) -> Entry:
    """The entry of this name; raises InputError for a name that is not among them."""
    for entry in ZOO:
        if entry.name == name:
            return entry
    raise InputError(f"expected zoo:NAME with a name among {', '.join(entry.name for entry in ZOO)}, got {name!r}")
