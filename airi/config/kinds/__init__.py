"""The kinds of resource a configuration is made of, as pydantic models.

``Workflow`` and the rule part of ``Policy`` are checked in depth by their rooms (``agents/``, ``policies/``),
which import this module, never the other way; see :mod:`airi.config.validation`.
"""

from __future__ import annotations

from airi.config.kinds.base import API_VERSION, Metadata, Name, Resource, SecretReference, Strict
from airi.config.kinds.identity import Identity, IdentityAlgorithm, MappedRole
from airi.config.kinds.models import Model, ModelContract, ModelVersion, Price, Retries, Target
from airi.config.kinds.policies import DetectorUse, Policy, PolicyScope, PolicyTest
from airi.config.kinds.tenants import Budget, Limits, ModelLimits, RecordOptions, Team, Tenant
from airi.config.kinds.tools import HttpTool, Tool, Workflow
from airi.config.kinds.upstreams import (
    AwsAccess,
    Dialect,
    Pool,
    Provider,
    QueueLimits,
    Replica,
    Timeouts,
    UpstreamTls,
)

__all__ = [
    "API_VERSION",
    "KINDS",
    "AnyResource",
    "AwsAccess",
    "Budget",
    "DetectorUse",
    "Dialect",
    "HttpTool",
    "Identity",
    "IdentityAlgorithm",
    "Limits",
    "MappedRole",
    "Metadata",
    "Model",
    "ModelContract",
    "ModelLimits",
    "ModelVersion",
    "Name",
    "Policy",
    "PolicyScope",
    "PolicyTest",
    "Pool",
    "Price",
    "Provider",
    "QueueLimits",
    "RecordOptions",
    "Replica",
    "Resource",
    "Retries",
    "SecretReference",
    "Strict",
    "Target",
    "Team",
    "Tenant",
    "Timeouts",
    "Tool",
    "UpstreamTls",
    "Workflow",
]

AnyResource = Provider | Pool | Model | Tenant | Policy | Tool | Workflow
KINDS: dict[str, type[AnyResource]] = {
    "Provider": Provider,
    "Pool": Pool,
    "Model": Model,
    "Tenant": Tenant,
    "Policy": Policy,
    "Tool": Tool,
    "Workflow": Workflow,
}
