"""``/v1/workflows`` and ``/v1/runs``: start, watch, decide, stop. A key sees the runs of its own tenant."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from agents.errors import RunsBusyError
from agents.service import RunService, Starter
from agents.states import RUN_ENDED
from airi.errors import InvalidRequestError, PermissionDeniedError
from gateway.control.auth import Principal, require
from gateway.control.services import Services
from gateway.control.watching import RunWatch

_HEARTBEAT_S = 15.0
_MAX_STREAMS = 1_000
_MAX_INPUT_BYTES = 4 * 1024 * 1024


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StartBody(_Body):
    """What starts a run."""

    inputs: dict[str, Any] = Field(default_factory=dict)


class ApproveBody(_Body):
    """The answer to an approval; ``step`` may be left out when only one waits."""

    approved: bool = True
    step: str | None = None
    comment: str = Field("", max_length=2_000)


class ResumeBody(_Body):
    """How a run goes on: ``retry`` (again), ``done`` (it did happen, with this output), ``fail`` (it did not)."""

    step: str | None = None
    action: Literal["retry", "done", "fail"] = "retry"
    output: Any = None


def tenant_of(who: Principal) -> str | None:
    """Whose runs a principal may see: its tenant's, or (for the platform) everybody's."""
    return None if who.platform else who.tenant


def starter_of(who: Principal) -> Starter:
    """In whose name a run is started."""
    if who.tenant is None or who.key_id is None:
        raise PermissionDeniedError(
            "runs are started with a tenant's key, because their model calls are paid by it; this is the administrator's"
        )
    return Starter(who.tenant, who.team or "", who.key_id)


def router(services: Services) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["runs"])
    service: RunService = services.run_service
    reader = Depends(require(services, "runs.read", "workflows.run"))
    _add_workflows(routes, service, reader, Depends(require(services, "workflows.run")))
    _add_reading(routes, service, reader)
    _add_following(routes, service, reader)
    _add_deciding(
        routes, service, Depends(require(services, "runs.write", "workflows.run")), Depends(require(services))
    )
    return routes


def _add_workflows(routes: APIRouter, service: RunService, reader: Any, runner: Any) -> None:
    @routes.get("/v1/workflows", summary="List the workflows that can be run")
    def list_workflows(who: Principal = reader) -> dict[str, Any]:
        return {"object": "list", "data": service.workflows()}

    @routes.get("/v1/workflows/{name:path}/runs", summary="List the runs of a workflow, newest first")
    def list_runs_of(
        name: str,
        state: str | None = None,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 50,
        who: Principal = reader,
    ) -> dict[str, Any]:
        return _page(service, who, name, state, after, limit)

    @routes.post("/v1/workflows/{name:path}/runs", summary="Start a run")
    def start(
        name: str,
        body: StartBody,
        response: Response,
        idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
        traceparent: Annotated[str | None, Header()] = None,
        who: Principal = runner,
    ) -> dict[str, Any]:
        if len(msgspec.json.encode(body.inputs)) > _MAX_INPUT_BYTES:
            raise InvalidRequestError(f"the inputs are larger than {_MAX_INPUT_BYTES:,} bytes", status=413)
        run_id, new = service.start(
            name, body.inputs, starter_of(who), idempotency_key=idempotency_key, traceparent=traceparent
        )
        response.status_code = 201 if new else 200
        response.headers["location"] = f"/v1/runs/{run_id}"
        return service.get_run(run_id, tenant_of(who))


def _add_reading(routes: APIRouter, service: RunService, reader: Any) -> None:
    @routes.get("/v1/runs", summary="List runs, newest first")
    def list_runs(
        workflow: str | None = None,
        state: str | None = None,
        after: str | None = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 50,
        who: Principal = reader,
    ) -> dict[str, Any]:
        return _page(service, who, workflow, state, after, limit)

    @routes.get("/v1/runs/{run_id}", summary="Read a run with its steps")
    def get_run(run_id: str, who: Principal = reader) -> dict[str, Any]:
        return service.get_run(run_id, tenant_of(who))

    @routes.get("/v1/runs/{run_id}/effects", summary="List what a run did to the outside, by key")
    def get_effects(run_id: str, who: Principal = reader) -> dict[str, Any]:
        return {"object": "list", "data": service.effects(run_id, tenant_of(who))}


def _add_following(routes: APIRouter, service: RunService, reader: Any) -> None:
    watch = RunWatch(service)

    @routes.get("/v1/runs/{run_id}/events", summary="Follow a run (server-sent events, resumable)")
    async def get_events(
        request: Request,
        run_id: str,
        starting_after: Annotated[int | None, Query(ge=0)] = None,
        last_event_id: Annotated[str | None, Header()] = None,
        who: Principal = reader,
    ) -> StreamingResponse:
        after = starting_after if starting_after is not None else _event_number(last_event_id)
        await asyncio.to_thread(service.summary, run_id, tenant_of(who))
        if watch.streams >= _MAX_STREAMS:
            raise RunsBusyError("too many callers follow runs; try again", retry_after_ms=2_000)
        stream = follow(service, watch, run_id, after, request)
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)


def _add_deciding(routes: APIRouter, service: RunService, writer: Any, anybody: Any) -> None:
    @routes.post("/v1/runs/{run_id}/cancel", summary="Stop a run; afterwards no new effect starts")
    def cancel(run_id: str, who: Principal = writer) -> dict[str, Any]:
        return service.cancel(run_id, tenant_of(who), by=who.actor)

    @routes.post("/v1/runs/{run_id}/approve", summary="Answer an approval that a run waits for")
    def approve(run_id: str, body: ApproveBody, who: Principal = anybody) -> dict[str, Any]:
        return service.approve(
            run_id, tenant_of(who), by=who.actor, role=who.role, step=body.step, approved=body.approved,
            comment=body.comment,
        )  # fmt: skip

    @routes.post("/v1/runs/{run_id}/resume", summary="Settle what needs review, or try a failed run again")
    def resume(run_id: str, body: ResumeBody, who: Principal = writer) -> dict[str, Any]:
        return service.resume(
            run_id, tenant_of(who), by=who.actor, step=body.step, action=body.action, output=body.output
        )


def _page(
    service: RunService,
    who: Principal,
    workflow: str | None,
    state: str | None,
    after: str | None,
    limit: int,
) -> dict[str, Any]:
    found = service.list_runs(tenant_of(who), workflow=workflow, state=state, before=after, limit=limit)
    full = len(found) == limit
    return {
        "object": "list",
        "data": found,
        "has_more": full,
        "next_after": found[-1]["id"] if full else None,
    }


def _event_number(text: str | None) -> int:
    if not text:
        return 0
    if not text.isdigit():
        raise InvalidRequestError("Last-Event-ID must be the number of an event", param="last-event-id")
    return int(text)


async def follow(
    service: RunService, watch: RunWatch, run_id: str, after: int, request: Request | None = None
) -> AsyncIterator[bytes]:
    """The run's events after a number as server-sent events, each exactly once and in order, until it has ended."""
    yield b"retry: 1000\n\n"
    spoken = time.monotonic()
    with watch.watching(run_id) as changes:
        while True:
            seq, state = await changes.beyond(after, _HEARTBEAT_S)
            while after < seq:
                found = await asyncio.to_thread(service.events, run_id, after)
                for event in found:
                    yield as_sse(event)
                after = found[-1]["seq"] if found else seq
                spoken = time.monotonic()
            if state in RUN_ENDED:
                return
            if request is not None and await request.is_disconnected():
                return
            if time.monotonic() - spoken >= _HEARTBEAT_S:
                spoken = time.monotonic()
                yield b": heartbeat\n\n"


def as_sse(event: dict[str, Any]) -> bytes:
    """One event as bytes of a stream; its id is its number."""
    return b"id: %d\nevent: %s\ndata: %s\n\n" % (
        event["seq"],
        event["type"].encode(),
        msgspec.json.encode(event),
    )
