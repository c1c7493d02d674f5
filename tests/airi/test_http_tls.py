"""TLS on both sides, and the way through a proxy."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from airi.errors import ConfigError
from airi.http.client import ClientOptions, HttpPool, TlsOptions
from airi.http.errors import ConnectFailed, HttpClientError
from airi.http.origin import parse_origin, proxy_for
from airi.http.server import Request, serve
from airi.http.tls import client_context, server_context
from tests.airi.http_helpers import event_loop_policy, fixed, until, upstream
from tests.support.certificates import Authority, Issued

__all__ = ["event_loop_policy"]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


async def hello(request: Request) -> None:
    request.respond(200, [], b"hello " + request.body)


@contextlib.asynccontextmanager
async def tls_server(issued: Issued, client_ca: str | None = None) -> AsyncIterator[int]:
    context = server_context(issued.certificate, issued.key)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(client_ca)
    server = await serve(hello, host="127.0.0.1", port=0, tls=context)
    try:
        yield server.port
    finally:
        await server.close()


async def ask(origin: str, tls: TlsOptions, body: bytes = b"x", connect_ms: int = 5000) -> bytes:
    pool = HttpPool(origin, options=ClientOptions(tls=tls, connect_ms=connect_ms))
    try:
        response = await pool.send(b"POST", b"/", [], body, first_byte_ms=5000, idle_ms=5000)
        return await response.read(1 << 24)
    finally:
        pool.abort()


async def test_certificate_and_name_are_verified(authority: Authority) -> None:
    async with tls_server(authority.issue("localhost")) as port:
        origin = f"https://localhost:{port}"
        assert await ask(origin, TlsOptions(ca_file=authority.file)) == b"hello x"
        assert (
            await ask(origin, TlsOptions(ca_file=authority.file), b"y" * 1_000_000)
            == b"hello " + b"y" * 1_000_000
        )
        with pytest.raises(ConnectFailed, match="not trusted") as caught:
            await ask(origin, TlsOptions())
        assert caught.value.safe_to_retry
        assert await ask(origin, TlsOptions(verify=False)) == b"hello x"
        with pytest.raises(ConnectFailed, match="not trusted"):
            await ask(f"https://127.0.0.1:{port}", TlsOptions(ca_file=authority.file))
        assert await ask(
            f"https://127.0.0.1:{port}", TlsOptions(ca_file=authority.file, server_name="localhost")
        )


async def test_client_certificates(authority: Authority) -> None:
    mine = authority.issue("client")
    async with tls_server(authority.issue("localhost"), client_ca=authority.file) as port:
        origin = f"https://localhost:{port}"
        with_certificate = TlsOptions(
            ca_file=authority.file, certificate_file=mine.certificate, key_file=mine.key
        )
        assert await ask(origin, with_certificate) == b"hello x"
        with pytest.raises(HttpClientError):
            await ask(origin, TlsOptions(ca_file=authority.file))


async def test_speaking_tls_to_a_plain_port_fails_clearly() -> None:
    async with upstream(fixed(b"HTTP/1.1 400 Bad\r\n\r\n", close=True)) as up:
        with pytest.raises(ConnectFailed):
            await ask(f"https://127.0.0.1:{up.port}", TlsOptions(), connect_ms=500)


def test_wrong_files_are_named(tmp_path: Path, authority: Authority) -> None:
    with pytest.raises(ConfigError, match=r"none\.pem"):
        client_context(TlsOptions(ca_file=str(tmp_path / "none.pem")))
    with pytest.raises(ConfigError, match=r"none\.crt"):
        client_context(TlsOptions(ca_file=authority.file, certificate_file=str(tmp_path / "none.crt")))
    with pytest.raises(ConfigError, match=r"none\.key"):
        server_context(authority.issue("a").certificate, tmp_path / "none.key")


class Proxy:
    """An HTTP proxy that sends every tunnel to one local port."""

    def __init__(self, target: int, refuse: bytes | None = None) -> None:
        self.target = target
        self.refuse = refuse
        self.heads: list[bytes] = []
        self.port = 0
        self.closed = 0

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        if self.refuse is not None:
            writer.write(self.refuse)
            writer.close()
            return
        if not head.startswith(b"CONNECT"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nproxy")
            await reader.read()
            writer.close()
            return
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.target)
        writer.write(b"HTTP/1.1 200 Connection established\r\nx: y\r\n\r\n")
        await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))
        self.closed += 1


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextlib.asynccontextmanager
async def proxying(target: int, refuse: bytes | None = None) -> AsyncIterator[Proxy]:
    proxy = Proxy(target, refuse)
    server = await asyncio.start_server(proxy.run, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await asyncio.sleep(0.01)  # let both ends see that the other has closed


async def test_https_goes_through_a_tunnel(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    tls = TlsOptions(ca_file=authority.file)
    async with tls_server(authority.issue("models.test")) as port, proxying(port) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:s%40crit@127.0.0.1:{proxy.port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert await ask("https://models.test", tls) == b"hello x"
        assert proxy.heads[0].startswith(b"CONNECT models.test:443 HTTP/1.1\r\nhost: models.test:443\r\n")
        assert b"proxy-authorization: Basic bWU6c0Bjcml0\r\n" in proxy.heads[0]
        with pytest.raises(ConnectFailed, match="not trusted"):
            await ask("https://other.test", tls)
        await until(lambda: proxy.closed == 2)


async def test_plain_http_goes_in_absolute_form(monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxying(1) as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", "")
        assert await ask("http://models.test:8000", TlsOptions()) == b"proxy"
        assert proxy.heads[0].startswith(
            b"POST http://models.test:8000/ HTTP/1.1\r\nhost: models.test:8000\r\n"
        )


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 407 Auth\r\n\r\n", b"nonsense\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\n\r\nmore", b"x" * 20_000],
)
async def test_refused_tunnels_are_connect_failures(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    async with proxying(1, refuse=answer) as proxy:
        monkeypatch.setenv("https_proxy", f"http://me:secret@127.0.0.1:{proxy.port}")
        monkeypatch.setenv("no_proxy", "")
        with pytest.raises(ConnectFailed) as caught:
            await ask("https://models.test", TlsOptions())
        assert caught.value.safe_to_retry
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("origin", "no_proxy", "used"),
    [
        ("http://a.test", "", True),
        ("http://a.test", "b.test", True),
        ("http://a.test", "a.test", False),
        ("http://x.a.test", "a.test", False),
        ("http://x.a.test", ".a.test", False),
        ("http://xa.test", "a.test", True),
        ("http://a.test:81", "a.test:80", True),
        ("http://a.test:81", "a.test:81", False),
        ("http://a.test", "*", False),
        ("http://10.1.2.3", "10.0.0.0/8", False),
        ("http://11.1.2.3", "10.0.0.0/8", True),
        ("http://[2001:db8::1]", "2001:db8::1", False),
        ("http://localhost", "", False),
        ("http://127.9.9.9:1", "", False),
        ("http://[::1]:1", "", False),
        ("unix:/x", "", False),
    ],
)
def test_who_needs_no_proxy(origin: str, no_proxy: str, used: bool) -> None:
    environment = {"http_proxy": "proxy.test:3128", "no_proxy": no_proxy}
    proxy = proxy_for(parse_origin(origin), environment)
    assert (proxy is not None) == used
    if proxy is not None:
        assert (proxy.host, proxy.port) == ("proxy.test", 3128)


def test_other_kinds_of_proxy_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="socks5"):
        proxy_for(parse_origin("https://a.test"), {"ALL_PROXY": "socks5://p:1"})
