"""One client connection of the server: bytes in, requests out, limits kept."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, cast

import httptools

from airi.http.checks import Refused
from airi.http.reading import BODY, HEAD, IDLE, RequestReader
from airi.http.request import Request

if TYPE_CHECKING:
    from airi.http.server import Server

# A refused client may still be sending: what it sends is thrown away for this long, so that it sees the answer
# and not a reset (RFC 9112 §9.6).
_LINGER_SECONDS = 1.0


class Connection(RequestReader):
    """A protocol on httptools. At most one request is being answered and one more is waiting."""

    __slots__ = (
        "_buffered",
        "_closing",
        "_drainers",
        "_reading_paused",
        "deadline",
        "write_deadline",
        "write_paused",
    )

    def __init__(self, server: Server) -> None:
        super().__init__(server)
        self.deadline = math.inf
        self.write_deadline = math.inf
        self.write_paused = False
        self._closing = False
        self._reading_paused = False
        self._drainers: list[asyncio.Future[None]] = []
        self._buffered = 0

    # --- transport ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Count the connection, or turn it away when there are too many."""
        self.transport = cast(asyncio.Transport, transport)
        peername = transport.get_extra_info("peername")
        self.peer = peername[0] if isinstance(peername, tuple) and peername else "unix"
        server = self.server
        limits = server.limits
        self.transport.set_write_buffer_limits(high=limits.write_high_water)
        full = len(server.connections) >= limits.max_connections
        server.add(self)
        self.deadline = server.loop.time() + limits.header_ms / 1000
        if full:
            self.refuse(503, "Too many connections. Try again in a moment.", b"retry-after: 1\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left: cancel what is being done for it."""
        self.transport = None
        self.server.connections.discard(self)
        request, self._current, self._next = self._current, None, None
        if request is not None and request.task is not None and not request.finished:
            self.server.cancel(request.task)
        for waiter in self._drainers:
            if not waiter.done():
                waiter.set_exception(ConnectionResetError("the client has left"))
        self._drainers.clear()

    def data_received(self, data: bytes) -> None:
        """Parse; answer what cannot be parsed."""
        if self._closing:
            return
        fresh = self._phase == IDLE and self._current is None and self._next is None and not self.write_paused
        if fresh and self._known is not None and self._repeat(self._known, data):
            return
        size = len(data)
        self._check_size = self._head_size + size > self.server.limits.header_bytes
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._refeed(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            # The parser hands on what its callbacks raised as the context of an error of its own.
            cause = error.__context__
            if isinstance(cause, Refused):
                self.refuse(cause.status, cause.message)
            else:
                self.refuse(400, f"The request is not valid HTTP/1.1: {error}.")
        if self._phase != IDLE:
            self._incomplete(size)
        elif fresh and self._current is not None and self._next is None:
            self._remember(data, self._current)

    def pause_writing(self) -> None:
        """The client reads slower than it is written to."""
        self.write_paused = True
        self._watch_writing()

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.write_paused = False
        if not self._closing:
            self.write_deadline = math.inf
        for waiter in self._drainers:
            if not waiter.done():
                waiter.set_result(None)
        self._drainers.clear()
        if self._current is None and self._next is not None:
            self._start_next()

    async def writable(self) -> None:
        """Wait until the client has read enough; raises ``ConnectionResetError`` when it has left."""
        waiter = self.server.loop.create_future()
        self._drainers.append(waiter)
        await waiter

    def abort(self) -> None:
        """Close at once and drop what was not sent."""
        if self.transport is not None:
            self.transport.abort()

    def expire(self, now: float) -> None:
        """A deadline has passed: called by the server's sweep."""
        transport = self.transport
        if transport is None:
            return
        if self.write_deadline <= now:
            waiting = transport.get_write_buffer_size()
            if waiting and waiting >= self._buffered:
                transport.abort()
                return
            self._watch_writing()
        if self.deadline > now:
            return
        if self._closing:
            transport.abort()
        elif self._phase == HEAD:
            self.refuse(408, "The request's head did not arrive in time.")
        elif self._phase == BODY:
            self.refuse(408, "The request's body did not arrive in time.")
        elif self._current is None:
            self.close()

    def close(self) -> None:
        """Send what is buffered, then close."""
        self._closing = True
        self._phase = IDLE
        self.deadline = math.inf
        if self.transport is not None:
            self._watch_writing()
            self.transport.close()

    @property
    def idle(self) -> bool:
        """Whether nothing is being read or answered."""
        return self._current is None and self._phase == IDLE and self._next is None

    def _watch_writing(self) -> None:
        transport = self.transport
        if transport is not None:
            self._buffered = transport.get_write_buffer_size()
            self.write_deadline = self.server.loop.time() + self.server.limits.write_idle_ms / 1000

    # --- requests ------------------------------------------------------------------------------------------

    def deliver(
        self,
        method: str,
        path: str,
        query: bytes,
        headers: list[tuple[bytes, bytes]],
        index: dict[bytes, bytes],
        body: bytes,
        keep_alive: bool,
        http11: bool,
    ) -> None:
        """Answer a whole request, or let it wait for the one before it."""
        request = Request(self, method, path, query, headers, index, body, self.peer, keep_alive, http11)
        self.deadline = math.inf
        if self._current is None and not self.write_paused:
            self._current = request
            request.task = self.server.run(request)
        else:
            self._next = request
            self._pause_reading()

    def response_finished(self, request: Request) -> None:
        """The answer is out; the handler may go on, the connection is free for the next request."""
        if self._current is not request:
            return
        self._current = None
        if not request.keep_alive or self._closing:
            self.close()
        elif self._next is not None:
            if not self.write_paused:
                self._start_next()
        elif self._phase == IDLE:
            server = self.server
            self.deadline = server.now + server.keepalive_seconds

    def refuse(self, status: int, message: str, headers: bytes = b"") -> None:
        """Answer a request that no handler sees, and end the connection without resetting it."""
        transport = self.transport
        if transport is None or self._closing:
            return
        self._closing = True
        self._phase = IDLE
        if self._current is not None:
            # An answer is under way: nothing may be written into it. It ends, then the connection.
            self._current.keep_alive = False
            self._next = None
            return
        server = self.server
        head, body = server.error_form(status, message)
        transport.write(
            b"%b%b%bcontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (server.status_line(status), headers, head, len(body), body)
        )
        self.deadline = server.loop.time() + _LINGER_SECONDS
        self._watch_writing()
        if transport.can_write_eof():
            transport.write_eof()

    def _start_next(self) -> None:
        request, self._next = self._next, None
        assert request is not None
        self._current = request
        request.task = self.server.run(request)
        if self._reading_paused and self.transport is not None:
            self._reading_paused = False
            self.transport.resume_reading()

    def _pause_reading(self) -> None:
        if not self._reading_paused and self.transport is not None:
            self._reading_paused = True
            self.transport.pause_reading()

    def _incomplete(self, size: int) -> None:
        """Time and bound a request that did not arrive whole."""
        limits = self.server.limits
        if self._phase == HEAD:
            self._head_size += size
            if self._head_size > limits.header_bytes:
                self.refuse(431, "The request's headers are too large.")
                return
        if self._timed_phase != self._phase:
            # A head's time begins with its first byte, a body's with the end of its head.
            self._timed_phase = self._phase
            wait_ms = limits.header_ms if self._phase == HEAD else limits.body_ms
            self.deadline = self.server.loop.time() + wait_ms / 1000
