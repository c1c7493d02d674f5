"""Backup and restore of a home: what was there is back; what is not sound is refused whole."""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from airi.errors import AuthenticationError
from airi.keyring import KeyRing
from airi.keys import KeyLog, NewKey, refresh
from airi.secrets import Secret
from airi.settings import Settings
from airi.up.backup import BackupError, HomeInUseError, backup, restore
from airi.up.databases import databases, migrate_all


@pytest.fixture
def settings(home: Path, redis_url: str) -> Settings:
    return Settings(home=home, redis_url=redis_url)


def _keys(settings: Settings) -> tuple[str, str]:
    """A key that works and one that is revoked."""
    migrate_all(settings)
    with databases(settings) as (main, _):
        log = KeyLog(main, None, KeyRing.open_for(settings))
        _, good = log.create(NewKey(tenant="dev"), actor="test")
        record, gone = log.create(NewKey(tenant="dev"), actor="test")
        log.revoke(record.id, actor="test")
    return good.reveal(), gone.reveal()


def test_a_restored_home_knows_its_keys(settings: Settings, tmp_path: Path) -> None:
    good, gone = _keys(settings)
    settings.records.mkdir()
    with databases(settings):  # taken while it is in use
        manifest = backup(settings, tmp_path / "b.tar.gz")
    assert set(manifest["files"]) == {"airi.db", "runs.db", "secret.key"}
    assert (tmp_path / "b.tar.gz").stat().st_mode & 0o777 == 0o600
    other = replace(settings, home=tmp_path / "other")
    restore(other, tmp_path / "b.tar.gz")
    assert other.home.stat().st_mode & 0o777 == 0o700
    with databases(other) as (main, _):
        log = KeyLog(main, None, KeyRing.open_for(other))
        known = log.new_map()
        refresh(known, log)
        assert known.authenticate(good).tenant == "dev"
        with pytest.raises(AuthenticationError):
            known.authenticate(gone)


def test_records_can_be_left_out(settings: Settings, tmp_path: Path) -> None:
    migrate_all(settings)
    settings.records.mkdir()
    (settings.records / "2026-11-20.db").touch()
    with_records = backup(settings, tmp_path / "with.tar.gz")
    without = backup(settings, tmp_path / "without.tar.gz", records=False)
    assert "records/2026-11-20.db" in with_records["files"]
    assert "records/2026-11-20.db" not in without["files"]
    restore(replace(settings, home=tmp_path / "other"), tmp_path / "with.tar.gz")
    assert (tmp_path / "other" / "records" / "2026-11-20.db").exists()


def test_a_home_with_state_is_not_overwritten(settings: Settings, tmp_path: Path) -> None:
    migrate_all(settings)
    backup(settings, tmp_path / "b.tar.gz")
    with pytest.raises(HomeInUseError, match="not empty"):
        restore(settings, tmp_path / "b.tar.gz")
    with pytest.raises(BackupError, match="exists already"):
        backup(settings, tmp_path / "b.tar.gz")


def test_an_empty_home_is_refused_in_words(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(BackupError, match="holds no AIRI state"):
        backup(settings, tmp_path / "b.tar.gz")


def test_a_database_server_goes_along_and_comes_back_into_a_new_database(
    settings: Settings, postgres_url: str, tmp_path: Path
) -> None:
    server = replace(settings, database_url=postgres_url)
    good, gone = _keys(server)
    manifest = backup(server, tmp_path / "b.tar.gz")
    assert set(manifest["files"]) == {"database.dump", "secret.key"}
    with pytest.raises(BackupError, match="set AIRI_DATABASE_URL"):
        restore(replace(settings, home=tmp_path / "other"), tmp_path / "b.tar.gz")
    name = f"{postgres_url.partition('?')[0].rpartition('/')[2]}_restored"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    try:
        head, _, query = postgres_url.partition("?")
        other = replace(
            server, home=tmp_path / "other", database_url=f"{head.rpartition('/')[0]}/{name}?{query}"
        )
        restore(other, tmp_path / "b.tar.gz")
        with databases(other) as (main, _):
            log = KeyLog(main, None, KeyRing.open_for(other))
            known = log.new_map()
            refresh(known, log)
            assert known.authenticate(good).tenant == "dev"
            with pytest.raises(AuthenticationError):
                known.authenticate(gone)
    finally:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


def test_money_that_redis_may_hold_is_not_left_behind(settings: Settings, tmp_path: Path) -> None:
    migrate_all(settings)
    (settings.home / "redis").mkdir()
    stopped = replace(settings, redis_url=f"unix://{tmp_path}/none.sock")
    with pytest.raises(BackupError, match="settled money"):
        backup(stopped, tmp_path / "b.tar.gz")


def _archive(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def _manifest(**files: str) -> tuple[str, bytes]:
    return "manifest.json", json.dumps({"format": 1, "files": files}).encode()


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([], "manifest"),
        ([("airi.db", b"x")], "manifest"),
        ([_manifest(**{"airi.db": "0" * 64}), ("airi.db", b"x")], "not what was saved"),
        ([_manifest(**{"airi.db": "0" * 64})], "missing"),
        ([_manifest(**{"../escape": "0" * 64}), ("../escape", b"x")], "does not belong"),
        ([_manifest(), ("airi.db", b"x")], "does not belong"),
        ([("manifest.json", b'{"format": 9, "files": {}}')], "not known to this release"),
        ([("manifest.json", b"{")], "damaged"),
    ],
)
def test_what_is_not_sound_leaves_nothing_behind(
    members: list[tuple[str, bytes]], why: str, tmp_path: Path
) -> None:
    archive = _archive(tmp_path / "bad.tar.gz", *members)
    home = tmp_path / "home"
    with pytest.raises(BackupError, match=why):
        restore(Settings(home=home), archive)
    assert [path.name for path in tmp_path.iterdir()] == ["bad.tar.gz"]


def test_the_manifest_says_where_the_key_to_the_secrets_is(settings: Settings, tmp_path: Path) -> None:
    _keys(settings)
    assert backup(settings, tmp_path / "a.tar.gz")["secrets_sealed_with"] == "secret.key"
    given = replace(settings, secret_key=Secret("0" * 64))
    assert backup(given, tmp_path / "b.tar.gz")["secrets_sealed_with"] == "AIRI_SECRET_KEY"
