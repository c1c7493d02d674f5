"""The router against real HTTP upstreams: attempts, commit point, cancellation in every phase, leases."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from airi.config.document import ConfigDocument
from airi.config.kinds import AnyResource
from routing.call import Call
from routing.contract import Needs
from routing.errors import (
    ContractError,
    NoTargetError,
    QueueFullError,
    QueueTimeoutError,
    UpstreamError,
    UpstreamTimeoutError,
)
from routing.payload import Payload
from routing.plan import ordered
from routing.prices import PriceMap
from routing.registry import RoutingTable
from routing.router import Router
from tests.routing.build import model, pool, provider, table
from tests.routing.openai_server import OpenAIServer

FAST = {"max_attempts": 3, "initial": 1, "max": 2_000}


@asynccontextmanager
async def routed(*resources: AnyResource, **options: Any) -> AsyncIterator[tuple[Router, RoutingTable]]:
    router = Router(**{"probe": False, **options})
    built = table(*resources)
    await router.apply(built)
    try:
        yield router, built
    finally:
        await router.close()


def call(built: RoutingTable, alias: str = "m", **fields: Any) -> Call:
    body = {
        "model": alias,
        "messages": [{"role": "user", "content": "hi"}],
        "stream": fields.get("stream", False),
    }
    fields = {"tenant": "t", "input_tokens": 10, "predicted_output_tokens": 10, **fields}
    return Call(route=built.resolve(alias), payload=Payload(body), **fields)


async def stream_of(answer: Any) -> bytes:
    blocks = []
    while (block := await answer.next_block()) is not None:
        blocks.append(block)
    return b"".join(blocks)


async def until(condition: Callable[[], bool], seconds: float = 5) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        await asyncio.sleep(0.005)


def in_flight(router: Router) -> int:
    return sum(place.in_flight for place in router.fleet.places.values())


async def test_a_call_is_answered_and_explained() -> None:
    async with OpenAIServer() as a, routed(pool("p", a.url), model("m", {"pool": "p"})) as (router, built):
        answer = await router.send(call(built))
        assert msgspec.json.decode(await answer.read()) == {"served_by": "a", "model": "there"}
        assert (answer.status, answer.target, answer.version) == (200, "p/r0", "m@v1")
        assert [header[0] for header in answer.headers] == [b"content-type"]
        assert answer.explanation["target"] == "p/r0"
        assert [attempt.outcome for attempt in answer.attempts] == ["ok"]
        assert in_flight(router) == 1
        answer.close(5)
        answer.close(5)
        assert in_flight(router) == 0
        assert a.seen[0].path == "/v1/chat/completions"


async def test_a_stream_comes_as_bytes() -> None:
    async with OpenAIServer() as a, routed(pool("p", a.url), model("m", {"pool": "p"})) as (router, built):
        answer = await router.send(
            call(built, stream=True, overrides={"stream_options": {"include_usage": True}})
        )
        assert (
            await stream_of(answer)
            == b"".join(b'data: {"n":%d}\n\n' % n for n in range(3)) + b"data: [DONE]\n\n"
        )
        answer.close(3)
        assert a.seen[0].body["stream_options"] == {"include_usage": True}
        assert a.seen[0].headers["accept"] == "text/event-stream"


async def test_only_allowed_headers_go_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UP_KEY", "sk-ours")
    async with (
        OpenAIServer() as a,
        routed(
            provider("o", a.url + "/v1?api-version=7", api_key="${env:UP_KEY}", headers={"X-Org": "o1"}),
            model("m", {"provider": "o"}),
        ) as (router, built),
    ):
        headers = [
            (b"authorization", b"Bearer airi_callers"),
            (b"cookie", b"airi_session=x"),
            (b"traceparent", b"00-1-2-01"),
            (b"x-request-id", b"r1"),
            (b"tracestate", b"a\r\nx-evil: 1"),
        ]
        (await router.send(call(built, headers=headers))).close()
        seen = a.seen[0]
        assert seen.path == "/v1/chat/completions?api-version=7"
        assert seen.headers["authorization"] == "Bearer sk-ours"
        assert (seen.headers["traceparent"], seen.headers["x-request-id"], seen.headers["x-org"]) == (
            "00-1-2-01",
            "r1",
            "o1",
        )
        assert not {"cookie", "x-evil", "tracestate"} & set(seen.headers)


@pytest.mark.parametrize("fault", ["500", "503", "close", "429", "408"])
@pytest.mark.parametrize("stream", [False, True])
async def test_another_replica_takes_over_at_once(fault: str, stream: bool) -> None:
    async with OpenAIServer("a") as a, OpenAIServer("b") as b:
        for server in (a, b):
            server.usual = "ok"
        async with routed(pool("p", a.url, b.url), model("m", {"pool": "p"}, retries=FAST)) as (
            router,
            built,
        ):
            a.script.append(fault)
            b.script.append(fault)
            answers = [await router.send(call(built, stream=stream)) for _ in range(3)]
            assert [answer.status for answer in answers] == [200] * 3
            assert sorted(len(answer.attempts) for answer in answers)[-1] >= 2
            for answer in answers:
                answer.close()
            assert in_flight(router) == 0


async def test_a_dead_replica_costs_callers_nothing() -> None:
    async with (
        OpenAIServer("a") as a,
        OpenAIServer("b") as b,
        routed(pool("p", a.url, b.url), model("m", {"pool": "p"}, retries=FAST)) as (
            router,
            built,
        ),
    ):
        a.usual = b.usual = "held"
        calls = [asyncio.create_task(router.send(call(built, stream=n % 2 == 0))) for n in range(40)]
        await until(lambda: a.active + b.active == 40)
        assert a.active >= 10
        await a.stop()
        b.release.set()
        answers = await asyncio.gather(*calls)
        assert {answer.status for answer in answers} == {200}
        assert {answer.target for answer in answers} == {"p/r1"}
        for answer in answers:
            answer.close()
        assert in_flight(router) == 0
        assert router.status()[0].replicas[0].breaker == "open"


@pytest.mark.parametrize("fault", ["head_cut", "head_only"])
async def test_a_stream_may_fail_over_until_its_first_block(fault: str) -> None:
    async with OpenAIServer("a") as a, OpenAIServer("b") as b:
        timeouts = {"idle": 200}
        async with routed(
            provider("pa", a.url + "/v1", timeouts=timeouts),
            provider("pb", b.url + "/v1"),
            model("m", {"provider": "pa", "weight": 1}, {"provider": "pb", "weight": 0}, retries=FAST),
        ) as (router, built):
            a.usual = fault
            answer = await router.send(call(built, stream=True))
            assert answer.target == "pb"
            assert (await stream_of(answer)).endswith(b"[DONE]\n\n")
            answer.close()


async def test_no_retry_after_the_first_visible_byte() -> None:
    async with (
        OpenAIServer("a") as a,
        OpenAIServer("b") as b,
        routed(pool("p", a.url, b.url), model("m", {"pool": "p"}, retries=FAST)) as (
            router,
            built,
        ),
    ):
        a.usual = b.usual = "cut"
        answer = await router.send(call(built, stream=True))
        assert await answer.next_block() == b'data: {"n":1}\n\n'
        with pytest.raises(UpstreamError) as caught:
            await answer.next_block()
        assert caught.value.code == "upstream_truncated"
        assert "127.0.0.1" not in caught.value.message
        answer.close(1)
        assert len(a.seen) + len(b.seen) == 1
        assert in_flight(router) == 0


async def test_retry_after_is_waited_for_when_short() -> None:
    async with (
        OpenAIServer() as a,
        routed(pool("p", a.url), model("m", {"pool": "p"}, retries=FAST)) as (router, built),
    ):
        a.script.append("429")
        started = time.monotonic()
        answer = await router.send(call(built))
        answer.close()
        assert answer.status == 200
        assert time.monotonic() - started >= 0.99


async def test_retry_after_is_passed_on_when_long() -> None:
    async with (
        OpenAIServer() as a,
        routed(pool("p", a.url), model("m", {"pool": "p"}, retries=FAST)) as (router, built),
    ):
        a.usual = "429long"
        answer = await router.send(call(built))
        assert answer.status == 429
        assert (b"retry-after", b"900") in answer.headers
        error = msgspec.json.decode(await answer.read())["error"]
        assert error == {"message": "slow down", "type": "rate_limit_error", "param": None, "code": None}
        assert len(a.seen) == 1
        assert in_flight(router) == 0


async def test_attempts_are_bounded_and_the_last_answer_passed_on() -> None:
    async with (
        OpenAIServer() as a,
        routed(pool("p", a.url), model("m", {"pool": "p"}, retries=FAST)) as (router, built),
    ):
        a.usual = "500"
        answer = await router.send(call(built))
        assert (answer.status, len(answer.attempts), len(a.seen)) == (500, 3, 3)
        assert msgspec.json.decode(await answer.read())["error"]["message"] == "no"


async def test_a_callers_mistake_is_passed_on_at_once() -> None:
    async with (
        OpenAIServer() as a,
        routed(pool("p", a.url), model("m", {"pool": "p"}, retries=FAST)) as (router, built),
    ):
        a.usual = "422"
        answer = await router.send(call(built))
        assert (answer.status, len(a.seen)) == (422, 1)
        assert msgspec.json.decode(await answer.read())["error"]["type"] == "invalid_request_error"


async def test_our_own_refused_access_is_never_the_callers_401() -> None:
    async with (
        OpenAIServer() as a,
        routed(pool("p", a.url), model("m", {"pool": "p"}, retries=FAST)) as (router, built),
    ):
        a.usual = "401"
        with pytest.raises(UpstreamError) as caught:
            await router.send(call(built))
        assert (caught.value.status, caught.value.code) == (502, "upstream_refused")
        assert len(caught.value.attempts) == 1


async def test_fallbacks_only_within_the_contract() -> None:
    async with (
        OpenAIServer("a") as a,
        OpenAIServer("b") as b,
        OpenAIServer("c") as c,
        routed(
            provider("pa", a.url + "/v1"),
            provider("pb", b.url + "/v1"),
            provider("pc", c.url + "/v1"),
            model("m", {"provider": "pa"}, fallbacks=["small", "large"], retries=FAST),
            model("small", {"provider": "pb"}, contract={"tools": False, "context_window": 100}),
            model("large", {"provider": "pc"}),
        ) as (router, built),
    ):
        a.usual = "500"
        answer = await router.send(call(built, needs=Needs(tools=True)))
        answer.close()
        assert (answer.target, answer.version, len(b.seen)) == ("pc", "large@v1", 0)
        assert [attempt.label for attempt in answer.attempts] == ["m@v1"] * 3 + ["large@v1"]
        assert (await router.send(call(built, input_tokens=101))).target == "pc"
        assert (await router.send(call(built, input_tokens=100))).target == "pb"


async def test_a_place_without_its_secret_fails_its_own_calls_until_it_has_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with OpenAIServer("a") as a, OpenAIServer("b") as b:
        resources: list[AnyResource] = [
            provider("pa", a.url + "/v1", api_key="${env:AN_UNSET_KEY}"),
            provider("pb", b.url + "/v1"),
            model("m", {"provider": "pa"}, fallbacks=["own"], retries=FAST),
            model("beside", {"provider": "pa"}, {"provider": "pb", "weight": 0}, retries={"max_attempts": 1}),
            model("alone", {"provider": "pa"}, retries=FAST),
            model("own", {"provider": "pb"}),
        ]
        document = ConfigDocument.of(resources)
        built = RoutingTable.build(document, PriceMap({}), lenient=True)
        router = Router(probe=False)
        await router.apply(built)
        answer = await router.send(call(built))
        answer.close()
        assert answer.target == "pb"
        # Tried once, and no breaker ever hides the reason.
        for alias in ["m", "beside"] * 6:
            answer = await router.send(call(built, alias))
            answer.close()
            tried = [(one.target, one.outcome) for one in answer.attempts]
            assert tried == [("pa", "upstream_not_configured"), ("pb", "ok")]
            assert "AN_UNSET_KEY is not set" in answer.attempts[0].detail
        with pytest.raises(UpstreamError) as caught:
            await router.send(call(built, "alone"))
        assert (caught.value.status, caught.value.code) == (503, "upstream_not_configured")
        assert len(caught.value.attempts) == 1
        assert "AN_UNSET_KEY" not in caught.value.message, "callers are not told how the platform is set up"
        monkeypatch.setenv("AN_UNSET_KEY", "sk-now")
        built = RoutingTable.build(document, PriceMap({}), lenient=True)
        await router.apply(built)
        answer = await router.send(call(built, "alone"))
        answer.close()
        assert answer.target == "pa"
        await router.close()


async def test_needs_are_refused_by_name_or_dropped() -> None:
    async with OpenAIServer() as a:
        plain = {"tools": False, "json_schema": False}
        async with routed(
            pool("p", a.url),
            model("m", {"pool": "p"}, contract=plain),
            model("d", {"pool": "p"}, contract=plain, drop_params=True),
        ) as (router, built):
            with pytest.raises(ContractError) as caught:
                await router.send(call(built, needs=Needs(tools=True)))
            assert (caught.value.status, caught.value.param) == (400, "tools")
            asked = call(built, "d", needs=Needs(tools=True))
            asked.payload.body["tools"] = [{}]
            (await router.send(asked)).close()
            assert "tools" not in a.seen[0].body
            with pytest.raises(ContractError, match="images"):
                await router.send(call(built, "d", needs=Needs(tools=True, vision=True)))


async def test_the_deadline_bounds_everything() -> None:
    async with (
        OpenAIServer() as a,
        routed(pool("p", a.url), model("m", {"pool": "p"}, retries=FAST)) as (router, built),
    ):
        a.usual = "silent"
        started = time.monotonic()
        with pytest.raises(UpstreamTimeoutError) as caught:
            await router.send(call(built, deadline=started + 0.3))
        assert caught.value.status == 504
        assert time.monotonic() - started < 2
        await asyncio.wait_for(a.disconnected.wait(), 2)
        with pytest.raises(UpstreamTimeoutError, match="before it could be sent"):
            await router.send(call(built, deadline=time.monotonic() - 1))
        assert in_flight(router) == 0


@pytest.mark.parametrize("phase", ["silent", "head_only", "stall"])
async def test_cancelling_closes_the_upstream_at_once(phase: str) -> None:
    async with OpenAIServer() as a, routed(pool("p", a.url), model("m", {"pool": "p"})) as (router, built):
        a.usual = phase

        async def caller() -> None:
            answer = await router.send(call(built, stream=True))
            try:
                await stream_of(answer)
            finally:
                answer.close()

        task = asyncio.create_task(caller())
        await until(lambda: a.active == 1)
        await asyncio.sleep(0.05)
        task.cancel()
        cancelled = time.monotonic()
        await asyncio.wait_for(a.disconnected.wait(), 2)
        assert time.monotonic() - cancelled < 0.5
        with pytest.raises(asyncio.CancelledError):
            await task
        assert in_flight(router) == 0


async def test_cancelling_in_the_back_off_and_in_the_queue() -> None:
    async with OpenAIServer() as a:
        slow = {"max_attempts": 2, "initial": 60_000, "max": 60_000}
        async with routed(
            pool("p", a.url, concurrency_per_replica=1),
            model("m", {"pool": "p"}, retries=slow),
            draw=lambda: 1.0,
        ) as (router, built):
            a.script.append("500")
            task = asyncio.create_task(router.send(call(built)))
            await until(lambda: len(a.seen) == 1 and in_flight(router) == 0)
            task.cancel()
            a.usual = "held"
            running = asyncio.create_task(router.send(call(built)))
            await until(lambda: a.active == 1)
            waiting = asyncio.create_task(router.send(call(built)))
            queue = router.fleet.places["pool:p"].queue
            await until(lambda: queue.waiting == 1)
            waiting.cancel()
            await asyncio.wait([waiting])
            assert queue.waiting == 0
            a.release.set()
            (await running).close()
            assert in_flight(router) == 0


async def test_a_full_pool_makes_callers_wait_in_fairness_and_bounds() -> None:
    async with (
        OpenAIServer() as a,
        routed(
            pool("p", a.url, concurrency_per_replica=1, queue={"max_waiting": 2, "max_wait": 300}),
            model("m", {"pool": "p"}),
        ) as (router, built),
    ):
        a.usual = "held"
        running = asyncio.create_task(router.send(call(built)))
        await until(lambda: a.active == 1)
        waiting = [asyncio.create_task(router.send(call(built))) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError) as full:
            await router.send(call(built))
        assert full.value.status == 429
        assert full.value.retry_after_ms is not None
        other = asyncio.create_task(router.send(call(built, tenant="other")))
        done, _ = await asyncio.wait([*waiting, other], timeout=5)
        assert len(done) == 3
        errors = sorted(type(task.exception()).__name__ for task in done)
        assert errors == ["QueueFullError", "QueueTimeoutError", "QueueTimeoutError"]
        assert any(isinstance(task.exception(), QueueTimeoutError) for task in done)
        a.release.set()
        (await running).close()


async def test_the_breaker_opens_and_lets_a_probe_through() -> None:
    async with (
        OpenAIServer() as a,
        routed(provider("o", a.url + "/v1"), model("m", {"provider": "o"}, retries={"max_attempts": 1})) as (
            router,
            built,
        ),
    ):
        a.usual = "500"
        for _ in range(5):
            assert (await router.send(call(built))).status == 500
        with pytest.raises(NoTargetError) as caught:
            await router.send(call(built))
        assert (caught.value.status, len(a.seen)) == (503, 5)
        a.usual = "ok"
        router.fleet.places["provider:o"].replicas[0].breaker.recovered(time.monotonic())
        assert (await router.send(call(built))).status == 200
        assert router.status()[0].replicas[0].breaker == "closed"


async def test_swapping_the_table_drains_and_keeps() -> None:
    async with (
        OpenAIServer("a") as a,
        OpenAIServer("b") as b,
        routed(pool("p", a.url), model("m", {"pool": "p"})) as (router, built),
    ):
        kept = router.fleet.places["pool:p"].replicas[0]
        a.usual = "held"
        running = asyncio.create_task(router.send(call(built)))
        await until(lambda: a.active == 1)
        grown = table(pool("p", a.url, b.url), model("m", {"pool": "p"}))
        await router.apply(grown)
        assert router.fleet.places["pool:p"].replicas[0] is kept
        swapped = table(pool("q", b.url), model("m", {"pool": "q"}))
        await router.apply(swapped)
        assert (await router.send(call(swapped))).target == "q/r0"
        late = asyncio.create_task(router.send(call(built)))
        await until(lambda: a.active == 1)
        a.release.set()
        answer = await running
        assert answer.status == 200
        answer.close()
        (await late).close()


async def test_a_workflow_upstream_behind_a_unix_socket(tmp_path: Any) -> None:
    server = OpenAIServer("w")
    path = str(tmp_path / "c.sock")
    server._tasks = set()
    listener = await asyncio.start_unix_server(server._accept, path)
    async with (
        listener,
        routed(provider("w", f"unix:{path}:/internal/v1"), model("m", {"provider": "w"})) as (router, built),
    ):
        answer = await router.send(call(built))
        assert answer.status == 200
        answer.close()
        assert server.seen[0].path == "/internal/v1/chat/completions"


async def test_a_session_stays_with_its_target_and_weights_share_the_rest() -> None:
    async with OpenAIServer("a") as a, OpenAIServer("b") as b:
        targets = ({"provider": "pa", "weight": 30}, {"provider": "pb", "weight": 10})
        resources = [provider("pa", a.url + "/v1"), provider("pb", b.url + "/v1"), model("m", *targets)]
        async with routed(*resources) as (router, built):
            for session in ("s1", "s2", "s3"):
                chosen = set()
                for _ in range(5):
                    answer = await router.send(call(built, session=session))
                    chosen.add(answer.target)
                    answer.close()
                assert len(chosen) == 1
        route = built.resolve("m")
        firsts = [ordered(route, f"session-{number}", lambda: 0.5)[0].place for number in range(2_000)]
        assert 0.7 < firsts.count("provider:pa") / 2_000 < 0.8


async def test_a_shared_beginning_returns_to_the_replica_that_has_it() -> None:
    async with (
        OpenAIServer("a") as a,
        OpenAIServer("b") as b,
        routed(pool("p", a.url, b.url), model("m", {"pool": "p"})) as (router, built),
    ):
        prompts = {name: name * 3_000 for name in "xyz"}
        homes: dict[str, set[str]] = {name: set() for name in prompts}
        for _ in range(4):
            for name, text in prompts.items():
                answer = await router.send(call(built, prefix_text=text, input_tokens=750))
                homes[name].add(answer.target)
                answer.close()
        assert all(len(seen) == 1 for seen in homes.values())
        assert len(set.union(*homes.values())) == 2
        answer = await router.send(call(built, prefix_text=prompts["x"], input_tokens=750))
        assert answer.explanation["reason"] == "cached_prefix"
        assert answer.explanation["candidates"][0]["cached_tokens"] > 500
        answer.close()
        other = await router.send(call(built, tenant="u", prefix_text=prompts["x"], input_tokens=750))
        assert other.explanation["candidates"][0]["cached_tokens"] == 0, "tenants share no index"
        other.close()


async def test_a_cooling_target_is_passed_over() -> None:
    async with OpenAIServer("a") as a, OpenAIServer("b") as b:
        targets = ({"provider": "pa"}, {"provider": "pb", "weight": 0})
        resources = [provider("pa", a.url + "/v1"), provider("pb", b.url + "/v1"), model("m", *targets)]
        async with routed(*resources) as (router, built):
            a.usual = "429long"
            (await router.send(call(built))).close()
            answer = await router.send(call(built))
            answer.close()
            assert (answer.target, len(answer.attempts), len(a.seen)) == ("pb", 1, 1)
            assert answer.explanation["passed_over"] == [{"target": "provider:pa", "reason": "cooling"}]


async def test_a_waiting_call_goes_on_when_a_breaker_lets_a_probe_through() -> None:
    async with (
        OpenAIServer() as a,
        routed(
            pool("p", a.url, concurrency_per_replica=1),
            model("m", {"pool": "p"}, retries={"max_attempts": 1}),
        ) as (router, built),
    ):
        place = router.fleet.places["pool:p"]
        a.script.append("held")
        running = asyncio.create_task(router.send(call(built)))
        await until(lambda: a.active == 1)
        waiting = asyncio.create_task(router.send(call(built)))
        await until(lambda: place.queue.waiting == 1)
        for _ in range(5):
            place.failed(place.replicas[0], unreachable=False)
        assert place.replicas[0].breaker.state(time.monotonic()) == "open"
        a.release.set()
        (await running).close()
        answer = await asyncio.wait_for(waiting, 10)
        assert answer.status == 200
        answer.close()


async def test_a_refused_body_and_an_endless_one_are_bounded() -> None:
    async with (
        OpenAIServer() as a,
        routed(pool("p", a.url), model("m", {"pool": "p"}, retries={"max_attempts": 1}), body_limit=10) as (
            router,
            built,
        ),
    ):
        with pytest.raises(UpstreamError) as caught:
            await router.send(call(built))
        assert caught.value.code == "upstream_response_too_large"
        assert in_flight(router) == 0
