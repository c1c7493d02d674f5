"""The durable engine, put together: one object that the control plane and the workers both build."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import msgspec
from sqlalchemy import Engine as Database

from agents import checking
from agents.commands import Commands
from agents.definition import Definition
from agents.errors import UnknownWorkflowError
from agents.leases import Leases
from agents.migrations import MIGRATIONS
from agents.store import Store
from agents.tuning import Tuning, owner_name
from agents.values import ContentRoom, Values
from airi.content import ContentStore
from airi.database import open_engine
from airi.keyring import KeyRing
from airi.settings import Settings
from airi.storage import CONTENT_ROOMS
from airi.storage import prepare as prepare_rooms

_DEFINITIONS_KEPT = 512


class Engine:
    """Store, commands and leases over one runs database."""

    def __init__(self, database: Database, content: ContentRoom, tuning: Tuning | None = None) -> None:
        self.tuning = tuning or Tuning.from_environment()
        self.store = Store(database, Values(content))
        self.definition_of: Callable[[str], Definition] = lru_cache(_DEFINITIONS_KEPT)(self._load_definition)
        self.owner = owner_name()
        self.commands = Commands(self.store, self.definition_of)
        self.leases = Leases(self.store, self.definition_of, self.owner, self.tuning.lease_ms)

    def _load_definition(self, definition_id: str) -> Definition:
        body = self.store.definition_body(definition_id)
        if body is None:
            raise UnknownWorkflowError(
                f"the definition {definition_id[:12]}… that a run is pinned to is not stored"
            )
        return checking.parse(msgspec.json.decode(body))


def prepare(database: Database) -> None:
    """Bring the runs database up to date, its content and the content's keys included."""
    prepare_rooms(database, (*CONTENT_ROOMS, ("agents", MIGRATIONS)))


def open_runs(settings: Settings, ring: KeyRing, tuning: Tuning | None = None) -> Engine:
    """The engine of an installation: open, migrated."""
    database = open_engine(settings.effective_runs_url, full_sync=True)
    prepare(database)
    return Engine(database, ContentStore(database, ring), tuning)
