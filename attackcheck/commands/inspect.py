"""`attackcheck inspect`: one image or pixel of a run, or what is in a file, in the terminal."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from attackcheck.commands.case import pixel_of
from attackcheck.commands.inside import is_file_of_weights, show_file
from attackcheck.errors import InputError

if TYPE_CHECKING:
    from attackcheck.parts import Part
    from attackcheck.run_folder import Run

__all__ = ["add_arguments"]


def add_arguments(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    parser = subparsers.add_parser(
        "inspect",
        help="look at one image or pixel of a run, or into a file without running any of it",
        description="Shows images of a run folder in the terminal: a map of tightness and the tightest pixels, "
        "or everything that is known of one pixel. Of a file of weights it shows the format, tensors, claim and card, "
        "what a program calls, and what a pickle would import; nothing of it is run. Exit code: 0 shown, 2 not.",
    )
    parser.add_argument(
        "folder",
        metavar="DIR|FILE",
        help="a run folder; or a checkpoint, program, .npz, directory with safetensors, zoo:NAME",
    )
    parser.add_argument("--image", type=int, metavar="N", help="number of the image; none: a list of all")
    parser.add_argument("--pixel", metavar="ROW,COLUMN", help="a pixel of this image")
    parser.add_argument("--all", action="store_true", help="of a file: all tensors, not the largest")
    parser.add_argument("--json", metavar="FILE|-", help="of a file: write everything as JSON")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    if not arguments.folder.startswith("zoo:") and not Path(arguments.folder).exists():
        raise InputError(f"expected a run folder or a file, but there is no {arguments.folder}")
    if arguments.image is None and arguments.pixel is None and is_file_of_weights(arguments.folder):
        return show_file(arguments.folder, json=arguments.json, every=arguments.all)
    pixel = pixel_of(arguments)
    from attackcheck.reporters.console import plain_console
    from attackcheck.reporters.inspection import show_image, show_images, show_pixel
    from attackcheck.run_folder import read_run

    run = read_run(arguments.folder)
    out = plain_console(sys.stdout)
    if arguments.image is None:
        show_images(out, run.parts())
        return 0
    part = _part(run, arguments.image)
    if part.maps is None:
        raise InputError(f"nothing is known of the pixels of image {arguments.image}")
    if pixel is None:
        show_image(out, part, part.maps, run.header.classes)
        return 0
    height, width = part.maps.radius.shape
    if pixel[0] >= height or pixel[1] >= width:
        raise InputError(f"expected a pixel inside {height}x{width}, got row {pixel[0]}, column {pixel[1]}")
    show_pixel(out, part, part.maps, run.header.classes, pixel)
    return 0


def _part(run: Run, number: int) -> Part:
    for part in run.parts():
        if part.number == number:
            return part
    numbers = [part.number for part in run.parts()]
    have = ", ".join(map(str, numbers[:20])) + (", ..." if len(numbers) > 20 else "")
    raise InputError(f"expected an image of this run ({have or 'none is done'}), got {number}")
