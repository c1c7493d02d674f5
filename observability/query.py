"""What may be asked of the record: filters, cursors, and the SQL they become. Values are always bound, never spliced."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import msgspec

from observability.dayfile import day_of
from observability.errors import InvalidFilterError
from observability.rollup import MINUTE_NS
from observability.schema import trace_key

Outcome = Literal["", "ok", "error", "refused", "cancelled"]
_OUTCOMES: dict[str, str] = {
    "ok": "status < 400",
    "error": "status >= 400",
    "refused": "status IN (401, 403, 429)",
    "cancelled": "status = 499",
}


class EveryTenant:
    """The scope of an administrator. A type of its own, so that a forgotten tenant can never mean "all"."""

    def __repr__(self) -> str:
        return "EVERY_TENANT"


EVERY_TENANT: Final = EveryTenant()
TenantScope = str | EveryTenant


@dataclass(frozen=True, slots=True)
class CallFilter:
    """Which calls. An empty field does not filter; all that are given must hold."""

    model: str = ""
    """The alias. What a caller asked for in vain is found by ``text``."""
    target: str = ""
    """A target's name, or a pool's: ``sim`` finds ``sim/sim-0``."""
    outcome: Outcome = ""
    status: int = 0
    team: str = ""
    key_id: str = ""
    run_id: str = ""
    session: str = ""
    policy: str = ""
    """A policy's name, or ``*`` for any hit."""
    simulated: bool | None = None
    min_cost_usd_micros: int = 0
    min_duration_us: int = 0
    since_ns: int = 0
    until_ns: int = 0
    text: str = ""
    """Part of a trace or request id, or a whole key id, session, run id, end user, step or asked model."""

    @property
    def only_rolled_up(self) -> bool:
        """Can the minute rollups answer for it?"""
        rolled = CallFilter(
            model=self.model, since_ns=self.since_ns, until_ns=self.until_ns, simulated=self.simulated
        )
        return self == rolled and self.since_ns % MINUTE_NS == self.until_ns % MINUTE_NS == 0


class Cursor(NamedTuple):
    """The last row of a page; the next page begins after it."""

    start_ns: int
    day: dt.date
    row_id: int

    def encode(self) -> str:
        """Return the cursor as text that is safe in a URL."""
        return f"{self.start_ns:x}-{self.day.toordinal():x}-{self.row_id:x}"

    @classmethod
    def decode(cls, text: str) -> Cursor:
        """Return a cursor from its text; raise :class:`InvalidFilterError` for any other text."""
        try:
            start, day, row_id = (int(part, 16) for part in text.split("-"))
            if not (0 <= start < 1 << 63 and 0 <= row_id < 1 << 63):
                raise ValueError(text)
            return cls(start, dt.date.fromordinal(day), row_id)
        except (ValueError, OverflowError) as error:
            raise InvalidFilterError("The cursor is not one that a page gave out.", param="cursor") from error


class CallSummary(msgspec.Struct, kw_only=True):
    """A call as lists show it."""

    id: str
    """The cursor of this row."""
    trace_id: str
    span_id: str
    request_id: str
    tenant: str
    team: str
    key_id: str
    end_user: str
    session: str
    operation: str
    model: str
    alias: str
    target: str
    run_id: str
    step: str
    status: int
    error_code: str
    policy_hit: str
    stream: bool
    simulated: bool
    started_unix_ns: int
    duration_us: int
    ttft_us: int
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    cost_usd_micros: int
    attempts: int


SUMMARY_COLUMNS = (
    "id, start_ns, trace_id, span_id, request_id, tenant, team, key_id, end_user, session, operation, model, alias, "
    "target, run_id, step, status, error_code, policy_hit, stream, simulated, duration_us, ttft_us, input_tokens, "
    "output_tokens, cached_tokens, cost_usd_micros, attempts"
)
_NAMES = tuple(name.strip() for name in SUMMARY_COLUMNS.split(","))


