"""The record as JSON: ``/admin/v1/traces``, ``/admin/v1/usage`` and ``/metrics``."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Query, Request, Response

from gateway.control.auth import Principal, require
from gateway.control.reading import CallsQuery, Records, UsageQuery, call_json, trace_json
from gateway.control.services import Services
from observability.errors import UnknownTraceError
from observability.writer_client import WriterClient


def records_of(services: Services) -> Records:
    """Return the questions of this control plane."""
    return Records(services.record_store, WriterClient(services.settings.sockets / "writer-http.sock"))


def router(services: Services) -> APIRouter:
    """Return the routes. A key sees its own tenant, the administrator every tenant."""
    routes = APIRouter(tags=["records"])
    records = records_of(services)
    reader = Depends(require(services, "records.read"))
    _add_lists(routes, records, reader)
    _add_traces(routes, records, reader)
    _add_sums(routes, records, Depends(require(services, "usage.read")))
    return routes


def _add_lists(routes: APIRouter, records: Records, reader: Any) -> None:
    @routes.get("/admin/v1/traces", summary="List finished calls, newest first")
    async def list_calls(query: Annotated[CallsQuery, Query()], who: Principal = reader) -> dict[str, Any]:
        page = await records.calls(who, query)
        return {
            "object": "list",
            "data": [msgspec.structs.asdict(call) for call in page.data],
            "next_cursor": page.next_cursor or None,
            "has_more": bool(page.next_cursor),
        }

    @routes.get("/admin/v1/traces/live", summary="List calls in flight, newest first")
    async def live_calls(tenant: str = "", who: Principal = reader) -> dict[str, Any]:
        return {"object": "list", "data": await records.live(who, tenant)}

    @routes.get("/admin/v1/traces/histogram", summary="Count calls and errors over time")
    async def histogram(query: Annotated[CallsQuery, Query()], who: Principal = reader) -> dict[str, Any]:
        return await records.histogram(who, query)

    @routes.get("/admin/v1/traces/state", summary="How the record keeps up: lag, losses by cause, faults")
    async def state(who: Principal = reader) -> dict[str, Any]:
        return public_state(await records.writer.state(), everything=who.platform)


def _add_traces(routes: APIRouter, records: Records, reader: Any) -> None:
    """Add what reads one trace; after the lists, whose paths these patterns would take too."""

    @routes.get("/admin/v1/traces/{trace_id}", summary="Read everything recorded under one trace id")
    async def one_trace(trace_id: str, who: Principal = reader) -> dict[str, Any]:
        return trace_json(trace_id, await records.trace(who, trace_id))

    @routes.get("/admin/v1/traces/{trace_id}/calls/{span_id}", summary="Read one call with its kept content")
    async def one_call(trace_id: str, span_id: str, who: Principal = reader) -> dict[str, Any]:
        found = await records.trace(who, trace_id)
        for call in found.calls:
            if call.record.span_id == span_id:
                content = await records.content(who, trace_id, span_id) if call.has_content else None
                return {**call_json(call), "content": content}
        raise UnknownTraceError("There is no such call in this trace.", param="span_id")


def _add_sums(routes: APIRouter, records: Records, accountant: Any) -> None:
    @routes.get("/admin/v1/usage", summary="Sum calls, tokens, cost and latency over time")
    async def usage(query: Annotated[UsageQuery, Query()], who: Principal = accountant) -> dict[str, Any]:
        points = await records.usage(who, query)
        return {"object": "list", "data": [msgspec.structs.asdict(point) for point in points]}

    @routes.get("/metrics", include_in_schema=False)
    async def metrics(request: Request, who: Principal = accountant) -> Response:
        if not who.platform:
            return Response("Metrics span tenants: scrape with a platform administrator's key.\n", 403)
        text, kind = await records.writer.metrics(request.headers.get("accept", ""))
        return Response(text, media_type=kind)


def public_state(state: dict[str, Any], *, everything: bool) -> dict[str, Any]:
    """Return the writer's state; a tenant's key is not told of processes and faults beyond that there is one."""
    if everything:
        return state
    kept = ("lag_seconds", "waiting_batches", "dropped")
    return {
        **{name: state[name] for name in kept},
        "fault": "records cannot be written" if state["fault"] else "",
    }
