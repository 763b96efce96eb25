"""Named configurations: data, resolution, size of network and temperature of the experiments that they are named after.

After Massena, Friedrich, Mamalet and Serrurier, arXiv 2512.06010: Kvasir at 256, Oxford Pets at 128 with three
temperatures, Cityscapes at 1024. Resolutions and temperatures are the paper's; widths, depths and schedules are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from attackcheck.errors import InputError

__all__ = ["PRESETS", "Preset"]


@dataclass(frozen=True)
class Preset:
    """What `attackcheck train --preset NAME --data DIR` sets; `data` and `validation` name the folder as {}."""

    size: str
    tau: float
    data: str
    validation: str | None
    steps: int
    batch: int = 8
    arch: str = "lipnet"
    loss: str = "ce"

    def specifications(self, directory: str) -> tuple[str, str | None]:
        """Data and validation for a folder.

        Raises:
            InputError: if this is a specification rather than a folder.
        """
        if ":" in directory:
            raise InputError(f"expected --data to be the data set's folder beside --preset, got {directory!r}")
        return self.data.format(directory), None if self.validation is None else self.validation.format(directory)


def _pets(tau: float) -> Preset:
    return Preset("M1", tau, "pets:{}:trainval@128x128", "pets:{}:test@128x128", steps=20_000)


PRESETS: Mapping[str, Preset] = {
    "kvasir": Preset("S", 8.0, "kvasir:{}@256x256", None, steps=10_000),
    "pets-3": _pets(3.0),
    "pets-8": _pets(8.0),
    "pets-16": _pets(16.0),
    "cityscapes": Preset(
        "M2", 20.0, "cityscapes:{}:train@1024x1024", "cityscapes:{}:val@1024x1024", steps=60_000, batch=4
    ),
}
