"""Calls of the Responses API to targets that speak it themselves.

AIRI keeps the conversation, not the upstream: what goes there holds the whole input and ``store: false``, so that any
target can take the next turn, policies see every turn, and no tenant can name what another's call has left at the
provider. What the caller sees bears AIRI's own id; everything else is the upstream's.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import msgspec

from airi.errors import AiriError
from gateway.dialects.front import Body
from gateway.dialects.responses.answer import Asked, event_bytes
from gateway.dialects.responses.items import past_items
from gateway.dialects.responses.native_stream import NativeRelay
from gateway.usage import Usage

if TYPE_CHECKING:
    from policies.engine import ResponseGuard

_encode = msgspec.json.Encoder().encode
_KEPT_HERE = frozenset({"background", "conversation", "previous_response_id"})
_OUR_TOOLS = ("function", "custom")
_ENCRYPTED = "reasoning.encrypted_content"


def native_body(body: Body, history: list[Body]) -> Body:
    """Return what an upstream is sent, but for what the gateway decides later: the caller's body with its whole input."""
    native = {name: value for name, value in body.items() if name not in _KEPT_HERE}
    native["store"] = False
    if history:
        given = body.get("input")
        new = [{"role": "user", "content": given}] if isinstance(given, str) else given or []
        native["input"] = [*past_items(history), *new]
    include = body.get("include") or []
    if body.get("store") is not False and body.get("reasoning") and _ENCRYPTED not in include:
        # What the upstream does not keep it must get back to go on reasoning where it stopped.
        native["include"] = [*include, _ENCRYPTED]
    return native


class NativeCall:
    """The native form of one call. ``only``: no chat completion can say the same; the error tells what it cannot say."""

    def __init__(
        self, body: Body, chat_of: Callable[[Body], Body], only: AiriError | None, answer: NativeAnswer
    ) -> None:
        self.body = body
        self.only = only
        self.answer = answer
        self._chat_of = chat_of

    @property
    def hosted(self) -> list[str]:
        """The types of the tools that the upstream runs itself."""
        kinds = (str(tool.get("type")) for tool in self.body.get("tools") or ())
        return [kind for kind in kinds if kind not in _OUR_TOOLS]

    @property
    def unbounded(self) -> str | None:
        """The field that makes the call cost more than its size tells, if there is one."""
        if self.hosted:
            return "tools"
        return "prompt" if self.body.get("prompt") is not None else None

    def rewritten(self, body: Body) -> Body:
        """Take the body as policies have rewritten it, and return its chat form."""
        self.body = body
        return self._chat_of(body)


class NativeAnswer:
    """The way back of a call that was served natively; see :class:`gateway.dialects.front.Translation`."""

    def __init__(self, asked: Asked, keep: Callable[[Body], Awaitable[None]]) -> None:
        self.chat: Body = {}
        self.native: NativeCall | None = None
        self._asked = asked
        self._keep = keep
        self._relay: NativeRelay | None = None

    def relay(self, guard: ResponseGuard | None) -> NativeRelay:
        """Return what takes the upstream's stream in."""
        self._relay = NativeRelay(guard, self._signed)
        return self._relay

    async def whole(self, answer: Body, usage: Usage) -> bytes:
        """Return the response."""
        response = self._signed(answer)
        await self._keep(response)
        return _encode(response)

    def feed(self, events: bytes) -> bytes:
        """Return the events as they are: the relay has seen them."""
        return events

    async def end(self) -> bytes:
        """Return the terminal event, when what it tells is stored."""
        assert self._relay is not None
        last = self._relay.last
        assert last is not None
        await self._keep(last["response"])
        return event_bytes(last)

    def fail(self, error: AiriError) -> bytes:
        """Return ``response.failed``, numbered after what was sent."""
        relay = self._relay
        response = (relay.response if relay is not None else None) or self._asked.response("in_progress", [])
        failed = self._asked.failed(error, [])
        told = {**response, **{name: failed[name] for name in ("status", "error", "output", "completed_at")}}
        number = relay.next_number if relay is not None else 0
        return event_bytes({"type": "response.failed", "sequence_number": number, "response": told})

    def _signed(self, response: Body) -> Body:
        """Return an upstream's response under the id, and with the turn before it, that it has here."""
        asked = self._asked
        return {
            **response,
            "id": asked.id,
            "store": asked.stored,
            "previous_response_id": asked.body.get("previous_response_id"),
        }
