"""Training of 1-Lipschitz segmentation networks: losses, schedule, and a loop that yields progress and can resume."""

import copy
import hashlib
import math
import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from attackcheck.errors import InputError

from .batches import Pictures, Pool, class_weights, read_batch
from .checkpoint import save_atomically
from .losses import IGNORE, LOSSES, pixel_weights, segmentation_loss
from .networks import Network, export
from .processes import ALONE, LostError, Processes

__all__ = ["PRECISIONS", "Measured", "Progress", "Recipe", "measure", "train"]

PRECISIONS = ("float32", "bf16")


@dataclass(frozen=True)
class Recipe:
    """What decides the result of a training besides network and data. `crop` is (height, width), None for whole images.

    `tau` is the temperature of the cross-entropies, `margin` a certified radius (margin-ce, hinge, hkr) aimed for,
    `warmup` a share of the steps. `focus` raises the weight of rare classes: frequency to the power -focus. `noise` is
    the standard deviation of Gaussian noise on every picture, for networks that are to be smoothed. With `precision`
    "bf16" the convolutions run in bfloat16; orthogonal matrices, means, loss and optimiser stay in float32.
    """

    steps: int = 1000
    batch: int = 8
    loss: str = "ce"
    tau: float = 16.0
    margin: float = 0.2
    lr: float = 5e-3
    seed: int = 0
    warmup: float = 0.03
    crop: tuple[int, int] | None = None
    flip: bool = True
    focus: float = 0.0
    weight_decay: float = 0.0
    noise: float = 0.0
    precision: str = "float32"

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise InputError(f"expected a loss among {', '.join(LOSSES)}, got {self.loss!r}")
        for name in ("steps", "batch", "tau", "lr"):
            if not getattr(self, name) > 0:
                raise InputError(f"expected {name} to be positive, got {getattr(self, name)}")
        if self.precision not in PRECISIONS:
            raise InputError(f"expected a precision among {', '.join(PRECISIONS)}, got {self.precision!r}")
        if not 0 <= self.noise < math.inf:
            raise InputError(f"expected noise of at least 0, got {self.noise}")


@dataclass(frozen=True)
class Measured:
    """Figures of a network on pictures: pixel accuracy, mean IoU over the classes present, quantiles of the certified
    radius (10, 25, 50, 75, 90 %) over all labelled pixels, and certified accuracy at the radii 0.05, 0.1 and 0.2.
    """

    accuracy: float
    miou: float
    radii: tuple[float, ...]
    certified: tuple[float, ...]
    pixels: int

    @property
    def radius(self) -> float:
        """The median certified radius."""
        return self.radii[2]


@dataclass(frozen=True)
class Progress:
    """One event of training: the running loss, and a measurement on the validation pictures if there is one."""

    step: int
    steps: int
    loss: float
    seconds: float
    measured: Measured | None = None


@torch.no_grad()
def measure(model: nn.Module, pictures: Pictures, *, lipschitz: float, classes: int) -> Measured:
    """Accuracy and certified radii m / (sqrt(2) L) of a network in evaluation mode on labelled pictures."""
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    device = next(model.parameters(), torch.empty(0)).device
    radii, hits = [], []
    for index in range(len(pictures)):
        picture = pictures[index]
        if picture.labels is None:
            raise InputError(f"expected labels for every validation picture, got none for picture {index}")
        logits = model(picture.image[None].to(device)).cpu()
        best = logits.topk(2, 1)
        valid = picture.labels != IGNORE
        truth, guess = picture.labels[valid], best.indices[0, 0][valid]
        confusion += torch.bincount(truth * classes + guess, minlength=classes**2).view(classes, classes)
        radii.append(((best.values[0, 0] - best.values[0, 1]) / (math.sqrt(2) * lipschitz))[valid])
        hits.append(guess == truth)
    radius, correct = torch.cat(radii).double(), torch.cat(hits)
    own = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - own
    present = confusion.sum(1) > 0
    return Measured(
        accuracy=float(own.sum() / confusion.sum()),
        miou=float((own[present] / union[present]).mean()),
        radii=tuple(float(q) for q in np.quantile(radius.numpy(), [0.1, 0.25, 0.5, 0.75, 0.9])),
        certified=tuple(float((correct & (radius >= eps)).double().mean()) for eps in (0.05, 0.1, 0.2)),
        pixels=len(radius),
    )


def _rate(recipe: Recipe, step: int) -> float:
    warm = max(1, round(recipe.warmup * recipe.steps))
    if step < warm:
        return recipe.lr * (step + 1) / warm
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, recipe.steps - warm)))


