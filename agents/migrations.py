"""Numbered, forward-only migrations of the runs database."""

from __future__ import annotations

from sqlalchemy import Connection

from agents.schema import metadata
from airi.database import Migration


def _create_tables(connection: Connection) -> None:
    metadata.create_all(connection)


MIGRATIONS = (Migration(1, "runs, steps, events, effects, outbox, timers", _create_tables),)
