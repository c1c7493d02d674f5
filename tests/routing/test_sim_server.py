"""A simulated replica over HTTP: the dialect, the metrics, misbehaviour, cancellation; and the process itself."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from airi.http.client import ClientOptions, HttpPool, Response
from airi.http.errors import HttpClientError, Truncated
from airi.http.server import serve
from routing.sim.app import Replica

FAST = 20.0


class Sim:
    """A replica in this process, and a client to it."""

    def __init__(self, replica: Replica, pool: HttpPool) -> None:
        self.replica = replica
        self.pool = pool

    async def send(self, method: bytes, path: bytes, body: Any = None, **headers: str) -> Response:
        named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        data = json.dumps(body).encode() if body is not None else b""
        return await self.pool.send(method, path, named, data, first_byte_ms=5000, idle_ms=5000)

    async def post(self, path: bytes, body: Any, **headers: str) -> tuple[int, Any]:
        response = await self.send(b"POST", path, body, **headers)
        return response.status, json.loads(await response.read(1 << 24))

    async def chat(self, content: str = "Hello", status: int = 200, sim: Any = None, **more: Any) -> Any:
        body = {"model": "sim/small", "messages": [{"role": "user", "content": content}], **more}
        headers = {} if sim is None else {"x_sim": sim if isinstance(sim, str) else json.dumps(sim)}
        got, answer = await self.post(b"/v1/chat/completions", body, **headers)
        assert got == status, answer
        return answer

    async def stream(self, path: bytes = b"/v1/chat/completions", sim: Any = None, **more: Any) -> list[Any]:
        body = {
            "model": "sim/small",
            "messages": [{"role": "user", "content": "Hello"}],
            "stream": True,
            **more,
        }
        response = await self.send(b"POST", path, body, **({} if sim is None else {"x_sim": json.dumps(sim)}))
        assert response.status == 200
        assert response.header(b"content-type") == b"text/event-stream; charset=utf-8"
        text = (await response.read(1 << 24)).decode()
        events = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
        return [event if event == "[DONE]" else json.loads(event) for event in events]

    async def get(self, path: bytes) -> bytes:
        return await (await self.send(b"GET", path)).read(1 << 24)

    async def metric(self, name: str, model: str = "sim/small") -> float:
        for line in (await self.get(b"/metrics")).decode().splitlines():
            if line.startswith(name + "{") and f'model_name="{model}"' in line:
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"there is no {name}")


@pytest.fixture
async def sim() -> AsyncIterator[Sim]:
    replica = Replica("t", ["sim/small", "sim/large", "sim/embed"], speed=FAST)
    server = await serve(replica.handle, host="127.0.0.1", port=0)
    pool = HttpPool(f"http://127.0.0.1:{server.port}", options=ClientOptions(max_connections=512))
    yield Sim(replica, pool)
    pool.abort()
    await server.close()


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def joined(events: list[Any], index: int = 0) -> str:
    return "".join(
        [
            choice["delta"].get("content") or ""
            for event in events
            if event != "[DONE]"
            for choice in event["choices"]
            if choice["index"] == index
        ]
    )


async def test_stream_and_whole_say_the_same(sim: Sim) -> None:
    whole = await sim.chat(seed=3, n=2)
    events = await sim.stream(seed=3, n=2, stream_options={"include_usage": True})
    assert events[-1] == "[DONE]"
    usage = events[-2]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert all(event["usage"] is None for event in events[:-2])
    for index in (0, 1):
        assert joined(events, index) == whole["choices"][index]["message"]["content"]
        own = [c for e in events[:-2] for c in e["choices"] if c["index"] == index]
        assert own[0]["delta"] == {"role": "assistant", "content": ""}
        assert own[-1]["finish_reason"] == "stop"
        assert own[-1]["delta"] == {}
        assert all(c["finish_reason"] is None for c in own[:-1])
    assert whole["choices"][0]["message"]["content"] != whole["choices"][1]["message"]["content"]
    assert {e["object"] for e in events[:-1]} == {"chat.completion.chunk"}
    assert len({e["id"] for e in events[:-1]}) == 1
    assert whole["object"] == "chat.completion"


async def test_it_says_that_it_is_simulated(sim: Sim) -> None:
    answer = await sim.chat()
    assert answer["system_fingerprint"] == "airi-sim"
    assert "simulated" in answer["choices"][0]["message"]["content"]
    for path in (b"/v1/models", b"/health", b"/control"):
        assert (await sim.send(b"GET", path)).header(b"x-airi-simulated") == b"true"
    events = await sim.stream()
    assert all(e["system_fingerprint"] == "airi-sim" for e in events[:-1])
    assert "usage" not in events[0]


async def test_usage_counts_cached_tokens(sim: Sim) -> None:
    long = "A long and careful question about storage. " * 30
    first = (await sim.chat(long))["usage"]
    second = (await sim.chat(long))["usage"]
    assert first["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["prompt_tokens_details"]["cached_tokens"] >= first["prompt_tokens"] - 32
    assert first["total_tokens"] == first["prompt_tokens"] + first["completion_tokens"]
    assert (
        await sim.metric("vllm:prefix_cache_hits_total") == second["prompt_tokens_details"]["cached_tokens"]
    )
    turn = [
        {"role": "user", "content": long},
        {"role": "assistant", "content": (await sim.chat(long))["choices"][0]["message"]["content"]},
    ]
    following = await sim.post(
        b"/v1/chat/completions",
        {"model": "sim/small", "messages": [*turn, {"role": "user", "content": "And then?"}]},
    )
    assert following[1]["usage"]["prompt_tokens_details"]["cached_tokens"] > first["prompt_tokens"], (
        "the answer is cached too"
    )


async def test_tool_calls_stream_in_openais_form(sim: Sim) -> None:
    tools = [
        {"type": "function", "function": {"name": f"tool_{n}", "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}}}
        for n in ("alpha", "beta")
    ]  # fmt: skip
    events = await sim.stream(messages=[{"role": "user", "content": "use alpha and beta"}], tools=tools)
    calls: dict[int, dict[str, str]] = {}
    for event in events[:-1]:
        for delta in event["choices"][0]["delta"].get("tool_calls", ()):
            call = calls.setdefault(delta["index"], {"arguments": ""})
            if "id" in delta:
                call |= {"id": delta["id"], "name": delta["function"]["name"]}
                assert delta["type"] == "function"
            call["arguments"] += delta["function"]["arguments"]
    assert [call["name"] for call in calls.values()] == ["tool_alpha", "tool_beta"]
    assert all(json.loads(call["arguments"]) == {"query": "use alpha and beta"} for call in calls.values())
    assert events[-2]["choices"][0]["finish_reason"] == "tool_calls"


async def test_completions(sim: Sim) -> None:
    status, answer = await sim.post(
        b"/v1/completions", {"model": "sim/small", "prompt": ["a", "b"], "max_tokens": 4}
    )
    assert status == 200
    assert answer["object"] == "text_completion"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert answer["usage"]["completion_tokens"] == 8
    events = await sim.stream(b"/v1/completions", prompt=[1, 2, 3], sim={"text": "one two"})
    assert "".join([e["choices"][0]["text"] for e in events[:-1]]) == "one two"
    assert events[-1] == "[DONE]"


async def test_embeddings(sim: Sim) -> None:
    _, plain = await sim.post(
        b"/v1/embeddings", {"model": "sim/embed", "input": ["a b", "c"], "dimensions": 8}
    )
    _, packed = await sim.post(
        b"/v1/embeddings",
        {"model": "sim/embed", "input": "a b", "dimensions": 8, "encoding_format": "base64"},
    )
    vector = plain["data"][0]["embedding"]
    assert sum([x * x for x in vector]) == pytest.approx(1)
    assert struct.unpack("<8f", base64.b64decode(packed["data"][0]["embedding"])) == pytest.approx(vector)
    assert [d["index"] for d in plain["data"]] == [0, 1]
    assert plain["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    status, refused = await sim.post(b"/v1/embeddings", {"model": "sim/small", "input": "a"})
    assert (status, refused["error"]["param"]) == (400, "model")


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        (b"/v1/chat/completions", {"model": "gpt", "messages": [{}]}, 404, "model_not_found"),
        (b"/v1/chat/completions", {"messages": [{}]}, 404, "model_not_found"),
        (b"/v1/chat/completions", {"model": "sim/small"}, 400, "invalid_request"),
        (b"/v1/chat/completions", {"model": "sim/small", "messages": []}, 400, "invalid_request"),
        (b"/v1/chat/completions", {"model": "sim/small", "messages": [{}], "n": 9999}, 400, "invalid_request"),
        (b"/v1/chat/completions", [1], 400, "invalid_request"),
        (b"/v1/completions", {"model": "sim/small", "prompt": {}}, 400, "invalid_request"),
        (b"/v1/embeddings", {"model": "sim/embed", "input": "a", "dimensions": 0}, 400, "invalid_request"),
        (b"/v1/nothing", {}, 404, "unknown_url"),
        (b"/v1/chat/completions", {"model": "sim/small", "messages": [{"role": "user", "content": "a " * 40_000}]}, 400, "context_length_exceeded"),
    ],
)  # fmt: skip
async def test_refusals_are_openais_in_form(sim: Sim, path: bytes, body: Any, status: int, code: str) -> None:
    got, answer = await sim.post(path, body)
    assert (got, answer["error"]["code"]) == (status, code)
    assert set(answer["error"]) == {"message", "type", "param", "code"}


async def test_failures_on_request(sim: Sim) -> None:
    refused = await sim.send(
        b"POST",
        b"/v1/chat/completions",
        {"model": "sim/small", "messages": [{"role": "user", "content": "x"}]},
        x_sim="status=429; retry_after=7",
    )
    assert (refused.status, refused.header(b"retry-after")) == (429, b"7")
    await refused.read(1 << 20)
    await sim.chat(status=500, sim="error_rate=1")
    await sim.chat(status=200, sim="error_rate=0; status=503")
    before = time.monotonic()
    await sim.chat(sim="latency_ms=150")
    assert time.monotonic() - before >= 0.15
    await sim.chat(status=503, metadata={"sim": "status=503"})
    assert (await sim.chat(status=400, sim="explode=1"))["error"]["message"].startswith(
        "x-sim: there is no behaviour"
    )


async def test_control_counts_matches_and_releases(sim: Sim) -> None:
    await sim.post(b"/control", {"model": "sim/small", "next": 2, "status": 503})
    assert (await sim.post(b"/v1/chat/completions", {"model": "sim/large", "messages": [{"role": "user"}]}))[
        0
    ] == 200
    await sim.chat(status=503)
    await sim.chat(status=503)
    await sim.chat(status=200)
    await sim.post(b"/control", {"text": "scripted"})
    assert (await sim.chat())["choices"][0]["message"]["content"] == "scripted"
    assert json.loads(await sim.get(b"/control"))["rules"] == [
        {"model": None, "next": None, "text": "scripted"}
    ]
    await sim.post(b"/control", {"clear": True, "health": False})
    assert (await sim.send(b"GET", b"/health")).status == 503
    await sim.post(b"/control", {"health": True})
    assert (await sim.send(b"GET", b"/health")).status == 200
    state = json.loads(await sim.get(b"/control"))
    assert state["served"] == 3
    assert state["rules"] == []


async def test_streams_break_where_they_are_told_to(sim: Sim) -> None:
    for whole in (False, True):
        body = {"model": "sim/small", "messages": [{"role": "user", "content": "x"}], "stream": not whole}
        with pytest.raises(HttpClientError if whole else Truncated):
            await sim.post(b"/v1/chat/completions", body, x_sim="disconnect_after=3")
    engine = sim.replica._models["sim/small"].engine
    await until(lambda: engine.running == 0)
    assert engine.counters.aborted_sequences == 1, "what nobody will read is not computed"
    script = {"text": "one two three four five", "end_after": 3}
    assert joined(await sim.stream(sim=script)) == "one two three"
    events = await sim.stream(sim=script)
    assert "[DONE]" not in events
    assert all(choice["finish_reason"] is None for event in events for choice in event["choices"])
    done = await sim.stream(sim={"no_done": True})
    assert done[-1]["choices"][0]["finish_reason"] == "stop"
    assert (await sim.stream(sim={"no_usage": True}, stream_options={"include_usage": True}))[-2]["choices"]


async def test_lies_and_overruns(sim: Sim) -> None:
    usage = (await sim.chat(sim={"lie_usage": {"completion_tokens": 1}}))["usage"]
    assert usage["completion_tokens"] == 1
    assert usage["total_tokens"] == usage["prompt_tokens"] + 1
    assert (await sim.chat(sim={"lie_usage": 0}))["usage"]["total_tokens"] == 0
    over = await sim.chat(sim={"ignore_max_tokens": True, "tokens": 30}, max_tokens=5)
    assert over["usage"]["completion_tokens"] == 30
    assert (await sim.chat(sim={"tokens": 30}, max_tokens=5))["choices"][0]["finish_reason"] == "length"


async def test_text_comes_in_the_sizes_given(sim: Sim) -> None:
    text = "mail me at a@b.example ünïcode 🎉 end"
    events = await sim.stream(sim={"text": text, "chunks": [3, 1, 5]})
    pieces = [e["choices"][0]["delta"]["content"] for e in events[1:-2]]
    assert "".join(pieces) == text
    assert [len(piece) for piece in pieces[:3]] == [3, 1, 5]
    assert {len(piece) for piece in pieces[3:-1]} == {5}


async def test_stalled_streams_go_on_when_released(sim: Sim) -> None:
    body = {"model": "sim/small", "messages": [{"role": "user", "content": "x"}], "stream": True}
    response = await sim.send(
        b"POST", b"/v1/chat/completions", body, x_sim='{"stall_after": 2, "text": "a b c d"}'
    )
    received = b""
    while received.count(b"content") < 3:
        block = await response.next_block()
        assert block is not None
        received += block
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await asyncio.shield(asyncio.sleep(10))
    assert b"[DONE]" not in received
    await sim.post(b"/control", {"release": True})
    assert (await response.read(1 << 20)).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_the_engine_at_once(sim: Sim, stream: bool) -> None:
    engine = sim.replica._models["sim/small"].engine
    body = {"model": "sim/small", "messages": [{"role": "user", "content": "x"}], "stream": stream}
    sending = asyncio.ensure_future(sim.send(b"POST", b"/v1/chat/completions", body, x_sim="tokens=20000"))
    await until(lambda: engine.running == 1)
    assert await sim.metric("vllm:num_requests_running") == 1
    assert await sim.metric("vllm:kv_cache_usage_perc") > 0
    if stream:
        (await sending).close()
    else:
        sending.cancel()
    await until(lambda: engine.running == 0)
    assert await sim.metric("vllm:num_requests_running") == 0
    assert engine.blocks.used == 0
    assert engine.counters.aborted_sequences == 1


async def test_metrics_carry_vllms_names(sim: Sim) -> None:
    await sim.stream()
    text = (await sim.get(b"/metrics")).decode()
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "prefix_cache_queries_total",
        "prefix_cache_hits_total",
        "num_preemptions_total",
        "time_to_first_token_seconds_bucket",
        "inter_token_latency_seconds_sum",
        "request_queue_time_seconds_count",
        "lora_requests_info",
    ):
        assert f"\nvllm:{name}{{" in text, name
    assert 'block_size="16",num_gpu_blocks="8192"' in text
    assert await sim.metric("vllm:time_to_first_token_seconds_count") == 1
    assert text.count("# TYPE vllm:num_requests_running gauge") == 1


async def test_many_streams_at_once(sim: Sim) -> None:
    results = await asyncio.gather(*[sim.stream(seed=n, sim={"tokens": 40}) for n in range(150)])
    assert all(events[-1] == "[DONE]" and len(events) == 43 for events in results)
    assert await sim.metric("vllm:num_requests_waiting") == 0


async def test_the_process_starts_quickly_stays_small_and_drains() -> None:
    read, write = os.pipe()
    environment = {**os.environ, "AIRI_READY_FD": str(write), "AIRI_SIM_SPEED": "50"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "routing.sim", "--port", "0", "--name", "p",
        stdout=asyncio.subprocess.PIPE, env=environment, pass_fds=(write,), cwd=Path(__file__).parents[2],
    )  # fmt: skip
    os.close(write)
    try:
        assert process.stdout is not None
        port = int(await asyncio.wait_for(process.stdout.readline(), 20))
        assert os.read(read, 6) == b"READY\n"
        pool = HttpPool(f"http://127.0.0.1:{port}")
        sim = Sim(None, pool)  # type: ignore[arg-type]
        assert len(await sim.stream(sim={"tokens": 20})) == 23
        status = Path(f"/proc/{process.pid}/status")
        if status.exists():
            line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
            assert int(line.split()[1]) < 45_000, line
        stalled = asyncio.ensure_future(sim.chat(sim="latency_ms=300"))
        await asyncio.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert (await stalled)["object"] == "chat.completion", "what runs is finished"
        assert await asyncio.wait_for(process.wait(), 10) == 0
        pool.abort()
    finally:
        os.close(read)
        if process.returncode is None:
            process.kill()
            await process.wait()
