"""What the small servers of foreign dialects share: real HTTP on loopback, requests kept as they arrived, connections watched."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

from tests.routing.loopback import LoopbackServer


@dataclass
class Seen:
    """A request as it arrived."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    raw: bytes = b""


@dataclass
class WireServer(LoopbackServer):
    """Subclasses answer in :meth:`respond`. ``disconnected`` is set when a client leaves during an answer."""

    seen: list[Seen] = field(default_factory=list)
    disconnected: asyncio.Event = field(default_factory=asyncio.Event)
    port: int = 0

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.rstrip().split("\r\n")
                headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
                raw = await reader.readexactly(int(headers.get("content-length", 0)))
                self.seen.append(Seen(first.split(" ")[1], headers, json.loads(raw), raw))
                if not await self.respond(self.seen[-1], reader, writer):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            self.disconnected.set()
        finally:
            writer.close()

    async def respond(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request; return whether the connection goes on."""
        raise NotImplementedError

    async def wait_for_leaving(self, reader: asyncio.StreamReader) -> None:
        """Return when the client has gone; it has nothing to say."""
        await reader.read(1)
        self.disconnected.set()


def send(
    writer: asyncio.StreamWriter, status: int, body: dict[str, Any], headers: dict[str, str] | None = None
) -> None:
    """Write a whole JSON answer."""
    data = json.dumps(body).encode()
    more = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items()).encode()
    writer.write(
        b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n%b"
        % (status, more, len(data), data)
    )


def begin(writer: asyncio.StreamWriter, content_type: str) -> None:
    """Write the head of a chunked answer."""
    writer.write(
        f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    )


def chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    """Write one chunk; an empty one ends the answer."""
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))
