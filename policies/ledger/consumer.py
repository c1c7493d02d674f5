"""From the stream in Redis into the ledger in SQL."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import redis as redis_library
from sqlalchemy import Engine

from airi.database import write
from policies.admission.scripts import LEDGER_STREAM, VERSIONS
from policies.admission.wire import ENTRY, Entry
from policies.ledger.posting import post

UNREADABLE = "airi:ledger:unreadable"
"""Where entries go that this release cannot read; ``verify`` counts them."""
_log = logging.getLogger(__name__)


class LedgerConsumer:
    """Moves entries. Blocking: run it in a thread. Several at once do no harm."""

    def __init__(self, engine: Engine, redis: redis_library.Redis, *, batch: int = 500) -> None:
        self._engine = engine
        self._redis = redis
        self._batch = batch

    def run_once(self) -> int:
        """Move one batch; return how many entries left the stream (0: it is empty).

        The order is: commit in SQL, remove from the stream, tell the gateways up to where (``airi:versions``). A crash
        in between repeats the batch, which the ledger's key makes harmless.
        """
        items: list[Any] = self._redis.xrange(LEDGER_STREAM, count=self._batch)  # type: ignore[assignment]
        if not items:
            return 0
        entries: list[Entry] = []
        unreadable: list[bytes] = []
        for _, fields in items:
            raw = fields.get(b"e", b"")
            try:
                entries.append(ENTRY.decode(raw))
            except msgspec.MsgspecError:
                unreadable.append(raw)
        with write(self._engine) as connection:
            post(connection, entries)
        pipeline = self._redis.pipeline(transaction=True)
        for raw in unreadable:
            _log.error("a ledger entry cannot be read by this release; it is set aside in %s", UNREADABLE)
            pipeline.xadd(UNREADABLE, {"e": raw})
        pipeline.xdel(LEDGER_STREAM, *(item[0] for item in items))
        pipeline.hset(VERSIONS, "ledger", items[-1][0])
        pipeline.execute()
        return len(items)

    def run_until_empty(self) -> int:
        """Move everything; return how many entries it was."""
        total = 0
        while moved := self.run_once():
            total += moved
        return total

    def catch_up(self) -> int:
        """Move batches until one was not full; return how many entries it was.

        What arrives meanwhile waits for the next turn: a commit costs the same for one entry as for hundreds.
        """
        total = 0
        while True:
            moved = self.run_once()
            total += moved
            if moved < self._batch:
                return total
