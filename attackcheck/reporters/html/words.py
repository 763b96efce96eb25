"""What a verdict means, and what the words of a report mean."""

from __future__ import annotations

import math
from dataclasses import dataclass

from attackcheck.report import Report
from attackcheck.reporters.sentences import closing
from attackcheck.reporters.tables import counted

__all__ = ["WORDS", "VerdictWords", "verdict_of"]


@dataclass(frozen=True)
class VerdictWords:
    """A heading, one sentence with the numbers, and what it means; ``tone`` is bad, warn or good."""

    title: str
    text: str
    meaning: str
    tone: str


def verdict_of(report: Report) -> VerdictWords:
    """The head of the page; never that something is verified."""
    end = closing(report)
    if report.violations:
        meaning = (
            "The certificate promises something that is not so. Each violation is a stored image on which the model "
            "does what the certificate rules out, confirmed in float64 beyond every rounding error; anyone can replay "
            "it. One violation is enough: no radius of this certificate can be relied upon until it is explained."
        )
        return VerdictWords("Unsound", end.text, meaning, "bad")
    if end.unsound:
        meaning = (
            "The attacks broke no radius, but the audit of the weights refutes the claim, or a constant that it counts "
            "a layer with: the certificate rests on something that is not so."
        )
        return VerdictWords("Unsound", end.text, meaning, "bad")
    if end.label:
        meaning = "Nothing is known about this certificate after this run."
        return VerdictWords(end.label.capitalize(), end.text, meaning, "warn")
    meaning = "That is no proof: no attack is complete."
    if math.isfinite(report.limit.least):
        meaning += (
            f" Its weight lies in the detection limit: had all radii been larger by a factor above "
            f"{math.ceil(report.limit.least * 1e4) / 1e4:.4f}, this run would have found it."
        )
    rest = sum(report.unchecked.values())
    if rest:
        meaning += f" {counted(rest, 'pixel')} {'was' if rest == 1 else 'were'} not attacked."
    return VerdictWords("No violation found", end.text, meaning, "warn" if report.stopped else "good")


WORDS = (
    (
        "flip distance d",
        "The smallest L2 norm, over the whole image on the [0, 1] scale, at which any attack was seen to change a "
        "pixel's class.",
    ),
    ("certified radius r", "What the certificate says the flip distance must at least be."),
    ("tightness r / d", "1 is a certificate that is reached exactly, above 1 it is broken."),
    (
        "Lipschitz slack, attack slack",
        "Tightness is their product: how much flatter the network is there than its constant, and how much longer the "
        "perturbation is than a linear network would need. They keep a loose certificate from being taken for a weak "
        "attack.",
    ),
    (
        "violation",
        "Proved, not suspected: exact distance, float64 logits, a measured error at both ends, and a radius that "
        "exceeds the distance by more than its own rounding.",
    ),
    (
        "joint distance",
        "All pixels of an image share the budget of one perturbation; flipping a whole region needs at least this.",
    ),
    (
        "detection limit",
        "The factor by which all radii could have been too large without this run noticing. Zero violations say "
        "nothing beyond it.",
    ),
    (
        "audit",
        "A rigorous upper bound of the network's Lipschitz constant from its weights, rounding included, layer by "
        "layer, with the largest ratio that an ascent could witness from below.",
    ),
)
