"""Logical copies: complete, of one moment, between SQLite and PostgreSQL, refused when damaged."""

from __future__ import annotations

import gzip
import threading
from pathlib import Path

import pytest
from sqlalchemy import Engine

from airi import audit
from airi.config.kinds import Metadata, Tenant
from airi.config.store import ConfigStore
from airi.content import ContentStore
from airi.database import open_engine
from airi.dump import DatabaseInUseError, DumpError, dump, load, verify
from airi.keyring import KeyRing
from airi.keys import InvalidKeyError, KeyLog, NewKey, refresh
from airi.secrets import Secret
from airi.storage import CONTENT_ROOMS, prepare

RING = KeyRing([Secret("d" * 40)])


def fill(engine: Engine) -> tuple[str, str, str]:
    prepare(engine)
    ConfigStore(engine).put(Tenant(metadata=Metadata(name="acme"), weight=2.5), author="x")
    log = KeyLog(engine, None, RING)
    _, live = log.create(NewKey(tenant="acme"), actor="x")
    dead_record, dead = log.create(NewKey(tenant="acme"), actor="x")
    log.revoke(dead_record.id, actor="x")
    return live.reveal(), dead.reveal(), ContentStore(engine, RING).put("acme", b"\x00content", "keep")


@pytest.mark.parametrize("target_kind", ["sqlite", "postgres"])
def test_everything_comes_back(
    any_engine: Engine, target_kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    live, dead, ref = fill(any_engine)
    path = tmp_path / "x.dump"
    counts = dump(any_engine, path)
    assert path.stat().st_mode & 0o777 == 0o600
    verify(path)
    if target_kind == "postgres" and any_engine.dialect.name == "postgresql":
        pytest.skip("one PostgreSQL database a test")
    url = (
        f"sqlite:///{tmp_path / 'new.db'}"
        if target_kind == "sqlite"
        else request.getfixturevalue("postgres_url")
    )
    engine = open_engine(url, full_sync=True)
    prepare(engine)
    assert load(engine, path) == counts
    key_map = KeyLog(engine, None, RING).new_map()
    refresh(key_map, KeyLog(engine, None, RING))
    key_map.authenticate(live)
    with pytest.raises(InvalidKeyError, match="revoked"):
        key_map.authenticate(dead)
    assert ContentStore(engine, RING).get("acme", ref) == b"\x00content"
    assert ConfigStore(engine).current().digest == ConfigStore(any_engine).current().digest
    assert audit.verify(engine) == audit.verify(any_engine)
    ConfigStore(engine).put(Tenant(metadata=Metadata(name="next")), author="x")
    KeyLog(engine, None, RING).create(NewKey(tenant="acme"), actor="x")
    assert audit.verify(engine).ok
    with pytest.raises(DatabaseInUseError):
        load(engine, path)
    engine.dispose()


def test_a_dump_sees_one_moment(any_engine: Engine, tmp_path: Path) -> None:
    """Keys are written all the while; each dump's log and keys agree."""
    fill(any_engine)
    log = KeyLog(any_engine, None, RING)
    stop = threading.Event()

    def write_on() -> None:
        while not stop.is_set():
            log.create(NewKey(tenant="acme"), actor="x")

    thread = threading.Thread(target=write_on)
    thread.start()
    try:
        for number in range(5):
            counts = dump(any_engine, tmp_path / f"{number}.dump")
            assert counts["keys"] + 1 == counts["key_log"]  # one key has two entries
            assert counts["audit"] == counts["key_log"] + 1
    finally:
        stop.set()
        thread.join()


def test_damage_is_noticed_and_nothing_is_loaded(sqlite_engine: Engine, tmp_path: Path) -> None:
    fill(sqlite_engine)
    path = tmp_path / "x.dump"
    dump(sqlite_engine, path)
    whole = gzip.decompress(path.read_bytes())
    engine = open_engine(f"sqlite:///{tmp_path / 'new.db'}", full_sync=True)
    prepare(engine)
    damaged = [
        gzip.compress(whole[: len(whole) // 2]),
        gzip.compress(whole[:-1]),
        gzip.compress(whole + b"x"),
        gzip.compress(whole[:300] + bytes([whole[300] ^ 1]) + whole[301:]),
        gzip.compress(b"\xff" * 64),
        path.read_bytes()[:-20],
        b"not gzip",
        b"",
    ]
    for data in damaged:
        bad = tmp_path / "bad.dump"
        bad.write_bytes(data)
        with pytest.raises(DumpError):
            load(engine, bad)
    assert audit.verify(engine).entries == 0
    assert load(engine, path)["keys"] == 2
    with pytest.raises(FileExistsError):
        dump(sqlite_engine, path)
    engine.dispose()


def test_another_releases_dump_is_refused(sqlite_engine: Engine, tmp_path: Path) -> None:
    fill(sqlite_engine)
    path = tmp_path / "x.dump"
    dump(sqlite_engine, path)
    engine = open_engine(f"sqlite:///{tmp_path / 'new.db'}", full_sync=True)
    with pytest.raises(DumpError, match="airi migrate"):
        load(engine, path)
    prepare(engine, CONTENT_ROOMS)
    with pytest.raises(DumpError, match="another release"):
        load(engine, path)
    engine.dispose()
