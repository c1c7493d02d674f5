"""Migrations and write transactions, on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from sqlalchemy import Connection, Engine, text

from airi.database import Migration, MigrationError, migrate, open_engine, write


def _create(connection: Connection) -> None:
    connection.execute(text("CREATE TABLE counters (id INTEGER PRIMARY KEY, value INTEGER NOT NULL)"))
    connection.execute(text("INSERT INTO counters VALUES (1, 0)"))


def _add_column(connection: Connection) -> None:
    connection.execute(text("ALTER TABLE counters ADD COLUMN note TEXT"))


def _fail(connection: Connection) -> None:
    connection.execute(text("CREATE TABLE half (id INTEGER)"))
    raise RuntimeError("half-way")


FIRST = Migration(1, "counters", _create)
SECOND = Migration(2, "note", _add_column)


def test_migrations_apply_once_and_in_order(any_engine: Engine) -> None:
    assert migrate(any_engine, "test", [FIRST]) == 1
    assert migrate(any_engine, "test", [FIRST, SECOND]) == 1
    assert migrate(any_engine, "test", [FIRST, SECOND]) == 0
    with any_engine.connect() as connection:
        assert connection.execute(text("SELECT value, note FROM counters")).one() == (0, None)
        rows = connection.execute(text("SELECT room, number, name FROM schema_migrations ORDER BY number"))
        assert [tuple(row) for row in rows] == [("test", 1, "counters"), ("test", 2, "note")]


def test_rooms_number_their_migrations_apart(any_engine: Engine) -> None:
    migrate(any_engine, "one", [FIRST])
    assert migrate(any_engine, "two", [Migration(1, "other", lambda _connection: None)]) == 1


def test_a_failed_migration_leaves_nothing(any_engine: Engine) -> None:
    with pytest.raises(RuntimeError, match="half-way"):
        migrate(any_engine, "test", [FIRST, Migration(2, "half", _fail)])
    assert migrate(any_engine, "test", [FIRST, SECOND]) == 1
    with any_engine.connect() as connection, pytest.raises(Exception, match="half"):
        connection.execute(text("SELECT * FROM half"))


def test_a_database_of_another_branch_is_refused(sqlite_engine: Engine) -> None:
    migrate(sqlite_engine, "test", [FIRST])
    with pytest.raises(MigrationError, match="another branch"):
        migrate(sqlite_engine, "test", [Migration(1, "different", _create)])


def test_a_database_that_is_ahead_is_left_alone(sqlite_engine: Engine) -> None:
    migrate(sqlite_engine, "test", [FIRST, SECOND])
    assert migrate(sqlite_engine, "test", [FIRST]) == 0


def test_numbers_must_rise(sqlite_engine: Engine) -> None:
    with pytest.raises(MigrationError, match="rising"):
        migrate(sqlite_engine, "test", [SECOND, FIRST])


def _together(count: int, work: object) -> None:
    threads = [threading.Thread(target=work) for _ in range(count)]  # type: ignore[arg-type]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)


def test_processes_that_migrate_at_once_apply_each_step_once(any_engine: Engine) -> None:
    """Each thread has an engine of its own, as a process has."""
    url = any_engine.url.render_as_string(hide_password=False)
    applied: list[int] = []

    def one() -> None:
        engine = open_engine(url, full_sync=False)
        applied.append(migrate(engine, "test", [FIRST, SECOND]))
        engine.dispose()

    _together(4, one)
    assert sum(applied) == 2
    assert len(applied) == 4


def test_concurrent_read_modify_writes_lose_nothing(sqlite_engine: Engine) -> None:
    migrate(sqlite_engine, "test", [FIRST])
    other = open_engine(str(sqlite_engine.url), full_sync=False)

    def bump() -> None:
        for turn in range(20):
            with write((sqlite_engine, other)[turn % 2]) as connection:
                value = connection.scalar(text("SELECT value FROM counters"))
                connection.execute(text("UPDATE counters SET value = :value"), {"value": value + 1})

    _together(6, bump)
    other.dispose()
    with sqlite_engine.connect() as connection:
        assert connection.scalar(text("SELECT value FROM counters")) == 120


def test_an_exception_rolls_back(any_engine: Engine) -> None:
    migrate(any_engine, "test", [FIRST])

    def change_then_fail() -> None:
        with write(any_engine) as connection:
            connection.execute(text("UPDATE counters SET value = 7"))
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        change_then_fail()
    with any_engine.connect() as connection:
        assert connection.scalar(text("SELECT value FROM counters")) == 0


def test_sqlite_is_wal_with_foreign_keys(tmp_path: Path) -> None:
    for full_sync, level in ((True, 2), (False, 1)):
        engine = open_engine(f"sqlite:///{tmp_path / 'deep' / 'folder' / 'x.db'}", full_sync=full_sync)
        with engine.connect() as connection:
            pragmas = [
                connection.scalar(text(f"PRAGMA {name}"))
                for name in ("journal_mode", "foreign_keys", "synchronous")
            ]
        engine.dispose()
        assert pragmas == ["wal", 1, level]


def test_other_databases_are_refused_in_words() -> None:
    with pytest.raises(Exception, match="not supported"):
        open_engine("mysql://localhost/x", full_sync=True)
