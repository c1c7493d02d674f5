"""Limits as the script keeps them, against simple models: GCRA, windows, granted output; the table; estimates."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from airi.keys.record import KeyBudget, KeyLimits
from bench.admission_world import CLOCK_KEY, SIM_SCRIPTS
from policies.admission import wire
from policies.admission.encoding import to_wire
from policies.admission.estimate import OutputEstimate
from policies.admission.local_cap import LocalCap
from policies.admission.types import Admitted, Rate, Refused, format_reset, usd
from policies.keyspace import expires_at_s
from tests.policies import kit

NO_DEADLINE = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Gate:
    """Admission's script on a clock of the test's."""

    def __init__(self, url: str) -> None:
        self.client = redis.Redis.from_url(url)
        self._admit = self.client.register_script(SIM_SCRIPTS.admit.source)
        self._settle = self.client.register_script(SIM_SCRIPTS.settle.source)
        self.reset()

    def reset(self) -> None:
        self.client.flushdb()
        self.client.set("airi:epoch", "e")
        self.at(4_000_000_000)  # far ahead: windows expire by Redis' own clock

    def at(self, seconds: float) -> None:
        self.client.set(CLOCK_KEY, round(seconds * 1_000_000))

    def ask(self, request) -> list:
        limits = request.scopes.limits_bulk.partition(b"\r\n")[2][:-2]
        blob = wire.ENCODER.encode(to_wire(request))
        return self._admit(keys=[request.scopes.prefix], args=["e", "p", limits, blob])

    def settle(self, request, usd_micros: int = 0, tokens: int = 0) -> list:
        settlement = wire.SettlementWire(request.reservation_id, usd_micros, tokens)
        return self._settle(keys=[request.scopes.prefix], args=["e", wire.ENCODER.encode(settlement)])


@pytest.fixture
def gate(redis_url: str) -> Gate:
    return Gate(redis_url)


@NO_DEADLINE
@given(
    limit=st.integers(1, 100),
    gaps=st.lists(st.floats(0, 20, allow_nan=False), min_size=1, max_size=40),
)
def test_requests_follow_a_token_bucket(gate: Gate, limit: int, gaps: list[float]) -> None:
    gate.reset()
    of = kit.scopes({"limits": {"requests_per_minute": limit}})
    now, level = 4_000_000_000.0, 0.0  # level: requests in the bucket that have not drained
    for gap in gaps:
        now += gap
        gate.at(now)
        level = max(0.0, level - gap * limit / 60)
        answer = gate.ask(kit.ask(of))
        fits = level + 1 <= limit
        if abs(level + 1 - limit) > 1e-3:
            assert (answer[0] == 0) == fits
        if answer[0] == 0:
            level += 1
        else:
            assert answer[4] == b"requests"
            assert abs(answer[8] / 1_000 - (level + 1 - limit) * 60 / limit) < 0.01


@NO_DEADLINE
@given(
    steps=st.lists(
        st.tuples(st.integers(1, 300), st.integers(0, 400), st.floats(0, 30, allow_nan=False)),
        min_size=1,
        max_size=25,
    )
)
def test_tokens_in_any_window_stay_within_burst_and_rate(
    gate: Gate, steps: list[tuple[int, int, float]]
) -> None:
    """Charged by the estimate, corrected by what was used: use never runs ahead of the bucket by more than corrections
    upwards that nobody could foresee."""
    gate.reset()
    limit = 300
    of = kit.scopes({"limits": {"tokens_per_minute": limit}})
    now = start = 4_000_000_000.0
    used = unforeseen = 0
    for estimate, actual, wait in steps:
        request = kit.ask(of, estimated_tokens=estimate)
        if gate.ask(request)[0] == 0:
            now += wait
            gate.at(now)
            gate.settle(request, tokens=actual)
            used += actual
            unforeseen += max(0, actual - estimate)
        else:
            now += wait
            gate.at(now)
    assert used <= limit + unforeseen + limit * (now - start) / 60 + 1


@NO_DEADLINE
@given(
    budget=st.integers(0, 5_000),
    input_usd=st.integers(0, 500),
    price=st.integers(0, 5_000_000),
    wished=st.integers(1, 3_000),
    least=st.integers(1, 50),
)
def test_granted_output_is_the_largest_that_fits(
    gate: Gate, budget: int, input_usd: int, price: int, wished: int, least: int
) -> None:
    gate.reset()
    of = kit.scopes({"budgets": [{"name": "b", "usd": budget / 1_000_000}]})
    asked = kit.money(of, input_usd=input_usd, price=price, output=wished, min_output_tokens=least)
    answer = gate.ask(asked)

    def cost(tokens: int) -> int:
        return input_usd + -(-tokens * price // 1_000_000)

    fitting = [tokens for tokens in range(least, wished + 1) if cost(tokens) <= budget]
    if answer[0] == 0:
        granted, hold = answer[4], answer[5]
        assert hold == cost(granted) <= budget
        assert granted == (max(fitting) if least <= wished else wished)
    else:
        assert answer[4] == b"budget"
        assert not fitting


@pytest.mark.parametrize("window", ["minute", "hour", "day", "week", "month", "total"])
def test_windows_are_utc_calendar_windows(gate: Gate, window: str) -> None:
    moments = [
        datetime(2028, 2, 29, 23, 59, 59, tzinfo=UTC),
        datetime(2027, 12, 31, 23, 59, 59, tzinfo=UTC),
        datetime(2031, 11, 20, 12, 34, 56, tzinfo=UTC),
        datetime(2100, 2, 28, 23, 59, 59, tzinfo=UTC),
        datetime(2027, 1, 3, 23, 59, 59, tzinfo=UTC),
    ]
    of = kit.scopes({"budgets": [{"name": "b", "usd": 0.0005, "window": window}]})
    for moment in moments:
        for at in (moment, moment + timedelta(seconds=1)):
            gate.reset()
            gate.at(at.timestamp())
            record = wire.RECORD.decode(gate.ask(kit.money(of))[6])
            begin, end = _window(at, window)
            assert record.money[0].suffix.split(":")[2] == str(begin)
            refused = gate.ask(kit.money(of))
            assert refused[0] == 1
            assert refused[8] == (0 if end == 0 else (end - int(at.timestamp())) * 1_000)
            assert expires_at_s(record.money[0].suffix) >= end


def _window(at: datetime, window: str) -> tuple[int, int]:
    midnight = at.replace(hour=0, minute=0, second=0)
    if window == "total":
        return 0, 0
    if window == "month":
        first = midnight.replace(day=1)
        return int(first.timestamp()), int((first + timedelta(days=31)).replace(day=1).timestamp())
    begin = {
        "minute": at.replace(second=0),
        "hour": at.replace(minute=0, second=0),
        "day": midnight,
        "week": midnight - timedelta(days=at.weekday()),
    }[window]
    length = {"minute": 60, "hour": 3_600, "day": 86_400, "week": 7 * 86_400}[window]
    return int(begin.timestamp()), int(begin.timestamp()) + length


def test_a_window_that_ended_keeps_its_calls(gate: Gate) -> None:
    of = kit.scopes({"budgets": [{"name": "b", "usd": 0.001, "window": "minute"}]})
    first = kit.money(of)
    gate.at(4_000_000_079)
    gate.ask(first)
    gate.at(4_000_000_081)
    assert gate.ask(kit.money(of))[0] == 0
    gate.settle(first, 77)
    hashes = [gate.client.hgetall(key) for key in sorted(gate.client.scan_iter("airi:{acme}:m:*"))]
    assert hashes == [{b"s|org|b": b"77", b"h|org|b": b"0"}, {b"s|org|b": b"0", b"h|org|b": b"500"}]


def test_table_finds_every_scope_and_caches() -> None:
    from airi.config.document import ConfigDocument
    from airi.config.kinds import Tenant
    from policies.limits import LimitTable

    tenant = {
        "kind": "Tenant",
        "metadata": {"name": "acme"},
        "limits": {"requests_per_minute": 10},
        "teams": [{"name": "core", "limits": {"concurrent_calls": 2}}],
        "user_limits": {"tokens_per_minute": 5},
        "model_limits": {
            "gpt-*": {"requests_per_minute": 3},
            "gpt-x": {"budgets": [{"name": "b", "usd": 1}]},
        },
    }
    table = LimitTable(ConfigDocument.of([Tenant.model_validate(tenant)]), cache_size=8)
    record = kit.key(
        limits=KeyLimits(requests_per_minute=4), budgets=(KeyBudget(name="k", usd=5, mode="soft"),)
    )
    found = table.scopes_for("acme", "core", record, "ann", "gpt-x")
    assert [part.scope for part in found.parts] == ["org", "team:core", "key:k1", "user", "model:gpt-x"]
    assert (found.has_hard, found.has_money, found.requests_per_minute()) == (True, True, 4)
    assert table.scopes_for("acme", "core", record, "bob", "gpt-x") is found
    assert table.scopes_for("acme", "core", record, None, "gpt-y").parts[-1].scope == "model:gpt-*"
    assert [p.scope for p in table.scopes_for("acme", None, kit.key(), None, "m").parts] == ["org", "user"]
    changed = kit.key(limits=KeyLimits(requests_per_minute=9))
    assert table.scopes_for("acme", "core", changed, None, "gpt-x").parts[2].limits.requests_per_minute == 9
    assert table.scopes_for("gone", None, record, None, "m").parts[0].scope == "key:k1"
    for i in range(100):
        table.scopes_for("acme", None, record, None, f"m{i}")
    assert len(table._cache) == 8
    started = time.process_time()
    for _ in range(1_000):
        table.scopes_for("acme", None, record, None, "m99")
    assert (time.process_time() - started) / 1_000 < 50e-6


def test_estimate_is_the_90th_percentile_and_bounded() -> None:
    estimate = OutputEstimate(capacity=2)
    assert estimate.output_tokens("t", "m", 500) == 500
    for tokens in range(1, 101):
        estimate.learn("t", "m", tokens)
    assert 85 <= estimate.output_tokens("t", "m", 500) <= 95
    assert estimate.output_tokens("t", "m", 20) == 20
    for name in ("x", "y", "z"):
        estimate.learn("t", name, 1)
    assert estimate.output_tokens("t", "m", 500) == 500


def test_local_cap_shares_the_limit_between_processes() -> None:
    cap = LocalCap(600, processes=2)
    assert [cap.allow("t", 10, 100.0) > 0 for _ in range(6)] == [False] * 5 + [True]
    assert cap.allow("t", 10, 112.1) == 0
    assert cap.allow("other", None, 100.0) == 0


def test_texts() -> None:
    assert [usd(0), usd(1_500_000), usd(12_340_001)] == ["$0.00", "$1.50", "$12.340001"]
    assert [format_reset(ms) for ms in (0, 120, 1_500, 360_000, 61_000)] == [
        b"0ms",
        b"120ms",
        b"1.5s",
        b"6m0s",
        b"1m1s",
    ]
    assert Admitted("r", 1, 1, 0, 0, requests=Rate(5, 4, 1_000)).head() == (
        b"x-ratelimit-limit-requests: 5\r\nx-ratelimit-remaining-requests: 4\r\nx-ratelimit-reset-requests: 1s\r\n"
    )
    for kind in (
        "requests",
        "tokens",
        "concurrency",
        "budget",
        "run_budget",
        "too_large",
        "cancelled",
        "epoch",
        "unavailable",
    ):
        error = Refused(kind, "org monthly", 10, 1, 1_000).error()
        assert error.status in (400, 409, 429, 503)
        assert error.message
