"""Sums over time: from the minute rollups where they can answer, from the calls where a filter is finer."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from observability.histogram import BUCKETS, quantile_us
from observability.query import CallFilter, TenantScope, where
from observability.rollup import MINUTE_NS
from observability.schema import ROLLUP_SUMS

GroupBy = Literal["total", "tenant", "model", "target"]
_SUMS = ", ".join(f"sum({name})" for name in ROLLUP_SUMS)


class Point(msgspec.Struct, kw_only=True):
    """Sums of one step for one group. ``at`` is the step's start, seconds since 1970."""

    at: int
    group: str
    calls: int
    errors: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost_usd_micros: int
    mean_duration_us: int
    p50_duration_us: int
    p95_duration_us: int
    p99_duration_us: int
    p50_ttft_us: int
    p95_ttft_us: int


class Bar(msgspec.Struct):
    """How many calls began in a step, and how many of them failed."""

    at: int
    calls: int
    errors: int


@dataclass(frozen=True, slots=True)
class Question:
    """What to sum: whose, from when to when, in which steps, by what."""

    tenant: TenantScope
    since_ns: int
    until_ns: int
    step_s: int
    by: GroupBy
    model: str = ""


@dataclass(slots=True)
class Sums:
    """Sums by (step, group) over several files."""

    rows: dict[tuple[int, str], list[int]] = field(default_factory=dict)

    def add(self, step: int, group: str, values: tuple[int, ...]) -> None:
        """Add one file's sums."""
        row = self.rows.setdefault((step, group), [0] * len(ROLLUP_SUMS))
        for index, value in enumerate(values):
            row[index] += value

    def points(self, step_s: int) -> list[Point]:
        """Return the sums as points, in order of time and group."""
        return [_point(step * step_s, group, row) for (step, group), row in sorted(self.rows.items())]


def _point(at: int, group: str, row: list[int]) -> Point:
    calls, errors, input_tokens, output_tokens, cached, cost, duration = row[:7]
    durations, ttfts = row[7 : 7 + BUCKETS], row[7 + BUCKETS :]
    return Point(
        at=at,
        group=group,
        calls=calls,
        errors=errors,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        cached_tokens=cached,
        cost_usd_micros=cost,
        mean_duration_us=round(duration / calls) if calls else 0,
        p50_duration_us=quantile_us(durations, 0.5),
        p95_duration_us=quantile_us(durations, 0.95),
        p99_duration_us=quantile_us(durations, 0.99),
        p50_ttft_us=quantile_us(ttfts, 0.5),
        p95_ttft_us=quantile_us(ttfts, 0.95),
    )


def _scope(tenant: TenantScope, since_ns: int, until_ns: int, model: str) -> tuple[str, list[Any]]:
    """Return a condition on rollups. A step's edges are whole minutes: the minute of ``since`` counts in full."""
    terms, values = ["minute >= ?"], [since_ns // MINUTE_NS]
    bound: list[Any] = list(values)
    if until_ns:
        terms.append("minute < ?")
        bound.append(-(-until_ns // MINUTE_NS))
    if isinstance(tenant, str):
        terms.append("tenant = ?")
        bound.append(tenant)
    if model:
        terms.append("model = ?")
        bound.append(model)
    return " AND ".join(terms), bound


def add_rollups(db: sqlite3.Connection, asked: Question, sums: Sums) -> None:
    """Add one day's rollups."""
    condition, bound = _scope(asked.tenant, asked.since_ns, asked.until_ns, asked.model)
    group = "''" if asked.by == "total" else asked.by
    sql = f"SELECT minute * 60 / ? AS step, {group}, {_SUMS} FROM rollups WHERE {condition} GROUP BY 1, 2"  # noqa: S608
    for step, name, *values in db.execute(sql, (asked.step_s, *bound)).fetchall():
        sums.add(step, name, tuple(values))


def add_bars_of_rollups(
    db: sqlite3.Connection, tenant: TenantScope, filters: CallFilter, step_s: int, sums: dict[int, list[int]]
) -> None:
    """Add one day's counts by step, from rollups."""
    condition, bound = _scope(tenant, filters.since_ns, filters.until_ns, filters.model)
    if filters.simulated is not None:
        condition += " AND simulated = ?"
        bound.append(int(filters.simulated))
    sql = f"SELECT minute * 60 / ? * ?, sum(calls), sum(errors) FROM rollups WHERE {condition} GROUP BY 1"  # noqa: S608
    _add_bars(db.execute(sql, (step_s, step_s, *bound)).fetchall(), sums)


def add_bars_of_calls(
    db: sqlite3.Connection, tenant: TenantScope, filters: CallFilter, step_s: int, sums: dict[int, list[int]]
) -> None:
    """Add one day's counts by step, from the calls themselves."""
    condition, bound = where(tenant, filters)
    sql = f"SELECT start_ns / ? * ?, count(*), sum(status >= 400) FROM calls WHERE {condition} GROUP BY 1"  # noqa: S608
    _add_bars(db.execute(sql, (step_s * 1_000_000_000, step_s, *bound)).fetchall(), sums)


def _add_bars(rows: Iterable[tuple[int, int, int]], sums: dict[int, list[int]]) -> None:
    for at, calls, errors in rows:
        row = sums.setdefault(at, [0, 0])
        row[0] += calls
        row[1] += errors


def models_of(db: sqlite3.Connection, tenant: TenantScope, since_ns: int) -> list[str]:
    """Return the models of one day's rollups."""
    condition, bound = _scope(tenant, since_ns, 0, "")
    sql = f"SELECT DISTINCT model FROM rollups WHERE {condition} AND model <> ''"  # noqa: S608
    return [name for (name,) in db.execute(sql, bound).fetchall()]
