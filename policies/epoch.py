"""Money after Redis lost data: refused until it is rebuilt from what is known elsewhere.

The *epoch* (key ``airi:epoch``) is the identity of the Redis server for which money was built: after FLUSHALL it is missing,
after a restart, a failover or a restore it names another server. Then budgets refuse (503) while rates go on, settlements
wait in their processes, and :func:`rebuild`

1. announces itself; every living process reports its open reservations and the settlements that SQL may not have;
2. moves what the stream still holds into the ledger, and the reported settlements (each once, by its id);
3. sets, tenant by tenant in one step each, every budget to the ledger's sum, and puts back the holds of reservations that
   Redis still has, that a process reported, or that the reaper's last pass wrote down - without those that the
   ledger has settled;
4. names the server in the epoch.

**What holds.** Nothing that Redis had confirmed and that SQL or a living process knows is lost; every open call of a living
process is held at its worst case, so a hard budget is not overspent. A dead process' open calls are held if Redis still
has them or the last pass of the reaper (a second ago) saw them, and then reaped at their hold. The one hole: calls that
a process opened after that pass, when it died *and* Redis lost its data before the rebuild; the overspend is at
most their holds. A process that lives but does not report within ``wait_s`` counts as dead; should it come back, its
settlements are still posted. A client that is still connected to the old server after a failover (split brain) spends
there; use ``min-replicas-to-write`` on that server.
"""

from __future__ import annotations

import secrets
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import redis as redis_library
from sqlalchemy import Engine, select

from airi.clock import unix_ms
from airi.database import write
from policies.admission import wire
from policies.admission.scripts import EPOCH, REBUILD, SCRIPTS, TENANTS, VERSIONS, Scripts
from policies.errors import LedgerError
from policies.keyspace import expires_at_s, money_suffixes, user_suffixes
from policies.ledger.consumer import LedgerConsumer
from policies.ledger.posting import chunks, post
from policies.names import prefix
from policies.processes import living
from policies.reaper import server_id
from policies.schema import COUNTERS, EPOCHS, LEDGER, OPEN

_LOCK_MS = 30_000
_LEASE_MS = 15_000
_POLL_S = 0.02


class RebuildReport(msgspec.Struct, frozen=True):
    """What money was rebuilt from. ``silent`` names processes that seemed to live and did not report."""

    epoch: str
    waited_ms: int
    reported: list[str]
    silent: list[str]
    tenants: int
    open_reservations: int
    settlements_recovered: int
    entries_moved: int


@dataclass
class _Known:
    """What was found of one tenant."""

    open: dict[str, bytes] = field(default_factory=dict)
    spent: list[str | int] = field(default_factory=list)
    """``suffix, field, micro-dollars, expires at``, flat."""
    in_redis: list[str] = field(default_factory=list)


def money_ready(redis: redis_library.Redis) -> bool:
    """Say whether money is built for the server that answers."""
    return bool(redis.get(EPOCH) == server_id(redis).encode())


def rebuild(
    engine: Engine, redis: redis_library.Redis, *, wait_s: float = 10.0, scripts: Scripts = SCRIPTS
) -> RebuildReport | None:
    """Rebuild money if the epoch asks for it; see the module's text.

    Returns ``None`` when there is nothing to do or another rebuild is at work. ``wait_s``: how long a process that seems
    to live may take to report. Blocking; call it about twice a second, and before money is needed at start.
    """
    work = Rebuild(engine, redis, scripts=scripts)
    if not work.begin():
        return None
    try:
        deadline = time.monotonic() + wait_s
        while (silent := work.missing(living(engine))) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        return work.complete(silent)
    finally:
        work.end()


