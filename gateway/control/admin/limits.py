"""Limits and budgets of all scopes in one place, and changing one scope's.

They live in the Tenant resources (tenant, teams, users, models) and on the keys; this is another view of them.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict

from airi.config.kinds import Budget, Limits, Tenant
from airi.config.loader import load_data
from airi.config.state import Stored, body_of
from airi.errors import NotFoundError
from airi.keys.errors import GrantError
from airi.keys.record import KeyLimits, KeyRecord
from gateway.control.admin.keys import budget_views, key_budgets
from gateway.control.admin.views import listing, resource_view
from gateway.control.auth import Principal, require
from gateway.control.routing import ADMIN
from gateway.control.services import Services

What = Literal["limits", "budgets"]
_KEYS_SHOWN = 1_000


class LimitsBody(BaseModel):
    """The limits of one scope, whole."""

    model_config = ConfigDict(extra="forbid")

    limits: Limits


class BudgetsBody(BaseModel):
    """The budgets of one scope, whole."""

    model_config = ConfigDict(extra="forbid")

    budgets: list[Budget]


def router(services: Services) -> APIRouter:
    """Return the routes of limits and of budgets."""
    routes = APIRouter(prefix=ADMIN)
    for what in ("limits", "budgets"):
        _add_reading(routes, services, what)
    _add_writing(routes, services)
    return routes


def _add_reading(routes: APIRouter, services: Services, what: What) -> None:
    reader = Depends(require(services, "config.read"))

    @routes.get(
        f"/{what}", summary=f"List the {what} of every scope", tags=[what], operation_id=f"list_{what}"
    )
    def list_all(who: Principal = reader, tenant: Annotated[str | None, Query()] = None) -> dict[str, Any]:
        wanted = tenant if who.platform else who.tenant
        found: list[dict[str, Any]] = []
        for resource in services.config_store.current().all(Tenant):
            if wanted in (None, resource.metadata.name):
                found += _of_tenant(resource, what)
        records = services.key_log.records(tenant=wanted, limit=_KEYS_SHOWN)
        found += [_of_key(record, what) for record in records if getattr(record, what)]
        return listing([item for item in found if item[what]], has_more=len(records) == _KEYS_SHOWN)


def _add_writing(routes: APIRouter, services: Services) -> None:
    writer = Depends(require(services, "platform.write"))
    key_writer = Depends(require(services, "platform.write", "keys.write"))

    @routes.put("/limits/tenants/{tenant}", summary="Set a tenant's limits", tags=["limits"])
    def tenant_limits(tenant: str, body: LimitsBody, who: Principal = writer) -> dict[str, Any]:
        return _change_tenant(services, who, tenant, None, {"limits": _plain(body)["limits"]})

    @routes.put("/limits/tenants/{tenant}/teams/{team}", summary="Set a team's limits", tags=["limits"])
    def team_limits(tenant: str, team: str, body: LimitsBody, who: Principal = writer) -> dict[str, Any]:
        return _change_tenant(services, who, tenant, team, {"limits": _plain(body)["limits"]})

    @routes.put("/limits/keys/{key_id}", summary="Set a key's limits", tags=["limits"])
    async def set_key_limits(key_id: str, body: LimitsBody, who: Principal = key_writer) -> dict[str, Any]:
        limits = KeyLimits(**body.limits.model_dump())
        return await _change_key(services, who, key_id, "limits", limits)

    @routes.put("/budgets/tenants/{tenant}", summary="Set a tenant's budgets", tags=["budgets"])
    def tenant_budgets(tenant: str, body: BudgetsBody, who: Principal = writer) -> dict[str, Any]:
        return _change_tenant(services, who, tenant, None, {"budgets": _plain(body)["budgets"]})

    @routes.put("/budgets/tenants/{tenant}/teams/{team}", summary="Set a team's budgets", tags=["budgets"])
    def team_budgets(tenant: str, team: str, body: BudgetsBody, who: Principal = writer) -> dict[str, Any]:
        return _change_tenant(services, who, tenant, team, {"budgets": _plain(body)["budgets"]})

    @routes.put("/budgets/keys/{key_id}", summary="Set a key's budgets", tags=["budgets"])
    async def set_key_budgets(key_id: str, body: BudgetsBody, who: Principal = key_writer) -> dict[str, Any]:
        return await _change_key(services, who, key_id, "budgets", key_budgets(body.budgets))


def _plain(body: BaseModel) -> dict[str, Any]:
    return body.model_dump(mode="json", exclude_unset=True)


def _of_tenant(tenant: Tenant, what: What) -> list[dict[str, Any]]:
    name = tenant.metadata.name
    found = [_item("tenant", name, getattr(tenant, what), what)]
    found += [_item("team", name, getattr(team, what), what, team=team.name) for team in tenant.teams]
    if what == "limits":
        found.append(_item("user", name, tenant.user_limits, what))
    for model, limits in tenant.model_limits.items():
        held = Limits(**limits.model_dump(exclude={"budgets"})) if what == "limits" else limits.budgets
        found.append(_item("model", name, held, what, model=model))
    return found


def _item(scope: str, tenant: str, held: Limits | list[Budget], what: What, **more: str) -> dict[str, Any]:
    if isinstance(held, list):
        plain: Any = [budget.model_dump(mode="json") for budget in held]
    else:
        plain = held.model_dump(mode="json", exclude_none=True)
    return {"scope": scope, "tenant": tenant, **more, what: plain}


def _of_key(record: KeyRecord, what: What) -> dict[str, Any]:
    held: Any = budget_views(record.budgets) if what == "budgets" else msgspec.to_builtins(record.limits)
    return {"scope": "key", "tenant": record.tenant, "key": record.id, what: held}


def _change_tenant(
    services: Services, who: Principal, name: str, team: str | None, change: dict[str, Any]
) -> dict[str, Any]:
    stored: Stored = services.config_store.get("Tenant", name)
    body = body_of(stored.resource)
    if team is None:
        body |= change
    else:
        teams = body.get("teams", [])
        if team not in [item["name"] for item in teams]:
            raise NotFoundError(f"tenant {name!r} has no team {team!r}")
        body["teams"] = [item | change if item["name"] == team else item for item in teams]
    services.config_store.put(load_data([body])[0].resource, author=who.actor, if_match=stored.digest)
    return resource_view(services.config_store.get("Tenant", name))


async def _change_key(
    services: Services, who: Principal, key_id: str, what: What, value: Any
) -> dict[str, Any]:
    """Set a key's own limits; its holder may not loosen them."""
    if key_id == who.key_id and not who.platform:
        raise GrantError("a key cannot change its own limits and budgets; ask another administrator")

    def edit(record: KeyRecord) -> KeyRecord:
        if not who.sees(record.tenant):
            raise NotFoundError(f"there is no key {key_id!r}")
        return msgspec.structs.replace(record, **{what: value})

    record = await asyncio.to_thread(services.key_log.change, key_id, edit, actor=who.actor)
    await services.keys.now()
    return _of_key(record, what)
