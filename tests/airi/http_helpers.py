"""Raw sockets on both sides of the HTTP code: what goes over the wire is written out in each test."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest
import uvloop

from airi.http.server import Handler, Server, ServerLimits, serve


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """Run a module's tests on both event loops (import this fixture into the module)."""
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()


GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


@contextlib.asynccontextmanager
async def serving(handler: Handler, limits: ServerLimits | None = None) -> AsyncIterator[Server]:
    """Serve ``handler`` on a free port."""
    server = await serve(handler, host="127.0.0.1", port=0, limits=limits)
    try:
        yield server
    finally:
        await server.close()


async def talk(port: int, data: bytes, *, split: int | None = None, wait: float = 5.0) -> bytes:
    """Send ``data`` (in pieces of ``split`` bytes), return everything until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for start in range(0, len(data), split or len(data) or 1):
            writer.write(data[start : start + (split or len(data))])
            await writer.drain()
            if split:
                await asyncio.sleep(0)
        return await asyncio.wait_for(reader.read(), wait)
    finally:
        writer.close()


async def answer_of(reader: asyncio.StreamReader) -> bytes:
    """Read one answer that has a content-length."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    length = next(
        int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")
    )
    return head + await asyncio.wait_for(reader.readexactly(length), 5)


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for a condition; fail after a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.005)


@dataclass
class Upstream:
    """A scripted upstream: each connection is handed to ``script``."""

    port: int = 0
    connections: int = 0
    received: list[bytes] = field(default_factory=list)
    closed: int = 0

    async def request(self, reader: asyncio.StreamReader) -> bytes:
        """Read one request (with content-length or without a body)."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                length = int(line[15:])
        request = head + await reader.readexactly(length)
        self.received.append(request)
        return request


Script = Callable[[Upstream, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def upstream(script: Script) -> AsyncIterator[Upstream]:
    """Run ``script`` for each connection to a free port."""
    state = Upstream()
    tasks: set[asyncio.Task[None]] = set()

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        state.connections += 1
        try:
            await script(state, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            state.closed += 1
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(run(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    state.port = server.sockets[0].getsockname()[1]
    try:
        yield state
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def fixed(*answers: bytes, close: bool = False) -> Script:
    """Answer requests one after the other with these bytes (the last one again and again)."""

    async def script(state: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        count = 0
        while True:
            await state.request(reader)
            writer.write(answers[min(count, len(answers) - 1)])
            await writer.drain()
            count += 1
            if close:
                return

    return script
