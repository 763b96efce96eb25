"""The audit: a claim about a network against what its weights prove, without any data."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attackcheck import preflight
from attackcheck.arithmetic import exact_arithmetic, frozen, guarded
from attackcheck.claims import Claim, ClassPairClaim, LipschitzClaim
from attackcheck.errors import InputError, in_one_line
from attackcheck.lipschitz.ascent import best_witness
from attackcheck.lipschitz.composition import Relation, Scaled, compose, needed, product_up
from attackcheck.lipschitz.findings import AuditReport, AuditVerdict, Layer, Witness
from attackcheck.lipschitz.promises import promises, taken_whole
from attackcheck.lipschitz.reading import Measured, Reading
from attackcheck.lipschitz.rules import OutOfTime, read
from attackcheck.subject import Settings, Subject
from attackcheck.tracing import Untraceable, Value, trace

__all__ = ["audit", "quick_audit"]

Model = Callable[[Tensor], Tensor]
TOLERANCE = 1e-5
"""Relative excess of a witnessed ratio that still counts as rounding of the certificate, as in verify."""

AGREEMENT = 1e-9
"""Relative excess of the bound over the claim at which they are the same number computed in two ways: a claim is a
float64 result of somebody's own arithmetic, and verify calls nothing a violation below ten thousand times as much."""

CLOSE = 1e-2
"""A claim within this of the product of promised constants is taken to rest on those promises."""


def audit(
    model: Model,
    claim: Claim,
    input_shape: Sequence[int],
    *,
    images: Tensor | None = None,
    seed: int = 0,
    device: str = "cpu",
    steps: int = 100,
    budget: float | None = None,
) -> AuditReport:
    """Bound a network's L2 Lipschitz constant from its weights, rigorously, and compare it with a claim.

    Args:
        model: the network; a module is copied, frozen and put into evaluation mode, never changed. A function that is
            no module has no weights to look at, and gets a lower bound only.
        claim: a Lipschitz or class-pair claim.
        input_shape: ``(C, H, W)``; every operation is bounded at the size at which it works then.
        images: ``(N, C, H, W)`` in [0, 1] from which the lower bound may start as well.
        seed: of the lower bound's random starts.
        device: where the lower bound is computed.
        steps: of each ascent for the lower bound (a fifth of them where the claim is proved); 0 leaves it out.
        budget: after how many seconds of this thread's own work no further operation is bounded, and no lower bound
            begun (also not where the claim is proved by then); None takes its time.

    Returns:
        The report: :attr:`AuditReport.bound` is proved, :attr:`AuditReport.lower` is shown by two images.

    Raises:
        InputError: for a claim of another kind, a shape that the model does not take, or stated layers without a bound.
    """
    start, deadline = time.perf_counter(), None if budget is None else time.thread_time() + budget
    if not isinstance(claim, (LipschitzClaim, ClassPairClaim)):
        raise InputError(f"expected a Lipschitz or class-pair claim to audit, got {claim.describe()}")
    shape = _checked_shape(input_shape)
    with exact_arithmetic(), _one_thread(), torch.enable_grad():
        twin = frozen(model)
        if isinstance(twin, nn.Module) and twin is not model:
            twin.eval().to(device)
        preflight.check_model(twin)
        _check_output(guarded(twin), torch.full((1, *shape), 0.5, device=device))
        proof = _prove(model, claim, shape, deadline)
        proved = not proof.missing and not proof.short_of(claim)
        witness = None
        if proved:
            steps = 0 if budget is not None else steps // 5
        if steps > 0 and (deadline is None or time.thread_time() < deadline):
            witness = best_witness(twin, claim, shape, images=images, seed=seed, device=device, steps=steps)
    constant = claim.lipschitz if isinstance(claim, LipschitzClaim) else claim.lipschitz_features
    lower = None if witness is None else witness.ratio * constant
    verdict, sentence = _judge(claim, proof, proved, witness)
    return AuditReport(
        claim=claim.to_dict(),
        claim_text=claim.describe(),
        input_shape=shape,
        bound=proof.bound,
        pixel_bound=proof.pixel,
        lower=lower,
        layers=proof.layers,
        missing=proof.missing,
        verdict=verdict,
        sentence=sentence,
        seconds=time.perf_counter() - start,
        witness=witness,
    )


