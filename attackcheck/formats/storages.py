"""Whether the tensors of a TorchScript archive lie inside its bytes, read off its pickles without running any of it.

Torch believes what the pickle says of sizes: with a record that is shorter, a program reads memory that is not its own.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from attackcheck.errors import InputError
from attackcheck.models.archives import Archive

__all__ = ["check_storages"]

_BYTES = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1,
    "Bool": 1, "ComplexDouble": 16, "ComplexFloat": 8, "QInt8": 1, "QUInt8": 1, "QInt32": 4,
}  # fmt: skip


class _Storage(NamedTuple):
    numbers: int


class _Anything:
    """What every class and function of the pickle is taken for: made of anything, keeps nothing, does nothing."""

    def __new__(cls, *_: object, **__: object) -> _Anything:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __call__(self, *_: object, **__: object) -> _Anything:
        return self

    def __setitem__(self, key: object, value: object) -> None:
        pass

    def __setstate__(self, state: object) -> None:
        pass

    def append(self, value: object) -> None:
        """Lists are filled through this."""

    extend = append


class _Reader(pickle._Unpickler):  # in Python: its memo grows by what is put there
    def __init__(self, content: bytes, archive: Archive, folder: str) -> None:
        super().__init__(io.BytesIO(content))
        self._archive, self._folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name.endswith("Storage"):
            return name
        return _tensor if module == "torch._utils" and "tensor" in name else _Anything

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, _, numbers = pid[:5]
        width = _BYTES.get(str(storage).removesuffix("Storage"))
        name = f"{self._folder}/{key}"
        if kind != "storage" or width is None or not isinstance(numbers, int) or numbers < 0:
            raise ValueError(f"unknown storage {str(storage)[:40]!r}")
        if (self._archive.size(name) if name in self._archive else -1) < width * numbers:
            raise ValueError(f"{name[:40]!r} has fewer than the {width * numbers} bytes of its tensor")
        return _Storage(numbers)


def _tensor(storage: object, offset: object = 0, size: object = (), stride: object = (), *_: object) -> _Anything:
    """A tensor of a storage must lie inside it."""
    if isinstance(storage, _Storage):
        sizes, strides = _whole(size), _whole(stride)
        last = _whole([offset])[0] + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
        if 0 not in sizes and last >= storage.numbers:
            raise ValueError(f"a tensor of shape {sizes} reaches beyond its {storage.numbers} numbers")
    return _Anything()


def _whole(numbers: object) -> Sequence[int]:
    found = tuple(numbers) if isinstance(numbers, tuple | list) else ()
    if not isinstance(numbers, tuple | list) or not all(isinstance(n, int) and n >= 0 for n in found):
        raise ValueError(f"no sizes: {str(numbers)[:40]}")
    return found


def check_storages(archive: Archive, path: Path) -> None:
    """Refuse a program of which a tensor is larger than the bytes that are there for it.

    Raises:
        InputError: for such a one, or a pickle that makes no sense.
    """
    for folder in ("data", "constants"):  # all that the loader reads: the inputs of a trace are kept without numbers
        if f"{folder}.pkl" not in archive:
            continue
        try:
            _Reader(archive[f"{folder}.pkl"], archive, folder).load()
        except InputError:
            raise
        except Exception as error:  # whatever broken instructions make pickle raise
            raise InputError(f"expected the tensors of a TorchScript program in {path}: {str(error)[:120]}") from error
