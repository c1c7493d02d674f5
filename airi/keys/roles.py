"""Roles, what each permits, and the rule that nobody grants what they do not hold.

The administrator's key (``AIRI_ADMIN_KEY``) holds everything and is bound to no tenant. Every other role lives in
the tenant of its key; ``platform_admin`` alone reaches beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from airi.errors import InvalidRequestError
from airi.keys.errors import GrantError
from airi.keys.record import KeyRecord, Role
from airi.keys.scopes import networks
from airi.patterns import within

_USE = frozenset({"models.call", "workflows.run"})
_READ = frozenset({"config.read", "keys.read", "usage.read", "records.read", "runs.read"})
_AUDIT = frozenset({"audit.read"})
_ORG = (
    _USE
    | _READ
    | _AUDIT
    | frozenset({"keys.write", "runs.write", "tenant.write", "tools.write", "workflows.write"})
)
_POLICY_WRITE = frozenset({"policies.write"})
_POLICY_APPROVE = frozenset({"policies.approve"})

PERMISSIONS: dict[Role, frozenset[str]] = {
    "platform_admin": _ORG
    | _POLICY_WRITE
    | _POLICY_APPROVE
    | frozenset({"platform.write", "config.rollback"}),
    "org_admin": _ORG,
    "policy_author": _POLICY_WRITE | frozenset({"config.read", "records.read"}),
    "policy_approver": _POLICY_APPROVE | frozenset({"config.read", "records.read"}),
    "auditor": _READ | _AUDIT,
    "developer": _USE | frozenset({"config.read", "usage.read", "records.read", "runs.read", "runs.write"}),
    "service": _USE,
}
ALL_ROLES: tuple[Role, ...] = get_args(Role)


@dataclass(frozen=True, slots=True)
class Grant:
    """What somebody is about to give to a key."""

    role: Role
    tenant: str
    models: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    cidrs: tuple[str, ...] = ()
    expires_at_ms: int | None = None


def check_grant(granter: KeyRecord | None, grant: Grant) -> None:
    """Raise :class:`GrantError` when ``granter`` does not hold all of ``grant``.

    ``None`` is the administrator's key. A granter's scopes and expiry bound those of the keys it makes.
    """
    if grant.role not in PERMISSIONS:
        raise InvalidRequestError(
            f"unknown role {grant.role!r}; the roles are {', '.join(ALL_ROLES)}", param="role"
        )
    if granter is None:
        return
    if "keys.write" not in PERMISSIONS[granter.role]:
        raise GrantError(f"role {granter.role} may not make or change keys")
    if grant.tenant != granter.tenant and granter.role != "platform_admin":
        raise GrantError("you may make keys of your own tenant only", param="tenant")
    missing = PERMISSIONS[grant.role] - PERMISSIONS[granter.role]
    if missing:
        raise GrantError(
            f"role {granter.role} may not grant {grant.role}: it does not hold {', '.join(sorted(missing))}",
            param="role",
        )
    for what in ("models", "routes"):
        if not _patterns_within(getattr(grant, what), getattr(granter, what)):
            raise GrantError(f"the new key's {what} go beyond your own", param=what)
    if granter.cidrs and not _networks_within(grant.cidrs, granter.cidrs):
        raise GrantError("the new key's networks go beyond your own", param="cidrs")
    if granter.expires_at_ms is not None and (
        grant.expires_at_ms is None or grant.expires_at_ms > granter.expires_at_ms
    ):
        raise GrantError("the new key may not outlive your own", param="expires_at_ms")


def _patterns_within(narrow: tuple[str, ...], wide: tuple[str, ...]) -> bool:
    if not wide:
        return True
    return bool(narrow) and all(any(within(n, w) for w in wide) for n in narrow)


def _networks_within(narrow: tuple[str, ...], wide: tuple[str, ...]) -> bool:
    held = networks(wide)
    return bool(narrow) and all(
        any(n.version == w.version and n.subnet_of(w) for w in held)  # type: ignore[arg-type]  # same version
        for n in networks(narrow)
    )
