"""One violation, or flip that counts towards one, in a file: exact pixels, the claim, and how to judge it again."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attackcheck.arithmetic import Reference, exact_arithmetic, frozen, guarded
from attackcheck.certainty import Scene
from attackcheck.claims import Claim, ClassPairClaim, LipschitzClaim, RadiusClaim
from attackcheck.confidence import Confidence
from attackcheck.errors import InputError, in_one_line
from attackcheck.preflight import check_logits, check_mode, check_model
from attackcheck.probe import Kind
from attackcheck.recheck import Judge, Judgement, Verdict

__all__ = ["Counterexample", "Outcome", "Replay", "digest", "load_counterexample", "replay", "save_counterexample"]

VERSION = 1
MOST_TOLERANT = 1e-2


class Outcome(Enum):
    """What became of a counterexample; the value is the sentence that is shown."""

    REPRODUCED = "reproduced: the claim is broken at this point"
    COUNTED = (
        "reproduced, and no violation by itself: the radius holds with a probability only, so that this flip counts "
        "against it, and a rate of them is compared with it"
    )
    FIXED = "fixed: this point no longer breaks the claim"
    CANNOT_CHECK = "cannot check"


@dataclass(frozen=True)
class Counterexample:
    """Everything that is needed to judge one violation again, except the model.

    Attributes:
        clean, perturbed: ``(C, H, W)``, the exact numbers.
        pixel: row and column, None for SET and LIPSCHITZ.
        predicted, target: classes before and after at the pixel, -1 where there is no single pixel.
        radius: what the claim says the perturbation must at least measure.
        radius_clean: the pixel's certified radius at the clean image, 0 where there is no single pixel.
        distance: what it measures.
        claim: :meth:`attackcheck.claims.Claim.to_dict`.
        subject: path and SHA-256 of the checkpoint, factory, data.
    """

    kind: Kind
    clean: Tensor
    perturbed: Tensor
    pixel: tuple[int, int] | None
    predicted: int
    target: int
    radius: float
    radius_clean: float
    distance: float
    image: int
    image_name: str
    attack: str
    seed: int
    tolerance: float
    claim: Mapping[str, Any]
    subject: Mapping[str, Any]


@dataclass(frozen=True)
class Replay:
    """Outcome of judging a counterexample again; ``reason`` is one sentence."""

    outcome: Outcome
    judgement: Judgement | None
    reason: str


def digest(image: Tensor) -> str:
    """SHA-256 of an image's exact numbers (type, shape and bytes)."""
    array = np.ascontiguousarray(image.detach().cpu().numpy())
    return hashlib.sha256(f"{array.dtype.str}{array.shape}".encode() + array.tobytes()).hexdigest()


