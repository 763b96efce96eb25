"""A broken metric claim in a file: every image, every perturbation, the claim, and how to judge it again.

Images that came from 8 bits are stored in 8 bits, perturbations in 16: the exact points are put together again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attackcheck.arithmetic import Reference, exact_arithmetic, frozen, guarded
from attackcheck.counterexample import Outcome, digest
from attackcheck.errors import InputError, in_one_line
from attackcheck.image_attacks import Shift
from attackcheck.measures.names import Measure
from attackcheck.metrics import MetricClaim, MetricJudgement, Pictures, judge_metric
from attackcheck.preflight import check_logits, check_mode, check_model
from attackcheck.recheck import Verdict

__all__ = ["MetricExample", "is_metric", "load_metric", "replay_metric", "save_metric"]

FORMAT = "attackcheck metric counterexample"
VERSION = 1
MOST_TOLERANT = 1e-2


@dataclass(frozen=True)
class MetricExample:
    """Everything that is needed to judge a broken metric claim again, except the model.

    ``clean`` and ``perturbed`` are the exact images ``(C, H, W)``, ``labels`` ``(H, W)`` or None; ``value`` is what was
    reached; ``subject`` says which model it was.
    """

    claim: MetricClaim
    names: tuple[str, ...]
    clean: tuple[Tensor, ...]
    perturbed: tuple[Tensor, ...]
    labels: tuple[Tensor | None, ...]
    classes: int
    ignore: int
    tolerance: float
    value: float
    subject: Mapping[str, Any]


def save_metric(
    claim: MetricClaim,
    pictures: Sequence[Pictures],
    shifts: Sequence[Shift],
    *,
    folder: Path,
    classes: int,
    ignore: int,
    tolerance: float,
    value: float,
    subject: Mapping[str, Any],
) -> Path:
    """Write a counterexample to ``folder``, all or nothing.

    Raises:
        InputError: if the folder or the file cannot be written.
    """
    arrays: dict[str, Any] = {}
    for number, (picture, shift) in enumerate(zip(pictures, shifts, strict=True)):
        arrays[f"clean{number}"] = _compact(picture.clean)
        if bool((shift.numbers != 0).any()):
            arrays[f"shift{number}"] = shift.numbers.numpy()
        if picture.labels is not None:
            arrays[f"labels{number}"] = picture.labels.numpy().astype(np.int16)
    digests = [digest(picture.perturbed) for picture in pictures]
    meta = {
        "format": FORMAT,
        "version": VERSION,
        "kind": "METRIC",
        "claim": claim.to_dict(),
        "names": [picture.name for picture in pictures],
        "scales": [shift.scale for shift in shifts],
        "classes": classes,
        "ignore": ignore,
        "tolerance": tolerance,
        "value": value,
        "subject": dict(subject),
        "perturbed_sha256": digests,
    }
    what = claim.measure.value + ("" if claim.cls is None else f"-class{claim.cls}")
    path = folder / f"metric-{what}-eps{claim.eps:g}-{digests[0][:8]}.npz"
    partial = folder / f".{path.name}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez_compressed(file, meta=json.dumps(meta), **arrays)
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise InputError(f"could not write the counterexample {path}: {error.strerror or error}") from None
    return path


def is_metric(path: Path) -> bool:
    """Whether a file is one of these, as far as its own word goes."""
    try:
        # A file of our own: numpy leaves one open whose archive is broken.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return bool(json.loads(str(archive["meta"]))["format"] == FORMAT)
    except Exception:  # whatever is wrong with it is said when it is loaded as what it is not
        return False


def load_metric(path: Path) -> MetricExample:
    """Read a counterexample; nothing in the file is run.

    Raises:
        InputError: if it is missing, truncated, altered or something else.
    """
    try:
        # A file of our own: numpy leaves one open whose archive is broken.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            meta = json.loads(str(archive["meta"]))
            if meta["format"] != FORMAT or meta["version"] != VERSION:
                raise InputError(f"expected a metric counterexample of version {VERSION} in {path}")
            told = dict(meta["claim"])
            claim = MetricClaim(
                Measure(told["measure"]), told["eps"], told["value"], told["class"], str(told["source"])
            )
            names, scales = [str(name) for name in meta["names"]], [float(scale) for scale in meta["scales"]]
            clean, perturbed, labels = [], [], []
            for number in range(len(names)):
                image = _expanded(archive[f"clean{number}"])
                point = image
                if f"shift{number}" in archive:
                    point = Shift(torch.from_numpy(archive[f"shift{number}"]), scales[number]).added_to(image)
                if image.dim() != 3 or point.shape != image.shape:
                    raise InputError(f"expected images (C, H, W) of one shape in {path}")
                if digest(point) != meta["perturbed_sha256"][number]:
                    raise InputError(f"the images in {path} do not match their own hashes: the file was altered")
                clean.append(image)
                perturbed.append(point)
                known = f"labels{number}" in archive
                labels.append(torch.from_numpy(archive[f"labels{number}"]).long() if known else None)
        tolerance, classes = float(meta["tolerance"]), int(meta["classes"])
        if not 0 <= tolerance <= MOST_TOLERANT or classes < 1 or not names:
            raise InputError(f"expected a tolerance up to {MOST_TOLERANT:g}, classes and images in {path}")
        return MetricExample(
            claim=claim,
            names=tuple(names),
            clean=tuple(clean),
            perturbed=tuple(perturbed),
            labels=tuple(labels),
            classes=classes,
            ignore=int(meta["ignore"]),
            tolerance=tolerance,
            value=float(meta["value"]),
            subject=dict(meta["subject"]),
        )
    except InputError:
        raise
    except Exception as error:  # whatever a stranger's file makes numpy, zipfile or json raise
        raise InputError(
            f"expected a metric counterexample in {path}, could not read it: {in_one_line(error)}"
        ) from error


def replay_metric(
    example: MetricExample, model: Callable[[Tensor], Tensor], *, device: str = "cpu"
) -> tuple[Outcome, MetricJudgement]:
    """Judge a broken metric claim again with nothing but the model and the file.

    Raises:
        InputError: if the model cannot be judged on these images.
    """
    with exact_arithmetic(), torch.no_grad():
        copy = frozen(model)
        if isinstance(copy, torch.nn.Module):
            copy.to(device)
        check_model(copy)
        first = example.clean[0][None].to(device)
        check_mode(copy, first, own=copy is not model)
        deployed = guarded(copy)
        pictures = []
        for name, clean, perturbed, labels in zip(
            example.names, example.clean, example.perturbed, example.labels, strict=True
        ):
            logits = check_logits(deployed, clean[None].to(device))[0].cpu()
            if logits.shape[0] != example.classes or (labels is not None and labels.shape != logits.shape[1:]):
                got = tuple(logits.shape)
                raise InputError(f"expected logits of {example.classes} classes that fit the labels, got {got}")
            pictures.append(Pictures(name, clean, perturbed, labels, logits.argmax(dim=0)))
        judgement = judge_metric(
            Reference(copy, first),
            example.claim,
            pictures,
            classes=example.classes,
            ignore=example.ignore,
            tolerance=example.tolerance,
        )
    if judgement.verdict is Verdict.VIOLATED:
        return Outcome.REPRODUCED, judgement
    if judgement.verdict is Verdict.NOT_REPRODUCED:
        return Outcome.CANNOT_CHECK, judgement
    return Outcome.FIXED, judgement


def _compact(image: Tensor) -> Any:
    """8 bits where that loses nothing."""
    bytes_ = (image * 255).round().clamp(0, 255).to(torch.uint8)
    same = image.dtype == torch.float32 and torch.equal(bytes_.float() / 255, image)
    return (bytes_ if same else image).numpy()


def _expanded(array: np.ndarray[Any, Any]) -> Tensor:
    image = torch.from_numpy(array)
    return image.float() / 255 if image.dtype == torch.uint8 else image