@contextmanager
def _one_thread() -> Iterator[None]:
    """Operations here are many and small: threads inside them spend their time, and the audit's, on waiting."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


QUICK = 3.0
"""Seconds of work that verify gives to the audit; on a busy machine it may take longer, and finds the same."""

SMALL = 3 * 128 * 256
"""Numbers in an image up to which verify's audit climbs from random images, too."""


def quick_audit(subject: Subject, shape: Sequence[int], settings: Settings) -> AuditReport | None:
    """The part of the audit that verify runs first; None where there is nothing to audit.

    Whether it climbs depends on the size of the image and not on a clock, so that runs can be repeated.
    """
    model, claim = subject.model, subject.claim
    if not isinstance(model, nn.Module) or not isinstance(claim, (LipschitzClaim, ClassPairClaim)):
        return None
    steps = 20 if math.prod(shape) <= SMALL else 0
    return audit(model, claim, tuple(shape), seed=settings.seed, device=settings.device, steps=steps, budget=QUICK)


def _checked_shape(shape: Sequence[int]) -> tuple[int, ...]:
    if len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape):
        raise InputError(f"expected an input shape (C, H, W) of positive numbers, got {tuple(shape)}")
    return tuple(shape)


def _check_output(model: Model, image: Tensor) -> None:
    """Logits may have another size than the image here."""
    try:
        with torch.no_grad():
            logits = model(image)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        shape = tuple(image.shape[1:])
        raise InputError(f"the model does not accept images of shape {shape}: {in_one_line(error)}") from error
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.dim() != 4:
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"AC102: expected logits as one floating-point tensor (B, K, H, W), got {got}")
    if not bool(logits.isfinite().all()):
        raise InputError("AC101: expected finite logits, got NaN or infinity on a grey image")


# The upper bound -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Proof:
    bound: float | None
    pixel: float | None
    layers: tuple[Layer, ...]
    missing: str
    rests_on_promises: bool = False
    rounding: float = 0.0

    def short_of(self, claim: LipschitzClaim | ClassPairClaim) -> list[tuple[float, float]]:
        """Bounds that exceed what the claim says, each with that; a bound that is missing is infinite."""
        bound = math.inf if self.bound is None else self.bound
        pixel = math.inf if self.pixel is None else self.pixel
        if isinstance(claim, ClassPairClaim):
            pairs = [(bound, claim.lipschitz_features)]
        elif claim.scope == "pixel":
            pairs = [(pixel, claim.lipschitz)]
        else:
            pairs = [(bound, claim.lipschitz)] + ([] if claim.pixel is None else [(pixel, claim.pixel)])
        return [(found, limit) for found, limit in pairs if not found <= limit * (1.0 + AGREEMENT)]


def _prove(
    model: Model, claim: LipschitzClaim | ClassPairClaim, shape: tuple[int, ...], deadline: float | None
) -> _Proof:
    stated = dict(claim.layers or {}) if isinstance(claim, LipschitzClaim) else {}
    if not isinstance(model, nn.Module):
        return _Proof(None, None, (), "the model is a function, not a module with weights")
    try:
        graph = trace(model, shape, taken_whole)
        if graph.output is None:
            return _Proof(0.0, 0.0, (), "")
        reading = read(graph, deadline)
    except Untraceable as reason:
        return _Proof(None, None, (), str(reason))
    except OutOfTime as reason:
        return _Proof(None, None, (), str(reason))
    target, factor, why = reading.number(graph.output), 1.0, ""
    if isinstance(claim, ClassPairClaim):
        target, factor, why = _features(reading, graph.output, claim)
    taking_part = set(map(id, needed(reading.relations, reading.image, target)[0]))
    measured = [row for row in reading.measured if id(reading.relations[row.relation]) in taking_part]
    unknown = sorted(set(stated) - {row.path for row in measured})
    if unknown:
        known = ", ".join(sorted({row.path for row in measured})[:8]) or "none in this network"
        raise InputError(f"expected constants for layers such as {known}, got one for {unknown[0]!r}")
    promised = {**promises(model), **stated}
    found = why or compose(reading.relations, reading.image, target)
    layers, violated = _layers(measured, promised)
    if isinstance(found, str):
        return _Proof(None, None, layers, found, bool(set(violated) & set(stated)))
    bound = product_up(found, factor)
    pixel = None if isinstance(claim, ClassPairClaim) else min(bound, _pixel(reading, graph.output))
    rests = bool(set(violated) & set(stated)) or _rests(reading, measured, target, factor, promised, violated, claim)
    rounding = sum(row.allowance for row in measured if row.path in promised)
    return _Proof(bound, pixel, layers, "", rests, rounding)


