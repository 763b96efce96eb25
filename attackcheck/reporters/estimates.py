"""An estimate as a table, for people."""

from __future__ import annotations

from rich.console import Console

from attackcheck.estimating import Estimate
from attackcheck.reporters.tables import counted, plain_table

__all__ = ["duration", "print_estimate", "size"]


def print_estimate(found: Estimate, console: Console) -> None:
    """The stages, what comes on top, and one sentence with the sum."""
    rows, columns = found.size
    table = plain_table(
        f"{counted(found.images, 'image')} of {rows}x{columns}, {counted(found.pixels, 'pixel')} of each under attack"
    )
    for name in ("what", "objective", "calls", "rows", "forward", "backward", "time"):
        table.add_column(name, justify="left" if name in ("what", "objective") else "right")
    for stage in found.stages:
        if not stage.calls:  # for pixels that other stages could not flip: not foreseen
            continue
        passes = f"{stage.forward:,.0f}", f"{stage.backward:,.0f}"
        table.add_row(
            stage.attack, stage.objective, f"{stage.calls:,}", str(stage.rows), *passes, duration(stage.seconds)
        )
    for name, seconds in found.image.items():
        table.add_row(name, "", "", "", "", "", duration(seconds * found.images))
    for name, seconds in found.once.items():
        table.add_row(name, "once", "", "", "", "", duration(seconds))
    console.print(table)
    if found.done:
        done = f"{counted(found.done, 'image')} {'is' if found.done == 1 else 'are'} done in that folder"
        console.print(f"{done}: only what is left is counted.", soft_wrap=True)
    seen = "whole images" if found.crop is None else f"crops of {found.crop[0]}x{found.crop[1]}"
    beside = "" if found.workers == 1 else f", {found.workers} images side by side"
    memory = size(found.memory)
    if found.device_memory is not None:
        memory += f", and {size(found.device_memory)} on the GPU"
    console.print(
        f"about {duration(found.seconds)}{beside}; {found.forward:,.0f} forward and {found.backward:,.0f} backward "
        f"passes, of pixels on {seen}; about {memory} of memory. Nothing was attacked: this took "
        f"{duration(found.calibration)}.",
        soft_wrap=True,
    )
    if found.budget is not None and found.seconds > found.budget:
        console.print(f"The budget ends it after {duration(found.budget)}.", soft_wrap=True)


def duration(seconds: float) -> str:
    """Such as 0.2 s, 41 s, 12 min, 3.5 h or 20 days."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 2 * 86400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:,.0f} days"


def size(count: int) -> str:
    """Bytes, such as 320 MiB or 4.2 GiB."""
    return f"{count / 2**20:.0f} MiB" if count < 2**30 else f"{count / 2**30:.1f} GiB"
