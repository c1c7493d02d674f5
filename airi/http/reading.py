"""From bytes to requests: the parser's callbacks of a client connection, and the heads that come again."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from typing import TYPE_CHECKING

import httptools

from airi.http.checks import (
    Refused,
    check_framing,
    check_host,
    first_values,
    is_http11,
    origin_form,
    wants_continue,
)
from airi.http.memo import HeadMemo, Pacer, split_head
from airi.http.request import Request

if TYPE_CHECKING:
    from airi.http.server import Server

IDLE, HEAD, BODY = 0, 1, 2
# Heads with these take the parser's way each time.
_ONCE = frozenset({b"expect", b"upgrade", b"transfer-encoding"})


class KnownRequest:
    """A request whose head may come again, and what it was parsed to."""

    __slots__ = ("headers", "index", "length", "memo", "method", "path", "position", "query", "useful")

    def __init__(self, memo: HeadMemo, request: Request, index: dict[bytes, bytes]) -> None:
        self.memo = memo
        self.method = request.method
        self.path = request.path
        self.query = request.query
        self.headers = list(request.headers)
        self.index = index
        self.length = len(request.body)
        self.position = next(
            (i for i, pair in enumerate(request.headers) if pair[0] == b"content-length"), -1
        )
        self.useful = False


class RequestReader(asyncio.Protocol):
    """The reading half of :class:`~airi.http.connection.Connection`, which fills in what becomes of a request."""

    __slots__ = (
        "_body",
        "_body_size",
        "_check_size",
        "_current",
        "_head_size",
        "_headers",
        "_host",
        "_http11",
        "_index",
        "_keep_alive",
        "_known",
        "_next",
        "_pacer",
        "_parser",
        "_phase",
        "_timed_phase",
        "_upgrading",
        "_url",
        "peer",
        "server",
        "transport",
    )

    def __init__(self, server: Server) -> None:
        self.server = server
        self.transport: asyncio.Transport | None = None
        self.peer = ""
        self._parser = httptools.HttpRequestParser(self)
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._index: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._body_size = 0
        self._head_size = 0
        self._check_size = False
        self._phase = IDLE
        self._timed_phase = IDLE
        self._host: bytes | None = None
        self._keep_alive = True
        self._http11 = True
        self._upgrading = False
        self._current: Request | None = None
        self._next: Request | None = None
        self._known: KnownRequest | None = None
        self._pacer = Pacer()

    @abstractmethod
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
        """Take a whole request: answer it, or let it wait for the one before it."""

    # --- parser's callbacks ----------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """A request begins; a third one in the line is refused."""
        if self._upgrading:
            return
        if self._next is not None:
            raise Refused(400, "Too many pipelined requests: wait for the answer before sending the next.")
        self._phase = HEAD
        self._url = b""
        self._headers = []
        self._body = []
        self._body_size = 0

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer (which is dropped)."""
        if self._phase == HEAD:
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Check the head before any of the body is taken."""
        headers = self._headers
        limits = self.server.limits
        if len(headers) > limits.header_count or (
            self._check_size
            and sum([len(n) + len(v) + 4 for n, v in headers], len(self._url)) > limits.header_bytes
        ):
            raise Refused(431, "The request's headers are too many or too large.")
        index = dict(headers)
        if len(index) != len(headers):
            index = first_values(headers)
        self._index = index
        parser = self._parser
        self._keep_alive = keep_alive = parser.should_keep_alive()
        self._http11 = (keep_alive and b"connection" not in index) or is_http11(parser.get_http_version())
        host = index.get(b"host")
        if host != self._host or host is None:
            check_host(host, self._http11)
            self._host = host
        check_framing(index, limits.body_bytes)
        if b"upgrade" in index or parser.get_method() == b"CONNECT":
            self._note_upgrade()
        if b"expect" in index and wants_continue(index):
            self._continue()
        self._phase = BODY

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        self._body_size += len(data)
        if self._body_size > self.server.limits.body_bytes:
            raise Refused(413, f"The request's body is larger than {self.server.limits.body_bytes} bytes.")
        self._body.append(data)

    def on_message_complete(self) -> None:
        """The request is whole: answer it, or let it wait for the one before it."""
        if self._upgrading:
            return
        url = self._url
        if url[:1] != b"/":
            url = origin_form(url)
        path, _, query = url.partition(b"?")
        body = self._body
        self._phase = self._timed_phase = IDLE
        self._head_size = 0
        self.deliver(
            self._parser.get_method().decode(),
            path.decode("latin-1"),
            query,
            self._headers,
            self._index,
            body[0] if len(body) == 1 else b"".join(body),
            self._keep_alive,
            self._http11,
        )

    # --- heads that come again -------------------------------------------------------------------------------

    def _repeat(self, known: KnownRequest, data: bytes) -> bool:
        """Answer ``data`` without the parser when it is a whole request with a head that is known."""
        start = known.memo.body_start(data)
        if not start:
            return False
        body = data[start:]
        length = len(body)
        headers, index = known.headers.copy(), known.index
        if length != known.length:
            if length > self.server.limits.body_bytes:
                return False
            index = index.copy()
            headers[known.position] = (b"content-length", b"%d" % length)
            index[b"content-length"] = b"%d" % length
        known.useful = True
        self.deliver(known.method, known.path, known.query, headers, index, body, True, True)
        return True

    def _remember(self, data: bytes, request: Request) -> None:
        """Keep the head of ``request``, which was all of ``data``, unless heads on this connection never repeat."""
        if self._pacer.missed(self._known is not None and self._known.useful):
            self._known = None
            memo = split_head(data, len(request.body))
            plain = request.keep_alive and request.http11 and not self._index.keys() & _ONCE
            if memo is not None and plain:
                self._known = KnownRequest(memo, request, self._index)

    # --- what a head may ask for -----------------------------------------------------------------------------

    def _continue(self) -> None:
        # While an earlier answer is under way there is no room for this one: the client goes on after a while anyway.
        if self._http11 and self._current is None and self.transport is not None:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _note_upgrade(self) -> None:
        """An offer to change the protocol is passed over (RFC 9110 §7.8); the parser must be told so."""
        if self._parser.get_method() == b"CONNECT":
            raise Refused(405, "CONNECT is not offered.")
        if self._parser.should_upgrade():
            self._upgrading = True

    def _refeed(self, rest: bytes) -> None:
        """Give a fresh parser the same head without its offer, then what followed."""
        self._upgrading = False
        method, url, headers = self._parser.get_method(), self._url, self._headers
        self._parser = httptools.HttpRequestParser(self)
        kept = [b"%b: %b\r\n" % pair for pair in headers if pair[0] not in (b"upgrade", b"expect")]
        version = b"1.1" if self._http11 else b"1.0"
        self._phase = IDLE
        self.data_received(b"%b %b HTTP/%b\r\n%b\r\n%b" % (method, url, version, b"".join(kept), rest))
