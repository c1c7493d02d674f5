"""Anthropic's Python SDK, unchanged but for its address, against a whole tree on OpenAI-dialect models."""

from __future__ import annotations

import json
from collections.abc import Iterator

import anthropic
import pytest
from anthropic import Anthropic, AsyncAnthropic
from anthropic.types import Message, MessageParam, ToolParam, ToolUseBlock

from tests.gateway.door_world import Door
from tests.gateway.upstreams import USAGE, delta, finish
from tests.support.live import Live

pytestmark = pytest.mark.integration
HELLO: list[MessageParam] = [{"role": "user", "content": "Say hello."}]
WEATHER: ToolParam = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture
def client(live: Live) -> Iterator[Anthropic]:
    with Anthropic(api_key=live.key, base_url=live.base, max_retries=0) as found:
        yield found


def test_messages(client: Anthropic) -> None:
    message = client.messages.create(
        model="fast",
        max_tokens=20,
        messages=HELLO,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        metadata={"user_id": "ann"},
        extra_body={"temperature": 0.2, "top_k": 5},
    )
    assert message.content[0].type == "text"
    assert message.stop_reason == "max_tokens"
    assert message.usage.output_tokens == 20
    assert message._request_id is not None
    assert message._request_id.startswith("req_")


def test_streams(client: Anthropic) -> None:
    with client.messages.stream(model="fast", max_tokens=20, messages=HELLO) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert final.content[0].type == "text"
    assert final.content[0].text == text
    assert final.usage.output_tokens == 20
    assert final.usage.input_tokens > 0
    with client.messages.create(model="fast", max_tokens=5, messages=HELLO, stream=True) as raw:
        assert [event.type for event in raw][-1] == "message_stop"


def test_tools(client: Anthropic) -> None:
    asked: list[MessageParam] = [{"role": "user", "content": "How is the weather in Paris?"}]
    for stream in (False, True):
        if stream:
            with client.messages.stream(
                model="fast",
                max_tokens=100,
                messages=asked,
                tools=[WEATHER],
                tool_choice={"type": "tool", "name": "get_weather"},
            ) as events:
                called: Message = events.get_final_message()
        else:
            called = client.messages.create(
                model="fast", max_tokens=100, messages=asked, tools=[WEATHER], tool_choice={"type": "any"}
            )
        use = called.content[0]
        assert isinstance(use, ToolUseBlock)
        assert use.input == {"city": "Paris"}
        assert called.stop_reason == "tool_use"
        answered = client.messages.create(
            model="fast",
            max_tokens=100,
            tools=[WEATHER],
            messages=[
                *asked,
                {"role": "assistant", "content": called.content},
                {
                    "role": "user",
                    "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "Sunny."}],
                },
            ],
        )
        assert answered.content[0].type == "text"
        assert "Sunny." in answered.content[0].text


def test_tokens_are_counted(client: Anthropic) -> None:
    few = client.messages.count_tokens(model="fast", messages=HELLO)
    more = client.messages.count_tokens(model="fast", messages=HELLO, system="Be brief.", tools=[WEATHER])
    assert 0 < few.input_tokens < more.input_tokens
    assert more.model_dump()["estimated"] is True


def test_thinking(door: Door) -> None:
    door.recorder.answer = lambda _: [
        delta(role="assistant", reasoning="Hm, "),
        delta(reasoning="yes."),
        delta(content="Yes."),
        finish("stop"),
        USAGE,
        b"[DONE]",
    ]
    with (
        Anthropic(api_key=door.live.key, base_url=door.live.base, max_retries=0) as client,
        client.messages.stream(
            model="rec/echo",
            max_tokens=5_000,
            messages=HELLO,
            thinking={"type": "enabled", "budget_tokens": 1_024},
        ) as stream,
    ):
        thoughts = [event.thinking for event in stream if event.type == "thinking"]
        final = stream.get_final_message()
    assert thoughts == ["Hm, ", "yes."]
    assert [block.type for block in final.content] == ["thinking", "text"]
    assert door.recorder.last["reasoning_effort"] == "low"


def test_errors_are_the_sdks_own(client: Anthropic, live: Live, door: Door) -> None:
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(model="no-such-model", max_tokens=5, messages=HELLO)
    with pytest.raises(anthropic.BadRequestError, match=r"max_tokens"):
        client.messages.create(model="fast", max_tokens=0, messages=HELLO)
    with (
        Anthropic(api_key="airi_nobody_1", base_url=live.base, max_retries=0) as stranger,
        pytest.raises(anthropic.AuthenticationError),
    ):
        stranger.messages.create(model="fast", max_tokens=5, messages=HELLO)
    failing = {"status": 429, "retry_after": 0, "message": "slow down"}
    with pytest.raises(anthropic.RateLimitError):
        client.messages.create(
            model="fast", max_tokens=5, messages=HELLO, extra_body={"metadata": {"sim": json.dumps(failing)}}
        )
    door.recorder.answer = lambda _: [delta(content="Y")]
    with pytest.raises(anthropic.APIStatusError, match="terminal event"):
        list(client.messages.create(model="rec/echo", max_tokens=5, messages=HELLO, stream=True))


async def test_async_with_a_bearer_token(live: Live) -> None:
    async with AsyncAnthropic(auth_token=live.key, base_url=live.base, max_retries=0) as client:
        message = await client.messages.create(model="fast", max_tokens=5, messages=HELLO)
        assert message.content[0].type == "text"
        async with client.messages.stream(model="fast", max_tokens=5, messages=HELLO) as stream:
            assert await stream.get_final_text()
