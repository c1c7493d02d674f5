"""What the gateway knows of an API key: everything but the secret."""

from __future__ import annotations

from typing import Literal

import msgspec

Role = Literal[
    "platform_admin", "org_admin", "policy_author", "policy_approver", "auditor", "developer", "service"
]


class KeyLimits(msgspec.Struct, frozen=True, omit_defaults=True):
    """Rates of one key, with the attribute names of :class:`airi.config.kinds.Limits`; ``None`` is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_calls: int | None = None


class KeyBudget(msgspec.Struct, frozen=True, omit_defaults=True):
    """Money of one key, with the attribute names of :class:`airi.config.kinds.Budget`; ``usd`` in micro-dollars."""

    name: str
    usd: int
    window: Literal["minute", "hour", "day", "week", "month", "total"] = "month"
    mode: Literal["hard", "soft"] = "hard"


class RetiringSecret(msgspec.Struct, frozen=True, array_like=True):
    """The digest of a rotated secret, good until ``until_ms`` (Unix milliseconds)."""

    digest: bytes
    until_ms: int


class KeyRecord(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One API key. ``digest`` is HMAC-SHA256 of the token under the pepper; the secret itself is nowhere.

    ``models`` and ``routes`` are patterns (``*`` matches any run of characters), ``cidrs`` networks; an empty
    tuple means all. Times are Unix milliseconds. A key's id survives rotation, so limits, budgets, policies and
    ledger entries that name it go on.
    """

    id: str
    tenant: str
    digest: bytes
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
    revoked: bool = False
    retiring: tuple[RetiringSecret, ...] = ()
    created_at_ms: int = 0


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(KeyRecord)


def pack(record: KeyRecord) -> bytes:
    """Return the record as MessagePack (about 120 bytes), as the log stores it and the map holds it."""
    return _ENCODER.encode(record)


def unpack(data: bytes) -> KeyRecord:
    """Return the record that :func:`pack` wrote; fields of a later release are ignored."""
    return _DECODER.decode(data)
