"""The front of ``/v1/messages``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from airi.errors import AiriError
from gateway.dialects.anthropic.answer import error_body, to_message
from gateway.dialects.anthropic.request import to_chat
from gateway.dialects.anthropic.stream import MessageStream
from gateway.dialects.chat import completion_of
from gateway.dialects.front import Body
from gateway.usage import BYTES_PER_TOKEN, Usage

if TYPE_CHECKING:
    from gateway.exchange import Exchange
    from gateway.runtime import Runtime

_encode = msgspec.json.Encoder().encode


class MessageCall:
    """One call of ``/v1/messages``; see :class:`gateway.dialects.front.Translation`."""

    def __init__(self, chat: Body, input_estimate: int) -> None:
        self.chat = chat
        self.native = None
        self.thinking = any("thinking_blocks" in message for message in chat["messages"])
        self._model = str(chat.get("model"))
        self._stream = MessageStream(self._model, input_estimate)

    async def whole(self, answer: Body, usage: Usage) -> bytes:
        """Return the message."""
        return _encode(to_message(completion_of(answer), usage, self._model))

    def feed(self, events: bytes) -> bytes:
        """Return Anthropic's events."""
        return self._stream.feed(events)

    async def end(self) -> bytes:
        """Return ``message_delta`` and ``message_stop``."""
        return self._stream.end()

    def fail(self, error: AiriError) -> bytes:
        """Return Anthropic's error event."""
        return b"event: error\ndata: " + error_body(error) + b"\n\n"


class MessagesFront:
    """Anthropic's Messages API."""

    async def open(self, runtime: Runtime, exchange: Exchange, body: Body) -> MessageCall:
        """Translate a request."""
        route = exchange.snapshot.table.routes.get(str(body.get("model")))
        chat = to_chat(body, drop=route is not None and route.drop_params)
        return MessageCall(chat, len(exchange.request.body) // BYTES_PER_TOKEN + 1)

    def error_body(self, error: AiriError) -> bytes:
        """Return an error in Anthropic's form."""
        return error_body(error)

    def head(self, exchange: Exchange) -> bytes:
        """Return ``request-id``, which Anthropic's clients show."""
        return b"request-id: %b\r\n" % exchange.request_id.encode()
