"""What people may read of the record: the questions behind ``/admin/v1/traces``, ``/admin/v1/usage`` and the dashboard.

The JSON API and the pages call the same functions, so that a page never shows what the API does not.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import re
import time
from typing import Annotated, Any, Protocol

import msgspec
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from airi.errors import PermissionDeniedError
from observability.errors import InvalidFilterError
from observability.query import EVERY_TENANT, CallFilter, Outcome, TenantScope
from observability.series import GroupBy, Point
from observability.store import CallPage, RecordStore, StoredCall, Trace
from observability.writer_client import WriterClient

MINUTE_S = 60
_RELATIVE = re.compile(r"(\d{1,4})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_STEPS_S = (1, 5, 15, 60, 300, 900, 1_800, 3_600, 10_800, 21_600, 86_400)
_MOST_BARS = 64
_MOST_POINTS = 2_000


class Reader(Protocol):
    """Who asks: what :class:`gateway.control.auth.Principal` says of tenant and reach."""

    @property
    def tenant(self) -> str | None:
        """The tenant of the reader's key."""

    @property
    def platform(self) -> bool:
        """Whether the reader acts for all tenants."""


def scope_of(reader: Reader, wanted: str = "") -> TenantScope:
    """Return whose records this reader sees: a key's own tenant, or for the platform's all, or the one wanted.

    A key that is of no tenant and not the platform's sees nothing.
    """
    if reader.platform:
        return wanted or EVERY_TENANT
    if not reader.tenant:
        raise PermissionDeniedError("this key belongs to no tenant")
    return reader.tenant


def _empty_to_none(value: Any) -> Any:
    return None if value == "" else value


def parse_time(text: str, now_s: float) -> int:
    """Return Unix seconds from ``15m``, ``24h``, ``7d`` (ago), Unix seconds or ISO 8601; 0 for nothing or ``all``."""
    if text in ("", "all"):
        return 0
    match = _RELATIVE.fullmatch(text)
    if match:
        return int(now_s) - int(match[1]) * _SECONDS[match[2]]
    try:
        if text.isascii() and text.isdigit() and len(text) <= 10:
            return int(text)
        moment = dt.datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=dt.UTC)
        return max(0, int(moment.timestamp()))
    except (ValueError, OverflowError) as error:
        raise InvalidFilterError(
            f"Expected a time such as 15m, 24h, 2026-11-20T08:00:00Z or Unix seconds, got {text[:40]!r}.",
            param="since",
        ) from error


Number = Annotated[float | None, BeforeValidator(_empty_to_none)]
Text = Annotated[str, Field(max_length=256)]


class CallsQuery(BaseModel):
    """The filters of a list of calls, as they stand in a URL."""

    model_config = ConfigDict(extra="forbid")

    tenant: Text = ""
    model: Text = ""
    target: Text = ""
    outcome: Outcome = ""
    status: Annotated[int | None, BeforeValidator(_empty_to_none), Field(ge=100, le=599)] = None
    team: Text = ""
    key: Text = ""
    run: Text = ""
    session: Text = ""
    policy: Text = ""
    """A policy's name; ``*`` for any hit."""
    simulated: Annotated[bool | None, BeforeValidator(_empty_to_none)] = None
    min_cost_usd: Annotated[Number, Field(ge=0, le=1e6)] = None
    min_duration_ms: Annotated[Number, Field(ge=0, le=1e9)] = None
    since: Text = ""
    """``15m``, ``24h``, ``7d`` ago, Unix seconds, ISO 8601, or ``all``."""
    until: Text = ""
    q: Text = ""
    """Part of a trace or request id, or a whole key, session, run, user, step or asked model."""
    limit: Annotated[int, Field(ge=1, le=500)] = 50
    cursor: Text = ""

    def filters(self, now_s: float | None = None) -> CallFilter:
        """Return what the store is asked. A relative ``since`` begins at a whole minute, so that rollups can answer."""
        now = time.time() if now_s is None else now_s
        since = parse_time(self.since, now)
        if _RELATIVE.fullmatch(self.since):
            since -= since % MINUTE_S
        return CallFilter(
            model=self.model,
            target=self.target,
            outcome=self.outcome,
            status=self.status or 0,
            team=self.team,
            key_id=self.key,
            run_id=self.run,
            session=self.session,
            policy=self.policy,
            simulated=self.simulated,
            min_cost_usd_micros=round((self.min_cost_usd or 0) * 1_000_000),
            min_duration_us=round((self.min_duration_ms or 0) * 1_000),
            since_ns=since * 1_000_000_000,
            until_ns=parse_time(self.until, now) * 1_000_000_000,
            text=self.q,
        )


