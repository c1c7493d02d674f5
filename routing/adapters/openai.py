"""Upstreams that speak OpenAI's dialect: bytes in, bytes out, over our own pooled client."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from airi.http.client import ClientOptions, HttpPool, Response
from routing.call import Call, Header
from routing.specs import Endpoint, PlaceSpec, tls_options

FORWARDED = frozenset({b"traceparent", b"tracestate", b"x-request-id"})
"""Headers of a call that may go upstream. The caller's own key never does: it is not among them."""
_FORWARDED_INSIDE = FORWARDED | {b"authorization", b"idempotency-key"}
"""To AIRI's own control plane over its unix socket, which serves workflows as models in the caller's name."""
_USER_AGENT = b"airi"
_OLD_LIMIT, _NEW_LIMIT = "max_tokens", "max_completion_tokens"
_OPENAI = re.compile(r"^https://([\w-]+\.)*(openai\.com|openai\.azure\.com)(:\d+)?$")
_BREAKS = re.compile(rb"[\r\n\0]")


def client_options(spec: PlaceSpec, *, max_connections: int | None = None) -> ClientOptions:
    """Return the client's bounds for the connections to one address of a place."""
    return ClientOptions(
        max_connections=max_connections or spec.max_connections,
        connect_ms=spec.timeouts.connect,
        tls=tls_options(spec.tls),
    )


def header_block(headers: Sequence[Header]) -> bytes:
    """Return headers as they stand on the wire; raise :class:`ValueError` for one that would break out of its line."""
    for name, value in headers:
        if b"\n" in value or b"\r" in value or b"\0" in value or b"\n" in name or b":" in name:
            raise ValueError(f"header {name!r} cannot be sent")
    return b"".join(b"%b: %b\r\n" % header for header in headers)


def forwarded(headers: Sequence[Header], names: frozenset[bytes] = FORWARDED) -> bytes:
    """Return the part of a call's headers that may go upstream, as a block; what would break out of its line is left out."""
    lines = [b"%b: %b\r\n" % header for header in headers if header[0] in names]
    block = b"".join(lines)
    if block.count(b"\n") == len(lines) == block.count(b"\r") and b"\0" not in block:
        return block
    return b"".join(line for line in lines if not _BREAKS.search(line, 0, len(line) - 2))


def _without_thoughts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in each.items() if name != "thinking_blocks"} for each in messages]


class OpenAIUpstream:
    """One address. Its headers are joined once; a call adds its trace context."""

    def __init__(self, spec: PlaceSpec, endpoint: Endpoint) -> None:
        self._pool = HttpPool(endpoint.origin, options=client_options(spec))
        self._prefix = endpoint.prefix
        self._suffix = f"?{endpoint.query}" if endpoint.query else ""
        self._timeouts = spec.timeouts
        common = ((b"content-type", b"application/json"), (b"user-agent", _USER_AGENT), *spec.headers)
        self._whole = header_block(((b"accept", b"application/json"), *common))
        self._streamed = header_block(((b"accept", b"text/event-stream"), *common))
        inside = endpoint.origin.startswith("unix:") and spec.api_key is None
        self._forwarded = _FORWARDED_INSIDE if inside else FORWARDED
        self._hosted_by_openai = _OPENAI.search(endpoint.origin) is not None
        self._responses = spec.responses
        self._targets: dict[str, bytes] = {}

    async def send(self, call: Call, model: str, drop: tuple[str, ...], total_ms: int) -> Response:
        """Send the call; see :class:`routing.adapters.base.Upstream`."""
        native = call.native if self._responses else None
        path = call.path if native is None else native.path
        target = self._targets.get(path)
        if target is None:
            target = self._targets[path] = f"{self._prefix}{path}{self._suffix}".encode("ascii")
        block = self._streamed if call.stream else self._whole
        if call.headers:
            block += forwarded(call.headers, self._forwarded)
        timeouts = self._timeouts
        return await self._pool.send(
            b"POST",
            target,
            block,
            self._encode(call, model, drop) if native is None else native.encode(model, drop),
            first_byte_ms=timeouts.first_byte,
            idle_ms=timeouts.idle,
            total_ms=total_ms,
        )

    def _encode(self, call: Call, model: str, drop: tuple[str, ...]) -> bytes:
        """Return the body. OpenAI's own reasoning models refuse ``max_tokens``, and all of its models take the newer name."""
        overrides = call.overrides
        if call.thinking:
            overrides = {**(overrides or {}), "messages": _without_thoughts(call.payload.body["messages"])}
        if self._hosted_by_openai and call.path == "/chat/completions":
            limit = (overrides or {}).get(_OLD_LIMIT) or call.payload.body.get(_OLD_LIMIT)
            if limit is not None:
                overrides = {**(overrides or {}), _NEW_LIMIT: limit}
                drop = (*drop, _OLD_LIMIT)
        return call.payload.encode(model, overrides, drop)

    def close(self) -> None:
        """Close idle connections now and the others when their exchange is over."""
        self._pool.close()
