"""The measures, by name."""

from __future__ import annotations

from enum import Enum

__all__ = ["Measure"]


class Measure(Enum):
    """What is measured over a data set; the value is the name that is shown.

    * ACCURACY: share of valid pixels (label neither ignored nor missing) that are predicted as labelled.
    * STABILITY: share of all pixels that keep their clean prediction; needs no labels.
    * COMPONENTS: share of connected components of the clean prediction (4 neighbours, 16 pixels or more) of which at
      least half of the pixels keep their class; needs no labels.
    * FNR: of a class, share of the pixels labelled so that are predicted otherwise. The one measure that rises.
    * IOU: of a class, its true positives over the union of its labelled and its predicted valid pixels.
    * MEAN_IOU: mean of IOU over the classes that occur among the labels: this set is the same under attack.

    All are ratios of sums over the data set. Where the denominator is 0 (no valid pixel, a class without labelled
    pixels, no component) a measure has no value. Labels beyond the model's classes count as valid, and never right.
    """

    ACCURACY = "accuracy"
    STABILITY = "stability"
    COMPONENTS = "components"
    FNR = "fnr"
    IOU = "iou"
    MEAN_IOU = "miou"

    @property
    def labelled(self) -> bool:
        """Whether it needs labels."""
        return self not in (Measure.STABILITY, Measure.COMPONENTS)

    @property
    def per_class(self) -> bool:
        """Whether it is about one class."""
        return self in (Measure.FNR, Measure.IOU)

    @property
    def falls(self) -> bool:
        """Whether an attack makes it smaller."""
        return self is not Measure.FNR

    @property
    def title(self) -> str:
        """For a heading."""
        return _TITLES[self]


_TITLES = {
    Measure.ACCURACY: "pixel accuracy",
    Measure.STABILITY: "unchanged pixels",
    Measure.COMPONENTS: "stable components",
    Measure.FNR: "false-negative rate",
    Measure.IOU: "IoU",
    Measure.MEAN_IOU: "mean IoU",
}
