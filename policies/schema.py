"""Tables of the room ``policies/``: the ledger and what money is rebuilt from. Money in micro-dollars."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, MetaData, String, Table, Text

METADATA = MetaData()

LEDGER = Table(
    "ledger",
    METADATA,
    Column("entry_id", String(120), primary_key=True),
    Column("reservation_id", String(100), nullable=False),
    Column("cause", String(10), nullable=False),
    Column("outcome", String(40), nullable=False),
    Column("tenant", String(128), nullable=False),
    Column("team", String(128), nullable=False),
    Column("key_id", String(128), nullable=False),
    Column("end_user", String(256), nullable=False),
    Column("model", String(256), nullable=False),
    Column("version", String(256), nullable=False),
    Column("target", String(256), nullable=False),
    Column("run_id", String(128), nullable=False),
    Column("step", String(512), nullable=False),
    Column("trace_id", String(64), nullable=False),
    Column("process", String(200), nullable=False),
    Column("usd_micros", BigInteger, nullable=False),
    Column("hold_usd_micros", BigInteger, nullable=False),
    Column("excess_usd_micros", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("usage_source", String(20), nullable=False),
    Column("price_source", String(40), nullable=False),
    Column("simulated", Integer, nullable=False),
    Column("reserved_at_us", BigInteger, nullable=False),
    Column("settled_at_us", BigInteger, nullable=False),
    Column("charged", Text, nullable=False),
)
"""One row for each settled call (``settled`` or ``reaped``), one more for a reaped call that settled ``late`` after all:
the difference. ``charged`` is a JSON list of counters."""

COUNTERS = Table(
    "ledger_counters",
    METADATA,
    Column("tenant", String(128), primary_key=True),
    Column("counter", String(500), primary_key=True),
    Column("usd_micros", BigInteger, nullable=False),
    Column("updated_at_ms", BigInteger, nullable=False),
)
"""Sums of the ledger by counter (``m:LETTER:START|SCOPE|BUDGET``), kept in the transaction that adds its rows."""

OPEN = Table(
    "open_reservations",
    METADATA,
    Column("reservation_id", String(100), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("record", LargeBinary, nullable=False),
    Column("seen_at_ms", BigInteger, nullable=False),
)
"""Reservations that held money at the reaper's last pass, in case that Redis and their process are lost together."""

PROCESSES = Table(
    "gateway_processes",
    METADATA,
    Column("process", String(200), primary_key=True),
    Column("started_at_ms", BigInteger, nullable=False),
    Column("seen_at_ms", BigInteger, nullable=False),
    Column("ended", Integer, nullable=False),
)
"""Processes that may hold reservations; a rebuild waits for those that live."""

EPOCHS = Table(
    "money_epochs",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("epoch", String(64), nullable=False),
    Column("built_at_ms", BigInteger, nullable=False),
    Column("report", Text, nullable=False),
)
"""Each time money was (re)built, and from what."""
