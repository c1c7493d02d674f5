"""An httpx transport on our own pooled client: litellm translates, we speak HTTP.

So TLS, proxies, time-outs, bounds and cancellation are the same for every dialect. litellm leaves a stream that its
reader gave up open until it is collected; here the exchange is ours and is cut at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextvars import ContextVar
from dataclasses import dataclass

import httpx

from airi.http.client import HttpPool, Response
from airi.http.errors import HttpClientError
from routing.call import Header


@dataclass(slots=True)
class Exchange:
    """One call's exchange below litellm: what it may add and how long it may take; what became of it."""

    headers: tuple[Header, ...]
    first_byte_ms: int
    idle_ms: int
    total_ms: int
    response: Response | None = None
    error: HttpClientError | None = None
    closed: bool = False

    def close(self) -> None:
        """Cut it at once if it is not over."""
        self.closed = True
        if self.response is not None:
            self.response.close()


current: ContextVar[Exchange] = ContextVar("airi_litellm_exchange")
"""The exchange of the call that runs in this context."""


class PooledTransport(httpx.AsyncBaseTransport):
    """Sends every request of an ``httpx.AsyncClient`` over one :class:`HttpPool`; other origins are refused."""

    def __init__(self, pool: HttpPool) -> None:
        self._pool = pool

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request of the current exchange."""
        exchange = current.get()
        added = {name for name, _ in exchange.headers}
        raw = [(name.lower(), value) for name, value in request.headers.raw]
        headers = [header for header in raw if header[0] not in added and header[0] != b"user-agent"]
        headers += [(b"user-agent", b"airi"), *exchange.headers]
        try:
            response = await self._pool.send(
                request.method.encode(),
                request.url.raw_path,
                headers,
                await request.aread(),
                first_byte_ms=exchange.first_byte_ms,
                idle_ms=exchange.idle_ms,
                total_ms=exchange.total_ms,
            )
        except HttpClientError as error:
            exchange.error = error
            raise httpx.ConnectError(error.message, request=request) from error
        exchange.response = response
        if exchange.closed:
            response.close()
        return httpx.Response(
            response.status, headers=response.headers, stream=_Body(exchange, response), request=request
        )


class _Body(httpx.AsyncByteStream):
    """The body of a response as httpx reads it."""

    def __init__(self, exchange: Exchange, response: Response) -> None:
        self._exchange = exchange
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while (block := await self._response.next_block()) is not None:
                yield block
        except HttpClientError as error:
            self._exchange.error = error
            raise httpx.ReadError(error.message) from error

    async def aclose(self) -> None:
        """Give the connection back, or cut it."""
        self._response.close()
