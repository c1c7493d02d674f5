"""The vault: small secrets at rest, each sealed under its own name, so that none can be moved to another place.

It holds the pepper of API keys, the provider secrets given through the API, and the tenants' data keys. All of
them are sealed with the key ring, so rotating ``AIRI_SECRET_KEY`` means re-sealing this one table.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import BigInteger, Column, Connection, Engine, MetaData, String, Table, Text, select, text

from airi.clock import unix_ms
from airi.database import Migration, write
from airi.ddl import statements
from airi.keyring import KeyRing

_metadata = MetaData()
vault = Table(
    "vault",
    _metadata,
    Column("name", String(512), primary_key=True),
    Column("box", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
)

MIGRATIONS = [
    Migration(
        1,
        "vault",
        statements(
            """
            CREATE TABLE vault (
                name VARCHAR(512) PRIMARY KEY,
                box TEXT NOT NULL,
                created_at_ms BIGINT NOT NULL
            )
            """
        ),
    )
]


_INSERT = text(
    "INSERT INTO vault (name, box, created_at_ms) VALUES (:name, :box, :created_at_ms) ON CONFLICT (name) DO NOTHING"
)


class Vault:
    """Sealed values by name. Blocking; every method is a few statements. Names are written once."""

    def __init__(self, engine: Engine, ring: KeyRing) -> None:
        self._engine = engine
        self._ring = ring

    def get(self, name: str) -> bytes | None:
        """Return the value, or ``None``; :class:`airi.keyring.SealError` when its key left the ring."""
        with self._engine.connect() as connection:
            return self.get_in(connection, name)

    def get_in(self, connection: Connection, name: str) -> bytes | None:
        """As :meth:`get`, within the caller's transaction."""
        box = connection.scalar(select(vault.c.box).where(vault.c.name == name))
        return None if box is None else self._ring.open(box, name)

    def put_in(self, connection: Connection, name: str, plain: bytes) -> bool:
        """Store a value within the caller's transaction; return whether the name was free (else nothing changes)."""
        box = self._ring.seal(plain, name)
        inserted = connection.execute(_INSERT, {"name": name, "box": box, "created_at_ms": unix_ms()})
        return inserted.rowcount == 1

    def ensure(self, name: str, make: Callable[[], bytes]) -> bytes:
        """Return the value, storing ``make()`` when there is none; racing callers all get the first one's."""
        found = self.get(name)
        if found is None:
            with write(self._engine) as connection:
                self.put_in(connection, name, make())
                found = self.get_in(connection, name)
            assert found is not None
        return found

    def forget_in(self, connection: Connection, name: str) -> None:
        """Remove a value; what it encrypted is unreadable from then on, backups apart."""
        connection.execute(vault.delete().where(vault.c.name == name))

    def reseal(self) -> int:
        """Seal everything anew with the ring's first member; return how many values changed."""
        with self._engine.connect() as connection:
            boxes = connection.scalars(select(vault.c.box)).all()
        if all(map(self._ring.sealed_with_current, boxes)):
            return 0
        changed = 0
        with write(self._engine) as connection:
            for name, box in connection.execute(select(vault.c.name, vault.c.box)).all():
                if not self._ring.sealed_with_current(box):
                    fresh = self._ring.seal(self._ring.open(box, name), name)
                    connection.execute(vault.update().where(vault.c.name == name).values(box=fresh))
                    changed += 1
        return changed
