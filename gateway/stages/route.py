"""Where the call goes: hand it to the router, with what it may use, and take the answer."""

from __future__ import annotations

import time
from typing import Any

from airi.errors import AiriError
from gateway import detectors, workflows
from gateway.dialects.anthropic.front import MessageCall
from gateway.exchange import Exchange
from gateway.operations import EMBEDDINGS
from gateway.runtime import Runtime
from gateway.stages.admit import wished_output
from gateway.stages.authenticate import bearer
from gateway.stages.native import hosted_tools, way
from observability import tracecontext
from routing.call import Call
from routing.contract import NOTHING, Needs
from routing.payload import Payload

# Prefix affinity looks at the beginning of a prompt; more text than this changes nothing.
_PREFIX_CHARACTERS = 8_192

_TRACESTATE = 512
"""What a vendor must at least pass on of it, says Trace Context; more is left out whole."""

_INSIDE = (workflows.PREFIX, detectors.MODEL)
"""Models that the control plane serves: it asks who calls, as for any route of its own."""


async def route(runtime: Runtime, exchange: Exchange) -> None:
    """Set the Exchange's answer: of a stream when its first block is there, else whole."""
    plan, key = exchange.plan, exchange.key
    assert plan is not None
    assert key is not None
    since = time.monotonic_ns()
    overrides = _overrides(exchange)
    to, native, thinking = exchange.route or plan.route, None, False
    if exchange.translation is not None:
        to, native = way(exchange, to, overrides)
        thinking = isinstance(exchange.translation, MessageCall) and exchange.translation.thinking
    call = Call(
        route=to,
        tenant=key.tenant,
        payload=Payload(exchange.body),
        path=exchange.operation.upstream,
        stream=exchange.stream,
        weight=plan.weight,
        priority=_priority(exchange),
        input_tokens=exchange.input_estimate,
        predicted_output_tokens=exchange.predicted_output,
        prefix_text=prefix_text(exchange.body) if to.looks_at_prompts else "",
        session=exchange.session,
        headers=_headers(exchange),
        overrides=overrides,
        needs=_needs(exchange),
        native=native,
        thinking=thinking,
    )
    exchange.call = call
    try:
        answer = await runtime.router.send(call)
    except AiriError as error:
        exchange.attempts = list(getattr(error, "attempts", ()))
        exchange.decide("route", since, "failed", error.message, {})
        raise
    exchange.answer = answer
    exchange.attempts = answer.attempts
    exchange.decide("route", since, "chosen", f"served by {answer.target}", {})
    exchange.mark("route")


def _headers(exchange: Exchange) -> list[tuple[bytes, bytes]]:
    traceparent = tracecontext.format_traceparent(exchange.trace_id, exchange.span_id, exchange.trace_flags)
    headers = [(b"traceparent", traceparent.encode()), (b"x-request-id", exchange.request_id.encode())]
    if (
        exchange.parent_span_id
        and (state := exchange.request.header(b"tracestate"))
        and len(state) <= _TRACESTATE
    ):
        headers.append((b"tracestate", state))
    if exchange.alias.startswith(_INSIDE):
        headers.append((b"authorization", b"Bearer " + bearer(exchange.request).encode("latin-1")))
        if exchange.idempotency_key:
            headers.append((b"idempotency-key", exchange.idempotency_key.encode("latin-1")))
    return headers


def prefix_text(body: dict[str, Any]) -> str:
    """Return the beginning of the prompt as text: what replicas may already hold in their prefix cache."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        prompt = body.get("prompt")
        return prompt[:_PREFIX_CHARACTERS] if isinstance(prompt, str) else ""
    parts: list[str] = []
    size = 0
    for message in messages:
        content = message.get("content")
        texts = (
            [content]
            if isinstance(content, str)
            else [part["text"] for part in content or () if isinstance(part.get("text"), str)]
        )
        for text in texts:
            parts.append(f"{message['role']}:{text}")
            size += len(text)
        if size >= _PREFIX_CHARACTERS:
            break
    return "\n".join(parts)[:_PREFIX_CHARACTERS]


def _overrides(exchange: Exchange) -> dict[str, Any] | None:
    """Return the fields that the gateway sets: a lowered or inserted ``max_tokens``, and usage in streams."""
    overrides: dict[str, Any] = {}
    plan, admitted = exchange.plan, exchange.admitted
    assert plan is not None
    assert admitted is not None
    if exchange.operation.generates:
        granted = admitted.output_tokens
        asked = [
            name for name in ("max_completion_tokens", "max_tokens") if exchange.body.get(name) is not None
        ]
        bounded = plan.scopes.has_money or exchange.run is not None or granted < wished_output(exchange, plan)
        if asked:
            exchange.max_tokens = granted
            overrides.update({name: granted for name in asked if exchange.body[name] != granted})
        elif bounded:
            exchange.max_tokens = granted
            overrides["max_tokens"] = granted
    if exchange.stream:
        options = exchange.body.get("stream_options") or {}
        if options.get("include_usage") is not True:
            overrides["stream_options"] = {**options, "include_usage": True}
    return overrides or None


def _priority(exchange: Exchange) -> int:
    text = exchange.request.header(b"x-airi-priority")
    if text is None:
        return 0
    try:
        return max(-9, min(9, int(text)))
    except ValueError:
        return 0


def _needs(exchange: Exchange) -> Needs:
    body = exchange.body
    tools = bool(body.get("tools") or (exchange.translation is not None and hosted_tools(exchange)))
    response_format = body.get("response_format")
    schema = isinstance(response_format, dict) and response_format.get("type") == "json_schema"
    may_have = exchange.translation is not None or b'"image_url"' in exchange.request.body
    vision = may_have and _has_image(body)
    embeddings = exchange.operation is EMBEDDINGS
    if not (tools or schema or vision or embeddings):
        return NOTHING
    return Needs(tools=tools, json_schema=schema, vision=vision, embeddings=embeddings)


def _has_image(body: dict[str, Any]) -> bool:
    return any(
        part.get("type") == "image_url"
        for message in body.get("messages", ())
        if isinstance(message.get("content"), list)
        for part in message["content"]
    )
