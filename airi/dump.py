"""A logical copy of a database: every table's rows as of one moment, in a file that any supported database takes back.

For backups of PostgreSQL while AIRI runs, and for moving from SQLite to PostgreSQL. The file is gzip over MessagePack
values: a header, then for each table its name and columns, then batches of rows, then the number of rows; at last
the SHA-256 of everything before it. A dump holds sealed secrets, not the key that opens them: keep ``AIRI_SECRET_KEY``.
"""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from sqlalchemy import Connection, Engine, MetaData, Table, delete, func, insert, select

from airi.clock import unix_ms
from airi.database import write
from airi.errors import ConflictError, InvalidRequestError

_FORMAT = "airi dump 1"
_BATCH = 500
_LEDGER = "schema_migrations"
# Rows that migrations themselves put in: a database with nothing else is a new one.
_SEEDED_SUFFIX = "_head"
_MAX_RECORD = 512 * 1024 * 1024
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder().decode


class DumpError(InvalidRequestError):
    """The file is not a dump, is damaged, or belongs to another release."""

    code = "dump_unusable"


class DatabaseInUseError(ConflictError):
    """A dump is loaded into a new database only."""

    code = "database_in_use"


def dump(engine: Engine, path: Path) -> dict[str, int]:
    """Write every table to ``path`` (mode 0600, must not exist); return the number of rows by table.

    One read-only transaction that sees one moment, while others go on writing.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as raw:
            return _dump_to(engine, raw)
    except BaseException:
        path.unlink()  # half a dump must not be taken for one
        raise


def load(engine: Engine, path: Path) -> dict[str, int]:
    """Fill a migrated, otherwise new database from ``path`` in one transaction; return the number of rows by table.

    :class:`DumpError` when the file is damaged or was made by a release with other migrations;
    :class:`DatabaseInUseError` when the database holds anything.
    """
    verify(path)
    with write(engine) as connection:
        tables = _tables(connection)
        records = _records(path)
        header = next(records)
        if header["migrations"] != _ledger(connection, tables):
            raise DumpError(
                "the dump was made by another release of AIRI: load it with that release, then migrate forward"
            )
        _refuse_used(connection, tables)
        for table in tables.sorted_tables:
            if table.name.endswith(_SEEDED_SUFFIX):
                connection.execute(delete(table))
        return _load_tables(connection, tables, records)


def verify(path: Path) -> None:
    """Read the whole file and raise :class:`DumpError` unless it is complete and unchanged."""
    for _ in _records(path):
        pass


def _dump_to(engine: Engine, raw: BinaryIO) -> dict[str, int]:
    counts: dict[str, int] = {}
    with engine.connect() as connection:
        _one_moment(connection)
        with gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=3) as file:
            out = _Writer(file)
            tables = _tables(connection)
            ledger = _ledger(connection, tables)
            out.put({"format": _FORMAT, "created_at_ms": unix_ms(), "migrations": ledger})
            for table in tables.sorted_tables:
                if table.name != _LEDGER:
                    counts[str(table.name)] = _dump_table(connection, table, out)
            out.finish()
    raw.flush()
    os.fsync(raw.fileno())
    return counts


class _Writer:
    """Length-prefixed records with a running digest."""

    def __init__(self, file: gzip.GzipFile) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def put(self, value: Any) -> None:
        data = _encode(value)
        framed = len(data).to_bytes(8, "big") + data
        self._digest.update(framed)
        self._file.write(framed)

    def finish(self) -> None:
        self._file.write((0).to_bytes(8, "big") + self._digest.digest())


def _records(path: Path) -> Iterator[Any]:
    """Yield the records; :class:`DumpError` at the end at the latest when the digest does not fit."""
    digest = hashlib.sha256()
    try:
        with gzip.open(path, "rb") as file:
            first = True
            while size := int.from_bytes(_exactly(file, 8), "big"):
                if size > _MAX_RECORD:
                    raise DumpError(f"{path} is damaged")
                data = _exactly(file, size)
                digest.update(size.to_bytes(8, "big") + data)
                value = _decode(data)
                if first and (not isinstance(value, dict) or value.get("format") != _FORMAT):
                    raise DumpError(f"{path} is not a dump of AIRI")
                first = False
                yield value
            if _exactly(file, digest.digest_size) != digest.digest() or file.read(1):
                raise DumpError(f"{path} is damaged")
    except (OSError, EOFError, msgspec.DecodeError) as error:
        raise DumpError(f"{path} is not a dump of AIRI, or is damaged") from error


def _exactly(file: gzip.GzipFile | BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise EOFError
    return data


def _one_moment(connection: Connection) -> None:
    """Make all that follows see one moment. SQLite's read transactions in WAL do so by themselves."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")


def _tables(connection: Connection) -> MetaData:
    tables = MetaData()
    tables.reflect(connection)
    return tables


def _ledger(connection: Connection, tables: MetaData) -> list[list[Any]]:
    table = tables.tables.get(_LEDGER)
    if table is None:
        raise DumpError("the database holds no tables of AIRI: run `airi migrate`")
    columns = table.c.room, table.c.number, table.c.name
    return [list(row) for row in connection.execute(select(*columns).order_by(*columns[:2]))]


def _dump_table(connection: Connection, table: Table, out: _Writer) -> int:
    out.put({"table": str(table.name), "columns": [str(column.name) for column in table.columns]})
    count = 0
    result = connection.execution_options(yield_per=_BATCH).execute(select(table))
    for rows in result.partitions():
        out.put([list(row) for row in rows])
        count += len(rows)
    out.put(count)
    return count


def _refuse_used(connection: Connection, tables: MetaData) -> None:
    for table in tables.sorted_tables:
        if table.name == _LEDGER or table.name.endswith(_SEEDED_SUFFIX):
            continue
        if connection.scalar(select(func.count()).select_from(table)):
            raise DatabaseInUseError(f"table {table.name!r} is not empty: load into a new database")


def _load_tables(connection: Connection, tables: MetaData, records: Iterator[Any]) -> dict[str, int]:
    counts: dict[str, int] = {}
    table: Table | None = None
    columns: list[str] = []
    for record in records:
        if isinstance(record, dict):
            table, columns = tables.tables.get(record["table"]), record["columns"]
            if table is None:
                raise DumpError(f"the dump has a table {record['table']!r} that this database lacks")
            counts[str(table.name)] = 0
        elif isinstance(record, int):
            assert table is not None
            if counts[table.name] != record:
                raise DumpError(f"rows of {table.name!r} are missing from the dump")
        else:
            assert table is not None
            connection.execute(insert(table), [dict(zip(columns, row, strict=True)) for row in record])
            counts[table.name] += len(record)
    return counts
