"""DDL for migrations: plain SQL that SQLite and PostgreSQL both take, but for the names of two types."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection

# In migrations the words stand for themselves; a migration never reads schema.py, which goes on changing.
_TYPES = {
    "sqlite": {"{blob}": "BLOB", "{double}": "REAL"},
    "postgresql": {"{blob}": "BYTEA", "{double}": "DOUBLE PRECISION"},
}


def statements(*texts: str, only: str | None = None) -> Callable[[Connection], None]:
    """Return a migration's step that executes ``texts`` in order; ``only`` names the dialect they are for."""

    def apply(connection: Connection) -> None:
        if only is not None and connection.dialect.name != only:
            return
        for text in texts:
            for word, name in _TYPES[connection.dialect.name].items():
                text = text.replace(word, name)
            connection.exec_driver_sql(text)

    return apply


def both(*steps: Callable[[Connection], None]) -> Callable[[Connection], None]:
    """Return a step that takes several steps in order."""

    def apply(connection: Connection) -> None:
        for step in steps:
            step(connection)

    return apply
