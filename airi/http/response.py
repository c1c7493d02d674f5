"""An upstream's answer: a bounded buffer between the connection that fills it and the coroutine that reads it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from airi.http.errors import HttpClientError, ResponseTooLarge

if TYPE_CHECKING:
    from airi.http.client_connection import ClientConnection


class Response:
    """Status and headers (lower-case names) are there; the body comes. Close it in a ``finally``."""

    __slots__ = ("_blocks", "_complete", "_connection", "_error", "_size", "_waiter", "headers", "status")

    def __init__(self, connection: ClientConnection) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self._connection = connection
        self._blocks: list[bytes] = []
        self._size = 0
        self._complete = False
        self._error: HttpClientError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of ``name`` (lower-case), or ``None``."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    @property
    def complete(self) -> bool:
        """Whether the last byte has arrived (it may still have to be read)."""
        return self._complete

    @property
    def buffered(self) -> int:
        """Bytes that have come and were not read."""
        return self._size

    async def read(self, limit: int) -> bytes:
        """Return the rest of the body. Raises :class:`ResponseTooLarge` past ``limit`` bytes and closes."""
        blocks: list[bytes] = []
        size = 0
        while True:
            size += self._size
            if size > limit:
                self.close()
                raise ResponseTooLarge(f"The upstream's answer is larger than {limit} bytes.")
            blocks += self._blocks
            self._take()
            if self._complete:
                return blocks[0] if len(blocks) == 1 else b"".join(blocks)
            await self._wait()

    async def next_block(self) -> bytes | None:
        """Return what has arrived since the last call, waiting for at least a byte; ``None`` after the last.

        Raises :class:`~airi.http.errors.Truncated` when the answer ends before its declared end, and the
        time-outs. Being cancelled closes the socket.
        """
        while not self._blocks:
            if self._complete:
                return None
            await self._wait()
        blocks = self._blocks
        data = blocks[0] if len(blocks) == 1 else b"".join(blocks)
        self._take()
        return data

    def close(self) -> None:
        """Be done with it: an unfinished answer closes the socket at once, a finished one costs nothing."""
        if not self._complete and self._error is None:
            self._error = HttpClientError("The answer was closed by its reader.")
            self._connection.abandon(self)

    def _take(self) -> None:
        self._blocks = []
        self._size = 0
        if self._connection.paused:
            self._connection.resume(self)

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        self._waiter = self._connection.loop.create_future()
        try:
            await self._waiter
        except asyncio.CancelledError:
            self.close()
            raise
        finally:
            self._waiter = None

    # --- the connection's side -------------------------------------------------------------------------------

    def feed(self, data: bytes) -> int:
        """Buffer a piece of the body; return how many bytes wait to be read."""
        self._blocks.append(data)
        self._size += len(data)
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
        return self._size

    def end(self, error: HttpClientError | None) -> None:
        """The body is whole (``None``), or what came before ``error`` is all there will be."""
        if error is None:
            self._complete = True
        elif self._error is None:
            self._error = error
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)
