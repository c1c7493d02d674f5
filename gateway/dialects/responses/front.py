"""The front of ``/v1/responses``: create and stream. What was stored is served by the control plane."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import msgspec

from airi.errors import AiriError, InvalidRequestError
from airi.stored_responses import Reader, ResponseStore
from gateway.dialects.chat import completion_of, text_field
from gateway.dialects.front import Body
from gateway.dialects.responses.answer import Asked, output_of
from gateway.dialects.responses.items import input_items
from gateway.dialects.responses.native import NativeAnswer, NativeCall, native_body
from gateway.dialects.responses.request import to_chat
from gateway.dialects.responses.stream import ResponseStream
from gateway.errors import error_body
from gateway.usage import BYTES_PER_TOKEN, Usage

if TYPE_CHECKING:
    from gateway.exchange import Exchange
    from gateway.runtime import Runtime

_encode = msgspec.json.Encoder().encode


class ResponseCall:
    """One call of ``/v1/responses``; see :class:`gateway.dialects.front.Translation`.

    A response that is to be stored is stored before its last byte is sent: whoever has read it can refer to it.
    ``natively``: some target of the model's route speaks the Responses API itself.
    """

    def __init__(
        self,
        body: Body,
        given: list[Body],
        history: list[Body],
        store: ResponseStore,
        owner: Reader,
        drop: bool,
        natively: bool = False,
    ) -> None:
        self.native: NativeCall | None = None
        if natively:
            self.chat, only = _chat_form(body, [*history, *given], drop)
        else:
            self.chat = to_chat(body, [*history, *given], drop=drop)
        self._given = given
        self._store = store
        self._owner = owner
        self._asked = Asked.of(body)
        self._stream = ResponseStream(self._asked, len(_encode(given)) // BYTES_PER_TOKEN + 1)
        if natively:

            def chat_of(rewritten: Body) -> Body:
                return _chat_form(rewritten, input_items(rewritten.get("input")), drop)[0]

            answer = NativeAnswer(self._asked, self._keep)
            self.native = NativeCall(native_body(body, history), chat_of, only, answer)

    async def whole(self, answer: Body, usage: Usage) -> bytes:
        """Return the response."""
        output, reason = output_of(completion_of(answer))
        response = self._asked.ended(reason, output, usage)
        await self._keep(response)
        return _encode(response)

    def feed(self, events: bytes) -> bytes:
        """Return the events for chat events."""
        return self._stream.feed(events)

    async def end(self) -> bytes:
        """Return ``response.completed`` or ``response.incomplete``, and what comes before it."""
        response = self._stream.finish()
        await self._keep(response)
        return self._stream.last(response)

    def fail(self, error: AiriError) -> bytes:
        """Return ``response.failed``."""
        return self._stream.fail(error)

    async def _keep(self, response: Body) -> None:
        if self._asked.stored:
            await asyncio.to_thread(self._store.save, self._owner, response, self._given)


def _chat_form(body: Body, given: list[Body], drop: bool) -> tuple[Body, AiriError | None]:
    """Return the chat form of a call that may go to its target natively, and what keeps it from targets that speak chat alone."""
    try:
        return to_chat(body, given, drop=drop), None
    except InvalidRequestError as error:
        return to_chat(body, given, drop=drop, lenient=True), error


class ResponsesFront:
    """OpenAI's Responses API."""

    async def open(self, runtime: Runtime, exchange: Exchange, body: Body) -> ResponseCall:
        """Translate a request, with the turns before it when it names the response that it follows."""
        key = exchange.key
        assert key is not None
        owner = Reader.of(key)
        history: list[Body] = []
        if body.get("previous_response_id") is not None:
            previous = text_field(body, "previous_response_id", "", empty=False)
            history = await asyncio.to_thread(runtime.responses.history, owner, previous)
        route = exchange.snapshot.table.routes.get(str(body.get("model")))
        drop = route is not None and route.drop_params
        natively = route is not None and route.speaks_responses
        given = input_items(body.get("input"))
        return ResponseCall(body, given, history, runtime.responses, owner, drop, natively)

    def error_body(self, error: AiriError) -> bytes:
        """Return an error in OpenAI's form."""
        return error_body(error)

    def head(self, exchange: Exchange) -> bytes:
        """Add nothing: the headers are OpenAI's already."""
        return b""
