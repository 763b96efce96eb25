"""Attacks of foolbox, torchattacks and adv-lib on single pixels, seen by them as a classifier of the pixel's window.

Each runs with its documented defaults, but for what small logits and small distances need, in terms of D, the
linearised distance in the library's units, and of the clean margin m. Logits are scaled so that m = 12 (cross-entropy
on unscaled logits of a Lipschitz network pushes towards all classes at once). Finding D and m is not timed.
Budgets are those of the papers with `full`, else smaller ones; each row of the tables states its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attackcheck.attacks.views import PixelView

from .libraries import library

__all__ = ["PEERS", "Peer", "Sight"]


@dataclass
class Sight:
    """A pixel as a library sees it: a classifier, images (B, C, h, w) in [0, 1] and labels (B,)."""

    view: PixelView
    seen: Tensor
    label: Tensor
    distance: float  # D in the view's units, the largest of the batch
    margin: float  # of the scaled logits
    classes: int
    full: bool

    def pick(self, quick: int, full: int) -> int:
        """The number of steps of a quick or a full run."""
        return full if self.full else quick

    def adam(self) -> float:
        """Adam's rate for first steps of D / 10 in tanh space: tanh halves steps, entries share the norm."""
        points = self.seen.detach().requires_grad_()
        logits = self.view(points)
        (gradient,) = torch.autograd.grad(logits.gather(1, self.label[:, None]).sum(), points)
        one = gradient.flatten(1)
        entries = float((one.abs().sum(1).square() / one.square().sum(1).clamp_min(1e-30)).mean())
        return 0.2 * self.distance / math.sqrt(max(entries, 1.0))


@dataclass(frozen=True)
class Peer:
    """One attack of a library; `budget` says what differs from its defaults."""

    name: str
    library: str
    budget: Callable[[bool], str]
    run: Callable[[Sight], Tensor | list[Tensor]]
    slow: bool = False  # seconds per pixel: not among those that run by default


PEERS: dict[str, Peer] = {}


def _peer(
    name: str, module: str, quick: str, full: str, *, slow: bool = False
) -> Callable[[Callable[[Sight], Tensor | list[Tensor]]], None]:
    def register(run: Callable[[Sight], Tensor | list[Tensor]]) -> None:
        PEERS[name] = Peer(name, module, lambda whole: full if whole else quick, run, slow)

    return register


GRID = (1.0, 1.15, 1.35, 1.7, 2.5)
"""Budgets of attacks at a fixed one, in units of D."""


def _foolbox(sight: Sight, kind: str, settings: dict[str, object], **call: object) -> list[Tensor]:
    fb = library("foolbox")
    model = fb.PyTorchModel(sight.view, bounds=(0, 1), device=sight.seen.device)
    attack = getattr(fb.attacks, kind)(**settings)
    points = attack(model, sight.seen, fb.Misclassification(sight.label), epsilons=call.get("epsilons"))[1]
    return list(points) if isinstance(points, list) else [points]


@_peer("foolbox DDN", "foolbox", "100 steps from D", "100 steps from D")
def _(sight: Sight) -> list[Tensor]:
    return _foolbox(sight, "DDNAttack", {"init_epsilon": sight.distance, "steps": 100})


@_peer("foolbox CW", "foolbox", "5 x 50 steps, c 4 D²/m, first steps D/10", "9 x 200 steps, c 4 D²/m, first steps D/10")
def _(sight: Sight) -> list[Tensor]:
    settings = {
        "binary_search_steps": sight.pick(5, 9),
        "steps": sight.pick(50, 200),
        "stepsize": sight.adam(),
        "initial_const": 4 * sight.distance**2 / sight.margin,
        "abort_early": False,
    }
    return _foolbox(sight, "L2CarliniWagnerAttack", settings)


@_peer("foolbox DeepFool", "foolbox", "50 steps", "50 steps")
def _(sight: Sight) -> list[Tensor]:
    return _foolbox(sight, "L2DeepFoolAttack", {"steps": 50, "candidates": min(10, sight.classes)})


@_peer("foolbox FMN", "foolbox", "100 steps of at most D", "100 steps of at most D")
def _(sight: Sight) -> list[Tensor]:
    return _foolbox(sight, "L2FMNAttack", {"steps": 100, "max_stepsize": sight.distance})


@_peer("foolbox PGD", "foolbox", "5 budgets x 20 steps of .15", "5 budgets x 50 steps of .15")
def _(sight: Sight) -> list[Tensor]:
    settings = {"steps": sight.pick(20, 50), "rel_stepsize": 0.15, "random_start": False}
    epsilons = [part * sight.distance for part in GRID]
    return _foolbox(sight, "L2ProjectedGradientDescentAttack", settings, epsilons=epsilons)


@_peer("foolbox Brendel-Bethge", "foolbox", "50 steps from blended noise", "50 steps from blended noise", slow=True)
def _(sight: Sight) -> list[Tensor]:
    return _foolbox(sight, "L2BrendelBethgeAttack", {"steps": 50})


