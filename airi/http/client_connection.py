"""One connection to an upstream: writes a request, parses its answer, keeps its deadlines."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING, cast

import httptools

from airi.http.errors import (
    ConnectionLost,
    FirstByteTimeout,
    HttpClientError,
    IdleTimeout,
    ProtocolError,
    TotalTimeout,
    Truncated,
)
from airi.http.known_answer import KnownAnswer
from airi.http.response import Response

if TYPE_CHECKING:
    from airi.http.client import HttpPool

_MAX_INFORMATIONAL = 16
_BODILESS = frozenset({204, 304})


class Stale(ConnectionLost):
    """A kept connection was closed by its peer just as it was used again; nothing of an answer was seen."""


class ClientConnection(asyncio.Protocol):
    """A protocol on httptools; at most one request at a time."""

    __slots__ = (
        "_checked",
        "_head_size",
        "_header_limit",
        "_headers",
        "_headless",
        "_idle_seconds",
        "_in_head",
        "_informational",
        "_keep_alive",
        "_message_ended",
        "_parser",
        "_pool",
        "_reused",
        "_seen",
        "_total_deadline",
        "_transport",
        "_waiter",
        "closed",
        "deadline",
        "expires",
        "loop",
        "paused",
        "response",
        "served",
    )

    def __init__(self, pool: HttpPool) -> None:
        self._pool = pool
        self.loop = pool.loop
        self.closed = False
        self.paused = False
        self.deadline = math.inf
        self.expires = math.inf
        self.served = 0
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self.response: Response | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._headless = False
        self._in_head = True
        self._keep_alive = False
        self._reused = False
        self._seen = False
        self._message_ended = False
        self._informational = 0
        self._head_size = 0
        self._header_limit = pool.options.header_bytes
        self._idle_seconds = math.inf
        self._total_deadline = math.inf
        self._checked = False

    # --- a call -----------------------------------------------------------------------------------------------

    def request(
        self, head: bytes, body: bytes, *, headless: bool, first_byte: float, idle: float, total: float
    ) -> asyncio.Future[None]:
        """Write a request; the future brings its answer's head. Deadlines are loop times, ``idle`` is seconds."""
        transport = self._transport
        assert transport is not None
        assert self.response is None
        waiter: asyncio.Future[None] = self.loop.create_future()
        self._waiter = waiter
        self.response = Response(self)
        self._headless = headless
        self._reused = self.served > 0
        self.served += 1
        self._seen = False
        self._total_deadline = total
        self._idle_seconds = idle
        self.deadline = first_byte if first_byte < total else total
        if len(body) <= 65536:
            transport.write(head + body if body else head)
        else:
            transport.writelines((head, body))
        return waiter

    def abandon(self, response: Response | None = None) -> None:
        """Close at once, unless ``response`` is over and the connection belongs to nobody or to another call."""
        if response is None or response is self.response:
            self.response = self._waiter = None
            self._close()

    def resume(self, response: Response) -> None:
        """The reader has caught up."""
        if response is self.response:
            self.paused = False
            self._touch()
            if self._transport is not None:
                self._transport.resume_reading()

    def expire(self, now: float) -> None:
        """The deadline has passed: called by the pool's sweep."""
        origin = self._pool.origin
        if self._total_deadline <= now:
            self._fail(TotalTimeout(f"{origin} did not finish its answer in the time given."))
        elif self._waiter is not None:
            self._fail(FirstByteTimeout(f"{origin} did not begin to answer in the time given."))
        else:
            self._fail(IdleTimeout(f"{origin} stopped in the middle of its answer."))

    @property
    def reusable(self) -> bool:
        """Whether the last exchange left the connection fit for another."""
        transport = self._transport
        return (
            self._keep_alive
            and not self.closed
            and transport is not None
            and not transport.is_closing()
            and transport.get_write_buffer_size() == 0
        )

    def close(self) -> None:
        """Close an idle connection."""
        self._close()

    # --- transport --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Parse what came; it can only be an answer that is waited for."""
        if self.closed:
            return
        response = self.response
        if response is None:
            self._close()
            return
        whole = not self._seen and not self._headless
        if whole and self._pool.known is not None and self._repeat(self._pool.known, response, data):
            return
        self._seen = True
        if self._in_head:
            self._head_size += len(data)
            self._checked = self._head_size <= self._header_limit
        elif not self.paused:
            self._touch()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            # A message that was whole before the garbage stands; the connection does not.
            cause = error.__context__ if isinstance(error.__context__, HttpClientError) else None
            self._fail(cause or ProtocolError(f"{self._pool.origin} sent what is not HTTP/1.1: {error}."))
            return
        if self._message_ended:
            self._message_ended = False
            if whole and self._keep_alive:
                self._remember(response, data)
            self._pool.release(self)
        elif self._in_head and not self._checked:
            self._fail(self._too_large())

    def eof_received(self) -> bool:
        """The end of an answer that is delimited by it, or of the connection."""
        response = self.response
        if response is not None and not self._in_head and self._until_eof(response):
            self.response = None
            response.end(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits."""
        origin = self._pool.origin
        self._transport = None
        if self.response is not None:
            if self._seen:
                self._fail(Truncated(f"{origin} closed the connection in the middle of its answer."))
            elif self._reused:
                self._fail(Stale(f"{origin} closed a kept connection as it was used again."))
            else:
                self._fail(ConnectionLost(f"{origin} closed the connection without an answer."))
        else:
            self._close()

    def _repeat(self, known: KnownAnswer, response: Response, data: bytes) -> bool:
        """Take ``data`` without the parser when it is a whole answer with a head that is known."""
        start = known.memo.body_start(data)
        if not start:
            return False
        body = data[start:]
        headers = known.headers.copy()
        headers[known.position] = (b"content-length", b"%d" % len(body))
        known.useful = True
        response.status = known.status
        response.headers = headers
        if body:
            response.feed(body)
        response.end(None)
        waiter = self._waiter
        self.response = self._waiter = None
        self.deadline = math.inf
        self._keep_alive = True
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        self._pool.release(self)
        return True

    def _remember(self, response: Response, data: bytes) -> None:
        """Keep the head of a kept-alive answer that was all of ``data``, unless heads here never repeat."""
        pool = self._pool
        if pool.pacer.missed(pool.known is not None and pool.known.useful):
            pool.known = KnownAnswer.of(response, data)

    # --- parser's callbacks -----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """An answer begins; one that nobody asked for ends the connection."""
        if self._message_ended:
            raise ProtocolError(f"{self._pool.origin} sent more than the answer.")
        self._headers = []
        self._in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer (which is dropped)."""
        if self._in_head:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Hand the head to the caller."""
        self._in_head = False
        headers = self._headers
        if len(headers) > self._pool.options.header_count or (
            not self._checked and sum([len(n) + len(v) + 4 for n, v in headers]) > self._header_limit
        ):
            raise self._too_large()
        status = self._parser.get_status_code()
        if status < 200:
            self._note_informational(status)
            return
        if status > 999:
            raise ProtocolError(f"{self._pool.origin} answered with the impossible status {status}.")
        response = self.response
        waiter = self._waiter
        if response is None or waiter is None:
            raise ProtocolError(f"{self._pool.origin} sent more than the answer.")
        for name, value in headers:
            if name == b"transfer-encoding" and value.lower() != b"chunked":
                raise ProtocolError(f"{self._pool.origin} uses a transfer encoding that was not asked for.")
        response.status = status
        response.headers = headers
        self._keep_alive = self._parser.should_keep_alive()
        self._waiter = None
        if not waiter.done():
            waiter.set_result(None)
        if self._headless:
            # The parser cannot be told that a HEAD's answer has no body, so its connection is not used again.
            self._keep_alive = False
            self.on_message_complete()
        self._touch()

    def on_body(self, data: bytes) -> None:
        """Buffer; past the high water the upstream is not read until its reader has caught up."""
        response = self.response
        if response is None:
            if self._headless:
                return
            raise ProtocolError(f"{self._pool.origin} sent more than the answer.")
        if response.feed(data) > self._pool.options.buffer_bytes and not self.paused:
            self.paused = True
            self.deadline = self._total_deadline
            if self._transport is not None:
                self._transport.pause_reading()

    def on_message_complete(self) -> None:
        """The answer is whole."""
        response = self.response
        if response is None or self._waiter is not None:
            return
        self.response = None
        self._message_ended = True
        self._in_head = True
        self._head_size = self._informational = 0
        self.deadline = math.inf
        if self.paused:
            self.paused = False
            if self._transport is not None:
                self._transport.resume_reading()
        response.end(None)

    # --- endings ----------------------------------------------------------------------------------------------

    def _touch(self) -> None:
        if self.response is not None:
            deadline = self.loop.time() + self._idle_seconds
            self.deadline = deadline if deadline < self._total_deadline else self._total_deadline

    def _note_informational(self, status: int) -> None:
        if status < 100 or status == 101:
            raise ProtocolError(
                f"{self._pool.origin} answered with the status {status}, which was not asked for."
            )
        self._informational += 1
        if self._informational > _MAX_INFORMATIONAL:
            raise ProtocolError(f"{self._pool.origin} sent too many interim answers.")
        self._in_head = True

    def _too_large(self) -> ProtocolError:
        return ProtocolError(f"{self._pool.origin} sent headers that are too many or too large.")

    def _until_eof(self, response: Response) -> bool:
        if response.status in _BODILESS:
            return False
        return not any(name in (b"content-length", b"transfer-encoding") for name, _ in response.headers)

    def _fail(self, error: HttpClientError) -> None:
        response, waiter = self.response, self._waiter
        self.response = self._waiter = None
        self._close()
        if waiter is not None:
            if not waiter.done():
                waiter.set_exception(error)
        elif response is not None:
            response.end(error)

    def _close(self) -> None:
        self.deadline = math.inf
        if not self.closed:
            self.closed = True
            self._pool.forget(self)
        if self._transport is not None:
            self._transport.abort()
