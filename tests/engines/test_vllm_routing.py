"""AIRI's router beside a real vLLM: its metrics, its prefix cache."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time

import httpx
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from airi.config.document import ConfigDocument
from airi.config.kinds import Metadata, Model, ModelVersion, Pool, Replica, Target
from routing.prices import PriceMap
from routing.registry import RoutingTable
from routing.router import Router
from tests.engines.calls import decision, record_of
from tests.engines.vllm_engine import Engine, Engines
from tests.support.live import Live, wait_until

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
PAGE = "The keeper of the light wrote down what the night had brought. " * 40


class Elsewhere:
    """Work that the engine gets past AIRI: one endless stream on a connection of its own."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        body = {"model": "tiny", "prompt": "On", "max_tokens": 8_000, "stream": True, "ignore_eos": True}
        with httpx.stream("POST", f"{self._engine.base}/v1/completions", json=body, timeout=60, trust_env=False) as answer:  # fmt: skip
            for _ in answer.iter_raw():
                if self._over.is_set():
                    return

    def __enter__(self) -> Elsewhere:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(30)


async def test_the_scraper_reads_the_real_metrics(idle: Engines) -> None:
    pool = Pool(
        metadata=Metadata(name="p"), engine="vllm", scrape_interval=100,
        replicas=[Replica(name="a", url=idle.a.base)], tokens_per_replica=10_000_000,
    )  # fmt: skip
    model = Model(
        metadata=Metadata(name="m"),
        versions=[ModelVersion(name="v1", targets=[Target(pool="p", model="tiny")])],
    )
    router = Router()
    await router.apply(RoutingTable.build(ConfigDocument.of([pool, model]), PriceMap({})))
    try:

        async def until(running: int) -> None:
            deadline = time.monotonic() + 20
            while (seen := router.status()[0].replicas[0]).running != running or seen.health != "up":
                assert time.monotonic() < deadline, seen
                await asyncio.sleep(0.05)

        await until(0)
        with Elsewhere(idle.a), Elsewhere(idle.a):
            await until(2)
            assert router.status()[0].replicas[0].kv_usage > 0
        await until(0)
        # As vLLM tells it: blocks times the tokens of a block.
        assert router.status()[0].replicas[0].token_capacity == idle.a.load().kv_tokens > 100_000
    finally:
        await router.close()


def ask(
    client: OpenAI, live: Live, messages: list[ChatCompletionMessageParam]
) -> tuple[str, dict[str, object]]:
    """Return the replica that answered and the route stage's details."""
    raw = client.chat.completions.with_raw_response.create(model="vllm/tiny", messages=messages, max_tokens=4)
    record = record_of(live, raw.headers["x-airi-trace-id"])
    return record["target"], decision(record, "route")["details"]


def test_a_replica_with_others_work_is_avoided(client: OpenAI, live: Live, idle: Engines) -> None:
    for busy, free in ((idle.a, idle.b), (idle.b, idle.a)):
        with Elsewhere(busy), Elsewhere(busy):
            wait_until(lambda: busy.load().running == 2, 20)  # noqa: B023  # asked before the next turn

            def avoided() -> bool:
                target, details = ask(client, live, [{"role": "user", "content": secrets.token_hex(8)}])
                scores = {item["replica"]: item["external_tokens"] for item in details["candidates"]}  # type: ignore[attr-defined]
                return target == f"both/{free.name}" and scores[f"both/{busy.name}"] > 0  # noqa: B023  # as above

            wait_until(avoided, 10)
            assert all(ask(client, live, [{"role": "user", "content": secrets.token_hex(8)}])[0] == f"both/{free.name}" for _ in range(4))  # fmt: skip
        wait_until(lambda: busy.load().running == 0, 20)  # noqa: B023  # as above


def test_conversations_return_to_the_cache_that_knows_them(client: OpenAI, live: Live, idle: Engines) -> None:
    homes = set()
    for _ in range(4):
        messages: list[ChatCompletionMessageParam] = [
            {"role": "system", "content": secrets.token_hex(8) + PAGE}
        ]
        messages.append({"role": "user", "content": "Who wrote?"})
        first, _details = ask(client, live, messages)
        engine = idle.named(first)
        before = engine.counter("vllm:prefix_cache_hits_total")
        for turn in range(2):  # an odd number of calls in all: equal replicas take turns
            messages += [
                {"role": "assistant", "content": "The keeper."},
                {"role": "user", "content": f"And {turn}?"},
            ]
            target, details = ask(client, live, messages)
            assert target == first
            assert details["reason"] == "cached_prefix"
        assert engine.counter("vllm:prefix_cache_hits_total") >= before + 2 * 128, "vLLM has no use of it"
        homes.add(first)
    assert homes == {"both/a", "both/b"}, "new conversations are spread"
