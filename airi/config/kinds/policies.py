"""Policies: where a rule applies, when, and with what effect."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from airi.config.kinds.base import Name, Resource, Strict


class PolicyScope(Strict):
    """Whom a policy applies to; an empty list means all. ``*`` matches any run of characters."""

    tenants: list[str] = []
    teams: list[str] = []
    keys: list[str] = []
    models: list[str] = []


class DetectorUse(Strict):
    """A detector that the policy's condition needs, and what happens when it cannot answer."""

    id: Literal["pii", "email", "card", "iban", "phone", "secrets", "words"]
    min_score: float = Field(0.5, ge=0, le=1)
    on_error: Literal["deny", "allow"] = "deny"
    words: list[str] = []
    """For ``words``: the words, matched without regard to case at word borders."""


class PolicyTest(Strict):
    """A case that travels with its policy; ``airi policy test`` runs it."""

    name: str
    input: dict[str, Any]
    expect: dict[str, Any]


class Policy(Resource):
    """A rule: where it applies, when, and with what effect."""

    kind: Literal["Policy"] = "Policy"
    tier: Literal["platform", "org", "team", "key"] = "platform"
    mode: Literal["enforce", "shadow", "off"] = "enforce"
    scope: PolicyScope = PolicyScope()
    stages: list[Literal["prompt", "response"]] = Field(["prompt"], min_length=1)
    when: str = "true"
    """A CEL condition; see docs/policies.md for the variables."""
    detectors: list[DetectorUse] = []
    effect: Literal["allow", "deny", "redact", "route"]
    route_to: Name | None = None
    reason: str = Field("POLICY", pattern=r"^[A-Z][A-Z0-9_]*$")
    message: str = ""
    """What a denied caller is told."""
    tests: list[PolicyTest] = []

    @model_validator(mode="after")
    def _route_has_target(self) -> Policy:
        if (self.effect == "route") != (self.route_to is not None):
            raise ValueError("'route_to' goes with effect 'route', and effect 'route' needs it")
        return self
