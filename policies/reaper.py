"""The reaper: what dead processes left open is settled, and what is open is written down in SQL.

A reservation whose lease has ended is settled at its hold (cause ``reaped``) and leaves a tombstone; when its process was
only slow, the late settlement posts the difference (cause ``late``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import redis as redis_library
from redis.exceptions import NoScriptError
from sqlalchemy import Connection, Engine, select, update

from airi.clock import unix_ms
from airi.database import write
from policies.admission.scripts import EPOCH, PROCESSES, SCRIPTS, TENANTS, Scripts
from policies.admission.wire import RECORD
from policies.ledger.posting import chunks
from policies.names import is_epoch_of, prefix
from policies.schema import LEDGER, OPEN
from policies.schema import PROCESSES as PROCESS_TABLE

_BATCH = 200
_FORGET_PROCESS_MS = 3_600_000
_SWEEP_FIELDS = 500


class ReapReport(msgspec.Struct, frozen=True):
    """What a pass did. ``reaped`` holds tenant, reservation id and hold (micro-dollars) of each."""

    reaped: list[tuple[str, str, int]]
    open_with_money: int
    money_ready: bool


class Reaper:
    """Run :meth:`run_once` about once a second, in a thread of the control plane; several at once do no harm."""

    def __init__(self, engine: Engine, redis: redis_library.Redis, *, scripts: Scripts = SCRIPTS) -> None:
        self._engine = engine
        self._redis = redis
        self._scripts = scripts
        self._penniless: set[str] = set()
        """Open reservations that hold no money: not worth a row."""

    def run_once(self) -> ReapReport:
        """Write down processes and open reservations, then reap. Does nothing while money is being rebuilt."""
        epoch = current_epoch(self._redis)
        if epoch is None:
            return ReapReport([], 0, money_ready=False)
        tenants = sorted(name.decode() for name in _members(self._redis))
        self._note_processes()
        # First write down, then reap: the entry of a reaped call may be lost with Redis before SQL has it.
        held = self._checkpoint(tenants, epoch)
        return ReapReport(self._reap(tenants, epoch), held, money_ready=True)

    def _reap(self, tenants: list[str], epoch: str) -> list[tuple[str, str, int]]:
        reaped: list[tuple[str, str, int]] = []
        waiting = tenants
        while waiting:
            again: list[str] = []
            for tenant, answer in zip(waiting, self._ask(waiting, epoch), strict=True):
                ids, holds = answer[1::2], answer[2::2]
                reaped += [(tenant, name.decode(), hold) for name, hold in zip(ids, holds, strict=True)]
                if len(ids) == _BATCH:
                    again.append(tenant)
            waiting = again
        return reaped

    def _ask(self, tenants: list[str], epoch: str) -> list[Any]:
        def send() -> list[Any]:
            pipeline = self._redis.pipeline(transaction=False)
            for tenant in tenants:
                pipeline.evalsha(self._scripts.reap.sha, 1, prefix(tenant), epoch, _BATCH)
            return list(pipeline.execute())

        try:
            return send()
        except NoScriptError:
            self._redis.script_load(self._scripts.reap.source)
            return send()

    def _note_processes(self) -> None:
        """Copy the processes' heartbeats to SQL, where a rebuild finds them after Redis has lost them."""
        beats: Any = self._redis.hgetall(PROCESSES)
        now = unix_ms()
        seen = {name.decode(): int(at) // 1_000 for name, at in beats.items()}
        stale = [name for name, at in seen.items() if now - at > _FORGET_PROCESS_MS]
        if stale:
            self._redis.hdel(PROCESSES, *stale)
        with write(self._engine) as connection:
            for name, at in seen.items():
                connection.execute(
                    update(PROCESS_TABLE).where(PROCESS_TABLE.c.process == name).values(seen_at_ms=at)
                )
            connection.execute(
                update(PROCESS_TABLE)
                .where(PROCESS_TABLE.c.ended == 0, PROCESS_TABLE.c.seen_at_ms < now - _FORGET_PROCESS_MS)
                .values(ended=1)
            )

    def _checkpoint(self, tenants: list[str], epoch: str) -> int:
        """Write down what Redis holds open; return how many hold money.

        A row stays until the ledger has its reservation: an entry that is still in the stream may be lost with Redis.
        """
        with self._engine.connect() as connection:
            known = set(connection.scalars(select(OPEN.c.reservation_id)))
        present: set[str] = set()
        rows: list[dict[str, Any]] = []
        for tenant in tenants:
            members: Any = self._redis.zrange(f"{prefix(tenant)}open", 0, -1)
            ids = {name.decode() for name in members}
            present |= ids
            rows += self._new_rows(tenant, sorted(ids - known - self._penniless))
        self._penniless &= present
        if self._redis.get(EPOCH) != epoch.encode():
            return 0  # the data went away under the reading: what was read proves nothing
        with self._engine.connect() as connection:
            closed = [name for ids in chunks(sorted(known - present)) for name in _in_ledger(connection, ids)]
        if closed or rows:
            with write(self._engine) as connection:
                _replace(connection, closed, rows)
        return len(present - self._penniless)

    def _new_rows(self, tenant: str, ids: list[str]) -> list[dict[str, Any]]:
        if not ids:
            return []
        found: Any = self._redis.mget([f"{prefix(tenant)}r:{name}" for name in ids])
        rows: list[dict[str, Any]] = []
        for name, raw in zip(ids, found, strict=True):
            if raw is None or raw[1:3] != b"\xa1o":
                continue  # settled since
            if not RECORD.decode(raw).money:
                self._penniless.add(name)
                continue
            rows.append({"reservation_id": name, "tenant": tenant, "record": raw, "seen_at_ms": unix_ms()})
        return rows

    def sweep(self) -> int:
        """Forget idle rates of scopes that nobody uses; return how many. Every ten minutes is often enough."""
        run = self._redis.register_script(self._scripts.sweep.source)
        gone = 0
        for name in _members(self._redis):
            key = prefix(name.decode())
            fields = [field for field, _ in self._redis.hscan_iter(f"{key}c", count=_SWEEP_FIELDS)]
            for start in range(0, len(fields), _SWEEP_FIELDS):
                answer: Any = run(keys=[key], args=fields[start : start + _SWEEP_FIELDS])
                gone += int(answer)
        return gone


def server_id(redis: redis_library.Redis) -> str:
    """Return the identity of the Redis server: new after each restart and on another server."""
    info: Any = redis.info("server")
    return str(info["run_id"])


def current_epoch(redis: redis_library.Redis) -> str | None:
    """Return the epoch when money is built for the server that answers."""
    epoch: Any = redis.get(EPOCH)
    if epoch is None or not is_epoch_of(epoch.decode(), server_id(redis)):
        return None
    return str(epoch.decode())


def _members(redis: redis_library.Redis) -> list[bytes]:
    members: Any = redis.smembers(TENANTS)
    return list(members)


def _in_ledger(connection: Connection, ids: Sequence[str]) -> list[str]:
    query = select(LEDGER.c.reservation_id).where(LEDGER.c.reservation_id.in_(ids)).distinct()
    return list(connection.scalars(query))


def _replace(connection: Connection, gone: list[str], rows: list[dict[str, Any]]) -> None:
    for ids in chunks(gone):
        connection.execute(OPEN.delete().where(OPEN.c.reservation_id.in_(ids)))
    for ids in chunks([row["reservation_id"] for row in rows]):
        connection.execute(OPEN.delete().where(OPEN.c.reservation_id.in_(ids)))
    if rows:
        connection.execute(OPEN.insert(), rows)
