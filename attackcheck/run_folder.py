"""A run on disk: one file for every image that is done, so that nothing is done twice and little is ever lost.

The format is in docs/run-folder.md. :class:`RunFolder` writes it as a consumer of events, and tells the engine what is
done already; :func:`read_run` reads it.
"""

from __future__ import annotations

import json
import os
import platform
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from datetime import UTC, datetime
from importlib import metadata
from io import TextIOWrapper
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from attackcheck.errors import CannotWrite, InputError, in_one_line
from attackcheck.events import Audited, Event, Finding, PartFinished, RunFinished, RunStarted
from attackcheck.identity import differences
from attackcheck.lipschitz.findings import AuditReport
from attackcheck.part_files import (
    load_part,
    read_audit,
    read_json,
    save_audit,
    save_part,
    violation_line,
    write_bytes,
    write_json,
)
from attackcheck.parts import METRICS, TRIAL, Part
from attackcheck.recheck import Verdict
from attackcheck.report import Report
from attackcheck.sharding import owns, share
from attackcheck.summing import Header, Sums, sum_up
from attackcheck.tally import Tally

try:
    import fcntl
except ImportError:  # no such locks on this system: two runs in one folder are then the user's to avoid
    fcntl = None  # type: ignore[assignment]

__all__ = ["Run", "RunFolder", "earlier_run", "folder_of_shard", "is_run", "name_of_part", "read_run"]

FORMAT, VERSION = "attackcheck run", 1
RUN, AUDIT, WITNESS, SUMMARY, VIOLATIONS, PARTS, EXAMPLES = (
    "run.json", "audit.json", "witness.npz", "summary.json", "violations.jsonl", "parts", "counterexamples",
)  # fmt: skip
LIBRARIES = ("attackcheck", "torch", "numpy", "scipy", "foolbox", "torchattacks")


class Run:
    """A run folder to read; see :func:`read_run`.

    Attributes:
        path: the folder.
        description: what is in ``run.json``.
        header: what the report says before anything was found.
    """

    def __init__(self, path: Path, description: Mapping[str, Any]) -> None:
        self.path = path
        self.description = description
        self.header = _header(description)

    @property
    def numbers(self) -> list[int]:
        """Of the parts that are complete, in order."""
        return sorted(number for file in self._files() if (number := _number(file)) is not None)

    @property
    def missing(self) -> list[int]:
        """Numbers of this run's images that are not done."""
        done = set(self.numbers)
        return [number for number in share(self.header.images, self.header.shard) if number not in done]

    @property
    def audit(self) -> AuditReport | None:
        """Of the weights, where one was made."""
        path = self.path / AUDIT
        return read_audit(path, self.path / WITNESS) if path.is_file() else None

    def part(self, number: int) -> Part | None:
        """A complete part, None if it cannot be read."""
        try:
            part = load_part(self.path / PARTS / name_of_part(number), self.path, self.header.ignore)
        except InputError:
            return None
        return part if part.complete and part.number == number else None

    def parts(self) -> Iterator[Part]:
        """Every part of an image, in order, also those that were cut short; one in memory at a time.

        Raises:
            InputError: if one is damaged.
        """
        for part in self._all():
            if part.maps is not None:
                yield part

    @property
    def report(self) -> Report:
        """The report over all parts, as a run in one process returns it.

        Raises:
            InputError: if a part is damaged.
        """
        *_, last = self.events()
        assert isinstance(last, RunFinished)
        return last.report

    @property
    def unfinished(self) -> list[int]:
        """Numbers of all parts of this run that are not done: images, gadgets, the data set."""
        return [*self.missing, *sorted(self.others - set(self.numbers))]

    @property
    def others(self) -> set[int]:
        """Numbers of the parts of this run beside images, whether done or not."""
        identity = self.description["identity"]
        claim = identity["claim"]
        tried = claim["kind"] == "radii" and claim["L"] is not None and claim.get("confidence") is None
        gadgets = {TRIAL} if tried and owns(self.header.shard, first=True) else set()
        return gadgets | ({METRICS} if identity["metrics"] and owns(self.header.shard, first=False) else set())

    def events(self) -> Iterator[Event]:
        """What the run said, as far as it can be told afterwards: for reporters.

        Raises:
            InputError: if a part is damaged.
        """
        header, numbers = self.header, share(self.header.images, self.header.shard)
        yield RunStarted(
            header.subject, header.images, header.plan, header.seed, header.selection, numbers, header.shard
        )
        audit = self.audit
        if audit is not None:
            yield Audited(audit)
        tallies: dict[int, Tally] = {}
        sums = Sums(header.ignore, numbers)
        seconds = 0.0 if audit is None else audit.seconds
        for part in self._all():
            yield PartFinished(part, restored=True)
            tallies[part.number] = part.tally
            sums.release(part.number, tallies)
            seconds += part.seconds
        missing = len(self.missing)
        stopped = f"{missing} of {header.images} images are missing" if missing else None
        report = sum_up(header, tallies, seconds=seconds, stopped=stopped, audit=audit, sums=sums)
        yield RunFinished(
            replace(
                report,
                radii=_Stored(self, report.numbers, "radius"),
                flip_distances=_Stored(self, report.numbers, "flip_distance"),
                attacked_pixels=_Stored(self, report.numbers, "attacked"),
            )
        )

    def _all(self) -> Iterator[Part]:
        done = set(self.numbers)
        partial = {n for file in self._files() if (n := _number(file, partial=True)) is not None} - done
        for number in sorted(done | partial):
            yield self.load(number, partial=number in partial)

    def load(self, number: int, *, partial: bool = False) -> Part:
        """A part; InputError if it is damaged or not there."""
        return load_part(self.path / PARTS / name_of_part(number, partial=partial), self.path, self.header.ignore)

    def _files(self) -> list[Path]:
        folder = self.path / PARTS
        return list(folder.iterdir()) if folder.is_dir() else []


