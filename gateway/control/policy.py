"""``POST /admin/v1/policy/explain``: what the policies would say of a request, or of an answer, and why."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from airi.config.document import ConfigDocument
from airi.config.kinds import Model, Pool, Provider
from airi.errors import InvalidRequestError
from gateway.control.auth import Principal, require
from gateway.control.routing import ADMIN
from gateway.control.services import Services
from policies.engine import PolicyEngine
from policies.explain import explain
from policies.testing import body_of, facts_of

_CACHED = 4


class ExplainRequest(BaseModel):
    """A call to think through. ``body`` is a request as it would be sent; ``text`` alone stands for one message."""

    model_config = ConfigDict(extra="forbid")

    stage: Literal["prompt", "response"] = "prompt"
    tenant: str | None = None
    """The caller's own when not given."""
    team: str = ""
    key: str = ""
    user: str = ""
    role: str = "developer"
    model: dict[str, Any] = Field({}, description="alias, region, simulated")
    call: dict[str, Any] = Field({}, description="route, stream, n, max_tokens, tags, tools")
    text: str | None = Field(None, max_length=1_000_000)
    body: dict[str, Any] | None = None
    response: dict[str, Any] | None = None


def _where_served(document: ConfigDocument, alias: str) -> dict[str, Any]:
    """Return region and ``simulated`` of the place that serves an alias first, when the alias exists."""
    model = document.get(Model, alias)
    if model is None:
        return {}
    target = model.active_version.targets[0]
    place: Pool | Provider | None = (
        document.get(Pool, target.pool) if target.pool else document.get(Provider, target.provider or "")
    )
    return {} if place is None else {"region": place.region, "simulated": place.simulated}


def router(services: Services) -> APIRouter:
    """Return the route. Nothing is called, stored or counted by it."""
    routes = APIRouter(prefix=ADMIN, tags=["policies"])
    engines: dict[str, PolicyEngine] = {}
    reader = Depends(require(services, "config.read"))

    def engine() -> PolicyEngine:
        document = services.config_store.current()
        found = engines.get(document.digest)
        if found is None:
            if len(engines) >= _CACHED:
                engines.clear()
            found = engines[document.digest] = PolicyEngine.compile(document)
        return found

    def work(request: ExplainRequest, tenant: str) -> dict[str, Any]:
        given = {**request.model_dump(exclude_none=True), "tenant": tenant}
        alias = request.model.get("alias") or (request.body or {}).get("model")
        if isinstance(alias, str):
            known = _where_served(services.config_store.current(), alias)
            given["model"] = {"alias": alias, **known, **request.model}
        route = str(request.call.get("route", "chat"))
        result = explain(
            engine(), facts_of(given), body_of(given, request.stage), stage=request.stage, route=route
        )
        own = [
            policy for policy in result["policies"] if not policy["why"].startswith("out of scope: tenant")
        ]
        return {**result, "policies": own}

    @routes.post("/policy/explain", summary="Explain what the policies decide on a call")
    async def explain_route(request: ExplainRequest, who: Principal = reader) -> dict[str, Any]:
        tenant = request.tenant or who.tenant
        if tenant is None:
            raise InvalidRequestError("Say for which tenant: 'tenant' is missing.", param="tenant")
        if not who.sees(tenant):
            raise InvalidRequestError("Your key belongs to another tenant.", param="tenant", status=403)
        return await asyncio.to_thread(work, request, tenant)

    return routes
