"""A table of all attacked pixels as one Parquet file; needs the extra `parquet` (pyarrow)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from types import TracebackType
from typing import Any, Self

import numpy as np

from attackcheck.errors import InputError
from attackcheck.events import Event, PartFinished, RunFinished, RunStarted
from attackcheck.parts import Maps, Part
from attackcheck.recheck import Verdict
from attackcheck.reporters.json import checked_target

__all__ = ["ParquetReporter", "columns_of"]

Array = np.ndarray[Any, Any]


def columns_of(part: Part, maps: Maps) -> dict[str, Array]:
    """The attacked pixels of one image, one entry each, in the order of rows and columns.

    ``distance`` is the smallest at which the pixel was seen flipped (inf: never), by ``attack``; ``tightness`` is
    radius / distance, 0 where never. Names are indices here: ``attack`` into the part's attacks, ``verdict`` into
    :class:`attackcheck.recheck.Verdict`; -1 stands for none, NaN for an unknown slack.
    """
    row, column = (places.astype(np.int32) for places in np.nonzero(maps.attacked.numpy()))
    at = row, column
    radius, distance = maps.radius.numpy()[at], maps.flip_distance.numpy()[at]
    slack = np.full(maps.radius.shape, np.nan)
    for pixels in part.tally.pixels:
        slack[pixels.pixels[:, 0], pixels.pixels[:, 1]] = pixels.lipschitz_slack
    flipped = np.isfinite(distance)
    return {
        "row": row,
        "column": column,
        "predicted": maps.predicted.numpy()[at],
        "label": np.full(len(row), -1, np.int32) if maps.labels is None else maps.labels.numpy()[at],
        "class_after": maps.class_after.numpy()[at],
        "radius": radius,
        "distance": distance,
        "tightness": np.divide(radius, distance, out=np.zeros_like(radius), where=flipped & (distance > 0)),
        "lipschitz_slack": slack[at],
        "attack": maps.flipped_by.numpy()[at],
        "verdict": maps.verdict.numpy()[at],
    }


class ParquetReporter:
    """Consumes events; writes a group of rows for every image, in their order, and the file's name at the end.

    Use as a context: a run that breaks off leaves nothing behind.

    Args:
        target: the file.

    Raises:
        InputError: if the file cannot be written as far as that can be seen, or pyarrow is not installed.
    """

    def __init__(self, target: str) -> None:
        if find_spec("pyarrow") is None:
            raise InputError("a Parquet file needs pyarrow, which is not installed: pip install 'attackcheck[parquet]'")
        path = checked_target(target, "--parquet")
        if path is None or (path.exists() and not path.is_file()):
            raise InputError(f"expected --parquet to be a file, got {target!r}")
        self._path = path.resolve()
        self._partial = self._path.with_name(f".{path.name}.partial")
        self._writer: Any = None
        self._schema: Any = None
        self._waiting: dict[int, Part] = {}
        self._numbers: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            with suppress(Exception):
                self._writer.close()
            self._partial.unlink(missing_ok=True)

    def __call__(self, event: Event) -> None:
        """Write what an event brings.

        Raises:
            InputError: if that fails.
        """
        try:
            match event:
                case RunStarted():
                    self._numbers = sorted(event.numbers or range(event.images), reverse=True)
                    self._open({"subject": dict(event.subject), "plan": event.plan, "seed": event.seed})
                case PartFinished() if event.part.maps is not None:
                    self._waiting[event.part.number] = event.part
                    while self._numbers and self._numbers[-1] in self._waiting:
                        self._write(self._numbers.pop())
                case RunFinished():
                    for number in sorted(self._waiting):
                        self._write(number)
                    self._writer.close()
                    self._writer = None
                    os.replace(self._partial, self._path)
                case _:
                    pass
        except OSError as error:
            raise InputError(f"could not write {self._path}: {error.strerror or error}") from None

    def _open(self, described: Mapping[str, Any]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        name = pa.dictionary(pa.int32(), pa.string())
        self._schema = pa.schema(
            [
                ("image", pa.int32()),
                ("name", name),
                ("row", pa.int32()),
                ("column", pa.int32()),
                ("predicted", pa.int16()),
                ("label", pa.int32()),
                ("class_after", pa.int16()),
                ("radius", pa.float64()),
                ("distance", pa.float64()),
                ("tightness", pa.float64()),
                ("lipschitz_slack", pa.float64()),
                ("attack", name),
                ("verdict", name),
            ],
            metadata={"attackcheck": json.dumps(described, default=str)},
        )
        self._writer = parquet.ParquetWriter(self._partial, self._schema, compression="zstd")

    def _write(self, number: int) -> None:
        import pyarrow as pa

        part = self._waiting.pop(number)
        if part.maps is None or not bool(part.maps.attacked.any()):
            return
        columns = columns_of(part, part.maps)
        count = len(columns["row"])
        named = {
            "name": (np.zeros(count, np.int32), [part.name]),
            "attack": (columns.pop("attack"), list(part.maps.attacks)),
            "verdict": (columns.pop("verdict"), [verdict.name for verdict in Verdict]),
        }
        unknown = {name: columns[name] < 0 for name in ("label", "class_after")}
        unknown["lipschitz_slack"] = np.isnan(columns["lipschitz_slack"])
        arrays = {name: pa.array(values, mask=unknown.get(name)) for name, values in columns.items()}
        arrays["image"] = pa.array(np.full(count, number, np.int32))
        for name, (indices, words) in named.items():
            places = pa.array(indices.astype(np.int32), mask=indices < 0)
            arrays[name] = pa.DictionaryArray.from_arrays(places, pa.array(words, pa.string()))
        self._writer.write_table(pa.table([arrays[field.name] for field in self._schema], schema=self._schema))
