"""OpenAI's and Anthropic's SDKs through AIRI on a real vLLM: what a plain application does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import openai
import pytest
from anthropic import Anthropic
from anthropic.types import ToolUseBlock
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from pydantic import BaseModel, ConfigDict

from tests.engines.calls import record_of
from tests.support.live import Live
from tests.support.node_sdk import install_node_sdk, run_node

pytestmark = [pytest.mark.integration, pytest.mark.timeout(400)]
HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Say hello to the harbour."}]
ON = {"ignore_eos": True}
LONG = 4_000
"""More than a random model spends on white space."""
SCHEMA: dict[str, object] = {
    "type": "object",
    "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather.", "parameters": SCHEMA, "strict": True},
}


class Trip(BaseModel):
    model_config = ConfigDict(extra="forbid")
    city: Literal["Paris", "Rome"]
    days: Literal[1, 2, 3]
    by_train: bool


def test_chat(client: OpenAI, live: Live) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="vllm/tiny", messages=HELLO, max_tokens=24, extra_body=ON
    )
    completion = raw.parse()
    assert completion.choices[0].message.content
    assert completion.choices[0].finish_reason == "length"
    assert completion.usage is not None
    assert completion.usage.completion_tokens == 24
    record = record_of(live, raw.headers["x-airi-trace-id"])
    assert record["target"] in ("both/a", "both/b")
    assert record["usage_source"] == "upstream"
    assert (record["input_tokens"], record["output_tokens"]) == (completion.usage.prompt_tokens, 24)
    assert record["cost_usd_micros"] > 0


def test_fields_that_only_the_engine_knows_pass(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="vllm/tiny", messages=HELLO, max_tokens=6, n=2, logprobs=True, top_logprobs=2, seed=7,
        extra_body={**ON, "top_k": 5, "repetition_penalty": 1.1},
    )  # fmt: skip
    assert [choice.index for choice in answer.choices] == [0, 1]
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [len(token.top_logprobs) for token in logprobs.content] == [2] * 6


def test_streams_tell_their_usage_to_who_asks(client: OpenAI) -> None:
    with client.chat.completions.create(
        model="vllm/tiny", messages=HELLO, max_tokens=24, stream=True, extra_body=ON,
        stream_options={"include_usage": True},
    ) as stream:  # fmt: skip
        chunks = list(stream)
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 24
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_streams_are_accounted_when_nobody_asks(client: OpenAI, live: Live) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="vllm/tiny", messages=HELLO, max_tokens=24, stream=True, extra_body=ON
    )
    with raw.parse() as stream:
        chunks = list(stream)
    assert all(chunk.choices for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)
    record = record_of(live, raw.headers["x-airi-trace-id"])
    assert (record["output_tokens"], record["usage_source"]) == (24, "upstream")
    assert record["ttft_us"] > 0


def test_the_helper_for_streams(client: OpenAI) -> None:
    # A random model ends by itself only when it may say nothing else.
    only = {"structured_outputs": {"choice": ["Good morning, harbour."]}}
    with client.chat.completions.stream(model="vllm/tiny", messages=HELLO, extra_body=only) as helper:
        kinds = {event.type for event in helper}
        final = helper.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds
    assert final.choices[0].message.content == "Good morning, harbour."


@pytest.mark.parametrize("forced", [True, False], ids=["named", "required"])
def test_tools(client: OpenAI, *, forced: bool) -> None:
    choice: object = {"type": "function", "function": {"name": "get_weather"}} if forced else "required"
    called = client.chat.completions.create(
        model="vllm/tiny", messages=HELLO, tools=[WEATHER], max_tokens=LONG, tool_choice=choice, parallel_tool_calls=False, seed=4,  # type: ignore[call-overload]
    )  # fmt: skip
    calls = called.choices[0].message.tool_calls
    assert json.loads(calls[0].function.arguments)["city"] in ("Paris", "Rome")
    answered = client.chat.completions.create(
        model="vllm/tiny", max_tokens=8, tools=[WEATHER],
        messages=[*HELLO, called.choices[0].message.to_dict(), {"role": "tool", "tool_call_id": calls[0].id, "content": "Sunny."}],
    )  # fmt: skip
    assert answered.choices
    with client.chat.completions.stream(
        model="vllm/tiny", messages=HELLO, tools=[WEATHER], max_tokens=LONG, tool_choice=choice, parallel_tool_calls=False, seed=4,  # type: ignore[arg-type]
    ) as stream:  # fmt: skip
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert isinstance(done[0].parsed_arguments, dict)
    assert done[0].parsed_arguments["city"] in ("Paris", "Rome")


def test_structured_outputs_parse(client: OpenAI) -> None:
    parsed = client.chat.completions.parse(
        model="vllm/tiny", messages=HELLO, response_format=Trip, max_tokens=200
    )
    assert isinstance(parsed.choices[0].message.parsed, Trip)
    with client.chat.completions.stream(
        model="vllm/tiny", messages=HELLO, response_format=Trip, max_tokens=200
    ) as stream:
        for _ in stream:
            pass
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Trip)


def test_responses(client: OpenAI) -> None:
    first = client.responses.create(model="vllm/tiny", input="My name is Ann.", max_output_tokens=24)
    assert first.usage is not None
    assert first.usage.output_tokens <= 24
    second = client.responses.create(
        model="vllm/tiny", input="And now?", previous_response_id=first.id, max_output_tokens=24
    )
    assert second.usage is not None
    assert second.usage.input_tokens > first.usage.input_tokens
    with client.responses.stream(model="vllm/tiny", input="To Rome", text_format=Trip) as stream:
        kinds = [event.type for event in stream]
        assert isinstance(stream.get_final_response().output_parsed, Trip)
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"


def test_completions(client: OpenAI) -> None:
    answer = client.completions.create(model="vllm/tiny", prompt="Once", max_tokens=8, extra_body=ON)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 8


def test_embeddings(client: OpenAI, live: Live) -> None:
    raw = client.embeddings.with_raw_response.create(model="vllm/embed", input=["a cat", "a dog"])
    answer = raw.parse()  # the SDK has asked for base64 and decodes it
    assert [len(item.embedding) for item in answer.data] == [64, 64]
    plain = client.embeddings.create(model="vllm/embed", input=["a cat", "a dog"], encoding_format="float")
    assert plain.data[0].embedding == pytest.approx(answer.data[0].embedding, abs=1e-4)
    assert plain.data[0].embedding != pytest.approx(plain.data[1].embedding, abs=1e-4)
    assert record_of(live, raw.headers["x-airi-trace-id"])["input_tokens"] == answer.usage.prompt_tokens


def test_what_the_engine_refuses_is_the_sdks_error(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="vllm/tiny", messages=HELLO, extra_body={"min_p": 7})
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="vllm/nothing", messages=HELLO)


@pytest.fixture
def claude(live: Live) -> Iterator[Anthropic]:
    with Anthropic(api_key=live.key, base_url=live.base, max_retries=0) as found:
        yield found


def test_anthropics_sdk(claude: Anthropic) -> None:
    message = claude.messages.create(
        model="vllm/tiny", max_tokens=16, messages=[{"role": "user", "content": "Hello"}], system="Be brief."
    )
    assert message.content[0].type == "text"
    assert message.usage.input_tokens > 0
    with claude.messages.stream(
        model="vllm/tiny", max_tokens=16, messages=[{"role": "user", "content": "Hello"}]
    ) as stream:
        text = "".join(stream.text_stream)
        assert stream.get_final_message().usage.output_tokens <= 16
    assert text
    called = claude.messages.create(
        model="vllm/tiny", max_tokens=100, messages=[{"role": "user", "content": "Weather?"}],
        tools=[{"name": "get_weather", "input_schema": SCHEMA, "strict": True}],
        tool_choice={"type": "tool", "name": "get_weather"},
    )  # fmt: skip
    use = called.content[0]
    assert isinstance(use, ToolUseBlock)
    assert use.name == "get_weather"


NODE = """
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ maxRetries: 0 });
const messages = [{ role: "user", content: "Say hello." }];
const Trip = z.object({ city: z.enum(["Paris", "Rome"]), by_train: z.boolean() });
const model = "vllm/tiny";
const found = {};
const chat = await client.chat.completions.create({ model, messages, max_tokens: 8, ignore_eos: true });
found.tokens = chat.usage.completion_tokens;
let usage = null;
for await (const chunk of await client.chat.completions.create({
  model, messages, max_tokens: 8, ignore_eos: true, stream: true, stream_options: { include_usage: true } })) usage = chunk.usage ?? usage;
found.streamed = usage.completion_tokens;
const parsed = await client.chat.completions.parse({
  model, messages, max_tokens: 100, response_format: zodResponseFormat(Trip, "trip") });
found.parsed = typeof parsed.choices[0].message.parsed.by_train;
const vectors = await client.embeddings.create({ model: "vllm/embed", input: ["a", "b"] });
found.vectors = vectors.data.map((item) => item.embedding.length);
console.log(JSON.stringify(found));
"""


def test_the_node_sdk(live: Live, tmp_path: Path) -> None:
    found = run_node(install_node_sdk(tmp_path), NODE, key=live.key, base_url=f"{live.base}/v1")
    assert found == {"tokens": 8, "streamed": 8, "parsed": "boolean", "vectors": [64, 64]}
