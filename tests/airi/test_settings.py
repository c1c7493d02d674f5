"""The environment: what cannot be meant is said at once, with the variable's name, before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from airi.errors import ConfigError
from airi.settings import Settings


def read(**environment: str) -> Settings:
    return Settings.from_environment(environment)


def test_what_is_not_said_has_a_default() -> None:
    settings = read(AIRI_PORT="", AIRI_WORKERS="")
    assert (settings.port, settings.workers, settings.admin_port, settings.sim_replicas) == (4000, 1, None, 2)
    assert read(AIRI_PORT="65535", AIRI_ADMIN_PORT="1", AIRI_WORKERS="8").port == 65_535
    assert read(
        AIRI_SECRET_KEY=f"{'n' * 32}, {'o' * 40}", AIRI_DATABASE_URL="postgresql+psycopg://h/d"
    ).secret_key


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("AIRI_PORT", "http", "AIRI_PORT: expected a whole number, got 'http'"),
        ("AIRI_PORT", "-1", "AIRI_PORT: expected a whole number"),
        ("AIRI_PORT", "²", "AIRI_PORT: expected a whole number"),
        ("AIRI_PORT", "0", "AIRI_PORT: expected a number between 1 and 65535, got 0"),
        ("AIRI_PORT", "65536", "AIRI_PORT: expected a number between 1 and 65535"),
        ("AIRI_ADMIN_PORT", "9" * 5_000, "AIRI_ADMIN_PORT: expected a number between 1 and 65535"),
        ("AIRI_WORKERS", "0", "AIRI_WORKERS: expected a number between 1"),
        ("AIRI_SIM_REPLICAS", "0", "AIRI_SIM_REPLICAS: expected a number between 1"),
        ("AIRI_CONFIG", "/nowhere/airi.yaml", "AIRI_CONFIG: /nowhere/airi.yaml does not exist"),
        ("AIRI_TLS_KEY", "/nowhere/key.pem", "AIRI_TLS_CERTIFICATE and AIRI_TLS_KEY must be set together"),
        ("AIRI_DATABASE_URL", "mysql://u:pass@h/d", "AIRI_DATABASE_URL: 'mysql' is not supported"),
        ("AIRI_SECRET_KEY", "short", "AIRI_SECRET_KEY: each key needs at least 32 random characters"),
        ("AIRI_SECRET_KEY", f"{'n' * 32},short", "AIRI_SECRET_KEY: each key needs at least 32"),
    ],
)
def test_what_cannot_be_meant_is_said(name: str, value: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(**{name: value})
    assert message in str(caught.value)
    assert "pass" not in str(caught.value)


def test_every_fault_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(AIRI_HOME=str(tmp_path), AIRI_PORT="0", AIRI_WORKERS="x", AIRI_SECRET_KEY="short")
    assert len(caught.value.problems) == 3
