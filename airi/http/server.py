"""The HTTP/1.1 server: listeners, limits, one task a request, graceful drain."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airi.http.connection import Connection
from airi.http.headers import REASONS, http_date
from airi.http.request import Request
from airi.http.sweeper import Sweeper

__all__ = ["Handler", "Request", "Server", "ServerLimits", "openai_error", "serve"]

Handler = Callable[[Request], Coroutine[Any, Any, None]]
ErrorForm = Callable[[int, str], tuple[bytes, bytes]]
"""A status and a message to header lines (each with its line break) and body."""

_BACKLOG = 2048
_TICK_SECONDS = 0.25
_log = logging.getLogger("airi.http")


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """What one client may take. Sizes in bytes, times in milliseconds."""

    body_bytes: int = 20 * 1024 * 1024
    header_bytes: int = 64 * 1024
    header_count: int = 128
    header_ms: int = 10_000
    body_ms: int = 120_000
    keepalive_ms: int = 75_000
    write_idle_ms: int = 60_000
    write_high_water: int = 256 * 1024
    max_connections: int = 10_000


def openai_error(status: int, message: str) -> tuple[bytes, bytes]:
    """Return OpenAI's error form for a request that was refused before a handler saw it."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": None}})
    return b"content-type: application/json\r\n", body.encode()


class Server:
    """Listeners and connections of one :func:`serve`."""

    def __init__(
        self, handler: Handler, limits: ServerLimits, error_form: ErrorForm, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.loop = loop
        self.limits = limits
        self.error_form = error_form
        self.keepalive_seconds = limits.keepalive_ms / 1000
        self.connections: set[Connection] = set()
        self.draining = False
        self.now = loop.time()
        self._handler = handler
        self._tasks: set[asyncio.Task[None]] = set()
        self._listeners: list[asyncio.AbstractServer] = []
        self._uds: Path | None = None
        self._status_lines: dict[int, bytes] = {}
        self._date_second = 0
        shortest = min(limits.header_ms, limits.body_ms, limits.keepalive_ms, limits.write_idle_ms) / 1000
        self._tick = min(_TICK_SECONDS, max(shortest / 4, 0.01))
        self._sweeper = Sweeper(loop, self._sweep)

    @property
    def active(self) -> int:
        """How many handlers are running."""
        return len(self._tasks)

    @property
    def port(self) -> int:
        """The TCP port of the first listener (useful after asking for port 0); 0 without one."""
        for listener in self._listeners:
            for sock in getattr(listener, "sockets", ()):
                name = sock.getsockname()
                if isinstance(name, tuple):
                    return int(name[1])
        return 0

    def status_line(self, status: int) -> bytes:
        """Return status line and date header; cached until the date changes."""
        line = self._status_lines.get(status)
        if line is None:
            reason = REASONS.get(status, b"Unknown")
            line = b"HTTP/1.1 %d %b\r\ndate: %b\r\n" % (status, reason, http_date(self._date_second))
            self._status_lines[status] = line
        return line

    def add(self, connection: Connection) -> None:
        """Take a new connection under watch."""
        if not self.connections:
            self._refresh(self.loop.time())
            self._sweeper.wake(self._tick)
        self.connections.add(connection)

    def run(self, request: Request) -> asyncio.Task[None]:
        """Start the handler of ``request``."""
        # A name given spares making one up for each of many short tasks.
        task = asyncio.Task(self._answer(request), loop=self.loop, name="airi-request")
        self._tasks.add(task)
        return task

    def cancel(self, task: asyncio.Task[None]) -> None:
        """Cancel a handler; one that never began to run is forgotten too."""
        task.add_done_callback(self._tasks.discard)
        task.cancel()

    def close_listeners(self) -> None:
        """Accept no further connection; those that stand go on."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        if self._uds is not None:
            self._uds.unlink(missing_ok=True)
            self._uds = None

    async def drain(self, timeout: float) -> int:  # noqa: ASYNC109  # past it, what still runs is cut, not left
        """Let running requests end for ``timeout`` seconds, then cut the rest. Return how many were cut.

        Idle connections close at once, and every answer from here on says ``Connection: close``.
        """
        self.draining = True
        for connection in list(self.connections):
            if connection.idle:
                connection.close()
        deadline = self.loop.time() + timeout
        while (self._tasks or self.connections) and self.loop.time() < deadline:  # noqa: ASYNC110  # once a life
            await asyncio.sleep(0.01)
        cut = list(self._tasks)
        for task in cut:
            self.cancel(task)
        for connection in list(self.connections):
            connection.abort()
        if cut:
            await asyncio.wait(cut, timeout=5)
        await asyncio.sleep(0)
        self._sweeper.stop()
        return len(cut)

    async def close(self) -> None:
        """Stop everything now."""
        self.close_listeners()
        await self.drain(0)

    async def _answer(self, request: Request) -> None:
        try:
            await self._handler(request)
            if not request.finished:
                _log.error(
                    "handler of %s %s ended without finishing its answer", request.method, request.path
                )
                self._fail(request)
        except asyncio.CancelledError:
            if not request.finished:
                request.abort()
            raise
        # A fault of one handler must not end the process: it is logged and answered with 500.
        except Exception:  # noqa: BLE001
            _log.exception("handler of %s %s failed", request.method, request.path)
            self._fail(request)
        finally:
            if request.task is not None:
                self._tasks.discard(request.task)

    def _fail(self, request: Request) -> None:
        if request.finished:
            return
        if request.started:
            request.abort()
        else:
            request.respond(500, *self.error_form(500, "The server failed to answer this request."))

    def _refresh(self, now: float) -> None:
        self.now = now
        second = int(time.time())
        if second != self._date_second:
            self._date_second = second
            self._status_lines.clear()

    def _sweep(self, now: float) -> float:
        self._refresh(now)
        expired = [c for c in self.connections if c.deadline <= now or c.write_deadline <= now]
        for connection in expired:
            connection.expire(now)
        return self._tick if self.connections else float("inf")


async def serve(
    handler: Handler,
    *,
    host: str | None = None,
    port: int | None = None,
    uds: str | Path | None = None,
    reuse_port: bool = False,
    tls: ssl.SSLContext | None = None,
    limits: ServerLimits | None = None,
    error_form: ErrorForm = openai_error,
) -> Server:
    """Listen on ``host:port``, on the unix socket ``uds`` (mode 0600), or on both, and answer with ``handler``.

    The handler runs as one task a request and is cancelled when the client leaves before its answer is finished.
    ``error_form`` writes the answer to what the server itself refuses.
    """
    loop = asyncio.get_running_loop()
    server = Server(handler, limits or ServerLimits(), error_form, loop)
    handshake = server.limits.header_ms / 1000 if tls else None
    if port is not None:
        listener = await loop.create_server(
            lambda: Connection(server),
            host,
            port,
            backlog=_BACKLOG,
            reuse_port=reuse_port or None,
            ssl=tls,
            ssl_handshake_timeout=handshake,
        )
        server._listeners.append(listener)
    if uds is not None:
        path = Path(uds)
        listener = await loop.create_unix_server(
            lambda: Connection(server), str(path), backlog=_BACKLOG, ssl=tls, ssl_handshake_timeout=handshake
        )
        path.chmod(0o600)  # noqa: ASYNC240  # at start, before anything is served
        server._listeners.append(listener)
        server._uds = path
    return server
