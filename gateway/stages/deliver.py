"""The answer's way to the caller: whole, as a stream, as a repetition, or as an error."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import msgspec
from sqlalchemy.exc import SQLAlchemyError

from airi.content import ContentStore
from airi.errors import AiriError, UnavailableError
from gateway.dialects.front import Translation, passed_error
from gateway.dialects.responses.native import NativeAnswer
from gateway.dialects.responses.native_stream import NativeRelay
from gateway.errors import error_body
from gateway.exchange import Exchange
from gateway.heads import EVENTS, JSON, head, retry_after
from gateway.operations import error_form
from gateway.runtime import Runtime
from gateway.stages.native import arrived, look_at
from gateway.stages.prompt import note
from gateway.stages.settle import settle, work_out_cost
from gateway.streams import StreamRelay, error_event
from gateway.usage import estimated, from_openai
from gateway.workflows import ran_and_failed, spent_inside
from policies.admission import Replay
from policies.errors import PolicyDeniedError
from routing.answer import Answer

_MAX_KEPT_BYTES = 8 << 20
_CONFIRM_MS = 2_000
_STORE_S = 5.0
_log = logging.getLogger("airi.gateway")
_PROGRESS_EVENTS = 32


class _WholeChoice(msgspec.Struct):
    finish_reason: str | None = None


class _Whole(msgspec.Struct):
    choices: list[_WholeChoice] = []
    usage: dict[str, Any] | None = None


class _Reply(msgspec.Struct):
    """What is kept of an idempotent call's answer."""

    status: int
    stream: bool
    body: bytes
    cost_usd_micros: int = 0


_whole_decoder = msgspec.json.Decoder(_Whole)
_dict_decoder = msgspec.json.Decoder(dict[str, Any])
_encode_json = msgspec.json.Encoder().encode
_reply_decoder = msgspec.msgpack.Decoder(_Reply)


async def deliver(runtime: Runtime, exchange: Exchange) -> None:
    """Send the answer on; what the caller sees first is the commit point."""
    answer = exchange.answer
    assert answer is not None
    native = arrived(exchange, answer)
    if exchange.stream and answer.status == 200:
        await _deliver_stream(runtime, exchange, answer, native)
    else:
        await _deliver_whole(runtime, exchange, answer)


async def _deliver_whole(runtime: Runtime, exchange: Exchange, answer: Answer) -> None:
    body = await answer.read()
    exchange.mark("last_byte")
    status = answer.status
    if status >= 400:
        exchange.error_type, exchange.error_code = "upstream_error", f"upstream_{status}"
        if exchange.operation.front is not None:
            body = exchange.operation.front.error_body(passed_error(status, body))
    else:
        body = _take_whole(exchange, body)
        if exchange.translation is not None:
            body = await _translated(exchange, exchange.translation, body)
    exchange.status = status
    block = head(exchange, JSON)
    if status >= 400:
        block += b"".join(b"%b: %b\r\n" % pair for pair in answer.headers if pair[0] == b"retry-after")
    elif exchange.idempotency_key:
        await _keep_reply(runtime, exchange, _Reply(status, False, body))
    if exchange.run is not None:
        settle(
            runtime, exchange
        )  # a run wants to know its cost with the answer; others settle after the last byte
        block += b"x-airi-cost-usd-micros: %d\r\n" % _told_cost(exchange)
    if exchange.plan is not None and exchange.plan.keep_content:
        exchange.kept = [body]
    exchange.request.respond(status, block, body)


def _told_cost(exchange: Exchange) -> int:
    """Return what a run is told that its call cost: of a workflow that it called, what that has spent."""
    return exchange.cost_usd_micros + spent_inside(exchange.answer)


async def _translated(exchange: Exchange, translation: Translation, body: bytes) -> bytes:
    assert exchange.usage is not None
    return await translation.whole(_dict_decoder.decode(body), exchange.usage)


