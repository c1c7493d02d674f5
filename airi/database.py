"""SQL databases: SQLite (WAL) by default, PostgreSQL by URL, one set of habits for both.

All code uses SQLAlchemy Core and runs on either. Calls block: on an event loop, use a thread.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.engine.interfaces import DBAPIConnection

from airi.clock import unix_ms
from airi.errors import AiriError, UnavailableError

_BUSY_TIMEOUT_S = 30.0
_WRITE_OPTION = "airi_write"
# One advisory lock for migrations of all rooms: "AIRI" in ASCII.
_MIGRATION_LOCK = 0x41495249

_ledger_metadata = MetaData()
_ledger = Table(
    "schema_migrations",
    _ledger_metadata,
    Column("room", String(64), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("name", String(200), nullable=False),
    Column("applied_at", BigInteger, nullable=False),
)
_write_locks: WeakKeyDictionary[Engine, threading.Lock] = WeakKeyDictionary()
_write_locks_guard = threading.Lock()


class MigrationError(AiriError):
    """The database and this release disagree on what was migrated."""

    code = "migration_error"


@dataclass(frozen=True, slots=True)
class Migration:
    """One step forward of one room's tables. ``apply`` runs in a transaction and must not commit."""

    number: int
    name: str
    apply: Callable[[Connection], None]


def open_engine(url: str, *, full_sync: bool) -> Engine:
    """Return an engine for ``sqlite:///PATH`` or ``postgresql://…`` (the psycopg 3 driver is chosen here).

    ``full_sync`` makes an SQLite commit survive the loss of power (``synchronous=FULL``); without it a commit
    survives the death of the process only. PostgreSQL always commits durably.
    """
    parsed = make_url(url.replace("postgres://", "postgresql://", 1))
    if parsed.get_backend_name() == "sqlite":
        if parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        engine = create_engine(
            parsed, pool_size=8, max_overflow=24, connect_args={"timeout": _BUSY_TIMEOUT_S}
        )
        _prepare_sqlite(engine, full_sync=full_sync)
        return engine
    if parsed.get_backend_name() != "postgresql":
        raise UnavailableError(
            f"database URL: {parsed.get_backend_name()!r} is not supported; use sqlite:///… or postgresql://…"
        )
    # A server whose machine is gone answers nothing at all: the kernel gives such a connection up in half a minute.
    arguments: dict[str, str | int] = {
        "connect_timeout": 5, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 4, "tcp_user_timeout": 30_000,
    }  # fmt: skip
    if "options" not in parsed.query:
        arguments["options"] = "-c lock_timeout=30s -c idle_in_transaction_session_timeout=60s"
    return create_engine(
        parsed.set(drivername="postgresql+psycopg"),
        pool_size=8,
        max_overflow=24,
        pool_timeout=10,
        pool_pre_ping=True,
        connect_args=arguments,
    )


def _prepare_sqlite(engine: Engine, *, full_sync: bool) -> None:
    """Set the pragmas of each connection, and let SQLAlchemy (not the driver) begin transactions."""

    @event.listens_for(engine, "connect")
    def on_connect(connection: DBAPIConnection, _record: object) -> None:
        assert isinstance(connection, sqlite3.Connection)
        connection.isolation_level = None  # the driver must not begin transactions by itself
        _use_wal(connection)
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute(f"PRAGMA synchronous={'FULL' if full_sync else 'NORMAL'}")
        if full_sync:  # macOS: fsync alone does not reach the platter
            connection.execute("PRAGMA fullfsync=ON")

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        write_wanted = connection.get_execution_options().get(_WRITE_OPTION, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write_wanted else "BEGIN")


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch to WAL; two processes that open a new file at once are not always held by the busy time-out."""
    deadline = time.monotonic() + _BUSY_TIMEOUT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


@contextmanager
def write(engine: Engine) -> Iterator[Connection]:
    """A transaction that writes: commits at the end, rolls back on an exception.

    On SQLite it takes the write lock at the start (``BEGIN IMMEDIATE``), so that it never fails half-way with
    "database is locked"; threads of one process queue on a lock of their own instead of polling the file.
    Do not nest: a second ``write`` in the same thread waits for the first and then fails.
    """
    if engine.dialect.name != "sqlite":
        with engine.begin() as connection:
            yield connection
        return
    with _write_locks_guard:
        lock = _write_locks.setdefault(engine, threading.Lock())
    if not lock.acquire(timeout=_BUSY_TIMEOUT_S):
        raise UnavailableError("the database is busy: no write lock within 30 s", retry_after_ms=1_000)
    try:
        with engine.connect().execution_options(**{_WRITE_OPTION: True}) as connection, connection.begin():
            yield connection
    finally:
        lock.release()


def migrate(engine: Engine, room: str, migrations: Sequence[Migration]) -> int:
    """Apply the migrations of ``room`` that the database has not seen; return how many were applied.

    Each is one transaction, taken one at a time over all processes. A database that is *ahead* (a newer release
    has migrated it while this one drains) is left alone. Raises :class:`MigrationError` when the ledger knows
    a number under another name, or when the numbers do not rise.
    """
    numbers = [migration.number for migration in migrations]
    if numbers != sorted(set(numbers)):
        raise MigrationError(f"migrations of {room!r} must have rising numbers, got {numbers}")
    _create_ledger(engine)
    return sum(_apply_once(engine, room, migration) for migration in migrations)


def _create_ledger(engine: Engine) -> None:
    if inspect(engine).has_table(_ledger.name):
        return
    with write(engine) as connection:
        _lock_migrations(connection)
        _ledger_metadata.create_all(connection, checkfirst=True)


def _apply_once(engine: Engine, room: str, migration: Migration) -> bool:
    known_as = select(_ledger.c.name).where(_ledger.c.room == room, _ledger.c.number == migration.number)
    with engine.connect() as connection:
        name = connection.scalar(known_as)
    if name is None:
        with write(engine) as connection:
            _lock_migrations(connection)
            name = connection.scalar(known_as)
            if name is None:
                migration.apply(connection)
                connection.execute(
                    _ledger.insert().values(
                        room=room, number=migration.number, name=migration.name, applied_at=unix_ms()
                    )
                )
                return True
    if name != migration.name:
        raise MigrationError(
            f"migration {migration.number} of {room!r} is {name!r} in the database and {migration.name!r} here: "
            "the database belongs to another branch of AIRI"
        )
    return False


def _lock_migrations(connection: Connection) -> None:
    """Hold all other migrators off until the end of the transaction (SQLite: ``write`` does already)."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})


def insert_for(dialect: str, table: Table) -> Any:
    """Return an INSERT that can say ``ON CONFLICT``; only the dialect in use is loaded (PostgreSQL's costs a start 60 ms)."""
    if dialect == "postgresql":
        from sqlalchemy.dialects.postgresql import insert as of_postgresql

        return of_postgresql(table)
    from sqlalchemy.dialects.sqlite import insert as of_sqlite

    return of_sqlite(table)