def save_counterexample(example: Counterexample, folder: Path) -> Path:
    """Write a counterexample to ``folder`` under a name made of what it shows, all or nothing.

    Raises:
        InputError: if the folder or the file cannot be written.
    """
    where = "map" if example.pixel is None else f"r{example.pixel[0]}-c{example.pixel[1]}"
    name = f"{example.kind.name.lower()}-image{example.image}-{where}-{digest(example.perturbed)[:8]}.npz"
    meta = {
        "format": "attackcheck counterexample",
        "version": VERSION,
        "kind": example.kind.name,
        "pixel": example.pixel,
        "predicted": example.predicted,
        "target": example.target,
        "radius": example.radius,
        "radius_clean": example.radius_clean,
        "distance": example.distance,
        "image": example.image,
        "image_name": example.image_name,
        "attack": example.attack,
        "seed": example.seed,
        "tolerance": example.tolerance,
        "claim": dict(example.claim),
        "subject": dict(example.subject),
        "clean_sha256": digest(example.clean),
        "perturbed_sha256": digest(example.perturbed),
    }
    path, partial = folder / name, folder / f".{name}.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez_compressed(
                file,
                clean=example.clean.cpu().numpy(),
                perturbed=example.perturbed.cpu().numpy(),
                meta=json.dumps(meta),
            )
        os.replace(partial, path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise InputError(f"could not write the counterexample {path}: {error.strerror or error}") from None
    return path


def load_counterexample(path: Path) -> Counterexample:
    """Read a counterexample; nothing in the file is run.

    Raises:
        InputError: if it is missing, truncated, altered or something else.
    """
    if not path.is_file():
        raise InputError(f"expected a counterexample file, found none at {path}")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            meta = json.loads(str(archive["meta"]))
            clean, perturbed = torch.from_numpy(archive["clean"]), torch.from_numpy(archive["perturbed"])
        if meta["format"] != "attackcheck counterexample" or meta["version"] != VERSION:
            raise InputError(f"expected a counterexample of version {VERSION} in {path}, got {meta.get('version')!r}")
        if (digest(clean), digest(perturbed)) != (meta["clean_sha256"], meta["perturbed_sha256"]):
            raise InputError(f"the images in {path} do not match their own hashes: the file was altered")
        same = clean.dim() == 3 and clean.shape == perturbed.shape and clean.dtype == perturbed.dtype
        if not same or not clean.is_floating_point() or not (clean.isfinite() & perturbed.isfinite()).all():
            raise InputError(f"expected two finite images of one type and shape (C, H, W) in {path}")
        if torch.equal(clean, perturbed):
            raise InputError(f"expected two different images in {path}, got the same twice")
        pixel = None if meta["pixel"] is None else (int(meta["pixel"][0]), int(meta["pixel"][1]))
        height, width = clean.shape[1:]
        if pixel is not None and not (0 <= pixel[0] < height and 0 <= pixel[1] < width):
            raise InputError(f"expected a pixel inside {height}x{width} in {path}, got {pixel}")
        kind, tolerance = Kind[meta["kind"]], float(meta["tolerance"])
        if (pixel is None) != (kind in (Kind.SET, Kind.LIPSCHITZ)) or not 0.0 <= tolerance <= MOST_TOLERANT:
            raise InputError(f"expected a {kind.name} with its pixel and a tolerance below {MOST_TOLERANT} in {path}")
        return Counterexample(
            kind=kind,
            clean=clean,
            perturbed=perturbed,
            pixel=pixel,
            predicted=int(meta["predicted"]),
            target=int(meta["target"]),
            radius=float(meta["radius"]),
            radius_clean=float(meta["radius_clean"]),
            distance=float(meta["distance"]),
            image=int(meta["image"]),
            image_name=str(meta["image_name"]),
            attack=str(meta["attack"]),
            seed=int(meta["seed"]),
            tolerance=tolerance,
            claim=dict(meta["claim"]),
            subject=dict(meta["subject"]),
        )
    except InputError:
        raise
    except Exception as error:  # whatever a broken archive makes numpy, zipfile or json raise
        raise InputError(
            f"expected a counterexample written by attackcheck in {path}, could not read it ({in_one_line(error)})"
        ) from error


def claim_of(example: Counterexample) -> Claim:
    """The claim that a counterexample was made against.

    Raises:
        InputError: if it is of an unknown kind.
    """
    claim = example.claim
    source = f"recorded in the counterexample ({claim.get('source', 'given')})"
    try:
        if claim["kind"] == "lipschitz":
            return LipschitzClaim(claim["L"], claim["scope"], pixel=claim["pixel"], source=source)
        if claim["kind"] == "class-pair":
            return ClassPairClaim(claim["L"], torch.tensor(claim["weight"], dtype=torch.float64), source=source)
        if claim["kind"] == "radii" and example.pixel is not None:
            told = claim.get("confidence")
            sure = None if told is None else Confidence(**told)
            return RadiusClaim(_recorded_radii(example), source=source, confidence=sure)
    except InputError:
        raise
    except Exception as error:  # whatever a stranger's numbers make the claims raise
        raise InputError(f"the claim in the counterexample cannot be rebuilt ({in_one_line(error)})") from error
    raise InputError(f"expected a claim that can be rebuilt, got {claim.get('kind')!r}: give --lipschitz or --radii")


def _recorded_radii(example: Counterexample) -> Callable[[Tensor], Tensor]:
    """A certifier that knows what was said of this pixel, at the clean image and elsewhere."""
    there = example.radius - example.radius_clean if example.kind is Kind.TWO_BALL else 0.0

    def certifier(images: Tensor) -> Tensor:
        radii = torch.zeros(len(images), *images.shape[2:], dtype=torch.float64)
        for number, image in enumerate(images):
            clean = torch.equal(image.cpu(), example.clean)
            if example.pixel is not None:
                radii[number, example.pixel[0], example.pixel[1]] = example.radius_clean if clean else there
        return radii

    return certifier


def replay(
    example: Counterexample, model: Callable[[Tensor], Tensor], claim: Claim | None = None, *, device: str = "cpu"
) -> Replay:
    """Judge a counterexample again with nothing but the model, the file and the claim.

    Args:
        example: the counterexample.
        model: ``(B, C, H, W) -> (B, K, H, W)``.
        claim: another claim than the recorded one.
        device: where the model runs.
    """
    recorded = claim_of(example) if claim is None else claim
    image = example.clean[None].to(device)
    with exact_arithmetic(), torch.no_grad():
        copy = frozen(model)
        if isinstance(copy, torch.nn.Module):
            copy.to(device)
        try:
            check_model(copy)
            check_mode(copy, image, own=copy is not model)
            deployed = guarded(copy)
            logits = check_logits(deployed, image).clone()
        except InputError as error:
            return Replay(Outcome.CANNOT_CHECK, None, str(error))
        if isinstance(recorded, RadiusClaim):
            recorded = recorded.of(copy)
        judge = Judge(deployed, Reference(copy, image), recorded, tolerance=example.tolerance, device=device)
        radius = recorded.radii(image, logits, 0 if claim is None else example.image)
        if radius is None:
            return Replay(Outcome.CANNOT_CHECK, None, "the claim says nothing about this image")
        scene = judge.scene(example.image, example.clean, logits[0], radius[0])
        judgement = _judge(judge, scene, example)
    if judgement is None:
        return Replay(Outcome.CANNOT_CHECK, None, f"this claim makes no statement of kind {example.kind.name}")
    if judgement.verdict is Verdict.VIOLATED and isinstance(recorded, RadiusClaim) and recorded.confidence is not None:
        judgement = replace(judgement, verdict=Verdict.COUNTED)
        return Replay(Outcome.COUNTED, judgement, judgement.verdict.value)
    if judgement.verdict is Verdict.VIOLATED:
        return Replay(Outcome.REPRODUCED, judgement, judgement.verdict.value)
    if judgement.verdict in (Verdict.UNDECIDED, Verdict.NOT_REPRODUCED) and judgement.bound > judgement.distance:
        return Replay(Outcome.CANNOT_CHECK, judgement, judgement.verdict.value)
    return Replay(Outcome.FIXED, judgement, judgement.verdict.value)


def _judge(judge: Judge, scene: Scene, example: Counterexample) -> Judgement | None:
    if example.kind in (Kind.PIXEL, Kind.GADGET) and example.pixel is not None:
        return judge.pixel(scene, example.perturbed, *example.pixel)
    if example.kind is Kind.TWO_BALL:
        return judge.two_ball(scene, example.perturbed)
    if example.kind is Kind.SET:
        return judge.flipped_set(scene, example.perturbed)
    return judge.expansion(scene, example.perturbed)
