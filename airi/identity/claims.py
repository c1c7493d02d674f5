"""From a genuine token's claims to whom it stands for: a record like a key's, so that limits, policies and ledger name it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from airi.config.kinds import Identity
from airi.identity.errors import TokenClaimsError
from airi.keys.record import KeyRecord, Role

PREFIX = "oidc-"
"""How the ids of these records begin; those of keys are hexadecimal."""
_MAX_NAME = 128


def record_of(tenant: str, teams: frozenset[str], identity: Identity, claims: Mapping[str, Any]) -> KeyRecord:
    """Return the record of a token's subject; raise :class:`TokenClaimsError` when team or role cannot be told.

    The id is the same for all tokens of a subject. There is no expiry in it: what ends is the token, not the person.
    """
    subject = str(claims["sub"])
    user = _first(_values(claims, identity.user_claim)) or subject
    digest = hashlib.sha256(f"{tenant}\n{identity.issuer}\n{subject}".encode()).hexdigest()
    return KeyRecord(
        id=PREFIX + digest[:24],
        tenant=tenant,
        digest=bytes.fromhex(digest),
        team=_team(tenant, teams, identity, claims),
        user=user[:_MAX_NAME],
        role=_role(identity, claims),
        name=user[:_MAX_NAME],
        models=() if identity.models == ["*"] else tuple(identity.models),
    )


def fits(identity: Identity, claims: Mapping[str, Any]) -> bool:
    """Whether the claims hold what the tenant requires."""
    return all(value in _values(claims, name) for name, value in identity.require.items())


def _team(tenant: str, teams: frozenset[str], identity: Identity, claims: Mapping[str, Any]) -> str | None:
    if identity.team_claim is None:
        return None
    for value in _values(claims, identity.team_claim):
        name = identity.teams.get(value, value)
        if name in teams:
            return name
    raise TokenClaimsError(f"The token's claim {identity.team_claim!r} names no team of tenant {tenant!r}.")


def _role(identity: Identity, claims: Mapping[str, Any]) -> Role:
    held = _values(claims, identity.role_claim) if identity.role_claim is not None else []
    for value, role in identity.roles.items():
        if value in held:
            return role
    if identity.default_role == "none":
        raise TokenClaimsError(f"The token's claim {identity.role_claim!r} holds no role that is known here.")
    return identity.default_role


def _values(claims: Mapping[str, Any], name: str) -> list[str]:
    """Return a claim's texts: of the name as it stands, else along its dots."""
    value: Any = claims.get(name)
    if value is None:
        value = claims
        for part in name.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
    items = value if isinstance(value, list) else [value]
    return [str(item) for item in items if isinstance(item, str | int) and not isinstance(item, bool)]


def _first(values: list[str]) -> str:
    return values[0] if values else ""
