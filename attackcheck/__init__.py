"""attackcheck tries to break robustness certificates of semantic-segmentation networks, and proves what it broke.

The public face is lazy: ``import attackcheck`` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attackcheck.certification import certify as certify
    from attackcheck.certification_table import CertificationTable as CertificationTable
    from attackcheck.claims import ClassPairClaim as ClassPairClaim
    from attackcheck.claims import LipschitzClaim as LipschitzClaim
    from attackcheck.claims import RadiusClaim as RadiusClaim
    from attackcheck.counterexample import load_counterexample as load_counterexample
    from attackcheck.counterexample import replay as replay
    from attackcheck.errors import InputError as InputError
    from attackcheck.lipschitz.auditing import audit as audit
    from attackcheck.lipschitz.findings import AuditReport as AuditReport
    from attackcheck.lipschitz.findings import AuditVerdict as AuditVerdict
    from attackcheck.loading import load as load
    from attackcheck.measures.names import Measure as Measure
    from attackcheck.metrics import MetricClaim as MetricClaim
    from attackcheck.probe import Kind as Kind
    from attackcheck.recheck import Verdict as Verdict
    from attackcheck.refined import RefinedCertificate as RefinedCertificate
    from attackcheck.refined import refine as refine
    from attackcheck.report import Report as Report
    from attackcheck.report import Violation as Violation
    from attackcheck.smoothing import Smoothing as Smoothing
    from attackcheck.subject import Subject as Subject
    from attackcheck.verification import verify as verify

_HOMES = {
    "AuditReport": "lipschitz.findings",
    "AuditVerdict": "lipschitz.findings",
    "CertificationTable": "certification_table",
    "ClassPairClaim": "claims",
    "InputError": "errors",
    "Kind": "probe",
    "LipschitzClaim": "claims",
    "Measure": "measures.names",
    "MetricClaim": "metrics",
    "RadiusClaim": "claims",
    "RefinedCertificate": "refined",
    "Report": "report",
    "Smoothing": "smoothing",
    "Subject": "subject",
    "Verdict": "recheck",
    "Violation": "report",
    "audit": "lipschitz.auditing",
    "certify": "certification",
    "load": "loading",
    "load_counterexample": "counterexample",
    "refine": "refined",
    "replay": "counterexample",
    "verify": "verification",
}

__all__ = [
    "AuditReport",
    "AuditVerdict",
    "CertificationTable",
    "ClassPairClaim",
    "InputError",
    "Kind",
    "LipschitzClaim",
    "Measure",
    "MetricClaim",
    "RadiusClaim",
    "RefinedCertificate",
    "Report",
    "Smoothing",
    "Subject",
    "Verdict",
    "Violation",
    "audit",
    "certify",
    "load",
    "load_counterexample",
    "refine",
    "replay",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"attackcheck.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'attackcheck' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
