"""Entries into SQL, exactly once: rows and the sums by counter change in one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec
from sqlalchemy import Connection, String, select

from airi.clock import unix_ms
from airi.database import insert_for
from policies.admission.wire import Entry, SettlementWire
from policies.schema import COUNTERS, LEDGER

_CHUNK = 400
_TEXTS = {
    column.name: column.type.length
    for column in LEDGER.columns
    if isinstance(column.type, String) and column.type.length and not column.primary_key
}


def chunks(items: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield slices short enough for one ``IN``."""
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]


def post(connection: Connection, entries: Iterable[Entry]) -> int:
    """Add the entries that the ledger does not have (and what a late one corrects); return how many were new.

    Two consumers at once are safe: the second one's transaction fails on the primary key (or waits, on SQLite, and
    finds the rows), and it tries again.
    """
    fresh: dict[str, Entry] = {}
    for entry in entries:
        if entry.cause == "late":
            reaped = _reaped(entry)
            fresh.setdefault(reaped.entry_id, reaped)
        fresh[entry.entry_id] = entry
    for ids in chunks(list(fresh)):
        for known in connection.scalars(select(LEDGER.c.entry_id).where(LEDGER.c.entry_id.in_(ids))):
            del fresh[known]
    if not fresh:
        return 0
    connection.execute(LEDGER.insert(), [row(entry) for entry in fresh.values()])
    sums: dict[tuple[str, str], int] = {}
    for entry in fresh.values():
        for counter in entry.charged:
            name = (entry.request.tenant, counter)
            sums[name] = sums.get(name, 0) + entry.usd_micros
    if sums:
        _add(connection, sums)
    return len(fresh)


def _reaped(late: Entry) -> Entry:
    """The entry that a late one corrects: usually in SQL already, but it may be lost while the late one is not."""
    return msgspec.structs.replace(
        late,
        entry_id=f"{late.request.reservation_id}/reaped",
        cause="reaped",
        usd_micros=late.hold_usd_micros,
        excess_usd_micros=0,
        settlement=SettlementWire(),
    )


def _add(connection: Connection, sums: dict[tuple[str, str], int]) -> None:
    statement = insert_for(connection.dialect.name, COUNTERS)
    statement = statement.on_conflict_do_update(
        index_elements=["tenant", "counter"],
        set_={
            "usd_micros": COUNTERS.c.usd_micros + statement.excluded.usd_micros,
            "updated_at_ms": statement.excluded.updated_at_ms,
        },
    )
    now = unix_ms()
    # In one order for all, so that two transactions of PostgreSQL cannot wait for each other.
    rows = [
        {"tenant": tenant, "counter": counter, "usd_micros": amount, "updated_at_ms": now}
        for (tenant, counter), amount in sorted(sums.items())
    ]
    connection.execute(statement, rows)


def row(entry: Entry) -> dict[str, Any]:
    """Return an entry as a row of the ledger: texts cut to what a column takes, without what PostgreSQL refuses."""
    request, settlement = entry.request, entry.settlement
    values: dict[str, Any] = {
        "entry_id": entry.entry_id,
        "reservation_id": request.reservation_id,
        "cause": entry.cause,
        "outcome": settlement.outcome or entry.cause,
        "tenant": request.tenant,
        "team": request.team,
        "key_id": request.key_id,
        "end_user": request.user,
        "model": request.model,
        "version": settlement.version,
        "target": settlement.target,
        "run_id": request.run_id,
        "step": request.step,
        "trace_id": settlement.trace_id or request.trace_id,
        "process": entry.process,
        "usd_micros": entry.usd_micros,
        "hold_usd_micros": entry.hold_usd_micros,
        "excess_usd_micros": entry.excess_usd_micros,
        "input_tokens": settlement.input_tokens,
        "output_tokens": settlement.output_tokens,
        "cached_tokens": settlement.cached_tokens,
        "usage_source": settlement.usage_source,
        "price_source": settlement.price_source,
        "simulated": settlement.simulated,
        "reserved_at_us": entry.reserved_at_us,
        "settled_at_us": entry.settled_at_us,
        "charged": msgspec.json.encode(entry.charged).decode(),
    }
    for name, length in _TEXTS.items():
        values[name] = values[name].replace("\0", "")[:length]
    return values
