"""A mock upstream: OpenAI's answers from constant bytes, so that it costs the measured process nothing.

    python -m bench.upstream PORT [--chunks N] [--interval-ms MS] [--delay-ms MS]

Answers any POST whole, or as a stream when the body holds ``"stream":true``. ``GET /count`` returns how many
completions it has served. Streams get one chunk each per tick, each in a write of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
from typing import cast

import uvloop

_STREAM = re.compile(rb'"stream":\s*true')
_LENGTH = re.compile(rb"content-length:\s*(\d+)", re.IGNORECASE)
_USAGE = {"prompt_tokens": 40, "completion_tokens": 16, "total_tokens": 56}


def _whole() -> bytes:
    message = {
        "role": "assistant",
        "content": "This is the answer of a mock upstream, forty-two characters or more.",
    }
    body = json.dumps(
        {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "mock",
         "choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": _USAGE}
    ).encode()  # fmt: skip
    return (
        b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    )


def _chunk(**fields: object) -> bytes:
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "mock", **fields}
    data = b"data: " + json.dumps(base, separators=(",", ":")).encode() + b"\n\n"
    return b"%x\r\n" % len(data) + data + b"\r\n"


WHOLE = _whole()
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
DELTA = _chunk(choices=[{"index": 0, "delta": {"content": " token"}, "finish_reason": None}])
END = (
    _chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}])
    + _chunk(choices=[], usage={**_USAGE, "completion_tokens": 200})
    + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
)


class Mock:
    """What the connections share."""

    def __init__(self, chunks: int, interval_s: float, delay_s: float) -> None:
        self.chunks = chunks
        self.interval_s = interval_s
        self.delay_s = delay_s
        self.served = 0
        self.streams: dict[asyncio.Transport, int] = {}
        self.ticking = False

    def stream(self, transport: asyncio.Transport) -> None:
        transport.write(HEAD)
        self.streams[transport] = self.chunks
        if not self.ticking:
            self.ticking = True
            asyncio.get_running_loop().call_later(self.interval_s, self._tick)

    def _tick(self) -> None:
        for transport, left in list(self.streams.items()):
            if left == 0:
                del self.streams[transport]
                transport.write(END)
            else:
                self.streams[transport] = left - 1
                transport.write(DELTA)
        self.ticking = bool(self.streams)
        if self.ticking:
            asyncio.get_running_loop().call_later(self.interval_s, self._tick)


class Connection(asyncio.Protocol):
    """One keep-alive connection; requests come whole or in pieces, never pipelined."""

    def __init__(self, mock: Mock) -> None:
        self.mock = mock
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def connection_lost(self, _error: Exception | None) -> None:
        self.mock.streams.pop(self.transport, None)

    def data_received(self, data: bytes) -> None:
        buffer = self.buffer + data if self.buffer else data
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            self.buffer = buffer
            return
        match = _LENGTH.search(buffer, 0, end)
        if match is not None and len(buffer) - end - 4 < int(match[1]):
            self.buffer = buffer
            return
        self.buffer = b""
        self.answer(buffer, end)

    def answer(self, request: bytes, end: int) -> None:
        mock = self.mock
        if request.startswith(b"GET"):
            body = b"%d" % mock.served
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            return
        mock.served += 1
        if _STREAM.search(request, end) is not None:
            mock.stream(self.transport)
        elif mock.delay_s:
            asyncio.get_running_loop().call_later(mock.delay_s, self.transport.write, WHOLE)
        else:
            self.transport.write(WHOLE)


async def serve(port: int, mock: Mock) -> None:
    """Serve until cancelled."""
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(mock), "127.0.0.1", port, backlog=2048
    )
    print("READY", flush=True)
    await server.serve_forever()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--chunks", type=int, default=200)
    parser.add_argument("--interval-ms", type=float, default=5)
    parser.add_argument("--delay-ms", type=float, default=0)
    arguments = parser.parse_args()
    mock = Mock(arguments.chunks, arguments.interval_ms / 1_000, arguments.delay_ms / 1_000)
    uvloop.run(serve(arguments.port, mock))


if __name__ == "__main__":
    main()
