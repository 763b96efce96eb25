"""Parts as files: arrays and one JSON text in an .npz, exact to the last bit. The format is in docs/run-folder.md."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attackcheck.confidence import Attacked
from attackcheck.errors import CannotWrite, InputError, in_one_line
from attackcheck.lipschitz.findings import AuditReport, Witness
from attackcheck.parts import Example, Maps, Part
from attackcheck.probe import Kind
from attackcheck.recheck import Verdict
from attackcheck.report import RegionResult, Violation
from attackcheck.tally import AttackedPixels, Tally

__all__ = [
    "load_part", "read_audit", "read_json", "read_violation", "save_audit", "save_part", "violation_line",
    "write_bytes", "write_json",
]  # fmt: skip

Array = np.ndarray[Any, Any]
FORMAT, VERSION = "attackcheck part", 1


def save_part(part: Part, path: Path, folder: Path) -> None:
    """Write a part, all or nothing; counterexamples are named relative to ``folder``.

    Raises:
        CannotWrite: if it cannot be written.
    """
    tally = part.tally
    arrays: dict[str, Array] = {}
    meta: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "number": part.number,
        "name": part.name,
        "complete": part.complete,
        "sha256": part.sha256,
        "seconds": part.seconds,
        "verdicts": [verdict.name for verdict in Verdict],
        "counts": dict(tally.verdicts),
        "unchecked": dict(tally.unchecked),
        "findings": [violation_line(finding, folder) for finding in tally.findings],
        "regions": [_record(region) for region in tally.regions],
        "unsaved": tally.unsaved,
        "warnings": tally.warnings,
        "rates": [[count.pixels, count.broken, count.certificates] for count in tally.rates],
        "attacks": [],
        "examples": [],
        **tally.sums(),
    }
    if part.maps is not None:
        meta["attacks"] = list(part.maps.attacks)
        arrays = _maps(part.maps) | _pixels(tally.pixels, part.maps.attacks)
        for i, example in enumerate(part.maps.examples):
            top, left, window = _window(part.maps.image, example.perturbed)
            arrays[f"example_{i}"], arrays[f"after_{i}"] = window.numpy(), example.after.numpy()
            meta["examples"].append(_example_record(example, top, left))
    text = json.dumps(_words(meta), allow_nan=False)
    write_bytes(path, _archive({"meta": np.array(text), **arrays}))


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Write a file, all or nothing, also where the machine goes down.

    Raises:
        CannotWrite: if that fails; nothing is left behind.
    """
    partial = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise CannotWrite(f"could not write {path}: {error.strerror or error}") from None


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write one JSON object, all or nothing; CannotWrite if that fails."""
    write_bytes(path, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object.

    Raises:
        InputError: for anything else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"expected JSON in {path}, could not read it ({in_one_line(error)})") from None
    if not isinstance(found, dict):
        raise InputError(f"expected one JSON object in {path}")
    return found


def save_audit(audit: AuditReport, path: Path, witness: Path) -> None:
    """Write an audit as JSON, and the images of its witness to a file of their own; CannotWrite if that fails."""
    if audit.witness is not None:
        pair = {"image": audit.witness.image.cpu().numpy(), "perturbed": audit.witness.perturbed.cpu().numpy()}
        write_bytes(witness, _archive(pair))
    write_json(path, audit.to_dict())


def read_audit(path: Path, witness: Path) -> AuditReport:
    """What :func:`save_audit` wrote.

    Raises:
        InputError: if it is damaged.
    """
    plain = read_json(path)
    audit = AuditReport.of_dict(plain)
    seen = plain["witness"]
    if seen is None:
        return audit
    try:
        with witness.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            image, perturbed = torch.from_numpy(archive["image"]), torch.from_numpy(archive["perturbed"])
        found = Witness(float(seen["ratio"]), float(seen["distance"]), str(seen["start"]), image, perturbed)
    except Exception as error:  # whatever a damaged archive makes numpy or zipfile raise
        raise InputError(f"expected the witness of an audit in {witness} ({in_one_line(error)})") from error
    return replace(audit, witness=found)


def _archive(arrays: Mapping[str, Array]) -> memoryview:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getbuffer()


def load_part(path: Path, folder: Path, ignore: int) -> Part:
    """Read a part; nothing in the file is run.

    Args:
        path: the file.
        folder: the run folder, which counterexamples are relative to.
        ignore: the label that counts for nothing.

    Raises:
        InputError: if it is damaged or something else.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        meta = json.loads(str(arrays.pop("meta")))
        if meta["format"] != FORMAT or meta["version"] != VERSION:
            raise InputError(f"expected a part of version {VERSION} in {path}, got {meta.get('version')!r}")
        tally = Tally(ignore)
        tally.findings += [read_violation(line, folder) for line in meta["findings"]]
        tally.regions += [_region(line) for line in meta["regions"]]
        tally.verdicts.update(meta["counts"])
        tally.unchecked.update(meta["unchecked"])
        tally.unsaved = int(meta["unsaved"])
        tally.rates += [Attacked(int(p), int(b), float(c)) for p, b, c in meta.get("rates", ())]
        tally.warnings += [(str(code), str(message)) for code, message in meta["warnings"]]
        tally.add_sums(meta)
        maps = _read_maps(arrays, meta) if "radius" in arrays else None
        if maps is not None:
            labels = None if maps.labels is None else maps.labels.numpy()
            tally.add_maps(maps.radius.numpy(), maps.flip_distance.numpy(), maps.attacked.numpy())
            tally.add_classes(maps.predicted.numpy(), maps.radius.numpy(), labels)
            if len(arrays["pixels"]):
                tally.add_pixels(_read_pixels(arrays, maps.attacks))
        return Part(
            number=int(meta["number"]),
            name=str(meta["name"]),
            complete=bool(meta["complete"]),
            seconds=float(meta["seconds"]),
            tally=tally,
            sha256=meta["sha256"],
            maps=maps,
        )
    except InputError:
        raise
    except Exception as error:  # whatever a damaged archive makes numpy, zipfile or json raise
        raise InputError(f"expected a part of a run in {path}, could not read it ({in_one_line(error)})") from error


