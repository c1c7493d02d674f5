"""Tables of API keys."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, LargeBinary, MetaData, String, Table

metadata = MetaData()

keys = Table(
    "keys",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("seq", BigInteger, nullable=False, unique=True),
    Column("tenant", String(128), nullable=False),
    Column("record", LargeBinary, nullable=False),
)
"""The newest state of each key; ``seq`` is that of its last entry in the log."""

key_log = Table(
    "key_log",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("key_id", String(64), nullable=False),
    Column("change", String(20), nullable=False),
    Column("actor", String(200), nullable=False),
    Column("at_ms", BigInteger, nullable=False),
)
"""What happened to keys, in order; never changed, never shortened."""

key_head = Table(
    "key_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, nullable=False),
)
"""One row: the last sequence number. Its lock orders writers, so that numbers become visible in order."""
