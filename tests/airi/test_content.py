"""The content store and the audit trail, on SQLite and PostgreSQL."""

from __future__ import annotations

import hashlib
import threading

import pytest
from sqlalchemy import Engine, select, text, update
from sqlalchemy.exc import DatabaseError

from airi import audit
from airi import content as module
from airi.clock import unix_ms
from airi.content import ContentDamagedError, ContentFullError, ContentStore, ContentTooLargeError, content
from airi.database import write
from airi.keyring import KeyRing
from airi.secrets import Secret
from airi.storage import CONTENT_ROOMS, prepare
from airi.vault import Vault

RING = KeyRing([Secret("c" * 40)])
DAY_MS = 24 * 3_600_000


@pytest.fixture
def store(any_engine: Engine) -> ContentStore:
    prepare(any_engine, CONTENT_ROOMS)
    return ContentStore(any_engine, RING)


def test_content_is_found_by_tenant_and_hash_and_encrypted(store: ContentStore, any_engine: Engine) -> None:
    ref = store.put("acme", b"hello world", "run")
    assert ref == hashlib.sha256(b"hello world").hexdigest()
    assert store.get("acme", ref) == b"hello world"
    assert store.get("other", ref) is None
    assert store.get("acme", "0" * 64) is None
    with any_engine.connect() as connection:
        assert b"hello" not in connection.scalars(select(content.c.box)).one()
    assert store.put("acme", b"", "day") == hashlib.sha256(b"").hexdigest()
    assert store.get("acme", hashlib.sha256(b"").hexdigest()) == b""


def test_the_same_content_is_stored_once_for_the_longest_time(store: ContentStore) -> None:
    now = unix_ms()
    ref = store.put("t", b"x" * 1_000, "day")
    used = store.used_bytes("t")
    assert store.put("t", b"x" * 1_000, "run") == ref
    assert store.put("t", b"x" * 1_000, "day") == ref
    assert store.used_bytes("t") == used
    assert store.sweep(now + 2 * DAY_MS) == 0
    assert store.sweep(now + 31 * DAY_MS) == 1
    assert store.get("t", ref) is None
    assert store.used_bytes("t") == 0


