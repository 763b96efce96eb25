"""Joining a Ray cluster, or starting one on this machine for as long as a run takes."""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from attackcheck.errors import InputError, in_one_line

__all__ = ["capacity", "connected", "read_engine", "the_library"]

ENGINES = "threads, ray or ray:ADDRESS"


def read_engine(text: str) -> str | None:
    """The address in ``ray[:ADDRESS]``, "" without one; None for ``threads``.

    Raises:
        InputError: for anything else, or where Ray is not installed.
    """
    kind, colon, address = text.partition(":")
    if text == "threads":
        return None
    if kind != "ray" or (colon and not address):
        raise InputError(f"expected an engine {ENGINES}, got {text!r}")
    if address.startswith("ray://"):
        raise InputError(
            f"expected the address of the cluster itself, HOST:PORT or auto, got Ray Client's {address!r}: run the "
            "command on a machine of the cluster, or submit it with `ray job submit`"
        )
    the_library()
    return address


def the_library() -> ModuleType:
    """Ray, without its usage statistics.

    Raises:
        InputError: where it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what it will do by default soon
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import ray
    except ImportError as error:
        raise InputError(
            f"expected Ray for this engine: pip install 'attackcheck[ray]' ({in_one_line(error)})"
        ) from None
    return ray  # type: ignore[no-any-return]


@contextmanager
def connected(address: str, limit: int | None) -> Iterator[ModuleType]:
    """Ray, connected to the cluster at ``address``, which is left as it was found.

    Args:
        address: ``HOST:PORT``, "auto" for the one on this machine, or "": RAY_ADDRESS, and where that is not set
            a cluster of its own, with ``limit`` processors (None: all). A connection that is there already is used.
        limit: see above.

    Raises:
        InputError: if there is no such cluster.
    """
    ray = the_library()
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    own: dict[str, Any] = {"num_cpus": limit, "include_dashboard": False} if address == "local" else {}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(address=address, log_to_driver=False, configure_logging=False, **own)
    except BaseException as error:
        ray.shutdown()
        if not isinstance(error, Exception):  # Ctrl-C
            raise
        raise InputError(f"could not join the Ray cluster at {address}: {in_one_line(error)}") from error
    try:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():  # Ctrl-C and SIGTERM are ours: what is in hand is judged first
                signal.signal(number, handler)
        yield ray
    finally:
        ray.shutdown()


def capacity(ray: ModuleType, device: str) -> int:
    """How many workers the machines of the cluster have room for: one for each GPU, or for each processor."""
    name = "CPU" if device == "cpu" else "GPU"
    return int(ray.cluster_resources().get(name, 0))
