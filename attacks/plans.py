"""Plans: which attacks run on which objectives, with which options. Plain data, read from the table below or from TOML.

name = "mine"                  # optional, the file's name by default
[[stage]]
attack = "ddn"                 # a name of attackcheck.attacks.registry
objective = "pixel"            # "pixel" (default), "region", "image"; "map" for lipschitz and pairs (or "pixel")
pixels = 8                     # at most this many of the chosen pixels of each image; all by default
unflipped = true               # only pixels that no earlier stage could flip; false by default
loss = "ce"                    # of attackcheck.attacks.objectives; "margin" by default (and all that guided knows)
eps = [0.1, 0.3]               # for attacks at a fixed budget: all of these
steps = 100                    # any other key is an option of the attack
"""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from attackcheck.errors import InputError

from . import registry

__all__ = ["Plan", "Stage", "plan", "plan_of_attacks", "with_regions"]

_GIVEN = {"model", "images", "objective", "box", "generator", "eps"}  # what the engine passes, not the plan


@dataclass(frozen=True)
class Stage:
    """One attack on one kind of objective; raises InputError if the attack does not know an option or the objective."""

    attack: str
    objective: str = "pixel"
    pixels: int | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    eps: tuple[float, ...] = ()
    loss: str = "margin"
    unflipped: bool = False

    def __post_init__(self) -> None:
        attack = registry.get(self.attack)
        where = f"stage {self.attack!r}"
        if self.objective not in attack.objectives:
            known = ", ".join(sorted(attack.objectives))
            raise InputError(f"{where}: expected an objective among {known}, got {self.objective!r}")
        parameters = inspect.signature(attack.function).parameters
        options = [name for name in parameters if name not in _GIVEN]
        for name, value in self.options.items():
            if name not in options:
                raise InputError(f"{where}: unknown option {name!r}, expected one of {', '.join(options)}")
            _check_option(f"{where}: {name}", value, str(parameters[name].annotation), name in _AT_LEAST_ONE)
        if "eps" in parameters and not self.eps:
            raise InputError(f"{where}: attacks at a fixed budget, give eps = [...]")
        if self.eps and "eps" not in parameters:
            raise InputError(f"{where}: finds its own distance, leave eps out")
        if not all(0 < eps <= _LARGEST for eps in self.eps):
            raise InputError(f"{where}: expected eps above 0 and at most {_LARGEST:g}, got {list(self.eps)}")
        if self.pixels is not None and (self.objective != "pixel" or self.pixels < 1):
            raise InputError(f"{where}: pixels = {self.pixels} needs the objective 'pixel' and at least 1")
        if self.unflipped and self.objective != "pixel":
            raise InputError(f"{where}: unflipped needs the objective 'pixel'")
        _check_loss(where, self.loss, self.objective)


_AT_LEAST_ONE = {
    "steps", "planes", "classes", "rays", "search", "searches", "restarts", "directions", "samples", "rounds",
    "starts", "places"
}  # fmt: skip
_LARGEST = 1e6


def _check_option(where: str, value: object, annotation: str, positive: bool) -> None:
    """A value of the type that the attack's signature asks for, in a range that means something."""
    numbers = list(value) if isinstance(value, tuple | list) else [value]
    if "Sequence" in annotation:
        if not isinstance(value, tuple | list) or not numbers:
            raise InputError(f"{where}: expected a list of numbers, got {value!r}")
        if "int" in annotation and not all(isinstance(number, int) for number in numbers):
            raise InputError(f"{where}: expected a list of whole numbers, got {value!r}")
    elif annotation.startswith("int"):
        if not isinstance(value, int) or isinstance(value, bool) or not int(positive) <= value <= _LARGEST:
            raise InputError(f"{where}: expected a whole number of at least {int(positive)}, got {value!r}")
        return
    for number in numbers:
        if not isinstance(number, int | float) or isinstance(number, bool) or not 0 < number <= _LARGEST:
            raise InputError(f"{where}: expected a number above 0, got {value!r}")


def _check_loss(where: str, loss: str, objective: str) -> None:
    from .objectives import LOSSES

    allowed = {"pixel": LOSSES[:4], "map": ("margin",)}.get(objective, LOSSES)
    if loss not in allowed:
        raise InputError(f"{where}: expected a loss among {', '.join(allowed)}, got {loss!r}")


