"""Content: messages, step outputs, stored answers and idempotent replies, by hash.

Everything else holds references. A tenant's content is encrypted (AES-256-GCM) with the tenant's own data key, which
lies sealed in the vault of the same database; forgetting that key makes all of it unreadable at once. The same content
of one tenant is stored once. Every table row is bound to its tenant and reference, so none can be moved.
"""

from __future__ import annotations

import hashlib
import os
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    LargeBinary,
    MetaData,
    String,
    Table,
    delete,
    func,
    select,
    text,
    update,
)

from airi.clock import unix_ms
from airi.database import Migration, write
from airi.ddl import statements
from airi.errors import AiriError, RateLimitError
from airi.keyring import KeyRing
from airi.vault import Vault

Retention = Literal["run", "day", "keep"]
_HOUR_MS = 3_600_000
RETENTION_MS: dict[Retention, int | None] = {"day": 25 * _HOUR_MS, "run": 30 * 24 * _HOUR_MS, "keep": None}
"""``day`` outlives the 24 hours of an idempotency key by one; ``run`` is what a finished run can be read for."""
MAX_ITEM_BYTES = 32 * 1024 * 1024
MAX_TENANT_BYTES = 20 * 1024**3
_NEVER = 2**62
_NONCE = 12
_SWEEP_BATCH = 500