def violation_line(found: Violation, folder: Path) -> dict[str, Any]:
    """A finding as plain values, its counterexample relative to the run folder."""
    line = _record(found)
    line["ratio"] = found.ratio
    if found.counterexample is not None:
        path = found.counterexample
        line["counterexample"] = str(path.relative_to(folder) if path.is_relative_to(folder) else path)
    return dict(_words(line))


def read_violation(line: Mapping[str, Any], folder: Path) -> Violation:
    """What :func:`violation_line` wrote."""
    pixel, saved = line["pixel"], line["counterexample"]
    return Violation(
        kind=Kind[line["kind"]],
        verdict=Verdict[line["verdict"]],
        image=int(line["image"]),
        image_name=str(line["image_name"]),
        pixel=None if pixel is None else (int(pixel[0]), int(pixel[1])),
        pixels=int(line["pixels"]),
        predicted=int(line["predicted"]),
        target=int(line["target"]),
        radius=float(line["radius"]),
        distance=float(line["distance"]),
        attack=str(line["attack"]),
        counterexample=None if saved is None else folder / saved,
        statement=line["statement"],
    )


def _region(line: Mapping[str, Any]) -> RegionResult:
    joint, target = line["joint_distance"], line["target"]
    return RegionResult(
        image=int(line["image"]),
        name=str(line["name"]),
        pixels=int(line["pixels"]),
        fraction=float(line["fraction"]),
        target=None if target is None else int(target),
        joint_distance=None if joint is None else float(joint),
        distance=float(line["distance"]),
        attack=str(line["attack"]),
    )


def _record(value: Any) -> dict[str, Any]:
    plain = {name: getattr(value, name) for name in value.__dataclass_fields__}
    return {name: entry.name if isinstance(entry, Kind | Verdict) else entry for name, entry in plain.items()}


