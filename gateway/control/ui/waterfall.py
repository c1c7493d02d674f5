"""Where the time went: rows of a waterfall, for one call and for a whole trace. Positions are thousandths of its width."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.control.ui.explain import outcome_words
from gateway.control.ui.words import status_tone
from observability.record import CallRecord, SpanRecord
from observability.store import Trace

WIDTH = 1_000
_THINNEST = 3.0
_MOST_ROWS = 400

_STAGES = {
    "auth": "Authenticate",
    "understand": "Read the request",
    "admit": "Limits and budgets",
    "policy": "Policy",
    "prompt": "Policy",
    "route": "Choose and queue",
    "connect": "Connect",
    "first_byte": "Wait for the first byte",
    "last_byte": "Receive the answer",
    "settle": "Settle",
    "end": "Finish",
}
_UPSTREAM = frozenset({"first_byte", "last_byte", "route"})


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar within a row: from ``x``, ``width`` wide, in a tone of the style sheet."""

    x: float
    width: float
    tone: str


@dataclass(frozen=True, slots=True)
class Row:
    """One line: what it was, how deep it is nested, its bars, when it began and how long it took (µs)."""

    label: str
    depth: int
    bars: tuple[Bar, ...]
    at_us: int
    took_us: int
    note: str = ""
    href: str = ""
    simulated: bool = False


def _bar(at: float, took: float, whole: float, tone: str) -> Bar:
    width = max(took / whole * WIDTH, _THINNEST) if whole else WIDTH
    return Bar(
        round(min(at / whole * WIDTH if whole else 0, WIDTH - _THINNEST), 1),
        round(min(width, WIDTH), 1),
        tone,
    )


def of_call(call: CallRecord) -> list[Row]:
    """Return the stages of a call, one after another, and its attempts under the stage in which they were made."""
    whole = max(call.duration_us, *call.marks.values(), 1) if call.marks else max(call.duration_us, 1)
    marks = sorted(call.marks.items(), key=lambda item: item[1])
    rows: list[Row] = []
    begin = 0
    attempts = _attempts(call, whole)
    for name, end in marks:
        # Bookkeeping of less than a fiftieth of the whole says nothing and fills the page.
        if name == "end" and end - begin < whole / 50:
            continue
        tone = "upstream" if name in _UPSTREAM else "stage"
        bar = _bar(begin, end - begin, whole, tone)
        rows.append(
            Row(_STAGES.get(name, name.replace("_", " ").capitalize()), 0, (bar,), begin, end - begin)
        )
        inside = [row for row in attempts if row.at_us < end or name == marks[-1][0]]
        attempts = attempts[len(inside) :]
        rows += inside
        begin = end
    return rows + attempts


def _attempts(call: CallRecord, whole: int) -> list[Row]:
    rows = []
    for attempt in call.attempts:
        tone = "ok" if attempt.outcome == "ok" else "bad"
        bars = []
        if attempt.wait_us:
            bars.append(_bar(attempt.at_us, attempt.wait_us, whole, "wait"))
        first = attempt.first_byte_us or attempt.duration_us
        bars.append(
            _bar(attempt.at_us + attempt.wait_us, max(first - attempt.wait_us, 0), whole, f"{tone}-thin")
        )
        if attempt.duration_us > first:
            bars.append(_bar(attempt.at_us + first, attempt.duration_us - first, whole, tone))
        rows.append(
            Row(
                attempt.target,
                1,
                tuple(bars),
                attempt.at_us,
                attempt.duration_us,
                outcome_words(attempt),
                simulated=attempt.simulated or call.simulated,
            )
        )
    return sorted(rows, key=lambda row: row.at_us)


def of_trace(found: Trace) -> tuple[list[Row], int]:
    """Return rows for calls and run spans of a trace, children under their parents, and how many were left out."""
    items: list[CallRecord | SpanRecord] = [stored.record for stored in found.calls]
    items += found.spans
    items.sort(key=lambda item: item.started_unix_ns)
    if not items:
        return [], 0
    begin = items[0].started_unix_ns
    whole = max(max(i.started_unix_ns - begin + i.duration_us * 1_000 for i in items) // 1_000, 1)
    known = {item.span_id for item in items}
    children: dict[str, list[CallRecord | SpanRecord]] = {}
    for item in items:
        parent = (
            item.parent_span_id
            if item.parent_span_id in known and item.parent_span_id != item.span_id
            else ""
        )
        children.setdefault(parent, []).append(item)
    rows: list[Row] = []
    waiting = [(item, 0) for item in reversed(children.get("", []))]
    while waiting and len(rows) < _MOST_ROWS:
        item, depth = waiting.pop()
        rows.append(_item(item, depth, begin, whole))
        waiting += [(child, depth + 1) for child in reversed(children.pop(item.span_id, []))]
    return rows, len(items) - len(rows)


def _item(item: CallRecord | SpanRecord, depth: int, begin: int, whole: int) -> Row:
    at = (item.started_unix_ns - begin) // 1_000
    if isinstance(item, CallRecord):
        tone = {"ok": "ok", "warn": "warn", "bad": "bad"}[status_tone(item.status)]
        note = str(item.status) if item.status >= 400 else item.target
        href = f"/ui/traces/{item.trace_id}?span={item.span_id}"
        label = f"{item.operation} {item.alias or item.model}"
        return Row(
            label,
            depth,
            (_bar(at, item.duration_us, whole, tone),),
            at,
            item.duration_us,
            note,
            href,
            item.simulated,
        )
    tone = "bad" if item.state in ("failed", "cancelled", "needs_review") else "stage"
    href = f"/ui/runs/{item.run_id}" if item.run_id else ""
    label = f"{item.kind} {item.name}"
    return Row(
        label, depth, (_bar(at, item.duration_us, whole, tone),), at, item.duration_us, item.state, href
    )
