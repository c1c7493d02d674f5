"""Keys kept up to date on an event loop: the map in memory, refreshed from the log in a thread."""

from __future__ import annotations

import asyncio
import logging
import time

from airi.errors import UnavailableError
from airi.keys.errors import UnknownKeyError
from airi.keys.keymap import KeyMap
from airi.keys.log import KeyLog, refresh
from airi.keys.record import KeyRecord

MAX_AGE_S = 1.0
MIN_INTERVAL_S = 0.02
"""Between two readings, however many unknown keys are tried; those who wait share one reading."""
_log = logging.getLogger(__name__)


class LiveKeys:
    """A :class:`KeyMap` that is at most :data:`MAX_AGE_S` old while the database answers.

    While it does not, known keys go on working, and an unknown one is 503, never a false 401.
    """

    def __init__(self, log: KeyLog) -> None:
        self._log = log
        self._lock = asyncio.Lock()
        self._read_at = float("-inf")
        self._failed = False
        self._map: KeyMap | None = None

    async def get(self, key_id: str) -> KeyRecord | None:
        """Return a key's record by id, whatever its state."""
        key_map = await self._read_since(time.monotonic() - MAX_AGE_S)
        return None if key_map is None else key_map.get(key_id)

    async def authenticate(self, token: str) -> KeyRecord:
        """As :meth:`KeyMap.authenticate`, after one reading of the log for a key that is not known yet.

        :class:`UnavailableError` when the key is unknown and cannot be looked up.
        """
        now = time.monotonic()
        for since in (now - MAX_AGE_S, now):
            key_map = await self._read_since(since)
            try:
                if key_map is not None:
                    return key_map.authenticate(token)
            except UnknownKeyError:
                if since == now and not self._failed:
                    raise
        raise UnavailableError("the key cannot be checked while the database is away", retry_after_ms=1_000)

    async def now(self) -> None:
        """Read the log at once: after a change made in this process."""
        await self._read_since(time.monotonic())

    async def _read_since(self, since: float) -> KeyMap | None:
        """Return the map as of a reading that began at ``since`` or later (of :func:`time.monotonic`)."""
        if self._read_at >= since:
            return self._map
        async with self._lock:
            if self._read_at >= since:  # another caller's reading, begun after this one asked
                return self._map
            await asyncio.sleep(self._read_at + MIN_INTERVAL_S - time.monotonic())
            started = time.monotonic()
            try:
                await asyncio.to_thread(self._read)
                self._failed = False
            # Any failure of the database means the same here: go on with what is in memory.
            except Exception as error:  # noqa: BLE001
                self._failed = True
                _log.warning("the key log cannot be read", extra={"error": repr(error)})
            self._read_at = started
            return self._map

    def _read(self) -> None:
        if self._map is None:
            self._map = self._log.new_map()
        refresh(self._map, self._log)