@dataclass(frozen=True)
class Plan:
    """Stages in the order in which they run."""

    name: str
    stages: tuple[Stage, ...]


def _quick() -> tuple[Stage, ...]:
    # five turns instead of a longer search along the first ray: as many passes, a tenth of the excess distance;
    # one point of a search, for a second one costs a tenth of the time and gains nothing that is seen; a third class
    # costs a backward pass, and is sometimes the nearest: two others have smaller margins, but flatter ones
    return (
        Stage("linearised", options={"classes": 3, "search": 1, "iterations": 5, "refine": 1, "anew": 16}),
        # far boundaries of networks without constraints are not always reached in seven passes
        Stage("linearised", unflipped=True, options={"rays": 2, "search": 4, "refine": 4}),
    )


_QUICK_REGIONS = Stage("cutting", objective="region", options={"steps": 6, "planes": 6, "refine": 3})


def _standard() -> tuple[Stage, ...]:
    return (
        # a second ray, and those down gradients seen from afar, lead out of local minima that the first one ends in;
        # leaps are for pixels that have many, as on networks without constraints
        Stage(
            "linearised",
            options={
                "classes": 4,
                "rays": 2,
                "scouts": 4,
                "search": 1,
                "refine": 4,
                "leaps": (300, 200, 100),
                "crossings": 3,
            },
        ),
        Stage("ddn", pixels=2, options={"steps": 40}),
        Stage("cw", pixels=1, options={"steps": 20, "searches": 3}),
        Stage("foolbox.ddn", pixels=2),
        Stage("boundary", unflipped=True),
        Stage("cutting", objective="region"),
        Stage("ddn", objective="region", options={"steps": 40}),
        # as many passes as PGD with 15 steps, and at small eps twice the flips of its best loss on trained networks
        Stage("guided", objective="image", eps=(0.1, 0.3, 1.0)),
        Stage("lipschitz", objective="map", options={"steps": 28}),
        # the claim is about all images: a constant may fail far from the data only
        Stage("pairs", objective="map", options={"steps": 12, "radii": (1.0, 10.0)}),
        # a constant of single pixels is not seen on the whole map
        Stage("peaks", objective="map"),
    )


def _thorough() -> tuple[Stage, ...]:
    return (
        *_standard()[:1],  # other local minima than the longer run below: more turns are no superset of fewer
        Stage(
            "linearised",
            options={
                "classes": 20,
                "rays": 4,
                "scouts": 12,
                "iterations": 40,
                "leaps": (500, 500, 300),
                "strides": (8.0, 2.0, 8.0),
                "crossings": 6,
            },
        ),
        Stage("ddn", options={"steps": 100, "classes": 20}),
        Stage("fmn", options={"steps": 100, "classes": 20}),
        Stage("cw", pixels=16, options={"steps": 50, "searches": 6}),
        Stage("foolbox.ddn", pixels=8, options={"steps": 100}),
        Stage("foolbox.deepfool", pixels=8),
        Stage("foolbox.cw", pixels=2),
        Stage("boundary", pixels=8),
        Stage("boundary", unflipped=True),
        Stage("cutting", objective="region", options={"steps": 60, "planes": 60, "classes": 4}),
        Stage("linearised", objective="region", options={"rays": 4, "descent": 80}),
        Stage("ddn", objective="region", options={"steps": 100}),
        Stage("cw", objective="region", options={"steps": 50, "searches": 5}),
        Stage("pgd", objective="region", options={"steps": 40, "restarts": 3}, eps=(0.3, 1.0, 3.0)),
        Stage("guided", objective="image", options={"steps": 40}, eps=(0.05, 0.1, 0.3, 1.0, 3.0)),
        Stage("pgd", objective="image", options={"steps": 40}, eps=(0.1, 0.3, 1.0), loss="cospgd"),
        Stage("pgd", objective="image", options={"steps": 40}, eps=(0.1, 0.3, 1.0), loss="js"),
        Stage("pgd", objective="image", options={"steps": 40}, eps=(0.1, 0.3, 1.0), loss="segpgd"),
        Stage("lipschitz", pixels=16, options={"steps": 20, "radii": (0.01, 0.1, 1.0)}),
        Stage("peaks", objective="map", options={"places": 16, "samples": 32, "steps": 40, "radii": (0.01, 0.1, 1.0)}),
        Stage("pairs", pixels=4, options={"steps": 30, "starts": 4}),
        Stage("pairs", objective="map", options={"steps": 60, "starts": 2, "radii": (0.3, 1.0, 3.0, 10.0, 30.0)}),
        Stage("lipschitz", objective="map", options={"steps": 150, "radii": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)}),
    )


