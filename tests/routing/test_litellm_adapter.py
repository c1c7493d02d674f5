"""The litellm adapter against a real server that speaks Anthropic's /v1/messages."""

from __future__ import annotations

import asyncio
import importlib.metadata
import re
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from routing.adapters.litellm_sdk import KNOWN_BAD_VERSIONS, check_version
from routing.adapters.translation import chunk_events, parameters
from routing.call import Call
from routing.errors import ContractError, KnownBadVersionError, UpstreamError
from routing.registry import RoutingTable
from routing.router import Router
from tests.routing.anthropic_server import AnthropicServer
from tests.routing.asking import Asking, made
from tests.routing.build import model, provider, table

# litellm's own types make pydantic warn when they are first used.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
MODELS = ["x", "429", "400", "401", "529", "silent", "stall", "drop", "cut", "repeats"]


class Rig(Asking):
    def __init__(self, server: AnthropicServer, router: Router, built: RoutingTable) -> None:
        self.server, self.router, self.built = server, router, built

    def call(
        self,
        kind: str = "x",
        *,
        stream: bool = False,
        drop_params: bool = False,
        max_tokens: int = 20,
        **body: Any,
    ) -> Call:
        route = self.built.resolve("drop" if drop_params else f"m-{kind}")
        return made(route, stream=stream, max_tokens=max_tokens, **body)


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    monkeypatch.setenv("ANT_KEY", "sk-ant-canary")
    async with AnthropicServer() as server:
        built = table(
            provider(
                "ant",
                server.url + "/v1",
                dialect="anthropic",
                api_key="${env:ANT_KEY}",
                headers={"anthropic-beta": "b1"},
            ),
            *[
                model(
                    f"m-{name}", {"provider": "ant", "model": f"claude-{name}"}, retries={"max_attempts": 1}
                )
                for name in MODELS
            ],
            model("drop", {"provider": "ant", "model": "claude-x"}, drop_params=True),
        )
        router = Router()
        await router.apply(built)
        yield Rig(server, router, built)
        await router.close()


async def test_a_plain_answer_is_translated(rig: Rig) -> None:
    status, body = await rig.whole(temperature=0.5, stop=["x"])
    assert status == 200
    assert body["choices"] == [
        {"finish_reason": "stop", "index": 0, "message": {"content": "hello", "role": "assistant"}}
    ]
    assert body["usage"]["prompt_tokens_details"] == {"cached_tokens": 4, "cache_creation_tokens": 2}
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (16, 3)
    seen = rig.server.seen[0]
    assert seen.path == "/v1/messages"
    assert seen.body["model"] == "claude-x"
    assert seen.headers["x-api-key"] == "sk-ant-canary"
    assert (seen.headers["anthropic-beta"], seen.headers["traceparent"], seen.headers["user-agent"]) == (
        "b1",
        "00-a-b-01",
        "airi",
    )
    assert "authorization" not in seen.headers
    assert "litellm.proxy.proxy_server" not in sys.modules


async def test_a_stream_is_translated_with_usage_and_done(rig: Rig) -> None:
    chunks = await rig.stream()
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"])
    assert text == "hello you"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks if chunk["choices"]][-1] == "stop"
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] == 4
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert sum("usage" in chunk for chunk in chunks) == 1


async def test_tool_calls_plain_and_streamed(rig: Rig) -> None:
    _, body = await rig.whole(tools=TOOLS)
    call = body["choices"][0]["message"]["tool_calls"][0]
    assert (call["id"], call["function"]["name"], msgspec.json.decode(call["function"]["arguments"])) == (
        "toolu_1",
        "weather",
        {"city": "Oslo"},
    )
    assert body["choices"][0]["finish_reason"] == "tool_calls"
    deltas = [
        part
        for chunk in await rig.stream(tools=TOOLS)
        for choice in chunk["choices"]
        for part in choice["delta"].get("tool_calls", [])
    ]
    assert deltas[0]["function"]["name"] == "weather"
    assert msgspec.json.decode("".join(part["function"].get("arguments") or "" for part in deltas)) == {
        "city": "Oslo"
    }
    assert {part["index"] for part in deltas} == {0}


async def test_many_equal_chunks_are_ordinary(rig: Rig) -> None:
    chunks = await rig.stream("repeats")
    assert (
        "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
        == "ha" * 150
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("name", "status", "message"),
    [("429", 429, "slow down"), ("400", 400, "max_tokens: too large"), ("529", 529, "Overloaded")],
)
async def test_errors_keep_status_words_and_retry_after(
    rig: Rig, name: str, status: int, message: str, stream: bool
) -> None:
    answer = await rig.router.send(rig.call(name, stream=stream))
    assert answer.status == status
    assert msgspec.json.decode(await answer.read())["error"]["message"] == message
    assert dict(answer.headers).get(b"retry-after") == (b"7" if status == 429 else None)
    assert rig.in_flight() == 0


async def test_the_providers_401_is_not_the_callers_and_holds_no_key(rig: Rig) -> None:
    with pytest.raises(UpstreamError) as caught:
        await rig.router.send(rig.call("401"))
    assert caught.value.code == "upstream_refused"
    assert "canary" not in caught.value.message + repr(caught.value.attempts)