def _take_whole(exchange: Exchange, body: bytes) -> bytes:
    """Read usage and finish reasons; apply the response policies."""
    try:
        if isinstance(exchange.translation, NativeAnswer):
            look_at(exchange, _dict_decoder.decode(body), len(body))
        else:
            seen = _whole_decoder.decode(body)
            exchange.usage = (
                from_openai(seen.usage) if seen.usage else estimated(exchange.input_estimate, len(body) // 4)
            )
            exchange.finish_reasons = [each.finish_reason for each in seen.choices if each.finish_reason]
    except msgspec.MsgspecError as error:
        raise AiriError(
            "The upstream's answer is not a JSON object.", status=502, code="upstream_invalid_answer"
        ) from error
    guard = exchange.guard
    if guard is None:
        return body
    since = time.monotonic_ns()
    try:
        rewritten = guard.whole(_dict_decoder.decode(body))
    finally:
        note(exchange, "response_policy", guard.decision, since)
    return _encode_json(rewritten)


async def _deliver_stream(
    runtime: Runtime, exchange: Exchange, answer: Answer, native: NativeAnswer | None
) -> None:
    request = exchange.request
    relay: StreamRelay | NativeRelay
    if native is None:
        options = exchange.body.get("stream_options") or {}
        relay = StreamRelay(hide_usage=options.get("include_usage") is not True, guard=exchange.guard)
    else:
        relay = native.relay(exchange.guard)
    if exchange.idempotency_key or (exchange.plan is not None and exchange.plan.keep_content):
        exchange.kept = []
    since = time.monotonic_ns()
    try:
        await _relay(exchange, answer, relay)
        relay.close()
        if exchange.translation is not None:
            _send(exchange, await exchange.translation.end())
    except AiriError as error:
        ours = isinstance(error, PolicyDeniedError) or ran_and_failed(answer, error)
        exchange.stream_failed = not ours
        exchange.chunks = relay.events
        if not request.started:
            raise
        _fail_stream(exchange, error)
    finally:
        exchange.chunks = relay.events
        exchange.finish_reasons = relay.finish_reasons
        if relay.usage is not None:
            exchange.usage = from_openai(relay.usage)
            if not relay.done:
                exchange.usage.source = "estimated"  # more may have been made after this count
        if exchange.guard is not None:
            note(exchange, "response_policy", exchange.guard.decision, since)
    exchange.mark("last_byte")
    if exchange.idempotency_key and not exchange.error_code:
        await _keep_reply(runtime, exchange, _Reply(200, True, b"".join(exchange.kept or ())))
    request.finish()


def _send(exchange: Exchange, out: bytes) -> None:
    if not exchange.request.started:
        _begin_stream(exchange)
    exchange.request.write(out)
    if exchange.kept is not None:
        exchange.kept.append(out)


async def _relay(exchange: Exchange, answer: Answer, relay: StreamRelay | NativeRelay) -> None:
    request = exchange.request
    translation = exchange.translation
    size = 0
    told = 0
    while (block := await answer.next_block()) is not None:
        out = relay.feed(block)
        if translation is not None:
            out = translation.feed(out)
        if not out:
            continue
        if not request.started:
            _begin_stream(exchange)
        request.write(out)
        if exchange.kept is not None:
            size += len(out)
            _keep(exchange, out, size)
        if relay.events - told >= _PROGRESS_EVENTS:
            told = exchange.chunks = relay.events
            answer.progress(told)
        if relay.done:
            return
        await request.drain()


def _keep(exchange: Exchange, out: bytes, size: int) -> None:
    """Remember a piece of a stream; one that is too large to be repeated fails, one kept for the record is cut."""
    if size <= _MAX_KEPT_BYTES:
        assert exchange.kept is not None
        exchange.kept.append(out)
    elif exchange.idempotency_key:
        raise UnavailableError(
            "The answer is too large to be kept for its idempotency key.", code="reply_too_large"
        )


def _begin_stream(exchange: Exchange) -> None:
    exchange.status = 200
    exchange.mark("first_byte")
    exchange.ttft_us = exchange.marks["first_byte"]
    exchange.request.start(200, head(exchange, EVENTS))


def _fail_stream(exchange: Exchange, error: AiriError) -> None:
    _note_error(exchange, error)
    exchange.request.write(_last_words(exchange, error))


def deliver_error(exchange: Exchange, error: AiriError) -> None:
    """Answer with an error in OpenAI's form; within a stream as its last, typed event."""
    _note_error(exchange, error)
    request = exchange.request
    if request.started:
        if not request.finished:
            request.write(_last_words(exchange, error))
            request.finish()
        return
    exchange.status = error.status
    request.respond(
        error.status, head(exchange, JSON) + retry_after(error), error_form(exchange.operation, error)
    )


def _last_words(exchange: Exchange, error: AiriError) -> bytes:
    if exchange.translation is not None:
        return exchange.translation.fail(error)
    return error_event(error_body(error))


def _note_error(exchange: Exchange, error: AiriError) -> None:
    exchange.error_type, exchange.error_code, exchange.error_message = error.type, error.code, error.message
    exchange.status = error.status


async def deliver_replay(runtime: Runtime, exchange: Exchange, replay: Replay) -> None:
    """Repeat the answer that the idempotency key already has."""
    key = exchange.key
    assert key is not None
    try:
        async with asyncio.timeout(_STORE_S):
            raw = await asyncio.to_thread(runtime.content.get, key.tenant, replay.reference)
    except (SQLAlchemyError, TimeoutError) as error:
        raise UnavailableError(
            "The store of kept answers is not answering. Try again.", retry_after_ms=1_000
        ) from error
    if raw is None:
        raise UnavailableError(
            "The kept answer of this idempotency key cannot be read.", code="reply_not_found"
        )
    reply = _reply_decoder.decode(raw)
    exchange.status = reply.status
    block = head(exchange, EVENTS if reply.stream else JSON) + b"x-airi-replayed: true\r\n"
    if exchange.run is not None:
        # What the answer cost when it was made: a run asks again only for what it has never written down.
        block += b"x-airi-cost-usd-micros: %d\r\n" % reply.cost_usd_micros
    exchange.request.respond(reply.status, block, reply.body)


async def _keep_reply(runtime: Runtime, exchange: Exchange, reply: _Reply) -> None:
    """Store the answer and have its settlement confirmed before the last byte: a repetition must find both."""
    key = exchange.key
    assert key is not None
    work_out_cost(exchange)
    reply.cost_usd_micros = _told_cost(exchange)
    try:
        async with asyncio.timeout(_STORE_S):
            exchange.reply_reference = await asyncio.to_thread(_put, runtime.content, key.tenant, reply)
    except (SQLAlchemyError, TimeoutError) as error:
        # The answer is there and paid for: the caller gets it. Only a repetition will not find it.
        _log.error("the answer of an idempotent call could not be kept", extra={"error": repr(error)})
    settle(runtime, exchange)
    await runtime.admission.confirmed(exchange.reservation_id, _CONFIRM_MS)


def _put(store: ContentStore, tenant: str, reply: _Reply) -> str:
    return store.put(tenant, msgspec.msgpack.encode(reply), "day")
