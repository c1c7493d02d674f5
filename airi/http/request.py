"""One request as a handler sees it, and the response side of its connection."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from airi.http.headers import Headers, join_headers

if TYPE_CHECKING:
    from airi.http.connection import Connection

# The server alone frames messages: what a handler passes on from elsewhere must not contradict it.
_OWNED = frozenset(
    {b"connection", b"keep-alive", b"content-length", b"transfer-encoding", b"date", b"trailer", b"upgrade"}
)
_NO_CONTENT = frozenset({204, 304})


class Request:
    """A complete request. Headers are lower-case; ``path`` is neither decoded nor does it hold the query.

    Answer either with :meth:`respond`, or with :meth:`start`, :meth:`write` (with ``await`` :meth:`drain`
    between) and :meth:`finish`. Writing to a client that has left does nothing: the handler is being cancelled.
    """

    __slots__ = (
        "_chunked",
        "_connection",
        "_index",
        "_silent",
        "body",
        "finished",
        "headers",
        "http11",
        "keep_alive",
        "method",
        "path",
        "peer",
        "query",
        "started",
        "task",
    )

    def __init__(
        self,
        connection: Connection,
        method: str,
        path: str,
        query: bytes,
        headers: list[tuple[bytes, bytes]],
        index: dict[bytes, bytes],
        body: bytes,
        peer: str,
        keep_alive: bool,
        http11: bool,
    ) -> None:
        self._connection = connection
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers
        self._index = index
        self.body = body
        self.peer = peer
        self.keep_alive = keep_alive
        self.http11 = http11
        self.started = False
        self.finished = False
        self._chunked = False
        self._silent = False
        self.task: asyncio.Task[None] | None = None

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of ``name`` (lower-case), or ``None``."""
        return self._index.get(name)

    @property
    def disconnected(self) -> bool:
        """Whether the client has left."""
        return self._connection.transport is None

    def respond(self, status: int, headers: Headers | bytes, body: bytes = b"") -> None:
        """Send a whole answer in one write. ``headers`` may be a block already joined (``name: value\\r\\n…``)."""
        if self.started:
            raise RuntimeError("the response has already been started")
        block = join_headers(headers, _OWNED)
        self.started = self.finished = True
        connection = self._connection
        transport = connection.transport
        if transport is None:
            return
        if status in _NO_CONTENT:
            end = b"%b\r\n" % self._connection_header()
            body = b""
        else:
            end = b"content-length: %d\r\n%b\r\n" % (len(body), self._connection_header())
            if self.method == "HEAD":
                body = b""
        transport.write(b"".join((connection.server.status_line(status), block, end, body)))
        connection.response_finished(self)

    def start(self, status: int, headers: Headers | bytes) -> None:
        """Send the head of an answer whose length is not known: chunked, or to an HTTP/1.0 client until closed."""
        if self.started:
            raise RuntimeError("the response has already been started")
        block = join_headers(headers, _OWNED)
        self.started = True
        connection = self._connection
        self._silent = self.method == "HEAD" or status in _NO_CONTENT
        if self.http11:
            self._chunked = not self._silent
        else:
            self.keep_alive = self.keep_alive and self._silent
        transport = connection.transport
        if transport is None:
            return
        framing = b"transfer-encoding: chunked\r\n" if self._chunked else b""
        end = b"%b%b\r\n" % (framing, self._connection_header())
        transport.write(b"".join((connection.server.status_line(status), block, end)))

    def write(self, chunk: bytes) -> None:
        """Send a piece of the body; never waits (see :meth:`drain`)."""
        if not self.started or self.finished:
            raise RuntimeError("write needs a started, unfinished response")
        transport = self._connection.transport
        if transport is None or self._silent or not chunk:
            return
        transport.write(b"%x\r\n%b\r\n" % (len(chunk), chunk) if self._chunked else chunk)

    async def drain(self) -> None:
        """Wait while the client is slower than the handler."""
        connection = self._connection
        if connection.write_paused:
            await connection.writable()

    def finish(self) -> None:
        """End a started answer; further calls do nothing."""
        if self.finished:
            return
        if not self.started:
            raise RuntimeError("finish needs a started response")
        self.finished = True
        connection = self._connection
        transport = connection.transport
        if transport is None:
            return
        if self._chunked:
            transport.write(b"0\r\n\r\n")
        connection.response_finished(self)

    def abort(self) -> None:
        """Cut the connection, so that the client sees a truncated answer rather than a whole one.

        The handler goes on: it knows, and may have something to settle.
        """
        self.started = self.finished = True
        self._connection.abort()

    def _connection_header(self) -> bytes:
        if self._connection.server.draining:
            self.keep_alive = False
        if not self.keep_alive:
            return b"connection: close\r\n"
        return b"" if self.http11 else b"connection: keep-alive\r\n"
