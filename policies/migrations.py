"""Migrations of the room ``policies/``: numbered, forward only."""

from __future__ import annotations

from airi.database import Migration
from airi.ddl import statements

_LEDGER = """
CREATE TABLE ledger (
    entry_id VARCHAR(120) PRIMARY KEY, reservation_id VARCHAR(100) NOT NULL, cause VARCHAR(10) NOT NULL,
    outcome VARCHAR(40) NOT NULL, tenant VARCHAR(128) NOT NULL, team VARCHAR(128) NOT NULL,
    key_id VARCHAR(128) NOT NULL, end_user VARCHAR(256) NOT NULL, model VARCHAR(256) NOT NULL,
    version VARCHAR(256) NOT NULL, target VARCHAR(256) NOT NULL, run_id VARCHAR(128) NOT NULL,
    step VARCHAR(512) NOT NULL, trace_id VARCHAR(64) NOT NULL, process VARCHAR(200) NOT NULL,
    usd_micros BIGINT NOT NULL, hold_usd_micros BIGINT NOT NULL, excess_usd_micros BIGINT NOT NULL,
    input_tokens BIGINT NOT NULL, output_tokens BIGINT NOT NULL, cached_tokens BIGINT NOT NULL,
    usage_source VARCHAR(20) NOT NULL, price_source VARCHAR(40) NOT NULL, simulated INTEGER NOT NULL,
    reserved_at_us BIGINT NOT NULL, settled_at_us BIGINT NOT NULL, charged TEXT NOT NULL
)
"""

MIGRATIONS = (
    Migration(
        1,
        "ledger",
        statements(
            _LEDGER,
            "CREATE INDEX ledger_by_tenant ON ledger (tenant, reserved_at_us)",
            "CREATE INDEX ledger_by_reservation ON ledger (reservation_id)",
            "CREATE INDEX ledger_by_run ON ledger (run_id)",
            """CREATE TABLE ledger_counters (
                tenant VARCHAR(128) NOT NULL, counter VARCHAR(500) NOT NULL, usd_micros BIGINT NOT NULL,
                updated_at_ms BIGINT NOT NULL, PRIMARY KEY (tenant, counter))""",
            """CREATE TABLE open_reservations (
                reservation_id VARCHAR(100) PRIMARY KEY, tenant VARCHAR(128) NOT NULL, record {blob} NOT NULL,
                seen_at_ms BIGINT NOT NULL)""",
            """CREATE TABLE gateway_processes (
                process VARCHAR(200) PRIMARY KEY, started_at_ms BIGINT NOT NULL, seen_at_ms BIGINT NOT NULL,
                ended INTEGER NOT NULL)""",
            """CREATE TABLE money_epochs (
                id VARCHAR(64) PRIMARY KEY, epoch VARCHAR(64) NOT NULL, built_at_ms BIGINT NOT NULL,
                report TEXT NOT NULL)""",
        ),
    ),
)
