"""The headers of a model route's answer, as one block of bytes: every call pays for them."""

from __future__ import annotations

import time

from airi.errors import AiriError
from airi.ids import new_trace_id
from gateway.exchange import Exchange

JSON = b"content-type: application/json\r\n"
EVENTS = b"content-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"


def head(exchange: Exchange, kind: bytes) -> bytes:
    """Return the block: ids, who served, rate limits (OpenAI's names), time. Nothing in it comes from the caller.

    Model and target names cannot hold a line break: the configuration's names are checked when they are read.
    """
    trace = exchange.trace_id.encode()
    parts = [kind, b"x-request-id: ", exchange.request_id.encode(), b"\r\nx-airi-trace-id: ", trace, b"\r\n"]
    answer = exchange.answer
    if answer is not None:
        parts.append(f"x-airi-model: {answer.version}\r\nx-airi-target: {answer.target}\r\n".encode())
        if answer.simulated:
            parts.append(b"x-airi-simulated: true\r\n")
    front = exchange.operation.front
    if front is not None:
        parts.append(front.head(exchange))
    if exchange.admitted is not None:
        parts.append(exchange.admitted.head())
    parts.append(b"openai-processing-ms: %d\r\n" % ((time.monotonic_ns() - exchange.started_ns) // 1_000_000))
    return b"".join(parts)


def json_head() -> bytes:
    """Return the headers of an answer that is no call's: OpenAI's clients look for a request id on every one."""
    return b"%bx-request-id: req_%b\r\n" % (JSON, new_trace_id().encode())


def retry_after(error: AiriError) -> bytes:
    """Return ``Retry-After`` (whole seconds, at least one) where the error has a time."""
    if error.retry_after_ms is None:
        return b""
    return b"retry-after: %d\r\n" % max(1, -(-error.retry_after_ms // 1_000))
