"""An httpx transport on our own pooled client: litellm translates, we speak HTTP.

So TLS, proxies, time-outs, bounds and cancellation are the same for every dialect. litellm leaves a stream that its
reader gave up open until it is collected; here the exchange is ours and is cut at once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextvars import ContextVar
from dataclasses import dataclass
from urllib.parse import quote

import httpx

from airi.http.client import HttpPool, Response
from airi.http.errors import HttpClientError
from airi.http.origin import parse_origin
from airi.secrets import Secret
from routing.adapters.sigv4 import signed
from routing.call import Header
from routing.specs import AwsKeys

STAND_IN = "airi-stands-in-for-the-key"
"""What litellm is given for a key: the key itself is put in here, below it, and cannot be in anything it logs or raises."""


_MAX_REFUSAL = 64 * 1024
_MAX_MARK = 64


@dataclass(slots=True)
class Exchange:
    """One call's exchange below litellm: what it may add and how long it may take; what became of it."""

    transport: PooledTransport
    headers: tuple[Header, ...]
    first_byte_ms: int
    idle_ms: int
    total_ms: int
    end_marks: tuple[bytes, ...] = ()
    response: Response | None = None
    error: HttpClientError | None = None
    closed: bool = False
    refusal: bytes = b""
    _tail: bytes = b""

    @property
    def end_seen(self) -> bool:
        """Whether the body has held one of ``end_marks``, where there are any to look for."""
        return not self.end_marks

    def watch(self, block: bytes) -> None:
        """Look at a block of the body: keep an error's words, look for the marks of an end."""
        if self.response is not None and self.response.status >= 400:
            self.refusal = (self.refusal + block)[:_MAX_REFUSAL]
        if self.end_marks:
            text = self._tail + block
            if any(mark in text for mark in self.end_marks):
                self.end_marks = ()
            self._tail = text[-_MAX_MARK:]

    def close(self) -> None:
        """Cut it at once if it is not over."""
        self.closed = True
        if self.response is not None:
            self.response.close()


current: ContextVar[Exchange] = ContextVar("airi_litellm_exchange")
"""The exchange of the call that runs in this context."""


class CurrentTransport(httpx.AsyncBaseTransport):
    """Sends through the transport of the call that runs in this context; without a call nothing is sent."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request of the current exchange."""
        exchange = current.get(None)
        if exchange is None:
            raise httpx.ConnectError("litellm may send nothing outside a call.", request=request)
        return await exchange.transport.handle_async_request(request)


class _RefusingTransport(httpx.BaseTransport):
    """Sends nothing: a blocking request would hold up every call of the process."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Refuse."""
        raise httpx.ConnectError(
            "litellm may send nothing but through the call's own client.", request=request
        )


def client_through(transport: httpx.AsyncBaseTransport) -> httpx.AsyncClient:
    """Return a client that knows no environment, follows nothing and sends through ``transport``."""
    return httpx.AsyncClient(transport=transport, trust_env=False, follow_redirects=False)


def refusing_client() -> httpx.Client:
    """Return a blocking client that refuses every request."""
    return httpx.Client(transport=_RefusingTransport(), trust_env=False)


class PooledTransport(httpx.AsyncBaseTransport):
    """Sends every request of an ``httpx.AsyncClient`` over one :class:`HttpPool`; other origins are refused."""

    def __init__(self, pool: HttpPool, key: Secret | None = None, aws: AwsKeys | None = None) -> None:
        self._pool = pool
        self._key = key
        self._aws = aws
        self._origin = parse_origin(pool.origin)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request of the current exchange."""
        exchange = current.get()
        url = request.url
        origin = parse_origin(f"{url.scheme}://{url.netloc.decode()}")
        if origin != self._origin or request.method != "POST":
            # A GET would look into what else our key opens there: Gemini's files, for one.
            raise httpx.ConnectError("Only calls to the provider's own address are sent.", request=request)
        body = await request.aread()
        target = self._with_key(url.raw_path, quoted=True) or url.raw_path
        headers = [
            (name.lower(), self._with_key(value))
            for name, value in request.headers.raw
            # Answers come as they are: what is not packed need not wait to be unpacked.
            if name.lower() != b"accept-encoding"
        ]
        if self._aws is not None:
            headers += signed(self._aws, self._origin.authority, target, body)
        headers += [(b"user-agent", b"airi"), *exchange.headers]
        # The later of two headers of a name is ours.
        final = {name: value for name, value in headers if value is not None}
        try:
            response = await self._pool.send(
                request.method.encode(),
                target,
                list(final.items()),
                body,
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

    def _with_key(self, value: bytes, *, quoted: bool = False) -> bytes | None:
        """Return ``value`` with the key where its stand-in was; ``None`` for one that needs a key where there is none."""
        if STAND_IN.encode() not in value:
            return value
        if self._key is None:
            return None
        key = quote(self._key.reveal(), safe="") if quoted else self._key.reveal()
        return value.replace(STAND_IN.encode(), key.encode("latin-1"))


class _Body(httpx.AsyncByteStream):
    """The body of a response as httpx reads it."""

    def __init__(self, exchange: Exchange, response: Response) -> None:
        self._exchange = exchange
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while (block := await self._response.next_block()) is not None:
                self._exchange.watch(block)
                yield block
        except HttpClientError as error:
            self._exchange.error = error
            raise httpx.ReadError(error.message) from error

    async def aclose(self) -> None:
        """Give the connection back, or cut it."""
        self._response.close()
