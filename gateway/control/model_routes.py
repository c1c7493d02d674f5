"""Model routes that call no model: stored responses, and counting tokens. See :mod:`gateway.dialects`."""

from __future__ import annotations

import asyncio
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from airi.config.document import ConfigDocument
from airi.config.kinds import Model, Pool, Provider, Tenant, Workflow
from airi.errors import InvalidRequestError, PermissionDeniedError
from airi.keys import scopes
from airi.keys.record import KeyRecord
from airi.patterns import allowed
from airi.stored_responses import Reader, ResponseStore
from gateway.control.auth import authenticate
from gateway.control.services import Services
from gateway.dialects.anthropic.request import to_chat as messages_to_chat
from gateway.dialects.counting import count
from gateway.dialects.front import Body
from gateway.dialects.responses.items import input_items
from gateway.dialects.responses.request import to_chat as responses_to_chat
from gateway.operations import check_chat, decode_body
from gateway.workflows import PREFIX
from routing.errors import UnknownModelError

_ESTIMATED = {"x-airi-estimated": "true"}


async def caller(services: Services, request: Request) -> KeyRecord:
    """Return the key that calls; the administrator's belongs to no tenant and is refused."""
    found = await authenticate(services, request)
    if found.record is None:
        raise PermissionDeniedError("the administrator's key belongs to no tenant; use a tenant's key")
    found.demand("models.call")
    return found.record


def visible(document: ConfigDocument, key: KeyRecord, alias: str) -> None:
    """Raise unless the model exists and tenant, team and key all admit it."""
    exists = (
        document.get(Workflow, alias.removeprefix(PREFIX)) is not None
        if alias.startswith(PREFIX)
        else document.get(Model, alias) is not None
    )
    tenant = document.get(Tenant, key.tenant)
    if not exists or tenant is None or not allowed(tenant.models, alias):
        raise UnknownModelError(alias)
    team = next((team for team in tenant.teams if team.name == key.team), None)
    if team is not None and not allowed(team.models, alias):
        raise UnknownModelError(alias)
    scopes.check(key, model=alias)


def router(services: Services) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["models"])
    _add_responses(routes, services, ResponseStore(services.engine, services.content))
    _add_counting(routes, services)
    return routes


def _add_responses(routes: APIRouter, services: Services, store: ResponseStore) -> None:
    @routes.post("/v1/responses/input_tokens", summary="Estimate a response's input tokens")
    async def input_tokens(request: Request) -> JSONResponse:
        key = await caller(services, request)
        body = decode_body(await request.body())

        def work() -> int:
            model = _model(body)
            document = services.config_store.current()
            visible(document, key, model)
            previous = body.get("previous_response_id")
            history = store.history(Reader.of(key), str(previous)) if previous is not None else []
            given = [*history, *input_items(body.get("input"))]
            chat = responses_to_chat(body, given, lenient=_speaks_responses(document, model))
            check_chat(chat)
            return count(chat)

        found = {"object": "response.input_tokens", "input_tokens": await asyncio.to_thread(work)}
        return JSONResponse({**found, "estimated": True}, headers=_ESTIMATED)

    @routes.get("/v1/responses/{response_id}", summary="Read a stored response")
    async def retrieve(request: Request, response_id: str, stream: bool = False) -> JSONResponse:
        key = await caller(services, request)
        if stream:
            raise InvalidRequestError("A stored response cannot be streamed again.", param="stream")
        return JSONResponse((await asyncio.to_thread(store.load, Reader.of(key), response_id)).response)

    @routes.delete("/v1/responses/{response_id}", summary="Delete a stored response")
    async def remove(request: Request, response_id: str) -> JSONResponse:
        key = await caller(services, request)
        await asyncio.to_thread(store.remove, Reader.of(key), response_id)
        return JSONResponse({"id": response_id, "object": "response", "deleted": True})

    @routes.get("/v1/responses/{response_id}/input_items", summary="List the items a response was made from")
    async def list_items(
        request: Request,
        response_id: str,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
    ) -> JSONResponse:
        key = await caller(services, request)
        stored = await asyncio.to_thread(store.load, Reader.of(key), response_id)
        return JSONResponse(page(stored.input, limit, order, after))

    @routes.post("/v1/responses/{response_id}/cancel", summary="Cancel a response made in the background")
    async def cancel(request: Request, response_id: str) -> JSONResponse:
        key = await caller(services, request)
        await asyncio.to_thread(store.load, Reader.of(key), response_id)
        raise InvalidRequestError(
            "Only responses made in the background can be cancelled; AIRI makes none. To stop one, close its connection.",
            param="response_id",
        )


def _add_counting(routes: APIRouter, services: Services) -> None:
    @routes.post("/v1/messages/count_tokens", summary="Estimate a message's input tokens (Anthropic)")
    async def count_tokens(request: Request) -> JSONResponse:
        key = await caller(services, request)
        body = decode_body(await request.body())

        def work() -> int:
            visible(services.config_store.current(), key, _model(body))
            chat = messages_to_chat({"max_tokens": 1, **body})
            check_chat(chat)
            return count(chat)

        tokens = await asyncio.to_thread(work)
        return JSONResponse({"input_tokens": tokens, "estimated": True}, headers=_ESTIMATED)


def page(given: list[Body], limit: int, order: str, after: str | None) -> Body:
    """Return one page of items in OpenAI's list form."""
    ordered = given if order == "asc" else given[::-1]
    if after is not None:
        place = next((index for index, item in enumerate(ordered) if item.get("id") == after), None)
        if place is None:
            raise InvalidRequestError(f"There is no item '{after[:80]}' in this list.", param="after")
        ordered = ordered[place + 1 :]
    data = ordered[:limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0].get("id") if data else None,
        "last_id": data[-1].get("id") if data else None,
        "has_more": len(ordered) > limit,
    }


def _speaks_responses(document: ConfigDocument, alias: str) -> bool:
    """Whether a target of the model takes what chat completions have no place for; that is left out of the count."""
    model = document.get(Model, alias)
    for target in model.active_version.targets if model is not None else ():
        place = (
            document.get(Pool, target.pool) if target.pool else document.get(Provider, str(target.provider))
        )
        if place is not None and place.responses:
            return True
    return False


def _model(body: Body) -> str:
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequestError(
            "You must name a model: 'model' is missing or not a string.", param="model", code="missing_model"
        )
    return model
