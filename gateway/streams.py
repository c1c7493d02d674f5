"""Server-sent events on their way from an upstream to a caller.

An upstream's bytes are forwarded as they are; only events that matter (usage, finish reasons, errors, the end)
are parsed. Where a policy guards the response, every event is parsed, guarded and written anew.
"""

from __future__ import annotations

import json
import re
from typing import Any, Protocol

import msgspec

from gateway.errors import UpstreamStreamError

MAX_EVENT_BYTES = 1 << 20
_NOTABLE = re.compile(rb'"usage":\s*\{|\[DONE\]|"finish_reason":\s*"|"error":\s*[{"]|^event:|\nevent:')
_DONE = b"data: [DONE]\n\n"


class _Choice(msgspec.Struct):
    index: int = 0
    finish_reason: str | None = None
    text: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: dict[str, Any] | None = None
    error: Any = None


class Guard(Protocol):
    """What a response policy offers a stream: parsed chunks in, chunks to send out."""

    def feed(self, chunk: dict[str, Any]) -> list[dict[str, Any]]:
        """Return the chunks that may be sent now."""

    def finish(self) -> list[dict[str, Any]]:
        """Return what was held back."""


_chunk_decoder = msgspec.json.Decoder(_Chunk)
_dict_decoder = msgspec.json.Decoder(dict[str, Any])
_encode = msgspec.json.Encoder().encode


def event_data(event: bytes) -> bytes | None:
    """Return the data of one event (without its blank line), or ``None`` for a comment or another field alone."""
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:]
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


def parse_event(data: bytes) -> dict[str, Any]:
    """Return an event's JSON object; a surrogate pair that an upstream cut in two is left for the guard to join."""
    try:
        return _dict_decoder.decode(data)
    except msgspec.MsgspecError:
        pass  # msgspec refuses half a surrogate pair, the standard library takes it
    try:
        chunk = json.loads(data)
    except ValueError as error:
        raise UpstreamStreamError("The upstream sent an event that is not JSON.") from error
    if not isinstance(chunk, dict):
        raise UpstreamStreamError("The upstream sent an event that is not a JSON object.")
    return chunk


def unix_lines(block: bytes) -> tuple[bytes, bytes]:
    """Return the block with bare line feeds, and the CR at its end that may be half of a CRLF."""
    tail = b"\r" if block.endswith(b"\r") else b""
    if tail:
        block = block[:-1]
    return block.replace(b"\r\n", b"\n").replace(b"\r", b"\n"), tail


class StreamRelay:
    """One stream's way through the gateway: ``feed`` upstream bytes, send what it returns.

    ``hide_usage``: the caller did not ask for the usage chunk that the gateway asked for.
    After the last block call :meth:`close`, which raises when the terminal event was missing.
    """

    __slots__ = ("_carry", "_guard", "_hide_usage", "done", "events", "finish_reasons", "usage")

    def __init__(self, *, hide_usage: bool, guard: Guard | None = None) -> None:
        self._carry = b""
        self._guard = guard
        self._hide_usage = hide_usage
        self.done = False
        self.events = 0
        self.finish_reasons: list[str] = []
        self.usage: dict[str, Any] | None = None

    def feed(self, block: bytes) -> bytes:
        """Take what arrived; return whole events for the caller. Raise :class:`UpstreamStreamError` on its error."""
        if self.done:
            return b""
        if self._carry:
            block = self._carry + block
            self._carry = b""
        if b"\r" in block:
            block, self._carry = unix_lines(block)
        if not block.endswith(b"\n\n"):
            cut = block.rfind(b"\n\n") + 2
            if cut < 2:
                cut = 0
            self._carry = block[cut:] + self._carry
            if len(self._carry) > MAX_EVENT_BYTES:
                raise UpstreamStreamError("The upstream sent an event larger than 1 MiB.")
            block = block[:cut]
        if not block:
            return b""
        self.events += block.count(b"\n\n")
        if self._guard is not None:
            return self._guarded(block, self._guard)
        if _NOTABLE.search(block) is None:
            return block
        return self._inspect(block)

    def close(self) -> None:
        """Check that the stream reached its end; raise :class:`UpstreamStreamError` when it did not."""
        if not self.done:
            raise UpstreamStreamError("The upstream ended its stream before the terminal event.")

    def _note(self, data: bytes) -> bool:
        """Read one event's data; return whether the caller may see it."""
        try:
            chunk = _chunk_decoder.decode(data)
        except msgspec.MsgspecError:
            chunk = msgspec.convert(parse_event(data), _Chunk)
        if chunk.error:
            detail = chunk.error.get("message") if isinstance(chunk.error, dict) else None
            raise UpstreamStreamError(
                f"The upstream failed in mid-stream: {detail or 'no reason given'}",
                code="upstream_stream_error",
            )
        if chunk.usage is not None:
            self.usage = chunk.usage
        self.finish_reasons.extend(c.finish_reason for c in chunk.choices if c.finish_reason)
        return not (self._hide_usage and chunk.usage is not None and not chunk.choices)

    def _inspect(self, block: bytes) -> bytes:
        out: list[bytes] = []
        for event in block[:-2].split(b"\n\n"):
            data = event_data(event)
            if data == b"[DONE]":
                self.done = True
                out.append(_DONE)
                break
            if data is None or self._note(data):
                out.append(event + b"\n\n")
        return b"".join(out)

    def _guarded(self, block: bytes, guard: Guard) -> bytes:
        out: list[bytes] = []
        for event in block[:-2].split(b"\n\n"):
            data = event_data(event)
            if data is None:
                out.append(event + b"\n\n")
                continue
            if data == b"[DONE]":
                self.done = True
                out.extend(self._events(guard.finish()))
                out.append(_DONE)
                break
            if _NOTABLE.search(data) is not None and not self._note(data):
                continue
            out.extend(self._events(guard.feed(parse_event(data))))
        return b"".join(out)

    @staticmethod
    def _events(chunks: list[dict[str, Any]]) -> list[bytes]:
        return [b"data: " + _encode(chunk) + b"\n\n" for chunk in chunks]


def error_event(body: bytes) -> bytes:
    """Return the typed error event that ends a stream which failed after its first byte."""
    return b"data: " + body + b"\n\n"
