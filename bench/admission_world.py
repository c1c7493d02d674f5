"""A world in which admission's real code runs one event at a time: processes, their connections, a clock, one real Redis.

Nothing here happens by itself: :mod:`bench.interleavings` chooses each event from a seeded random generator, so a seed
gives the same history every time. Each process runs the production :class:`policies.admission.Admission`; only its
socket (:class:`Wire`) and its clock are the world's. A command is *delivered* (executed by Redis) and its answer
*returned* as two events, with anything in between: other processes, death, a lost connection, a wiped Redis.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import hiredis
import redis

from airi.redis_pipeline import (
    Argument,
    PipelinedRedis,
    RedisAwayError,
    RedisReplyError,
    RedisTimeoutError,
    Script,
    encode,
)
from policies.admission import Admission, AdmissionOptions
from policies.admission.scripts import Scripts

CLOCK_KEY = "sim:now"
SIM_SCRIPTS = Scripts(
    clock_line=f"local function clock() return tonumber(redis.call('GET', '{CLOCK_KEY}')) end"
)


class Server(redis.Redis):
    """The control plane's client; the server's identity is the world's to change."""

    run_id = "server-1"

    def info(self, section: str | None = None, *args: Any, **kwargs: Any) -> Any:
        """Only the identity is asked for."""
        return {"run_id": self.run_id}


class RawRedis:
    """A blocking socket that executes encoded commands."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._reader = hiredis.Reader(replyError=RedisReplyError)

    def execute(self, command: bytes) -> Any:
        """Return the answer (an error answer as its exception object)."""
        self._socket.sendall(command)
        while (reply := self._reader.gets()) is False:
            self._reader.feed(self._socket.recv(262_144))
        return reply

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class Wire:
    """One process' connection: commands wait for delivery, answers for their return, both in order."""

    def __init__(self, raw: RawRedis, server: Server) -> None:
        self._raw = raw
        self._server = server
        self.connected = True
        self.run_id = server.run_id
        self.on_connect: list[Callable[[], None]] = []
        self.outgoing: deque[tuple[bytes, asyncio.Future[Any]]] = deque()
        self.incoming: deque[tuple[Any, asyncio.Future[Any]]] = deque()
        self.zombies: deque[bytes] = deque()
        """Commands of a broken connection that Redis may still execute."""

    def send(self, command: bytes, script: Script | None = None) -> asyncio.Future[Any]:
        """As :meth:`PipelinedRedis.send`."""
        if not self.connected:
            raise RedisAwayError("away")
        future = asyncio.get_running_loop().create_future()
        self.outgoing.append((command, future))
        return future

    def execute(self, *args: Argument) -> asyncio.Future[Any]:
        """As :meth:`PipelinedRedis.execute`."""
        return self.send(encode(args))

    def evalsha(self, script: Script, keys: list[Argument], args: list[Argument]) -> asyncio.Future[Any]:
        """As :meth:`PipelinedRedis.evalsha`."""
        return self.send(encode(("EVALSHA", script.sha, len(keys), *keys, *args)), script)

    def deliver(self) -> None:
        """Redis executes the next command."""
        command, future = self.outgoing.popleft()
        reply = self._raw.execute(command)
        if isinstance(reply, RedisReplyError):
            raise AssertionError(f"a script failed: {reply}")
        self.incoming.append((reply, future))

    def come_back(self) -> None:
        """The next answer reaches the process (or is dropped, when nobody waits any more)."""
        reply, future = self.incoming.popleft()
        if not future.done():
            future.set_result(reply)

    def time_out(self) -> None:
        """The oldest command that somebody waits for times out; it keeps its place."""
        for _, future in (*self.incoming, *self.outgoing):
            if not future.done():
                future.set_exception(RedisTimeoutError("late"))
                return

    def execute_zombie(self) -> None:
        """Redis executes a command that a broken connection had left in its buffers."""
        self._raw.execute(self.zombies.popleft())

    def lose(self, *, deliver_later: bool) -> None:
        """The connection breaks: all that wait learn it; what was not delivered is lost or comes later."""
        self.connected = False
        if deliver_later:
            self.zombies.extend(command for command, _ in self.outgoing)
        for _, future in (*self.incoming, *self.outgoing):
            if not future.done():
                future.set_exception(RedisAwayError("lost", sent=True))
        self.outgoing.clear()
        self.incoming.clear()

    def reconnect(self) -> None:
        """The connection is up again, perhaps to another server."""
        self.connected = True
        self.run_id = self._server.run_id
        for callback in self.on_connect:
            callback()


class Process:
    """A gateway process: the real Admission on a wire of the world."""

    def __init__(self, name: str, raw: RawRedis, server: Server, clock: Callable[[], float]) -> None:
        self.name = name
        self.wire = Wire(raw, server)
        options = AdmissionOptions(local_requests_per_minute=30, epoch_wait_ms=0)
        redis_ = cast("PipelinedRedis", self.wire)
        self.admission = Admission(redis_, name, options, scripts=SIM_SCRIPTS, clock=clock)
        self.admission.attach()
        self.beat: asyncio.Task[None] | None = None
        self.tasks: set[asyncio.Task[Any]] = set()

    async def die(self, *, deliver_later: bool) -> None:
        """SIGKILL: nothing of it goes on; what it had sent may still arrive."""
        self.wire.on_connect.clear()
        tasks = [task for task in (*self.tasks, self.beat) if task is not None]
        # A killed process runs no handlers: cut the wire first, so that nothing they do leaves it.
        if deliver_later:
            self.wire.zombies.extend(command for command, _ in self.wire.outgoing)
        self.wire.connected = False
        self.wire.outgoing.clear()
        self.wire.incoming.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _NothingToRead(selectors.SelectSelector):
    """A selector for a loop without sockets: it never asks the kernel."""

    def select(self, timeout: float | None = None) -> list[Any]:
        return []


def new_loop() -> asyncio.AbstractEventLoop:
    """Return a loop on which only tasks and futures run."""
    return asyncio.SelectorEventLoop(_NothingToRead())


async def settle_down() -> None:
    """Let every task run until all wait for the world."""
    for _ in range(6):
        await asyncio.sleep(0)