def test_sweeping_keeps_what_is_kept(store: ContentStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SWEEP_BATCH", 2)
    for number in range(5):
        store.put("t", b"%d" % number, "day")
    kept = store.put("t", b"keep", "keep")
    assert store.sweep(unix_ms()) == 0
    assert store.sweep(unix_ms() + 2 * DAY_MS) == 5
    assert store.get("t", kept) == b"keep"


def test_it_joins_the_callers_transaction(store: ContentStore, any_engine: Engine) -> None:
    with any_engine.connect() as connection:
        ref = store.put_in(connection, "t", b"data", "run")
        assert store.get_in(connection, "t", ref) == b"data"
        connection.rollback()
    assert store.get("t", ref) is None
    assert store.put("t", b"data", "run") == ref  # the data key was rolled back too, and is made anew
    assert store.get("t", ref) == b"data"


def test_bounds(store: ContentStore, any_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ContentStore(any_engine, RING, max_tenant_bytes=200)
    small.put("t", b"a" * 100, "run")
    with pytest.raises(ContentFullError) as caught:
        small.put("t", b"b" * 100, "run")
    assert caught.value.status == 429
    assert small.used_bytes("t") == 128
    small.put("u", b"b" * 100, "run")  # each tenant has a share of its own
    monkeypatch.setattr(module, "MAX_ITEM_BYTES", 10)
    with pytest.raises(ContentTooLargeError) as large:
        small.put("t", b"x" * 11, "run")
    assert large.value.status == 413


def test_forgetting_a_tenant(store: ContentStore, any_engine: Engine) -> None:
    ref = store.put("t", b"data", "keep")
    with write(any_engine) as connection:
        Vault(any_engine, RING).forget_in(connection, "content key|t")
    with pytest.raises(ContentDamagedError, match="data key is gone"):
        store.get("t", ref)
    assert store.forget("t") == 1
    assert store.get("t", ref) is None


def test_content_cannot_be_moved_between_tenants_or_changed(store: ContentStore, any_engine: Engine) -> None:
    ref = store.put("a", b"data", "run")
    store.put("b", b"other", "run")
    with write(any_engine) as connection:
        connection.execute(update(content).where(content.c.tenant == "a").values(tenant="b"))
    with pytest.raises(ContentDamagedError):
        store.get("b", ref)


def test_content_survives_the_rotation_of_the_ring(any_engine: Engine) -> None:
    prepare(any_engine, CONTENT_ROOMS)
    new = Secret("n" * 40)
    ref = ContentStore(any_engine, RING).put("t", b"data", "run")
    Vault(any_engine, KeyRing([new, Secret("c" * 40)])).reseal()
    assert ContentStore(any_engine, KeyRing([new])).get("t", ref) == b"data"


def test_racing_puts_of_one_tenant(any_engine: Engine) -> None:
    prepare(any_engine, CONTENT_ROOMS)
    failures: list[Exception] = []

    def put(number: int) -> None:
        mine = ContentStore(any_engine, RING)
        try:
            for index in range(5):
                data = b"%d" % (index if number % 2 else number * 10 + index)
                assert mine.get("t", mine.put("t", data, "run")) == data
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


@pytest.fixture
def trail(any_engine: Engine) -> Engine:
    prepare(any_engine)
    return any_engine


def note(number: int, tenant: str | None = None) -> audit.Note:
    return audit.Note("admin", "test", f"thing/{number}", tenant, {"number": number, "é": [1.5, None]})


def test_the_chain_holds_over_many_entries(trail: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_PAGE", 3)
    assert audit.verify(trail) == audit.AuditReport(0, audit.GENESIS)
    with write(trail) as connection:
        audit.append(connection, note(1, "a"), note(2))
        audit.append(connection)
    for number in range(3, 9):
        with write(trail) as connection:
            audit.append(connection, note(number, "a" if number % 2 else "b"))
    report = audit.verify(trail)
    assert (report.ok, report.entries) == (True, 8)
    newest = audit.entries(trail, limit=3)
    assert [entry.seq for entry in newest] == [8, 7, 6]
    assert [entry.seq for entry in audit.entries(trail, before=6, limit=2)] == [5, 4]
    assert [entry.seq for entry in audit.entries(trail, tenant="a")] == [7, 5, 3, 1]
    assert newest[0].detail == {"number": 8, "é": [1.5, None]}
    anchor = (newest[2].seq, newest[2].digest)
    assert audit.verify(trail, anchor).ok
    assert audit.verify(trail, (3, "0" * 64)).problem == "entry 3 is not the anchored one"
    assert (
        audit.verify(trail, (99, "0" * 64)).problem
        == "the anchored entry 99 is missing: the chain was shortened"
    )


def test_the_database_refuses_to_change_entries(trail: Engine) -> None:
    with write(trail) as connection:
        audit.append(connection, note(1))
    for statement in ("UPDATE audit SET actor = 'x'", "DELETE FROM audit"):
        with pytest.raises(DatabaseError, match="append-only"), write(trail) as connection:
            connection.execute(text(statement))


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        ("UPDATE audit SET actor = 'mallory' WHERE seq = 2", "entry 2 was changed"),
        ("UPDATE audit SET detail = '{}' WHERE seq = 3", "entry 3 was changed"),
        ("DELETE FROM audit WHERE seq = 2", "entry 2 is missing"),
        ("DELETE FROM audit WHERE seq = 4", "the chain ends at entry 3, its head says 4"),
    ],
)
def test_verify_finds_what_somebody_with_the_database_did(trail: Engine, damage: str, problem: str) -> None:
    with write(trail) as connection:
        audit.append(connection, *(note(number) for number in range(1, 5)))
    with write(trail) as connection:
        if connection.dialect.name == "sqlite":
            connection.execute(text("DROP TRIGGER audit_no_update"))
            connection.execute(text("DROP TRIGGER audit_no_delete"))
        else:
            connection.execute(text("DROP TRIGGER audit_append_only ON audit"))
        connection.execute(text(damage))
    report = audit.verify(trail)
    assert (report.ok, report.problem) == (False, problem)


def test_an_entry_goes_with_its_transaction(trail: Engine) -> None:
    with trail.connect() as connection:
        audit.append(connection, note(1))
        connection.rollback()
    assert audit.verify(trail).entries == 0
