"""The litellm adapter against real servers that speak Gemini's and Bedrock's wire formats and check what they are sent."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from urllib.parse import unquote

import httpx
import msgspec
import pytest

from routing.adapters.litellm_sdk import load
from routing.adapters.transport import STAND_IN
from routing.errors import ContractError, UpstreamError
from routing.payload import Payload
from tests.routing import bedrock_server
from tests.routing.dialect_world import ARN, World, dialect_world
from tests.routing.gemini_server import SIGNATURE, camel

# litellm's own types make pydantic warn when they are first used.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": PARAMETERS}}
IMAGE = "iVBORw0KGgo="


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    async with dialect_world(monkeypatch) as world:
        yield world


@pytest.fixture(params=["gemini", "bedrock"])
def wire(request: pytest.FixtureRequest, world: World) -> World:
    world.name = request.param
    return world


async def test_a_plain_answer_is_translated(wire: World) -> None:
    status, body = await wire.whole(
        messages=[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}],
        temperature=0.5,
        top_p=0.9,
        max_tokens=20,
        stop=["x"],
    )
    assert status == 200
    message = {"role": "assistant", "content": "hello"}
    assert body["choices"] == [{"index": 0, "finish_reason": "stop", "message": message}]
    assert set(body) == {"id", "object", "created", "model", "choices", "usage"}
    seen = wire.server.seen[0]
    if wire.name == "gemini":
        assert seen.path == "/v1beta/models/gemini-2.5-flash:generateContent"
        sent = camel(seen.body)
        assert sent["systemInstruction"] == {"parts": [{"text": "Be kind."}]}
        assert sent["contents"] == [{"role": "user", "parts": [{"text": "hi"}]}]
        config = {"temperature": 0.5, "topP": 0.9, "maxOutputTokens": 20, "stopSequences": ["x"]}
        assert sent["generationConfig"] == config
    else:
        assert seen.path == "/model/anthropic.claude-sonnet-4-5-20250929-v1%3A0/converse"
        assert seen.body == {
            "system": [{"text": "Be kind."}],
            "messages": [{"role": "user", "content": [{"text": "hi"}]}],
            "inferenceConfig": {"temperature": 0.5, "topP": 0.9, "maxTokens": 20, "stopSequences": ["x"]},
        }
    assert (seen.headers["user-agent"], seen.headers["traceparent"]) == ("airi", "00-a-b-01")
    assert "airi_caller" not in repr(seen)


async def test_usage_has_cached_tokens_plain_and_streamed(wire: World) -> None:
    _, body = await wire.whole()
    last = (await wire.stream())[-1]
    assert last["choices"] == []
    assert last["usage"] == body["usage"]
    prompt, completion = (16, 8) if wire.name == "gemini" else (16, 3)
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (prompt, completion)
    details = body["usage"]["prompt_tokens_details"]
    assert details["cached_tokens"] == 4
    if wire.name == "bedrock":
        assert details["cache_creation_tokens"] == 2
    else:
        assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 5}


async def test_usage_that_the_provider_did_not_tell_is_not_made_up(wire: World) -> None:
    chunks = await wire.stream("uncounted")
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == "stop"
    assert not any("usage" in chunk for chunk in chunks), "the gateway's own estimate is marked as one"


async def test_a_stream_is_translated_chunk_by_chunk(wire: World) -> None:
    chunks = await wire.stream()
    choices = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    assert [choice["delta"].get("content", "") for choice in choices] == ["hel", "lo", " you", ""]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    ends = {"gemini": ":streamGenerateContent?alt=sse", "bedrock": "/converse-stream"}
    assert wire.server.seen[0].path.endswith(ends[wire.name])


async def test_the_first_words_do_not_wait_for_the_next(wire: World) -> None:
    answer = await wire.router.send(wire.call("stall", stream=True))
    block = await asyncio.wait_for(answer.next_block(), 5)
    assert block is not None
    assert b'"hel"' in block
    answer.close()
    await asyncio.wait_for(wire.server.disconnected.wait(), 2)


async def test_a_tool_is_called_and_its_result_goes_back(wire: World) -> None:
    _, body = await wire.whole(tools=TOOLS, tool_choice="auto")
    choice = body["choices"][0]
    (made,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert set(made) == {"id", "type", "function"}
    assert made["function"]["name"] == "weather"
    assert json.loads(made["function"]["arguments"]) == {"city": "Oslo"}
    question = {"role": "user", "content": "weather?"}
    result = {"role": "tool", "tool_call_id": made["id"], "content": "rain"}
    _, after = await wire.whole(tools=TOOLS, messages=[question, choice["message"], result])
    assert after["choices"][0]["message"]["content"] == "It rains."
    sent = wire.server.seen[-1].body
    if wire.name == "gemini":
        contents = camel(sent)["contents"]
        assert [content["role"] for content in contents] == ["user", "model", "user"]
        assert contents[1]["parts"] == [
            {"functionCall": {"name": "weather", "args": {"city": "Oslo"}}, "thoughtSignature": SIGNATURE}
        ]
        assert contents[2]["parts"][0]["functionResponse"]["name"] == "weather"
        assert "rain" in json.dumps(contents[2]["parts"])
    else:
        use = {"toolUseId": "tooluse_1", "name": "weather", "input": {"city": "Oslo"}}
        assert sent["messages"][1]["content"] == [{"toolUse": use}]
        result = {"toolUseId": "tooluse_1", "content": [{"text": "rain"}]}
        assert sent["messages"][2]["content"] == [{"toolResult": result}]
        assert sent["toolConfig"]["tools"][0]["toolSpec"]["inputSchema"]["json"]["required"] == ["city"]


async def test_a_tool_call_is_streamed(wire: World) -> None:
    choices = [choice for chunk in await wire.stream(tools=TOOLS) for choice in chunk["choices"]]
    deltas = [part for choice in choices for part in choice["delta"].get("tool_calls", [])]
    assert deltas[0]["function"]["name"] == "weather"
    assert deltas[0]["id"]
    arguments = "".join(part["function"].get("arguments") or "" for part in deltas)
    assert json.loads(arguments) == {"city": "Oslo"}
    assert {part["index"] for part in deltas} == {0}
    assert all("provider_specific_fields" not in part for part in deltas)
    assert choices[-1]["finish_reason"] == "tool_calls"


async def test_an_image_goes_inline(wire: World) -> None:
    url = {"url": f"data:image/png;base64,{IMAGE}"}
    content = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": url}]
    status, _ = await wire.whole(messages=[{"role": "user", "content": content}])
    assert status == 200
    sent = wire.server.seen[-1].body
    if wire.name == "gemini":
        assert camel(sent)["contents"][0]["parts"][1] == {
            "inlineData": {"mimeType": "image/png", "data": IMAGE}
        }
    else:
        image = {"format": "png", "source": {"bytes": IMAGE}}
        assert sent["messages"][0]["content"][1] == {"image": image}


async def test_a_schema_is_kept_plain_and_streamed(wire: World) -> None:
    _, body = await wire.whole(response_format=SCHEMA)
    assert json.loads(body["choices"][0]["message"]["content"]) == {"city": "Oslo"}
    assert body["choices"][0]["finish_reason"] == "stop"
    sent = wire.server.seen[-1].body
    if wire.name == "gemini":
        config = camel(sent)["generationConfig"]
        assert config["responseMimeType"] == "application/json"
        assert config.get("responseJsonSchema", config.get("responseSchema"))["required"] == ["city"]
    else:
        held = sent["outputConfig"]["textFormat"]["structure"]["jsonSchema"]["schema"]
        assert json.loads(held)["required"] == ["city"]
    chunks = await wire.stream(response_format=SCHEMA)
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(choice["delta"].get("content", "") for choice in choices)
    assert json.loads(text) == {"city": "Oslo"}
    assert choices[-1]["finish_reason"] == "stop"


async def test_an_older_model_of_bedrock_is_given_the_schema_as_a_tool_unseen(world: World) -> None:
    _, body = await world.whole(alias="bedrock-old", response_format=SCHEMA)
    assert world.bedrock.seen[-1].body["toolConfig"]["toolChoice"] == {"tool": {"name": "json_tool_call"}}
    message = body["choices"][0]["message"]
    assert json.loads(message["content"]) == {"city": "Oslo"}
    assert "tool_calls" not in message
    chunks = await world.stream(alias="bedrock-old", response_format=SCHEMA)
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == "stop"


async def test_what_the_model_thought_is_apart_from_what_it_said(wire: World) -> None:
    _, body = await wire.whole("think")
    message = body["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "hello")
    deltas = [choice["delta"] for chunk in await wire.stream("think") for choice in chunk["choices"]]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm."
    assert "".join(delta.get("content", "") for delta in deltas) == "hello"


@pytest.mark.parametrize(("kind", "reason"), [("length", "length"), ("blocked", "content_filter")])
async def test_the_reason_of_an_end_is_told(wire: World, kind: str, reason: str) -> None:
    _, body = await wire.whole(kind)
    assert body["choices"][0]["finish_reason"] == reason
    chunks = await wire.stream(kind)
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"]][-1] == reason


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("kind", "status", "message"),
    [("429", 429, "slow down"), ("503", 503, ""), ("x", 400, "max_output_tokens: too large")],
)
async def test_errors_keep_status_words_and_retry_after(
    wire: World, kind: str, status: int, message: str, stream: bool
) -> None:
    limit = {"max_tokens": 70_000} if status == 400 else {}
    answer = await wire.router.send(wire.call(kind, stream=stream, **limit))
    assert answer.status == status
    words = msgspec.json.decode(await answer.read())["error"]["message"]
    assert message.removeprefix("max_output_tokens: ") in words
    assert "The upstream answered" not in words, "the provider's own words"
    assert dict(answer.headers).get(b"retry-after") == (b"7" if status == 429 else None)
    assert wire.in_flight() == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_a_refused_key_is_not_the_callers_fault_and_is_not_shown(wire: World, stream: bool) -> None:
    # Gemini says 400 of a wrong key, Bedrock 403; both repeat what they were sent.
    with pytest.raises(UpstreamError) as caught:
        await wire.router.send(wire.call("401", stream=stream))
    assert caught.value.code == "upstream_refused"
    shown = caught.value.message + repr(caught.value.attempts)
    assert "canary" not in shown.lower()


@pytest.mark.parametrize("kind", ["drop", "cut"])
async def test_a_stream_that_merely_stops_is_an_error(wire: World, kind: str) -> None:
    with pytest.raises(UpstreamError) as caught:
        await wire.stream(kind)
    assert caught.value.code == "upstream_truncated"
    assert wire.in_flight() == 0


async def test_half_a_frame_is_an_error(world: World) -> None:
    with pytest.raises(UpstreamError) as caught:
        await world.stream("half", alias="bedrock-half")
    assert caught.value.code == "upstream_truncated"


async def test_an_error_as_a_streams_first_event_can_still_be_retried(world: World) -> None:
    throttled = await world.router.send(world.call(alias="bedrock-throttled", stream=True))
    assert throttled.status == 429
    assert (await world.router.send(world.call(alias="bedrock-broken", stream=True))).status == 503
    with pytest.raises(UpstreamError) as caught:
        await world.router.send(world.call(alias="gemini-broken", stream=True))
    assert caught.value.code == "upstream_truncated"
    assert world.in_flight() == 0


@pytest.mark.parametrize(("kind", "stream"), [("silent", False), ("silent", True), ("stall", True)])
async def test_cancelling_closes_the_upstream_at_once(wire: World, kind: str, stream: bool) -> None:
    task = asyncio.create_task(wire.stream(kind) if stream else wire.whole(kind))
    end = time.monotonic() + 5
    while not wire.server.seen:
        assert time.monotonic() < end
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    task.cancel()
    cancelled = time.monotonic()
    await asyncio.wait_for(wire.server.disconnected.wait(), 2)
    assert time.monotonic() - cancelled < 0.5
    with pytest.raises(asyncio.CancelledError):
        await task
    assert wire.in_flight() == 0


@pytest.mark.parametrize("field", ["logit_bias", "api_base", "my_own"])
async def test_what_the_target_cannot_take_is_refused_by_name_or_dropped(wire: World, field: str) -> None:
    with pytest.raises(ContractError) as caught:
        await wire.router.send(wire.call(**{field: {"1": 2}}))
    assert (caught.value.status, caught.value.param) == (400, field)
    assert f"does not take '{field}'" in caught.value.message
    assert not wire.server.seen
    status, _ = await wire.whole("free", **{field: {"1": 2}})
    assert status == 200
    assert field not in repr(wire.server.seen[-1].body)


@pytest.mark.parametrize("url", ["https://example.com/a.png", "http://169.254.169.254/", "gs://bucket/x"])
async def test_nothing_is_fetched_for_a_caller(wire: World, url: str) -> None:
    content = [{"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(ContractError, match="data: URLs"):
        await wire.router.send(wire.call(messages=[{"role": "user", "content": content}]))
    assert not wire.server.seen


async def test_embeddings_go_through_our_client_too(wire: World) -> None:
    call = wire.call("vectors")
    call.path = "/embeddings"
    call.payload = Payload({"model": "m", "input": ["a", "b"]})
    answer = await wire.router.send(call)
    data = msgspec.json.decode(await answer.read())["data"]
    assert [item["embedding"] for item in data] == [[0.5, -1.0]] * 2
    seen = wire.server.seen[-1]
    assert (seen.headers["user-agent"], seen.headers["traceparent"]) == ("airi", "00-a-b-01")
    assert not any(name.startswith("_") for name in seen.body)


async def test_a_name_of_a_file_at_the_provider_is_not_looked_up(world: World) -> None:
    call = world.call(alias="gemini-vectors")
    call.path = "/embeddings"
    call.payload = Payload({"model": "m", "input": ["files/abc"]})
    with pytest.raises(ContractError):
        await world.router.send(call)
    assert not world.gemini.seen


async def test_bedrocks_own_keys_are_bearer_tokens(world: World) -> None:
    status, _ = await world.whole(alias="bedrock-key")
    assert status == 200
    assert world.bedrock.seen[-1].headers["authorization"] == f"Bearer {bedrock_server.BEARER}"


@pytest.mark.parametrize("stream", [False, True])
async def test_a_profile_of_bedrock_is_named_and_signed_as_one_part_of_the_path(
    world: World, stream: bool
) -> None:
    said = await (world.stream(alias="bedrock-arn") if stream else world.whole(alias="bedrock-arn"))
    assert "hel" in repr(said)
    name, _, route = world.bedrock.seen[-1].path.removeprefix("/model/").partition("/")
    assert (unquote(name), route) == (ARN, "converse-stream" if stream else "converse")


async def test_the_environments_keys_are_never_used(world: World) -> None:
    with pytest.raises(UpstreamError) as caught:
        await world.whole(alias="gemini-open")
    assert caught.value.code == "upstream_refused"
    assert "x-goog-api-key" not in world.gemini.seen[-1].headers
    await world.whole(alias="bedrock-x")
    assert "ambient" not in repr(world.bedrock.seen + world.gemini.seen).lower()
    assert STAND_IN not in repr(world.bedrock.seen + world.gemini.seen)


async def test_litellm_sends_nothing_outside_a_call() -> None:
    litellm = await asyncio.to_thread(load)
    for client in (litellm.module_level_aclient, litellm.AsyncHTTPHandler()):
        with pytest.raises(Exception, match="outside a call"):
            await client.get("http://127.0.0.1:9/")
    own = httpx.AsyncClient(transport=litellm.AsyncHTTPHandler._create_async_transport())
    with pytest.raises(httpx.ConnectError, match="outside a call"):
        await own.get("http://127.0.0.1:9/")
    for blocking in (litellm.module_level_client, litellm.HTTPHandler()):
        with pytest.raises(Exception, match="send nothing"):
            blocking.get("http://127.0.0.1:9/")
