"""Migrations of the configuration store."""

from __future__ import annotations

from airi.database import Migration
from airi.ddl import statements

MIGRATIONS = [
    Migration(
        1,
        "versions and resources",
        statements(
            "CREATE TABLE config_head (id INTEGER PRIMARY KEY, version BIGINT NOT NULL)",
            "INSERT INTO config_head (id, version) VALUES (1, 0)",
            """
            CREATE TABLE config_versions (
                version BIGINT PRIMARY KEY,
                digest VARCHAR(64) NOT NULL,
                author VARCHAR(200) NOT NULL,
                change VARCHAR(20) NOT NULL,
                comment TEXT NOT NULL,
                created_at_ms BIGINT NOT NULL
            )
            """,
            """
            CREATE TABLE config_resources (
                kind VARCHAR(32) NOT NULL,
                name VARCHAR(128) NOT NULL,
                manager VARCHAR(16) NOT NULL,
                version BIGINT NOT NULL,
                digest VARCHAR(64) NOT NULL,
                body TEXT NOT NULL,
                PRIMARY KEY (kind, name)
            )
            """,
            """
            CREATE TABLE config_changes (
                version BIGINT NOT NULL,
                kind VARCHAR(32) NOT NULL,
                name VARCHAR(128) NOT NULL,
                manager VARCHAR(16) NOT NULL,
                digest VARCHAR(64),
                body TEXT,
                PRIMARY KEY (version, kind, name)
            )
            """,
            "CREATE INDEX config_changes_by_resource ON config_changes (kind, name, version)",
        ),
    )
]
