"""Health and load from real answers: hysteresis, restarts, corrections that fade."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from routing.adapters.openai import OpenAIUpstream
from routing.engine_metrics import EngineLoad, parse_vllm
from routing.pool import Place
from routing.prober import Prober
from routing.replica import Lease, Replica
from tests.routing.build import pool, table
from tests.routing.openai_server import OpenAIServer

VLLM = """# HELP vllm:num_requests_running Number of requests
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="m"} 3.0
vllm:num_requests_running{engine="1",model_name="m"} 2.0
vllm:num_requests_running_by_someone 77
vllm:num_requests_waiting{engine="0",model_name="m}"} 4.0 1700000000
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:prefix_cache_queries_total{engine="0"} 1000
vllm:cache_config_info{block_size="16",cache_dtype="auto",num_gpu_blocks="1000"} 1.0
process_start_time_seconds 1.7e9
"""


def test_the_needed_numbers_are_found_among_many() -> None:
    noise = "".join(f'vllm:time_to_first_token_seconds_bucket{{le="{n}"}} {n}\n' for n in range(5_000))
    load = parse_vllm((noise + VLLM + noise).encode())
    assert load == EngineLoad(
        running=5, waiting=4, kv_usage=0.25, queries=1000.0, started=1.7e9, kv_tokens=16_000
    )
    assert parse_vllm(b"") is None
    assert parse_vllm(b"vllm:num_requests_running NaN\n") is None
    old = parse_vllm(
        b"vllm:num_requests_running 1\nvllm:gpu_cache_usage_perc 0.5\nvllm:cache_config_info{} 1"
    )
    assert old is not None
    assert (old.kv_usage, old.kv_tokens, old.waiting) == (0.5, 0, 0)


def a_replica(now: Callable[[], float] = time.monotonic, engine: str = "vllm") -> tuple[Place, Replica]:
    class Nothing:
        def close(self) -> None:
            """Nothing is open."""

    spec = table(pool("p", "http://127.0.0.1:9", engine=engine)).places["pool:p"]
    place = Place(spec, lambda *_: Nothing(), now)
    return place, place.replicas[0]


def test_health_has_hysteresis() -> None:
    _, replica = a_replica()
    assert [replica.checked(False) for _ in range(3)] == [False, False, True]
    assert replica.health == "down"
    assert [replica.checked(well) for well in (True, False, True, True)] == [False, False, False, True]
    assert replica.health == "up"
    assert not any(replica.checked(well) for well in (False, False, True, False, False, True))
    assert replica.unreachable()
    assert not replica.unreachable()


def test_others_work_counts_and_fades_as_the_scrape_grows_old() -> None:
    now = [100.0]
    place, replica = a_replica(lambda: now[0])
    place.try_acquire(Lease("t", 1.0, 500, 500, 0, []))
    replica.scraped(now[0], running=4, queued=1, kv_usage=0.1, interval_s=0.5)
    fresh = replica.snapshot(now[0]).external_tokens
    assert fresh == 4_000, "four calls that are not ours, at our mean size"
    now[0] += 1.5
    assert replica.snapshot(now[0]).external_tokens == fresh // 2
    now[0] += 100
    assert replica.snapshot(now[0]).external_tokens == 0
    assert replica.snapshot(now[0]).refusing == ""


@asynccontextmanager
async def watched(
    server: OpenAIServer, engine: str = "vllm", **fields: Any
) -> AsyncIterator[tuple[Place, Replica]]:
    spec = table(pool("p", server.url, engine=engine, scrape_interval=20, **fields)).places["pool:p"]
    place = Place(spec, OpenAIUpstream, time.monotonic)
    prober = Prober(place, place.replicas[0])
    try:
        yield place, place.replicas[0]
    finally:
        prober.stop()
        place.close()
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        await asyncio.sleep(0.005)


async def test_a_replica_is_seen_to_come_and_go() -> None:
    async with OpenAIServer(metrics=VLLM) as server, watched(server) as (place, replica):
        await until(lambda: replica.health == "up" and replica.running == 5)
        assert (replica.queued, replica.kv_usage, replica.token_capacity) == (4, 0.25, 16_000)
        place.index.insert([1, 2], replica.bit)
        server.healthy = False
        await until(lambda: replica.health == "down")
        assert len(place.index) == 0
        replica.breaker._open(time.monotonic(), 60)
        server.healthy = True
        await until(lambda: replica.health == "up")
        assert replica.breaker.allows(time.monotonic())


@pytest.mark.parametrize(
    "change", [("1.7e9", "1.8e9"), ('queries_total{engine="0"} 1000', 'queries_total{engine="0"} 5')]
)
async def test_a_restart_empties_the_prefix_index(change: tuple[str, str]) -> None:
    async with OpenAIServer(metrics=VLLM) as server, watched(server) as (place, replica):
        await until(lambda: replica.running == 5)
        place.index.insert([1, 2], replica.bit)
        server.metrics = VLLM.replace(*change)
        await until(lambda: len(place.index) == 0)


async def test_other_engines_are_asked_for_their_models() -> None:
    async with OpenAIServer(metrics=VLLM) as server, watched(server, engine="openai") as (_, replica):
        await until(lambda: replica.health == "up")
        await asyncio.sleep(0.05)
        assert replica.running == 0


async def test_nobody_listening_is_down() -> None:
    server = OpenAIServer()
    async with server:
        pass
    async with watched(server) as (_, replica):
        await until(lambda: replica.health == "down")
