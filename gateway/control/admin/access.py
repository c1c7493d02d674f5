"""Who may see and write which resource: tenants keep to themselves, the platform's parts to the platform."""

from __future__ import annotations

from typing import Any

from airi.config.kinds import AnyResource, Policy, Tenant, Tool
from airi.config.secrets import references as secret_references
from airi.config.state import body_of
from airi.errors import NotFoundError, PermissionDeniedError
from airi.patterns import allowed
from gateway.control.auth import Principal

_PLATFORM_ONLY = {"Provider", "Pool"}


def visible(who: Principal, resource: AnyResource, tenant: Tenant | None) -> bool:
    """Whether ``who`` (whose tenant's resource is ``tenant``) may see the resource."""
    if who.platform:
        return True
    if who.tenant is None or resource.kind in _PLATFORM_ONLY:
        return False
    if isinstance(resource, Tenant):
        return resource.metadata.name == who.tenant
    if isinstance(resource, Policy):
        return not resource.scope.tenants or allowed(resource.scope.tenants, who.tenant)
    if isinstance(resource, Tool):
        return allowed(resource.tenants, who.tenant)
    if resource.kind == "Model":
        return tenant is not None and allowed(tenant.models, resource.metadata.name)
    return True


def check_write(who: Principal, resource: AnyResource, known: AnyResource | None) -> None:
    """Raise unless ``who`` may write ``resource`` over ``known``.

    Within its tenant an ``org_admin`` writes tools, a ``policy_author`` policies that do not enforce yet, and a
    ``policy_approver`` changes nothing of a policy but whether it enforces. All else is the platform's.
    """
    if who.platform:
        return
    for item in (known, resource):
        if item is not None and not _own(who, item):
            raise PermissionDeniedError(
                f"only the platform's administrators may change this {resource.kind}; within your tenant you may "
                "change tools and policies whose scope names your tenant alone"
            )
    if isinstance(resource, Tool):
        _check_tool(who, resource, known)
    elif isinstance(resource, Policy):
        _check_policy(who, resource, known)


def check_delete(who: Principal, known: AnyResource) -> None:
    """Raise unless ``who`` may remove ``known``."""
    if who.platform:
        return
    if not _own(who, known):
        raise NotFoundError(f"there is no {known.kind} {known.metadata.name!r} that you may remove")
    who.demand("tools.write" if isinstance(known, Tool) else "policies.write")
    if isinstance(known, Policy) and known.mode == "enforce" and not who.may("policies.approve"):
        raise PermissionDeniedError(
            "removing a policy that enforces takes a policy_approver; ask for mode 'off' first"
        )


def _own(who: Principal, resource: AnyResource) -> bool:
    """Whether the resource belongs to the principal's tenant and to nobody else."""
    if isinstance(resource, Tool):
        return resource.tenants == [who.tenant]
    return (
        isinstance(resource, Policy)
        and resource.scope.tenants == [who.tenant]
        and resource.tier != "platform"
    )


def _check_tool(who: Principal, tool: Tool, known: AnyResource | None) -> None:
    who.demand("tools.write")
    if tool.function is not None:
        raise PermissionDeniedError(
            "tools that run code of the platform are the platform's", param="function"
        )
    before = known.http.url if isinstance(known, Tool) and known.http is not None else None
    for field, reference in secret_references(tool):
        if not reference.startswith("${sealed:"):
            raise PermissionDeniedError(
                "the platform's environment is not yours to send; give the secret's value, it is sealed",
                param=field,
            )
        if before is not None and tool.http is not None and tool.http.url != before and known is not None:
            kept = dict(secret_references(known)).get(field)
            if kept == reference:
                raise PermissionDeniedError(
                    "a tool with a new address needs its secret given anew", param=field
                )


def _check_policy(who: Principal, policy: Policy, known: AnyResource | None) -> None:
    if who.may("policies.approve") and known is not None and _without_mode(policy) == _without_mode(known):
        return
    who.demand("policies.write")
    enforced = isinstance(known, Policy) and known.mode == "enforce"
    if policy.mode == "enforce" or enforced:
        raise PermissionDeniedError(
            "a policy_author writes policies in mode 'shadow' or 'off'; a policy_approver switches 'enforce' on and off",
            param="mode",
        )


def _without_mode(resource: AnyResource) -> dict[str, Any]:
    return {key: value for key, value in body_of(resource).items() if key != "mode"}
