"""The last stage: the finished Exchange becomes one record and goes to the writer."""

from __future__ import annotations

import msgspec

import routing.call
from gateway.exchange import Exchange
from gateway.runtime import Runtime
from gateway.usage import Usage
from observability.joining import join_events
from observability.record import Attempt, CallContent, CallRecord
from policies.redaction import mask_json
from routing.answer import Answer

_encode = msgspec.json.Encoder().encode
_MAX_CONTENT_BYTES = 1 << 20


def record(runtime: Runtime, exchange: Exchange) -> None:
    """Emit the call's record; it never blocks and never fails the call."""
    exchange.mark("end")
    runtime.emitter.emit(make_record(exchange, runtime.process), _content(exchange))


def _content(exchange: Exchange) -> CallContent | None:
    """Return what the tenant has asked to keep, masked here: nothing unmasked leaves this process."""
    if (
        exchange.plan is None
        or not exchange.plan.keep_content
        or len(exchange.request.body) > _MAX_CONTENT_BYTES
    ):
        return None
    request = mask_json(_encode(exchange.body).decode())
    reply = b"".join(exchange.kept or ())
    if exchange.stream and reply:
        joined = join_events(reply)
        reply = _encode(joined) if joined is not None else b""
    response = mask_json(reply.decode(errors="replace")) if reply else ""
    return CallContent(request.encode(), response.encode())


def make_record(exchange: Exchange, process: str) -> CallRecord:
    """Return what the dashboard and the exporters will know about the call."""
    usage = exchange.usage or Usage()
    key = exchange.key
    answer = exchange.answer
    call = CallRecord(
        trace_id=exchange.trace_id,
        span_id=exchange.span_id,
        parent_span_id=exchange.parent_span_id,
        request_id=exchange.request_id,
        process=process,
        tenant=key.tenant if key is not None else "",
        started_unix_ns=exchange.started_unix_ns,
        duration_us=exchange.marks["end"],
        status=exchange.status,
        user=exchange.user,
        session=exchange.session,
        tags=exchange.tags,
        route=exchange.operation.path,
        operation=exchange.operation.name,
        model=exchange.model,
        alias=exchange.alias,
        stream=exchange.stream,
        error_type=exchange.error_type,
        error_code=exchange.error_code,
        error_message=exchange.error_message,
        marks=exchange.marks,
        ttft_us=exchange.ttft_us,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cached_tokens=usage.cached_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        usage_source=usage.source,
        max_tokens=exchange.max_tokens,
        cost_usd_micros=exchange.cost_usd_micros,
        price_source=exchange.price_source,
        reservation_id=exchange.reservation_id,
        finish_reasons=exchange.finish_reasons,
        decisions=exchange.decisions,
        snapshot=exchange.snapshot.digest,
        detections=exchange.detections,
        policy_hit=exchange.policy_hit,
        replayed=exchange.replayed,
        chunks=exchange.chunks,
    )
    if key is not None:
        call.team, call.key_id = key.team or "", key.id
    if exchange.run is not None:
        call.run_id, call.step = exchange.run.run_id, exchange.run.step
    if answer is not None:
        _add_answer(call, answer)
        _explain_route(call, answer)
    if exchange.attempts:
        offset = exchange.marks.get("policy", 0)
        call.attempts = [_attempt(attempt, offset) for attempt in exchange.attempts]
    return call


def _add_answer(call: CallRecord, answer: Answer) -> None:
    call.version = answer.version.rpartition("@")[2]
    call.target = answer.target
    call.provider = answer.target.partition("/")[0]
    call.provider_model = answer.model
    call.simulated = answer.simulated


def _explain_route(call: CallRecord, answer: Answer) -> None:
    """Add why this place, worked out only now: the caller has its answer."""
    for decision in call.decisions:
        if decision.stage == "route":
            decision.details = answer.explanation


def _attempt(attempt: routing.call.Attempt, offset_us: int) -> Attempt:
    return Attempt(
        target=attempt.target,
        at_us=offset_us + attempt.started_us,
        outcome="ok" if attempt.outcome == "ok" else "error",
        status=attempt.status,
        duration_us=attempt.took_us,
        error="" if attempt.outcome == "ok" else attempt.outcome,
        reason=attempt.detail,
        model=attempt.label,
        provider_model=attempt.model,
        wait_us=attempt.queued_us,
    )
