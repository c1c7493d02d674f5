"""Tables of the durable engine, in the runs database. Times are milliseconds since 1970 by the database's clock."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

metadata = MetaData()


class now_ms(FunctionElement[int]):  # noqa: N801  # reads as the SQL function it is
    """The database's clock in milliseconds since 1970."""

    type = BigInteger()
    inherit_cache = True


@compiles(now_ms, "sqlite")
def _now_sqlite(_element: now_ms, _compiler: Any, **_options: Any) -> str:
    return "CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER)"


@compiles(now_ms, "postgresql")
def _now_postgresql(_element: now_ms, _compiler: Any, **_options: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)"


definitions = Table(
    "run_definitions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(128), nullable=False),
    Column("body", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("team", String(128), nullable=False),
    Column("key_id", String(64), nullable=False),
    Column("workflow", String(128), nullable=False),
    Column("definition_id", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("outcome", String(16)),
    Column("inputs_ref", Text, nullable=False),
    Column("inputs_hash", String(64), nullable=False),
    Column("outputs_ref", Text),
    Column("error", Text),
    Column("idempotency_key", String(255)),
    Column("concurrency_group", String(255)),
    Column("depth", Integer, nullable=False),
    Column("trace_id", String(32), nullable=False),
    Column("traceparent", String(64), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("budget_usd_micros", BigInteger),
    Column("held_usd_micros", BigInteger, nullable=False),
    Column("spent_usd_micros", BigInteger, nullable=False),
    Column("largest_usd_micros", BigInteger, nullable=False),
    Column("budget_tokens", BigInteger),
    Column("held_tokens", BigInteger, nullable=False),
    Column("spent_tokens", BigInteger, nullable=False),
    Column("steps_started", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("finished_at", BigInteger),
    Column("called_by", String(40)),
    UniqueConstraint("tenant", "workflow", "idempotency_key", name="runs_idempotency"),
    Index("runs_by_tenant", "tenant", "created_at"),
    Index("runs_by_state", "state", "created_at"),
    Index("runs_by_group", "concurrency_group", "state", "created_at"),
    Index("runs_by_caller", "called_by"),
)
"""``called_by`` is the run whose step called this workflow as a model. ``largest_usd_micros`` is the dearest model call so far: the next hold is sized by it."""

groups = Table(
    "run_groups",
    metadata,
    Column("name", String(255), primary_key=True),
    Column("active", Integer, nullable=False),
)

steps = Table(
    "run_steps",
    metadata,
    Column("run_id", String(40), primary_key=True),
    Column("path", String(160), primary_key=True),
    Column("step_id", String(128), nullable=False),
    Column("parent", String(160)),
    Column("position", Integer),
    Column("kind", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("crashes", Integer, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("lease_owner", String(64)),
    Column("lease_until", BigInteger),
    Column("input_hash", String(64)),
    Column("output_ref", Text),
    Column("error", Text),
    Column("items_ref", Text),
    Column("total", Integer),
    Column("launched", Integer),
    Column("remaining", Integer),
    Column("detail", Text),
    Column("cost_usd_micros", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("finished_at", BigInteger),
    Index("steps_by_lease", "lease_until"),  # in the migration: only where it is not null
    Index("steps_by_parent", "run_id", "parent", "position"),
)
"""``attempt`` counts claims, ``failures`` attempts that ended in an error, ``crashes`` leases that ran out."""

events = Table(
    "run_events",
    metadata,
    Column("run_id", String(40), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("type", String(32), nullable=False),
    Column("path", String(160)),
    Column("data", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

effects = Table(
    "run_effects",
    metadata,
    Column("key", String(255), primary_key=True),
    Column("run_id", String(40), nullable=False),
    Column("path", String(160), nullable=False),
    Column("kind", String(8), nullable=False),
    Column("name", String(160), nullable=False),
    Column("effect_class", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("fence", Integer, nullable=False),
    Column("calls", Integer, nullable=False),
    Column("held_usd_micros", BigInteger, nullable=False),
    Column("held_tokens", BigInteger, nullable=False),
    Column("cost_usd_micros", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("result_ref", Text),
    Column("error", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("finished_at", BigInteger),
    Index("effects_by_step", "run_id", "path"),
)
"""``state``: intent → done | failed (a definite no) | review (nobody knows; a person decides)."""

outbox = Table(
    "run_outbox",
    metadata,
    Column("run_id", String(40), primary_key=True),
    Column("path", String(160), primary_key=True),
    Column("fence", Integer, nullable=False),
    Column("traceparent", String(64), nullable=False),
    Column("publishes", Integer, nullable=False),
    Column("publish_after", BigInteger, nullable=False),
    Index("outbox_due", "publish_after"),
)
"""What somebody should be told; ``path`` is empty for "advance the run". The row goes when the work was taken."""

timers = Table(
    "run_timers",
    metadata,
    Column("run_id", String(40), primary_key=True),
    Column("path", String(160), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("due_at", BigInteger, nullable=False),
    Index("timers_due", "due_at"),
)
"""``kind``: retry, duration, approval (of a step) or wall (of the run, with an empty path)."""
