"""Checks that need more than one resource, and the hook for the rooms' own deep checks.

A reference that something cannot work without (a target's pool, a fallback, ``route_to``) must exist: that is a problem,
and the configuration is refused. A name in a scope that fits nothing yet is a warning: it may come later.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from airi.config.document import ConfigDocument
from airi.config.explain import did_you_mean
from airi.config.kinds import (
    AnyResource,
    Budget,
    Identity,
    Model,
    Policy,
    Pool,
    Provider,
    Tenant,
    Tool,
    UpstreamTls,
    Workflow,
)
from airi.config.positions import Where
from airi.config.secrets import OWN_VARIABLES
from airi.config.secrets import references as secret_references

Validator = Callable[[Any, Where], list[str]]
"""A room's deep check of one resource of a kind: returns whole lines, ``f"{where('when')}: what is wrong"``."""
Validators = Mapping[str, Validator]
Adviser = Callable[[Any, ConfigDocument, Where], list[str]]
"""A room's warnings of one resource of a kind, among all others: whole lines too."""
Advisers = Mapping[str, Adviser]
Path = tuple[str | int, ...]
_MAX_COMPARED = 200
RESERVED_MODEL_PREFIX = "workflow/"
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
_SECRET_HEADERS = {"authorization", "proxy-authorization", "x-api-key", "api-key", "cookie", "x-goog-api-key"}


@dataclass(slots=True)
class Findings:
    """What is wrong (refuses the whole) and what looks wrong (is told)."""

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def check(
    document: ConfigDocument,
    *,
    places: Mapping[tuple[str, str], Where] | None = None,
    validators: Validators | None = None,
    advisers: Advisers | None = None,
    changed: Iterable[tuple[str, str]] | None = None,
) -> Findings:
    """Check a whole document. ``places`` names files and lines where they are known.

    What lies within a resource is looked at, by the rooms' ``validators`` (by kind) too, for the resources in ``changed``
    only, or for all when it is ``None``; references are followed in all, by the rooms' ``advisers`` too.
    """
    findings = Findings()
    places = places or {}
    deep = set(document.resources if changed is None else changed)
    for key in sorted(document.resources):
        resource = document.resources[key]
        where = places.get(key) or Where(*key)
        if key in deep:
            findings.problems += _alone(resource, where)
            findings.warnings += _unset(resource, where)
        findings.problems += _dangling(document, resource, where)
        findings.warnings += _unmatched(document, resource, where)
        adviser = (advisers or {}).get(resource.kind)
        if adviser is not None:
            findings.warnings += adviser(resource, document, where)
        validator = (validators or {}).get(resource.kind)
        if validator is not None and key in deep:
            findings.problems += validator(resource, where)
    findings.problems += _ambiguous(document, places)
    return findings


def _ambiguous(document: ConfigDocument, places: Mapping[tuple[str, str], Where]) -> list[str]:
    """A token must not fit two tenants."""
    seen: dict[tuple[str, str, frozenset[tuple[str, str]]], str] = {}
    problems = []
    for tenant in document.all(Tenant):
        name, identity = tenant.metadata.name, tenant.identity
        if identity is None:
            continue
        where = places.get((tenant.kind, name)) or Where(tenant.kind, name)
        for audience in identity.audience:
            other = seen.setdefault((identity.issuer, audience, frozenset(identity.require.items())), name)
            if other != name:
                problems.append(
                    f"{where('identity', 'require')}: tenant {other!r} takes the same issuer's tokens for {audience!r}; "
                    "tell them apart by a claim that each must hold"
                )
    return problems


def references(resource: AnyResource) -> Iterator[tuple[str, str, Path]]:
    """Yield kind, name and place of everything that ``resource`` cannot work without."""
    if isinstance(resource, Model):
        for index, version in enumerate(resource.versions):
            for number, target in enumerate(version.targets):
                path: Path = ("versions", index, "targets", number)
                if target.pool is not None:
                    yield "Pool", target.pool, (*path, "pool")
                if target.provider is not None:
                    yield "Provider", target.provider, (*path, "provider")
        for index, name in enumerate(resource.fallbacks):
            yield "Model", name, ("fallbacks", index)
    elif isinstance(resource, Policy) and resource.route_to is not None:
        yield "Model", resource.route_to, ("route_to",)


