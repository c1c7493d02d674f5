"""The ordered log of API keys in SQL: issuing, changing, rotating and revoking.

Every change takes the next sequence number under the lock of one row that is held until the commit, so that numbers
become visible in order, without gaps: a reader that has seen *n* has seen all before *n*. The ``keys`` table is the
log's newest entry per key; reading it by ``seq`` is reading the log compacted. A rollback of the configuration never
touches it, and nothing in it can bring a revoked key back.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import Connection, Engine, insert, select, update

from airi import audit
from airi.clock import unix_ms
from airi.config.notify import announce
from airi.database import write
from airi.keyring import KeyRing
from airi.keys.errors import KeyNotFoundError, KeyStateError
from airi.keys.keymap import PREFIX, Digester, KeyMap
from airi.keys.record import KeyBudget, KeyLimits, KeyRecord, RetiringSecret, Role, pack, unpack
from airi.keys.schema import key_head, key_log, keys
from airi.keys.scopes import networks
from airi.pace import Pace
from airi.secrets import Secret
from airi.vault import Vault

if TYPE_CHECKING:
    import redis

PAGE = 1_000
MAX_OVERLAP_MS = 90 * 24 * 3_600_000
_PEPPER = "api key pepper"
_MAX_RETIRING = 4


class NewKey(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is asked for when a key is made; the meaning is that of :class:`airi.keys.record.KeyRecord`."""

    tenant: str
    team: str | None = None
    user: str | None = None
    role: Role = "developer"
    name: str = ""
    models: tuple[str, ...] = ()
    routes: tuple[str, ...] = ()
    cidrs: tuple[str, ...] = ()
    expires_at_ms: int | None = None
    limits: KeyLimits = KeyLimits()
    budgets: tuple[KeyBudget, ...] = ()


class KeyLog:
    """Blocking; each change is one transaction with its entry in the audit trail, then a notice."""

    def __init__(self, engine: Engine, client: redis.Redis | None, ring: KeyRing) -> None:
        self._engine = engine
        self._redis = client
        self._vault = Vault(engine, ring)

    @cached_property
    def pepper(self) -> bytes:
        """The 32 random bytes under which all digests are made; sealed in the vault, independent of rotation."""
        return self._vault.ensure(_PEPPER, lambda: os.urandom(32))

    def new_map(self) -> KeyMap:
        """Return an empty :class:`KeyMap` for these keys; fill it with :func:`refresh`."""
        return KeyMap(self.pepper)

    def create(self, new: NewKey, *, actor: str) -> tuple[KeyRecord, Secret]:
        """Issue a key; the token is returned here and never again."""
        return self.create_many([new], actor=actor)[0]

    def create_many(self, wanted: Iterable[NewKey], *, actor: str) -> list[tuple[KeyRecord, Secret]]:
        """Issue many keys in one transaction, with one entry in the audit trail for each."""
        made = [self._make(new) for new in wanted]
        if not made:
            return []
        with write(self._engine) as connection:
            seq = _next(connection, len(made))
            numbered = [(number, record) for number, (record, _) in enumerate(made, seq - len(made) + 1)]
            rows = [
                {"id": record.id, "seq": number, "tenant": record.tenant, "record": pack(record)}
                for number, record in numbered
            ]
            connection.execute(insert(keys), rows)
            _note(connection, numbered, "create", actor)
        announce(self._redis, keys=seq)
        return made

    def rotate(self, key_id: str, *, overlap_ms: int, actor: str) -> tuple[KeyRecord, Secret]:
        """Give the key a new secret; the old one works for ``overlap_ms`` more. The id stays."""
        if not 0 <= overlap_ms <= MAX_OVERLAP_MS:
            raise KeyStateError(f"overlap must lie between 0 and {MAX_OVERLAP_MS // 86_400_000} days")
        token = _token(key_id)
        now = unix_ms()

        def change(record: KeyRecord) -> KeyRecord:
            _refuse_revoked(record)
            retiring = tuple(old for old in record.retiring if old.until_ms > now)
            if overlap_ms:
                retiring = (*retiring, RetiringSecret(record.digest, now + overlap_ms))
            if len(retiring) > _MAX_RETIRING:
                raise KeyStateError(
                    f"key {key_id} has {_MAX_RETIRING} older secrets in overlap already; wait or revoke"
                )
            return msgspec.structs.replace(record, digest=Digester(self.pepper)(token), retiring=retiring)

        return self._change(key_id, "rotate", actor, change), Secret(token)

    def revoke(self, key_id: str, *, actor: str) -> KeyRecord:
        """End a key for good, its secrets in overlap too; revoking again changes nothing."""
        found = self.get(key_id)
        if found.revoked:
            return found
        return self._change(
            key_id, "revoke", actor, lambda record: msgspec.structs.replace(record, revoked=True, retiring=())
        )

    def change(self, key_id: str, edit: Callable[[KeyRecord], KeyRecord], *, actor: str) -> KeyRecord:
        """Alter scopes, limits, budgets, name or expiry; ``edit`` gets the newest record within the transaction."""

        def guarded(record: KeyRecord) -> KeyRecord:
            _refuse_revoked(record)
            edited = edit(record)
            networks(edited.cidrs)
            kept = {"id": record.id, "digest": record.digest, "retiring": record.retiring, "revoked": False}
            return msgspec.structs.replace(edited, **kept)

        return self._change(key_id, "change", actor, guarded)

    def get(self, key_id: str) -> KeyRecord:
        """Return a key's newest record; :class:`KeyNotFoundError`."""
        with self._engine.connect() as connection:
            return _read(connection, key_id)

    def records(self, *, tenant: str | None = None, after: str = "", limit: int = 100) -> list[KeyRecord]:
        """Return records in order of id, of one tenant when given; ``after`` is the last id of the page before."""
        query = select(keys.c.record).where(keys.c.id > after).order_by(keys.c.id).limit(limit)
        if tenant is not None:
            query = query.where(keys.c.tenant == tenant)
        with self._engine.connect() as connection:
            return [unpack(data) for data in connection.scalars(query)]

    def seq(self) -> int:
        """Return the last sequence number."""
        with self._engine.connect() as connection:
            return connection.scalar(select(key_head.c.seq)) or 0

    def entries_after(self, seq: int, limit: int = PAGE) -> list[tuple[int, KeyRecord]]:
        """Return up to ``limit`` keys that changed after ``seq``, oldest change first, each in its newest state."""
        return [(number, unpack(data)) for number, _, data in self.packed_after(seq, limit)]

    def packed_after(self, seq: int, limit: int = PAGE) -> list[tuple[int, str, bytes]]:
        """As :meth:`entries_after`, as ``(seq, key id, packed record)``: what :meth:`KeyMap.apply_packed` takes."""
        query = (
            select(keys.c.seq, keys.c.id, keys.c.record)
            .where(keys.c.seq > seq)
            .order_by(keys.c.seq)
            .limit(limit)
        )
        with self._engine.connect() as connection:
            return [(number, key_id, data) for number, key_id, data in connection.execute(query)]

    def _make(self, new: NewKey) -> tuple[KeyRecord, Secret]:
        networks(new.cidrs)
        key_id = secrets.token_hex(8)
        token = _token(key_id)
        fields = {name: getattr(new, name) for name in NewKey.__struct_fields__}
        record = KeyRecord(id=key_id, digest=Digester(self.pepper)(token), created_at_ms=unix_ms(), **fields)
        return record, Secret(token)

    def _change(
        self, key_id: str, name: str, actor: str, edit: Callable[[KeyRecord], KeyRecord]
    ) -> KeyRecord:
        with write(self._engine) as connection:
            seq = _next(connection, 1)  # first: its lock makes the read below the newest
            record = edit(_read(connection, key_id))
            connection.execute(
                update(keys)
                .where(keys.c.id == key_id)
                .values(seq=seq, record=pack(record), tenant=record.tenant)
            )
            _note(connection, [(seq, record)], name, actor)
        announce(self._redis, keys=seq)
        return record


