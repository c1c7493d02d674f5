"""OpenAI's Python SDK, unchanged but for its address, against a whole tree on the simulated pool."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from openai.types.responses import FunctionToolParam, ResponseFunctionToolCall
from pydantic import BaseModel

from tests.gateway.door_world import Door
from tests.gateway.upstreams import ANSWER, USAGE, delta, finish
from tests.support.live import Live

pytestmark = pytest.mark.integration
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello."}]
SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": SCHEMA,
        "strict": True,
    },
}
WEATHER_ITEM: FunctionToolParam = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather of a city.",
    "parameters": SCHEMA,
    "strict": True,
}


class Trip(BaseModel):
    city: str
    days: int
    by_train: bool


@pytest.fixture
def client(live: Live) -> Iterator[OpenAI]:
    with OpenAI(api_key=live.key, base_url=f"{live.base}/v1", max_retries=0) as found:
        yield found


def test_chat(client: OpenAI) -> None:
    answer = client.chat.completions.with_raw_response.create(model="fast", messages=HELLO, max_tokens=20)
    completion = answer.parse()
    assert completion.choices[0].message.content
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 20
    assert answer.headers["x-request-id"] == completion._request_id
    several = client.chat.completions.create(model="fast", messages=HELLO, max_tokens=5, n=3)
    assert [choice.index for choice in several.choices] == [0, 1, 2]


def test_chat_streams(client: OpenAI) -> None:
    with client.chat.completions.create(
        model="fast", messages=HELLO, max_tokens=20, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 20
    with client.chat.completions.stream(model="fast", messages=HELLO) as helper:
        kinds = {event.type for event in helper}
        final = helper.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content


def test_chat_parses_structured_outputs(client: OpenAI) -> None:
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Three days in Rome by train"}]
    parsed = client.chat.completions.parse(model="fast", messages=messages, response_format=Trip)
    assert isinstance(parsed.choices[0].message.parsed, Trip)
    with client.chat.completions.stream(model="fast", messages=messages, response_format=Trip) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Trip)


def test_chat_calls_tools_and_takes_their_results(client: OpenAI) -> None:
    asked: list[ChatCompletionMessageParam] = [{"role": "user", "content": "How is the weather in Paris?"}]
    called = client.chat.completions.create(
        model="fast", messages=asked, tools=[WEATHER], tool_choice="required"
    )
    choice = called.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.tool_calls is not None
    call = choice.message.tool_calls[0]
    assert call.type == "function"
    assert "city" in json.loads(call.function.arguments)
    answered = client.chat.completions.create(
        model="fast",
        tools=[WEATHER],
        messages=[
            *asked,
            choice.message.to_dict(),  # type: ignore[list-item]  # as the SDK's own examples do
            {"role": "tool", "tool_call_id": call.id, "content": "Sunny."},
        ],
    )
    assert "Sunny." in (answered.choices[0].message.content or "")
    with client.chat.completions.stream(
        model="fast", messages=asked, tools=[WEATHER], tool_choice="required"
    ) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert done[0].parsed_arguments == {"city": "Paris"}


def test_responses(client: OpenAI) -> None:
    first = client.responses.create(model="fast", input="My name is Ann.", instructions="Be brief.")
    assert first.output_text
    assert first.status == "completed"
    assert first.usage is not None
    assert first.usage.input_tokens > 0
    second = client.responses.create(model="fast", input="And now?", previous_response_id=first.id)
    assert second.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    assert client.responses.retrieve(second.id).output_text == second.output_text
    items = list(client.responses.input_items.list(second.id))
    assert len(items) == 1
    counted = client.responses.input_tokens.count(model="fast", input="Hello there")
    assert counted.input_tokens > 0
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError):
        client.responses.cancel(second.id)
    cut = client.responses.create(model="fast", input="Tell me everything.", max_output_tokens=16)
    assert cut.status == "incomplete"
    assert cut.incomplete_details is not None
    assert cut.incomplete_details.reason == "max_output_tokens"


def test_responses_stream_parse_and_call_tools(client: OpenAI) -> None:
    with client.responses.stream(model="fast", input="Three days in Rome", text_format=Trip) as stream:
        kinds = [event.type for event in stream]
        assert isinstance(stream.get_final_response().output_parsed, Trip)
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert isinstance(
        client.responses.parse(model="fast", input="To Rome", text_format=Trip).output_parsed, Trip
    )
    called = client.responses.create(
        model="fast", input="The weather in Paris?", tools=[WEATHER_ITEM], tool_choice="required"
    )
    call = called.output[0]
    assert isinstance(call, ResponseFunctionToolCall)
    answered = client.responses.create(
        model="fast",
        tools=[WEATHER_ITEM],
        previous_response_id=called.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "Sunny."}],
    )
    assert "Sunny." in answered.output_text


def test_embeddings_models_and_moderations(client: OpenAI) -> None:
    # The SDK asks for base64 by itself and decodes it.
    answer = client.embeddings.create(model="embed", input=["a cat", "a dog"], dimensions=32)
    assert [len(item.embedding) for item in answer.data] == [32, 32]
    assert "fast" in {model.id for model in client.models.list()}
    assert client.models.retrieve("fast").id == "fast"
    assert client.models.retrieve("sim/small").id == "sim/small"  # sent as sim%2Fsmall
    judged = client.moderations.create(input="write to ann@example.com")
    assert judged.results[0].flagged
    assert client.completions.create(model="fast", prompt="Once", max_tokens=4).choices[0].text


def test_errors_are_the_sdks_own(client: OpenAI, live: Live) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="no-such-model", messages=HELLO)
    assert unknown.value.code == "model_not_found"
    assert unknown.value.request_id is not None
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="fast", messages=HELLO, temperature=9)
    assert wrong.value.param == "temperature"
    with (
        OpenAI(api_key="airi_nobody_1", base_url=f"{live.base}/v1", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()


def test_the_sdk_tries_again_and_gives_up_in_time(door: Door) -> None:
    failing = {"status": 503, "retry_after": 0}
    with OpenAI(api_key=door.live.key, base_url=f"{door.live.base}/v1", max_retries=1) as client:
        started = time.monotonic()
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(
                model="fast", messages=HELLO, metadata={"sim": json.dumps(failing)}, timeout=20
            )
        slow = {"latency_ms": 30_000}
        with pytest.raises(openai.APITimeoutError):
            client.with_options(timeout=0.3, max_retries=0).chat.completions.create(
                model="fast", messages=HELLO, metadata={"sim": json.dumps(slow)}
            )
        assert time.monotonic() - started < 20


def test_a_stream_that_breaks_raises(door: Door) -> None:
    door.recorder.answer = lambda _: [delta(content="Y"), delta(content="es")]
    with OpenAI(api_key=door.live.key, base_url=f"{door.live.base}/v1", max_retries=0) as client:
        with pytest.raises(openai.APIError, match="terminal event"):
            list(client.chat.completions.create(model="rec/echo", messages=HELLO, stream=True))
        events = list(client.responses.create(model="rec/echo", input="x", stream=True))
        assert events[-1].type == "response.failed"


def test_reasoning_reaches_both_apis(door: Door) -> None:
    door.recorder.answer = lambda _: [
        delta(role="assistant", reasoning_content="Hm."),
        delta(content="Yes."),
        finish("stop"),
        USAGE,
        b"[DONE]",
    ]
    with OpenAI(api_key=door.live.key, base_url=f"{door.live.base}/v1", max_retries=0) as client:
        with client.responses.stream(
            model="rec/echo", input="x", reasoning={"effort": "high"}, store=False
        ) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_response()
        assert door.recorder.last["reasoning_effort"] == "high"
        assert "response.reasoning_text.delta" in kinds
        assert [item.type for item in final.output] == ["reasoning", "message"]
        door.recorder.answer = lambda _: ANSWER
        again = client.responses.create(
            model="rec/echo", store=False,
            input=[{"role": "user", "content": "x"}, *(item.to_dict() for item in final.output), {"role": "user", "content": "y"}],  # type: ignore[list-item]
        )  # fmt: skip
        assert again.output_text == "Yes."
    assert [message["role"] for message in door.recorder.last["messages"]] == ["user", "assistant", "user"]


async def test_async(live: Live) -> None:
    async with AsyncOpenAI(api_key=live.key, base_url=f"{live.base}/v1", max_retries=0) as client:
        answer = await client.chat.completions.create(model="fast", messages=HELLO, max_tokens=5)
        assert answer.choices[0].message.content
        stream = await client.chat.completions.create(model="fast", messages=HELLO, max_tokens=5, stream=True)
        assert [chunk async for chunk in stream]
        async with client.responses.stream(model="fast", input="Hello", max_output_tokens=16) as events:
            assert [event.type async for event in events][-1] == "response.incomplete"
