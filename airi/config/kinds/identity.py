"""Whose sign-in a tenant takes beside API keys."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from airi.config.kinds.base import Strict
from airi.config.kinds.upstreams import UpstreamTls
from airi.config.units import Milliseconds

IdentityAlgorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]
"""Asymmetric ones alone: with a shared secret, whoever checks tokens could make them."""
MappedRole = Literal["org_admin", "policy_author", "policy_approver", "auditor", "developer", "service"]
"""Roles within a tenant; ``platform_admin`` reaches beyond one and is never given by a token."""


class Identity(Strict):
    """Bearer tokens (JWT) of an OpenID Connect issuer that are taken beside API keys."""

    issuer: str
    """The token's ``iss``, to the letter."""
    audience: list[str] = Field(min_length=1)
    """One of these must be in the token's ``aud``."""
    algorithms: list[IdentityAlgorithm] = Field(["RS256"], min_length=1)
    """Signatures that are taken; the token has no say in it."""
    jwks_url: str | None = None
    """Where the issuer's keys are; without it the issuer's ``/.well-known/openid-configuration`` says so."""
    jwks_file: str | None = None
    """A file with the issuer's keys, instead of an address."""
    tls: UpstreamTls = UpstreamTls()
    require: dict[str, str] = {}
    """Claims that must hold (or list) a value: what tells tenants of one issuer apart. ``a.b`` names a claim within one."""
    user_claim: str = "sub"
    """The claim that names the end user."""
    team_claim: str | None = None
    """The claim that names the team; a token whose value is no team of the tenant is refused."""
    teams: dict[str, str] = {}
    """The claim's values to names of teams, where they differ."""
    role_claim: str | None = None
    """The claim (a text or a list) that ``roles`` looks at."""
    roles: dict[str, MappedRole] = {}
    """The claim's values to roles; the first of these that a token has counts."""
    default_role: Literal["developer", "service", "none"] = "developer"
    """The role of a token that has none of ``roles``; ``none`` refuses it."""
    models: list[str] = ["*"]
    """Aliases (with ``*``) that these tokens may call."""
    leeway: Milliseconds = Field(30_000, le=300_000)
    """How far the issuer's clock may be off."""

    @model_validator(mode="after")
    def _consistent(self) -> Identity:
        if self.jwks_url is not None and self.jwks_file is not None:
            raise ValueError("give one of 'jwks_url' and 'jwks_file'")
        if (self.roles or self.default_role == "none") and self.role_claim is None:
            raise ValueError("'roles' and 'default_role: none' need a 'role_claim'")
        if self.teams and self.team_claim is None:
            raise ValueError("'teams' needs a 'team_claim'")
        return self
