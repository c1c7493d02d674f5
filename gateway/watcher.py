"""Keeps a gateway process's configuration and keys current, off the calls' way.

The versions in force stand in Redis (``airi:versions``) and come back with every admission; an idle process asks for
them four times a second, and asks SQL itself every few seconds, should Redis be away or have lost them. What changed
is read in a thread; the new snapshot is swapped in whole, or, when it cannot be built, the old one goes on.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from airi.config.document import ConfigDocument
from airi.config.notify import VERSIONS, read_versions
from airi.config.store import ConfigStore
from airi.errors import AiriError, UnavailableError
from airi.keys import KeyLog, KeyMap, refresh
from airi.redis_pipeline import PipelinedRedis
from gateway.snapshot import Snapshot

POLL_S = 0.25
SQL_POLL_S = 5.0
UNKNOWN_KEY_INTERVAL_S = 0.1
"""Between two readings of the key log for keys that nobody knows, however many of them are tried."""
UNKNOWN_KEY_WAIT_S = 3.0
_log = logging.getLogger("airi.gateway.watcher")


class Watcher:
    """Refreshes keys and configuration when their versions rise. Everything here runs on the gateway's loop."""

    def __init__(
        self, engine: Engine, redis: PipelinedRedis, store: ConfigStore, key_log: KeyLog, keys: KeyMap,
        build: Callable[[ConfigDocument], Snapshot], install: Callable[[Snapshot], Awaitable[None]],
    ) -> None:  # fmt: skip
        self._engine = engine
        self._redis = redis
        self._store = store
        self._key_log = key_log
        self._keys = keys
        self._build = build
        self._install = install
        self._wake = asyncio.Event()
        self._wanted_snapshot = 0
        self._wanted_keys = 0
        self._snapshot = 0
        self._refused = 0
        self._reading_since = float("-inf")
        self._refreshing: asyncio.Task[object] | None = None
        self._task: asyncio.Task[None] | None = None
        self.problem = ""
        """Why the newest configuration is not in force; empty when it is."""

    async def start(self) -> None:
        """Load keys and configuration; raise when either cannot be read."""
        await self._refresh_keys()
        await self._refresh_snapshot()
        self._task = asyncio.create_task(self._run(), name="watcher")

    def stop(self) -> None:
        """Stop watching."""
        if self._task is not None:
            self._task.cancel()

    def seen(self, snapshot: int, keys: int) -> None:
        """Take the versions that an admission brought; a newer one wakes the watcher."""
        if snapshot > self._wanted_snapshot or keys > self._wanted_keys:
            self._wanted_snapshot = max(snapshot, self._wanted_snapshot)
            self._wanted_keys = max(keys, self._wanted_keys)
            self._wake.set()

    async def refresh_keys_for_unknown(self) -> None:
        """Wait for a reading of the key log that began after this call, for a key that this process does not know.

        Readings keep their distance and are shared, so that guessing keys costs the database ten a second. A key that was
        just issued is therefore never refused. Raises :class:`UnavailableError` when the log cannot be read, or not in
        time: an outage must never look like a wrong key.
        """
        asked = time.monotonic()
        try:
            async with asyncio.timeout(UNKNOWN_KEY_WAIT_S):
                while self._reading_since <= asked:
                    if self._refreshing is None:
                        await asyncio.sleep(self._reading_since + UNKNOWN_KEY_INTERVAL_S - time.monotonic())
                    await self._refresh_keys()
        except (SQLAlchemyError, OSError) as error:  # a TimeoutError is an OSError
            raise UnavailableError(
                "The key store is not answering, so an unknown key cannot be checked. Try again.",
                retry_after_ms=1_000,
            ) from error

    async def _refresh_keys(self) -> None:
        """Read the key log; whoever asks meanwhile waits for the same reading, so a database that hangs costs one thread."""
        task = self._refreshing
        if task is None:
            self._reading_since = time.monotonic()
            task = self._refreshing = asyncio.create_task(
                asyncio.to_thread(refresh, self._keys, self._key_log)
            )
            task.add_done_callback(self._refreshed)
        await asyncio.shield(task)
        self._wanted_keys = max(self._wanted_keys, self._keys.seq)

    def _refreshed(self, task: asyncio.Task[object]) -> None:
        self._refreshing = None
        if not task.cancelled():
            task.exception()  # whoever still waits is told; that nobody does any more is no fault

    async def _refresh_snapshot(self) -> None:
        document = await asyncio.to_thread(self._store.current)
        if document.version == self._snapshot and self._snapshot:
            return
        await self._install(await asyncio.to_thread(self._build, document))
        self._snapshot = document.version
        self._wanted_snapshot = max(self._wanted_snapshot, document.version)
        self.problem = ""

    async def _run(self) -> None:
        next_sql = time.monotonic() + SQL_POLL_S
        while True:
            try:
                async with asyncio.timeout(POLL_S):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._wake.clear()
            from_sql = time.monotonic() >= next_sql
            if from_sql:
                next_sql = time.monotonic() + SQL_POLL_S
            try:
                await self._once(from_sql)
            except (AiriError, SQLAlchemyError, OSError) as error:
                self._note(error)

    async def _once(self, from_sql: bool) -> None:
        if from_sql:
            versions = await asyncio.to_thread(read_versions, self._engine)
            self.seen(versions.snapshot, versions.keys)
        elif self._redis.connected:
            snapshot, keys = await self._redis.execute(b"HMGET", VERSIONS.encode(), b"snapshot", b"keys")
            self.seen(int(snapshot or 0), int(keys or 0))
        if self._wanted_keys > self._keys.seq:
            await self._refresh_keys()
        if self._wanted_snapshot > self._snapshot and self._wanted_snapshot != self._refused:
            wanted = self._wanted_snapshot
            try:
                await self._refresh_snapshot()
            except AiriError:
                self._refused = wanted
                raise

    def _note(self, error: Exception) -> None:
        problem = str(error) or type(error).__name__
        if problem != self.problem:
            _log.error(
                "the newest configuration or keys cannot be taken; the old ones go on",
                extra={"error": problem},
            )
        self.problem = problem
