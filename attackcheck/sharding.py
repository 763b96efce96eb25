"""One run on several machines: which images are whose, and what schedulers say about that."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from attackcheck.errors import InputError

__all__ = ["local_rank", "owns", "read_shard", "share"]

Shard = tuple[int, int]


def share(images: int, shard: Shard | None) -> tuple[int, ...]:
    """The numbers of the images of one shard, every n-th from the i-th on, so that neighbours are spread.

    Raises:
        InputError: if there are more shards than images.
    """
    if shard is None:
        return tuple(range(images))
    place, count = shard
    if count > images:
        raise InputError(f"expected at most {images} shards for {images} images, got {count}")
    return tuple(range(place - 1, images, count))


def owns(shard: Shard | None, *, first: bool) -> bool:
    """Whether a shard does what comes before the images (``first``) or after them: the first one, or the last."""
    return shard is None or shard[0] == (1 if first else shard[1])


def read_shard(text: str | None, environment: Mapping[str, str] = os.environ) -> Shard | None:
    """Read ``--shard``: ``i/n``, counted from 1, or ``auto`` for what the scheduler says.

    ``auto`` knows torchrun (RANK of WORLD_SIZE), tasks of SLURM (SLURM_PROCID of SLURM_NTASKS) and SLURM arrays
    (SLURM_ARRAY_TASK_ID), and an array of either. These are never read unasked: they are also set in a script that
    starts no tasks, where they would silently leave most of the images out.

    Raises:
        InputError: for anything else, or where no scheduler says anything.
    """
    if text is None:
        return None
    if text == "auto":
        return _scheduled(environment)
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"expected --shard i/n with i from 1 to n, such as 2/4, or auto; got {text!r}")
    return int(found[1]), int(found[2])


def local_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Number of this task on its machine, 0 where nobody says."""
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        if environment.get(name, "").isdigit():
            return int(environment[name])
    return 0


def _scheduled(environment: Mapping[str, str]) -> Shard:
    inner = _pair(environment, "RANK", "WORLD_SIZE") or _pair(environment, "SLURM_PROCID", "SLURM_NTASKS")
    outer: tuple[int, int] | None = None
    if "SLURM_ARRAY_TASK_ID" in environment:
        number, count = (_number(environment, f"SLURM_ARRAY_TASK_{name}", 0) for name in ("ID", "COUNT"))
        first, step = (_number(environment, f"SLURM_ARRAY_TASK_{name}", d) for name, d in (("MIN", 0), ("STEP", 1)))
        outer = (number - first) // max(1, step), count
        if not 0 <= outer[0] < count or first + outer[0] * max(1, step) != number:
            raise InputError("expected the tasks of a SLURM array to be evenly spaced: give --shard i/n")
    if inner is None and outer is None:
        raise InputError(
            "expected the variables of torchrun or SLURM beside --shard auto, found none: give --shard i/n"
        )
    inner, outer = inner or (0, 1), outer or (0, 1)
    return outer[0] * inner[1] + inner[0] + 1, outer[1] * inner[1]


def _pair(environment: Mapping[str, str], place: str, count: str) -> tuple[int, int] | None:
    if place not in environment or count not in environment:
        return None
    pair = _number(environment, place, 0), _number(environment, count, 1)
    if pair[0] >= pair[1]:
        raise InputError(f"expected {place} below {count}, got {pair[0]} and {pair[1]}")
    return pair


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, str(default))
    if not text.isdigit():
        raise InputError(f"expected a whole number in {name}, got {text!r}")
    return int(text)