def _dangling(document: ConfigDocument, resource: AnyResource, where: Where) -> list[str]:
    problems = []
    for kind, name, path in references(resource):
        if (kind, name) not in document.resources:
            problems.append(f"{where(*path)}: there is no {kind} {name!r}{_hint(document, kind, name)}")
    return problems


def _unmatched(document: ConfigDocument, resource: AnyResource, where: Where) -> list[str]:
    """Names without ``*`` in scopes that fit no tenant or model."""
    named: list[tuple[str, Path, str]] = []
    if isinstance(resource, Policy):
        named += [("Tenant", ("scope", "tenants", i), n) for i, n in enumerate(resource.scope.tenants)]
        named += [("Model", ("scope", "models", i), n) for i, n in enumerate(resource.scope.models)]
    elif isinstance(resource, Tenant):
        named += [("Model", ("models", i), n) for i, n in enumerate(resource.models)]
        named += [("Model", ("model_limits", n), n) for n in resource.model_limits]
    elif isinstance(resource, Tool):
        named += [("Tenant", ("tenants", i), n) for i, n in enumerate(resource.tenants)]
    elif isinstance(resource, Workflow):
        named += _models_of(resource)
    warnings = []
    for kind, path, name in named:
        if "*" in name or (kind, name) in document.resources or name.startswith(RESERVED_MODEL_PREFIX):
            continue
        warnings.append(f"{where(*path)}: fits no {kind} so far{_hint(document, kind, name)}")
    return warnings


def _models_of(workflow: Workflow) -> Iterator[tuple[str, Path, str]]:
    """The models that steps name, as far as they are no expressions. What a step is, agents/ knows and checks."""
    steps = (workflow.model_extra or {}).get("steps")
    for index, step in enumerate(steps if isinstance(steps, list) else ()):
        options = step.get("with") if isinstance(step, dict) else None
        model = options.get("model") if isinstance(options, dict) else None
        if isinstance(model, str) and "${{" not in model:
            path: Path = ("steps", index, "with", "model")
            inner = model.removeprefix("workflow/")
            yield ("Model" if inner == model else "Workflow"), path, inner


def _unset(resource: AnyResource, where: Where) -> list[str]:
    """Variables that a resource takes its secrets from and that this process has not: they may be set elsewhere."""
    warnings = []
    for field_name, reference in secret_references(resource):
        variable = reference.removeprefix("${env:").removesuffix("}")
        if variable == reference.removesuffix("}"):
            continue
        own = variable.startswith(OWN_VARIABLES)
        if own or not os.environ.get(variable):
            path = field_name.split(".", 2 if field_name.startswith("http.") else 1)
            reason = (
                f"{variable} is AIRI's own, which no upstream is given; these calls fail"
                if own
                else f"the environment variable {variable} is not set here; where the gateway lacks it too, these calls fail"
            )
            warnings.append(f"{where(*path)}: {reason}")
    return warnings


def _hint(document: ConfigDocument, kind: str, name: str) -> str:
    """A suggestion, unless there is so much to compare with that thousands of faults would take minutes."""
    known = [other for other_kind, other in document.resources if other_kind == kind]
    return did_you_mean(name, known) if len(known) <= _MAX_COMPARED else ""


def _alone(resource: AnyResource, where: Where) -> list[str]:
    """What is wrong within one resource but beyond its types."""
    if isinstance(resource, Provider):
        return [
            *_address(resource.base_url, where, ("base_url",)),
            *_headers(resource.headers, where, ("headers",)),
            *_tls(resource.tls, where),
        ]
    if isinstance(resource, Pool):
        names = [replica.name for replica in resource.replicas]
        problems = _repeated(names, where, ("replicas",), "replica")
        for index, replica in enumerate(resource.replicas):
            problems += _address(replica.url, where, ("replicas", index, "url"))
        return problems + _tls(resource.tls, where)
    if isinstance(resource, Model):
        return _model(resource, where)
    if isinstance(resource, Tenant):
        return _tenant(resource, where)
    if isinstance(resource, Tool) and resource.http is not None:
        return [
            *_address(resource.http.url, where, ("http", "url")),
            *_headers(resource.http.headers, where, ("http", "headers")),
        ]
    return []


