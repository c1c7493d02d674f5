"""Limits and budgets of a call's scopes, precomputed into what admission's script reads.

Five scopes, from the widest: organisation (tenant), team, key, end user, model within the tenant. Rates are GCRA with a
burst of one minute's allowance: at once at most the limit, over a minute after that once more the limit.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from fnmatch import fnmatchcase
from operator import attrgetter
from typing import Any, Protocol

import msgspec

from airi.config.document import ConfigDocument
from airi.config.kinds import Limits, ModelLimits, Team, Tenant
from airi.redis_pipeline import bulk
from policies.names import prefix

WINDOW_LETTERS = {"minute": "i", "hour": "h", "day": "d", "week": "w", "month": "m", "total": "t"}
"""Calendar windows (UTC) as keys name them; weeks begin on Monday."""
_NO_LIMITS = Limits()
_PLAIN_USER = 64


class LimitValues(Protocol):
    """Attributes of ``airi.config.kinds.Limits`` and ``airi.keys.record.KeyLimits``."""

    @property
    def requests_per_minute(self) -> int | None: ...
    @property
    def tokens_per_minute(self) -> int | None: ...
    @property
    def concurrent_calls(self) -> int | None: ...


class BudgetValues(Protocol):
    """Attributes of ``airi.config.kinds.Budget`` and ``airi.keys.record.KeyBudget``; ``usd`` in micro-dollars."""

    @property
    def name(self) -> str: ...
    @property
    def usd(self) -> int: ...
    @property
    def window(self) -> str: ...
    @property
    def mode(self) -> str: ...


class KeyValues(Protocol):
    """What is read of ``airi.keys.record.KeyRecord``."""

    @property
    def id(self) -> str: ...
    @property
    def limits(self) -> LimitValues: ...
    @property
    def budgets(self) -> Sequence[BudgetValues]: ...


class ScopeLimits(msgspec.Struct, frozen=True):
    """One scope as people read it: ``org``, ``team:NAME``, ``key:ID``, ``user`` or ``model:ALIAS``."""

    scope: str
    limits: LimitValues
    budgets: tuple[BudgetValues, ...] = ()


class Scopes:
    """The scopes of calls with the same tenant, team, key and model. ``parts`` explains; the rest is for admission."""

    __slots__ = (
        "has_hard",
        "has_money",
        "key",
        "key_id",
        "limits_bulk",
        "model",
        "names",
        "parts",
        "prefix",
        "prefix_bulk",
        "team",
        "tenant",
        "user_limited",
    )

    def __init__(
        self, tenant: str, team: str | None, key: KeyValues, model: str, parts: tuple[ScopeLimits, ...]
    ) -> None:
        self.tenant = tenant
        self.team = team or ""
        self.key_id = key.id
        self.key = key
        self.model = model
        self.parts = parts
        self.names = [part.scope for part in parts]
        self.prefix = prefix(tenant)
        self.prefix_bulk = bulk(self.prefix.encode())
        self.limits_bulk = bulk(_encode(parts))
        self.user_limited = any(part.scope == "user" for part in parts)
        self.has_money = any(part.budgets for part in parts)
        self.has_hard = any(budget.mode == "hard" for part in parts for budget in part.budgets)

    def requests_per_minute(self) -> int | None:
        """The tightest limit of requests a minute over all scopes."""
        found = [part.limits.requests_per_minute for part in self.parts]
        return min((limit for limit in found if limit is not None), default=None)


def without_held(scopes: Scopes) -> Scopes:
    """Return the scopes with their rates alone: for calls that hold neither a place nor money while they run."""
    parts = tuple(
        ScopeLimits(part.scope, Limits(requests_per_minute=part.limits.requests_per_minute))
        for part in scopes.parts
    )
    return Scopes(scopes.tenant, scopes.team or None, scopes.key, scopes.model, parts)


def user_suffix(user: str) -> str:
    """Return how the keys of Redis name an end user: short plain names as they are, others by digest."""
    if len(user) <= _PLAIN_USER and user.isascii() and user.isalnum():
        return user
    return f"sha256-{hashlib.sha256(user.encode(errors='surrogatepass')).hexdigest()[:32]}"


def _rates(parts: Sequence[ScopeLimits]) -> list[list[Any]]:
    """Scopes with a rate or a bound of concurrency, and of each the three limits; -1 where there is none."""
    limited = [part for part in parts if _is_set(part.limits)]
    columns: list[list[Any]] = [[part.scope for part in limited]]
    for of in (_requests, _tokens, _concurrency):
        found = [of(part.limits) for part in limited]
        columns.append([-1 if limit is None else limit for limit in found])
    return columns


def _encode(parts: tuple[ScopeLimits, ...]) -> bytes:
    """Return the third argument of ``admit.lua``."""
    groups: dict[str, tuple[list[str], list[int], list[int]]] = {}
    for part in parts:
        for budget in part.budgets:
            names, amounts, hard = groups.setdefault(WINDOW_LETTERS[budget.window], ([], [], []))
            names += [f"s|{part.scope}|{budget.name}", f"h|{part.scope}|{budget.name}"]
            amounts.append(budget.usd)
            hard.append(int(budget.mode == "hard"))
    shared = _rates([part for part in parts if part.scope != "user"])
    personal = _rates([part for part in parts if part.scope == "user"])
    money = [[letter, *group] for letter, group in groups.items()]
    return msgspec.msgpack.encode([shared, personal, money])


_requests = attrgetter("requests_per_minute")
_tokens = attrgetter("tokens_per_minute")
_concurrency = attrgetter("concurrent_calls")


def _is_set(limits: LimitValues) -> bool:
    return (limits.requests_per_minute, limits.tokens_per_minute, limits.concurrent_calls) != (
        None,
        None,
        None,
    )


class LimitTable:
    """Scopes for every call under one configuration; build a new one for a new snapshot."""

    def __init__(self, document: ConfigDocument, *, cache_size: int = 4_096) -> None:
        self._tenants = {tenant.metadata.name: tenant for tenant in document.all(Tenant)}
        self._cache: OrderedDict[tuple[str, str | None, str, str], Scopes] = OrderedDict()
        self._cache_size = cache_size

    def scopes_for(
        self, tenant: str, team: str | None, key: KeyValues, user: str | None, model_alias: str
    ) -> Scopes:
        """Return the scopes of a call (from a bounded cache, < 1 µs).

        ``user`` has no part in it: its limits are the tenant's ``user_limits``, the same for each user, and admission
        is told the user with the request. A tenant that the configuration does not hold has its key's limits only.
        """
        name = (tenant, team, key.id, model_alias)
        found = self._cache.get(name)
        if found is not None and (
            found.key is key or (found.key.limits == key.limits and found.key.budgets == key.budgets)
        ):
            return found
        scopes = Scopes(tenant, team, key, model_alias, self._parts(tenant, team, key, model_alias))
        self._cache[name] = scopes
        if len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        return scopes

    def _parts(self, tenant: str, team: str | None, key: KeyValues, model: str) -> tuple[ScopeLimits, ...]:
        resource = self._tenants.get(tenant)
        parts: list[ScopeLimits] = []
        if resource is not None:
            parts.append(ScopeLimits("org", resource.limits, tuple(resource.budgets)))
            found = _team(resource, team)
            if found is not None:
                parts.append(ScopeLimits(f"team:{found.name}", found.limits, tuple(found.budgets)))
        parts.append(ScopeLimits(f"key:{key.id}", key.limits, tuple(key.budgets)))
        if resource is not None:
            if _is_set(resource.user_limits):
                parts.append(ScopeLimits("user", resource.user_limits))
            of_model = _model_limits(resource, model)
            if of_model is not None:
                parts.append(ScopeLimits(f"model:{of_model[0]}", of_model[1], tuple(of_model[1].budgets)))
        return tuple(part for part in parts if part.budgets or _is_set(part.limits))


def _team(tenant: Tenant, name: str | None) -> Team | None:
    return next((team for team in tenant.teams if team.name == name), None)


def _model_limits(tenant: Tenant, model: str) -> tuple[str, ModelLimits] | None:
    """The limits under the model's own name, else under the first pattern (``gpt-*``) that matches: shared by all of it."""
    if model in tenant.model_limits:
        return model, tenant.model_limits[model]
    for pattern, limits in tenant.model_limits.items():
        if "*" in pattern and fnmatchcase(model, pattern):
            return pattern, limits
    return None
