"""The pooled client: keep-alive connections to one origin, bounded, with a first-come line for those who wait."""

from __future__ import annotations

import asyncio
import math
import re
import ssl
from collections import deque
from dataclasses import dataclass, field

from airi.http.client_connection import ClientConnection, Stale
from airi.http.connecting import Connector
from airi.http.errors import PoolClosed, PoolTimeout, TooManyWaiters
from airi.http.headers import HOP_BY_HOP, Headers, join_headers
from airi.http.known_answer import KnownAnswer
from airi.http.memo import Pacer
from airi.http.origin import parse_origin, proxy_for
from airi.http.response import Response
from airi.http.sweeper import Sweeper
from airi.http.tls import TlsOptions

__all__ = ["ClientOptions", "HttpPool", "Response", "TlsOptions"]

_TICK_SECONDS = 0.05
_IDLE_TICK_SECONDS = 1.0
_MAX_PREFIXES = 256
_OWNED = HOP_BY_HOP | {b"host", b"content-length", b"expect"}
_TARGET = re.compile(rb"[!-~]+")
_METHOD = re.compile(rb"[A-Z]+")
_WITH_BODY = frozenset({b"POST", b"PUT", b"PATCH"})


@dataclass(frozen=True, slots=True)
class ClientOptions:
    """Bounds of a pool. Times in milliseconds, sizes in bytes.

    ``tls`` may be a context made elsewhere. ``use_proxy`` takes proxies from the environment (never for loopback
    or unix sockets). ``buffer_bytes`` is what an answer may hold unread before its upstream is no longer read.
    """

    max_connections: int = 256
    max_waiters: int = 1024
    connect_ms: int = 5_000
    wait_ms: int = 30_000
    keepalive_ms: int = 30_000
    tls: TlsOptions | ssl.SSLContext = field(default_factory=TlsOptions)
    use_proxy: bool = True
    header_bytes: int = 64 * 1024
    header_count: int = 256
    buffer_bytes: int = 256 * 1024


