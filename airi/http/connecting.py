"""Making a connection: TCP or unix socket, TLS, and CONNECT through a proxy."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable

from airi.http.client_connection import ClientConnection
from airi.http.errors import ConnectFailed, ConnectTimeout
from airi.http.origin import Origin, Proxy
from airi.http.tls import TlsOptions, client_context

_PROXY_HEAD_BYTES = 16 * 1024


class Connector:
    """Knows the way to one origin."""

    def __init__(
        self, origin: Origin, proxy: Proxy | None, tls: TlsOptions | ssl.SSLContext, timeout: float
    ) -> None:
        self._origin = origin
        self._proxy = proxy
        self._tls = tls
        self._timeout = timeout

    def request_prefix(self, method: bytes, target: bytes) -> bytes:
        """Return request line and host; in absolute form where a plain request goes through a proxy."""
        origin, proxy = self._origin, self._proxy
        host = b"host: %b\r\n" % origin.authority
        if proxy is None or origin.scheme == "https":
            return b"%b %b HTTP/1.1\r\n%b" % (method, target, host)
        if proxy.authorization:
            host += b"proxy-authorization: %b\r\n" % proxy.authorization
        return b"%b http://%b%b HTTP/1.1\r\n%b" % (method, origin.authority, target, host)

    async def connect(self, factory: Callable[[], ClientConnection]) -> ClientConnection:
        """Return a connection that can carry requests; raises :class:`ConnectFailed`."""
        try:
            async with asyncio.timeout(self._timeout):
                return await self._open(factory)
        except TimeoutError as error:
            raise ConnectTimeout(
                f"{self._origin} could not be connected to within {self._timeout:g} s."
            ) from error
        except ssl.SSLCertVerificationError as error:
            reason = error.verify_message or error.reason
            raise ConnectFailed(f"The certificate of {self._origin} is not trusted: {reason}.") from error
        except OSError as error:
            raise ConnectFailed(f"{self._origin} could not be connected to: {_reason(error)}.") from error

    async def _open(self, factory: Callable[[], ClientConnection]) -> ClientConnection:
        loop = asyncio.get_running_loop()
        origin, proxy = self._origin, self._proxy
        if origin.path is not None:
            return (await loop.create_unix_connection(factory, origin.path))[1]
        context = self._context() if origin.scheme == "https" else None
        name = self._server_name() if context is not None else None
        if proxy is None:
            return (
                await loop.create_connection(
                    factory, origin.host, origin.port, ssl=context, server_hostname=name
                )
            )[1]
        if context is None:
            return (await loop.create_connection(factory, proxy.host, proxy.port))[1]
        transport, tunnel = await loop.create_connection(_Tunnel, proxy.host, proxy.port)
        try:
            await tunnel.open(origin, proxy)
            connection = factory()
            secured = await loop.start_tls(transport, connection, context, server_hostname=name)
        except BaseException:  # whatever ended it, cancellation included, the half-open tunnel must not stay
            transport.abort()
            raise
        if secured is None:
            raise ConnectionError("the connection was closed during the TLS handshake")
        connection.connection_made(secured)
        return connection

    def _context(self) -> ssl.SSLContext:
        return self._tls if isinstance(self._tls, ssl.SSLContext) else client_context(self._tls)

    def _server_name(self) -> str:
        named = self._tls.server_name if isinstance(self._tls, TlsOptions) else None
        return named or self._origin.host


class _Tunnel(asyncio.Protocol):
    """Speaks CONNECT, then makes way for TLS."""

    def __init__(self) -> None:
        self._received = b""
        self._transport: asyncio.BaseTransport | None = None
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    async def open(self, origin: Origin, proxy: Proxy) -> None:
        """Ask for the tunnel; raises ``ConnectionError`` with the proxy's status when it refuses."""
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        authority = f"{host}:{origin.port}".encode()
        authorization = b"proxy-authorization: %b\r\n" % proxy.authorization if proxy.authorization else b""
        assert isinstance(self._transport, asyncio.WriteTransport) or self._transport is not None
        self._transport.write(  # type: ignore[attr-defined]
            b"CONNECT %b HTTP/1.1\r\nhost: %b\r\n%b\r\n" % (authority, authority, authorization)
        )
        await self._opened

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, rest = self._received.partition(b"\r\n\r\n")
        if self._opened.done():
            return
        if not separator:
            if len(self._received) > _PROXY_HEAD_BYTES:
                self._opened.set_exception(ConnectionError("the proxy's answer is too long"))
            return
        status = head.split(b"\r\n", 1)[0].split(b" ", 2)
        if len(status) < 2 or not status[0].startswith(b"HTTP/1.") or not status[1].startswith(b"2"):
            shown = status[1].decode("ascii", "replace") if len(status) > 1 else "?"
            self._opened.set_exception(ConnectionError(f"the proxy refused the tunnel with status {shown}"))
        elif rest:
            self._opened.set_exception(ConnectionError("the proxy sent more than its answer"))
        else:
            self._opened.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._opened.done():
            self._opened.set_exception(ConnectionError("the proxy closed the connection"))


def _reason(error: OSError) -> str:
    """Return what went wrong without addresses that the message has already named."""
    return (error.strerror or str(error) or type(error).__name__).rstrip(".")