def summary(day: dt.date, row: tuple[Any, ...]) -> tuple[Cursor, CallSummary]:
    """Return a row of :data:`SUMMARY_COLUMNS` as a summary, with its place in the order of all days."""
    values = dict(zip(_NAMES, row, strict=True))
    cursor = Cursor(values.pop("start_ns"), day, values.pop("id"))
    values["stream"] = bool(values["stream"])
    values["simulated"] = bool(values["simulated"])
    return cursor, CallSummary(id=cursor.encode(), started_unix_ns=cursor.start_ns, **values)


def where(tenant: TenantScope, filters: CallFilter) -> tuple[str, list[Any]]:
    """Return the condition (without ``WHERE``) and its values. The tenant is always part of it."""
    terms: list[str] = []
    values: list[Any] = []

    def add(term: str, *bound: Any) -> None:
        terms.append(term)
        values.extend(bound)

    # A unary plus keeps SQLite from walking a tenant's whole day where a narrower index is at hand.
    narrow = bool(filters.run_id or filters.session or len(filters.text) == 32)
    if isinstance(tenant, str):
        add("+tenant = ?" if narrow else "tenant = ?", tenant)
    for column, value in (("alias", filters.model), ("team", filters.team), ("key_id", filters.key_id)):
        if value:
            add(f"{column} = ?", value)
    for column, value in (("run_id", filters.run_id), ("session", filters.session)):
        if value:  # the second term lets the partial index serve
            add(f"{column} = ? AND {column} <> ''", value)
    if filters.target:
        add(
            "(target = ? OR substr(target, 1, ?) = ?)",
            filters.target,
            len(filters.target) + 1,
            filters.target + "/",
        )
    if filters.outcome:
        add(_OUTCOMES[filters.outcome])
    if filters.status:
        add("status = ?", filters.status)
    if filters.policy == "*":
        add("policy_hit <> ''")
    elif filters.policy:
        add("policy_hit = ?", filters.policy)
    if filters.simulated is not None:
        add("simulated = ?", int(filters.simulated))
    if filters.min_cost_usd_micros:
        add("cost_usd_micros >= ?", filters.min_cost_usd_micros)
    if filters.min_duration_us:
        add("duration_us >= ?", filters.min_duration_us)
    if filters.since_ns:
        add("start_ns >= ?", filters.since_ns)
    if filters.until_ns:
        add("start_ns < ?", filters.until_ns)
    if filters.text:
        _text(filters.text.strip(), add)
    return " AND ".join(terms) or "1", values


def _text(text: str, add: Any) -> None:
    lower = text.lower()
    if len(lower) == 32 and all(c in "0123456789abcdef" for c in lower):
        add("trace_key = ? AND trace_id = ?", trace_key(lower), lower)
    else:
        add(
            "(instr(trace_id, ?) OR instr(request_id, ?) OR key_id = ? OR session = ? OR run_id = ? OR end_user = ? "
            "OR step = ? OR model = ?)",
            lower, lower, text, text, text, text, text, text,
        )  # fmt: skip


def after(cursor: Cursor, day: dt.date) -> tuple[str, list[Any]]:
    """Return the condition that a row of this day's file comes after the cursor, newest first."""
    if day < cursor.day:
        return "start_ns <= ?", [cursor.start_ns]
    if day > cursor.day:
        return "start_ns < ?", [cursor.start_ns]
    return "(start_ns < ? OR (start_ns = ? AND id < ?))", [cursor.start_ns, cursor.start_ns, cursor.row_id]


def holds(day: dt.date, since_ns: int, until_ns: int) -> bool:
    """Can the file of ``day`` hold calls that began within the range?

    A call stands in the file of the day on which it was committed: that of its start, or the next.
    """
    if since_ns and day < day_of(since_ns):
        return False
    return not (until_ns and day > day_of(until_ns) + dt.timedelta(days=1))
