"""The versioned store, on SQLite and PostgreSQL: managers, conflicts, pruning, rollback, concurrency, scale."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from sqlalchemy import Engine, text

from airi import audit
from airi.config.diff import render
from airi.config.document import ConfigDocument
from airi.config.errors import ManagerConflictError, StaleVersionError, UnknownResourceError
from airi.config.kinds import AnyResource, Pool, Tenant
from airi.config.loader import load_data
from airi.config.notify import CHANNEL, VERSIONS, Notifier
from airi.config.store import ConfigStore
from airi.database import open_engine, write
from airi.errors import ConfigError, UnavailableError
from airi.redis import connect
from airi.storage import prepare


def resource(kind: str, name: str, **body: Any) -> AnyResource:
    return load_data([{"apiVersion": "airi/v1alpha1", "kind": kind, "metadata": {"name": name}, **body}])[
        0
    ].resource


def tenant(name: str, **body: Any) -> AnyResource:
    return resource("Tenant", name, **body)


def pool(name: str = "sim", port: int = 9000) -> AnyResource:
    return resource("Pool", name, replicas=[{"name": "a", "url": f"http://127.0.0.1:{port}"}])


def model(name: str, pool_name: str = "sim") -> AnyResource:
    return resource("Model", name, versions=[{"name": "v1", "targets": [{"pool": pool_name, "model": "m"}]}])


@pytest.fixture
def store(any_engine: Engine) -> ConfigStore:
    prepare(any_engine)
    return ConfigStore(any_engine)


def names(store: ConfigStore) -> list[str]:
    return [f"{kind}/{name}" for kind, name in sorted(store.current().resources)]


def test_versions_number_the_content(store: ConfigStore) -> None:
    assert store.current().version == 0
    first = store.apply([tenant("a"), tenant("b")], author="ann", manager="file", comment="start")
    assert (first.version, first.created, first.changed, first.removed) == (
        1,
        ("Tenant/a", "Tenant/b"),
        (),
        (),
    )
    again = store.apply([tenant("a"), tenant("b")], author="ann", manager="file")
    assert (again.version, again.unchanged, again.created) == (1, 2, ())
    second = store.apply([tenant("a", weight=2)], author="bob", manager="file")
    assert (second.version, second.changed, second.removed) == (2, ("Tenant/a",), ())
    document = store.current()
    assert document.version == 2
    assert document.digest == second.digest == ConfigDocument(document.resources).digest
    assert store.current() is document
    assert [(v.version, v.author, v.change, v.comment) for v in store.history()] == [
        (2, "bob", "apply", ""),
        (1, "ann", "apply", "start"),
    ]
    assert [v.version for v in store.history(before=2, limit=1)] == [1]


def test_prune_removes_only_what_the_same_manager_holds(store: ConfigStore) -> None:
    store.apply([tenant("a"), tenant("b")], author="x", manager="file")
    store.put(tenant("c"), author="x")
    store.apply([tenant("d")], author="x", manager="adopted")
    result = store.apply([tenant("b")], author="x", manager="file", prune=True)
    assert result.removed == ("Tenant/a",)
    assert names(store) == ["Tenant/b", "Tenant/c", "Tenant/d"]


def test_managers_do_not_change_each_others_resources(store: ConfigStore) -> None:
    store.apply([tenant("a"), tenant("b")], author="x", manager="file")
    store.put(tenant("c"), author="x")
    with pytest.raises(ManagerConflictError, match="Tenant 'a' is managed by 'file': change its file"):
        store.put(tenant("a", weight=2), author="x")
    with pytest.raises(ManagerConflictError, match="'file'"):
        store.delete("Tenant", "a", author="x")
    with pytest.raises(ManagerConflictError) as caught:
        store.apply([tenant("a"), tenant("c"), tenant("new")], author="x", manager="file")
    assert "Tenant 'c' is managed by 'api'" in caught.value.message
    assert names(store) == ["Tenant/a", "Tenant/b", "Tenant/c"]  # refused whole
    store.apply([tenant("c", weight=3)], author="x", manager="file", take_over=True)
    assert store.get("Tenant", "c").manager == "file"


def test_adopted_resources_give_way_and_come_back(store: ConfigStore) -> None:
    store.apply([pool(port=1), model("m")], author="d", manager="adopted", prune=True)
    store.apply([pool(port=2)], author="x", manager="file")
    assert store.get("Pool", "sim").manager == "file"
    result = store.apply([pool(port=1), model("m")], author="d", manager="adopted", prune=True)
    assert result.shadowed == ("Pool/sim",)
    assert store.get("Pool", "sim").resource == pool(port=2)
    with pytest.raises(ManagerConflictError, match="discovery"):
        store.delete("Model", "m", author="x")


def test_a_rollback_leaves_what_was_found_on_the_machine(store: ConfigStore) -> None:
    store.apply([pool(port=1), tenant("dev")], author="d", manager="adopted", prune=True)
    store.apply([tenant("a"), tenant("dev", weight=2)], author="x", manager="file")
    store.apply([pool(port=2), pool("engine"), tenant("dev")], author="d", manager="adopted", prune=True)
    store.put(tenant("b"), author="x")
    result = store.rollback(1, author="x")
    assert (result.created, result.changed, result.removed) == ((), ("Tenant/dev",), ("Tenant/a", "Tenant/b"))
    found = store.current().get(Pool, "sim")
    assert found is not None
    assert found.replicas[0].url.endswith(":2")  # the port of this start, not that of an earlier one
    assert store.get("Tenant", "dev").manager == "adopted"


def test_adopted_resources_that_others_need_are_kept(store: ConfigStore) -> None:
    store.apply([pool("one"), pool("two"), model("found", "two")], author="d", manager="adopted", prune=True)
    store.apply([model("mine", "one")], author="x", manager="file")
    result = store.apply([], author="d", manager="adopted", prune=True)
    assert (result.kept, result.removed) == (("Pool/one",), ("Model/found", "Pool/two"))
    assert names(store) == ["Model/mine", "Pool/one"]


def test_an_invalid_write_is_refused_whole(store: ConfigStore) -> None:
    store.apply([pool(), model("m")], author="x", manager="file")
    before = store.state()
    with pytest.raises(ConfigError, match="there is no Pool 'nope'"):
        store.apply([tenant("t"), model("n", "nope")], author="x", manager="file")
    with pytest.raises(ConfigError, match=r"Model/m: versions.0.targets.0.pool: there is no Pool 'sim'"):
        store.delete("Pool", "sim", author="x", manager="file")
    with pytest.raises(ConfigError, match="there is no Pool 'sim'"):
        store.apply([model("m")], author="x", manager="file", prune=True)
    assert store.state() is before


def test_deep_checks_refuse_and_see_only_changes(any_engine: Engine) -> None:
    prepare(any_engine)
    seen: list[str] = []

    def check(item: Any, where: Any) -> list[str]:
        seen.append(item.metadata.name)
        return [f"{where('weight')}: too heavy"] if item.weight > 5 else []

    store = ConfigStore(any_engine, validators={"Tenant": check})
    store.apply([tenant("a"), tenant("b")], author="x", manager="file")
    with pytest.raises(ConfigError) as caught:
        store.apply([tenant("a"), tenant("b", weight=6)], author="x", manager="file")
    assert caught.value.problems == ["Tenant/b: weight: too heavy"]
    assert seen == ["a", "b", "b"]


def test_dry_run_tells_the_difference_and_writes_nothing(store: ConfigStore) -> None:
    store.apply([tenant("a"), tenant("b")], author="x", manager="file")
    result = store.apply(
        [tenant("a", weight=2), tenant("c")], author="x", manager="file", prune=True, dry_run=True
    )
    assert (result.version, result.dry_run) == (1, True)
    assert [(d.name, d.change) for d in result.diff] == [("a", "changed"), ("b", "removed"), ("c", "added")]
    assert "+weight: 2.0" in render(result.diff)
    assert store.current().version == 1
    with pytest.raises(ConfigError):
        store.apply([model("m")], author="x", manager="file", dry_run=True)


def test_preconditions(store: ConfigStore) -> None:
    store.put(tenant("a"), author="x", must_be_new=True)
    with pytest.raises(StaleVersionError, match="exists already"):
        store.put(tenant("a"), author="x", must_be_new=True)
    etag = store.get("Tenant", "a").digest
    store.put(tenant("a", weight=2), author="x", if_match=etag)
    with pytest.raises(StaleVersionError, match="changed since"):
        store.put(tenant("a", weight=3), author="x", if_match=etag)
    with pytest.raises(StaleVersionError):
        store.delete("Tenant", "a", author="x", if_match=etag)
    with pytest.raises(StaleVersionError):
        store.put(tenant("b"), author="x", if_match=etag)
    with pytest.raises(StaleVersionError, match="at version 2, not 1"):
        store.apply([], author="x", manager="file", expected_version=1)
    store.delete("Tenant", "a", author="x", if_match="*")
    with pytest.raises(UnknownResourceError):
        store.get("Tenant", "a")
    with pytest.raises(UnknownResourceError):
        store.delete("Tenant", "a", author="x")


def test_rollback_makes_a_new_version_of_old_content(store: ConfigStore) -> None:
    store.apply([tenant("a"), pool(), model("m")], author="x", manager="file")
    first = store.current()
    store.put(tenant("b"), author="x")
    store.apply([tenant("a", weight=9)], author="x", manager="file", prune=True)
    result = store.rollback(1, author="ann")
    assert (result.version, result.created, result.changed, result.removed) == (
        4,
        ("Model/m", "Pool/sim"),
        ("Tenant/a",),
        ("Tenant/b",),
    )
    assert store.current().digest == first.digest
    assert store.current().resources == first.resources
    assert store.get("Tenant", "a").manager == "file"
    assert store.history()[0].comment == "rollback to version 1"
    with pytest.raises(UnknownResourceError, match="no version 77"):
        store.rollback(77, author="x")
    info, document = store.at(2)
    assert (info.change, sorted(name for _, name in document.resources)) == ("put", ["a", "b", "m", "sim"])
    assert [(d.name, d.change) for d in store.diff(1, 2)] == [("b", "added")]
    assert store.diff(1, 4) == []
    assert [d.change for d in store.diff(0, 1)] == ["added"] * 3


def test_what_the_api_may_not_say(store: ConfigStore) -> None:
    tool = {"url": "http://10.0.0.1/x", "allow_private": True, "secret_headers": {"x": "${file:/etc/passwd}"}}
    with pytest.raises(ConfigError) as caught:
        store.put(resource("Tool", "t", http=tool), author="x")
    assert [line.split(": ")[1] for line in caught.value.problems] == [
        "http.allow_private",
        "http.secret_headers.x",
    ]
    store.apply([resource("Tool", "t", http=tool)], author="x", manager="file")


def test_another_process_reads_only_what_changed(any_engine: Engine) -> None:
    prepare(any_engine)
    writer, reader = ConfigStore(any_engine), ConfigStore(any_engine)
    writer.apply([tenant("a"), tenant("b"), tenant("c")], author="x", manager="api")
    before = reader.current()
    writer.delete("Tenant", "a", author="x")
    writer.put(tenant("b", weight=2), author="x")
    writer.put(tenant("a", weight=3), author="x")
    after = reader.current()
    assert after.resources == writer.current().resources
    assert after.resources[("Tenant", "c")] is before.resources[("Tenant", "c")]
    assert ConfigStore(any_engine).current().resources == after.resources


def test_racing_writers_lose_nothing(any_engine: Engine) -> None:
    prepare(any_engine)
    failures: list[Exception] = []

    def put(number: int) -> None:
        store = ConfigStore(any_engine)
        try:
            for index in range(4):
                store.put(tenant(f"t{number}-{index}"), author=f"w{number}")
        except Exception as error:  # noqa: BLE001
            failures.append(error)

    threads = [threading.Thread(target=put, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    store = ConfigStore(any_engine)
    assert len(store.current().resources) == 16
    assert [v.version for v in store.history()] == list(range(16, 0, -1))
    assert audit.verify(any_engine).ok


def test_writes_stand_in_the_audit_trail(store: ConfigStore, any_engine: Engine) -> None:
    first = store.put(tenant("a"), author="key/1")
    store.delete("Tenant", "a", author="admin")
    entries = audit.entries(any_engine)
    assert [(e.actor, e.action, e.target) for e in entries] == [
        ("admin", "config.delete", "config/2"),
        ("key/1", "config.put", "config/1"),
    ]
    assert entries[0].detail["from"] == entries[1].detail["to"] == first.digest
    assert entries[0].detail["removed"] == ["Tenant/a"]


def test_a_row_of_another_release_is_told_not_swallowed(store: ConfigStore, any_engine: Engine) -> None:
    store.put(tenant("a"), author="x")
    with write(any_engine) as connection:
        connection.execute(text("UPDATE config_resources SET body = replace(body, 'metadata', 'metadatum')"))
    with pytest.raises(ConfigError, match=r"another release of AIRI:\nTenant/a"):
        ConfigStore(any_engine).current()


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as connection:
        yield connection


def test_a_commit_is_announced(any_engine: Engine, client: redis.Redis) -> None:
    prepare(any_engine)
    listener = client.pubsub(ignore_subscribe_messages=True)
    listener.subscribe(CHANNEL)
    listener.get_message(timeout=2)
    store = ConfigStore(any_engine, client)
    store.put(tenant("a"), author="x")
    assert client.hgetall(VERSIONS) == {b"snapshot": b"1"}
    message = listener.get_message(timeout=2)
    assert message is not None
    assert message["data"] == b'{"snapshot": 1}'
    listener.close()


def test_the_notifier_repairs_what_redis_lost(any_engine: Engine, client: redis.Redis) -> None:
    prepare(any_engine)
    ConfigStore(any_engine, client).put(tenant("a"), author="x")
    notifier = Notifier(any_engine, client)
    assert notifier.run_once()
    assert client.hgetall(VERSIONS) == {b"snapshot": b"1", b"keys": b"0"}
    assert not notifier.run_once()
    client.flushall()
    assert notifier.run_once()
    assert client.hgetall(VERSIONS) == {b"snapshot": b"1", b"keys": b"0"}
    client.hset(VERSIONS, "snapshot", 99)  # a restored database is behind
    assert notifier.run_once()
    assert client.hget(VERSIONS, "snapshot") == b"1"


def test_redis_away_fails_no_write_and_the_notifier_goes_on(any_engine: Engine, client: redis.Redis) -> None:
    prepare(any_engine)
    away = connect("unix:///nonexistent/redis.sock")
    store = ConfigStore(any_engine, away)
    assert store.put(tenant("a"), author="x").version == 1
    stop = threading.Event()
    thread = threading.Thread(target=Notifier(any_engine, away).run, args=(stop,))
    thread.start()
    stop.set()
    thread.join(5)
    assert not thread.is_alive()
    assert Notifier(any_engine, client).run_once()


def test_give_up_message_when_always_overtaken(store: ConfigStore, any_engine: Engine) -> None:
    other = ConfigStore(any_engine)
    count = iter(range(1_000))

    class Overtaken(ConfigStore):
        def state(self) -> Any:
            found = super().state()
            other.put(tenant(f"t{next(count)}"), author="x")
            return found

    with pytest.raises(UnavailableError, match="changed by others"):
        Overtaken(any_engine).put(tenant("mine"), author="x")


def test_scale(tmp_path: Any) -> None:
    """1,000 tenants and 1,000 policies: building a snapshot takes well under a second, a later swap milliseconds."""
    engine = open_engine(f"sqlite:///{tmp_path / 'scale.db'}", full_sync=True)
    prepare(engine)
    wanted = [tenant(f"t{i}", limits={"requests_per_minute": 100}) for i in range(1_000)]
    wanted += [
        resource("Policy", f"p{i}", effect="deny", when="'x' in tags", scope={"tenants": [f"t{i}"]})
        for i in range(1_000)
    ]
    ConfigStore(engine).apply(wanted, author="x", manager="file")
    reader = ConfigStore(engine)
    started = time.process_time()
    assert len(reader.current().resources) == 2_000
    assert time.process_time() - started < 1  # 0.15 s on an idle machine
    ConfigStore(engine).put(tenant("new"), author="x")
    started = time.process_time()
    assert isinstance(reader.current().get(Tenant, "new"), Tenant)
    assert time.process_time() - started < 0.1
    engine.dispose()
