"""The audit trail: every administrative write, in one append-only hash chain.

Invariant, checked by :func:`verify`: entry *n* exists for every *n* from 1 to the head, and its digest is
``SHA-256(digest of entry n-1 ‖ canonical JSON of entry n)``. An entry is appended in the same transaction as the write it
tells of, so neither exists without the other. Entries hold digests of what changed, never the change itself.
The database refuses UPDATE and DELETE on the table; whoever can alter the database itself can still rewrite the
whole chain, which is what ``anchor`` is for: note a head elsewhere, and a rewritten or shortened chain shows.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    insert,
    select,
    update,
)

from airi.clock import unix_ms
from airi.database import Migration
from airi.ddl import both, statements

GENESIS = "0" * 64
_PAGE = 1_000
_metadata = MetaData()
audit = Table(
    "audit",
    _metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("actor", String(200), nullable=False),
    Column("action", String(100), nullable=False),
    Column("target", String(300), nullable=False),
    Column("tenant", String(128)),
    Column("detail", Text, nullable=False),
    Column("digest", String(64), nullable=False),
)
head = Table(
    "audit_head",
    _metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, nullable=False),
    Column("digest", String(64), nullable=False),
)

MIGRATIONS = [
    Migration(
        1,
        "audit chain",
        both(
            statements(
                """
                CREATE TABLE audit (
                    seq BIGINT PRIMARY KEY,
                    at_ms BIGINT NOT NULL,
                    actor VARCHAR(200) NOT NULL,
                    action VARCHAR(100) NOT NULL,
                    target VARCHAR(300) NOT NULL,
                    tenant VARCHAR(128),
                    detail TEXT NOT NULL,
                    digest VARCHAR(64) NOT NULL
                )
                """,
                "CREATE INDEX audit_by_tenant ON audit (tenant, seq)",
                "CREATE TABLE audit_head (id INTEGER PRIMARY KEY, seq BIGINT NOT NULL, digest VARCHAR(64) NOT NULL)",
                "INSERT INTO audit_head (id, seq, digest) VALUES (1, 0, '{genesis}')".replace(
                    "{genesis}", GENESIS
                ),
            ),
            statements(
                "CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit "
                "BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END",
                "CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit "
                "BEGIN SELECT RAISE(ABORT, 'the audit trail is append-only'); END",
                only="sqlite",
            ),
            statements(
                "CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'the audit trail is append-only'; END $$",
                "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE ON audit "
                "FOR EACH ROW EXECUTE FUNCTION audit_refuse()",
                only="postgresql",
            ),
        ),
    )
]


class AuditEntry(msgspec.Struct, frozen=True):
    """One administrative write. ``detail`` is plain JSON data without secrets."""

    seq: int
    at_ms: int
    actor: str
    action: str
    target: str
    tenant: str | None
    detail: dict[str, Any]
    digest: str = ""


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What :func:`verify` found. ``problem`` is ``None`` when the chain holds."""

    entries: int
    head: str
    problem: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the chain holds."""
        return self.problem is None


@dataclass(frozen=True, slots=True)
class Note:
    """What an entry is made of: who did what to which thing of which tenant."""

    actor: str
    action: str
    target: str
    tenant: str | None = None
    detail: dict[str, Any] | None = None


def append(connection: Connection, *notes: Note) -> None:
    """Add entries within the caller's transaction; concurrent writers queue on the head's row."""
    connection.execute(update(head).values(seq=head.c.seq + len(notes)))  # takes the row's lock
    seq, digest = connection.execute(select(head.c.seq, head.c.digest)).one()
    now = unix_ms()
    rows = []
    for number, note in enumerate(notes, seq - len(notes) + 1):
        entry = AuditEntry(
            number, now, note.actor[:200], note.action, note.target[:300], note.tenant, note.detail or {}
        )
        digest = _chain(digest, entry)
        detail = msgspec.json.encode(entry.detail).decode()
        rows.append({**msgspec.structs.asdict(entry), "digest": digest, "detail": detail})
    if rows:
        connection.execute(insert(audit), rows)
        connection.execute(update(head).values(digest=digest))


def entries(
    engine: Engine, *, tenant: str | None = None, before: int | None = None, limit: int = 100
) -> list[AuditEntry]:
    """Return entries, newest first; of one tenant when given; ``before`` is the last seq of the page before."""
    query = select(audit).order_by(audit.c.seq.desc()).limit(limit)
    if tenant is not None:
        query = query.where(audit.c.tenant == tenant)
    if before is not None:
        query = query.where(audit.c.seq < before)
    with engine.connect() as connection:
        return [_entry(row._mapping) for row in connection.execute(query)]


def verify(engine: Engine, anchor: tuple[int, str] | None = None) -> AuditReport:
    """Walk the whole chain. ``anchor`` is a ``(seq, digest)`` noted earlier that must still be in it."""
    digest, expected = GENESIS, 1
    with engine.connect() as connection:
        head_seq, head_digest = connection.execute(select(head.c.seq, head.c.digest)).one()
        while True:
            page = connection.execute(
                select(audit)
                .where(audit.c.seq >= expected, audit.c.seq <= head_seq)
                .order_by(audit.c.seq)
                .limit(_PAGE)
            ).all()
            for row in page:
                entry = _entry(row._mapping)
                if entry.seq != expected:
                    return AuditReport(expected - 1, digest, f"entry {expected} is missing")
                digest = _chain(digest, entry)
                if digest != entry.digest:
                    return AuditReport(expected - 1, digest, f"entry {expected} was changed")
                if anchor is not None and anchor[0] == entry.seq and anchor[1] != digest:
                    return AuditReport(expected, digest, f"entry {expected} is not the anchored one")
                expected += 1
            if len(page) < _PAGE:
                break
    problem = None
    if (expected - 1, digest) != (head_seq, head_digest):
        problem = f"the chain ends at entry {expected - 1}, its head says {head_seq}"
    elif anchor is not None and anchor[0] > head_seq:
        problem = f"the anchored entry {anchor[0]} is missing: the chain was shortened"
    return AuditReport(expected - 1, digest, problem)


def _entry(row: Any) -> AuditEntry:
    return AuditEntry(**{**row, "detail": msgspec.json.decode(row["detail"])})


def _chain(previous: str, entry: AuditEntry) -> str:
    fields = msgspec.structs.asdict(entry)
    del fields["digest"]
    canonical = msgspec.json.encode(fields, order="deterministic")
    return hashlib.sha256(previous.encode() + canonical).hexdigest()
