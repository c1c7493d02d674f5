"""Questions to the day files. Reads only, in the caller's thread; every question names whose records it may see."""

from __future__ import annotations

import datetime as dt
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from observability import content, dayfile
from observability.dayread import read
from observability.errors import UnknownTraceError
from observability.query import (
    SUMMARY_COLUMNS,
    CallFilter,
    CallSummary,
    Cursor,
    TenantScope,
    after,
    holds,
    summary,
    where,
)
from observability.record import CallRecord, SpanRecord
from observability.schema import trace_key
from observability.series import (
    Bar,
    GroupBy,
    Point,
    Question,
    Sums,
    add_bars_of_calls,
    add_bars_of_rollups,
    add_rollups,
    models_of,
)

_MOST_ROWS = 500
_MOST_OF_A_TRACE = 5_000


class CallPage(msgspec.Struct):
    """A page of calls, newest first. ``next_cursor`` is empty on the last page."""

    data: list[CallSummary]
    next_cursor: str


class StoredCall(msgspec.Struct):
    """A whole record, and whether its content was kept."""

    record: CallRecord
    has_content: bool


class Trace(msgspec.Struct):
    """What belongs together: calls and run spans in order of their start. ``cut``: there were too many to show."""

    calls: list[StoredCall]
    spans: list[SpanRecord]
    cut: bool = False


