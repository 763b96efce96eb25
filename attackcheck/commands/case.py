"""`--image` and `--pixel`: one image, or one pixel of it, to be looked at in the terminal."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from typing import TYPE_CHECKING

from attackcheck.errors import InputError

if TYPE_CHECKING:
    from attackcheck.subject import Images, Settings

__all__ = ["add_case_arguments", "only", "pixel_of"]


def add_case_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --image and --pixel to `verify`."""
    parser.add_argument(
        "--image",
        type=int,
        metavar="N",
        help="examine image N alone (from 0), and show its map of tightness at the end",
    )
    parser.add_argument(
        "--pixel", metavar="ROW,COLUMN", help="attack only this pixel of that image, and tell all that is known of it"
    )


def pixel_of(arguments: argparse.Namespace) -> tuple[int, int] | None:
    """Row and column that --pixel names, None without it.

    Raises:
        InputError: for anything else, or without an image.
    """
    if arguments.pixel is None:
        return None
    found = re.fullmatch(r"\s*(\d{1,9})\s*,\s*(\d{1,9})\s*", arguments.pixel)
    if found is None:
        raise InputError(f"expected --pixel to be ROW,COLUMN such as 12,34, got {arguments.pixel!r}")
    if arguments.image is None:
        raise InputError("expected --image beside --pixel: a pixel belongs to an image")
    return int(found[1]), int(found[2])


def only(arguments: argparse.Namespace, settings: Settings, data: Images) -> Settings:
    """The settings for one image or pixel where one is asked for: of a pixel, only attacks on pixels are run.

    Raises:
        InputError: for an image or pixel that is not there, or beside options that speak of several images.
    """
    pixel, image = pixel_of(arguments), arguments.image
    if image is None:
        return settings
    if not 0 <= image < len(data):
        raise InputError(f"expected --image from 0 to {len(data) - 1}, got {image}")
    if settings.shard is not None:
        raise InputError("expected --image or --shard, got both: one image is not shared out")
    if settings.metrics:
        raise InputError("expected --image or claims about the whole data set, got both")
    if pixel is None:
        return replace(settings, image=image)
    height, width = data[image].image.shape[-2:]
    if pixel[0] >= height or pixel[1] >= width:
        raise InputError(f"expected a pixel inside {height}x{width}, got row {pixel[0]}, column {pixel[1]}")
    import numpy as np

    stages = tuple(
        s for s in settings.plan.stages if s.objective == "pixel" or (s.objective == "region" and arguments.region)
    )
    if not stages:
        raise InputError(f"expected an attack on pixels in the plan {settings.plan.name!r} beside --pixel, found none")
    chosen = replace(settings.plan, stages=stages)
    return replace(settings, image=image, plan=chosen, pixels=np.array([[image, *pixel]], dtype=np.int64))