class UsageQuery(BaseModel):
    """The range and grouping of a usage series."""

    model_config = ConfigDict(extra="forbid")

    tenant: Text = ""
    model: Text = ""
    since: Text = "24h"
    until: Text = ""
    step: Annotated[int, Field(ge=60, le=86_400, multiple_of=60)] = 3_600
    """Seconds; whole minutes."""
    by: GroupBy = "total"


class Records:
    """Questions to the record store (in threads) and to the writer (over its socket)."""

    def __init__(self, store: RecordStore, writer: WriterClient) -> None:
        self._store = store
        self.writer = writer

    async def calls(self, reader: Reader, query: CallsQuery) -> CallPage:
        """Return a page of finished calls, newest first."""
        scope = scope_of(reader, query.tenant)
        return await asyncio.to_thread(
            self._store.calls, scope, query.filters(), limit=query.limit, cursor=query.cursor
        )

    async def histogram(self, reader: Reader, query: CallsQuery) -> dict[str, Any]:
        """Return ``{"since", "until", "step", "bars": [{at, calls, errors}]}`` of what the filters find."""
        now = time.time()
        filters = query.filters(now)
        since = filters.since_ns // 1_000_000_000 or int(now) - 86_400
        until = filters.until_ns // 1_000_000_000 or int(now) + 1
        step = next((s for s in _STEPS_S if (until - since) / s <= _MOST_BARS), _STEPS_S[-1])
        bounded = CallFilter(
            **{
                **{name: getattr(filters, name) for name in CallFilter.__slots__},
                "since_ns": since * 1_000_000_000,
            }
        )
        bars = await asyncio.to_thread(
            self._store.histogram, scope_of(reader, query.tenant), bounded, step_s=step
        )
        return {
            "since": since,
            "until": until,
            "step": step,
            "bars": [msgspec.structs.asdict(bar) for bar in bars],
        }

    async def live(self, reader: Reader, tenant: str = "") -> list[dict[str, Any]]:
        """Return calls in flight, newest first."""
        return await self.writer.live(scope_of(reader, tenant))

    async def trace(self, reader: Reader, trace_id: str) -> Trace:
        """Return one trace; raise :class:`UnknownTraceError` for what is not there or not the reader's."""
        return await asyncio.to_thread(self._store.trace, scope_of(reader), trace_id)

    async def run(self, reader: Reader, run_id: str) -> Trace:
        """Return the records of a run."""
        return await asyncio.to_thread(self._store.run, scope_of(reader), run_id)

    async def content(self, reader: Reader, trace_id: str, span_id: str) -> dict[str, Any] | None:
        """Return one call's masked content, ``None`` where none was kept."""
        return await asyncio.to_thread(self._store.content, scope_of(reader), trace_id, span_id)

    async def models(self, reader: Reader) -> list[str]:
        """Return the models that were called in the last week."""
        since = (int(time.time()) - 7 * 86_400) * 1_000_000_000
        return await asyncio.to_thread(self._store.models, scope_of(reader), since)

    async def usage(self, reader: Reader, query: UsageQuery) -> list[Point]:
        """Return sums over time; raise :class:`InvalidFilterError` for more than 2,000 steps."""
        now = time.time()
        since = parse_time(query.since, now)
        until = parse_time(query.until, now) or int(now) + 1
        if (until - since) / query.step > _MOST_POINTS:
            raise InvalidFilterError(
                f"That is more than {_MOST_POINTS} steps; take a larger 'step' or a later 'since'.",
                param="step",
            )
        return await asyncio.to_thread(
            self._store.series,
            scope_of(reader, query.tenant),
            since * 1_000_000_000,
            until * 1_000_000_000,
            step_s=query.step,
            by=query.by,
            model=query.model,
        )


def call_json(stored: StoredCall) -> dict[str, Any]:
    """Return a whole record as the API gives it."""
    return {**msgspec.to_builtins(_named(stored.record)), "has_content": stored.has_content}


def _named(value: Any) -> Any:
    """Return a record as nested dicts: on disk it is an array, for people it has names."""
    if isinstance(value, msgspec.Struct):
        return {name: _named(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, list):
        return [_named(item) for item in value]
    return value


def trace_json(trace_id: str, found: Trace) -> dict[str, Any]:
    """Return a trace as the API gives it."""
    return {
        "object": "trace",
        "trace_id": trace_id,
        "calls": [call_json(call) for call in found.calls],
        "spans": [_named(span) for span in found.spans],
        "cut": found.cut,
    }
