"""Code that the user names, and nothing else: factories with their arguments."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from attackcheck.errors import InputError, in_one_line

__all__ = ["call_factory", "is_factory", "named", "read_arguments"]


def is_factory(text: str) -> bool:
    """Whether this reads like ``FILE.py:NAME`` or ``pkg.mod:NAME`` and is no file."""
    path, colon, name = text.rpartition(":")
    try:
        file = Path(text).exists()
    except (OSError, ValueError):  # a name that is too long, or has a zero in it
        file = True
    return bool(colon) and name.isidentifier() and bool(path) and path != "zoo" and not file


def named(spec: str) -> Callable[..., Any]:
    """The object that ``FILE.py:NAME`` or ``pkg.mod:NAME`` names; this runs the user's own code.

    What lies beside FILE.py can be imported by it, and pkg may lie in the working directory, as under ``python``
    itself; but both come last, so that nothing there takes the place of an installed package.

    Raises:
        InputError: if there is none, or it cannot be called.
    """
    place, colon, name = spec.rpartition(":")
    if not colon or not name.isidentifier():
        raise InputError(f"expected FILE.py:NAME or pkg.mod:NAME, got {spec!r}")
    try:
        if place.endswith(".py"):
            path = Path(place)
            if not path.is_file():
                raise InputError(f"expected a Python file at {place}, found none")
            _reach(path.resolve().parent)
            module_spec = importlib.util.spec_from_file_location(path.stem, path)
            if module_spec is None or module_spec.loader is None:
                raise InputError(f"expected a Python file at {place}, could not load it")
            module = importlib.util.module_from_spec(module_spec)
            module_spec.loader.exec_module(module)
        else:
            top = place.partition(".")[0]
            if any(Path(name).exists() for name in (f"{top}.py", top)) and importlib.util.find_spec(top) is None:
                _reach(Path.cwd())
            module = importlib.import_module(place)
        found = getattr(module, name)
    except InputError:
        raise
    except AttributeError as error:
        raise InputError(f"expected {name!r} in {place}: {in_one_line(error)}") from None
    except (Exception, SystemExit) as error:
        raise InputError(f"importing {place} failed: {in_one_line(error)}") from error
    if not callable(found):
        raise InputError(f"expected {spec} to be callable, got a {type(found).__name__}")
    return found  # type: ignore[no-any-return]


def _reach(folder: Path) -> None:
    """Let imports look into this folder, after everywhere else."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
        importlib.invalidate_caches()


def call_factory(spec: str, arguments: Mapping[str, Any] | None = None, config: Mapping[str, Any] | None = None) -> Any:
    """What the factory returns, a module in it in evaluation mode.

    Args:
        spec: as for :func:`named`.
        arguments: keywords for it.
        config: handed over as ``config`` to a factory that has such a parameter, unless the arguments have it.

    Raises:
        InputError: if the arguments do not fit, or the factory fails.
    """
    factory, given = named(spec), dict(arguments or {})
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):
        signature = None
    if signature is not None:
        if config is not None and "config" in signature.parameters and "config" not in given:
            given["config"] = dict(config)
        try:
            signature.bind(**given)
        except TypeError as error:
            raise InputError(f"expected arguments that fit {spec}{signature}: {in_one_line(error)}") from error
    try:
        made = factory(**given)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"calling {spec} failed: {in_one_line(error)}") from error
    model = made[0] if isinstance(made, tuple) and made else made
    if isinstance(model, nn.Module):
        model.eval()
    return made


def read_arguments(text: str) -> dict[str, Any]:
    """Keywords for a factory: a TOML file, or TOML such as ``width = 32, stages = [1, 2]`` itself.

    Raises:
        InputError: if it is neither.
    """
    if text.endswith(".toml"):
        if Path(text).is_fifo():  # its writer would be waited for
            raise InputError(f"expected --model-args in {text}, which is not a regular file")
        try:
            return tomllib.loads(Path(text).read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"expected --model-args in {text}, got: {error.strerror or error}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"expected TOML in {text}, got: {in_one_line(error)}") from error
    inner = text.strip()
    try:
        content = tomllib.loads(f"given = {inner if inner.startswith('{') else '{' + inner + '}'}")
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"expected --model-args FILE.toml or such as 'width = 32', got: {in_one_line(error)}"
        ) from error
    given = content.pop("given")
    if content or not isinstance(given, dict):
        raise InputError(f"expected --model-args FILE.toml or such as 'width = 32', got {text!r}")
    return given
