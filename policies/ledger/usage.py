"""What was used, summed from the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from sqlalchemy import Engine, case, func, select

from policies.schema import LEDGER

Group = Literal["day", "tenant", "team", "key", "model", "user", "run"]
_DAY_US = 86_400_000_000
_COLUMNS = {
    "tenant": LEDGER.c.tenant,
    "team": LEDGER.c.team,
    "key": LEDGER.c.key_id,
    "model": LEDGER.c.model,
    "user": LEDGER.c.end_user,
    "run": LEDGER.c.run_id,
}


class UsageRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Sums of one group; ``day`` is the Unix time (seconds) at which the UTC day of the reservations began."""

    day: int | None = None
    tenant: str | None = None
    team: str | None = None
    key: str | None = None
    model: str | None = None
    user: str | None = None
    run: str | None = None
    calls: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    usd_micros: int
    excess_usd_micros: int
    """What upstreams cost beyond what was sent and promised."""
    reaped_calls: int
    """Calls whose process died: charged at their hold."""


def usage(
    engine: Engine,
    *,
    group_by: Sequence[Group] = ("day", "tenant"),
    tenant: str | None = None,
    key_id: str | None = None,
    model: str | None = None,
    since_ms: int | None = None,
    until_ms: int | None = None,
    limit: int = 1_000,
) -> list[UsageRow]:
    """Return sums for calls reserved in ``[since_ms, until_ms)``, newest day first; at most ``limit`` rows."""
    table = LEDGER.c
    day = ((table.reserved_at_us // _DAY_US) * 86_400).label("day")
    groups = [day if name == "day" else _COLUMNS[name].label(name) for name in dict.fromkeys(group_by)]
    # A late entry is the difference of a call that was counted when it was reaped.
    sums = (
        func.sum(case((table.cause != "late", 1), else_=0)).label("calls"),
        func.sum(table.input_tokens).label("input_tokens"),
        func.sum(table.output_tokens).label("output_tokens"),
        func.sum(table.cached_tokens).label("cached_tokens"),
        func.sum(table.usd_micros).label("usd_micros"),
        func.sum(table.excess_usd_micros).label("excess_usd_micros"),
        func.sum(case((table.cause == "reaped", 1), else_=0)).label("reaped_calls"),
    )
    query = select(*groups, *sums).group_by(*groups).limit(limit)
    for column, value in ((table.tenant, tenant), (table.key_id, key_id), (table.model, model)):
        if value is not None:
            query = query.where(column == value)
    if since_ms is not None:
        query = query.where(table.reserved_at_us >= since_ms * 1_000)
    if until_ms is not None:
        query = query.where(table.reserved_at_us < until_ms * 1_000)
    query = query.order_by(*(group.desc() if group is day else group for group in groups))
    with engine.connect() as connection:
        return [_row(dict(found)) for found in connection.execute(query).mappings()]


def _row(found: dict[str, Any]) -> UsageRow:
    """Sums come as Decimal or NULL from some databases."""
    values = {name: value if name in _COLUMNS else int(value or 0) for name, value in found.items()}
    return msgspec.convert(values, UsageRow)
