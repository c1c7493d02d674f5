"""Money after Redis lost its data; admission while Redis is away."""

from __future__ import annotations

import asyncio
import contextlib
import threading

import pytest
import redis
from sqlalchemy import Engine, select

from policies.admission import Admission, Admitted, Refused, Settlement
from policies.epoch import RebuildReport, money_ready, rebuild
from policies.errors import AdmissionUnavailableError, LedgerError
from policies.ledger import LedgerConsumer, verify
from policies.processes import living, process_name, register_process, unregister_process
from policies.reaper import Reaper
from policies.schema import EPOCHS, OPEN
from tests.policies import kit
from tests.policies.conftest import OwnRedis

BUDGET = {"budgets": [{"name": "monthly", "usd": 0.001, "window": "month"}]}


@pytest.fixture
def sql(tmp_path) -> Engine:
    return kit.engine(f"sqlite:///{tmp_path / 'a.db'}")


@pytest.fixture
def client(redis_url: str, sql: Engine) -> redis.Redis:
    return kit.built(redis_url, sql)


async def rebuilt(sql: Engine, client: redis.Redis, **options: float) -> RebuildReport:
    report = await asyncio.to_thread(rebuild, sql, client, **options)
    assert report is not None
    return report


async def admitted(service: Admission, *arguments: object, **fields: object) -> Admitted:
    answer = await service.reserve(kit.money(*arguments, **fields))  # type: ignore[arg-type]
    assert isinstance(answer, Admitted)
    return answer


async def test_wiped_under_open_calls_nothing_is_overspent(
    redis_url: str, sql: Engine, client: redis.Redis
) -> None:
    of = kit.scopes({**BUDGET, "limits": {"concurrent_calls": 5}})
    rates_only = kit.scopes({})
    name = process_name()
    register_process(sql, name)
    async with kit.admission(redis_url, name) as service:
        done = await admitted(service, of, output=100)
        service.settle(Settlement(reservation_id=done.reservation_id, usd_micros=200))
        await kit.until(lambda: service.open == 0)
        open_call = await admitted(service, of, output=400)
        client.flushall()
        refused = await service.reserve(kit.money(of))
        assert isinstance(refused, Refused)
        assert isinstance(refused.error(), AdmissionUnavailableError)
        assert refused.error().status == 503
        assert isinstance(await service.reserve(kit.ask(rates_only)), Admitted)
        assert not money_ready(client)
        report = await rebuilt(sql, client)
        assert (report.reported, report.silent) == ([name], [])
        assert (report.settlements_recovered, report.open_reservations) == (1, 2)
        assert verify(sql, client).balanced
        await kit.until(lambda: service.money_ready)
        # 1,000 - 200 spent - 500 held: 300 are left.
        assert (await admitted(service, of, output=900)).output_tokens == 200
        assert isinstance(await service.reserve(kit.money(of)), Refused)
        service.settle(Settlement(reservation_id=open_call.reservation_id, usd_micros=500))
        await kit.until(lambda: service.open == 2)
    LedgerConsumer(sql, client).run_until_empty()
    assert verify(sql, client).balanced
    assert verify(sql, client).usd_by_cause == {"settled": 700}
    with sql.connect() as connection:
        assert len(connection.execute(select(EPOCHS)).all()) == 2


async def test_settlements_wait_for_the_rebuild(redis_url: str, sql: Engine, client: redis.Redis) -> None:
    of = kit.scopes(BUDGET)
    register_process(sql, "p1")
    async with kit.admission(redis_url) as service:
        call = await admitted(service, of)
        client.flushall()
        service.settle(Settlement(reservation_id=call.reservation_id, usd_micros=321))
        await asyncio.sleep(0.1)
        assert service.open == 1
        assert not await service.confirmed(call.reservation_id, 10)
        await rebuilt(sql, client)
        assert await service.confirmed(call.reservation_id, 5_000)
    LedgerConsumer(sql, client).run_until_empty()
    assert verify(sql, client).usd_by_cause == {"settled": 321}


async def test_dead_process_is_held_from_what_the_reaper_wrote_down(
    redis_url: str, sql: Engine, client: redis.Redis
) -> None:
    of = kit.scopes(BUDGET)
    async with kit.admission(redis_url, "gone") as service:
        call = await admitted(service, of, output=600)
        assert Reaper(sql, client).run_once().open_with_money == 1
    # The process is gone without a word; so is Redis.
    client.flushall()
    report = await rebuilt(sql, client, wait_s=0)
    assert report.open_reservations == 1
    assert verify(sql, client).balanced
    async with kit.admission(redis_url, "next") as service:
        await kit.until(lambda: service.money_ready)
        assert (await admitted(service, of, output=900)).output_tokens == 200
    with sql.connect() as connection:
        assert connection.scalar(select(OPEN.c.reservation_id)) == call.reservation_id


