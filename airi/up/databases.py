"""All databases of one installation, and every room's migrations for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine

from airi.database import migrate, open_engine
from airi.settings import Settings
from airi.storage import CONTENT_ROOMS, prepare


@contextmanager
def databases(settings: Settings) -> Iterator[tuple[Engine, Engine]]:
    """Open AIRI's database and the runs database (the same one when AIRI_DATABASE_URL names it)."""
    main = open_engine(settings.effective_database_url, full_sync=True)
    runs = main
    if settings.effective_runs_url != settings.effective_database_url:
        runs = open_engine(settings.effective_runs_url, full_sync=True)
    try:
        yield main, runs
    finally:
        runs.dispose()
        main.dispose()


def migrate_all(settings: Settings) -> int:
    """Bring all tables of all rooms up to date; return how many migrations were applied."""
    import agents.migrations
    import policies.migrations

    with databases(settings) as (main, runs):
        applied = prepare(main)
        applied += migrate(main, "policies", policies.migrations.MIGRATIONS)
        applied += prepare(runs, CONTENT_ROOMS)
        return applied + migrate(runs, "agents", agents.migrations.MIGRATIONS)
