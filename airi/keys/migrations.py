"""Migrations of the keys' tables."""

from __future__ import annotations

from airi.database import Migration
from airi.ddl import statements

MIGRATIONS = [
    Migration(
        1,
        "keys and their log",
        statements(
            """
            CREATE TABLE keys (
                id VARCHAR(64) PRIMARY KEY,
                seq BIGINT NOT NULL UNIQUE,
                tenant VARCHAR(128) NOT NULL,
                record {blob} NOT NULL
            )
            """,
            "CREATE INDEX keys_by_tenant ON keys (tenant, id)",
            """
            CREATE TABLE key_log (
                seq BIGINT PRIMARY KEY,
                key_id VARCHAR(64) NOT NULL,
                change VARCHAR(20) NOT NULL,
                actor VARCHAR(200) NOT NULL,
                at_ms BIGINT NOT NULL
            )
            """,
            "CREATE INDEX key_log_by_key ON key_log (key_id, seq)",
            "CREATE TABLE key_head (id INTEGER PRIMARY KEY, seq BIGINT NOT NULL)",
            "INSERT INTO key_head (id, seq) VALUES (1, 0)",
        ),
    )
]
