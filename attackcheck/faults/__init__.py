"""The catalogue of planted faults: small certificates that are wrong in one known way, and sound ones that tempt.

A family is one file with a tuple `CASES`; :data:`CATALOGUE` puts them together. What a case is stands in `case.py`,
how it is proved in `proofs.py`, how the checker is measured against it in `selftest.py`.
"""

from __future__ import annotations

from attackcheck.faults import (
    arithmetic,
    composition,
    constant,
    evaluation,
    factors,
    formula,
    measure,
    network,
    orthogonal,
    plumbing,
    preprocessing,
    refined,
    rivals,
    scope,
    sound,
    state,
    unfinished,
    wrapped,
)
from attackcheck.faults.case import Built, Case, Family, Proof

__all__ = ["CATALOGUE", "Built", "Case", "Family", "Proof"]

CATALOGUE: tuple[Case, ...] = (
    *constant.CASES,
    *orthogonal.CASES,
    *unfinished.CASES,
    *composition.CASES,
    *factors.CASES,
    *preprocessing.CASES,
    *state.CASES,
    *formula.CASES,
    *rivals.CASES,
    *refined.CASES,
    *plumbing.CASES,
    *scope.CASES,
    *arithmetic.CASES,
    *measure.CASES,
    *network.CASES,
    *evaluation.CASES,
    *sound.CASES,
    *wrapped.CASES,
)
