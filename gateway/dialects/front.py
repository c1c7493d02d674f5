"""What a dialect offers the pipeline.

Policies, limits, routing and the record know one form of a call, the chat completion. A front turns a request of its
dialect into that form before they see it and turns what they let pass back; so nothing of theirs can be gone around.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from airi.errors import AiriError

if TYPE_CHECKING:
    from gateway.dialects.responses.native import NativeCall
    from gateway.exchange import Exchange
    from gateway.runtime import Runtime
    from gateway.usage import Usage

Body = dict[str, Any]


class _Said(msgspec.Struct):
    message: str | None = None
    type: str | None = None
    param: str | None = None
    code: str | int | None = None


class _ErrorBody(msgspec.Struct):
    error: _Said


_error_decoder = msgspec.json.Decoder(_ErrorBody)


class Translation(Protocol):
    """One call between its dialect and chat completions. ``chat`` is the request in chat form."""

    chat: Body

    @property
    def native(self) -> NativeCall | None:
        """The call in the form of its own API, where a target of its model speaks that."""

    async def whole(self, answer: Body, usage: Usage) -> bytes:
        """Return the body for a whole chat answer, as policies let it pass."""

    def feed(self, events: bytes) -> bytes:
        """Return the caller's events for whole chat events (``[DONE]`` included); may return nothing."""

    async def end(self) -> bytes:
        """Return the last events, when the upstream's stream ended as it should."""

    def fail(self, error: AiriError) -> bytes:
        """Return the events that end a stream which failed after its first byte."""


class Front(Protocol):
    """A dialect. One object serves all calls."""

    async def open(self, runtime: Runtime, exchange: Exchange, body: Body) -> Translation:
        """Translate a request; raise :class:`~airi.errors.InvalidRequestError` naming the field that cannot be."""

    def error_body(self, error: AiriError) -> bytes:
        """Return an error in the dialect's form."""

    def head(self, exchange: Exchange) -> bytes:
        """Return the header lines that the dialect's clients look for on every answer, beside AIRI's own."""


def passed_error(status: int, body: bytes) -> AiriError:
    """Return what an upstream's error body (OpenAI's form) says, to be said again in another dialect."""
    try:
        said = _error_decoder.decode(body).error
    except msgspec.MsgspecError:
        said = _Said()
    return AiriError(
        said.message or f"The upstream answered with status {status}.",
        status=status, type=said.type, code=str(said.code or f"upstream_{status}"), param=said.param,
    )  # fmt: skip
