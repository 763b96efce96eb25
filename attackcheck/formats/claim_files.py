"""A claim in a small TOML or JSON file.

kind = "lipschitz"         # L, and optionally scope, pixel (a constant for single pixels) and [layers]
L = 1.0
scope = "joint"

kind = "class-pair"        # L of everything up to the last layer, and that layer by its dotted name, or its weight
L = 1.0
layer = "head"

kind = "radii"             # an .npz beside this file, and optionally alpha (or confidence), per and independent
file = "radii.npz"
alpha = 0.001

[[metric]]                 # any number of them, also without any other claim: see attackcheck.metrics
measure = "accuracy"
eps = 0.1
value = 0.837

Nothing in such a file is run: a certifier that is code is named on the command line.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attackcheck.claims import Claim, ClassPairClaim, LipschitzClaim
from attackcheck.confidence import Confidence
from attackcheck.errors import InputError, in_one_line, printable
from attackcheck.formats.certifiers import read_radii

__all__ = ["ClaimFile", "last_layer", "read_claim"]

LARGEST = 1 << 26
"""Bytes; the rows of a last layer fit into far fewer."""

_FIELDS: dict[str, tuple[set[str], set[str]]] = {  # required, optional
    "lipschitz": ({"L"}, {"scope", "pixel", "layers", "source"}),
    "class-pair": ({"L"}, {"layer", "weight", "source"}),
    "radii": ({"file"}, {"alpha", "confidence", "per", "independent", "source"}),
}


@dataclass(frozen=True)
class ClaimFile:
    """What a file says; class-pair claims are complete only with the model that they are about."""

    table: Mapping[str, Any]
    path: Path

    @property
    def metrics_only(self) -> bool:
        """Whether it has claims about measures and nothing else."""
        return "kind" not in self.table

    @property
    def has_metrics(self) -> bool:
        """Whether it has claims about measures."""
        return "metric" in self.table

    def about(self, model: Callable[[Tensor], Any]) -> Claim:
        """The claim.

        Raises:
            InputError: for values that no claim takes, or a layer that the model does not have.
        """
        table, source = self.table, str(self.table.get("source", self.path))
        if table["kind"] == "lipschitz":
            layers = table.get("layers")
            if layers is not None and not isinstance(layers, dict):
                raise InputError(f"expected [layers] with a constant for each in {self.path}, got {layers!r}")
            pixel = None if "pixel" not in table else self._number("pixel")
            scope = table.get("scope", "joint")
            return LipschitzClaim(self._number("L"), scope, pixel=pixel, source=source, layers=layers)
        if table["kind"] == "class-pair":
            return ClassPairClaim(self._number("L"), self._weight(model), source=source)
        file = table["file"]
        if not isinstance(file, str) or not file.endswith(".npz"):
            raise InputError(f"expected file = an .npz in {self.path}; a certifier that is code is given as --radii")
        claim = read_radii(self.path.parent / file)
        told = {name: table[name] for name in ("alpha", "confidence", "per", "independent") if name in table}
        sure = Confidence.told(told, str(self.path))
        return replace(claim, source=source, confidence=sure or claim.confidence)

    def _number(self, name: str) -> float:
        value = self.table[name]
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise InputError(f"expected a number as {name} in {self.path}, got {value!r}")
        return value

    def _weight(self, model: Callable[[Tensor], Any]) -> Tensor:
        if ("layer" in self.table) == ("weight" in self.table):
            raise InputError(f"expected either layer or weight of a class-pair claim in {self.path}")
        if "layer" in self.table:
            return last_layer(model, str(self.table["layer"]))
        try:
            return torch.tensor(self.table["weight"], dtype=torch.float64)
        except (ValueError, TypeError, RuntimeError) as error:
            raise InputError(f"expected weight = rows of numbers in {self.path}: {in_one_line(error)}") from error


def last_layer(model: Callable[[Tensor], Any], name: str) -> Tensor:
    """The rows ``(K, C)`` of a 1x1 convolution (or linear layer) of the model, by its dotted name.

    Raises:
        InputError: if there is no such layer, or it is another kind of layer.
    """
    layers = dict(model.named_modules()) if isinstance(model, nn.Module) else {}
    if name not in layers:
        known = [key for key, layer in layers.items() if key and isinstance(getattr(layer, "weight", None), Tensor)]
        raise InputError(
            f"expected the dotted name of the model's last layer, got {name!r}; "
            f"there are {', '.join(known[-5:]) or 'none'}"
        )
    weight = getattr(layers[name], "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() not in (2, 4) or any(size != 1 for size in weight.shape[2:]):
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else None
        raise InputError(f"expected a 1x1 convolution as {name!r}, got a weight of shape {shape}")
    if getattr(layers[name], "groups", 1) != 1:
        raise InputError(f"expected a 1x1 convolution as {name!r}, got one in groups")
    return weight.detach().double().flatten(1).cpu()


def read_claim(path: str | Path) -> ClaimFile:
    """Read a claim from TOML or JSON.

    Raises:
        InputError: for anything else.
    """
    path = Path(path)
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            raise InputError(f"expected a claim in a small TOML or JSON file, found none at {path}")
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"expected a claim in {path}, got: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # both parsers, and Unicode
        raise InputError(f"expected TOML or JSON in {path}, got: {in_one_line(error)}") from error
    if not isinstance(content, dict):
        raise InputError(f"expected kind = lipschitz, class-pair or radii in {path}, got no table")
    if "kind" not in content:
        if set(content) == {"metric"}:
            return ClaimFile(content, path)
        raise InputError(f"expected kind = {', '.join(_FIELDS)}, or [[metric]] tables, in {path}")
    kind = content["kind"]
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise InputError(f"expected kind = {', '.join(_FIELDS)} in {path}, got {printable(str(kind)[:60])!r}")
    required, optional = _FIELDS[kind]
    unknown = sorted(set(content) - required - optional - {"kind", "metric"})
    missing = sorted(required - set(content))
    if unknown or missing:
        got = f"an unknown {printable(unknown[0][:60])!r}" if unknown else f"no {missing[0]!r}"
        raise InputError(f"expected the fields of a {kind} claim in {path}, got {got}")
    return ClaimFile(content, path)