class HttpPool:
    """Connections to one origin. Make it inside a running event loop."""

    def __init__(self, origin: str, *, options: ClientOptions | None = None) -> None:
        self.options = options or ClientOptions()
        self.loop = asyncio.get_running_loop()
        self._origin = parse_origin(origin)
        self.origin = str(self._origin)
        proxy = proxy_for(self._origin) if self.options.use_proxy else None
        self._connector = Connector(self._origin, proxy, self.options.tls, self.options.connect_ms / 1000)
        self._keepalive = self.options.keepalive_ms / 1000
        self._connections: set[ClientConnection] = set()
        self._connecting = 0
        self._idle: deque[ClientConnection] = deque()
        self._waiters: deque[tuple[float, asyncio.Future[ClientConnection | None]]] = deque()
        self._prefixes: dict[tuple[bytes, bytes], bytes] = {}
        self.known: KnownAnswer | None = None
        self.pacer = Pacer()
        self._closed = False
        self._ticking = False
        self._sweeper = Sweeper(self.loop, self._sweep)

    @property
    def active(self) -> int:
        """Connections in use or being made."""
        return len(self._connections) + self._connecting - len(self._idle)

    @property
    def idle(self) -> int:
        """Connections kept for the next call."""
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """Calls in the line for a connection."""
        return len(self._waiters)

    async def send(
        self,
        method: bytes,
        target: bytes,
        headers: Headers | bytes,
        body: bytes = b"",
        *,
        first_byte_ms: int | None = None,
        idle_ms: int | None = None,
        total_ms: int | None = None,
    ) -> Response:
        """Send a request and return when the head of its answer is there.

        ``first_byte_ms`` runs from the request's sending to its answer's head, ``idle_ms`` between pieces of the
        body, ``total_ms`` over all of it (``None``: unlimited). Hop-by-hop headers, host and content-length in
        ``headers`` are dropped: the client frames messages itself. Raises the errors of
        :mod:`airi.http.errors`. A kept connection that its peer closes before any byte of an answer is replaced
        once by a new one. Cancelling closes the socket.
        """
        prefix = self._prefixes.get((method, target)) or self._prefix(method, target)
        block = join_headers(headers, _OWNED)
        if body or method in _WITH_BODY:
            head = b"%b%bcontent-length: %d\r\n\r\n" % (prefix, block, len(body))
        else:
            head = b"%b%b\r\n" % (prefix, block)
        now = self.loop.time()
        total = now + total_ms / 1000 if total_ms is not None else math.inf
        idle = idle_ms / 1000 if idle_ms is not None else math.inf
        fresh = False
        while True:
            connection = await self._acquire(total, fresh) if fresh or not self._idle else self._idle.pop()
            first_byte = self.loop.time() + first_byte_ms / 1000 if first_byte_ms is not None else math.inf
            if not self._ticking:
                self._ticking = True
                self._sweeper.wake(_TICK_SECONDS)
            waiter = connection.request(
                head, body, headless=method == b"HEAD", first_byte=first_byte, idle=idle, total=total
            )
            response = connection.response
            assert response is not None
            try:
                await waiter
            except Stale:
                if fresh:
                    raise
                fresh = True
            except asyncio.CancelledError:
                response.close()
                raise
            else:
                return response

    def release(self, connection: ClientConnection) -> None:
        """Take back a connection whose exchange is over."""
        if self._closed or not connection.reusable:
            connection.close()
            return
        while self._waiters:
            _, waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        connection.expires = self.loop.time() + self._keepalive
        self._idle.append(connection)

    def forget(self, connection: ClientConnection) -> None:
        """A connection is gone; its place goes to the first in the line."""
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._offer_place()

    def close(self) -> None:
        """Keep nothing: idle connections close now, others when their exchange is over; waiters are refused."""
        self._closed = True
        for connection in list(self._idle):
            connection.close()
        while self._waiters:
            _, waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_exception(PoolClosed(f"The pool of {self.origin} was closed."))

    def abort(self) -> None:
        """Close, and cut what is under way."""
        self.close()
        for connection in list(self._connections):
            connection.abandon()
        self._sweeper.stop()

    # --- inside -----------------------------------------------------------------------------------------------

    def _prefix(self, method: bytes, target: bytes) -> bytes:
        if not _METHOD.fullmatch(method) or not _TARGET.fullmatch(target):
            raise ValueError("the method or the target is not one that HTTP/1.1 can carry")
        if len(self._prefixes) >= _MAX_PREFIXES:
            self._prefixes.clear()
        prefix = self._connector.request_prefix(method, target)
        self._prefixes[method, target] = prefix
        return prefix

    async def _acquire(self, total: float, fresh: bool) -> ClientConnection:
        while True:
            if self._closed:
                raise PoolClosed(f"The pool of {self.origin} was closed.")
            if self._idle and not fresh:
                return self._idle.pop()
            if len(self._connections) + self._connecting < self.options.max_connections:
                self._connecting += 1
                return await self._connect()
            if fresh and self._idle:
                # The line is full of kept connections, perhaps as dead as the last one: make room for a new one.
                self._idle.popleft().close()
                continue
            connection = await self._wait(total)
            if connection is None:
                return await self._connect()
            if not connection.closed:
                return connection

    async def _connect(self) -> ClientConnection:
        """Make a connection; the caller has counted it in ``_connecting``."""
        made = False
        try:
            connection = await self._connector.connect(lambda: ClientConnection(self))
            made = True
            self._connections.add(connection)
        finally:
            self._connecting -= 1
            if not made:
                self._offer_place()
        return connection

    async def _wait(self, total: float) -> ClientConnection | None:
        """Stand in the line; ``None`` is a free place, already counted."""
        if len(self._waiters) >= self.options.max_waiters:
            raise TooManyWaiters(f"Too many calls are waiting for {self.origin}.", retry_after_ms=1000)
        waiter: asyncio.Future[ClientConnection | None] = self.loop.create_future()
        deadline = min(self.loop.time() + self.options.wait_ms / 1000, total)
        self._waiters.append((deadline, waiter))
        if not self._ticking:
            self._ticking = True
            self._sweeper.wake(_TICK_SECONDS)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._give_back(waiter.result())
            raise

    def _give_back(self, granted: ClientConnection | None) -> None:
        if granted is None:
            self._connecting -= 1
            self._offer_place()
        else:
            self.release(granted)

    def _offer_place(self) -> None:
        while self._waiters and len(self._connections) + self._connecting < self.options.max_connections:
            _, waiter = self._waiters.popleft()
            if not waiter.done():
                self._connecting += 1
                waiter.set_result(None)
                return

    def _sweep(self, now: float) -> float:
        for connection in [c for c in self._connections if c.deadline <= now]:
            connection.expire(now)
        while self._idle and self._idle[0].expires <= now:
            self._idle[0].close()
        self._expire_waiters(now)
        if self.active or self._waiters:
            return _TICK_SECONDS
        self._ticking = False
        return _IDLE_TICK_SECONDS if self._idle else math.inf

    def _expire_waiters(self, now: float) -> None:
        if not any(deadline <= now or waiter.done() for deadline, waiter in self._waiters):
            return
        kept: deque[tuple[float, asyncio.Future[ClientConnection | None]]] = deque()
        for deadline, waiter in self._waiters:
            if waiter.done():
                continue
            if deadline <= now:
                waiter.set_exception(PoolTimeout(f"No connection to {self.origin} became free in time."))
            else:
                kept.append((deadline, waiter))
        self._waiters = kept