def _model(model: Model, where: Where) -> list[str]:
    problems = []
    name = model.metadata.name
    if name.startswith(RESERVED_MODEL_PREFIX):
        problems.append(
            f"{where('metadata', 'name')}: names with {RESERVED_MODEL_PREFIX!r} belong to workflows"
        )
    if name in model.fallbacks:
        problems.append(
            f"{where('fallbacks', model.fallbacks.index(name))}: a model cannot fall back to itself"
        )
    for index, version in enumerate(model.versions):
        if all(target.weight == 0 for target in version.targets):
            problems.append(
                f"{where('versions', index, 'targets')}: every weight is 0, so nothing can be chosen"
            )
    return problems


def _tenant(tenant: Tenant, where: Where) -> list[str]:
    problems = _repeated([team.name for team in tenant.teams], where, ("teams",), "team")
    problems += _budgets(tenant.budgets, where, ("budgets",))
    for index, team in enumerate(tenant.teams):
        problems += _budgets(team.budgets, where, ("teams", index, "budgets"))
    for name, limits in tenant.model_limits.items():
        problems += _budgets(limits.budgets, where, ("model_limits", name, "budgets"))
    if tenant.identity is not None:
        problems += _identity(tenant.identity, tenant, where)
    return problems


def _identity(identity: Identity, tenant: Tenant, where: Where) -> list[str]:
    """Keys fetched over plain HTTP could be anybody's, unless they come from this very machine."""
    problems = []
    if identity.jwks_file is None:
        field = "issuer" if identity.jwks_url is None else "jwks_url"
        address = identity.jwks_url or identity.issuer
        problems += _address(address, where, ("identity", field))
        parts = urlsplit(address) if not problems else None
        if parts is not None and parts.scheme == "http" and parts.hostname not in _LOOPBACK:
            problems.append(f"{where('identity', field)}: the issuer's keys must come over https")
    problems += _tls(identity.tls, where)
    teams = {team.name for team in tenant.teams}
    for value, team in identity.teams.items():
        if team not in teams:
            problems.append(f"{where('identity', 'teams', value)}: the tenant has no team {team!r}")
    return problems


def _budgets(budgets: Sequence[Budget], where: Where, path: Path) -> list[str]:
    return _repeated([budget.name for budget in budgets], where, path, "budget")


def _repeated(names: Sequence[str], where: Where, path: Path, what: str) -> list[str]:
    seen: Counter[str] = Counter()
    problems = []
    for index, name in enumerate(names):
        seen[name] += 1
        if seen[name] == 2:
            problems.append(f"{where(*path, index, 'name')}: two {what}s are called {name!r}")
    return problems


def _address(url: str, where: Where, path: Path) -> list[str]:
    """An address of an upstream: http or https, a host, and no credentials (they would be a plain secret)."""
    try:
        parts = urlsplit(url)
        problem = None if parts.port != 0 else "port 0 cannot be reached"
    except ValueError:
        return [f"{where(*path)}: not a valid address"]
    if parts.scheme not in ("http", "https") or not parts.hostname:
        problem = "expected an address such as https://api.example.com/v1"
    elif parts.username is not None or parts.password is not None:
        problem = "credentials must not stand in an address; use api_key or secret_headers"
    return [f"{where(*path)}: {problem}"] if problem else []


def _headers(headers: Mapping[str, str], where: Where, path: Path) -> list[str]:
    return [
        f"{where(*path, name)}: this header carries a secret; put it into secret_headers as ${{env:NAME}}"
        for name in headers
        if name.lower() in _SECRET_HEADERS
    ]


def _tls(tls: UpstreamTls, where: Where) -> list[str]:
    if (tls.client_certificate is None) != (tls.client_key is None):
        return [f"{where('tls')}: client_certificate and client_key must be given together"]
    return []