class Rebuild:
    """One rebuild, step by step: :meth:`begin`, then until nobody is :meth:`missing`, :meth:`complete`, :meth:`end`."""

    def __init__(self, engine: Engine, redis: redis_library.Redis, *, scripts: Scripts = SCRIPTS) -> None:
        self._engine = engine
        self._redis = redis
        self._scripts = scripts
        self._epoch = ""
        self._started = time.monotonic()
        self._name = secrets.token_hex(8)
        self._money: dict[str, set[str]] = {}
        self._users: dict[str, set[str]] = {}

    def begin(self) -> bool:
        """Announce the rebuild; false when none is needed or another one is at work."""
        self._epoch = server_id(self._redis)
        if self._redis.get(EPOCH) == self._epoch.encode():
            return False
        return bool(self._redis.set(REBUILD, self._name, nx=True, px=_LOCK_MS))

    def missing(self, processes: Iterable[str]) -> list[str]:
        """Return those of ``processes`` that have not reported; keeps the announcement alive."""
        if self._redis.get(REBUILD) != self._name.encode() or not self._redis.pexpire(REBUILD, _LOCK_MS):
            raise LedgerError("the rebuild of money was interrupted: Redis lost its data once more")
        reported: Any = self._redis.hkeys(f"{REBUILD}:{self._name}")
        return sorted(set(processes) - {name.decode() for name in reported})

    def complete(self, silent: list[str]) -> RebuildReport:
        """Set all budgets and the epoch from what is known."""
        waited_ms = round((time.monotonic() - self._started) * 1_000)
        reports = self._reports()
        moved = LedgerConsumer(self._engine, self._redis).run_until_empty()
        with write(self._engine) as connection:
            recovered = post(
                connection,
                (wire.ENTRY.decode(raw) for report in reports.values() for raw in report.settled),
            )
        self._money, self._users = money_suffixes(self._redis), user_suffixes(self._redis)
        tenants = self._collect(reports)
        settled = self._settled(tenants)
        total = sum(self._put(tenant, known, settled) for tenant, known in tenants.items())
        answer = RebuildReport(
            self._epoch, waited_ms, sorted(reports), silent, len(tenants), total, recovered, moved
        )
        self._finish(answer)
        return answer

    def end(self) -> None:
        """Take the announcement back."""
        if self._redis.get(REBUILD) == self._name.encode():
            self._redis.delete(REBUILD)
        self._redis.delete(f"{REBUILD}:{self._name}")

    def _reports(self) -> dict[str, wire.Report]:
        raw: Any = self._redis.hgetall(f"{REBUILD}:{self._name}")
        return {name.decode(): wire.REPORT.decode(report) for name, report in raw.items()}

    def _collect(self, reports: dict[str, wire.Report]) -> dict[str, _Known]:
        tenants: dict[str, _Known] = defaultdict(_Known)
        with self._engine.connect() as connection:
            for row in connection.execute(select(OPEN)):
                tenants[row.tenant].open[row.reservation_id] = row.record
            for row in connection.execute(select(COUNTERS)):
                suffix, _, rest = row.counter.partition("|")
                expires = expires_at_s(suffix)
                if expires == 0 or expires > unix_ms() // 1_000:
                    tenants[row.tenant].spent += [suffix, f"|{rest}", row.usd_micros, expires]
        # A process knows its reservations better (a hold may have grown) than the last pass of the reaper.
        for report in reports.values():
            for raw in report.open:
                request = wire.RECORD.decode(raw).request
                tenants[request.tenant].open[request.reservation_id] = raw
        members: Any = self._redis.smembers(TENANTS)
        for tenant in [member.decode() for member in members] + list(self._money):
            tenants[tenant].in_redis = []
        for tenant, known in tenants.items():
            ids: Any = self._redis.zrange(f"{prefix(tenant)}open", 0, -1)
            known.in_redis = [name.decode() for name in ids]
        return tenants

    def _settled(self, tenants: dict[str, _Known]) -> dict[str, tuple[set[str], int]]:
        """Return causes and charged sum of those candidates that the ledger has."""
        candidates = {name for known in tenants.values() for name in (*known.open, *known.in_redis)}
        found: dict[str, tuple[set[str], int]] = {}
        with self._engine.connect() as connection:
            for ids in chunks(sorted(candidates)):
                query = select(LEDGER.c.reservation_id, LEDGER.c.cause, LEDGER.c.usd_micros)
                for name, cause, amount in connection.execute(query.where(LEDGER.c.reservation_id.in_(ids))):
                    causes, total = found.get(name, (set(), 0))
                    found[name] = (causes | {cause}, total + amount)
        return found

    def _put(self, tenant: str, known: _Known, settled: dict[str, tuple[set[str], int]]) -> int:
        """Set one tenant's money; return how many reservations are open."""
        triples: list[str | bytes] = []
        gone = [name for name in {*known.open, *known.in_redis} if name in settled]
        for name in gone:
            causes, charged = settled[name]
            triples += ["t", name, _tombstone(known.open.get(name), causes, charged)]
        for name, raw in known.open.items():
            if name not in settled:
                triples += ["o", name, raw]
        payload = wire.ENCODER.encode(
            [
                gone,
                sorted(self._money.get(tenant, ())),
                sorted(self._users.get(tenant, ())),
                known.spent,
                _LEASE_MS,
                self._name,
            ]
        )
        run = self._redis.register_script(self._scripts.rebuild.source)
        answer: Any = run(keys=[prefix(tenant)], args=[payload, *triples])
        if int(answer) < 0:
            raise LedgerError("the rebuild of money was interrupted: another one has begun")
        return int(answer)

    def _finish(self, report: RebuildReport) -> None:
        """Name the server in the epoch, unless this rebuild has lost its place."""
        with write(self._engine) as connection:
            connection.execute(
                EPOCHS.insert().values(
                    id=self._name,
                    epoch=self._epoch,
                    built_at_ms=unix_ms(),
                    report=msgspec.json.encode(report).decode(),
                )
            )
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.watch(REBUILD)  # type: ignore[no-untyped-call]  # redis-py's own
            held: Any = pipeline.get(REBUILD)
            if held != self._name.encode() or server_id(self._redis) != self._epoch:
                raise LedgerError("the rebuild of money was interrupted")
            pipeline.multi()
            pipeline.hset(VERSIONS, "ledger", "0-0")  # ids of an earlier stream say nothing about this one
            pipeline.set(EPOCH, self._epoch)
            pipeline.execute()


def _tombstone(record: bytes | None, causes: set[str], charged: int) -> bytes:
    """What stands for a reservation that the ledger has: a reaped one may still post its difference."""
    if record is None or causes != {"reaped"}:
        return wire.ENCODER.encode(["s"])
    values: list[Any] = msgspec.msgpack.decode(record)
    values[0], values[3], values[7] = "p", charged, []
    return wire.ENCODER.encode(values)