class _Stored(Sequence[Any]):
    """Maps ``(H, W)`` of the images of a run, read from its parts one at a time whenever they are asked for."""

    def __init__(self, run: Run, numbers: Sequence[int], name: str) -> None:
        self._run, self._numbers, self._name = run, numbers, name

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[i] for i in range(*place.indices(len(self)))]
        number = self._numbers[place]
        part = self._run.load(number, partial=number not in self._run.numbers)
        return getattr(part.maps, self._name).numpy()


class RunFolder(Run):
    """A run folder to write: a consumer of events, and what an earlier run has done already.

    Use as a context; only one at a time may be open.

    Args:
        path: the folder, made if it is not there.
        header: what the report says before anything was found.
        identity: see :func:`attackcheck.identity.identity_of`.
        images: see :func:`attackcheck.identity.listed`.
        options: the command's arguments, for people.

    Raises:
        InputError: if the folder holds something else, another run, or is written to by another process.
        CannotWrite: if it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        header: Header,
        identity: Mapping[str, Any],
        images: Sequence[Mapping[str, Any]],
        options: Mapping[str, Any] | None = None,
        *,
        sessions: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
            entries = [entry.name for entry in path.iterdir() if entry.name != ".lock"]
        except OSError as error:
            raise CannotWrite(f"could not write to {path}: {error.strerror or error}") from None
        self._lock = _locked(path)
        self.failure: str | None = None
        self._lines: TextIOWrapper | None = None
        try:
            earlier: Sequence[Mapping[str, Any]] = []
            if RUN in entries:
                old = read_json(path / RUN)
                _check_same(path, old, identity, header)
                earlier = old["sessions"]
            elif any(not name.startswith(".") for name in entries):
                raise InputError(
                    f"expected --out to be a new folder or that of an earlier run, {path} holds other files"
                )
            description = {
                "format": FORMAT,
                "version": VERSION,
                "header": {entry.name: getattr(header, entry.name) for entry in fields(header)},
                "identity": identity,
                "images": list(images),
                "options": dict(options or {}),
                "sessions": list(sessions) if sessions else [*earlier, _session(header)],
            }
            super().__init__(path, json.loads(json.dumps(description)))
            write_json(path / RUN, description)
            for name in (SUMMARY, VIOLATIONS):
                (path / name).unlink(missing_ok=True)  # of what was known then: made again from the parts
        except OSError as error:
            self.close()
            raise CannotWrite(f"could not write to {path}: {error.strerror or error}") from None
        except BaseException:
            self.close()
            raise

    @property
    def counterexamples(self) -> Path:
        """Where counterexamples belong."""
        return self.path / EXAMPLES

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let others write to the folder."""
        if self._lines is not None:
            with suppress(OSError):
                self._lines.close()
            self._lines = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __call__(self, event: Event) -> None:
        """Write what an event brings.

        Raises:
            CannotWrite: once, if something cannot be written; the rest of the run passes by.
        """
        if self.failure is not None:
            return
        try:
            match event:
                case Audited():
                    save_audit(event.audit, self.path / AUDIT, self.path / WITNESS)
                case Finding() if event.violation.verdict is Verdict.VIOLATED:
                    self._append(violation_line(event.violation, self.path))
                case PartFinished() if not event.restored:
                    self.save(event.part)
                case RunStarted() | PartFinished() | Finding():
                    pass
                case RunFinished():
                    self.summarise(event.report)
        except CannotWrite as error:
            self.failure = str(error)
            if not isinstance(event, RunFinished):
                raise

    def save(self, part: Part) -> None:
        """Write one part; CannotWrite if that fails."""
        save_part(part, self.path / PARTS / name_of_part(part.number, partial=not part.complete), self.path)
        if part.complete:
            with suppress(OSError):
                (self.path / PARTS / name_of_part(part.number, partial=True)).unlink(missing_ok=True)

    def summarise(self, report: Report) -> None:
        """Write the report and its violations; CannotWrite if that fails."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None
        lines = [json.dumps(violation_line(found, self.path), allow_nan=False) for found in report.violations]
        write_bytes(self.path / VIOLATIONS, "".join(line + "\n" for line in lines).encode())
        write_json(self.path / SUMMARY, report.to_dict())

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            if self._lines is None:
                self._lines = (self.path / VIOLATIONS).open("w", encoding="utf-8")
            self._lines.write(json.dumps(line, allow_nan=False) + "\n")
            self._lines.flush()
        except OSError as error:
            raise CannotWrite(f"could not write {self.path / VIOLATIONS}: {error.strerror or error}") from None


def read_run(path: str | Path) -> Run:
    """A run folder, also one that is not finished, or still written to.

    Raises:
        InputError: if there is none, or it is damaged.
    """
    path = Path(path)
    if not is_run(path):
        raise InputError(f"expected the folder of a run, found no {RUN} in {path}")
    return Run(path, read_json(path / RUN))


def earlier_run(path: Path, header: Header, identity: Mapping[str, Any]) -> Run:
    """What :class:`RunFolder` would go on with in this folder, only to be read.

    Raises:
        InputError: if the folder holds another run, or it is damaged.
    """
    description = read_json(path / RUN)
    _check_same(path, description, identity, header)
    return Run(path, description)


def is_run(path: Path) -> bool:
    """Whether there is a run folder at ``path``."""
    return (path / RUN).is_file()


def folder_of_shard(path: Path, shard: tuple[int, int] | None) -> Path:
    """Where one shard of a run writes."""
    return path if shard is None else path / "shard-{}-of-{}".format(*shard)


def _header(description: Mapping[str, Any]) -> Header:
    try:
        if description["format"] != FORMAT or description["version"] != VERSION:
            raise InputError(f"expected a run of version {VERSION}, got {description.get('version')!r}")
        identity = description["identity"]
        if not {"kind", "L"} <= identity["claim"].keys() or not isinstance(identity["metrics"], list):
            raise InputError("expected a run described by attackcheck (its claim or metrics)")
        for name, kind in (("images", list), ("sessions", list), ("options", dict)):
            if not isinstance(description[name], kind):
                raise InputError(f"expected a run described by attackcheck ({name})")
        given = dict(description["header"])
        shard, classes = given["shard"], given["classes"]
        given["shard"] = None if shard is None else (int(shard[0]), int(shard[1]))
        given["classes"] = None if classes is None else tuple(classes)
        given["attacks"] = tuple(given["attacks"])
        return Header(**given)
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"expected a run described by attackcheck ({in_one_line(error)})") from None


def _check_same(path: Path, old: Mapping[str, Any], identity: Mapping[str, Any], header: Header) -> None:
    there = _header(old)
    changed = differences(old["identity"], identity)
    if there.shard != header.shard:
        changed.append(f"shard {_shard(there)} and not {_shard(header)}")
    if changed:
        raise InputError(f"{path} holds a run of {', '.join(changed)}: give another --out, or remove it")


def _shard(header: Header) -> str:
    return "none" if header.shard is None else "{}/{}".format(*header.shard)


def name_of_part(number: int, *, partial: bool = False) -> str:
    """The file of a part in the folder ``parts``."""
    """The file of a part in the folder ``parts``."""
    name = {TRIAL: "trial", METRICS: "metrics"}.get(number, f"image-{number:06d}")
    return f"{name}.partial.npz" if partial else f"{name}.npz"


def _number(file: Path, *, partial: bool = False) -> int | None:
    ending = ".partial.npz" if partial else ".npz"
    stem = file.name.removesuffix(ending)
    if file.name.startswith(".") or not file.name.endswith(ending):
        return None
    if stem in ("trial", "metrics"):
        return TRIAL if stem == "trial" else METRICS
    digits = stem.removeprefix("image-")
    return int(digits) if digits.isdigit() and stem.startswith("image-") else None


def _locked(path: Path) -> TextIOWrapper | None:
    """The folder for this process alone, until the file is closed or the process ends in whatever way."""
    if fcntl is None:
        return None
    try:
        file = (path / ".lock").open("w", encoding="utf-8")
    except OSError as error:
        raise CannotWrite(f"could not write to {path}: {error.strerror or error}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(f"expected {path} for this run alone, another run is writing to it") from None
    except OSError:
        pass  # a file system without locks
    return file


def _session(header: Header) -> dict[str, Any]:
    versions = {}
    for name in LIBRARIES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
        "device": header.subject.get("device"),
        "threads": header.subject.get("threads"),
        "shard": None if header.shard is None else list(header.shard),
    }
