"""What tests of admission share: a configuration, an admission on a real Redis, requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import redis
from sqlalchemy import Engine

from airi.config.document import ConfigDocument
from airi.config.kinds import Tenant
from airi.database import migrate, open_engine
from airi.ids import new_id
from airi.keys.record import KeyBudget, KeyLimits, KeyRecord
from airi.redis_pipeline import PipelinedRedis, PipelineOptions
from policies.admission import SCRIPTS, Admission, AdmissionOptions, AdmissionRequest
from policies.epoch import rebuild
from policies.limits import LimitTable, Scopes
from policies.migrations import MIGRATIONS


def engine(url: str) -> Engine:
    opened = open_engine(url, full_sync=False)
    migrate(opened, "policies", MIGRATIONS)
    return opened


def key(**fields: Any) -> KeyRecord:
    return KeyRecord(id=fields.pop("id", "k1"), tenant="acme", digest=b"", **fields)


def scopes(
    tenant: dict[str, Any] | None = None,
    *,
    team: str | None = None,
    model: str = "m",
    key_limits: dict[str, Any] | None = None,
    key_budgets: tuple[KeyBudget, ...] = (),
    key_id: str = "k1",
) -> Scopes:
    resource = Tenant.model_validate({"kind": "Tenant", "metadata": {"name": "acme"}, **(tenant or {})})
    record = key(id=key_id, limits=KeyLimits(**(key_limits or {})), budgets=key_budgets)
    return LimitTable(ConfigDocument.of([resource])).scopes_for("acme", team, record, None, model)


def ask(of: Scopes, **fields: Any) -> AdmissionRequest:
    defaults: dict[str, Any] = {"reservation_id": new_id("res"), "scopes": of, "estimated_tokens": 100}
    return AdmissionRequest(**(defaults | fields))


def money(
    of: Scopes, *, input_usd: int = 100, price: int = 1_000_000, output: int = 400, **fields: Any
) -> AdmissionRequest:
    """A call whose worst case is ``input_usd`` + ``output`` micro-dollars at the default price (1 each token)."""
    estimate = fields.pop("estimate_usd_micros", input_usd + output // 4)
    return ask(
        of,
        input_usd_micros=input_usd,
        output_usd_micros_per_million=price,
        output_tokens=output,
        estimate_usd_micros=estimate,
        **fields,
    )


@asynccontextmanager
async def admission(
    url: str,
    process: str = "p1",
    *,
    options: AdmissionOptions | None = None,
    pipeline: PipelineOptions | None = None,
) -> AsyncIterator[Admission]:
    connection = PipelinedRedis(url, SCRIPTS.all(), pipeline)
    await connection.connect()
    service = Admission(connection, process, options or AdmissionOptions(beat_ms=50, rebuild_beat_ms=20))
    await service.start()
    try:
        yield service
    finally:
        await service.close()
        await connection.close()


def built(url: str, sql: Engine) -> redis.Redis:
    """Build money for an empty Redis; return a client."""
    client = redis.Redis.from_url(url)
    rebuild(sql, client, wait_s=0)
    return client


async def until(condition: Callable[[], bool], within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "condition not met in time"
        await asyncio.sleep(0.01)
