"""One day's file: opening it, writing batches to it in one transaction, and dropping old ones.

A batch goes whole into the file of the day on which it is *committed*, with its sequence number in the same
transaction; so a batch is there once or not at all. A record that ended around midnight may therefore stand in the
next day's file: readers look one file further.
"""

from __future__ import annotations

import datetime as dt
import re
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from observability import content, schema
from observability.errors import RecordStoreError
from observability.record import CallContent, CallRecord, SpanRecord
from observability.rollup import rollup
from observability.wire import Batch

_NAME = re.compile(r"records-(\d{4}-\d{2}-\d{2})\.db")
DAY_NS = 86_400_000_000_000

call_decoder = msgspec.msgpack.Decoder(CallRecord)
span_decoder = msgspec.msgpack.Decoder(SpanRecord)
_details_encoder = msgspec.msgpack.Encoder()


def day_of(unix_ns: int) -> dt.date:
    """Return the UTC day of a wall clock time."""
    return dt.datetime.fromtimestamp(unix_ns // 1_000_000_000, dt.UTC).date()


def start_of_day_ns(day: dt.date) -> int:
    """Return the first nanosecond of a UTC day."""
    return (day - dt.date(1970, 1, 1)).days * DAY_NS


def path_of(folder: Path, day: dt.date) -> Path:
    """Return where a day's file is or would be."""
    return folder / f"records-{day.isoformat()}.db"


def days(folder: Path) -> list[tuple[dt.date, Path]]:
    """Return the day files there are, newest first."""
    if not folder.is_dir():
        return []
    found = []
    for path in folder.iterdir():
        match = _NAME.fullmatch(path.name)
        if match:
            found.append((dt.date.fromisoformat(match[1]), path))
    return sorted(found, reverse=True)


def drop_older_than(folder: Path, first_kept: dt.date) -> list[dt.date]:
    """Unlink the files of days before ``first_kept``; return those days."""
    dropped = []
    for day, path in days(folder):
        if day < first_kept:
            for suffix in ("", "-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            dropped.append(day)
    return dropped


@dataclass(slots=True)
class Written:
    """What one transaction added: new records, decoded, for metrics and exporters."""

    calls: list[CallRecord] = field(default_factory=list)
    spans: list[SpanRecord] = field(default_factory=list)
    duplicate_batches: int = 0
    undecodable: int = 0


class DayFile:
    """The day's file that is written to. Used by one thread at a time."""

    def __init__(self, folder: Path, day: dt.date) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.day = day
        self.path = path_of(folder, day)
        self.path.touch(mode=0o600)
        self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=2)
        self._prepare()
        (last,) = self._db.execute("SELECT coalesce(max(id), 0) FROM calls").fetchone()
        self._last_id: int = last
        self.high: dict[str, int] = dict(self._db.execute("SELECT instance, seq FROM sources"))

    def _prepare(self) -> None:
        db = self._db
        db.execute("PRAGMA journal_mode = WAL")
        # NORMAL: a commit survives the death of any process; only a power cut may take the last of them.
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA cache_size = -32768")
        db.execute("PRAGMA wal_autocheckpoint = 4000")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > schema.VERSION:
            raise RecordStoreError(
                f"{self.path} was written by a newer AIRI (format {version}, this one knows {schema.VERSION})"
            )
        db.execute("BEGIN IMMEDIATE")
        for statement in schema.DDL:
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {schema.VERSION}")
        db.execute("COMMIT")

    def adopt(self, high: dict[str, int]) -> None:
        """Know the batches that an earlier day's file holds, so that one sent again over midnight is not doubled."""
        for instance, seq in high.items():
            self.high[instance] = max(seq, self.high.get(instance, 0))

    def write(self, batches: Sequence[tuple[str, Batch]]) -> Written:
        """Commit batches (with the instance that sent each) in one transaction; duplicates are passed over."""
        written = Written()
        high: dict[str, int] = {}
        last_id = self._last_id
        rows: list[tuple[object, ...]] = []
        bodies: list[tuple[int, bytes]] = []
        nodes: list[content.Node] = []
        for instance, batch in batches:
            if batch.seq <= max(high.get(instance, 0), self.high.get(instance, 0)):
                written.duplicate_batches += 1
                continue
            high[instance] = batch.seq
            contents = dict(batch.contents)
            for index, raw in enumerate(batch.calls):
                try:
                    call = call_decoder.decode(raw)
                    made, refs = _content_nodes(call.tenant, contents.get(index))
                    row = _call_row(last_id + 1, call, *refs)
                except (msgspec.DecodeError, ValueError):
                    written.undecodable += 1
                    continue
                last_id += 1
                nodes += made
                rows.append(row)
                bodies.append((last_id, bytes(raw)))
                written.calls.append(call)
            self._decode_spans(batch.spans, written)
        if high:
            self._commit(rows, bodies, nodes, written, high)
            self._last_id = last_id
            self.high.update(high)
        return written

    @staticmethod
    def _decode_spans(spans: Iterable[msgspec.Raw], written: Written) -> None:
        for raw in spans:
            try:
                written.spans.append(span_decoder.decode(raw))
            except (msgspec.DecodeError, ValueError):
                written.undecodable += 1

    def _commit(
        self,
        rows: list[tuple[object, ...]],
        bodies: list[tuple[int, bytes]],
        nodes: list[content.Node],
        written: Written,
        high: dict[str, int],
    ) -> None:
        db = self._db
        db.execute("BEGIN IMMEDIATE")
        try:
            db.executemany(schema.INSERT_CALL, rows)
            db.executemany(schema.INSERT_BODY, bodies)
            db.executemany(schema.INSERT_SPAN, map(_span_row, written.spans))
            content.write_nodes(db, nodes)
            sums = rollup(written.calls)
            db.executemany(schema.UPSERT_ROLLUP, ((*key, *values) for key, values in sums.items()))
            db.executemany(schema.UPSERT_SOURCE, high.items())
            db.execute("COMMIT")
        except BaseException:  # a thread that is stopped must not leave the file within a transaction either
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Fold the write-ahead log into the file and close it."""
        self._db.close()


def _content_nodes(
    tenant: str, given: CallContent | None
) -> tuple[list[content.Node], tuple[bytes | None, bytes | None]]:
    if given is None:
        return [], (None, None)
    nodes, request_ref, response_ref = content.nodes_of(tenant, given)
    return nodes, (request_ref, response_ref)


def _call_row(
    row_id: int, call: CallRecord, request_ref: bytes | None, response_ref: bytes | None
) -> tuple[object, ...]:
    """Return the values of :data:`schema.CALL_COLUMNS`, in its order, after the row's id."""
    return (
        row_id,
        call.tenant,
        call.started_unix_ns,
        call.duration_us,
        call.status,
        schema.trace_key(call.trace_id),
        call.trace_id,
        call.span_id,
        call.request_id,
        call.team,
        call.key_id,
        call.user,
        call.session,
        call.operation,
        call.model,
        call.alias,
        call.target,
        call.run_id,
        call.step,
        call.error_code,
        call.policy_hit,
        call.stream,
        call.simulated,
        call.input_tokens,
        call.output_tokens,
        call.cached_tokens,
        call.cost_usd_micros,
        call.ttft_us,
        len(call.attempts),
        request_ref,
        response_ref,
    )


def _span_row(span: SpanRecord) -> tuple[object, ...]:
    return (
        span.tenant,
        span.started_unix_ns,
        schema.trace_key(span.trace_id),
        span.trace_id,
        span.run_id,
        _details_encoder.encode(span),
    )
