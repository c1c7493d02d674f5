"""Admission and settlement against a real Redis."""

from __future__ import annotations

import asyncio

import pytest
import redis
from sqlalchemy import Engine, select

from airi.keys.record import KeyBudget
from policies.admission import (
    AdmissionOptions,
    Admitted,
    Conflicting,
    InProgress,
    Refused,
    Replay,
    Settlement,
)
from policies.errors import BudgetExceededError, RequestTooLargeError, RunBudgetExceededError
from policies.ledger import LedgerConsumer, verify
from policies.reaper import Reaper
from policies.schema import LEDGER
from tests.policies import kit


@pytest.fixture
def sql(tmp_path) -> Engine:
    return kit.engine(f"sqlite:///{tmp_path / 'a.db'}")


@pytest.fixture
def client(redis_url: str, sql: Engine) -> redis.Redis:
    return kit.built(redis_url, sql)


BUDGET = {"budgets": [{"name": "monthly", "usd": 0.001, "window": "month"}]}  # 1,000 micro-dollars


async def test_call_is_reserved_settled_and_entered_once(
    redis_url: str, sql: Engine, client: redis.Redis
) -> None:
    of = kit.scopes(BUDGET)
    async with kit.admission(redis_url) as service:
        answer = await service.reserve(kit.money(of))
        assert isinstance(answer, Admitted)
        assert (answer.output_tokens, answer.hold_usd_micros) == (400, 500)
        assert verify(sql, client).balanced
        settlement = Settlement(
            reservation_id=answer.reservation_id, usd_micros=230, input_tokens=50, output_tokens=130
        )
        service.settle(settlement)
        service.settle(settlement)
        await kit.until(lambda: service.open == 0)
        service.settle(settlement)
    assert LedgerConsumer(sql, client).run_until_empty() == 1
    report = verify(sql, client)
    assert report.balanced
    assert report.usd_by_cause == {"settled": 230}
    with sql.connect() as connection:
        row = connection.execute(select(LEDGER)).one()
    assert (row.usd_micros, row.hold_usd_micros, row.tenant, row.input_tokens) == (230, 500, "acme", 50)


async def test_hard_budget_lowers_the_output_then_refuses(redis_url: str, client: redis.Redis) -> None:
    of = kit.scopes(BUDGET)
    async with kit.admission(redis_url) as service:
        first = await service.reserve(kit.money(of, output=700))
        second = await service.reserve(kit.money(of, output=700))
        third = await service.reserve(kit.money(of, output=700))
        assert isinstance(first, Admitted)
        assert first.output_tokens == 700
        assert isinstance(second, Admitted)
        assert second.output_tokens == 100
        assert isinstance(third, Refused)
        assert (third.kind, third.scope, third.remaining) == ("budget", "org monthly", 0)
        assert third.retry_after_ms > 0
        assert isinstance(third.error(), BudgetExceededError)
        service.settle(Settlement(reservation_id=first.reservation_id, usd_micros=150))
        await kit.until(lambda: service.open == 1)
        fourth = await service.reserve(kit.money(of, output=700))
        assert isinstance(fourth, Admitted)
        assert fourth.output_tokens == 550


async def test_all_scopes_or_none(redis_url: str, sql: Engine, client: redis.Redis) -> None:
    budget = KeyBudget(name="tiny", usd=10, window="day")
    of = kit.scopes({**BUDGET, "limits": {"requests_per_minute": 2}}, key_budgets=(budget,))
    other = kit.scopes({**BUDGET, "limits": {"requests_per_minute": 2}}, key_id="k2")
    async with kit.admission(redis_url) as service:
        for _ in range(5):
            refused = await service.reserve(kit.money(of))
            assert isinstance(refused, Refused)
            assert refused.scope == "key:k1 tiny"
        answer = await service.reserve(kit.money(other))
        assert isinstance(answer, Admitted)
        assert answer.requests is not None
        assert answer.requests.remaining == 1
    assert verify(sql, client).balanced