def refresh(key_map: KeyMap, log: KeyLog, page: int = PAGE) -> int:
    """Bring ``key_map`` up to the log's end; return how many keys changed. Blocking: call it in a thread.

    Filling an empty map goes at full speed; a map in use is brought up to date in small slices.
    """
    changed = 0
    pace = Pace() if key_map.seq else None
    while True:
        entries = log.packed_after(key_map.seq, page)
        key_map.apply_packed(entries)
        changed += len(entries)
        if len(entries) < page:
            return changed
        if pace is not None:
            pace()


def _token(key_id: str) -> str:
    return f"{PREFIX}{key_id}_{secrets.token_hex(24)}"


def _refuse_revoked(record: KeyRecord) -> None:
    if record.revoked:
        raise KeyStateError(f"key {record.id} is revoked; make a new one", code="key_revoked")


def _next(connection: Connection, count: int) -> int:
    """Take ``count`` sequence numbers and return the last; the row's lock is held until the commit."""
    connection.execute(update(key_head).values(seq=key_head.c.seq + count))
    return int(connection.scalars(select(key_head.c.seq)).one())


def _read(connection: Connection, key_id: str) -> KeyRecord:
    data = connection.scalar(select(keys.c.record).where(keys.c.id == key_id))
    if data is None:
        raise KeyNotFoundError(f"there is no key {key_id!r}")
    return unpack(data)


def _note(connection: Connection, changes: Iterable[tuple[int, KeyRecord]], change: str, actor: str) -> None:
    """Write the log's rows and the audit trail's entries of numbered changes."""
    changes = list(changes)
    now = unix_ms()
    rows = [
        {"seq": seq, "key_id": record.id, "change": change, "actor": actor[:200], "at_ms": now}
        for seq, record in changes
    ]
    connection.execute(insert(key_log), rows)
    notes = (
        audit.Note(
            actor,
            f"key.{change}",
            f"key/{record.id}",
            record.tenant,
            {"seq": seq, "role": record.role, "team": record.team},
        )
        for seq, record in changes
    )
    audit.append(connection, *notes)
