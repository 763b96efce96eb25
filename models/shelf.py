"""What ships with the package: trained checkpoints, and validation scenes that none of them was trained on."""

from pathlib import Path

from attackcheck.errors import InputError

__all__ = ["DEFAULT", "NAMES", "SCENES", "shipped"]

_SHELF = Path(__file__).parent / "shipped"
NAMES = ("isounet-xs", "lipnet-xs")
DEFAULT = NAMES[0]
SCENES = _SHELF / "scenes.npz"


def shipped(name: str = DEFAULT) -> Path:
    """The path of a checkpoint that ships; without a name, of the one that is checked by default.

    Raises InputError for a name that is not among NAMES.
    """
    if name not in NAMES:
        raise InputError(f"expected a shipped checkpoint among {', '.join(NAMES)}, got {name!r}")
    return _SHELF / f"{name}.pt"
