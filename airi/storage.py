"""The ground floor's tables: which rooms of the schema there are, and bringing a database up to date.

``airi.db`` (or PostgreSQL) takes all of :data:`ROOMS`; a room with a database of its own (the durable engine)
adds :data:`CONTENT_ROOMS` to it, so that its rows and the content they refer to commit together.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Engine

from airi import audit, content, stored_responses, vault
from airi.config import migrations as config_migrations
from airi.database import Migration, migrate
from airi.keyring import KeyRing
from airi.keys import migrations as key_migrations
from airi.vault import Vault

Rooms = Sequence[tuple[str, Sequence[Migration]]]
CONTENT_ROOMS: Rooms = (("vault", vault.MIGRATIONS), ("content", content.MIGRATIONS))
ROOMS: Rooms = (
    *CONTENT_ROOMS,
    ("audit", audit.MIGRATIONS),
    ("config", config_migrations.MIGRATIONS),
    ("keys", key_migrations.MIGRATIONS),
    ("responses", stored_responses.MIGRATIONS),
)


def prepare(engine: Engine, rooms: Rooms = ROOMS) -> int:
    """Apply every migration that the database lacks; return how many were applied."""
    return sum(migrate(engine, room, migrations) for room, migrations in rooms)


def reseal(ring: KeyRing, *engines: Engine) -> int:
    """Seal what the databases hold with the ring's first key; return how many values changed.

    Call it when the control plane starts: after a rotation the old key may then leave ``AIRI_SECRET_KEY``.
    """
    return sum(Vault(engine, ring).reseal() for engine in engines)
