"""A Responses stream of an upstream on its way to the caller.

Its events are forwarded as they are, unknown ones too; only those that hold the response object are parsed and signed with AIRI's id.
Where a policy guards the answer, every event is parsed, guarded and written anew. The terminal event is held until what
it tells is stored.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airi.errors import AiriError
from gateway.dialects.front import Body
from gateway.dialects.responses.answer import chat_usage, event_bytes, finish_reason
from gateway.errors import UpstreamStreamError
from gateway.streams import event_data, parse_event, unix_lines

if TYPE_CHECKING:
    from policies.engine import ResponseGuard

MAX_EVENT_BYTES = 32 << 20
"""An event may tell the whole response again, or hold an image."""
_TOLD = re.compile(
    rb'"type"\s*:\s*"(?:response\.(?:created|queued|in_progress|completed|incomplete|failed)|error)"'
)
_ERROR = re.compile(rb'^\s*\{\s*"error"\s*:')
_NUMBER = re.compile(rb'"sequence_number"\s*:\s*(\d{1,12})')
_ENDS = ("response.completed", "response.incomplete")


class NativeRelay:
    """``feed`` upstream bytes, send what it returns, until ``done``; then call :meth:`close`, which raises what went wrong.

    ``last`` is the terminal event, which is not among what :meth:`feed` returns.
    """

    def __init__(self, guard: ResponseGuard | None, sign: Callable[[Body], Body]) -> None:
        self._guard = guard
        self._sign = sign
        self._carry = bytearray()
        self._cr = b""
        self._sent = b""
        self._broken: AiriError | None = None
        self.done = False
        self.events = 0
        self.finish_reasons: list[str] = []
        self.usage: dict[str, Any] | None = None
        self.response: Body | None = None
        self.last: Body | None = None

    @property
    def next_number(self) -> int:
        """The number that follows the last event's."""
        found = _NUMBER.findall(self._sent)
        return int(found[-1]) + 1 if found else 0

    def feed(self, block: bytes) -> bytes:
        """Take what arrived; return whole events for the caller."""
        if self.done:
            return b""
        if self._cr or b"\r" in block:
            block, self._cr = unix_lines(self._cr + block)
        carry = self._carry
        since = max(len(carry) - 1, 0)
        carry += block
        cut = carry.rfind(b"\n\n", since) + 2
        if cut < 2:
            if len(carry) > MAX_EVENT_BYTES:
                raise UpstreamStreamError(
                    f"The upstream sent an event larger than {MAX_EVENT_BYTES >> 20} MiB."
                )
            return b""
        events = bytes(carry[: cut - 2])
        del carry[:cut]
        out: list[bytes] = []
        try:
            for event in events.split(b"\n\n"):
                out += self._event(event)
                if self.last is not None:
                    break
        except AiriError as error:
            self._broken, self.done = error, True  # what came before it is sent first
        sent = b"".join(out)
        self._sent = sent or self._sent
        return sent

    def close(self) -> None:
        """Raise what stopped the stream; :class:`UpstreamStreamError` too when it ended without its terminal event."""
        if self._broken is not None:
            raise self._broken
        if not self.done:
            raise UpstreamStreamError("The upstream ended its stream before the terminal event.")

    def _event(self, event: bytes) -> list[bytes]:
        data = event_data(event)
        if data is None:
            return [event + b"\n\n"]
        if data == b"[DONE]":
            return []  # some engines end every stream so; here it means nothing
        told = _TOLD.search(data) is not None or _ERROR.search(data) is not None
        if not told:
            self.events += 1
            if self._guard is None:
                return [event + b"\n\n"]
        parsed = parse_event(data)
        if told:
            parsed = self._note(parsed)
        guarded = [parsed] if self._guard is None else self._guard.feed_event(parsed)
        if self.done:
            self.last = guarded.pop()
        return [event_bytes(each) for each in guarded]

    def _note(self, event: Body) -> Body:
        """Read an event that tells of the whole response, and sign it."""
        kind, response = event.get("type"), event.get("response")
        if kind == "error" or (event.get("error") and response is None):
            raise _failed(event.get("error") or event)
        if not isinstance(response, dict) or not str(kind).startswith("response."):
            return event
        self.response = response = self._sign(response)
        self.usage = chat_usage(response.get("usage")) or self.usage
        if kind == "response.failed":
            raise _failed(response.get("error"))
        if kind in _ENDS:
            self.done = True
            self.finish_reasons.append(finish_reason(response))
        return {**event, "response": response}


def _failed(said: Any) -> UpstreamStreamError:
    detail = said.get("message") if isinstance(said, dict) else None
    return UpstreamStreamError(
        f"The upstream failed in mid-stream: {detail or 'no reason given'}", code="upstream_stream_error"
    )
