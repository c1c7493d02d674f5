"""Money after Redis lost data: refused until it is rebuilt from what is known elsewhere.

The *epoch* (key ``airi:epoch``) names the Redis server for which money was built, and the rebuild that did it: after
FLUSHALL it is missing, after a restart, a failover or a restore it names another server. Then budgets refuse (503) while rates go on, settlements
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
from sqlalchemy import Engine, Row, exists, select

from airi.clock import unix_ms
from airi.database import write
from policies.admission import wire
from policies.admission.scripts import EPOCH, REBUILD, SCRIPTS, TENANTS, VERSIONS, Scripts
from policies.errors import LedgerError
from policies.keyspace import expires_at_s, money_suffixes, user_suffixes
from policies.ledger.consumer import LedgerConsumer
from policies.ledger.posting import chunks, post
from policies.names import epoch_name, prefix
from policies.processes import living
from policies.reaper import current_epoch, server_id
from policies.schema import COUNTERS, EPOCHS, LEDGER, OPEN

_LOCK_MS = 30_000
_LEASE_MS = 15_000
_POLL_S = 0.02
_TOMBSTONE_MS = 2 * 86_400_000
_SETTLED = wire.ENCODER.encode(["s"])


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
    return current_epoch(redis) is not None


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
        self._server = ""
        self._started = time.monotonic()
        self._name = secrets.token_hex(8)
        self._money: dict[str, set[str]] = {}
        self._users: dict[str, set[str]] = {}

    def begin(self) -> bool:
        """Announce the rebuild; false when none is needed or another one is at work."""
        self._server = server_id(self._redis)
        if current_epoch(self._redis) is not None:
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
        reaped = self._reaped()
        total = sum(
            self._put(tenant, tenants[tenant], settled, reaped.get(tenant, {}))
            for tenant in {*tenants, *reaped}
        )
        answer = RebuildReport(
            epoch_name(self._server, self._name),
            waited_ms,
            sorted(reports),
            silent,
            len(tenants),
            total,
            recovered,
            moved,
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

    def _settled(self, tenants: dict[str, _Known]) -> set[str]:
        """Return those candidates that the ledger has."""
        candidates = {name for known in tenants.values() for name in (*known.open, *known.in_redis)}
        found: set[str] = set()
        with self._engine.connect() as connection:
            for ids in chunks(sorted(candidates)):
                found |= set(
                    connection.scalars(
                        select(LEDGER.c.reservation_id).where(LEDGER.c.reservation_id.in_(ids)).distinct()
                    )
                )
        return found

    def _reaped(self) -> dict[str, dict[str, bytes]]:
        """Return, by tenant and reservation, tombstones of calls that were reaped lately and may still settle."""
        late = LEDGER.alias()
        query = select(LEDGER).where(
            LEDGER.c.cause == "reaped",
            LEDGER.c.settled_at_us > (unix_ms() - _TOMBSTONE_MS) * 1_000,
            ~exists().where(late.c.reservation_id == LEDGER.c.reservation_id, late.c.cause == "late"),
        )
        found: dict[str, dict[str, bytes]] = defaultdict(dict)
        with self._engine.connect() as connection:
            for row in connection.execute(query):
                found[row.tenant][row.reservation_id] = _tombstone(row)
        return found

    def _put(self, tenant: str, known: _Known, settled: set[str], reaped: dict[str, bytes]) -> int:
        """Set one tenant's money; return how many reservations are open."""
        gone = sorted({*known.open, *known.in_redis} & settled)
        triples: list[str | bytes] = []
        for name in (*gone, *(reaped.keys() - set(gone))):
            triples += ["t", name, reaped.get(name, _SETTLED)]
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
                    epoch=report.epoch,
                    built_at_ms=unix_ms(),
                    report=msgspec.json.encode(report).decode(),
                )
            )
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.watch(REBUILD)  # type: ignore[no-untyped-call]  # redis-py's own
            held: Any = pipeline.get(REBUILD)
            if held != self._name.encode() or server_id(self._redis) != self._server:
                raise LedgerError("the rebuild of money was interrupted")
            pipeline.multi()
            pipeline.hset(VERSIONS, "ledger", "0-0")  # ids of an earlier stream say nothing about this one
            pipeline.set(EPOCH, report.epoch)
            pipeline.execute()


def _tombstone(row: Row[Any]) -> bytes:
    """What stands for a reaped call, made from its ledger entry: should it settle after all, the difference is posted."""
    groups: dict[str, list[str]] = defaultdict(list)
    for counter in msgspec.json.decode(row.charged, type=list[str]):
        suffix, _, name = counter.partition("|")
        groups[suffix] += [f"s|{name}", f"h|{name}"]
    request = wire.Request(
        row.reservation_id,
        row.tenant,
        row.team,
        row.key_id,
        row.end_user,
        row.model,
        row.run_id,
        row.step,
        row.trace_id,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
    )
    money = [wire.MoneyGroup(suffix, fields, [0] * (len(fields) // 2)) for suffix, fields in groups.items()]
    return wire.ENCODER.encode(
        wire.Record(
            "p",
            row.process,
            row.reserved_at_us,
            row.usd_micros,
            row.hold_usd_micros,
            0,
            money,
            [],
            len(wire.ENCODER.encode(request)),
            request,
        )
    )
