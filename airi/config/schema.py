"""Tables of the configuration store."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Integer, MetaData, String, Table, Text

metadata = MetaData()

config_head = Table(
    "config_head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("version", BigInteger, nullable=False),
)
"""One row: the version that serves. Its lock orders writers."""

config_versions = Table(
    "config_versions",
    metadata,
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False),
    Column("author", String(200), nullable=False),
    Column("change", String(20), nullable=False),
    Column("comment", Text, nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
)
"""Every version there was. ``change``: apply, put, delete or rollback."""

config_resources = Table(
    "config_resources",
    metadata,
    Column("kind", String(32), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("manager", String(16), nullable=False),
    Column("version", BigInteger, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("body", Text, nullable=False),
)
"""What serves now; ``version`` is the one in which the resource last changed."""

config_changes = Table(
    "config_changes",
    metadata,
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", String(32), primary_key=True),
    Column("name", String(128), primary_key=True),
    Column("manager", String(16), nullable=False),
    Column("digest", String(64)),
    Column("body", Text),
)
"""What each version changed; a NULL body is a removal. The state at any version is the newest row up to it."""
