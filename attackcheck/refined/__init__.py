"""Certificates that look into the last layers of a network: larger radii and smaller losses, from the same weights.

The proof is in docs/refined.md. A network is cut into features and a *tail* (:mod:`~attackcheck.refined.tail`); how
fast each difference of two logits moves with the features follows from the tail's rows, at every place and for every
order of the values that it sorts (:mod:`~attackcheck.refined.slopes`); radii follow from logits and sorted values
(:mod:`~attackcheck.refined.certificate`), and pixels that share features share their costs
(:mod:`~attackcheck.measures.sharing`).
"""

from __future__ import annotations

from attackcheck.refined.certificate import RefinedCertificate, refine

__all__ = ["RefinedCertificate", "refine"]
