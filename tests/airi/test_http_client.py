"""The pooled client against upstreams that behave, misbehave and stall."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from airi.errors import ConfigError
from airi.http.client import ClientOptions, HttpPool
from airi.http.errors import (
    ConnectFailed,
    ConnectionLost,
    ConnectTimeout,
    FirstByteTimeout,
    HttpClientError,
    IdleTimeout,
    PoolClosed,
    PoolTimeout,
    ProtocolError,
    ResponseTooLarge,
    TooManyWaiters,
    TotalTimeout,
    Truncated,
)
from airi.http.response import Response
from airi.http.server import Request, serve
from tests.airi.http_helpers import Upstream, event_loop_policy, fixed, serving, until, upstream

__all__ = ["event_loop_policy"]

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
LIMIT = 1 << 20


@contextlib.asynccontextmanager
async def pool_to(port: int, **options: int):  # type: ignore[no-untyped-def]
    pool = HttpPool(f"http://127.0.0.1:{port}", options=ClientOptions(**options))  # type: ignore[arg-type]
    try:
        yield pool
    finally:
        pool.abort()


async def get(pool: HttpPool, target: bytes = b"/", **times: int) -> Response:
    return await pool.send(b"GET", target, [], b"", **times)


async def test_request_is_framed_and_connection_kept() -> None:
    async with upstream(fixed(OK)) as up, pool_to(up.port) as pool:
        for _ in range(3):
            response = await pool.send(
                b"POST", b"/v1?x=1", [(b"a", b"b"), (b"host", b"evil"), (b"te", b"x")], b"body"
            )
            assert (response.status, await response.read(LIMIT)) == (200, b"ok")
        await (await pool.send(b"POST", b"/", [])).read(LIMIT)
        await (await get(pool)).read(LIMIT)
        assert up.connections == 1
        assert pool.idle == 1
        assert up.received[0] == (
            b"POST /v1?x=1 HTTP/1.1\r\nhost: 127.0.0.1:%d\r\na: b\r\ncontent-length: 4\r\n\r\nbody" % up.port
        )
        assert b"content-length: 0\r\n" in up.received[3]
        assert b"content-length" not in up.received[4]


@pytest.mark.parametrize(
    ("answer", "close", "body", "kept"),
    [
        (OK, False, b"ok", True),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\no\r\n1;x=y\r\nk\r\n0\r\nT: r\r\n\r\n",
            False,
            b"ok",
            True,
        ),
        (b"HTTP/1.1 200 OK\r\n\r\nok", True, b"ok", False),
        (b"HTTP/1.0 200 OK\r\n\r\nok", True, b"ok", False),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\ncontent-length: 2\r\n\r\nok", True, b"ok", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", True, b"ok", False),
        (b"HTTP/1.1 204 No Content\r\n\r\n", False, b"", True),
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n", False, b"", True),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nLink: x\r\n\r\n" + OK, False, b"ok", True),
    ],
)
@pytest.mark.parametrize("bytewise", [False, True])
async def test_every_framing(answer: bytes, close: bool, body: bytes, kept: bool, bytewise: bool) -> None:
    async def script(state: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await state.request(reader)
            if bytewise:
                for index in range(len(answer)):
                    writer.write(answer[index : index + 1])
                    await asyncio.sleep(0)
            else:
                writer.write(answer)
            await writer.drain()
            if close:
                return

    async with upstream(script) as up, pool_to(up.port) as pool:
        for _ in range(2):
            response = await get(pool, first_byte_ms=2000, idle_ms=2000)
            assert await response.read(LIMIT) == body
            assert not any(name == b"t" for name, _ in response.headers)
        await until(lambda: pool.idle == (1 if kept else 0))
        assert up.connections == (1 if kept else 2)


async def test_head_has_no_body() -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n"
    async with upstream(fixed(answer)) as up, pool_to(up.port) as pool:
        response = await pool.send(b"HEAD", b"/", [], first_byte_ms=1000, idle_ms=1000)
        assert response.header(b"content-length") == b"100"
        assert await response.read(LIMIT) == b""
        await until(lambda: pool.active == 0)


@pytest.mark.parametrize(
    "answer",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ncontent-length: two\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\nb: c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx : a\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\x00\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
        b"HTTP/1.1 099 Low\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\n" * 40,
        b"HTTP/2.0 200 OK\r\nx: " + b"y" * 70_000 + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"".join([b"x-%d: y\r\n" % i for i in range(300)]) + b"\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * 200_000,
    ],
)
async def test_what_is_not_http_is_refused_and_the_connection_dropped(answer: bytes) -> None:
    async with upstream(fixed(answer)) as up, pool_to(up.port) as pool:
        with pytest.raises(ProtocolError) as caught:
            await get(pool, first_byte_ms=3000)
        assert caught.value.reached_upstream
        assert pool.active == pool.idle == 0


async def test_bad_chunks_end_the_answer_with_an_error_after_what_was_good() -> None:
    answer = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\nzz\r\n"
    async with upstream(fixed(answer)) as up, pool_to(up.port) as pool:
        response = await get(pool)
        assert await response.next_block() == b"ok"
        with pytest.raises(ProtocolError):
            await response.next_block()


@pytest.mark.parametrize("more", [b"HTTP/1.1 200 OK\r\n\r\n", OK, b"x", b"\x00"])
async def test_more_than_the_answer_is_never_taken_for_the_next(more: bytes) -> None:
    async with upstream(fixed(OK + more, OK)) as up, pool_to(up.port) as pool:
        for _ in range(2):
            response = await get(pool)
            assert await response.read(LIMIT) == b"ok"
        assert up.connections == 2, "the polluted connection is not used again"


async def test_unsolicited_bytes_on_an_idle_connection_drop_it() -> None:
    async def script(state: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await state.request(reader)
        writer.write(OK)
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.write(OK)
        await reader.read()

    async with upstream(script) as up, pool_to(up.port) as pool:
        await (await get(pool)).read(LIMIT)
        await until(lambda: pool.idle == 0 and up.closed == 1)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n",
    ],
)
async def test_premature_end_is_an_error_after_what_came(answer: bytes) -> None:
    async with upstream(fixed(answer, close=True)) as up, pool_to(up.port) as pool:
        response = await get(pool)
        assert await response.next_block() == b"ok"
        with pytest.raises(Truncated):
            await response.next_block()
        with pytest.raises(Truncated):
            await (await get(pool)).read(LIMIT)


async def test_half_a_head_is_truncated_and_no_answer_is_lost() -> None:
    async with upstream(fixed(b"HTTP/1.1 200 OK\r\nx:", close=True)) as up, pool_to(up.port) as pool:
        with pytest.raises(Truncated):
            await get(pool)
    async with upstream(fixed(b"", close=True)) as up, pool_to(up.port) as pool:
        with pytest.raises(ConnectionLost):
            await get(pool)
        assert up.connections == 1, "a fresh connection that dies is not retried"


async def test_reused_connection_that_dies_is_replaced_once() -> None:
    def script_of(answers_before_death: int):  # type: ignore[no-untyped-def]
        async def script(state: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for _ in range(answers_before_death):
                await state.request(reader)
                writer.write(OK)
                await writer.drain()
            await state.request(reader)  # read, then die without a word

        return script

    async with upstream(script_of(1)) as up, pool_to(up.port) as pool:
        await (await get(pool)).read(LIMIT)
        response = await pool.send(b"POST", b"/", [], b"x")
        assert await response.read(LIMIT) == b"ok"
        assert up.connections == 2
        assert len(up.received) == 3


async def test_race_is_not_retried_once_a_byte_was_seen() -> None:
    async def script(state: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await state.request(reader)
        writer.write(OK)
        await state.request(reader)
        writer.write(b"H")
        await writer.drain()

    async with upstream(script) as up, pool_to(up.port) as pool:
        await (await get(pool)).read(LIMIT)
        with pytest.raises(Truncated):
            await get(pool)
        assert up.connections == 1


async def test_time_outs() -> None:
    async def silent(state: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await state.request(reader)
        if b"/head" in request or b"/drip" in request:
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
        while b"/drip" in request:
            writer.write(b"1\r\nx\r\n")
            await writer.drain()
            await asyncio.sleep(0.02)
        await reader.read()

    async with upstream(silent) as up, pool_to(up.port) as pool:
        with pytest.raises(FirstByteTimeout):
            await get(pool, first_byte_ms=100)
        response = await get(pool, b"/head", first_byte_ms=1000, idle_ms=100)
        assert await response.next_block() == b"x"
        with pytest.raises(IdleTimeout):
            await response.next_block()
        with pytest.raises(TotalTimeout):
            await get(pool, total_ms=100)
        response = await get(pool, b"/drip", idle_ms=1000, total_ms=300)
        with pytest.raises(TotalTimeout):
            await response.read(LIMIT)
        await until(lambda: up.closed == 4)


async def test_bounded_connections_and_first_come_line() -> None:
    gate = asyncio.Event()
    order: list[bytes] = []

    async def handler(request: Request) -> None:
        order.append(request.path.encode())
        await gate.wait()
        request.respond(200, [], b"ok")

    async with serving(handler) as server, pool_to(server.port, max_connections=2, max_waiters=3) as pool:
        calls = []
        for index in range(5):
            calls.append(asyncio.ensure_future(get(pool, b"/%d" % index)))
            await asyncio.sleep(0.01)
        assert (pool.active, pool.waiting) == (2, 3)
        with pytest.raises(TooManyWaiters) as caught:
            await get(pool)
        assert caught.value.safe_to_retry
        calls[2].cancel()
        await asyncio.sleep(0.01)
        gate.set()
        for call in (calls[0], calls[1], calls[3], calls[4]):
            assert await (await call).read(LIMIT) == b"ok"
        assert order == [b"/0", b"/1", b"/3", b"/4"]
        assert len(server.connections) == 2


async def test_waiting_ends_after_its_time() -> None:
    async def handler(request: Request) -> None:
        await asyncio.sleep(60)

    async with serving(handler) as server, pool_to(server.port, max_connections=1, wait_ms=100) as pool:
        first = asyncio.ensure_future(get(pool))
        await until(lambda: server.active == 1)
        with pytest.raises(PoolTimeout) as caught:
            await get(pool)
        assert caught.value.safe_to_retry
        first.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await first


async def test_waiter_takes_the_place_of_a_connection_that_failed() -> None:
    async def script(state: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await state.request(reader)
        if b"/die" in request:
            await asyncio.sleep(0.05)
            return
        writer.write(OK)
        await reader.read()

    async with upstream(script) as up, pool_to(up.port, max_connections=1) as pool:
        dying = asyncio.ensure_future(get(pool, b"/die"))
        await until(lambda: up.connections == 1)
        waiting = asyncio.ensure_future(get(pool, b"/live"))
        with pytest.raises(ConnectionLost):
            await dying
        assert await (await waiting).read(LIMIT) == b"ok"


async def test_cancelling_closes_the_socket_in_every_phase() -> None:
    async def script(state: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await state.request(reader)
        if b"/body" in request:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nok")
        await reader.read()

    async with upstream(script) as up, pool_to(up.port) as pool:
        head = asyncio.ensure_future(get(pool, b"/head"))
        await until(lambda: len(up.received) == 1)
        head.cancel()
        await until(lambda: up.closed == 1)
        response = await get(pool, b"/body")
        reading = asyncio.ensure_future(response.read(LIMIT))
        await asyncio.sleep(0.02)
        reading.cancel()
        await until(lambda: up.closed == 2)
        response = await get(pool, b"/body")
        assert await response.next_block() == b"ok"
        blocked = asyncio.ensure_future(response.next_block())
        await asyncio.sleep(0.02)
        blocked.cancel()
        await until(lambda: up.closed == 3)
        response = await get(pool, b"/body")
        response.close()
        await until(lambda: up.closed == 4)
        with pytest.raises(HttpClientError):
            await response.read(LIMIT)
        assert pool.active == pool.idle == 0


async def test_cancelling_after_the_head_came_hurts_no_other_call() -> None:
    async with upstream(fixed(OK)) as up, pool_to(up.port, max_connections=1) as pool:
        first = asyncio.ensure_future(get(pool))
        second = asyncio.ensure_future(get(pool))
        while not first.done():
            # Cancel in the very step in which the answer arrives.
            await asyncio.sleep(0)
            if up.received and pool.active and not pool.waiting:
                first.cancel()
        assert await (await second).read(LIMIT) == b"ok"
        with contextlib.suppress(asyncio.CancelledError):
            await first


async def test_reader_that_lags_stops_the_upstream() -> None:
    sent = 0

    async def script(state: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await state.request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 33554432\r\n\r\n")
        for _ in range(512):
            writer.write(b"x" * 65536)
            await writer.drain()
            sent += 65536

    async with upstream(script) as up, pool_to(up.port, buffer_bytes=65536) as pool:
        response = await get(pool, idle_ms=150)
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(
                0.3
            )  # longer than the idle time-out, which must not run while the reader lags
        assert sent < 16 * 1024 * 1024
        received = 0
        while (block := await response.next_block()) is not None:
            received += len(block)
        assert received == 33_554_432


async def test_read_limit() -> None:
    answer = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n" + b"x" * 100
    async with upstream(fixed(answer)) as up, pool_to(up.port) as pool:
        with pytest.raises(ResponseTooLarge):
            await (await get(pool)).read(99)
        assert await (await get(pool)).read(100) == b"x" * 100


async def test_early_answer_before_the_request_body_is_sent() -> None:
    async def script(state: Upstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\nbig")
        await writer.drain()
        while await reader.read(65536):
            await asyncio.sleep(0)

    async with upstream(script) as up, pool_to(up.port) as pool:
        response = await pool.send(b"POST", b"/", [], b"x" * 30_000_000, first_byte_ms=3000)
        assert (response.status, await response.read(LIMIT)) == (413, b"big")
        await until(lambda: pool.active == 0)
        assert pool.idle == 0, "a connection whose request is still being sent is not used again"


async def test_connect_failures_are_safe_to_retry(tmp_path: Path) -> None:
    for origin in ("http://127.0.0.1:1", f"unix:{tmp_path}/none.sock", "http://no-such-host.invalid"):
        pool = HttpPool(origin, options=ClientOptions(use_proxy=False))
        with pytest.raises(ConnectFailed) as caught:
            await get(pool)
        assert caught.value.safe_to_retry
        assert pool.active == 0


async def test_connecting_takes_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    async with pool_to(9, connect_ms=100) as pool:

        async def never(factory: object) -> None:
            await asyncio.sleep(60)

        monkeypatch.setattr(pool._connector, "_open", never)
        with pytest.raises(ConnectTimeout):
            await get(pool)
        assert pool.active == 0


async def test_idle_connections_expire() -> None:
    async with upstream(fixed(OK)) as up, pool_to(up.port, keepalive_ms=50) as pool:
        await (await get(pool)).read(LIMIT)
        assert pool.idle == 1
        await until(lambda: up.closed == 1)
        assert pool.idle == 0


async def test_closed_pool_finishes_what_runs_and_takes_nothing_new() -> None:
    gate = asyncio.Event()

    async def handler(request: Request) -> None:
        await gate.wait()
        request.respond(200, [], b"ok")

    async with serving(handler) as server, pool_to(server.port, max_connections=1) as pool:
        running = asyncio.ensure_future(get(pool))
        await until(lambda: server.active == 1)
        waiting = asyncio.ensure_future(get(pool))
        await until(lambda: pool.waiting == 1)
        pool.close()
        with pytest.raises(PoolClosed):
            await waiting
        with pytest.raises(PoolClosed):
            await get(pool)
        gate.set()
        assert await (await running).read(LIMIT) == b"ok"
        await until(lambda: not server.connections)


@pytest.mark.parametrize("bad", [b"/a b", b"/\r\nx: y", b"", b"/\xff"])
async def test_targets_and_headers_cannot_be_injected(bad: bytes) -> None:
    async with upstream(fixed(OK)) as up, pool_to(up.port) as pool:
        with pytest.raises(ValueError, match="can carry"):
            await get(pool, bad)
        with pytest.raises(ValueError, match="line break"):
            await pool.send(b"GET", b"/", [(b"a", b"b\r\nc: d")])
        assert up.connections == 0


async def test_unix_socket(tmp_path: Path) -> None:
    async def handler(request: Request) -> None:
        request.respond(200, [], request.header(b"host") or b"")

    server = await serve(handler, uds=tmp_path / "s")
    pool = HttpPool(f"unix:{tmp_path}/s")
    assert await (await get(pool)).read(LIMIT) == b"localhost"
    pool.abort()
    await server.close()


@pytest.mark.parametrize(
    "origin", ["ftp://a", "http://", "a:1", "http://u:p@a", "http://a/b", "unix:x", "http://a:99999"]
)
async def test_origins_are_checked(origin: str) -> None:
    with pytest.raises(ConfigError) as caught:
        HttpPool(origin)
    assert "u:p" not in str(caught.value)


async def test_many_calls_at_once_come_to_their_own_answers() -> None:
    async def handler(request: Request) -> None:
        if len(request.body) % 3 == 0:
            await asyncio.sleep(0)
        if len(request.body) % 2:
            request.start(200, [])
            for start in range(0, len(request.body), 7):
                request.write(request.body[start : start + 7])
                await request.drain()
            request.finish()
        else:
            request.respond(200, [], request.body)

    async with serving(handler) as server, pool_to(server.port, max_connections=8, max_waiters=500) as pool:

        async def call(index: int) -> None:
            body = b"%d," % index * (index % 50 + 1)
            response = await pool.send(b"POST", b"/", [], body, first_byte_ms=5000, idle_ms=5000)
            assert await response.read(LIMIT) == body

        await asyncio.gather(*[call(index) for index in range(400)])
        assert len(server.connections) <= 8
        assert pool.active == 0