_PLANS = {"quick": _quick, "standard": _standard, "thorough": _thorough}


def plan(name: str | Path) -> Plan:
    """The plan "quick", "standard" or "thorough", or one read from a TOML file; raises InputError."""
    if str(name) in _PLANS:
        return Plan(str(name), _PLANS[str(name)]())
    path = Path(name)
    if path.suffix != ".toml":
        raise InputError(f"expected a plan among {', '.join(_PLANS)}, or a .toml file, got {str(name)!r}")
    if path.is_fifo():  # its writer would be waited for
        raise InputError(f"expected a plan in {path}, which is not a regular file")
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"expected a plan in {path}, got: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"expected TOML in {path}, got: {error}") from error
    return _from_toml(content, path)


def _from_toml(content: Mapping[str, object], path: Path) -> Plan:
    unknown = set(content) - {"name", "stage"}
    stages = content.get("stage")
    if unknown or not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        got = ", ".join(sorted(content)) or "nothing"
        raise InputError(f"expected [[stage]] tables and at most a name in {path}, got {got}")
    title = content.get("name", path.stem)
    if not isinstance(title, str):
        raise InputError(f"expected a string as name in {path}, got {title!r}")
    try:
        return Plan(title, tuple(_stage(stage) for stage in stages))
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _stage(table: Mapping[str, object]) -> Stage:
    rest = dict(table)
    attack, objective, loss = (rest.pop(key, fallback) for key, fallback in _STRINGS.items())
    pixels, eps, unflipped = rest.pop("pixels", None), rest.pop("eps", ()), rest.pop("unflipped", False)
    if not isinstance(attack, str) or not isinstance(objective, str) or not isinstance(loss, str):
        raise InputError(f"expected strings as attack, objective and loss, got {attack!r}, {objective!r}, {loss!r}")
    if pixels is not None and (not isinstance(pixels, int) or isinstance(pixels, bool)):
        raise InputError(f"expected a whole number as pixels, got {pixels!r}")
    if not isinstance(unflipped, bool):
        raise InputError(f"expected true or false as unflipped, got {unflipped!r}")
    budgets: list[float] = []
    for value in eps if isinstance(eps, list | tuple) else [eps]:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise InputError(f"expected numbers as eps, got {eps!r}")
        budgets.append(float(value))
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in rest.items()}
    return Stage(attack, objective, pixels, options, tuple(budgets), loss, unflipped)


_STRINGS = {"attack": None, "objective": "pixel", "loss": "margin"}

_BUDGETS = (0.05, 0.1, 0.2, 0.5, 1.0)


def plan_of_attacks(names: Sequence[str]) -> Plan:
    """A plan of these attacks at their defaults, on all chosen pixels, or on regions, images or the whole map."""
    if not names:
        raise InputError(f"expected at least one attack among {', '.join(registry.names())}")
    stages = []
    for name in names:
        attack = registry.get(name)
        fixed = "eps" in inspect.signature(attack.function).parameters
        alone = "pixel" if "pixel" in attack.objectives else "image" if fixed else "region"
        objective = alone if attack.flips else "map"
        stages.append(Stage(name, objective, eps=_BUDGETS if fixed else ()))
    return Plan(",".join(names), tuple(stages))


def with_regions(chosen: Plan) -> Plan:
    """The plan, with region stages where it has none: for whoever asks for regions.

    Raises:
        InputError: if none of its attacks takes regions.
    """
    if any(stage.objective == "region" for stage in chosen.stages):
        return chosen
    if chosen == plan("quick"):
        return Plan(chosen.name, (*chosen.stages, _QUICK_REGIONS))
    names = {s.attack: None for s in chosen.stages if "region" in registry.get(s.attack).objectives and not s.eps}
    if not names:
        raise InputError(f"expected an attack that takes regions in the plan {chosen.name!r}, such as ddn; found none")
    return Plan(chosen.name, (*chosen.stages, *(Stage(name, "region") for name in names)))
