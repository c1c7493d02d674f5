"""One Redis connection for the hot path: every command of a loop tick leaves in one write, answers come in order.

What it keeps:

- **Order.** Answers are matched by position. A command that has timed out keeps its place until its answer
  comes (and is dropped), so a late answer never reaches another caller.
- **Bounds.** At most ``max_in_flight`` unanswered commands; each has ``timeout_ms``; a connection whose oldest
  command is unanswered for ``stall_ms`` is given up.
- **A breaker.** While there is no connection, commands fail at once with :class:`RedisAwayError`; the connection is
  tried again with exponential back-off and jitter.
- **Scripts** are loaded at each connect, and again when Redis says NOSCRIPT; the caller does not notice.

A command that failed with :class:`RedisTimeoutError` or :class:`RedisAwayError` *may have been executed* unless
``RedisAwayError.sent`` is false.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import hiredis

from airi.errors import UnavailableError
from airi.redis_protocol import Address, Argument, Script, bulk, encode

__all__ = [
    "Address",
    "Argument",
    "PipelineOptions",
    "PipelinedRedis",
    "RedisAwayError",
    "RedisBusyError",
    "RedisReplyError",
    "RedisTimeoutError",
    "Script",
    "bulk",
    "encode",
]

_log = logging.getLogger(__name__)
_GIVE_UP_REPLIES = ("READONLY", "LOADING", "MASTERDOWN")
_LATE_S = 0.02
_LET_READ_S = 0.001


class RedisAwayError(UnavailableError):
    """There is no connection to Redis. ``sent`` says whether the command may have reached it."""

    code = "redis_unavailable"

    def __init__(self, message: str, *, sent: bool = False) -> None:
        super().__init__(message, retry_after_ms=1_000)
        self.sent = sent


class RedisTimeoutError(UnavailableError):
    """Redis did not answer in time; the command may still be executed."""

    code = "redis_timeout"


class RedisBusyError(UnavailableError):
    """Too many commands wait for their answers; this one was not sent."""

    code = "redis_busy"


class RedisReplyError(UnavailableError):
    """Redis answered with an error."""

    code = "redis_error"


@dataclass(frozen=True, slots=True)
class PipelineOptions:
    """Bounds of a connection, in milliseconds where they are times."""

    timeout_ms: int = 500
    stall_ms: int = 2_000
    connect_timeout_ms: int = 1_000
    backoff_initial_ms: int = 20
    backoff_max_ms: int = 1_000
    max_in_flight: int = 8_192


class _Pending(NamedTuple):
    future: asyncio.Future[Any]
    deadline: list[float]
    command: bytes
    script: Script | None


class _Connection(asyncio.Protocol):
    """The protocol of one socket: order, time-outs, reloading of scripts."""

    def __init__(self, options: PipelineOptions) -> None:
        self._loop = asyncio.get_running_loop()
        self._options = options
        self._timeout_s = options.timeout_ms / 1_000
        self._reader = hiredis.Reader(replyError=RedisReplyError)
        self._pending: deque[_Pending] = deque()
        self._outgoing: list[bytes] = []
        # The time by which what is sent together must be answered: known once it is sent. It counts from there, because
        # a loop that takes in a thousand calls at once may write them only half a second later.
        self._deadline = [math.inf]
        self._sweep_at = 0.0
        self._transport: asyncio.Transport | None = None
        self._sweeping = False
        self._let_read = False
        self.lost: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        away = "the connection to Redis was lost; the command may have been executed"
        for pending in self._pending:
            if not pending.future.done():
                pending.future.set_exception(RedisAwayError(away, sent=True))
        self._pending.clear()
        self._outgoing.clear()
        if not self.lost.done():
            self.lost.set_result(None)

    @property
    def in_flight(self) -> int:
        return len(self._pending)

    def send(self, command: bytes, script: Script | None) -> asyncio.Future[Any]:
        future = self._loop.create_future()
        self._write(command)
        self._pending.append(_Pending(future, self._deadline, command, script))
        return future

    def _write(self, command: bytes) -> None:
        if not self._outgoing:
            self._loop.call_soon(self._flush)
            self._deadline = [math.inf]
            if not self._sweeping:
                self._sweep_in(self._timeout_s / 4)
        self._outgoing.append(command)

    def _flush(self) -> None:
        if self._transport is not None and self._outgoing:
            self._transport.write(b"".join(self._outgoing))
        self._outgoing.clear()
        self._deadline[0] = time.monotonic() + self._timeout_s

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        pending = self._pending
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                entry = pending.popleft()
                if reply.__class__ is RedisReplyError:
                    self._error(entry, reply)
                elif not entry.future.done():
                    entry.future.set_result(reply)
        except (hiredis.ProtocolError, IndexError):
            self.abort()  # the stream cannot be trusted any more: every caller learns it by connection_lost

    def _error(self, entry: _Pending, reply: RedisReplyError) -> None:
        """An error answer: load the script and try once more, leave a server that cannot serve, or tell."""
        if entry.script is not None and reply.message.startswith("NOSCRIPT"):
            ignored = self.send(entry.script.load_command, None)
            ignored.add_done_callback(_retrieve)
            self._write(entry.command)
            self._pending.append(_Pending(entry.future, self._deadline, entry.command, None))
            return
        if not entry.future.done():
            entry.future.set_exception(reply)
        if reply.message.startswith(_GIVE_UP_REPLIES):
            self.abort()

    def _sweep(self) -> None:
        """Fail what is overdue; give the connection up when the oldest answer is far overdue."""
        self._sweeping = False
        now = time.monotonic()
        if now - self._sweep_at > _LATE_S and not self._let_read:
            # This process was busy, and answers may have come meanwhile: they are read before anything is called overdue.
            self._let_read = True
            self._sweep_in(_LET_READ_S)
            return
        self._let_read = False
        for entry in self._pending:
            if entry.deadline[0] > now:
                break
            if not entry.future.done():
                entry.future.set_exception(
                    RedisTimeoutError(f"Redis did not answer within {self._options.timeout_ms} ms")
                )
        if not self._pending:
            return
        overdue_s = now - self._pending[0].deadline[0]
        if overdue_s * 1_000 > self._options.stall_ms - self._options.timeout_ms:
            self.abort()
            return
        self._sweep_in(self._timeout_s / 4)

    def _sweep_in(self, seconds: float) -> None:
        self._sweeping = True
        self._sweep_at = time.monotonic() + seconds
        self._loop.call_later(seconds, self._sweep)

    def abort(self) -> None:
        """Close the socket at once; every unanswered command fails."""
        if self._transport is not None:
            self._transport.abort()


def _retrieve(future: asyncio.Future[Any]) -> None:
    """Mark the outcome of a command nobody waits for as seen."""
    if not future.cancelled():
        future.exception()


class PipelinedRedis:
    """A self-healing pipelined connection; see the module's text for what it keeps. One event loop only.

    ``run_id`` is the server's identity (``INFO server``), new after each restart or failover; ``on_connect``
    callbacks are called after each successful connect; ``last_error`` says why the last attempt failed.
    """

    def __init__(
        self,
        url: str,
        scripts: Iterable[Script] = (),
        options: PipelineOptions | None = None,
        *,
        name: str = "airi",
    ) -> None:
        self._address = Address.parse(url)
        self._scripts = tuple(scripts)
        self.options = options or PipelineOptions()
        self._name = name
        self._connection: _Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._up = asyncio.Event()
        self.run_id = ""
        self.last_error = ""
        self.on_connect: list[Callable[[], None]] = []

    @property
    def connected(self) -> bool:
        """Whether commands are being sent now (the breaker is closed)."""
        return self._connection is not None and not self._connection.lost.done()

    @property
    def in_flight(self) -> int:
        """How many commands wait for their answers."""
        return self._connection.in_flight if self._connection else 0

    async def connect(self, wait_ms: int = 5_000) -> None:
        """Start to keep a connection up; raise :class:`RedisAwayError` when there is none within ``wait_ms``.

        It goes on trying after that: a caller that can live without Redis for a while may ignore the error.
        """
        if self._task is None:
            self._task = asyncio.create_task(self._keep_up(), name="redis-pipeline")
        try:
            async with asyncio.timeout(wait_ms / 1_000):
                await self._up.wait()
        except TimeoutError as error:
            raise RedisAwayError(f"no connection to Redis within {wait_ms} ms") from error

    async def close(self) -> None:
        """Close the connection and stop trying; unanswered commands fail."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def send(self, command: bytes, script: Script | None = None) -> asyncio.Future[Any]:
        """Send an encoded command; give its ``script`` when it is an EVALSHA.

        Raises :class:`RedisAwayError` (breaker open) or :class:`RedisBusyError` at once; the future raises these,
        :class:`RedisTimeoutError` or :class:`RedisReplyError`.
        """
        connection = self._connection
        if connection is None or connection.lost.done():
            raise RedisAwayError("Redis is away; the command was not sent")
        if connection.in_flight >= self.options.max_in_flight:
            raise RedisBusyError("too many commands wait for Redis", retry_after_ms=1_000)
        return connection.send(command, script)

    def execute(self, *args: Argument) -> asyncio.Future[Any]:
        """Send one command; see :meth:`send`."""
        return self.send(encode(args))

    def evalsha(
        self, script: Script, keys: Sequence[Argument], args: Sequence[Argument]
    ) -> asyncio.Future[Any]:
        """Run a script; see :meth:`send`."""
        return self.send(encode(("EVALSHA", script.sha, len(keys), *keys, *args)), script)

    async def _keep_up(self) -> None:
        delay_ms = self.options.backoff_initial_ms
        while True:
            connection: _Connection | None = None
            try:
                async with asyncio.timeout(self.options.connect_timeout_ms / 1_000):
                    connection = await self._open()
                    await self._greet(connection)
                delay_ms = self.options.backoff_initial_ms
                self._connection = connection
                self._up.set()
                for callback in self.on_connect:
                    callback()
                await connection.lost
                self.last_error = ""
            except (OSError, TimeoutError, UnavailableError) as error:
                self._failed(f"{type(error).__name__}: {error}")  # away, loading or refused: tried again
            finally:
                self._connection = None
                self._up.clear()
                if connection is not None:
                    connection.abort()
            await asyncio.sleep(delay_ms / 1_000 * random.uniform(0.5, 1.0))  # noqa: S311  # jitter, not a secret
            delay_ms = min(delay_ms * 2, self.options.backoff_max_ms)

    def _failed(self, why: str) -> None:
        """Keep and log why there is no connection, once as long as it stays the same."""
        if self._address.password:  # a server that does not know AUTH repeats what it was sent
            why = why.replace(self._address.password, "***")
        if why != self.last_error:
            _log.warning("no connection to Redis; trying again and again", extra={"error": why})
        self.last_error = why

    async def _open(self) -> _Connection:
        loop = asyncio.get_running_loop()
        address = self._address

        def factory() -> _Connection:
            return _Connection(self.options)

        if address.path:
            _, connection = await loop.create_unix_connection(factory, address.path)
            return connection
        _, connection = await loop.create_connection(factory, address.host, address.port, ssl=self._tls())
        return connection

    def _tls(self) -> ssl.SSLContext | None:
        if not self._address.tls:
            return None
        options = self._address.options
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if options.get("ssl_certfile"):
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
        return context

    async def _greet(self, connection: _Connection) -> None:
        """Authenticate, choose the database, load the scripts, learn who the server is."""
        commands: list[tuple[Argument, ...]] = []
        address = self._address
        if address.username or address.password:
            user = (address.username,) if address.username else ()
            commands.append(("AUTH", *user, address.password))
        if address.database:
            commands.append(("SELECT", address.database))
        commands.append(("CLIENT", "SETNAME", self._name))
        commands.append(("INFO", "server"))
        futures = [connection.send(encode(command), None) for command in commands]
        futures += [connection.send(script.load_command, None) for script in self._scripts]
        replies: list[Any] = await asyncio.gather(*futures, return_exceptions=True)
        for reply in replies:
            if isinstance(reply, BaseException):
                raise reply
        info: str = replies[len(commands) - 1].decode()
        found = [line[7:] for line in info.splitlines() if line.startswith("run_id:")]
        self.run_id = found[0] if found else ""
