"""The front of ``/v1/moderations``: chooses the detectors when no provider's model is asked for."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import msgspec

from airi.errors import AiriError
from gateway.detectors import MODEL
from gateway.dialects.front import Body
from gateway.errors import error_body
from gateway.usage import Usage

if TYPE_CHECKING:
    from gateway.exchange import Exchange
    from gateway.runtime import Runtime

_OPENAIS = frozenset({"omni-moderation-latest", "text-moderation-latest", "text-moderation-stable"})
"""What OpenAI's clients name when they name nothing else; a Model of such a name, where configured, is meant itself."""
_encode = msgspec.json.Encoder().encode


def _unknown_default(asked: Any, configured: Collection[str]) -> bool:
    return isinstance(asked, str) and asked in _OPENAIS and asked not in configured


class ModerationCall:
    """One call; it is never streamed."""

    def __init__(self, chat: Body) -> None:
        self.chat = chat
        self.native = None

    async def whole(self, answer: Body, usage: Usage) -> bytes:
        """Return the answer; OpenAI's has no usage."""
        answer.pop("usage", None)
        return _encode(answer)

    def feed(self, events: bytes) -> bytes:
        """Hand on what never comes."""
        return events

    async def end(self) -> bytes:
        """Return nothing."""
        return b""

    def fail(self, error: AiriError) -> bytes:
        """Return the error."""
        return error_body(error)


class ModerationsFront:
    """OpenAI's moderations."""

    async def open(self, runtime: Runtime, exchange: Exchange, body: Body) -> ModerationCall:
        """Put the detectors' model where the request names none that is configured."""
        asked = body.get("model")
        if asked is None or _unknown_default(asked, exchange.snapshot.table.routes):
            body = {**body, "model": MODEL}
        return ModerationCall(body)

    def error_body(self, error: AiriError) -> bytes:
        """Return an error in OpenAI's form."""
        return error_body(error)

    def head(self, exchange: Exchange) -> bytes:
        """Add nothing."""
        return b""
