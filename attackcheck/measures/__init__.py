"""Worst-case measures: how far accuracy, IoU and the rest can fall under one budget for each image.

Pure functions of tensors. An image's flips get costs (:mod:`~attackcheck.measures.costs`), sorted costs say what a
budget buys (:mod:`~attackcheck.measures.ladder`), and the images of a data set are put together
(:mod:`~attackcheck.measures.dataset`).
"""

from __future__ import annotations

from attackcheck.measures.costs import FlipCosts
from attackcheck.measures.image import DROPS, Counts, ImageBounds, bounds
from attackcheck.measures.names import Measure

__all__ = ["DROPS", "Counts", "FlipCosts", "ImageBounds", "Measure", "bounds"]