@pytest.mark.parametrize("name", ["drop", "cut"])
async def test_a_stream_that_merely_stops_is_an_error(rig: Rig, name: str) -> None:
    with pytest.raises(UpstreamError) as caught:
        await rig.stream(name)
    assert caught.value.code == "upstream_truncated"
    assert rig.in_flight() == 0


@pytest.mark.parametrize(("name", "stream"), [("silent", False), ("silent", True), ("stall", True)])
async def test_cancelling_closes_the_upstream_at_once(rig: Rig, name: str, stream: bool) -> None:
    await rig.whole()  # litellm's import is not what is measured
    rig.server.disconnected.clear()
    task = asyncio.create_task(rig.stream(name) if stream else rig.whole(name))
    end = time.monotonic() + 5
    while len(rig.server.seen) < 2:
        assert time.monotonic() < end
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    task.cancel()
    cancelled = time.monotonic()
    await asyncio.wait_for(rig.server.disconnected.wait(), 2)
    assert time.monotonic() - cancelled < 0.5
    with pytest.raises(asyncio.CancelledError):
        await task
    assert rig.in_flight() == 0


@pytest.mark.parametrize(
    "field",
    [
        "api_base",
        "api_key",
        "custom_llm_provider",
        "callbacks",
        "mock_response",
        "extra_headers",
        "base_url",
        "timeout",
    ],
)
async def test_parameters_are_allow_listed(rig: Rig, field: str) -> None:
    with pytest.raises(ContractError) as caught:
        await rig.router.send(rig.call(**{field: "http://evil"}))
    assert caught.value.param == field
    assert not rig.server.seen
    assert field not in parameters(rig.call(drop_params=True, **{field: "x"}), "claude-x", ())


@pytest.mark.parametrize("url", ["http://169.254.169.254/latest", "file:///etc/passwd", "gs://bucket/x"])
async def test_the_gateway_fetches_nothing_for_a_caller(rig: Rig, url: str) -> None:
    content = [{"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(ContractError, match="data: URLs"):
        await rig.router.send(rig.call(messages=[{"role": "user", "content": content}]))
    assert not rig.server.seen


async def test_what_cannot_be_translated_is_a_400_that_blames_nobody(rig: Rig) -> None:
    with pytest.raises(ContractError) as caught:
        await rig.router.send(rig.call(messages=[{"role": "tool", "content": 7, "tool_call_id": []}]))
    assert caught.value.status == 400
    assert "Traceback" not in caught.value.message
    assert rig.router.fleet.places["provider:ant"].replicas[0].breaker._bad == 0
    assert rig.in_flight() == 0


async def test_other_routes_are_refused_by_name(rig: Rig) -> None:
    call = rig.call()
    call.path = "/responses"
    with pytest.raises(ContractError, match="/responses"):
        await rig.router.send(call)


def test_the_installed_release_is_not_a_known_bad_one() -> None:
    check_version(importlib.metadata.version("litellm"))
    for version in KNOWN_BAD_VERSIONS:
        with pytest.raises(KnownBadVersionError, match=version):
            check_version(version)


def _pin_faults(text: str) -> tuple[list[str], list[str]]:
    """Return the releases of litellm that requirements pin, and what is wrong with them."""
    pins, faults = [], []
    for line in text.splitlines():
        if re.match(r"litellm(?![\w.-])", line):
            pinned = re.fullmatch(r"litellm(?:\[\w+\])?==([\w.]+)( \\)?", line)
            if pinned is None:
                faults.append(f"{line}: not pinned exactly")
            else:
                pins.append(pinned[1])
                faults += [KNOWN_BAD_VERSIONS[pinned[1]]] if pinned[1] in KNOWN_BAD_VERSIONS else []
    return pins, faults


def test_the_pin_is_exact_hashed_and_not_known_to_be_bad() -> None:
    requirements = Path(__file__).parents[2] / "requirements"
    found = {
        str(path.relative_to(requirements)): _pin_faults(path.read_text())
        for path in [*requirements.rglob("*.in"), *requirements.rglob("*.txt")]
    }
    assert {name: faults for name, (_, faults) in found.items() if faults} == {}
    installed = importlib.metadata.version("litellm")
    assert found["base.in"][0] == found["base.txt"][0] == [installed]
    locked = (requirements / "base.txt").read_text().partition(f"litellm=={installed}")[2]
    assert locked.lstrip(" \\\n").startswith("--hash=sha256:")


@pytest.mark.parametrize("line", ["litellm==1.82.8 \\", "litellm[proxy]==1.82.7", "litellm>=1.80", "litellm"])
def test_a_bad_pin_would_be_seen(line: str) -> None:
    assert _pin_faults(f"aiohttp==3.14.5 \\\n{line}\n")[1]


def test_usage_without_a_wish_for_it_is_left_out() -> None:
    chunk = {"id": "1", "choices": [], "usage": {"prompt_tokens": 1}}
    assert chunk_events(chunk, with_usage=False) == b""
    assert b'"usage"' in chunk_events(chunk, with_usage=True)