async def test_rebuild_waits_for_the_living_and_not_for_the_dead(
    redis_url: str, sql: Engine, client: redis.Redis
) -> None:
    here = process_name()
    dead = here.replace(f":{here.split(':')[1]}:", ":4194303:")
    register_process(sql, dead)
    register_process(sql, "elsewhere:1:ab")
    ended = process_name()
    register_process(sql, ended)
    unregister_process(sql, ended)
    assert living(sql) == ["elsewhere:1:ab"]
    client.delete("airi:epoch")
    report = await rebuilt(sql, client, wait_s=0.2)
    assert report.silent == ["elsewhere:1:ab"]
    assert report.waited_ms >= 200


async def test_a_restarted_server_is_another_epoch(redis_url: str, sql: Engine, client: redis.Redis) -> None:
    assert rebuild(sql, client) is None
    client.set("airi:epoch", "the-server-that-was:1")
    async with kit.admission(redis_url) as service:
        refused = await service.reserve(kit.money(kit.scopes(BUDGET)))
        assert isinstance(refused, Refused)
        assert refused.kind == "epoch"
        assert Reaper(sql, client).run_once().money_ready is False
        await rebuilt(sql, client, wait_s=0)
        assert isinstance(await service.reserve(kit.money(kit.scopes(BUDGET))), Admitted)


async def test_one_rebuild_at_a_time(redis_url: str, sql: Engine, client: redis.Redis) -> None:
    client.delete("airi:epoch")
    register_process(sql, "elsewhere:1:ab")
    first = asyncio.create_task(asyncio.to_thread(rebuild, sql, client, wait_s=0.3))
    await kit.until(lambda: client.exists("airi:rebuild") == 1)
    assert rebuild(sql, client) is None
    assert await first is not None


async def test_wiped_again_and_again(redis_url: str, sql: Engine, client: redis.Redis) -> None:
    """A control plane in a thread rebuilds while callers call and somebody keeps wiping Redis."""
    of = kit.scopes({"budgets": [{"name": "b", "usd": 0.02}]})
    register_process(sql, "p1")
    stop = threading.Event()

    def control() -> None:
        consumer, reaper = LedgerConsumer(sql, client), Reaper(sql, client)
        while not stop.is_set():
            with contextlib.suppress(LedgerError):  # wiped in the middle of it
                rebuild(sql, client, wait_s=5)
            consumer.run_once()
            reaper.run_once()

    thread = threading.Thread(target=control)
    thread.start()
    spent = 0

    async def caller(service: Admission) -> None:
        nonlocal spent
        for _ in range(30):
            answer = await service.reserve(kit.money(of))
            await asyncio.sleep(0.002)
            if isinstance(answer, Admitted):
                cost = answer.hold_usd_micros
                service.settle(Settlement(reservation_id=answer.reservation_id, usd_micros=cost))
                spent += cost

    async with kit.admission(redis_url) as service:
        callers = [asyncio.create_task(caller(service)) for _ in range(20)]
        for _ in range(4):
            await asyncio.sleep(0.1)
            client.flushall()
        await asyncio.gather(*callers)
        await kit.until(lambda: service.open == 0 and service.money_ready and money_ready(client), 20)
    stop.set()
    await asyncio.to_thread(thread.join, 10)
    LedgerConsumer(sql, client).run_until_empty()
    report = verify(sql, client)
    assert report.balanced
    assert sum(report.usd_by_cause.values()) == spent
    assert 0 < spent <= 20_000


async def test_redis_away(own_redis: OwnRedis, sql: Engine) -> None:
    """Hard budgets and idempotency deny, others pass under a cap and are put on the books later."""
    child = own_redis.start()
    client = kit.built(own_redis.url, sql)
    soft = kit.scopes(
        {"budgets": [{"name": "s", "usd": 1, "mode": "soft"}], "limits": {"requests_per_minute": 5}}
    )
    async with kit.admission(own_redis.url) as service:
        await kit.until(lambda: service.money_ready)
        child.kill()
        child.wait(10)
        await kit.until(lambda: not service.money_ready)
        hard = await service.reserve(kit.money(kit.scopes(BUDGET)))
        assert isinstance(hard, Refused)
        assert isinstance(hard.error(), AdmissionUnavailableError)
        assert isinstance(await service.reserve(kit.ask(kit.scopes({}), idempotency=("k", "b"))), Refused)
        answers = [await service.reserve(kit.money(soft)) for _ in range(6)]
        assert [isinstance(answer, Admitted) for answer in answers] == [True] * 5 + [False]
        assert isinstance(answers[5], Refused)
        assert answers[5].retry_after_ms > 0
        for answer in answers[:5]:
            assert isinstance(answer, Admitted)
            assert answer.degraded
            service.settle(Settlement(reservation_id=answer.reservation_id, usd_micros=10))
        assert service.open == 5
        own_redis.start()
        await rebuilt(sql, client, wait_s=0)
        await kit.until(lambda: service.open == 0)
    LedgerConsumer(sql, client).run_until_empty()
    report = verify(sql, client)
    assert report.balanced
    assert report.usd_by_cause == {"settled": 50}
    assert report.counters > 0