def _pixel(reading: Reading, value: Value) -> float:
    """An upper bound of how far the vector at one place of a value moves, for images at distance one."""
    value = reading.first(value)
    found = reading.pixelwise.get(value)
    if found is None or len(found.sources) != 1:
        whole = compose(reading.relations, reading.image, reading.number(value))
        return math.inf if isinstance(whole, str) else whole
    best = product_up(found.one, _pixel(reading, found.sources[0]))
    if found.all < found.one:
        whole = compose(reading.relations, reading.image, reading.number(found.sources[0]))
        best = best if isinstance(whole, str) else min(best, product_up(found.all, whole))
    return best


def _features(reading: Reading, output: Value, claim: ClassPairClaim) -> tuple[int, float, str]:
    """The number of the last layer's input; the largest ratio of differences of its rows to the claim's; what fails."""
    last = reading.producer(output)
    if last is None or last.name != "convolution":
        return 0, 1.0, f"the last operation is {'the image' if last is None else last.name}, not a 1x1 convolution"
    source, weight, _, stride, padding, _, transposed, _, groups = last.args[:9]
    plain = isinstance(weight, Tensor) and weight.dim() == 4 and tuple(weight.shape[2:]) == (1, 1)
    if not plain or not isinstance(source, Value) or set(stride) != {1} or any(padding) or transposed or groups != 1:
        return 0, 1.0, "the last convolution is not a plain 1x1 convolution"
    rows, claimed = weight.flatten(1).double().cpu(), claim.weight
    if rows.shape != claimed.shape:
        return 0, 1.0, f"the last layer has rows {tuple(rows.shape)}, the claim {tuple(claimed.shape)}"
    ratio = 1.0
    if not torch.equal(rows, claimed):
        own, said = ((w[:, None] - w[None]).norm(dim=2) for w in (rows, claimed))
        if bool(((said == 0) & (own > 0)).any()):
            return 0, 1.0, "the claim's rows are equal where the last layer's are not"
        ratio = float(torch.where(own > 0, own / said, 0.0).max()) * (1.0 + 1e-12)
    return reading.number(source), ratio, ""


# The constants that the claim counts with ----------------------------------------------------------------------------


def _by_path(measured: Sequence[Measured]) -> Mapping[str, list[Measured]]:
    rows: dict[str, list[Measured]] = {}
    for row in measured:
        rows.setdefault(row.path, []).append(row)
    return rows


def _shown_norm(rows: Sequence[Measured]) -> float:
    """A lower bound of the norm of a chain of operations: known if all but one only multiply."""
    others = [row for row in rows if not row.uniform]
    if len(others) > 1:
        return 0.0
    return math.prod(row.bound.lower for row in rows) * (1.0 - 1e-15 * len(rows))


