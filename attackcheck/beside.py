"""What an image costs beside its attacks: clean logits, float64, confirmation of crops, judging."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from attackcheck.attacking import SLOT_BYTES
from attackcheck.attacks import registry
from attackcheck.attacks.plans import Stage
from attackcheck.cones import Cone
from attackcheck.crops import disjoint
from attackcheck.judging import SHOWN
from attackcheck.masking import SAMPLE
from attackcheck.receptive import SAMPLED, Windows
from attackcheck.timing import Exact, Pass

__all__ = ["Beside", "Scope", "beside_attacks"]

TELLING = 4
"""Points of a group that are shown to the whole image alone, as a rule."""

JUDGED, JUDGED_OF_MAPS = 3, 4
"""Points of other kinds than PIXEL that are judged in an image, as a rule, and more where maps are attacked."""

CHECKS = 9
"""Forward passes of the checks of the first image, about."""


@dataclass(frozen=True)
class Scope:
    """What is attacked in an image, and how it is seen."""

    stages: Sequence[Stage]  # that run
    count: int  # pixels of an image
    pixels: Tensor  # (M, 2), of the first image
    size: tuple[int, int]  # of the image
    channels: int
    crops: Windows | None
    cone: Cone | None  # of these crops
    cheap: bool  # the claim costs nothing but the logits

    @property
    def place(self) -> tuple[int, int]:
        """Height and width of what attacks on pixels see."""
        return self.size if self.crops is None else (self.crops.height, self.crops.width)

    @property
    def groups(self) -> int:
        """Groups of pixels whose closest points fit into memory."""
        point = self.channels * math.prod(self.place) * 4
        return max(1, math.ceil(self.count / max(1, SLOT_BYTES // point)))


@dataclass(frozen=True)
class Beside:
    """Seconds of every image, and of the first one alone."""

    image: dict[str, float]
    once: dict[str, float]


def beside_attacks(scope: Scope, whole: Pass, small: Pass, exact: Exact, radii: float, recording: float) -> Beside:
    """Seconds beside the attacks.

    Args:
        scope: what is attacked.
        whole: a pass of the whole image.
        small: a row of attacks on pixels.
        exact: float64.
        radii: seconds of the claim's radii of an image.
        recording: seconds to record a whole image.
    """
    flips = any(stage.objective == "pixel" and registry.get(stage.attack).flips for stage in scope.stages)
    aimed = scope.count if flips else 0
    image = {
        "clean logits and radii": whole.forward + radii,
        "float64 at the clean image": exact.logits + exact.error,
        "are gradients of use": min(scope.count, SAMPLE) * (6 * small.forward + small.backward),
    }
    if scope.crops is not None:
        image["do crops agree"] = 3 * whole.forward + whole.backward + 3 * SAMPLED * small.forward
        image["crops on the whole image"] = _confirmed(scope, scope.crops, aimed, whole, recording)
    image["slopes"] = aimed * (small.forward + small.backward)
    image["examples"] = min(SHOWN * scope.groups, aimed) * 2 * whole.forward
    image["judging"] = _judging(scope, exact)
    if not scope.cheap:
        image["certifier at flips"] = 4 * aimed * (radii + whole.forward)
    once = {"checks of the first image": CHECKS * whole.forward + whole.backward + exact.setup}
    return Beside(image, once)


def _judging(scope: Scope, exact: Exact) -> float:
    """The worst points of the other kinds; several kinds often share one."""
    if not scope.cheap:
        return 0.0
    near, alone = 1.0, all(stage.objective == "pixel" for stage in scope.stages)
    if scope.crops is not None and alone:
        near = min(1.0, 6 * scope.crops.height * scope.crops.width / math.prod(scope.size))
    point = exact.logits + near * (exact.error + (exact.logits if near < 1.0 else 0.0))
    paired = any(registry.get(stage.attack).paired for stage in scope.stages)
    points = JUDGED + (JUDGED_OF_MAPS if any(stage.objective == "map" for stage in scope.stages) else 0)
    return points * point + (2 * (exact.logits + exact.error) if paired else 0.0)


def _confirmed(scope: Scope, crops: Windows, aimed: int, whole: Pass, recording: float) -> float:
    """Passes on whole images that show what crops did, and the recording of the most telling ones."""
    if not aimed or not len(scope.pixels):
        return 0.0
    group = scope.pixels[: math.ceil(len(scope.pixels) / scope.groups)]
    tops, lefts = crops.origins(group[:, 0], group[:, 1])
    packs = len(disjoint(tops, lefts, crops.height, crops.width))
    telling = min(TELLING, len(group))
    return scope.groups * ((packs + 1) * whole.forward + telling * recording)