def _words(value: Any) -> Any:
    """The same with numbers that are not finite as words, which strict JSON has no other place for."""
    if isinstance(value, float) and not np.isfinite(value):
        return repr(value)
    if isinstance(value, Mapping):
        return {key: _words(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_words(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def _maps(maps: Maps) -> dict[str, Array]:
    bytes_ = (maps.image * 255).round().clamp(0, 255).to(torch.uint8)
    exact = maps.image.dtype == torch.float32 and torch.equal(bytes_.float() / 255, maps.image)
    arrays = {
        "image": (bytes_ if exact else maps.image.float()).numpy(),
        "predicted": maps.predicted.numpy(),
        "radius": maps.radius.numpy(),
        "flip_distance": maps.flip_distance.numpy(),
        "flipped_by": maps.flipped_by.numpy(),
        "class_after": maps.class_after.numpy(),
        "attacked": maps.attacked.numpy(),
        "verdict": maps.verdict.numpy(),
    }
    return arrays if maps.labels is None else arrays | {"labels": maps.labels.numpy()}


def _read_maps(arrays: Mapping[str, Array], meta: Mapping[str, Any]) -> Maps:
    image = torch.from_numpy(arrays["image"])
    image = image.float() / 255 if image.dtype == torch.uint8 else image
    if [verdict.name for verdict in Verdict] != meta["verdicts"]:
        raise InputError("expected the verdicts of this version of attackcheck")
    return Maps(
        image=image,
        labels=torch.from_numpy(arrays["labels"]) if "labels" in arrays else None,
        attacks=tuple(meta["attacks"]),
        examples=tuple(
            _example(record, image, arrays[f"example_{i}"], arrays[f"after_{i}"])
            for i, record in enumerate(meta["examples"])
        ),
        **{name: torch.from_numpy(arrays[name]) for name in _PLAIN},
    )


_PLAIN = ("predicted", "radius", "flip_distance", "flipped_by", "class_after", "attacked", "verdict")


def _pixels(groups: Sequence[AttackedPixels], attacks: Sequence[str]) -> dict[str, Array]:
    """All groups as one: an attack that was not yet there for a group was not aimed at it and flipped nothing."""

    def joined(name: str, dtype: Any, shape: tuple[int, ...] = (0,)) -> Array:
        parts = [getattr(group, name) for group in groups]
        return np.concatenate(parts).astype(dtype) if parts else np.zeros(shape, dtype)

    def by(name: str, missing: Any, dtype: Any) -> Array:
        rows = [
            np.concatenate([getattr(g, name).get(attack, np.full(len(g.radius), missing)) for g in groups])
            for attack in attacks
            if groups
        ]
        return np.stack(rows).astype(dtype) if rows else np.zeros((len(attacks), 0), dtype)

    return {
        "pixels": joined("pixels", np.int32, (0, 2)),
        "pixel_radius": joined("radius", np.float64),
        "pixel_distance": joined("distance", np.float64),
        "pixel_slack": joined("lipschitz_slack", np.float64),
        "pixel_confirmed": joined("confirmed", bool),
        "pixel_predicted": joined("predicted", np.int16),
        "by_attack": by("by_attack", np.inf, np.float64),
        "aimed": by("aimed", False, bool),
    }


def _read_pixels(arrays: Mapping[str, Array], attacks: Sequence[str]) -> AttackedPixels:
    aimed = arrays["aimed"]
    return AttackedPixels(
        radius=arrays["pixel_radius"],
        distance=arrays["pixel_distance"],
        confirmed=arrays["pixel_confirmed"],
        lipschitz_slack=arrays["pixel_slack"],
        predicted=arrays["pixel_predicted"],
        pixels=arrays["pixels"].astype(np.int64),
        aimed={name: aimed[i] for i, name in enumerate(attacks) if aimed[i].any()},
        by_attack={name: arrays["by_attack"][i] for i, name in enumerate(attacks)},
    )


def _window(image: Tensor, perturbed: Tensor) -> tuple[int, int, Tensor]:
    """Where a perturbed image differs from the clean one: top, left and the crop ``(C, h, w)``."""
    changed = (image != perturbed).any(dim=0)
    rows, columns = changed.any(dim=1).nonzero()[:, 0], changed.any(dim=0).nonzero()[:, 0]
    if not len(rows):
        return 0, 0, perturbed[:, :0, :0]
    top, left = int(rows[0]), int(columns[0])
    return top, left, perturbed[:, top : int(rows[-1]) + 1, left : int(columns[-1]) + 1].contiguous()


def _example_record(example: Example, top: int, left: int) -> dict[str, Any]:
    pixel = example.pixel or (None, None)
    return {
        "kind": example.kind,
        "name": example.name,
        "row": pixel[0],
        "column": pixel[1],
        "predicted": example.predicted,
        "target": example.target,
        "radius": example.radius,
        "distance": example.distance,
        "attack": example.attack,
        "top": top,
        "left": left,
    }


def _example(record: Mapping[str, Any], image: Tensor, window: Array, after: Array) -> Example:
    perturbed, top, left = image.clone(), int(record["top"]), int(record["left"])
    perturbed[:, top : top + window.shape[1], left : left + window.shape[2]] = torch.from_numpy(window)
    return Example(
        kind=record["kind"],
        name=record["name"],
        pixel=None if record["row"] is None else (int(record["row"]), int(record["column"])),
        predicted=int(record["predicted"]),
        target=int(record["target"]),
        radius=None if record["radius"] is None else float(record["radius"]),
        distance=float(record["distance"]),
        attack=record["attack"],
        perturbed=perturbed,
        after=torch.from_numpy(after),
    )
