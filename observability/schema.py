"""Tables of one day's file. Plain SQLite: these files are the embedded store and nothing else reads them.

``calls`` holds what lists filter by, in narrow rows, so that a scan stays cheap; ``bodies`` holds the whole record
under the same rowid. Rows are only appended. ``trace_key`` is an integer made of the trace id: our own ids begin
with the time, so the index grows at its right edge, where a random 32-digit key would touch a page a row.
"""

from __future__ import annotations

from observability.histogram import BUCKETS

VERSION = 1

CALL_COLUMNS: tuple[tuple[str, str], ...] = (
    ("tenant", "TEXT"),
    ("start_ns", "INTEGER"),
    ("duration_us", "INTEGER"),
    ("status", "INTEGER"),
    ("trace_key", "INTEGER"),
    ("trace_id", "TEXT"),
    ("span_id", "TEXT"),
    ("request_id", "TEXT"),
    ("team", "TEXT"),
    ("key_id", "TEXT"),
    ("end_user", "TEXT"),
    ("session", "TEXT"),
    ("operation", "TEXT"),
    ("model", "TEXT"),
    ("alias", "TEXT"),
    ("target", "TEXT"),
    ("run_id", "TEXT"),
    ("step", "TEXT"),
    ("error_code", "TEXT"),
    ("policy_hit", "TEXT"),
    ("stream", "INTEGER"),
    ("simulated", "INTEGER"),
    ("input_tokens", "INTEGER"),
    ("output_tokens", "INTEGER"),
    ("cached_tokens", "INTEGER"),
    ("cost_usd_micros", "INTEGER"),
    ("ttft_us", "INTEGER"),
    ("attempts", "INTEGER"),
    ("request_ref", "BLOB"),
    ("response_ref", "BLOB"),
)
SPAN_COLUMNS: tuple[tuple[str, str], ...] = (
    ("tenant", "TEXT"),
    ("start_ns", "INTEGER"),
    ("trace_key", "INTEGER"),
    ("trace_id", "TEXT"),
    ("run_id", "TEXT"),
    ("body", "BLOB"),
)
ROLLUP_KEY: tuple[str, ...] = ("minute", "tenant", "model", "target", "simulated")
ROLLUP_SUMS: tuple[str, ...] = (
    "calls",
    "errors",
    "input_tokens",
    "output_tokens",
    "cached_tokens",
    "cost_usd_micros",
    "duration_us",
    *(f"d{index}" for index in range(BUCKETS)),
    *(f"t{index}" for index in range(BUCKETS)),
)
"""``d*`` count durations by bucket, ``t*`` times to first byte (only calls that had one)."""


def _columns(columns: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in columns)


DDL: tuple[str, ...] = (
    f"CREATE TABLE IF NOT EXISTS calls (id INTEGER PRIMARY KEY, {_columns(CALL_COLUMNS)})",
    "CREATE TABLE IF NOT EXISTS bodies (id INTEGER PRIMARY KEY, body BLOB NOT NULL)",
    "CREATE INDEX IF NOT EXISTS calls_by_tenant ON calls (tenant, start_ns)",
    "CREATE INDEX IF NOT EXISTS calls_by_start ON calls (start_ns)",
    "CREATE INDEX IF NOT EXISTS calls_by_trace ON calls (trace_key)",
    "CREATE INDEX IF NOT EXISTS calls_by_run ON calls (run_id) WHERE run_id <> ''",
    "CREATE INDEX IF NOT EXISTS calls_by_session ON calls (session) WHERE session <> ''",
    f"CREATE TABLE IF NOT EXISTS spans (id INTEGER PRIMARY KEY, {_columns(SPAN_COLUMNS)})",
    "CREATE INDEX IF NOT EXISTS spans_by_trace ON spans (trace_key)",
    "CREATE INDEX IF NOT EXISTS spans_by_run ON spans (run_id) WHERE run_id <> ''",
    f"CREATE TABLE IF NOT EXISTS rollups (minute INTEGER, tenant TEXT, model TEXT, target TEXT, simulated INTEGER, "
    f"{', '.join(f'{name} INTEGER NOT NULL' for name in ROLLUP_SUMS)}, "
    f"PRIMARY KEY ({', '.join(ROLLUP_KEY)})) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS contents (id INTEGER PRIMARY KEY, ref BLOB NOT NULL UNIQUE, parent BLOB, "
    "kind TEXT NOT NULL, data BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS sources (instance TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID",
)
"""``sources`` holds, for each process instance, the last batch that is committed: how duplicates are known."""

INSERT_CALL = (
    f"INSERT INTO calls (id, {', '.join(name for name, _ in CALL_COLUMNS)}) "  # noqa: S608  # constants
    f"VALUES (?{', ?' * len(CALL_COLUMNS)})"
)
INSERT_BODY = "INSERT INTO bodies (id, body) VALUES (?, ?)"
INSERT_SPAN = (
    f"INSERT INTO spans ({', '.join(name for name, _ in SPAN_COLUMNS)}) "  # noqa: S608  # constants
    f"VALUES ({', '.join('?' * len(SPAN_COLUMNS))})"
)
UPSERT_ROLLUP = (
    f"INSERT INTO rollups VALUES ({', '.join('?' * (len(ROLLUP_KEY) + len(ROLLUP_SUMS)))}) "  # noqa: S608
    f"ON CONFLICT DO UPDATE SET {', '.join(f'{name} = {name} + excluded.{name}' for name in ROLLUP_SUMS)}"
)
UPSERT_SOURCE = "INSERT INTO sources VALUES (?, ?) ON CONFLICT DO UPDATE SET seq = max(seq, excluded.seq)"
INSERT_CONTENT = "INSERT OR IGNORE INTO contents (ref, parent, kind, data) VALUES (?, ?, ?, ?)"


def trace_key(trace_id: str) -> int:
    """Return the signed 64-bit key of a trace id: its first half, or the second where a 64-bit id was padded."""
    try:
        value = int(trace_id[:16], 16) or int(trace_id[16:32] or "0", 16)
    except ValueError:
        return 0
    return value - (1 << 64) if value >= 1 << 63 else value