def _torchattacks(sight: Sight, kind: str, settings: dict[str, object]) -> Tensor:
    attack = getattr(library("torchattacks"), kind)(sight.view, **settings)
    attack.set_device(sight.seen.device)
    result: Tensor = attack(sight.seen, sight.label)
    return result


@_peer("torchattacks PGDL2", "torchattacks", "5 budgets x 10 steps of .2", "5 budgets x 50 steps of .2")
def _(sight: Sight) -> list[Tensor]:
    steps = sight.pick(10, 50)
    return [
        _torchattacks(
            sight,
            "PGDL2",
            {"eps": part * sight.distance, "alpha": 0.2 * part * sight.distance, "steps": steps, "random_start": False},
        )
        for part in GRID
    ]


@_peer("torchattacks APGD", "torchattacks", "5 budgets x 10 steps", "5 budgets x 50 steps")
def _(sight: Sight) -> list[Tensor]:
    steps = sight.pick(10, 50)
    settings = [{"norm": "L2", "eps": part * sight.distance, "steps": steps} for part in GRID]
    return [_torchattacks(sight, "APGD", one) for one in settings]


@_peer("torchattacks CW", "torchattacks", "100 steps, c 6 D²/m", "1000 steps, c 6 D²/m")
def _(sight: Sight) -> Tensor:
    const = 6 * sight.distance**2 / sight.margin
    # its loss is wrong for negative logits
    with torch.no_grad():
        z = sight.view(sight.seen)
    sight.view.shift = float(4 * (z.amax() - z.amin()) - z.amin()) / sight.view.scale
    settings = {"c": const, "steps": sight.pick(100, 1000), "lr": sight.adam()}
    return _torchattacks(sight, "CW", settings)


@_peer("torchattacks FAB", "torchattacks", "10 steps", "100 steps")
def _(sight: Sight) -> Tensor:
    settings = {"norm": "L2", "eps": 1e6, "steps": sight.pick(10, 100), "n_classes": sight.classes}
    return _torchattacks(sight, "FAB", settings)


@_peer("torchattacks DeepFool", "torchattacks", "50 steps", "50 steps")
def _(sight: Sight) -> Tensor:
    return _torchattacks(sight, "DeepFool", {"steps": 50})


def _adv_lib(sight: Sight, function: Callable[..., Tensor], **settings: object) -> Tensor:
    return function(sight.view, sight.seen.clone(), sight.label.clone(), **settings)


@_peer("adv-lib DDN", "adv_lib", "100 steps from D, not quantised", "100 steps from D, not quantised")
def _(sight: Sight) -> Tensor:
    return _adv_lib(sight, library("adv_lib.attacks").ddn, init_norm=sight.distance, levels=None)


@_peer("adv-lib CW", "adv_lib", "5 x 50 steps, c 4 D²/m, first steps D/10", "9 x 200 steps, c 4 D²/m, first steps D/10")
def _(sight: Sight) -> Tensor:
    return _adv_lib(
        sight,
        library("adv_lib.attacks").carlini_wagner_l2,
        learning_rate=sight.adam(),
        initial_const=4 * sight.distance**2 / sight.margin,
        binary_search_steps=sight.pick(5, 9),
        max_iterations=sight.pick(50, 200),
        abort_early=False,
    )


@_peer("adv-lib DeepFool", "adv_lib", "100 steps", "100 steps")
def _(sight: Sight) -> Tensor:
    return _adv_lib(sight, library("adv_lib.attacks").df)


@_peer("adv-lib SuperDeepFool", "adv_lib", "100 steps", "100 steps")
def _(sight: Sight) -> Tensor:
    return _adv_lib(sight, library("adv_lib.attacks").sdf)


@_peer("adv-lib FAB", "adv_lib", "20 steps", "100 steps")
def _(sight: Sight) -> Tensor:
    return _adv_lib(sight, library("adv_lib.attacks").fab, norm=2, n_iter=sight.pick(20, 100))


@_peer("adv-lib trust region", "adv_lib", "100 steps of D/50", "100 steps of D/50")
def _(sight: Sight) -> Tensor:
    return _adv_lib(sight, library("adv_lib.attacks").tr, eps=sight.distance / 50)


@_peer("adv-lib FMN", "adv_lib", "100 steps from D", "1000 steps from D")
def _(sight: Sight) -> Tensor:
    attack = library("adv_lib.attacks").fmn
    return _adv_lib(sight, attack, norm=2, steps=sight.pick(100, 1000), α_init=sight.distance)


@_peer("adv-lib ALMA", "adv_lib", "100 steps from D", "1000 steps from D")
def _(sight: Sight) -> Tensor:
    attack = library("adv_lib.attacks").alma
    return _adv_lib(sight, attack, num_steps=sight.pick(100, 1000), init_lr_distance=sight.distance)


@_peer("adv-lib minimal APGD", "adv_lib", "8 searches x 20 steps up to 2 D", "20 searches x 100 steps up to 2 D")
def _(sight: Sight) -> Tensor:
    attack = library("adv_lib.attacks.auto_pgd").minimal_apgd
    searches, steps = sight.pick(8, 20), sight.pick(20, 100)
    return _adv_lib(sight, attack, norm=2, max_eps=2 * sight.distance, binary_search_steps=searches, n_iter=steps)
