"""From frames to committed rows: one queue, one thread, as many batches a transaction as are waiting."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from observability import dayfile
from observability.dayfile import DayFile, Written
from observability.wire import Batch

_log = logging.getLogger("observability.ingest")
_QUEUE_BATCHES = 16
_GROUP_RECORDS = 8_192
_RETRY_MAX_S = 5.0

Acknowledge = Callable[[int], None]
_Item = tuple[str, Batch, Acknowledge]


class Ingest:
    """Owns the day's file. ``on_written`` is called on the loop with what each transaction added."""

    def __init__(
        self,
        folder: Path,
        keep_days: int,
        on_written: Callable[[Written], None],
        unix_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._folder = folder
        self._keep_days = keep_days
        self._on_written = on_written
        self._unix_ns = unix_ns
        self._queue: asyncio.Queue[_Item] = asyncio.Queue(_QUEUE_BATCHES)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="records")
        self._file: DayFile | None = None
        self.fault = ""
        """Why records cannot be written at the moment; empty while they can."""
        self.lost: dict[str, int] = {"undecodable": 0, "unwritable": 0}
        self.duplicate_batches = 0
        self.written_records = 0

    @property
    def waiting(self) -> int:
        """Batches that have been read and not committed."""
        return self._queue.qsize()

    async def offer(self, instance: str, batch: Batch, acknowledge: Acknowledge) -> None:
        """Queue a batch; waits while the queue is full, which holds back the sender."""
        await self._queue.put((instance, batch, acknowledge))

    async def open(self) -> None:
        """Open today's file, so that a folder that cannot be used is known before anything listens."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._today)

    async def run(self) -> None:
        """Commit batches until cancelled."""
        while True:
            items = [await self._queue.get()]
            records = len(items[0][1].calls) + len(items[0][1].spans)
            while records < _GROUP_RECORDS and not self._queue.empty():
                items.append(self._queue.get_nowait())
                records += len(items[-1][1].calls) + len(items[-1][1].spans)
            await self._commit(items)
            for _ in items:
                self._queue.task_done()

    async def drain(self) -> None:
        """Wait until everything that was offered is committed."""
        await self._queue.join()

    async def close(self) -> None:
        """Close the file. Nothing may be offered any more."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._close)
        self._thread.shutdown()

    async def _commit(self, items: list[_Item]) -> None:
        loop = asyncio.get_running_loop()
        batches = [(instance, batch) for instance, batch, _ in items]
        wait = 0.1
        while True:
            try:
                written = await loop.run_in_executor(self._thread, self._write, batches)
            except (sqlite3.OperationalError, OSError) as error:
                # A full disk or a lock passes: keep the batches, unacknowledged, and the senders hold back.
                if not self.fault:
                    _log.error("records cannot be written: %s", error)
                self.fault = str(error)
                await asyncio.sleep(wait)
                wait = min(wait * 2, _RETRY_MAX_S)
                continue
            except (sqlite3.Error, OverflowError, ValueError):
                # A record that the file refuses would be refused for ever: these batches are lost, and counted.
                _log.exception("a batch of records was refused")
                self.lost["unwritable"] += sum(len(b.calls) + len(b.spans) for _, b in batches)
                written = Written()
            break
        if self.fault:
            _log.warning("records are written again")
            self.fault = ""
        self._account(written)
        for _, batch, acknowledge in items:
            acknowledge(batch.seq)

    def _account(self, written: Written) -> None:
        self.lost["undecodable"] += written.undecodable
        self.duplicate_batches += written.duplicate_batches
        self.written_records += len(written.calls) + len(written.spans)
        self._on_written(written)

    # -- in the writing thread --------------------------------------------------------------------------------------

    def _write(self, batches: list[tuple[str, Batch]]) -> Written:
        return self._today().write(batches)

    def _today(self) -> DayFile:
        day = dayfile.day_of(self._unix_ns())
        current = self._file
        if current is not None and day <= current.day:  # a clock set back keeps the newer file
            return current
        fresh = DayFile(self._folder, day)
        if current is not None:
            fresh.adopt(current.high)
            current.close()
        else:
            fresh.adopt(self._earlier_batches(day))
        self._file = fresh
        first_kept = day - dt.timedelta(days=self._keep_days - 1)
        for dropped in dayfile.drop_older_than(self._folder, first_kept):
            _log.info("records of %s dropped", dropped)
        return fresh

    def _earlier_batches(self, day: dt.date) -> dict[str, int]:
        """Return the batches that the newest earlier file holds: a sender may repeat them after midnight."""
        for earlier, path in dayfile.days(self._folder):
            if earlier < day:
                file = sqlite3.connect(path)
                try:
                    return dict(file.execute("SELECT instance, seq FROM sources"))
                except sqlite3.DatabaseError:
                    _log.warning("%s cannot be read; batches sent again over midnight may be doubled", path)
                    return {}
                finally:
                    file.close()
        return {}

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
