"""Asking a router as a gateway does, and reading the whole of what it brings."""

from __future__ import annotations

from typing import Any

import msgspec

from routing.call import Call
from routing.payload import Payload
from routing.registry import Route
from routing.router import Router


def made(route: Route, *, stream: bool, **body: Any) -> Call:
    """A call of one message, with what a gateway adds."""
    full = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": stream, **body}
    if stream:
        full["stream_options"] = {"include_usage": True}
    headers = [(b"traceparent", b"00-a-b-01"), (b"authorization", b"Bearer airi_caller")]
    return Call(route, "t", Payload(full), stream=stream, headers=headers)


class Asking:
    """A router and the calls of one test file, which says in :meth:`call` what ``kind`` means."""

    router: Router

    def call(self, kind: str = "x", *, stream: bool = False, **body: Any) -> Call:
        raise NotImplementedError

    async def whole(self, kind: str = "x", **body: Any) -> tuple[int, Any]:
        answer = await self.router.send(self.call(kind, **body))
        answer.close()
        return answer.status, msgspec.json.decode(await answer.read())

    async def stream(self, kind: str = "x", **body: Any) -> list[Any]:
        answer = await self.router.send(self.call(kind, stream=True, **body))
        blocks = []
        try:
            while (block := await answer.next_block()) is not None:
                blocks.append(block)
        finally:
            answer.close()
        events = b"".join(blocks).decode().split("\n\n")
        assert events.pop() == ""
        assert events.pop() == "data: [DONE]"
        return [msgspec.json.decode(event.removeprefix("data: ")) for event in events]

    def in_flight(self) -> int:
        return sum(place.in_flight for place in self.router.fleet.places.values())