def _layers(measured: Sequence[Measured], used: Mapping[str, float]) -> tuple[tuple[Layer, ...], Mapping[str, float]]:
    """Rows of the report, and the shown norms of modules that exceed the constant that they are counted with."""
    violated = {}
    for path, rows in _by_path(measured).items():
        if path in used:
            shown = _shown_norm(rows)
            scale = math.prod(row.bound.upper for row in rows if row.uniform)
            if shown > used[path] + scale * sum(row.allowance for row in rows) + 1e-12 * used[path]:
                violated[path] = shown
    counts = Counter(row.path for row in measured)
    seen: Counter[str] = Counter()
    layers = []
    for row in measured:
        seen[row.path] += 1
        name = row.path or "(forward)"
        name += f" ({seen[row.path]})" if counts[row.path] > 1 else ""
        layers.append(
            Layer(
                name, row.kind, row.shape, row.detail, row.bound.upper, row.bound.lower, row.bound.method,
                used.get(row.path), row.path in violated and not (row.uniform and counts[row.path] > 1),
            )
        )  # fmt: skip
    return tuple(layers), violated


def _rests(
    reading: Reading,
    measured: Sequence[Measured],
    target: int,
    factor: float,
    promised: Mapping[str, float],
    violated: Mapping[str, float],
    claim: LipschitzClaim | ClassPairClaim,
) -> bool:
    """Whether the claim is what follows from the promised constants, and no longer follows from the norms shown.

    A layer whose promise is broken refutes nothing in a claim that was computed in another way: then the claim is not
    near the product of the promises, or large enough for the norms as they are.
    """
    if not violated or (isinstance(claim, LipschitzClaim) and claim.scope == "pixel" and claim.pixel is not None):
        return False
    constant = claim.lipschitz if isinstance(claim, LipschitzClaim) else claim.lipschitz_features
    meant = compose(_counted(reading, measured, promised), reading.image, target)
    shown = compose(_counted(reading, measured, {**promised, **violated}), reading.image, target)
    if isinstance(meant, str) or isinstance(shown, str):
        return False
    meant, shown = meant * factor, shown * factor
    return abs(constant / meant - 1.0) <= CLOSE and shown > constant


def _counted(reading: Reading, measured: Sequence[Measured], constants: Mapping[str, float]) -> list[Relation]:
    """The relations with modules at these constants instead of their bounds."""
    relations = list(reading.relations)
    for path, rows in _by_path(measured).items():
        if path in constants:
            for position, row in enumerate(rows):
                old = relations[row.relation]
                assert isinstance(old, Scaled)
                relations[row.relation] = Scaled(old.value, old.source, constants[path] if position == 0 else 1.0)
    return relations


# The verdict ---------------------------------------------------------------------------------------------------------


def _judge(
    claim: LipschitzClaim | ClassPairClaim, proof: _Proof, proved: bool, witness: Witness | None
) -> tuple[AuditVerdict, str]:
    """The verdict, and what it hangs on."""
    if proved:
        return AuditVerdict.PROVED, AuditVerdict.PROVED.value
    if witness is not None and witness.ratio > 1.0 + max(TOLERANCE, proof.rounding):
        return AuditVerdict.REFUTED, (
            f"two images at distance {witness.distance:.4g} (from a {witness.start}) move the logits by "
            f"{witness.ratio:.6g} times what the claim permits"
        )
    broken = [layer for layer in proof.layers if layer.refuted]
    if proof.rests_on_promises and broken:
        worst = max(broken, key=lambda layer: layer.lower / (layer.used or 1.0))
        return AuditVerdict.PREMISE_REFUTED, (
            f"layer {worst.name} counts as {worst.used:.6g}, but its norm is at least {worst.lower:.6g}"
        )
    if proof.missing:
        return AuditVerdict.UNDECIDED, f"no bound: {proof.missing}"
    bound, limit = max(proof.short_of(claim), key=lambda pair: pair[0] / pair[1])
    excess = bound / limit - 1.0
    if excess < TOLERANCE:
        times = f"1 + {excess:.2g} times the claimed {limit:.7g}"
        return AuditVerdict.UNDECIDED, f"the bound is {times}, no more than counts as rounding"
    above = f"{bound / limit:.3g} times" if excess >= 1 else f"{100 * excess:.2g} %"
    return AuditVerdict.UNDECIDED, f"the bound {bound:.7g} is {above} above the claimed {limit:.7g}"
