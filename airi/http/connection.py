"""One client connection of the server: bytes in, requests out, limits kept."""

from __future__ import annotations

import asyncio
import math
import re
from typing import TYPE_CHECKING, cast

import httptools

from airi.http.request import Request

if TYPE_CHECKING:
    from airi.http.server import Server

_IDLE, _HEAD, _BODY = 0, 1, 2
# A refused client may still be sending: what it sends is thrown away for this long, so that it sees the answer
# and not a reset (RFC 9112 §9.6).
_LINGER_SECONDS = 1.0
_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
# Two values of these would let two readers of one request disagree about it.
_SINGLE = frozenset(
    {b"host", b"authorization", b"content-type", b"content-length", b"transfer-encoding", b"expect"}
)


class _Refused(Exception):  # noqa: N818  # leaves a parser callback, never this module
    """The request under way is answered with ``status`` and the connection ends."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        self.message = message


class Connection(asyncio.Protocol):
    """A protocol on httptools. At most one request is being answered and one more is waiting."""

    __slots__ = (
        "_body",
        "_body_size",
        "_buffered",
        "_check_size",
        "_closing",
        "_current",
        "_drainers",
        "_head_size",
        "_headers",
        "_host",
        "_http11",
        "_index",
        "_keep_alive",
        "_next",
        "_parser",
        "_phase",
        "_reading_paused",
        "_refusal",
        "_timed_phase",
        "_upgrading",
        "_url",
        "deadline",
        "peer",
        "server",
        "transport",
        "write_deadline",
        "write_paused",
    )

    def __init__(self, server: Server) -> None:
        self.server = server
        self.transport: asyncio.Transport | None = None
        self.peer = ""
        self.deadline = math.inf
        self.write_deadline = math.inf
        self.write_paused = False
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._index: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._body_size = 0
        self._head_size = 0
        self._check_size = False
        self._phase = _IDLE
        self._timed_phase = _IDLE
        self._host: bytes | None = None
        self._keep_alive = True
        self._http11 = True
        self._upgrading = False
        self._closing = False
        self._current: Request | None = None
        self._next: Request | None = None
        self._reading_paused = False
        self._refusal: _Refused | None = None
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
        if request is not None and request.task is not None:
            self.server.cancel(request.task)
        for waiter in self._drainers:
            if not waiter.done():
                waiter.set_exception(ConnectionResetError("the client has left"))
        self._drainers.clear()

    def data_received(self, data: bytes) -> None:
        """Parse; answer what cannot be parsed."""
        if self._closing:
            return
        size = len(data)
        self._check_size = self._head_size + size > self.server.limits.header_bytes
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._refeed(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            refusal, self._refusal = self._refusal, None
            if refusal is not None:
                self.refuse(refusal.status, refusal.message)
            else:
                self.refuse(400, f"The request is not valid HTTP/1.1: {error}.")
        if self._phase != _IDLE:
            self._incomplete(size)

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
        elif self._phase == _HEAD:
            self.refuse(408, "The request's head did not arrive in time.")
        elif self._phase == _BODY:
            self.refuse(408, "The request's body did not arrive in time.")
        elif self._current is None:
            self.close()

    def close(self) -> None:
        """Send what is buffered, then close."""
        self._closing = True
        self._phase = _IDLE
        self.deadline = math.inf
        if self.transport is not None:
            self._watch_writing()
            self.transport.close()

    @property
    def idle(self) -> bool:
        """Whether nothing is being read or answered."""
        return self._current is None and self._phase == _IDLE and self._next is None

    def _watch_writing(self) -> None:
        transport = self.transport
        if transport is not None:
            self._buffered = transport.get_write_buffer_size()
            self.write_deadline = self.server.loop.time() + self.server.limits.write_idle_ms / 1000

    # --- parser's callbacks --------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins; a third one in the line is refused."""
        if self._upgrading:
            return
        if self._next is not None:
            self._refuse(400, "Too many pipelined requests: wait for the answer before sending the next.")
        self._phase = _HEAD
        self._url = b""
        self._headers = []
        self._body = []
        self._body_size = 0

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer (which is dropped)."""
        if self._phase == _HEAD:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Check the head before any of the body is taken."""
        headers = self._headers
        limits = self.server.limits
        if len(headers) > limits.header_count or (
            self._check_size
            and sum([len(n) + len(v) + 4 for n, v in headers], len(self._url)) > limits.header_bytes
        ):
            self._refuse(431, "The request's headers are too many or too large.")
        index = dict(headers)
        if len(index) != len(headers):
            index = self._first_values(headers)
        self._index = index
        parser = self._parser
        self._keep_alive = keep_alive = parser.should_keep_alive()
        if not keep_alive or b"connection" in index:
            self._http11 = self._is_http11(parser.get_http_version())
        else:
            self._http11 = True
        host = index.get(b"host")
        if host != self._host or host is None:
            self._check_host(host)
        length = index.get(b"content-length")
        if length is not None and int(length) > limits.body_bytes:
            self._refuse(413, f"The request's body is larger than {limits.body_bytes} bytes.")
        if b"transfer-encoding" in index and index[b"transfer-encoding"].lower() != b"chunked":
            self._refuse(501, "Of transfer encodings only chunked is understood.")
        if b"upgrade" in index or parser.get_method() == b"CONNECT":
            self._note_upgrade()
        if b"expect" in index:
            self._expect(index[b"expect"], length)
        self._phase = _BODY

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self._body_size += len(data)
        if self._body_size > self.server.limits.body_bytes:
            self._refuse(413, f"The request's body is larger than {self.server.limits.body_bytes} bytes.")
        self._body.append(data)

    def on_message_complete(self) -> None:
        """The request is whole: answer it, or let it wait for the one before it."""
        if self._upgrading:
            return
        url = self._url
        if url[:1] != b"/":
            url = self._origin_form(url)
        path, _, query = url.partition(b"?")
        body = self._body
        request = Request(
            self,
            self._parser.get_method().decode(),
            path.decode("latin-1"),
            query,
            self._headers,
            self._index,
            body[0] if len(body) == 1 else b"".join(body),
            self.peer,
            self._keep_alive,
            self._http11,
        )
        self._phase = self._timed_phase = _IDLE
        self._head_size = 0
        self.deadline = math.inf
        if self._current is None and not self.write_paused:
            self._current = request
            request.task = self.server.run(request)
        else:
            self._next = request
            self._pause_reading()

    # --- requests ------------------------------------------------------------------------------------------

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
        elif self._phase == _IDLE:
            server = self.server
            self.deadline = server.now + server.keepalive_seconds

    def refuse(self, status: int, message: str, headers: bytes = b"") -> None:
        """Answer a request that no handler sees, and end the connection without resetting it."""
        transport = self.transport
        if transport is None or self._closing:
            return
        self._closing = True
        self._phase = _IDLE
        if self._current is not None:
            # An answer is under way: nothing may be written into it. It ends, then the connection.
            self._current.keep_alive = False
            self._next = None
            return
        server = self.server
        body = server.error_body(status, message)
        transport.write(
            b"%b%bcontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (server.status_line(status), headers, len(body), body)
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
        if self._phase == _HEAD:
            self._head_size += size
            if self._head_size > limits.header_bytes:
                self.refuse(431, "The request's headers are too large.")
                return
        if self._timed_phase != self._phase:
            # A head's time begins with its first byte, a body's with the end of its head.
            self._timed_phase = self._phase
            wait_ms = limits.header_ms if self._phase == _HEAD else limits.body_ms
            self.deadline = self.server.loop.time() + wait_ms / 1000

    # --- checks --------------------------------------------------------------------------------------------

    def _refuse(self, status: int, message: str) -> None:
        """Leave the parser: its callbacks end parsing by raising."""
        self._refusal = _Refused(status, message)
        raise self._refusal

    def _first_values(self, headers: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
        index: dict[bytes, bytes] = {}
        for name, value in headers:
            if name not in index:
                index[name] = value
            elif name in _SINGLE:
                self._refuse(400, f"The header {name.decode()} is given twice.")
        return index

    def _is_http11(self, version: str) -> bool:
        if version not in ("1.1", "1.0"):
            self._refuse(505, "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
        return version == "1.1"

    def _check_host(self, host: bytes | None) -> None:
        if host is None:
            if self._http11:
                self._refuse(400, "The header host is missing.")
        elif not _HOST.fullmatch(host):
            self._refuse(400, "The header host is not a host.")
        self._host = host

    def _expect(self, value: bytes, length: bytes | None) -> None:
        if value.lower() != b"100-continue":
            self._refuse(417, "Of expectations only 100-continue is understood.")
        wanted = length != b"0" and (length is not None or b"transfer-encoding" in self._index)
        # While an earlier answer is under way the client gets none: it sends its body after a time-out of its own.
        if wanted and self._http11 and self._current is None and self.transport is not None:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _origin_form(self, url: bytes) -> bytes:
        if url == b"*":
            return url
        scheme, separator, rest = url.partition(b"://")
        if not separator or scheme.lower() not in (b"http", b"https"):
            self._refuse(400, "The request's target is not understood.")
        _, slash, path = rest.partition(b"/")
        return slash + path if slash else b"/"

    def _note_upgrade(self) -> None:
        """An offer to change the protocol is passed over (RFC 9110 §7.8); the parser must be told so."""
        if self._parser.get_method() == b"CONNECT":
            self._refuse(405, "CONNECT is not offered.")
        if self._parser.should_upgrade():
            self._upgrading = True

    def _refeed(self, rest: bytes) -> None:
        """Give a fresh parser the same head without its offer, then what followed."""
        self._upgrading = False
        method, url, headers = self._parser.get_method(), self._url, self._headers
        self._parser = httptools.HttpRequestParser(self)
        kept = [b"%b: %b\r\n" % pair for pair in headers if pair[0] not in (b"upgrade", b"expect")]
        version = b"1.1" if self._http11 else b"1.0"
        self._phase = _IDLE
        self.data_received(b"%b %b HTTP/%b\r\n%b\r\n%b" % (method, url, version, b"".join(kept), rest))
