"""Health checks before anything is attacked, with stable codes.

Errors stop the run, since its result would mean nothing; warnings are shown with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from attackcheck.arithmetic import inexact
from attackcheck.errors import InputError, in_one_line
from attackcheck.memory import ran_out

__all__ = [
    "CODES",
    "check_arithmetic",
    "check_frozen",
    "check_image",
    "check_logits",
    "check_mode",
    "check_model",
    "warnings_of",
]

Model = Callable[[Tensor], Tensor]

CODES = {
    "AC101": "the output is not finite",
    "AC102": "the output has the wrong shape",
    "AC103": "the model is in training mode",
    "AC104": "two evaluations of one image differ",
    "AC105": "the logits of an image depend on the rest of the batch",
    "AC106": "no pixel is certified",
    "AC107": "the gradient is zero or misleading",
    "AC108": "the outputs look like probabilities",
    "AC109": "an image is outside [0, 1] or not finite",
    "AC110": "weights are not finite",
    "AC111": "judged in float32, since the model does not run in float64",
    "AC112": "a counterexample could not be saved",
    "AC113": "pixels were seen flipped inside their radius and not judged for it",
    "AC114": "a requested region is not in an image",
    "AC115": "labels beyond the classes of the model",
    "AC116": "the audit of the weights failed",
    "AC120": "crops do not show the logits of the whole image",
    "AC121": "the certifier fails on gadgets",
    "AC122": "radii change where they must not",
    "AC123": "tied pixels are certified",
    "AC124": "arithmetic below float32 cannot be switched off",
    "AC125": "an image is nearly black",
    "AC126": "a part of an earlier run is damaged",
    "AC130": "a worker died",
    "AC131": "the frozen copy differs from the model",
}


BLACK = 2.0 / 255.0
"""An image without any brighter value was probably divided by 255 twice."""


def check_arithmetic() -> Iterator[tuple[str, str]]:
    """AC124 for every shortcut of the hardware that is still on although it was switched off."""
    for shortcut in inexact():
        yield "AC124", f"{shortcut} cannot be switched off here: attacks run in less than float32"


def check_image(image: Tensor, name: str) -> None:
    """``(C, H, W)``, floating point, finite, in [0, 1].

    Raises:
        InputError: AC109.
    """
    if image.dim() != 3 or not image.is_floating_point():
        kind = f"{image.dtype} of shape {tuple(image.shape)}"
        raise InputError(f"AC109: expected image {name} as floating point (C, H, W), got {kind}")
    if not bool(image.isfinite().all()):
        raise InputError(f"AC109: expected finite numbers in image {name}, got NaN or infinity")
    low, high = float(image.min()), float(image.max())
    if low < 0.0 or high > 1.0:
        raise InputError(
            f"AC109: expected image {name} with values in [0, 1], got {low:g} to {high:g}; "
            "put any normalisation inside the model, where its Lipschitz constant counts"
        )


def check_model(model: Model) -> None:
    """Weights, before the first forward pass.

    Raises:
        InputError: AC110.
    """
    if not isinstance(model, nn.Module):
        return
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InputError(f"AC110: expected finite weights, got NaN or infinity in {name!r}")


def check_mode(model: Model, image: Tensor, *, own: bool) -> None:
    """Bring a frozen copy into evaluation mode, if that changes nothing at the image ``(1, C, H, W)``.

    Args:
        model: the copy, or where none can be made the user's model.
        image: any image.
        own: whether it is a copy; the user's model stays as it is.

    Raises:
        InputError: AC103, where training mode computes something else: then nobody knows which of the two is claimed.
    """
    if not isinstance(model, nn.Module) or not any(module.training for module in model.modules()):
        return
    if not own:
        raise InputError("AC103: expected a model in evaluation mode, got training mode; call model.eval()")
    with torch.no_grad():
        try:
            training = model(image.clone())
            same = torch.equal(training, model.eval()(image.clone()))
        except (Exception, SystemExit):
            same = True  # what is wrong there is said when the logits are checked
    model.eval()
    if not same:
        raise InputError("AC103: expected a model in evaluation mode, got training mode; call model.eval()")


def check_frozen(model: Model, copy: Model, image: Tensor) -> Iterator[tuple[str, str]]:
    """AC131 where the plain layers that are examined do not compute what the parametrised model does.

    Args:
        model: as given, on any device; it is copied, since some layers change at each forward pass.
        copy: its frozen copy in evaluation mode.
        image: ``(1, C, H, W)``, where the copy is.

    Raises:
        InputError: AC131, if logits differ by more than 0.1 % of the largest.
    """
    if not isinstance(model, nn.Module) or not any(parametrize.is_parametrized(part) for part in model.modules()):
        return
    try:
        with torch.no_grad():
            twin = deepcopy(model).eval().to(image.device)
            first, second, frozen = twin(image.clone()), twin(image.clone()), copy(image.clone())
            scale = float(frozen.abs().max())
            apart = max(float((first - frozen).abs().max()), float((second - frozen).abs().max()))
    except (Exception, SystemExit):
        return  # what is wrong there is said when the logits are checked
    if not apart <= 1e-3 * scale:
        raise InputError(
            f"AC131: expected the model to compute what its frozen copy does, logits differ by {apart:.3g} of "
            f"{scale:.3g}; if it iterates towards its weights, run it in training mode until they stand still"
        )
    if apart > 1e-5 * scale:
        yield "AC131", f"logits of the model and of its frozen copy, which is examined, differ by {apart:.3g}"


def check_logits(model: Model, image: Tensor) -> Tensor:
    """Logits ``(1, K, H, W)`` of one image ``(1, C, H, W)``.

    Raises:
        InputError: AC101, AC102, AC104, or what the model says of the image.
    """
    try:
        with torch.no_grad():
            logits = model(image)
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        if ran_out(error):
            raise
        shape = tuple(image.shape[1:])
        raise InputError(f"the model does not accept images of shape {shape}: {in_one_line(error)}") from error
    if not isinstance(logits, Tensor) or not logits.is_floating_point():
        raise InputError(
            f"AC102: expected logits as one floating-point tensor (B, K, H, W), got {type(logits).__name__}"
        )
    expected = (1, *image.shape[2:])
    if logits.dim() != 4 or (logits.shape[0], *logits.shape[2:]) != expected or logits.shape[1] < 2:
        raise InputError(
            f"AC102: expected logits of shape (1, K, {image.shape[2]}, {image.shape[3]}) with K >= 2 classes, "
            f"got {tuple(logits.shape)}"
        )
    if not bool(logits.isfinite().all()):
        raise InputError("AC101: expected finite logits, got NaN or infinity on a clean image")
    return logits


def warnings_of(
    model: Model, image: Tensor, logits: Tensor, radius: Tensor, precision: str
) -> Iterator[tuple[str, str]]:
    """Codes and sentences about the first image ``(1, C, H, W)`` and its logits.

    Raises:
        InputError: AC104, where repeating an evaluation changes its result; AC105, AC107.
    """
    scale = float(logits.abs().max())
    with torch.no_grad():
        again = model(image)
        other = image.flip(3)
        try:
            # Every position of a batch is tried: it may be the first or the last row alone that depends on others.
            both = torch.cat([model(torch.cat([other, image]))[1:], model(torch.cat([image, other, image]))[::2]])
        except (Exception, SystemExit) as error:
            if not ran_out(error):
                raise InputError(
                    f"AC105: expected a model of batches (B, C, H, W), it fails on two images: {in_one_line(error)}"
                ) from error
            both = logits  # images that do not fit side by side are attacked one by one
    if not torch.equal(again, logits):
        change = float((again - logits).abs().max())
        if change > 1e-5 * scale:
            raise InputError(
                f"AC104: expected the same logits for the same image, two evaluations differ by {change:.3g}; "
                "a certificate of a random model needs another kind of test"
            )
    change = float((both - logits).abs().max())
    # Another batch size may take another algorithm, which rounds in another way.
    unit = max(torch.finfo(logits.dtype).eps, torch.finfo(getattr(torch, precision)).eps)
    if change > max(1e-3, 16.0 * unit) * scale:
        raise InputError(
            f"AC105: expected rows that do not depend on each other, the logits of an image change by {change:.3g} "
            "with the rest of the batch; look for statistics over the batch, or for reshapes that mix rows"
        )
    if float(image.max()) <= BLACK:
        yield "AC125", f"the brightest value of the first image is {float(image.max()):.3g}: was it scaled twice?"
    if not bool((radius > 0).any()):
        yield "AC106", "every certified radius of the first image is 0: nothing is claimed there"
    totals = logits.sum(dim=1)
    if float(logits.min()) >= 0.0 and bool(((totals - 1.0).abs() < 1e-3).all()):
        yield "AC108", "the outputs look like probabilities: L must be that of the probabilities, not of the logits"
    if precision != "float64":
        yield "AC111", "the model does not run in float64: verdicts rest on float32 with a measured error"
    with torch.enable_grad():
        probe = image.clone().requires_grad_(True)
        outputs = model(probe)
    if not outputs.requires_grad:
        raise InputError("AC107: expected logits that can be differentiated, no gradient flows back to the image")