async def test_rates_refuse_with_the_time_to_wait_and_headers(redis_url: str, client: redis.Redis) -> None:
    of = kit.scopes({"limits": {"requests_per_minute": 3, "tokens_per_minute": 1_000}})
    async with kit.admission(redis_url) as service:
        first = await service.reserve(kit.ask(of, estimated_tokens=600))
        assert isinstance(first, Admitted)
        headers = dict(line.split(b": ") for line in first.head().splitlines())
        assert headers[b"x-ratelimit-remaining-requests"] == b"2"
        assert headers[b"x-ratelimit-remaining-tokens"] == b"400"
        assert headers[b"x-ratelimit-limit-tokens"] == b"1000"
        second = await service.reserve(kit.ask(of, estimated_tokens=600))
        assert isinstance(second, Refused)
        assert second.kind == "tokens"
        assert 11_000 < second.retry_after_ms <= 12_000
        # What was not used comes back.
        service.settle(Settlement(reservation_id=first.reservation_id, usd_micros=0, output_tokens=100))
        await kit.until(lambda: service.open == 0)
        assert isinstance(await service.reserve(kit.ask(of, estimated_tokens=600)), Admitted)
        huge = await service.reserve(kit.ask(of, estimated_tokens=1_001))
        assert isinstance(huge, Refused)
        assert isinstance(huge.error(), RequestTooLargeError)


async def test_concurrency_comes_back_with_settlement_and_with_death(
    redis_url: str, client: redis.Redis
) -> None:
    of = kit.scopes({"limits": {"concurrent_calls": 2}})
    async with kit.admission(redis_url) as service:
        first = await service.reserve(kit.ask(of))
        assert isinstance(first, Admitted)
        assert isinstance(await service.reserve(kit.ask(of, lease_ms=1)), Admitted)
        await asyncio.sleep(0.005)
        # The second one's lease has ended: its slot is taken over without waiting for the reaper.
        assert isinstance(await service.reserve(kit.ask(of)), Admitted)
        refused = await service.reserve(kit.ask(of))
        assert isinstance(refused, Refused)
        assert refused.kind == "concurrency"
        service.release(first.reservation_id)
        await kit.until(lambda: service.open <= 2)
        assert isinstance(await service.reserve(kit.ask(of)), Admitted)


async def test_users_have_limits_each(redis_url: str, client: redis.Redis) -> None:
    of = kit.scopes({"user_limits": {"requests_per_minute": 1}})
    async with kit.admission(redis_url) as service:
        assert isinstance(await service.reserve(kit.ask(of, user="ann")), Admitted)
        assert isinstance(await service.reserve(kit.ask(of, user="ann")), Refused)
        assert isinstance(await service.reserve(kit.ask(of, user="böb x" * 40)), Admitted)
        assert isinstance(await service.reserve(kit.ask(of)), Admitted)
        assert isinstance(await service.reserve(kit.ask(of)), Admitted)


async def test_soft_budget_holds_the_estimate(redis_url: str, sql: Engine, client: redis.Redis) -> None:
    of = kit.scopes({"budgets": [{"name": "s", "usd": 0.001, "mode": "soft"}]})
    async with kit.admission(redis_url) as service:
        held = [await service.reserve(kit.money(of, output=800, estimate_usd_micros=250)) for _ in range(5)]
        assert [isinstance(answer, Admitted) for answer in held] == [True] * 4 + [False]
        for answer in held[:4]:
            assert isinstance(answer, Admitted)
            service.settle(Settlement(reservation_id=answer.reservation_id, usd_micros=900))
        await kit.until(lambda: service.open == 0)
    LedgerConsumer(sql, client).run_until_empty()
    assert verify(sql, client).usd_by_cause == {"settled": 3_600}  # bound: worst cases of what ran at once
    assert verify(sql, client).balanced


async def test_idempotency(redis_url: str, client: redis.Redis) -> None:
    of = kit.scopes({})
    async with kit.admission(redis_url) as service:
        first = await service.reserve(kit.ask(of, idempotency=("key", "body")))
        assert isinstance(first, Admitted)
        again = await service.reserve(kit.ask(of, idempotency=("key", "body")))
        assert isinstance(again, InProgress)
        assert again.retry_after_ms > 0
        assert isinstance(await service.reserve(kit.ask(of, idempotency=("key", "other"))), Conflicting)
        service.settle(
            Settlement(reservation_id=first.reservation_id, usd_micros=1, idempotency_reference="ref")
        )
        await kit.until(lambda: service.open == 0)
        assert await service.reserve(kit.ask(of, idempotency=("key", "body"))) == Replay("ref")
        # A failed call leaves the key free; a dead one's key is taken over when its lease has ended.
        failed = await service.reserve(kit.ask(of, idempotency=("k2", "body")))
        assert isinstance(failed, Admitted)
        service.settle(Settlement(reservation_id=failed.reservation_id, usd_micros=0, outcome="error"))
        await kit.until(lambda: service.open == 0)
        assert isinstance(
            await service.reserve(kit.ask(of, idempotency=("k2", "body"), lease_ms=1)), Admitted
        )
        await asyncio.sleep(0.005)
        assert isinstance(await service.reserve(kit.ask(of, idempotency=("k2", "body"))), Admitted)


