"""The ledger in SQL: once each, on both databases; sums; usage; verify finds what is wrong."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest
import redis
from sqlalchemy import Engine, func, select

from airi.database import migrate, write
from policies.admission import wire
from policies.admission.scripts import LEDGER_STREAM
from policies.ledger import LedgerConsumer, usage, verify
from policies.ledger.consumer import UNREADABLE
from policies.ledger.posting import post
from policies.migrations import MIGRATIONS
from policies.schema import COUNTERS, LEDGER, METADATA

DAY = 86_400_000_000
NOW = 20_000 * DAY


def entry(name: str, cause: str = "settled", usd: int = 10, **fields: object) -> wire.Entry:
    request = wire.Request(
        name,
        "acme",
        "core",
        "k1",
        "ann",
        fields.pop("model", "m"),
        "run",
        "step",
        "t",
        5,
        0,
        0,
        0,
        0,
        0,
        1_000,  # type: ignore[arg-type]
    )
    values: dict[str, object] = {
        "hold_usd_micros": 30,
        "excess_usd_micros": 0,
        "reserved_at_us": NOW,
        "settled_at_us": NOW + 5,
        "process": "p",
        "charged": ["m:m:0|org|monthly"],
    }
    settlement = wire.SettlementWire(name, usd, 5, 3, 2, 1, "ok")
    return wire.Entry(
        entry_id=f"{name}/{cause}",
        cause=cause,
        usd_micros=usd,
        request=request,
        settlement=settlement,
        **(values | fields),  # type: ignore[arg-type]
    )


@pytest.fixture
def sql(any_engine: Engine) -> Engine:
    migrate(any_engine, "policies", MIGRATIONS)
    return any_engine


def total(engine: Engine) -> tuple[int, int]:
    with engine.connect() as connection:
        rows = connection.scalar(select(func.count()).select_from(LEDGER))
        return int(rows or 0), int(connection.scalar(select(func.sum(COUNTERS.c.usd_micros))) or 0)


def test_migrations_make_the_declared_tables(sql: Engine) -> None:
    from sqlalchemy import inspect

    for table in METADATA.sorted_tables:
        assert {c["name"] for c in inspect(sql).get_columns(table.name)} == {c.name for c in table.columns}


def test_entries_are_posted_once(sql: Engine) -> None:
    first, second = entry("a"), entry("b", usd=7)
    for batch, new in (([first], 1), ([first, second, second], 1), ([first, second], 0)):
        with write(sql) as connection:
            assert post(connection, batch) == new
    assert total(sql) == (2, 17)


def test_a_text_that_no_column_takes_does_not_stop_the_ledger(sql: Engine) -> None:
    with write(sql) as connection:
        assert post(connection, [entry("a", process="p\0" * 500, model="m" * 5_000)]) == 1
    assert usage(sql, group_by=["model"])[0].model == "m" * 256


def test_a_late_entry_brings_the_reaped_one_that_was_lost(sql: Engine) -> None:
    late = entry("a", "late", -20)
    with write(sql) as connection:
        assert post(connection, [late]) == 2
    assert total(sql) == (2, 10)
    with write(sql) as connection:
        assert post(connection, [entry("a", "reaped", 30)]) == 0


def test_consumer_repeats_a_batch_harmlessly_and_sets_the_unreadable_aside(
    sql: Engine, redis_url: str
) -> None:
    client = redis.Redis.from_url(redis_url)
    encode = msgspec.msgpack.encode
    for name in ("a", "b", "c"):
        client.xadd(LEDGER_STREAM, {"e": encode(entry(name))})
    client.xadd(LEDGER_STREAM, {"e": b"nonsense"})
    with write(sql) as connection:  # a consumer that died after its commit
        post(connection, [entry("a"), entry("b")])
    consumer = LedgerConsumer(sql, client, batch=2)
    assert [consumer.run_once() for _ in range(3)] == [2, 2, 0]
    assert total(sql) == (3, 30)
    assert client.xlen(UNREADABLE) == 1
    assert client.hget("airi:versions", "ledger") is not None
    assert not verify(sql, client).balanced


def test_what_arrives_while_the_consumer_works_waits_for_its_next_turn(sql: Engine, redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url)

    class Busy(LedgerConsumer):
        """Another call is settled during each batch: a commit for every one of them would never end."""

        def run_once(self) -> int:
            moved = super().run_once()
            client.xadd(
                LEDGER_STREAM, {"e": msgspec.msgpack.encode(entry(f"late {client.xlen(LEDGER_STREAM)}"))}
            )
            return moved

    for number in range(5):
        client.xadd(LEDGER_STREAM, {"e": msgspec.msgpack.encode(entry(str(number)))})
    assert Busy(sql, client, batch=3).catch_up() == 3 + 3 + 1
    assert client.xlen(LEDGER_STREAM) == 1


def test_verify_names_what_differs(sql: Engine, redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url)
    with write(sql) as connection:
        post(connection, [entry("a", charged=["m:t:0|org|all"])])
    [missing] = verify(sql, client).differences
    assert (missing.what, missing.found, missing.books) == ("spent", 0, 10)
    client.hset("airi:{acme}:m:t:0", mapping={"s|org|all": 10, "h|org|all": 4})
    [held] = verify(sql, client).differences
    assert (held.what, held.found, held.books, held.counter) == ("held", 4, 0, "m:t:0|org|all")
    client.hset("airi:{acme}:m:t:0", "h|org|all", 0)
    assert verify(sql, client).balanced
    with write(sql) as connection:
        connection.execute(COUNTERS.update().values(usd_micros=11))
    [kept] = verify(sql, client).differences
    assert (kept.what, kept.found, kept.books) == ("sql counter", 11, 10)


def test_usage_sums_by_day_key_and_model(sql: Engine) -> None:
    with write(sql) as connection:
        post(
            connection,
            [
                entry("a"),
                entry("b", model="n", reserved_at_us=NOW - 1),
                entry("c", "reaped", 30),
                entry("c", "late", -25),
            ],
        )
    rows = usage(sql, group_by=["day", "tenant"], tenant="acme")
    assert [(row.day, row.calls, row.usd_micros, row.reaped_calls) for row in rows] == [
        (20_000 * 86_400, 2, 15, 1),
        (19_999 * 86_400, 1, 10, 0),
    ]
    by_model = usage(sql, group_by=["model"])
    assert [(row.model, row.calls, row.usd_micros) for row in by_model] == [("m", 2, 15), ("n", 1, 10)]
    assert usage(sql, group_by=["key"], since_ms=NOW // 1_000)[0].calls == 2
    assert usage(sql, tenant="other") == []
    days = [row.day or 0 for row in usage(sql, group_by=["day"])]
    assert all(later > earlier for later, earlier in pairwise(days))
