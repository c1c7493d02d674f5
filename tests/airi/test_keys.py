"""API keys: the log in SQL, the map in memory, scopes, roles."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, insert, select

from airi import audit
from airi.clock import unix_ms
from airi.database import open_engine, write
from airi.errors import InvalidRequestError, UnavailableError
from airi.keyring import KeyRing
from airi.keys import (
    GrantError,
    InvalidKeyError,
    KeyBudget,
    KeyLimits,
    KeyLog,
    KeyMap,
    KeyNotFoundError,
    KeyRecord,
    KeyStateError,
    NewKey,
    ScopeError,
    UnknownKeyError,
    refresh,
)
from airi.keys.keymap import Digester
from airi.keys.live import LiveKeys
from airi.keys.record import pack, unpack
from airi.keys.roles import ALL_ROLES, PERMISSIONS, Grant, check_grant
from airi.keys.schema import key_log as key_log_table
from airi.keys.schema import keys as keys_table
from airi.keys.scopes import check, peer_allowed
from airi.secrets import Secret
from airi.storage import prepare

RING = KeyRing([Secret("r" * 40)])
PEPPER = os.urandom(32)


@pytest.fixture
def log(any_engine: Engine) -> KeyLog:
    prepare(any_engine)
    return KeyLog(any_engine, None, RING)


def fresh_map(log: KeyLog) -> KeyMap:
    key_map = log.new_map()
    refresh(key_map, log, page=2)
    return key_map


def test_a_key_is_shown_once_and_known_everywhere(log: KeyLog, any_engine: Engine) -> None:
    new = NewKey(
        tenant="acme", team="core", user="ann", role="service", name="ci", models=("gpt-*",),
        limits=KeyLimits(requests_per_minute=5), budgets=(KeyBudget("month", 1_500_000),),
    )  # fmt: skip
    record, token = log.create(new, actor="admin")
    assert token.reveal().startswith(f"airi_{record.id}_")
    assert fresh_map(log).authenticate(token.reveal()) == record == log.get(record.id)
    secret = token.reveal().rpartition("_")[2]
    with any_engine.connect() as connection:
        stored = repr([connection.execute(select(t)).all() for t in (keys_table, key_log_table)])
    assert secret not in stored
    assert secret not in repr(record)
    assert secret not in repr(audit.entries(any_engine))


@pytest.mark.parametrize(
    "token", ["", "airi_", "airi__", "airi_x", "sk-123", "Airi_x_y", "airi_" + "x" * 300, "airi_é_\ud800"]
)
def test_malformed_and_unknown_tokens(token: str) -> None:
    with pytest.raises((InvalidKeyError, UnknownKeyError)) as caught:
        KeyMap(PEPPER).authenticate(token)
    assert caught.value.status == 401
    assert caught.value.code == "invalid_api_key"


def test_unknown_ids_are_told_apart_from_wrong_secrets(log: KeyLog) -> None:
    record, token = log.create(NewKey(tenant="t"), actor="a")
    key_map = log.new_map()
    with pytest.raises(UnknownKeyError):
        key_map.authenticate(token.reveal())
    refresh(key_map, log)
    with pytest.raises(InvalidKeyError, match="Incorrect API key"):
        key_map.authenticate(f"airi_{record.id}_{'0' * 48}")


def test_revocation_works_from_the_instant_it_is_applied(log: KeyLog) -> None:
    record, token = log.create(NewKey(tenant="t"), actor="a")
    key_map = fresh_map(log)
    key_map.authenticate(token.reveal())
    revoked = log.revoke(record.id, actor="a")
    assert revoked.revoked
    key_map.apply(log.entries_after(key_map.seq))
    with pytest.raises(InvalidKeyError, match="has been revoked"):
        key_map.authenticate(token.reveal())
    assert log.revoke(record.id, actor="a") == revoked
    for change in (
        lambda: log.rotate(record.id, overlap_ms=0, actor="a"),
        lambda: log.change(record.id, lambda r: msgspec.structs.replace(r, revoked=False), actor="a"),
    ):
        with pytest.raises(KeyStateError, match="is revoked"):
            change()


def test_an_older_page_cannot_revive_a_revoked_key(log: KeyLog) -> None:
    record, token = log.create(NewKey(tenant="t"), actor="a")
    stale = log.packed_after(0)
    log.revoke(record.id, actor="a")
    key_map = fresh_map(log)
    key_map.apply_packed(stale)
    with pytest.raises(InvalidKeyError, match="revoked"):
        key_map.authenticate(token.reveal())


def test_expiry(log: KeyLog) -> None:
    _, token = log.create(NewKey(tenant="t", expires_at_ms=unix_ms() - 1), actor="a")
    with pytest.raises(InvalidKeyError, match="has expired"):
        fresh_map(log).authenticate(token.reveal())


def test_rotation_overlaps_and_keeps_the_id(log: KeyLog) -> None:
    record, old = log.create(NewKey(tenant="t", models=("m",)), actor="a")
    rotated, new = log.rotate(record.id, overlap_ms=60_000, actor="a")
    assert (rotated.id, rotated.models) == (record.id, ("m",))
    key_map = fresh_map(log)
    assert key_map.authenticate(old.reveal()).id == key_map.authenticate(new.reveal()).id == record.id
    _, newest = log.rotate(record.id, overlap_ms=0, actor="a")
    refresh(key_map, log)
    with pytest.raises(InvalidKeyError, match="Incorrect"):
        key_map.authenticate(new.reveal())  # no overlap: over at once
    key_map.authenticate(old.reveal())  # its overlap was promised
    key_map.authenticate(newest.reveal())
    log.revoke(record.id, actor="a")
    refresh(key_map, log)
    for token in (old, new, newest):
        with pytest.raises(InvalidKeyError):
            key_map.authenticate(token.reveal())


def test_rotation_is_bounded(log: KeyLog) -> None:
    record, _ = log.create(NewKey(tenant="t"), actor="a")
    for _ in range(4):
        log.rotate(record.id, overlap_ms=60_000, actor="a")
    with pytest.raises(KeyStateError, match="4 older secrets"):
        log.rotate(record.id, overlap_ms=60_000, actor="a")
    with pytest.raises(KeyStateError, match="90 days"):
        log.rotate(record.id, overlap_ms=10**12, actor="a")
    with pytest.raises(KeyNotFoundError):
        log.rotate("nope", overlap_ms=0, actor="a")


def test_an_overlap_ends(log: KeyLog) -> None:
    record, old = log.create(NewKey(tenant="t"), actor="a")
    log.rotate(record.id, overlap_ms=1, actor="a")
    key_map = fresh_map(log)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            key_map.authenticate(old.reveal())
        except InvalidKeyError:
            break
        time.sleep(0.001)
    else:
        pytest.fail("the old secret still works")


def test_changes_keep_secret_and_identity(log: KeyLog) -> None:
    record, token = log.create(NewKey(tenant="t"), actor="a")
    forged = KeyRecord(id="other", tenant="t", digest=b"x", models=("m",), name="n")
    changed = log.change(record.id, lambda _: forged, actor="a")
    assert (changed.id, changed.digest, changed.models, changed.name) == (
        record.id,
        record.digest,
        ("m",),
        "n",
    )
    fresh_map(log).authenticate(token.reveal())
    with pytest.raises(InvalidRequestError, match="not a network"):
        log.change(record.id, lambda r: msgspec.structs.replace(r, cidrs=("x",)), actor="a")
    with pytest.raises(InvalidRequestError, match="not a network"):
        log.create(NewKey(tenant="t", cidrs=("300.0.0.0/8",)), actor="a")


def test_keys_survive_the_rotation_of_the_ring(any_engine: Engine) -> None:
    prepare(any_engine)
    old, new = Secret("o" * 40), Secret("n" * 40)
    log = KeyLog(any_engine, None, KeyRing([old]))
    _, token = log.create(NewKey(tenant="t"), actor="a")
    both = KeyLog(any_engine, None, KeyRing([new, old]))
    fresh_map(both).authenticate(token.reveal())
    assert both._vault.reseal() == 1
    assert both._vault.reseal() == 0
    alone = KeyLog(any_engine, None, KeyRing([new]))
    fresh_map(alone).authenticate(token.reveal())


def test_listing_is_by_tenant_and_paged(log: KeyLog) -> None:
    made = log.create_many([NewKey(tenant=t) for t in ("a", "b", "a", "a")], actor="x")
    assert log.create_many([], actor="x") == []
    mine = sorted(record.id for record, _ in made if record.tenant == "a")
    first = log.records(tenant="a", limit=2)
    rest = log.records(tenant="a", after=first[-1].id, limit=2)
    assert [record.id for record in first + rest] == mine
    assert len(log.records()) == 4


def test_every_change_is_in_the_log_and_the_audit_trail(log: KeyLog, any_engine: Engine) -> None:
    record, _ = log.create(NewKey(tenant="t", role="auditor"), actor="admin")
    log.rotate(record.id, overlap_ms=0, actor="key/1")
    log.revoke(record.id, actor="key/2")
    with any_engine.connect() as connection:
        rows = connection.execute(select(key_log_table).order_by(key_log_table.c.seq)).all()
    assert [(r.seq, r.key_id, r.change, r.actor) for r in rows] == [
        (1, record.id, "create", "admin"),
        (2, record.id, "rotate", "key/1"),
        (3, record.id, "revoke", "key/2"),
    ]
    assert [(e.action, e.target, e.tenant) for e in audit.entries(any_engine, tenant="t")] == [
        (f"key.{change}", f"key/{record.id}", "t") for change in ("revoke", "rotate", "create")
    ]
    assert audit.verify(any_engine).ok


def test_a_reader_never_skips_an_entry_of_racing_writers(any_engine: Engine) -> None:
    """Writers commit in the order of their numbers, so that 'everything up to n' is never a lie."""
    prepare(any_engine)
    log = KeyLog(any_engine, None, RING)
    done = threading.Event()
    made: list[str] = []

    def writer() -> None:
        mine = KeyLog(any_engine, None, RING)
        for _ in range(8):
            record, _ = mine.create(NewKey(tenant="t"), actor="a")
            made.append(record.id)
            mine.revoke(record.id, actor="a")

    key_map = log.new_map()
    gaps: list[int] = []

    def reader() -> None:
        while not done.is_set():
            before = key_map.seq
            entries = log.packed_after(before, 3)
            key_map.apply_packed(entries)
            with any_engine.connect() as connection:
                numbers = list(
                    connection.scalars(select(key_log_table.c.seq).where(key_log_table.c.seq <= key_map.seq))
                )
            if sorted(numbers) != list(range(1, key_map.seq + 1)):
                gaps.append(key_map.seq)

    threads = [threading.Thread(target=writer) for _ in range(3)]
    watcher = threading.Thread(target=reader)
    watcher.start()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    done.set()
    watcher.join()
    refresh(key_map, log)
    assert not gaps
    assert key_map.seq == log.seq() == 48
    assert all(found is not None and found.revoked for found in map(key_map.get, made))


@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=40),
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 7)), max_size=30),
)
def test_pages_in_any_order_never_lead_back(
    changes: list[tuple[int, bool]], reads: list[tuple[int, int]]
) -> None:
    """However stale and repeated the pages that are applied, the map is the state at its ``seq``."""
    history = [(seq, f"k{key}", revoked) for seq, (key, revoked) in enumerate(changes, 1)]

    def state(at: int) -> dict[str, tuple[int, bool]]:
        return {key: (seq, revoked) for seq, key, revoked in history if seq <= at}

    def page(log_end: int, after: int, limit: int) -> list[tuple[int, KeyRecord]]:
        newest = sorted((seq, key, revoked) for key, (seq, revoked) in state(log_end).items() if seq > after)
        return [(s, KeyRecord(id=k, tenant=str(s), digest=b"", revoked=r)) for s, k, r in newest[:limit]]

    key_map, pages = KeyMap(PEPPER), []
    end = 0
    for offset, limit in reads:
        end = min(len(history), end + offset % 5)
        pages.append(page(end, key_map.seq, limit))
        key_map.apply(pages[-1])
        key_map.apply(pages[offset % len(pages)])  # an old page again
    while entries := page(len(history), key_map.seq, 3):
        key_map.apply(entries)
    for key, (seq, revoked) in state(len(history)).items():
        found = key_map.get(key)
        assert found is not None
        assert (found.tenant, found.revoked) == (str(seq), revoked)


records = st.builds(
    KeyRecord,
    id=st.text("0123456789abcdef", min_size=1, max_size=16),
    tenant=st.text(max_size=8),
    digest=st.binary(min_size=32, max_size=32),
    team=st.none() | st.text(max_size=5),
    role=st.sampled_from(ALL_ROLES),
    models=st.lists(st.text(max_size=4), max_size=3).map(tuple),
    expires_at_ms=st.none() | st.integers(0, 2**62),
    budgets=st.lists(
        st.builds(KeyBudget, name=st.text(max_size=3), usd=st.integers(0, 2**60)), max_size=2
    ).map(tuple),
    revoked=st.booleans(),
)


@given(records)
def test_records_pack_and_unpack(record: KeyRecord) -> None:
    assert unpack(pack(record)) == record


@given(st.text(max_size=80))
def test_digests_are_hmac_sha256(token: str) -> None:
    import hmac

    data = token.encode(errors="replace")
    assert Digester(PEPPER)(token) == hmac.digest(PEPPER, data, "sha256")


def test_a_hundred_thousand_keys(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'keys.db'}", full_sync=True)
    prepare(engine)
    log = KeyLog(engine, None, RING)
    record, token = log.create(NewKey(tenant="t", team="core", models=("gpt-*",)), actor="a")
    rows = []
    for seq in range(2, 100_002):
        other = msgspec.structs.replace(record, id=secrets.token_hex(8))
        rows.append({"id": other.id, "seq": seq, "tenant": "t", "record": pack(other)})
    with write(engine) as connection:
        connection.execute(insert(keys_table), rows)
    key_map = log.new_map()
    started = time.process_time()
    assert refresh(key_map, log) == 100_001
    assert time.process_time() - started < 1  # 0.25 s on an idle machine
    started = time.process_time()
    for _ in range(1_000):
        key_map.authenticate(token.reveal())
    assert time.process_time() - started < 0.05  # 2 µs each on an idle machine
    engine.dispose()


@pytest.mark.parametrize(
    ("scopes", "use", "code"),
    [
        ({"models": ("gpt-*",)}, {"model": "gpt-4"}, None),
        ({"models": ("gpt-*",)}, {"model": "claude"}, "model_not_allowed"),
        ({"routes": ("/v1/chat/*",)}, {"route": "/v1/chat/completions"}, None),
        ({"routes": ("/v1/chat/*",)}, {"route": "/v1/embeddings"}, "route_not_allowed"),
        ({"cidrs": ("10.0.0.0/8", "2001:db8::/32")}, {"peer": "10.9.9.9"}, None),
        ({"cidrs": ("10.0.0.0/8",)}, {"peer": "::ffff:10.1.1.1"}, None),
        ({"cidrs": ("2001:db8::/32",)}, {"peer": "2001:db8::5"}, None),
        ({"cidrs": ("10.0.0.0/8",)}, {"peer": "11.0.0.1"}, "address_not_allowed"),
        ({"cidrs": ("10.0.0.0/8",)}, {"peer": ""}, "address_not_allowed"),
        ({"cidrs": ("10.0.0.0/8",)}, {"peer": "10.0.0.1, 1.1.1.1"}, "address_not_allowed"),
        ({}, {"model": "any", "route": "/any", "peer": "1.1.1.1"}, None),
    ],
)
def test_scopes(scopes: dict[str, tuple[str, ...]], use: dict[str, str], code: str | None) -> None:
    record = KeyRecord(id="k", tenant="t", digest=b"", **scopes)  # type: ignore[arg-type]
    if code is None:
        check(record, **use)
        return
    with pytest.raises(ScopeError) as caught:
        check(record, **use)
    assert (caught.value.code, caught.value.status) == (code, 403)
    assert not peer_allowed((), "1.1.1.1")


def granter(role: str, **more: object) -> KeyRecord:
    return KeyRecord(id="g", tenant="acme", digest=b"", role=role, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("who", "grant", "allowed"),
    [
        (None, Grant("platform_admin", "any"), True),
        (granter("platform_admin"), Grant("platform_admin", "other"), True),
        (granter("org_admin"), Grant("developer", "acme"), True),
        (granter("org_admin"), Grant("org_admin", "acme"), True),
        (granter("org_admin"), Grant("developer", "other"), False),
        (granter("org_admin"), Grant("platform_admin", "acme"), False),
        (granter("org_admin"), Grant("policy_approver", "acme"), False),
        (granter("developer"), Grant("developer", "acme"), False),
        (granter("service"), Grant("service", "acme"), False),
        (granter("org_admin", models=("gpt-*",)), Grant("developer", "acme", models=("gpt-4*",)), True),
        (granter("org_admin", models=("gpt-*",)), Grant("developer", "acme", models=("*",)), False),
        (granter("org_admin", models=("gpt-*",)), Grant("developer", "acme"), False),
        (granter("org_admin", routes=("/v1/*",)), Grant("developer", "acme", routes=("/admin/*",)), False),
        (
            granter("org_admin", cidrs=("10.0.0.0/8",)),
            Grant("developer", "acme", cidrs=("10.1.0.0/16",)),
            True,
        ),
        (
            granter("org_admin", cidrs=("10.0.0.0/8",)),
            Grant("developer", "acme", cidrs=("0.0.0.0/0",)),
            False,
        ),
        (granter("org_admin", cidrs=("10.0.0.0/8",)), Grant("developer", "acme"), False),
        (granter("org_admin", expires_at_ms=5), Grant("developer", "acme", expires_at_ms=5), True),
        (granter("org_admin", expires_at_ms=5), Grant("developer", "acme", expires_at_ms=6), False),
        (granter("org_admin", expires_at_ms=5), Grant("developer", "acme"), False),
    ],
)
def test_nobody_grants_what_they_do_not_hold(who: KeyRecord | None, grant: Grant, allowed: bool) -> None:
    if allowed:
        check_grant(who, grant)
    else:
        with pytest.raises(GrantError):
            check_grant(who, grant)


def test_every_role_grants_only_subsets() -> None:
    for role in ALL_ROLES:
        for other in ALL_ROLES:
            try:
                check_grant(granter(role), Grant(other, "acme"))
            except GrantError:
                continue
            assert PERMISSIONS[other] <= PERMISSIONS[role]
            assert "keys.write" in PERMISSIONS[role]
    with pytest.raises(InvalidRequestError, match="unknown role"):
        check_grant(None, Grant("root", "acme"))  # type: ignore[arg-type]


async def test_live_keys_follow_the_log_and_outlast_the_database(tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'live.db'}", full_sync=True)
    prepare(engine)
    log = KeyLog(engine, None, RING)
    live = LiveKeys(log)
    record, token = await asyncio.to_thread(log.create, NewKey(tenant="t"), actor="a")
    assert await live.authenticate(token.reveal()) == record
    with pytest.raises(UnknownKeyError):
        await live.authenticate("airi_0000_00")
    await asyncio.to_thread(log.revoke, record.id, actor="a")
    await live.now()
    with pytest.raises(InvalidKeyError, match="revoked"):
        await live.authenticate(token.reveal())
    _, other = await asyncio.to_thread(log.create, NewKey(tenant="t"), actor="a")
    await live.now()
    with write(engine) as connection:
        connection.exec_driver_sql("ALTER TABLE keys RENAME TO elsewhere")
    await live.now()
    assert (await live.authenticate(other.reveal())).tenant == "t"
    with pytest.raises(UnavailableError):
        await live.authenticate("airi_0000_00")
    never = LiveKeys(KeyLog(engine, None, RING))
    with pytest.raises(UnavailableError):
        await never.authenticate(other.reveal())
    engine.dispose()
