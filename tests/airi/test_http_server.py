"""The server on the wire: framing, limits, time-outs, disconnects, drain."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from pathlib import Path

import pytest

from airi.http.server import Request, ServerLimits, serve
from tests.airi.http_helpers import GET, answer_of, event_loop_policy, serving, talk, until

__all__ = ["event_loop_policy"]

CLOSE = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"


async def hello(request: Request) -> None:
    request.respond(200, [(b"content-type", b"text/plain")], b"hello " + request.body)


async def echo(request: Request) -> None:
    seen = {
        "method": request.method,
        "path": request.path,
        "query": request.query.decode("latin-1"),
        "body": request.body.decode("latin-1"),
        "headers": [[n.decode("latin-1"), v.decode("latin-1")] for n, v in request.headers],
        "peer": request.peer,
    }
    request.respond(200, [(b"content-type", b"application/json")], json.dumps(seen).encode())


def body_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


async def test_whole_answer_has_length_date_and_stays_open() -> None:
    async with serving(hello) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for _ in range(3):
            writer.write(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nme")
            answer = await answer_of(reader)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\ndate: ")
            assert answer.endswith(b"content-length: 8\r\n\r\nhello me")
        writer.close()


@pytest.mark.parametrize("split", [1, 2, 7, None])
async def test_request_is_the_same_however_it_is_split(split: int | None) -> None:
    request = (
        b"POST /v1/a%20b?x=1&y HTTP/1.1\r\nHost: a.b:1\r\nX-Two: 1\r\nx-two: 2\r\nTransfer-Encoding: chunked\r\n"
        b"Connection: close\r\n\r\n3\r\nabc\r\n5;ext=1\r\ndefgh\r\n0\r\nTrailer: no\r\n\r\n"
    )
    async with serving(echo) as server:
        seen = json.loads(body_of(await talk(server.port, request, split=split)))
    assert seen["path"] == "/v1/a%20b"
    assert seen["query"] == "x=1&y"
    assert seen["body"] == "abcdefgh"
    assert seen["peer"] == "127.0.0.1"
    assert [pair for pair in seen["headers"] if pair[0] == "x-two"] == [["x-two", "1"], ["x-two", "2"]]
    assert not any(pair[0] == "trailer" for pair in seen["headers"])


async def test_first_of_two_headers_is_the_one_looked_up() -> None:
    found: list[bytes | None] = []

    async def handler(request: Request) -> None:
        found.extend([request.header(b"x-two"), request.header(b"x-none")])
        request.respond(204, [])

    async with serving(handler) as server:
        answer = await talk(
            server.port, b"GET / HTTP/1.1\r\nhost: a\r\nx-two: 1\r\nx-two: 2\r\nconnection: close\r\n\r\n"
        )
    assert found == [b"1", None]
    assert answer.startswith(b"HTTP/1.1 204 No Content\r\n")
    assert b"content-length" not in answer


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (
            b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
            400,
        ),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -3\r\n\r\nabc", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x3\r\n\r\nabc", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 501),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\rc\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\x00c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: x\r\nAuthorization: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: u@a\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET /\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 405),
        (b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nExpect: tea\r\n\r\nab", 417),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ],
)
async def test_what_cannot_be_trusted_is_refused_in_openais_form(request_bytes: bytes, status: int) -> None:
    called = []

    async def handler(request: Request) -> None:
        called.append(request)
        request.respond(200, [])

    async with serving(handler) as server:
        answer = await talk(server.port, request_bytes)
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer
        assert b"\r\nconnection: close\r\n" in answer
        assert json.loads(body_of(answer))["error"]["type"] in ("invalid_request_error", "server_error")
        assert not called
        assert (await talk(server.port, CLOSE)).startswith(b"HTTP/1.1 200"), "the next call is fine"


async def test_absolute_form_and_upgrade_offers_are_read_as_plain_requests() -> None:
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    for split in (None, 1, 13):
        async with serving(echo) as server:
            seen = json.loads(
                body_of(
                    await talk(
                        server.port, b"GET http://b/p?q HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
                    )
                )
            )
            assert (seen["path"], seen["query"]) == ("/p", "q")
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            data = b"POST /u HTTP/1.1\r\nHost: a\r\n%bContent-Length: 3\r\n\r\nabc" % offer
            for start in range(0, len(data), split or len(data)):
                writer.write(data[start : start + (split or len(data))])
                await writer.drain()
                await asyncio.sleep(0)
            assert json.loads(body_of(await answer_of(reader)))["body"] == "abc"
            writer.write(
                b"POST /u HTTP/1.1\r\nHost: a\r\n%bTransfer-Encoding: chunked\r\n\r\n1\r\nz\r\n0\r\n\r\n"
                % offer
            )
            assert json.loads(body_of(await answer_of(reader)))["body"] == "z"
            writer.close()


async def test_body_limit_is_kept_before_reading_and_while_reading() -> None:
    limits = ServerLimits(body_bytes=1000)
    async with serving(hello, limits) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n")
        assert (await answer_of(reader)).startswith(b"HTTP/1.1 413 ")
        writer.close()
        chunk = b"100\r\n" + b"x" * 256 + b"\r\n"
        answer = await talk(
            server.port, b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 4
        )
        assert answer.startswith(b"HTTP/1.1 413 ")
        exact = (
            b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000
        )
        assert (await talk(server.port, exact)).startswith(b"HTTP/1.1 200 ")


async def test_refused_upload_still_gets_its_answer() -> None:
    async with serving(hello, ServerLimits(body_bytes=10)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 3_000_000)
        assert (await answer_of(reader)).startswith(b"HTTP/1.1 413 ")
        writer.close()


@pytest.mark.parametrize(
    "head",
    [
        b"".join([b"x-%d: y\r\n" % i for i in range(30)]),
        b"x: " + b"y" * 3000 + b"\r\n",
        b"".join([b"x-%d: %b\r\n" % (i, b"y" * 400) for i in range(8)]),
    ],
)
@pytest.mark.parametrize("split", [None, 500])
async def test_headers_are_bounded(head: bytes, split: int | None) -> None:
    async with serving(hello, ServerLimits(header_bytes=2000, header_count=20)) as server:
        answer = await talk(server.port, b"GET / HTTP/1.1\r\nHost: a\r\n" + head + b"\r\n", split=split)
        assert answer.startswith(b"HTTP/1.1 431 ")
        endless = await talk(server.port, b"GET /" + b"a" * 5000, split=split)
        assert endless.startswith(b"HTTP/1.1 431 ")


async def test_slow_heads_bodies_and_idle_connections_are_cut() -> None:
    limits = ServerLimits(header_ms=150, body_ms=150, keepalive_ms=150)
    async with serving(hello, limits) as server:
        silent = await talk(server.port, b"")
        assert silent == b""
        assert (await talk(server.port, b"GET / HT")).startswith(b"HTTP/1.1 408 ")
        slow = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab"
        assert (await talk(server.port, slow)).startswith(b"HTTP/1.1 408 ")
        kept = await talk(server.port, GET)
        assert kept.count(b"HTTP/1.1") == 1
        assert kept.startswith(b"HTTP/1.1 200 ")


async def test_dripping_a_head_does_not_extend_its_time() -> None:
    async with serving(hello, ServerLimits(header_ms=200)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        dripping = asyncio.ensure_future(_drip(writer))
        answer = await asyncio.wait_for(reader.read(), 5)
        dripping.cancel()
        assert answer.startswith(b"HTTP/1.1 408 ")
        writer.close()


async def _drip(writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET / HTTP/1.1\r\nhost: a\r\nx: ")
    while True:
        writer.write(b"y")
        await asyncio.sleep(0.02)


async def test_expect_continue_is_answered_only_when_the_body_will_be_read() -> None:
    async with serving(hello, ServerLimits(body_bytes=10)) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"me")
        assert (await answer_of(reader)).endswith(b"hello me")
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 20\r\n\r\n")
        assert (await answer_of(reader)).startswith(b"HTTP/1.1 413 ")
        writer.close()


async def test_head_and_http10() -> None:
    async def stream(request: Request) -> None:
        request.start(200, [(b"x-a", b"b")])
        for piece in (b"one", b"", b"two"):
            request.write(piece)
            await request.drain()
        request.finish()

    async with serving(hello) as server:
        head = await talk(server.port, b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert head.endswith(b"content-length: 6\r\nconnection: close\r\n\r\n")
        old = await talk(server.port, b"GET / HTTP/1.0\r\n\r\n")
        assert old.endswith(b"connection: close\r\n\r\nhello ")
        kept = await talk(
            server.port, b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\nGET / HTTP/1.0\r\n\r\n"
        )
        assert kept.count(b"HTTP/1.1 200") == 2
        assert kept.count(b"connection: keep-alive") == 1
    async with serving(stream) as server:
        old = await talk(server.port, b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert old.endswith(b"x-a: b\r\nconnection: close\r\n\r\nonetwo")
        new = await talk(server.port, CLOSE)
        assert new.endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
        assert b"transfer-encoding: chunked\r\n" in new
        head = await talk(server.port, b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert head.endswith(b"\r\n\r\n")
        assert b"one" not in head


async def test_headers_of_an_answer_cannot_be_injected_or_reframed() -> None:
    async def handler(request: Request) -> None:
        with pytest.raises(ValueError, match="line break"):
            request.respond(200, [(b"x", b"a\r\nset-cookie: b")], b"")
        upstreams = [
            (b"content-length", b"99"),
            (b"transfer-encoding", b"chunked"),
            (b"connection", b"close"),
            (b"x", b"y"),
        ]
        request.respond(200, upstreams, b"abc")

    async with serving(handler) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(GET)
        answer = await answer_of(reader)
        assert answer.endswith(b"x: y\r\ncontent-length: 3\r\n\r\nabc")
        assert b"chunked" not in answer
        writer.close()


async def test_pipelining_is_answered_in_order_and_bounded() -> None:
    order: list[str] = []
    gate = asyncio.Event()

    async def handler(request: Request) -> None:
        order.append(request.path)
        await gate.wait()
        request.respond(200, [], request.path.encode())

    async with serving(handler) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /1 HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\n\r\n")
        await until(lambda: bool(order))
        await asyncio.sleep(0.02)
        assert order == ["/1"], "the second waits"
        gate.set()
        assert (await answer_of(reader)).endswith(b"/1")
        assert (await answer_of(reader)).endswith(b"/2")
        writer.close()
        gate.clear()
        order.clear()
        many = b"".join([b"GET /%d HTTP/1.1\r\nhost: a\r\n\r\n" % i for i in range(50)])
        talking = asyncio.ensure_future(talk(server.port, many))
        await until(lambda: bool(order))
        gate.set()
        answer = await talking
        assert 1 <= answer.count(b"HTTP/1.1 200") <= 2, "a third in the line ends the connection"


async def test_client_that_leaves_cancels_the_handler_in_every_phase() -> None:
    events: list[str] = []
    running = asyncio.Event()

    async def handler(request: Request) -> None:
        try:
            if request.path == "/stream":
                request.start(200, [])
                request.write(b"x")
            running.set()
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            events.append(f"cancelled {request.path}")
            raise
        finally:
            assert request.disconnected

    async with serving(handler) as server:
        for path in ("/wait", "/stream"):
            running.clear()
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET %b HTTP/1.1\r\nhost: a\r\n\r\n" % path.encode())
            await running.wait()
            writer.close()
            await until(lambda path=path: f"cancelled {path}" in events)
        await until(lambda: server.active == 0)
        assert not server.connections


async def test_handler_may_go_on_after_its_answer_and_is_not_cancelled_then() -> None:
    settled = asyncio.Event()
    gate = asyncio.Event()

    async def handler(request: Request) -> None:
        request.respond(200, [], b"done")
        await gate.wait()
        settled.set()

    async with serving(handler) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(GET)
        await answer_of(reader)
        writer.write(GET)
        await answer_of(reader)
        writer.close()
        await until(lambda: not server.connections)
        assert server.active == 2
        gate.set()
        await until(lambda: server.active == 0)
        assert settled.is_set()


async def test_handler_that_cuts_its_answer_is_not_cancelled() -> None:
    settled = asyncio.Event()

    async def handler(request: Request) -> None:
        request.start(200, [])
        request.write(b"x")
        request.abort()
        for _ in range(5):
            await asyncio.sleep(0.005)
        settled.set()

    async with serving(handler) as server:
        with contextlib.suppress(ConnectionError):
            assert b"0\r\n\r\n" not in await talk(server.port, GET)
        await asyncio.wait_for(settled.wait(), 5)


async def test_failing_handlers_are_answered_or_cut(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: Request) -> None:
        if request.path == "/late":
            request.start(200, [])
            request.write(b"x")
        if request.path == "/silent":
            return
        raise ValueError("secret detail")

    async with serving(handler) as server:
        early = await talk(server.port, b"GET /early HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        assert early.startswith(b"HTTP/1.1 500 ")
        assert b"secret" not in early
        silent = await talk(server.port, b"GET /silent HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        assert silent.startswith(b"HTTP/1.1 500 ")
        late = b""
        with contextlib.suppress(ConnectionError):
            late = await talk(server.port, b"GET /late HTTP/1.1\r\nhost: a\r\n\r\n")
        assert b"0\r\n\r\n" not in late, "a cut answer must not look whole"
    assert "handler of GET /early failed" in caplog.text


async def test_too_many_connections_are_turned_away() -> None:
    async with serving(hello, ServerLimits(max_connections=2)) as server:
        held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(2)]
        await until(lambda: len(server.connections) == 2)
        answer = await talk(server.port, b"")
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1\r\n" in answer
        for _, writer in held:
            writer.close()
        await until(lambda: not server.connections)
        assert (await talk(server.port, CLOSE)).startswith(b"HTTP/1.1 200 ")


async def test_slow_reader_is_held_back_then_cut() -> None:
    written = 0
    cancelled = asyncio.Event()

    async def handler(request: Request) -> None:
        nonlocal written
        request.start(200, [])
        try:
            while True:
                request.write(b"x" * 65536)
                written += 65536
                await request.drain()
        finally:
            cancelled.set()

    limits = ServerLimits(write_idle_ms=200, write_high_water=65536)
    async with serving(handler, limits) as server:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        writer.write(GET)
        await asyncio.wait_for(cancelled.wait(), 5)
        assert written < 32 * 1024 * 1024, "the buffer is the kernel's and a little more"
        writer.close()


async def test_drain_finishes_what_runs_and_refuses_the_rest() -> None:
    gate = asyncio.Event()
    started = asyncio.Event()

    async def handler(request: Request) -> None:
        started.set()
        await gate.wait()
        request.respond(200, [], b"late")

    server = await serve(handler, host="127.0.0.1", port=0)
    port = server.port
    idle_reader, idle_writer = await asyncio.open_connection("127.0.0.1", port)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(GET)
    await started.wait()
    server.close_listeners()
    draining = asyncio.ensure_future(server.drain(5))
    assert await asyncio.wait_for(idle_reader.read(), 5) == b"", "idle connections close at once"
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)
    gate.set()
    answer = await asyncio.wait_for(reader.read(), 5)
    assert b"connection: close\r\n" in answer
    assert answer.endswith(b"late")
    assert await draining == 0
    writer.close()
    idle_writer.close()


async def test_drain_cuts_what_takes_too_long() -> None:
    cleaned = asyncio.Event()

    async def handler(request: Request) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.set()

    server = await serve(handler, host="127.0.0.1", port=0)
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(GET)
    await until(lambda: server.active == 1)
    server.close_listeners()
    assert await server.drain(0.05) == 1
    assert cleaned.is_set()
    assert not server.connections
    writer.close()


async def test_unix_socket_is_private_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    server = await serve(hello, uds=path)
    assert path.stat().st_mode & 0o777 == 0o600
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(GET)
    assert (await answer_of(reader)).endswith(b"hello ")
    writer.close()
    await server.close()
    assert not path.exists()


async def test_nagle_is_off() -> None:
    options: list[int] = []

    async def handler(request: Request) -> None:
        sock = request._connection.transport.get_extra_info("socket")  # type: ignore[union-attr]
        options.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        request.respond(200, [])

    async with serving(handler) as server:
        await talk(server.port, CLOSE)
    assert options == [1]
