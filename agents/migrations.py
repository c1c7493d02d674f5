"""Numbered, forward-only migrations of the runs database."""

from __future__ import annotations

from airi.database import Migration
from airi.ddl import statements

_FIRST = (
    """
    CREATE TABLE run_definitions (
        id VARCHAR(64) NOT NULL, name VARCHAR(128) NOT NULL, body TEXT NOT NULL, created_at BIGINT NOT NULL,
        PRIMARY KEY (id)
    )
    """,
    """
    CREATE TABLE run_effects (
        "key" VARCHAR(255) NOT NULL, run_id VARCHAR(40) NOT NULL, path VARCHAR(160) NOT NULL, kind VARCHAR(8)
        NOT NULL, name VARCHAR(160) NOT NULL, effect_class VARCHAR(16) NOT NULL, state VARCHAR(16) NOT NULL,
        fence INTEGER NOT NULL, calls INTEGER NOT NULL, held_usd_micros BIGINT NOT NULL, held_tokens BIGINT NOT
        NULL, cost_usd_micros BIGINT NOT NULL, tokens BIGINT NOT NULL, result_ref TEXT, error TEXT, created_at
        BIGINT NOT NULL, finished_at BIGINT, PRIMARY KEY ("key")
    )
    """,
    "CREATE INDEX effects_by_step ON run_effects (run_id, path)",
    """
    CREATE TABLE run_events (
        run_id VARCHAR(40) NOT NULL, seq BIGINT NOT NULL, type VARCHAR(32) NOT NULL, path VARCHAR(160), data
        TEXT NOT NULL, created_at BIGINT NOT NULL, PRIMARY KEY (run_id, seq)
    )
    """,
    """
    CREATE TABLE run_groups (
        name VARCHAR(255) NOT NULL, active INTEGER NOT NULL, PRIMARY KEY (name)
    )
    """,
    """
    CREATE TABLE run_outbox (
        run_id VARCHAR(40) NOT NULL, path VARCHAR(160) NOT NULL, fence INTEGER NOT NULL, traceparent VARCHAR(64)
        NOT NULL, publishes INTEGER NOT NULL, publish_after BIGINT NOT NULL, PRIMARY KEY (run_id, path)
    )
    """,
    "CREATE INDEX outbox_due ON run_outbox (publish_after)",
    """
    CREATE TABLE run_steps (
        run_id VARCHAR(40) NOT NULL, path VARCHAR(160) NOT NULL, step_id VARCHAR(128) NOT NULL, parent
        VARCHAR(160), position INTEGER, kind VARCHAR(16) NOT NULL, state VARCHAR(16) NOT NULL, attempt INTEGER
        NOT NULL, failures INTEGER NOT NULL, crashes INTEGER NOT NULL, fence INTEGER NOT NULL, lease_owner
        VARCHAR(64), lease_until BIGINT, input_hash VARCHAR(64), output_ref TEXT, error TEXT, items_ref TEXT,
        total INTEGER, launched INTEGER, remaining INTEGER, detail TEXT, cost_usd_micros BIGINT NOT NULL, tokens
        BIGINT NOT NULL, created_at BIGINT NOT NULL, started_at BIGINT, finished_at BIGINT, PRIMARY KEY (run_id,
        path)
    )
    """,
    "CREATE INDEX steps_by_lease ON run_steps (lease_until) WHERE lease_until IS NOT NULL",
    "CREATE INDEX steps_by_parent ON run_steps (run_id, parent, position)",
    """
    CREATE TABLE run_timers (
        run_id VARCHAR(40) NOT NULL, path VARCHAR(160) NOT NULL, kind VARCHAR(16) NOT NULL, due_at BIGINT NOT
        NULL, PRIMARY KEY (run_id, path, kind)
    )
    """,
    "CREATE INDEX timers_due ON run_timers (due_at)",
    """
    CREATE TABLE runs (
        id VARCHAR(40) NOT NULL, tenant VARCHAR(128) NOT NULL, team VARCHAR(128) NOT NULL, key_id VARCHAR(64)
        NOT NULL, workflow VARCHAR(128) NOT NULL, definition_id VARCHAR(64) NOT NULL, state VARCHAR(16) NOT
        NULL, outcome VARCHAR(16), inputs_ref TEXT NOT NULL, inputs_hash VARCHAR(64) NOT NULL, outputs_ref TEXT,
        error TEXT, idempotency_key VARCHAR(255), concurrency_group VARCHAR(255), depth INTEGER NOT NULL,
        trace_id VARCHAR(32) NOT NULL, traceparent VARCHAR(64) NOT NULL, seq BIGINT NOT NULL, budget_usd_micros
        BIGINT, held_usd_micros BIGINT NOT NULL, spent_usd_micros BIGINT NOT NULL, largest_usd_micros BIGINT NOT
        NULL, budget_tokens BIGINT, held_tokens BIGINT NOT NULL, spent_tokens BIGINT NOT NULL, steps_started
        INTEGER NOT NULL, created_at BIGINT NOT NULL, started_at BIGINT, finished_at BIGINT, PRIMARY KEY (id),
        CONSTRAINT runs_idempotency UNIQUE (tenant, workflow, idempotency_key)
    )
    """,
    "CREATE INDEX runs_by_group ON runs (concurrency_group, state, created_at)",
    "CREATE INDEX runs_by_state ON runs (state, created_at)",
    "CREATE INDEX runs_by_tenant ON runs (tenant, created_at)",
)

MIGRATIONS = (
    Migration(1, "runs, steps, events, effects, outbox, timers", statements(*_FIRST)),
    Migration(
        2,
        "which run called a run",
        statements(
            "ALTER TABLE runs ADD COLUMN called_by VARCHAR(40)",
            "CREATE INDEX runs_by_caller ON runs (called_by)",
        ),
    ),
)
