"""The pipelined connection: order, coalescing, time-outs, reconnects, scripts."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from airi.errors import ConfigError
from airi.redis_pipeline import (
    Address,
    PipelinedRedis,
    PipelineOptions,
    RedisAwayError,
    RedisBusyError,
    RedisReplyError,
    RedisTimeoutError,
    Script,
)
from tests.policies import kit
from tests.policies.conftest import OwnRedis

ECHO = Script("echo", "return ARGV[1]")


@asynccontextmanager
async def connected(url: str, options: PipelineOptions | None = None) -> AsyncIterator[PipelinedRedis]:
    connection = PipelinedRedis(url, [ECHO], options)
    await connection.connect()
    try:
        yield connection
    finally:
        await connection.close()


class Scripted:
    """A server that answers as a test says; counts how many pieces it was sent."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pieces: list[bytes] = []
        self.connections = 0
        self.answer: Callable[[int], bytes] = lambda commands: b"+OK\r\n" * commands

    async def serve(self) -> asyncio.Server:
        return await asyncio.start_unix_server(self._session, self.path)

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        info = b"run_id:abc\r\n"
        while piece := await reader.read(1 << 20):
            self.pieces.append(piece)
            commands = piece.count(b"*")
            if b"INFO" in piece:
                writer.write(b"+OK\r\n$%d\r\n%b\r\n" % (len(info), info) + b"+OK\r\n" * (commands - 2))
            else:
                writer.write(self.answer(commands))
        writer.close()


def test_addresses() -> None:
    assert Address.parse("unix:///run/r.sock?db=3") == Address(path="/run/r.sock", database=3)
    found = Address.parse("rediss://me:p%40ss@redis.example:7000/2?ssl_ca_certs=/ca.pem")
    assert (found.host, found.port, found.tls, found.username, found.password, found.database) == (
        "redis.example",
        7000,
        True,
        "me",
        "p@ss",
        2,
    )
    assert "p@ss" not in repr(found)
    assert Address.parse("redis://:secret@h").password == "secret"
    for wrong in ("http://h", "redis://h/x"):
        with pytest.raises(ConfigError):
            Address.parse(wrong)


async def test_answers_come_in_order(redis_url: str) -> None:
    async with connected(redis_url) as connection:
        answers = await asyncio.gather(*(connection.execute("ECHO", str(i)) for i in range(2_000)))
        assert answers == [str(i).encode() for i in range(2_000)]
        assert connection.in_flight == 0
        assert len(connection.run_id) == 40


async def test_commands_of_one_tick_leave_in_one_write(short_tmp: Path) -> None:
    server = Scripted(short_tmp / "tick.sock")
    async with await server.serve(), connected(f"unix://{server.path}") as connection:
        server.pieces.clear()
        await asyncio.gather(*(connection.execute("PING") for _ in range(100)))
        assert len(server.pieces) == 1


async def test_late_answer_does_not_shift_the_order(redis_url: str) -> None:
    async with connected(redis_url, PipelineOptions(timeout_ms=100, stall_ms=5_000)) as connection:
        slow = connection.execute("EVAL", "local n = 0 while n < 3e7 do n = n + 1 end return 'slow'", 0)
        behind = connection.execute("ECHO", "behind")
        with pytest.raises(RedisTimeoutError):
            await slow
        with pytest.raises(RedisTimeoutError):
            await behind
        await kit.until(lambda: connection.in_flight == 0)
        assert await connection.execute("ECHO", "after") == b"after"


@pytest.mark.parametrize("turns", [0, 3], ids=["before it is sent", "after it was sent"])
async def test_a_busy_process_does_not_blame_redis(redis_url: str, turns: int) -> None:
    """A burst keeps the loop longer than the time-out: Redis has answered, and nobody has looked."""
    async with connected(redis_url, PipelineOptions(timeout_ms=60)) as connection:
        answer = connection.execute("ECHO", "there")
        for _ in range(turns):
            await asyncio.sleep(0)
        time.sleep(0.2)
        assert await answer == b"there"


async def test_in_flight_is_bounded(redis_url: str) -> None:
    async with connected(redis_url, PipelineOptions(max_in_flight=3)) as connection:
        futures = [connection.execute("PING") for _ in range(3)]
        with pytest.raises(RedisBusyError):
            connection.execute("PING")
        await asyncio.gather(*futures)
        assert await connection.execute("PING") == b"PONG"


async def test_a_cancelled_waiter_keeps_its_place(redis_url: str) -> None:
    async with connected(redis_url) as connection:
        first, second = connection.execute("ECHO", "1"), connection.execute("ECHO", "2")
        first.cancel()
        assert await second == b"2"


async def test_error_answers_reach_only_their_caller(redis_url: str) -> None:
    async with connected(redis_url) as connection:
        wrong, right = connection.execute("NOSUCH"), connection.execute("ECHO", "1")
        with pytest.raises(RedisReplyError):
            await wrong
        assert await right == b"1"


async def test_scripts_are_loaded_and_loaded_again(redis_url: str) -> None:
    async with connected(redis_url) as connection:
        assert await connection.evalsha(ECHO, [], ["x"]) == b"x"
        await connection.execute("SCRIPT", "FLUSH")
        answers = await asyncio.gather(*(connection.evalsha(ECHO, [], [str(i)]) for i in range(20)))
        assert answers == [str(i).encode() for i in range(20)]


async def test_reconnects_to_a_new_server_and_fails_fast_meanwhile(own_redis: OwnRedis) -> None:
    child = own_redis.start()
    connects: list[str] = []
    async with connected(own_redis.url) as connection:
        connection.on_connect.append(lambda: connects.append(connection.run_id))
        first = connection.run_id
        child.kill()
        child.wait(10)
        await kit.until(lambda: not connection.connected)
        with pytest.raises(RedisAwayError) as refused:
            connection.execute("PING")
        assert not refused.value.sent
        own_redis.start()
        await kit.until(lambda: connection.connected)
        assert await connection.evalsha(ECHO, [], ["again"]) == b"again"
        assert connects == [connection.run_id]
        assert connection.run_id != first


async def test_a_hung_server_is_given_up(own_redis: OwnRedis) -> None:
    child = own_redis.start()
    options = PipelineOptions(timeout_ms=50, stall_ms=150, connect_timeout_ms=200)
    async with connected(own_redis.url, options) as connection:
        child.send_signal(signal.SIGSTOP)
        try:
            waiting = [connection.execute("PING") for _ in range(5)]
            outcomes = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(isinstance(outcome, RedisTimeoutError) for outcome in outcomes)
            await kit.until(lambda: not connection.connected)
        finally:
            child.send_signal(signal.SIGCONT)
        await kit.until(lambda: connection.connected)
        assert await connection.execute("PING") == b"PONG"


async def test_no_server_is_said_so(short_tmp: Path) -> None:
    connection = PipelinedRedis(f"unix://{short_tmp / 'nobody.sock'}")
    with pytest.raises(RedisAwayError):
        await connection.connect(wait_ms=100)
    assert connection.last_error
    await connection.close()


async def test_nonsense_closes_the_connection(short_tmp: Path) -> None:
    server = Scripted(short_tmp / "nonsense.sock")
    async with await server.serve(), connected(f"unix://{server.path}") as connection:
        server.answer = lambda commands: b"!what\r\n"
        with pytest.raises(RedisAwayError) as lost:
            await connection.execute("PING")
        assert lost.value.sent
        server.answer = lambda commands: b"+OK\r\n" * commands
        await kit.until(lambda: server.connections == 2 and connection.connected)
        assert await connection.execute("PING") == b"OK"
