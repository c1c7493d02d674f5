"""Do the books balance? Redis' counters against the ledger and the open reservations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import msgspec
import redis as redis_library
from sqlalchemy import Connection, Engine, func, select

from policies.admission.scripts import LEDGER_STREAM, SCRIPTS, TENANTS, Scripts
from policies.admission.wire import ENTRY, RECORD, Entry, Record
from policies.keyspace import expires_at_s, money_suffixes
from policies.ledger.consumer import UNREADABLE
from policies.ledger.posting import chunks
from policies.names import prefix
from policies.schema import COUNTERS, LEDGER

_STRINGS = msgspec.json.Decoder(list[str])


class Difference(msgspec.Struct, frozen=True):
    """One sum that does not agree. ``books`` is what ledger and open reservations say, ``found`` what is there."""

    tenant: str
    counter: str
    what: Literal["spent", "held", "sql counter"]
    found: int
    books: int


class Report(msgspec.Struct, frozen=True):
    """The outcome. ``usd_by_cause`` splits the ledger: settled, reaped (at the hold), late (differences of reaped calls);
    ``excess_usd_micros`` is the part of it that upstreams cost beyond what was sent and promised."""

    tenants: int
    counters: int
    open_reservations: int
    in_stream: int
    unreadable: int
    usd_by_cause: dict[str, int]
    excess_usd_micros: int
    differences: list[Difference]

    @property
    def balanced(self) -> bool:
        """Whether everything agrees to the micro-dollar."""
        return not self.differences and not self.unreadable


def verify(engine: Engine, redis: redis_library.Redis, *, scripts: Scripts = SCRIPTS) -> Report:
    """Compare, at one moment of each tenant, while calls go on. Blocking; reads the whole ledger once.

    Windows that Redis has forgotten (three days after their end) are not compared.
    """
    suffixes = money_suffixes(redis)
    with engine.connect() as connection:
        names = set(connection.scalars(select(COUNTERS.c.tenant).distinct()))
    members: Any = redis.smembers(TENANTS)
    names |= {name.decode() for name in members} | set(suffixes)
    differences: list[Difference] = []
    counters = reservations = 0
    run = redis.register_script(scripts.snapshot.source)
    for tenant in sorted(names):
        wanted = sorted(suffixes.get(tenant, ()))
        snapshot: Any = run(keys=[prefix(tenant)], args=[tenant, *wanted])
        records = [RECORD.decode(raw) for raw in snapshot[2]]
        hashes = dict(zip(wanted, snapshot[1], strict=True))
        with _repeatable(engine) as connection:
            found, counted = _tenant(connection, tenant, int(snapshot[0]), hashes, records, snapshot[3])
        differences += found
        counters += counted
        reservations += len(records)
    return _report(engine, redis, len(names), counters, reservations, differences)


def _repeatable(engine: Engine) -> Connection:
    """A connection whose statements all see one moment (SQLite's do by themselves)."""
    connection = engine.connect()
    if engine.dialect.name == "postgresql":
        return connection.execution_options(isolation_level="REPEATABLE READ")
    return connection


def _report(
    engine: Engine,
    redis: redis_library.Redis,
    tenants: int,
    counters: int,
    reservations: int,
    differences: list[Difference],
) -> Report:
    with engine.connect() as connection:
        causes = connection.execute(
            select(
                LEDGER.c.cause, func.sum(LEDGER.c.usd_micros), func.sum(LEDGER.c.excess_usd_micros)
            ).group_by(LEDGER.c.cause)
        ).all()
    in_stream: Any = redis.xlen(LEDGER_STREAM)
    unreadable: Any = redis.xlen(UNREADABLE)
    return Report(
        tenants,
        counters,
        reservations,
        in_stream,
        unreadable,
        {cause: int(amount) for cause, amount, _ in causes},
        sum(int(excess) for _, _, excess in causes),
        differences,
    )


def _tenant(
    connection: Connection,
    tenant: str,
    at_us: int,
    hashes: dict[str, list[bytes]],
    records: list[Record],
    stream: Iterable[bytes],
) -> tuple[list[Difference], int]:
    spent, in_sql = _ledger_sums(connection, tenant, at_us, [ENTRY.decode(raw) for raw in stream])
    held: dict[str, int] = defaultdict(int)
    for record in records:
        for group in record.money:
            for field, amount in zip(group.fields[::2], group.holds, strict=True):
                held[group.suffix + field[1:]] += amount
    differences: list[Difference] = []
    counters = 0
    for suffix, flat in hashes.items():
        fields = {name.decode(): int(value) for name, value in zip(flat[::2], flat[1::2], strict=True)}
        for name, value in fields.items():
            counter = suffix + name[1:]
            counters += 1
            what: Literal["spent", "held"] = "spent" if name[0] == "s" else "held"
            books = (spent if what == "spent" else held)[counter]
            if value != books:
                differences.append(Difference(tenant, counter, what, value, books))
    for counter in {*spent, *held} - {suffix + field for suffix, field in _known(hashes)}:
        expires_s = expires_at_s(counter.partition("|")[0])
        if (expires_s == 0 or expires_s * 1_000_000 > at_us) and (spent[counter] or held[counter]):
            differences.append(Difference(tenant, counter, "spent", 0, spent[counter]))
    kept = connection.execute(
        select(COUNTERS.c.counter, COUNTERS.c.usd_micros).where(COUNTERS.c.tenant == tenant)
    )
    for counter, amount in kept:
        if amount != in_sql[counter]:
            differences.append(Difference(tenant, counter, "sql counter", amount, in_sql[counter]))
    return differences, counters


def _known(hashes: dict[str, list[bytes]]) -> Iterator[tuple[str, str]]:
    for suffix, flat in hashes.items():
        for name in flat[::2]:
            yield suffix, name.decode()[1:]


def _ledger_sums(
    connection: Connection, tenant: str, at_us: int, stream: list[Entry]
) -> tuple[dict[str, int], dict[str, int]]:
    """Sums by counter: of all entries up to ``at_us``, SQL's and the stream's; and of all that SQL has now."""
    spent: dict[str, int] = defaultdict(int)
    in_sql: dict[str, int] = defaultdict(int)
    query = select(LEDGER.c.usd_micros, LEDGER.c.charged, LEDGER.c.settled_at_us).where(
        LEDGER.c.tenant == tenant
    )
    for amount, charged, settled_at_us in connection.execution_options(yield_per=5_000).execute(query):
        for counter in _STRINGS.decode(charged):
            in_sql[counter] += amount
            if settled_at_us <= at_us:
                spent[counter] += amount
    waiting = {entry.entry_id: entry for entry in stream}
    for ids in chunks(list(waiting)):
        for known in connection.scalars(select(LEDGER.c.entry_id).where(LEDGER.c.entry_id.in_(ids))):
            del waiting[known]
    for entry in waiting.values():
        for counter in entry.charged:
            spent[counter] += entry.usd_micros
    return spent, in_sql
