"""Archives of strangers: names and declared sizes are looked at before anything is unpacked, and nothing is written."""

import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from attackcheck.errors import InputError

__all__ = ["Archive", "is_archive", "is_safetensors", "read_file"]

SLACK = 1 << 16
"""Bytes by which an archive may exceed twice the size of its file: networks are stored as they are."""


def read_file(path: str | Path, what: str = "a checkpoint file") -> bytes:
    """All bytes of a regular file that is not empty.

    Raises:
        InputError: for anything else: a pipe or a device would be read for ever.
    """
    try:
        odd = Path(path).exists() and not Path(path).is_file() and not Path(path).is_dir()
        data = b"" if odd else Path(path).read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"expected {what}, but there is no {path}") from error
    except IsADirectoryError as error:
        raise InputError(f"expected {what}, got the directory {path}") from error
    except (OSError, MemoryError, ValueError) as error:
        raise InputError(f"expected {what}, but {str(path)!r} cannot be read: {type(error).__name__}") from error
    if odd:
        raise InputError(f"expected {what}, got {path}, which is not a regular file")
    if not data:
        raise InputError(f"expected {what}, got the empty file {path}")
    return data


def is_archive(data: bytes) -> bool:
    """Whether the bytes are a ZIP archive, as far as its end says."""
    return zipfile.is_zipfile(io.BytesIO(data))


def is_safetensors(data: bytes) -> bool:
    """Whether the bytes start with the length of a JSON object and that object."""
    length = int.from_bytes(data[:8], "little")
    return 2 <= length <= len(data) - 8 and data[8:9] == b"{" and data[7 + length : 8 + length] in (b"}", b" ")


class Archive(Mapping[str, bytes]):
    """The members of a ZIP archive in memory, by name.

    Torch puts all members under one folder of any name; it is left out of the names here.

    Args:
        data: the archive.
        path: for messages.

    Raises:
        InputError: if it is broken, encrypted, names a member twice or outside itself, or declares far more bytes than
            the file has.
    """

    def __init__(self, data: bytes, path: str | Path) -> None:
        self._path = path
        try:
            self._archive = zipfile.ZipFile(io.BytesIO(data))
            entries = self._archive.infolist()
        except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
            raise InputError(f"expected an archive in {path}, which is truncated or no torch file") from error
        names = [entry.filename for entry in entries]
        unpacked = sum(entry.file_size for entry in entries)
        if unpacked > 2 * len(data) + SLACK:
            raise InputError(f"expected an archive as torch writes it, got {path}, which unpacks to {unpacked} bytes")
        if len(set(names)) != len(names):
            raise InputError(f"expected every member of the archive {path} once, got one twice")
        for entry in entries:
            parts = entry.filename.replace("\\", "/").split("/")
            if ".." in parts or parts[0] == "" or ":" in parts[0] or "\0" in entry.filename:
                raise InputError(f"expected members inside the archive {path}, got the name {entry.filename[:80]!r}")
            if entry.flag_bits & 1:
                raise InputError(f"expected an archive without a password in {path}, got an encrypted member")
        tops = {name.split("/", 1)[0] for name in names}
        cut = len(tops) == 1 and all("/" in name for name in names)
        self._names = {
            name.split("/", 1)[1] if cut else name: entry for name, entry in zip(names, entries, strict=True)
        }

    def __getitem__(self, name: str) -> bytes:
        entry = self._names[name]
        try:
            return self._archive.read(entry)
        except Exception as error:  # whatever a broken member makes zipfile and its decompressors raise
            raise InputError(f"expected an archive in {self._path}, whose member {name[:80]!r} is broken") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def size(self, name: str) -> int:
        """How many bytes a member declares."""
        return self._names[name].file_size

    def repacked(self, leave_out: frozenset[str] = frozenset()) -> bytes:
        """The same members in a fresh archive: whatever reads it sees the bytes that were looked at, and no others."""
        target = io.BytesIO()
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
            for name in self:
                if name not in leave_out and not name.endswith("/"):
                    archive.writestr(f"archive/{name}", self[name])
        return target.getvalue()
