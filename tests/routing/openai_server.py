"""A small real HTTP server that speaks OpenAI's dialect and misbehaves on request. One behaviour a request, in order."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from tests.routing.loopback import LoopbackServer

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\nx-secret: no\r\n\r\n"


@dataclass
class Seen:
    path: str
    headers: dict[str, str]
    body: dict[str, Any]


@dataclass
class OpenAIServer(LoopbackServer):
    """``script`` holds what the next requests get (``ok``, ``500``, ``429``, ``close``, ``silent``, ``head_only``,
    ``cut``, ``stall``, ``slow``, …); ``usual`` is for all others."""

    name: str = "a"
    usual: str = "ok"
    script: deque[str] = field(default_factory=deque)
    seen: list[Seen] = field(default_factory=list)
    disconnected: asyncio.Event = field(default_factory=asyncio.Event)
    release: asyncio.Event = field(default_factory=asyncio.Event)
    healthy: bool = True
    metrics: str = ""
    active: int = 0
    port: int = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.rstrip().split("\r\n")
                headers = dict(line.split(": ", 1) for line in lines)
                data = await reader.readexactly(int(headers.get("content-length", 0)))
                path = first.split(" ")[1]
                if not data:
                    self._probe(path, writer)
                    continue
                self.seen.append(Seen(path, headers, json.loads(data)))
                self.active += 1
                try:
                    if not await self._answer(json.loads(data), reader, writer):
                        return
                    await writer.drain()
                finally:
                    self.active -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            self.disconnected.set()
        finally:
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    def _probe(self, path: str, writer: asyncio.StreamWriter) -> None:
        body = self.metrics if path == "/metrics" else "{}"
        _send(writer, 200 if self.healthy else 503, body.encode())

    async def _answer(
        self, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        what = self.script.popleft() if self.script else self.usual
        if what == "close":
            return False
        if what in ("silent", "head_only", "stall"):
            if what != "silent":
                writer.write(STREAM_HEAD)
            if what == "stall":
                writer.write(_chunk(b'data: {"n":1}\n\n'))
            await writer.drain()
            await reader.read(1)
            self.disconnected.set()
            return False
        if what == "head_cut":
            writer.write(STREAM_HEAD)
            await writer.drain()
            return False
        if what == "cut":
            writer.write(STREAM_HEAD + _chunk(b'data: {"n":1}\n\n'))
            await writer.drain()
            return False
        if what == "held":
            await self.release.wait()
            what = "ok"
        if what == "429":
            _send(writer, 429, b'{"error":{"message":"slow down"}}', b"retry-after: 1\r\n")
        elif what == "429long":
            _send(writer, 429, b'{"error":{"message":"slow down"}}', b"retry-after: 900\r\n")
        elif what.isdigit():
            _send(writer, int(what), b'{"detail":"no"}')
        elif body.get("stream"):
            writer.write(STREAM_HEAD)
            for number in range(3):
                writer.write(_chunk(b'data: {"n":%d}\n\n' % number))
            writer.write(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        else:
            _send(
                writer,
                200,
                json.dumps({"served_by": self.name, "model": body["model"]}).encode(),
                b"x-secret: no\r\n",
            )
        return True


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _send(writer: asyncio.StreamWriter, status: int, body: bytes, extra: bytes = b"") -> None:
    writer.write(
        b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b"
        % (status, extra, len(body), body)
    )