def train(
    network: Network,
    pictures: Pictures,
    recipe: Recipe,
    *,
    validation: Pictures | None = None,
    every: int = 100,
    state: Path | None = None,
    resume: bool = False,
    processes: Processes = ALONE,
    stop: Callable[[], bool] = lambda: False,
) -> Generator[Progress, None, None]:
    """Trains `network` in place, on its device, yielding a Progress after each step; at multiples of `every`, and at
    the end, with the figures of the exported network on `validation`.

    With `state`, everything needed to go on is written there at each measurement and when the generator is closed;
    `resume` continues from that file and gives the result of an uninterrupted training. When `stop` says so, training
    ends after the step in hand, its state written.

    Several `processes` that call this alike train one network on their shares of each batch: the same course, up to
    rounding, as one process on the whole batch. The first one measures and writes.

    Raises InputError when the file does not belong to this network and recipe, when the loss is no number any more, or
    when the processes cannot share the batch; LostError when another process has ended.
    """
    share = processes.share(recipe.batch)
    device = next(network.parameters()).device
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    identity = _identity(network, recipe, pictures)
    first, average, spent = 0, math.nan, 0.0
    if resume and state is not None:
        found = processes.from_first(lambda: _read_state(state, identity))
        if found is not None:
            first, average, spent = _restore(found, state, network, optimiser)
    pool = Pool(pictures, (1 << 30) // processes.count)
    weights = class_weights(pool, network.config.classes, recipe.focus, processes)
    weights = None if weights is None else weights.to(device)
    began, done = time.monotonic(), first

    def keep() -> None:
        if state is not None and processes.first:
            content = {
                "identity": identity,
                "step": done,
                "average": average,
                "seconds": spent + time.monotonic() - began,
                "network": network.state_dict(),
                "optimiser": optimiser.state_dict(),
            }
            save_atomically(content, state)

    try:
        called = processes.wrap(network)
        for step in range(first, recipe.steps):
            network.train()
            for group in optimiser.param_groups:
                group["lr"] = _rate(recipe, step)
            optimiser.zero_grad(set_to_none=True)
            part, stopping = _part_of_batch(pool, recipe, step, share, weights, device, processes, stop)
            value = _descend(called, recipe, part, weights, processes)
            if not math.isfinite(value):
                raise InputError(f"the loss became {value} at step {step + 1}; lower --lr")
            optimiser.step()
            done = step + 1
            average = value if math.isnan(average) else 0.98 * average + 0.02 * value
            measured = None
            if validation is not None and (done % every == 0 or done == recipe.steps):
                measured = processes.agree(lambda: _measured(network, validation, device) if processes.first else None)
            if done % every == 0:
                keep()
            yield Progress(done, recipe.steps, average, spent + time.monotonic() - began, measured)
            if (stopping or (processes.count == 1 and stop())) and done < recipe.steps:
                keep()
                return
    except GeneratorExit:
        keep()  # closed between two steps; an exception within a step would leave a state that nobody can continue
        raise
    except RuntimeError as error:
        if not processes.lost(error):
            raise
        raise LostError(f"another process of this training ended; step {done} was the last one") from error
    finally:
        processes.unwrap(network)
        network.eval()


class _Part(NamedTuple):
    """A process's images (B, C, H, W) and labels (B, H, W), and how much more than its share they count."""

    images: Tensor
    labels: Tensor
    scale: Tensor


def _part_of_batch(
    pool: Pool,
    recipe: Recipe,
    step: int,
    share: range,
    weights: Tensor | None,
    device: torch.device,
    processes: Processes,
    stop: Callable[[], bool],
) -> tuple[_Part, bool]:
    """This process's part of a batch, and whether one of the processes wants to stop. InputError if one cannot read."""
    part, problem, counted = None, "", torch.zeros((), device=device)
    try:
        part = read_batch(
            pool, batch=recipe.batch, seed=recipe.seed, step=step, share=share,
            crop=recipe.crop, flip=recipe.flip, noise=recipe.noise,
        )  # fmt: skip
    except InputError as error:
        if processes.count == 1:
            raise
        problem = str(error)
    else:
        part = part[0].to(device, non_blocking=True), part[1].to(device, non_blocking=True)
        counted = pixel_weights(part[1], weights).sum()
    # One exchange: what all pixels count, so that the loss is their mean; who wants to stop; who could not read.
    own = torch.stack([counted, counted.new_tensor(float(stop())), counted.new_tensor(float(part is None))])
    everything = processes.total(own.clone())
    if part is None or (processes.count > 1 and bool(everything[2] > 0)):
        raise InputError(processes.first_problem(problem))
    scale = processes.count * counted / everything[0].clamp(min=1e-12)
    return _Part(*part, scale), bool(everything[1] > 0)


def _descend(called: nn.Module, recipe: Recipe, part: _Part, weights: Tensor | None, processes: Processes) -> float:
    """Leaves the gradient of the mean loss over the pixels of all processes in the parameters; returns that loss."""
    with torch.autocast(part.images.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
        logits = called(part.images)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss = segmentation_loss(recipe.loss, logits, part.labels, tau=recipe.tau, margin=recipe.margin, weights=weights)
    if processes.count > 1:  # gradients are averaged over processes, which need not have equally many pixels
        loss = loss * part.scale
    torch.autograd.backward(loss)
    return float(processes.total(loss.detach().clone())) / processes.count


def _measured(network: Network, pictures: Pictures, device: torch.device) -> Measured:
    frozen = export(network)
    lipschitz = frozen.constants().pixel
    return measure(frozen.to(device), pictures, lipschitz=lipschitz, classes=network.config.classes)


def _identity(network: Network, recipe: Recipe, pictures: Pictures) -> str:
    data = (getattr(pictures, "name", ""), len(pictures))
    return hashlib.sha256(repr((asdict(recipe), asdict(network.config), data)).encode()).hexdigest()


def _read_state(state: Path, identity: str) -> dict[str, Any] | None:
    """The training state in a file, None if there is no file."""
    if not state.exists():
        return None
    try:
        content: dict[str, Any] = torch.load(state, weights_only=True, map_location="cpu")
        belongs = content["identity"] == identity
    except Exception as error:
        raise InputError(
            f"expected a training state in {state}, got an unreadable file ({type(error).__name__})"
        ) from error
    if not belongs:
        raise InputError(
            f"expected {state} to hold this network, data and recipe, got others; give the same options again"
        )
    return content


def _restore(
    content: dict[str, Any], state: Path, network: Network, optimiser: torch.optim.Optimizer
) -> tuple[int, float, float]:
    try:
        network.load_state_dict(copy.deepcopy(content["network"]))
        optimiser.load_state_dict(content["optimiser"])
        return int(content["step"]), float(content["average"]), float(content["seconds"])
    except Exception as error:
        raise InputError(
            f"expected a training state in {state}, got an unreadable file ({type(error).__name__})"
        ) from error
