"""Stored responses: what ``/v1/responses`` keeps so that it can be read again and followed by another turn.

A row says whose it is and where its content lies; the content (the response and its own turn's input) is in the content
store, sealed with the tenant's key, for thirty days. Each response holds its own turn alone and names the one before it, so that deleting one
leaves no copy of it. A key reads what keys of its tenant and team have stored; an organisation's administrator reads all of the tenant's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    MetaData,
    Row,
    String,
    Table,
    delete,
    insert,
    select,
)

from airi.clock import unix_ms
from airi.content import RETENTION_MS, ContentStore
from airi.database import Migration, write
from airi.ddl import statements
from airi.errors import InvalidRequestError, NotFoundError
from airi.keys.record import KeyRecord

Body = dict[str, Any]
MAX_TURNS = 1_000
MAX_HISTORY_BYTES = 20 << 20
_SWEEP_BATCH = 500

_metadata = MetaData()
responses = Table(
    "stored_responses",
    _metadata,
    Column("id", String(64), primary_key=True),
    Column("tenant", String(128), nullable=False),
    Column("team", String(128), nullable=False),
    Column("key_id", String(64), nullable=False),
    Column("previous", String(64), nullable=False),
    Column("ref", String(64), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
)

MIGRATIONS = [
    Migration(
        1,
        "stored responses",
        statements(
            """
            CREATE TABLE stored_responses (
                id VARCHAR(64) PRIMARY KEY,
                tenant VARCHAR(128) NOT NULL,
                team VARCHAR(128) NOT NULL,
                key_id VARCHAR(64) NOT NULL,
                previous VARCHAR(64) NOT NULL,
                ref VARCHAR(64) NOT NULL,
                created_at_ms BIGINT NOT NULL,
                expires_at_ms BIGINT NOT NULL
            )
            """,
            "CREATE INDEX stored_responses_by_expiry ON stored_responses (expires_at_ms)",
        ),
    )
]
"""For room ``responses``; needs those of the content store."""


class ResponseNotFoundError(NotFoundError):
    """There is no such response, it has expired, or the caller may not see it (404)."""

    code = "response_not_found"


@dataclass(frozen=True, slots=True)
class Reader:
    """Who stores or reads. ``all_teams``: may read what any team of the tenant has stored."""

    tenant: str
    team: str
    key_id: str
    all_teams: bool = False

    @classmethod
    def of(cls, key: KeyRecord) -> Reader:
        """Return what a key stands for."""
        return cls(key.tenant, key.team or "", key.id, key.role in ("org_admin", "platform_admin"))


class Stored(msgspec.Struct):
    """What the content store holds of a response: itself, and the input items of its own turn."""

    response: Body
    input: list[Body]


_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(Stored)


class ResponseStore:
    """Blocking; each method is one transaction."""

    def __init__(self, engine: Engine, content: ContentStore) -> None:
        self._engine = engine
        self._content = content

    def save(self, owner: Reader, response: Body, given: list[Body]) -> None:
        """Store a response with its turn's input items."""
        now = unix_ms()
        lifetime = RETENTION_MS["run"]
        assert lifetime is not None
        data = _encode(Stored(response, given))
        with write(self._engine) as connection:
            ref = self._content.put_in(connection, owner.tenant, data, "run")
            row = {
                "id": response["id"],
                "tenant": owner.tenant,
                "team": owner.team,
                "key_id": owner.key_id,
                "previous": response.get("previous_response_id") or "",
                "ref": ref,
                "created_at_ms": now,
                "expires_at_ms": now + lifetime,
            }
            connection.execute(insert(responses).values(row))

    def load(self, reader: Reader, response_id: str) -> Stored:
        """Return a response; raise :class:`ResponseNotFoundError`."""
        with self._engine.connect() as connection:
            return self._read(connection, reader, response_id)[0]

    def history(self, reader: Reader, response_id: str) -> list[Body]:
        """Return the items of all turns up to and with ``response_id``, oldest first; raise when a turn is missing."""
        turns: list[list[Body]] = []
        size = 0
        seen = response_id
        with self._engine.connect() as connection:
            while seen:
                stored, previous, length = self._read(connection, reader, seen, "previous_response_id")
                turns.append([*stored.input, *stored.response.get("output", ())])
                size += length
                if len(turns) > MAX_TURNS or size > MAX_HISTORY_BYTES:
                    raise InvalidRequestError(
                        f"This conversation is longer than {MAX_TURNS} turns or {MAX_HISTORY_BYTES >> 20} MiB.",
                        param="previous_response_id",
                    )
                seen = previous
        return [item for turn in reversed(turns) for item in turn]

    def remove(self, reader: Reader, response_id: str) -> None:
        """Delete a response and its content; raise :class:`ResponseNotFoundError`."""
        with write(self._engine) as connection:
            row = self._row(connection, reader, response_id)
            connection.execute(delete(responses).where(responses.c.id == response_id))
            self._content.remove_in(connection, row.tenant, row.ref)

    def sweep(self, now_ms: int) -> int:
        """Remove the rows of responses that have expired (the content store sweeps their content); return how many."""
        removed = 0
        while True:
            with write(self._engine) as connection:
                old = select(responses.c.id).where(responses.c.expires_at_ms <= now_ms).limit(_SWEEP_BATCH)
                ids = connection.scalars(old).all()
                if ids:
                    connection.execute(delete(responses).where(responses.c.id.in_(ids)))
            removed += len(ids)
            if len(ids) < _SWEEP_BATCH:
                return removed

    def _row(
        self, connection: Connection, reader: Reader, response_id: str, param: str = "response_id"
    ) -> Row[Any]:
        row = connection.execute(select(responses).where(responses.c.id == response_id)).one_or_none()
        mine = (
            row is not None
            and row.tenant == reader.tenant
            and (reader.all_teams or row.team == reader.team)
            and row.expires_at_ms > unix_ms()
        )
        if row is None or not mine:
            code = "previous_response_not_found" if param == "previous_response_id" else None
            raise ResponseNotFoundError(
                f"There is no response '{response_id[:80]}' (any more).", param=param, code=code
            )
        return row

    def _read(
        self, connection: Connection, reader: Reader, response_id: str, param: str = "response_id"
    ) -> tuple[Stored, str, int]:
        row = self._row(connection, reader, response_id, param)
        data = self._content.get_in(connection, row.tenant, row.ref)
        if data is None:
            raise ResponseNotFoundError(f"The content of response '{response_id}' is gone.", param=param)
        return _decoder.decode(data), row.previous, len(data)