_metadata = MetaData()
content = Table(
    "content",
    _metadata,
    Column("tenant", String(128), primary_key=True),
    Column("ref", String(64), primary_key=True),
    Column("box", LargeBinary, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
)
usage = Table(
    "content_usage",
    _metadata,
    Column("tenant", String(128), primary_key=True),
    Column("bytes", BigInteger, nullable=False),
)

MIGRATIONS = [
    Migration(
        1,
        "content",
        statements(
            """
            CREATE TABLE content (
                tenant VARCHAR(128) NOT NULL,
                ref VARCHAR(64) NOT NULL,
                box {blob} NOT NULL,
                bytes BIGINT NOT NULL,
                expires_at_ms BIGINT NOT NULL,
                PRIMARY KEY (tenant, ref)
            )
            """,
            "CREATE INDEX content_by_expiry ON content (expires_at_ms)",
            "CREATE TABLE content_usage (tenant VARCHAR(128) PRIMARY KEY, bytes BIGINT NOT NULL)",
        ),
    )
]
"""For room ``content``; the vault's migrations come first (see :func:`airi.storage.prepare`)."""
_INSERT = text(
    "INSERT INTO content (tenant, ref, box, bytes, expires_at_ms) VALUES (:tenant, :ref, :box, :bytes, :expires_at_ms) "
    "ON CONFLICT (tenant, ref) DO NOTHING"
)
_ADD_USAGE = text(
    "INSERT INTO content_usage (tenant, bytes) VALUES (:tenant, :bytes) "
    "ON CONFLICT (tenant) DO UPDATE SET bytes = content_usage.bytes + excluded.bytes"
)


class ContentTooLargeError(AiriError):
    """One item is larger than the store takes (413)."""

    status = 413
    type = "invalid_request_error"
    code = "content_too_large"


class ContentFullError(RateLimitError):
    """The tenant's share of the content store is used up (429); nothing was stored."""

    code = "content_store_full"


class ContentDamagedError(AiriError):
    """Stored content cannot be opened: it was changed, or its tenant's key was forgotten."""

    code = "content_damaged"


class ContentStore:
    """Blocking; ``put`` and ``get`` are one transaction each, the ``_in`` forms join the caller's."""

    def __init__(self, engine: Engine, ring: KeyRing, *, max_tenant_bytes: int = MAX_TENANT_BYTES) -> None:
        self._engine = engine
        self._vault = Vault(engine, ring)
        self._max_tenant_bytes = max_tenant_bytes

    def put(self, tenant: str, data: bytes, retention: Retention) -> str:
        """Store ``data`` and return its reference (SHA-256, 64 hex digits)."""
        with write(self._engine) as connection:
            return self.put_in(connection, tenant, data, retention)

    def put_in(self, connection: Connection, tenant: str, data: bytes, retention: Retention) -> str:
        """As :meth:`put`, within the caller's transaction on the same database."""
        if len(data) > MAX_ITEM_BYTES:
            raise ContentTooLargeError(f"content of {len(data):,} bytes; the most is {MAX_ITEM_BYTES:,}")
        ref = hashlib.sha256(data).hexdigest()
        lifetime = RETENTION_MS[retention]
        expires = _NEVER if lifetime is None else unix_ms() + lifetime
        here = (content.c.tenant == tenant) & (content.c.ref == ref)
        known = connection.scalar(select(content.c.expires_at_ms).where(here))
        if known is None:
            nonce = os.urandom(_NONCE)
            box = nonce + self._cipher(connection, tenant).encrypt(nonce, data, _aad(tenant, ref))
            row = {"tenant": tenant, "ref": ref, "box": box, "bytes": len(box), "expires_at_ms": expires}
            if connection.execute(_INSERT, row).rowcount == 1:
                self._charge(connection, tenant, len(box))
                return ref
        connection.execute(
            update(content).where(here, content.c.expires_at_ms < expires).values(expires_at_ms=expires)
        )
        return ref

    def get(self, tenant: str, ref: str) -> bytes | None:
        """Return the content, or ``None`` when there is none of this tenant (any more)."""
        with self._engine.connect() as connection:
            return self.get_in(connection, tenant, ref)

    def get_in(self, connection: Connection, tenant: str, ref: str) -> bytes | None:
        """As :meth:`get`, within the caller's transaction."""
        box = connection.scalar(select(content.c.box).where(content.c.tenant == tenant, content.c.ref == ref))
        if box is None:
            return None
        cipher = self._existing_cipher(connection, tenant)
        if cipher is None:
            raise ContentDamagedError("the tenant's data key is gone; its content cannot be read")
        try:
            return cipher.decrypt(box[:_NONCE], box[_NONCE:], _aad(tenant, ref))
        except InvalidTag as error:
            raise ContentDamagedError(f"content {ref[:12]}… was changed") from error

    def remove_in(self, connection: Connection, tenant: str, ref: str) -> bool:
        """Remove one item within the caller's transaction; whoever else refers to the same content loses it too."""
        return bool(self._remove(connection, tenant, ref, _NEVER))

    def sweep(self, now_ms: int) -> int:
        """Remove what has expired, in short transactions; return how many items went."""
        removed = 0
        while True:
            with write(self._engine) as connection:
                rows = connection.execute(
                    select(content.c.tenant, content.c.ref)
                    .where(content.c.expires_at_ms <= now_ms)
                    .order_by(content.c.tenant, content.c.ref)
                    .limit(_SWEEP_BATCH)
                ).all()
                for tenant, ref in rows:
                    removed += self._remove(connection, tenant, ref, now_ms)
            if len(rows) < _SWEEP_BATCH:
                return removed

    def forget(self, tenant: str) -> int:
        """Remove a tenant's data key and all of its content; return how many items went."""
        with write(self._engine) as connection:
            self._vault.forget_in(connection, _key_name(tenant))
            gone = connection.execute(delete(content).where(content.c.tenant == tenant)).rowcount
            connection.execute(delete(usage).where(usage.c.tenant == tenant))
        return gone

    def used_bytes(self, tenant: str) -> int:
        """Return how many bytes of the tenant are stored."""
        with self._engine.connect() as connection:
            return connection.scalar(select(func.sum(usage.c.bytes)).where(usage.c.tenant == tenant)) or 0

    def _remove(self, connection: Connection, tenant: str, ref: str, now_ms: int) -> int:
        here = (content.c.tenant == tenant) & (content.c.ref == ref) & (content.c.expires_at_ms <= now_ms)
        size = connection.scalar(select(content.c.bytes).where(here))
        gone = connection.execute(delete(content).where(here)).rowcount
        if gone:
            connection.execute(_ADD_USAGE, {"tenant": tenant, "bytes": -(size or 0)})
        return gone

    def _charge(self, connection: Connection, tenant: str, size: int) -> None:
        connection.execute(_ADD_USAGE, {"tenant": tenant, "bytes": size})
        used = connection.scalar(select(usage.c.bytes).where(usage.c.tenant == tenant)) or 0
        if used > self._max_tenant_bytes:
            raise ContentFullError(
                f"the content of tenant {tenant!r} would take {used:,} bytes; its share is {self._max_tenant_bytes:,}. "
                "Content expires by itself; ask your administrator for more",
                retry_after_ms=_HOUR_MS,
            )

    def _cipher(self, connection: Connection, tenant: str) -> AESGCM:
        """Return the tenant's cipher, making its data key on first use."""
        cipher = self._existing_cipher(connection, tenant)
        if cipher is None:
            self._vault.put_in(connection, _key_name(tenant), os.urandom(32))
            cipher = self._existing_cipher(connection, tenant)
            assert cipher is not None
        return cipher

    def _existing_cipher(self, connection: Connection, tenant: str) -> AESGCM | None:
        """Read the data key each time: a cache would outlive a rollback here, or a :meth:`forget` elsewhere."""
        key = self._vault.get_in(connection, _key_name(tenant))
        return None if key is None else AESGCM(key)


def _key_name(tenant: str) -> str:
    return f"content key|{tenant}"


def _aad(tenant: str, ref: str) -> bytes:
    return f"{tenant}|{ref}".encode()