async def test_run_grant_and_cancel(redis_url: str, client: redis.Redis) -> None:
    from policies.admission.runs import cancel_run

    of = kit.scopes({})
    async with kit.admission(redis_url) as service:
        answer = await service.reserve(kit.money(of, run_id="r", run_budget_usd_micros=300))
        assert isinstance(answer, Admitted)
        assert (answer.output_tokens, answer.hold_usd_micros) == (200, 200)
        refused = await service.reserve(kit.money(of, run_id="r", run_budget_usd_micros=99))
        assert isinstance(refused, Refused)
        assert isinstance(refused.error(), RunBudgetExceededError)
        cancel_run(client, "acme", "r")
        refused = await service.reserve(kit.money(of, run_id="r"))
        assert isinstance(refused, Refused)
        assert refused.kind == "cancelled"


async def test_dead_process_is_reaped_at_its_hold_and_late_settlement_posts_the_difference(
    redis_url: str, sql: Engine, client: redis.Redis
) -> None:
    of = kit.scopes(BUDGET)
    async with kit.admission(redis_url, options=AdmissionOptions(beat_ms=600_000)) as service:
        answer = await service.reserve(kit.money(of, lease_ms=1))
        assert isinstance(answer, Admitted)
        await asyncio.sleep(0.005)
        assert Reaper(sql, client).run_once().reaped == [("acme", answer.reservation_id, 500)]
        assert Reaper(sql, client).run_once().reaped == []
        LedgerConsumer(sql, client).run_until_empty()
        assert verify(sql, client).usd_by_cause == {"reaped": 500}
        service.settle(Settlement(reservation_id=answer.reservation_id, usd_micros=120))
        await kit.until(lambda: service.open == 0)
    LedgerConsumer(sql, client).run_until_empty()
    report = verify(sql, client)
    assert report.usd_by_cause == {"reaped": 500, "late": -380}
    assert report.balanced


async def test_upstream_that_lies_shows_as_excess(redis_url: str, sql: Engine, client: redis.Redis) -> None:
    of = kit.scopes(BUDGET)
    async with kit.admission(redis_url) as service:
        answer = await service.reserve(kit.money(of))
        assert isinstance(answer, Admitted)
        service.settle(Settlement(reservation_id=answer.reservation_id, usd_micros=700))
        await kit.until(lambda: service.open == 0)
    LedgerConsumer(sql, client).run_until_empty()
    report = verify(sql, client)
    assert report.excess_usd_micros == 200
    assert report.balanced


async def test_leases_are_renewed_and_soft_holds_grow(
    redis_url: str, sql: Engine, client: redis.Redis
) -> None:
    of = kit.scopes({"budgets": [{"name": "s", "usd": 1, "mode": "soft"}], "limits": {"concurrent_calls": 1}})
    async with kit.admission(redis_url) as service:
        answer = await service.reserve(kit.money(of, lease_ms=400, estimate_usd_micros=100))
        assert isinstance(answer, Admitted)
        service.progress(answer.reservation_id, 350)
        await asyncio.sleep(0.8)
        assert Reaper(sql, client).run_once().reaped == []
        held = {
            name: value
            for key in client.scan_iter("airi:{acme}:m:*")
            for name, value in client.hgetall(key).items()
        }
        assert held[b"h|org|s"] == b"350"
        assert verify(sql, client).balanced
    assert Reaper(sql, client).run_once().reaped == []


async def test_versions_come_with_the_answer(redis_url: str, client: redis.Redis) -> None:
    client.hset("airi:versions", mapping={"snapshot": 7, "keys": 42})
    async with kit.admission(redis_url) as service:
        answer = await service.reserve(kit.ask(kit.scopes({})))
        assert isinstance(answer, Admitted)
        assert (answer.snapshot, answer.keys) == (7, 42)
