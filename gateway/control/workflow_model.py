"""Workflows as models: the OpenAI dialect of ``model: workflow/NAME``, for the gateway's own use.

The gateway sends such calls here as to any upstream. This route holds no slot of anything while it waits: it follows
the run's events (one shared query), the run's steps are in the workers' hands, and its model calls come through the
gateway's door with leases of their own. So the gateway takes neither a concurrency lease nor a place in a fair queue
for a call of ``workflow/…``, and a worker counts a step that waits for one outside of its slots; otherwise workflows
that call each other could wait for each other forever.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from agents.service import RunService
from agents.states import RUN_ENDED
from airi.errors import AiriError, InvalidRequestError
from gateway.control.auth import Principal, require
from gateway.control.http_errors import from_error
from gateway.control.runs import starter_of
from gateway.control.services import Services
from gateway.control.watching import RunWatch

ROUTE = "/internal/workflow-model/v1/chat/completions"
PREFIX = "workflow/"
COST_HEADER = "x-airi-cost-usd-micros"
_HEARTBEAT_S = 10.0
_LONGEST_S = 3_600.0
_STATUS = {"rate_limit": 429, "budget": 429, "timeout": 504, "policy": 403, "rejected": 409}
_ANSWERS = ("answer", "text", "report")
_STOPPED = (*RUN_ENDED, "waiting", "needs_review")


class WorkflowFailedError(AiriError):
    """The run behind a model call did not complete."""

    status = 502
    code = "workflow_failed"


def router(services: Services) -> APIRouter:
    """Return the route."""
    routes = APIRouter(include_in_schema=False)
    service: RunService = services.run_service
    watch = RunWatch(service)
    runner = Depends(require(services, "workflows.run", run_tokens=True))

    @routes.post(ROUTE)
    async def complete(
        request: Request,
        idempotency_key: Annotated[str | None, Header(max_length=255)] = None,
        traceparent: Annotated[str | None, Header()] = None,
        who: Principal = runner,
    ) -> Response:
        body = _read(await request.body())
        name = str(body.get("model", "")).removeprefix(PREFIX)
        run_id = await asyncio.to_thread(_start, service, name, body, who, idempotency_key, traceparent)
        keep = idempotency_key is not None  # whoever gave a key can come back for the answer
        if body.get("stream"):
            usage = bool((body.get("stream_options") or {}).get("include_usage"))
            chunks = _stream(service, watch, run_id, str(body["model"]), usage=usage, keep=keep)
            return StreamingResponse(
                chunks, media_type="text/event-stream", headers={"cache-control": "no-store"}
            )
        run = await _wait(service, watch, run_id, request, keep=keep)
        headers = {COST_HEADER: str(_cost(run)), "x-airi-run": run_id}
        try:
            return JSONResponse(_completion(run, str(body["model"])), headers=headers)
        except WorkflowFailedError as error:
            failed = from_error(error)
            failed.headers.update(headers)  # a run that failed has spent what it has spent
            return failed

    return routes


def _read(raw: bytes) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(raw)
    except msgspec.DecodeError as error:
        raise InvalidRequestError("the body is not valid JSON") from error
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list) or not body["messages"]:
        raise InvalidRequestError("'messages' must be a list with at least one message", param="messages")
    if body.get("n", 1) != 1:
        raise InvalidRequestError("a workflow gives one answer: 'n' must be 1", param="n")
    return body


def _start(
    service: RunService,
    name: str,
    body: dict[str, Any],
    who: Principal,
    key: str | None,
    traceparent: str | None,
) -> str:
    """Start the run (or find the one that this key has started)."""
    starter, budget = starter_of(who), None
    if who.run is not None:
        starter = service.nested(starter, who.run.run_id)
        budget = who.run.budget_usd_micros
    inputs = inputs_of(service.workflow(name).body.inputs, body["messages"])
    run_id, _ = service.start(
        name, inputs, starter, idempotency_key=key, traceparent=traceparent, budget_usd_micros=budget
    )
    return run_id


def inputs_of(schema: dict[str, Any], messages: list[dict[str, Any]]) -> dict[str, Any]:
    """The inputs of a workflow that is called as a model.

    ``messages`` and ``input`` (the last user's text) as far as the schema declares them; a schema that declares neither
    gets the text as its only required text property.
    """
    text = _last_text(messages)
    properties = schema.get("properties", {})
    given = {name: value for name, value in (("messages", messages), ("input", text)) if name in properties}
    if given or not properties:
        return given or {"messages": messages, "input": text}
    required = [
        name for name in schema.get("required", []) if properties.get(name, {}).get("type") == "string"
    ]
    if len(required) == 1 == len(schema.get("required", [])):
        return {required[0]: text}
    raise InvalidRequestError(
        "this workflow cannot be called as a model: declare an input 'input' (the user's text) or 'messages'",
        param="model",
    )


def _last_text(messages: list[dict[str, Any]]) -> str:
    for message in reversed(messages):
        if isinstance(message, dict) and message.get("role") == "user":
            content = message.get("content")
            if isinstance(content, str):
                return content
            parts = content if isinstance(content, list) else []
            return "\n".join(str(part.get("text", "")) for part in parts if isinstance(part, dict))
    raise InvalidRequestError("'messages' holds no message of a user", param="messages")


async def _wait(
    service: RunService, watch: RunWatch, run_id: str, request: Request, *, keep: bool
) -> dict[str, Any]:
    """Wait until the run has stopped moving; a caller that leaves without a key takes its run with it."""
    deadline = time.monotonic() + _LONGEST_S
    seq = 0
    try:
        with watch.watching(run_id) as changes:
            while time.monotonic() < deadline:
                seq, state = await changes.beyond(seq, 1.0)
                if state in _STOPPED and (run := await _settled(service, run_id)) is not None:
                    return run
                if await request.is_disconnected():
                    raise asyncio.CancelledError
    except asyncio.CancelledError:
        if not keep:
            with contextlib.suppress(AiriError):
                await asyncio.to_thread(service.cancel, run_id, by="caller left")
        raise
    raise WorkflowFailedError(
        f"run {run_id} goes on, but nobody waits this long: GET /v1/runs/{run_id}", status=504
    )


async def _settled(service: RunService, run_id: str) -> dict[str, Any] | None:
    """The run, if it has ended or waits for a person (and not merely for time to pass)."""
    run: dict[str, Any] = await asyncio.to_thread(service.get_run, run_id)
    if run["state"] in RUN_ENDED or run["approvals"] or run["state"] == "needs_review":
        return run
    return None


def _main_of(outputs: dict[str, Any]) -> Any:
    """The output that is the answer: the only one, or the one that is called so; else all of them."""
    if len(outputs) == 1:
        return next(iter(outputs.values()))
    return next((outputs[name] for name in _ANSWERS if name in outputs), outputs)


def answer_of(run: dict[str, Any]) -> str:
    """What the model says: the workflow's output, or for what the run waits. Raises for a run that failed."""
    if run["state"] == "completed":
        outputs = run["outputs"]
        value = _main_of(outputs) if isinstance(outputs, dict) else outputs
        return value if isinstance(value, str) else msgspec.json.encode(value).decode()
    if run["approvals"]:
        asked = run["approvals"][0]
        question = f" It asks: {asked['message']}" if asked["message"] else ""
        return (
            f"This workflow waits for an approval by {asked['role']} (step {asked['step']}).{question} "
            f"Decide with POST /v1/runs/{run['id']}/approve; the run's id is {run['id']}."
        )
    if run["state"] == "needs_review":
        return f"This workflow waits for a person to review an effect; the run's id is {run['id']}."
    error = run["error"] or {}
    said = error.get("message") or f"the run was {run['state']}"
    raise WorkflowFailedError(
        f"run {run['id']} {run['state']}: {said}", status=_STATUS.get(error.get("class", ""), 502)
    )


def _cost(run: dict[str, Any]) -> int:
    """What the run costs whoever called it: what it has spent, or may still spend while it waits for a person."""
    spent: int = run["spent_usd_micros"]
    return spent if run["state"] in RUN_ENDED else max(spent, run["budget_usd_micros"] or 0)


def _about(run: dict[str, Any]) -> dict[str, Any]:
    return {
        "run_id": run["id"],
        "state": run["state"],
        "spent_usd_micros": run["spent_usd_micros"],
        "tokens": run["spent_tokens"],
    }


# The run's own model calls are metered one by one; counting their tokens here again would bill them twice.
_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def _completion(run: dict[str, Any], model: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": answer_of(run), "refusal": None}
    return {
        "id": f"chatcmpl-{run['id']}", "object": "chat.completion", "created": run["created_at"] // 1000, "model": model,
        "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None}],
        "usage": _USAGE, "airi": _about(run),
    }  # fmt: skip


async def _stream(
    service: RunService, watch: RunWatch, run_id: str, model: str, *, usage: bool, keep: bool
) -> AsyncIterator[bytes]:
    """Progress as comments, then the answer, then ``[DONE]``; a failure is an error event without ``[DONE]``."""
    head = {
        "id": f"chatcmpl-{run_id}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": model,
    }

    def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        body = {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}
        return b"data: " + msgspec.json.encode(body) + b"\n\n"

    ended = False
    try:
        yield chunk({"role": "assistant", "content": ""})
        run: dict[str, Any] | None = None
        after = 0
        with watch.watching(run_id) as changes:
            while run is None:
                seq, state = await changes.beyond(after, _HEARTBEAT_S)
                if seq == after:
                    yield b": waiting\n\n"
                while after < seq and (found := await asyncio.to_thread(service.events, run_id, after)):
                    after = found[-1]["seq"]
                    for event in found:
                        yield f": {event['type']} {event['step'] or ''}".rstrip().encode() + b"\n\n"
                if state in _STOPPED:
                    run = await _settled(service, run_id)
        ended = True
        try:
            text = answer_of(run)
        except AiriError as error:
            said = {"message": error.message, "type": error.type, "code": error.code, "param": None}
            yield b"data: " + msgspec.json.encode({"error": said}) + b"\n\n"
            return
        yield chunk({"content": text})
        yield chunk({}, "stop", airi=_about(run))
        if usage:
            yield b"data: " + msgspec.json.encode({**head, "choices": [], "usage": _USAGE}) + b"\n\n"
        yield b"data: [DONE]\n\n"
    finally:
        if not ended and not keep:
            with contextlib.suppress(AiriError):
                await asyncio.shield(asyncio.to_thread(service.cancel, run_id, by="caller left"))
