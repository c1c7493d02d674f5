"""Admission: may this call go, on every scope at once, and what did it cost in the end.

:class:`Admission` is the data plane's face; the Lua scripts under ``lua/`` are the decision. Redis must be one server
(with replicas, if any): keys of a tenant carry a hash tag, but versions, epoch and the ledger's stream are shared by all
tenants, so Redis Cluster is not supported.
"""

from policies.admission.scripts import SCRIPTS
from policies.admission.service import Admission, AdmissionOptions
from policies.admission.types import (
    AdmissionRequest,
    Admitted,
    Conflicting,
    Decision,
    InProgress,
    Rate,
    Refused,
    Replay,
    Settlement,
)

__all__ = [
    "SCRIPTS",
    "Admission",
    "AdmissionOptions",
    "AdmissionRequest",
    "Admitted",
    "Conflicting",
    "Decision",
    "InProgress",
    "Rate",
    "Refused",
    "Replay",
    "Settlement",
]
