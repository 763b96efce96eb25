"""Training of 1-Lipschitz segmentation networks: losses, schedule, and a loop that yields progress and can resume."""

import copy
import hashlib
import math
import time
from collections.abc import Generator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from attackcheck.errors import InputError

from .checkpoint import save_atomically
from .losses import IGNORE, LOSSES, segmentation_loss
from .networks import Network, export

__all__ = ["Measured", "Progress", "Recipe", "measure", "train"]


class Pictures(Protocol):
    """What training needs of data: pictures by index, with a label for every pixel."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> "Picture": ...


class Picture(Protocol):
    """An image (C, H, W) in [0, 1] and its labels (H, W), or None."""

    @property
    def image(self) -> Tensor: ...

    @property
    def labels(self) -> Tensor | None: ...


@dataclass(frozen=True)
class Recipe:
    """What decides the result of a training besides network and data. `crop` is (height, width), None for whole images.

    `tau` is the temperature of the cross-entropies, `margin` a certified radius (margin-ce, hinge, hkr) aimed for,
    `warmup` a share of the steps. `focus` raises the weight of rare classes: frequency to the power -focus. `noise` is
    the standard deviation of Gaussian noise on every picture, for networks that are to be smoothed.
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

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise InputError(f"expected a loss among {', '.join(LOSSES)}, got {self.loss!r}")
        for name in ("steps", "batch", "tau", "lr"):
            if not getattr(self, name) > 0:
                raise InputError(f"expected {name} to be positive, got {getattr(self, name)}")
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


class _Pool:
    """Training pictures, kept as bytes once seen (24 kB for 64x128), so that drawing or reading them is paid once."""

    def __init__(self, pictures: Pictures, limit: int = 1 << 30) -> None:
        self.pictures, self.room = pictures, limit
        self.kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index in self.kept:
            image, labels = self.kept[index]
            return torch.from_numpy(image).float() / 255, torch.from_numpy(labels).long()
        picture = self.pictures[index]
        if picture.labels is None:
            raise InputError(f"expected labels for every training picture, got none for picture {index}")
        stored = (picture.image * 255).round().to(torch.uint8).numpy(), picture.labels.to(torch.uint8).numpy()
        size = stored[0].nbytes + stored[1].nbytes
        if size <= self.room:
            self.room -= size
            self.kept[index] = stored
        return torch.from_numpy(stored[0]).float() / 255, torch.from_numpy(stored[1]).long()


def _batch(pool: _Pool, recipe: Recipe, step: int) -> tuple[Tensor, Tensor]:
    """The batch of one step: a function of (seed, step) alone, so that a resumed training sees the same pictures."""
    rng = np.random.default_rng([recipe.seed, step])
    per_epoch = max(1, len(pool) // recipe.batch)
    order = np.random.default_rng([recipe.seed, 1 << 31, step // per_epoch]).permutation(len(pool))
    chosen = np.resize(np.roll(order, -(step % per_epoch) * recipe.batch), recipe.batch)
    images, labels = [], []
    for index in chosen:
        image, label = pool[int(index)]
        if recipe.crop is not None:
            height, width = recipe.crop
            if image.shape[1] < height or image.shape[2] < width:
                raise InputError(
                    f"expected pictures of at least the crop {height}x{width}, got {image.shape[1]}x{image.shape[2]}"
                )
            top = int(rng.integers(0, image.shape[1] - height + 1))
            left = int(rng.integers(0, image.shape[2] - width + 1))
            image, label = (
                image[:, top : top + height, left : left + width],
                label[top : top + height, left : left + width],
            )
        if recipe.flip and rng.random() < 0.5:
            image, label = image.flip(-1), label.flip(-1)
        if recipe.noise:
            image = image + recipe.noise * torch.from_numpy(rng.standard_normal(image.shape, dtype=np.float32))
        images.append(image)
        labels.append(label)
    return torch.stack(images), torch.stack(labels)


@torch.no_grad()
def measure(model: nn.Module, pictures: Pictures, *, lipschitz: float, classes: int) -> Measured:
    """Accuracy and certified radii m / (sqrt(2) L) of a network in evaluation mode on labelled pictures."""
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    radii, hits = [], []
    for index in range(len(pictures)):
        picture = pictures[index]
        if picture.labels is None:
            raise InputError(f"expected labels for every validation picture, got none for picture {index}")
        logits = model(picture.image[None])
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


def _class_weights(pool: _Pool, classes: int, focus: float) -> Tensor | None:
    if not focus:
        return None
    counts = sum(torch.bincount(pool[i][1].flatten(), minlength=256)[:classes] for i in range(min(200, len(pool))))
    weights = (torch.as_tensor(counts).float() + 1).pow(-focus)
    return weights / weights.mean()


def train(
    network: Network,
    pictures: Pictures,
    recipe: Recipe,
    *,
    validation: Pictures | None = None,
    every: int = 100,
    state: Path | None = None,
    resume: bool = False,
) -> Generator[Progress, None, None]:
    """Trains `network` in place, yielding a Progress after each step; at multiples of `every`, and at the end, with the
    figures of the exported network on `validation`.

    With `state`, everything needed to go on is written there at each measurement and when the generator is closed;
    `resume` continues from that file and gives the result of an uninterrupted training. Raises
    InputError when the file does not belong to this network and recipe, or when the loss is no number any more.
    """
    classes = network.config.classes
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    data = (getattr(pictures, "name", ""), len(pictures))
    identity = hashlib.sha256(repr((asdict(recipe), asdict(network.config), data)).encode()).hexdigest()
    first, average, spent = 0, math.nan, 0.0
    if resume and state is not None and state.exists():
        first, average, spent = _restore(state, identity, network, optimiser)
    pool = _Pool(pictures)
    weights = _class_weights(pool, classes, recipe.focus)
    began, done = time.monotonic(), first

    def keep() -> None:
        if state is not None:
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
        for step in range(first, recipe.steps):
            network.train()
            images, labels = _batch(pool, recipe, step)
            for group in optimiser.param_groups:
                group["lr"] = _rate(recipe, step)
            loss = segmentation_loss(
                recipe.loss, network(images), labels, tau=recipe.tau, margin=recipe.margin, weights=weights
            )
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise InputError(f"the loss became {value} at step {step + 1}; lower --lr")
            optimiser.step()
            done = step + 1
            average = value if math.isnan(average) else 0.98 * average + 0.02 * value
            measured = None
            if validation is not None and (done % every == 0 or done == recipe.steps):
                frozen = export(network)
                measured = measure(frozen, validation, lipschitz=frozen.constants().pixel, classes=classes)
            if done % every == 0:
                keep()
            yield Progress(done, recipe.steps, average, spent + time.monotonic() - began, measured)
    except GeneratorExit:
        keep()  # closed between two steps; an exception within a step would leave a state that nobody can continue
        raise
    finally:
        network.eval()


def _restore(
    state: Path, identity: str, network: Network, optimiser: torch.optim.Optimizer
) -> tuple[int, float, float]:
    try:
        content = torch.load(state, weights_only=True, map_location="cpu")
        if content["identity"] != identity:
            raise InputError(
                f"expected {state} to hold this network, data and recipe, got others; give the same options again"
            )
        network.load_state_dict(copy.deepcopy(content["network"]))
        optimiser.load_state_dict(content["optimiser"])
        return int(content["step"]), float(content["average"]), float(content["seconds"])
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"expected a training state in {state}, got an unreadable file ({type(error).__name__})"
        ) from error