class RecordStore:
    """The records under ``folder``. Safe to use from several threads: each question opens its own connection."""

    def __init__(self, folder: Path, deadline_s: float = 5.0) -> None:
        self._folder = folder
        self._deadline_s = deadline_s

    def calls(
        self, tenant: TenantScope, filters: CallFilter, *, limit: int = 50, cursor: str = ""
    ) -> CallPage:
        """Return a page of calls, newest first.

        Raises :class:`InvalidFilterError` for a cursor that none gave out, :class:`QueryTooLargeError` when the
        deadline passes.
        """
        limit = max(1, min(limit, _MOST_ROWS))
        begin = Cursor.decode(cursor) if cursor else None
        until_ns = (
            min(filters.until_ns or begin.start_ns + 1, begin.start_ns + 1) if begin else filters.until_ns
        )
        condition, values = where(tenant, filters)
        rows: list[tuple[Cursor, CallSummary]] = []
        for day, path in dayfile.days(self._folder):
            if not holds(day, filters.since_ns, until_ns):
                continue
            # No file of this day or an earlier one holds a call that began after this day's end.
            if len(rows) > limit and rows[limit][0].start_ns >= dayfile.start_of_day_ns(
                day + dt.timedelta(days=1)
            ):
                break
            terms, bound = condition, list(values)
            if begin is not None:
                more, more_values = after(begin, day)
                terms, bound = f"{terms} AND {more}", bound + more_values
            # ``where`` and ``after`` return constants with placeholders.
            sql = f"SELECT {SUMMARY_COLUMNS} FROM calls WHERE {terms} ORDER BY start_ns DESC, id DESC LIMIT ?"  # noqa: S608
            found = self._rows(path, sql, (*bound, limit + 1))
            rows += (summary(day, row) for row in found)
            rows.sort(key=lambda item: item[0], reverse=True)
            del rows[limit + 1 :]
        page = [item for _, item in rows[:limit]]
        return CallPage(page, page[-1].id if len(rows) > limit else "")

    def trace(self, tenant: TenantScope, trace_id: str) -> Trace:
        """Return what is recorded under a trace id; raise :class:`UnknownTraceError` when that is nothing."""
        trace_id = trace_id.lower()
        found = self._gather(tenant, "trace_key = ? AND trace_id = ?", (trace_key(trace_id), trace_id))
        if not found.calls and not found.spans:
            raise UnknownTraceError("There is no record of this trace.", param="trace_id")
        return found

    def run(self, tenant: TenantScope, run_id: str) -> Trace:
        """Return what a run's steps did: model calls and spans. Empty when nothing is recorded (yet)."""
        return self._gather(tenant, "run_id = ? AND run_id <> ''", (run_id,))

    def content(self, tenant: TenantScope, trace_id: str, span_id: str) -> dict[str, Any] | None:
        """Return ``{"request", "response"}`` of one call as they were kept, masked; ``None`` when they were not."""
        sql = (
            "SELECT request_ref, response_ref FROM calls WHERE trace_key = ? AND trace_id = ? AND span_id = ?"
        )
        bound: tuple[Any, ...] = (trace_key(trace_id), trace_id, span_id)
        if isinstance(tenant, str):
            sql, bound = sql + " AND +tenant = ?", (*bound, tenant)

        def ask(db: sqlite3.Connection) -> dict[str, Any] | None:
            row = db.execute(sql, bound).fetchone()
            if row is None or not (row[0] or row[1]):
                return None
            return {"request": content.load(db, row[0]), "response": content.load(db, row[1])}

        for _, path in dayfile.days(self._folder):
            kept = read(path, self._deadline_s, ask, None)
            if kept is not None:
                return kept
        return None

    def series(
        self,
        tenant: TenantScope,
        since_ns: int,
        until_ns: int,
        *,
        step_s: int,
        by: GroupBy = "total",
        model: str = "",
    ) -> list[Point]:
        """Return rollups summed over steps of whole minutes, in order of time, grouped by one dimension."""
        asked = Question(tenant, since_ns, until_ns, step_s, by, model)
        sums = Sums()
        self._each_day(since_ns, until_ns, lambda db: add_rollups(db, asked, sums))
        return sums.points(step_s)

    def histogram(self, tenant: TenantScope, filters: CallFilter, *, step_s: int) -> list[Bar]:
        """Return counts and errors of the calls a filter finds, by step, for the chart above the list."""
        sums: dict[int, list[int]] = {}
        if filters.only_rolled_up and step_s % 60 == 0:
            self._each_day(
                filters.since_ns,
                filters.until_ns,
                lambda db: add_bars_of_rollups(db, tenant, filters, step_s, sums),
            )
        else:
            self._each_day(
                filters.since_ns,
                filters.until_ns,
                lambda db: add_bars_of_calls(db, tenant, filters, step_s, sums),
            )
        return [Bar(at, *counts) for at, counts in sorted(sums.items())]

    def models(self, tenant: TenantScope, since_ns: int) -> list[str]:
        """Return the models that were called since a time, for a filter's choices."""
        names: set[str] = set()
        self._each_day(since_ns, 0, lambda db: names.update(models_of(db, tenant, since_ns)))
        return sorted(names)

    def _each_day(self, since_ns: int, until_ns: int, ask: Callable[[sqlite3.Connection], None]) -> None:
        for day, path in dayfile.days(self._folder):
            if holds(day, since_ns, until_ns):
                read(path, self._deadline_s, ask, None)

    def _rows(self, path: Path, sql: str, bound: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        return read(path, self._deadline_s, lambda db: db.execute(sql, bound).fetchall(), [])

    def _gather(self, tenant: TenantScope, condition: str, bound: tuple[Any, ...]) -> Trace:
        if isinstance(tenant, str):
            condition, bound = f"{condition} AND +tenant = ?", (*bound, tenant)
        calls: list[StoredCall] = []
        spans: list[SpanRecord] = []
        cut = False
        # ``condition`` is one of this class's constants.
        read_calls = (
            f"SELECT body, request_ref IS NOT NULL OR response_ref IS NOT NULL FROM calls JOIN bodies USING (id) "  # noqa: S608
            f"WHERE {condition} ORDER BY id LIMIT ?"
        )
        read_spans = f"SELECT body FROM spans WHERE {condition} ORDER BY id LIMIT ?"  # noqa: S608
        for _, path in dayfile.days(self._folder):
            limit = max(_MOST_OF_A_TRACE - len(calls) - len(spans) + 1, 0)
            for body, kept in self._rows(path, read_calls, (*bound, limit)):
                calls.append(StoredCall(dayfile.call_decoder.decode(body), bool(kept)))
            limit = max(_MOST_OF_A_TRACE - len(calls) - len(spans) + 1, 0)
            for (body,) in self._rows(path, read_spans, (*bound, limit)):
                spans.append(dayfile.span_decoder.decode(body))
            if len(calls) + len(spans) > _MOST_OF_A_TRACE:
                cut = True
                break
        calls.sort(key=lambda call: call.record.started_unix_ns)
        spans.sort(key=lambda span: span.started_unix_ns)
        return Trace(calls, spans, cut)
