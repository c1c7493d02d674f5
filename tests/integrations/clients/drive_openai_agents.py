"""The OpenAI Agents SDK against AIRI: its Responses model and its chat-completions model."""

from collections.abc import Awaitable, Callable

import openai
from checks import BASE_URL, KEY, MODEL, QUESTION, REPORT, UNKNOWN_MODEL, WRONG_KEY, city_of, refusal, run
from openai.types.responses import ResponseTextDeltaEvent
from pydantic import BaseModel

from agents import (
    Agent,
    Model,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    handoff,
    set_tracing_disabled,
)

set_tracing_disabled(True)
MODELS = {"responses": OpenAIResponsesModel, "chat": OpenAIChatCompletionsModel}


class Place(BaseModel):
    city: str
    inhabitants: int


@function_tool
def weather(city: str) -> str:
    """Tell the weather in a city."""
    return city_of(city)


def model_of(kind: str, *, key: str = KEY, name: str = MODEL) -> Model:
    client = openai.AsyncOpenAI(base_url=BASE_URL, api_key=key, max_retries=0)
    return MODELS[kind](model=name, openai_client=client)


async def plain(kind: str) -> None:
    result = await Runner.run(Agent(name="a", instructions="Be kind.", model=model_of(kind)), "Hello")
    assert result.final_output
    usage = result.context_wrapper.usage
    assert usage.requests == 1
    assert usage.input_tokens > 0
    assert usage.output_tokens > 0


async def streamed(kind: str) -> None:
    result = Runner.run_streamed(Agent(name="a", model=model_of(kind)), "Hello")
    deltas = [
        event.data.delta
        async for event in result.stream_events()
        if event.type == "raw_response_event" and isinstance(event.data, ResponseTextDeltaEvent)
    ]
    assert len(deltas) > 1
    assert "".join(deltas) == result.final_output


async def tools(kind: str) -> None:
    agent = Agent(name="a", model=model_of(kind), tools=[weather])
    result = await Runner.run(agent, QUESTION)
    assert REPORT in result.final_output, result.final_output
    assert result.context_wrapper.usage.requests == 2
    assert {item.type for item in result.new_items} >= {"tool_call_item", "tool_call_output_item"}


async def tools_streamed(kind: str) -> None:
    result = Runner.run_streamed(Agent(name="a", model=model_of(kind), tools=[weather]), QUESTION)
    names = [event.name async for event in result.stream_events() if event.type == "run_item_stream_event"]
    assert names[:2] == ["tool_called", "tool_output"], names
    assert REPORT in result.final_output


async def structured(kind: str) -> None:
    agent = Agent(name="a", model=model_of(kind), output_type=Place)
    place = (await Runner.run(agent, "Oslo has 700000 inhabitants")).final_output
    assert isinstance(place, Place)
    assert place.city


async def handed_on(kind: str) -> None:
    weatherman = Agent(name="weatherman", model=model_of(kind))
    first = Agent(name="first", model=model_of(kind), handoffs=[handoff(weatherman)])
    result = await Runner.run(first, f"Transfer to weatherman: {QUESTION}")
    assert result.last_agent.name == "weatherman"
    assert result.final_output


async def continued(kind: str) -> None:
    agent = Agent(name="a", model=model_of(kind))
    first = await Runner.run(agent, "Hello")
    if kind == "responses":
        second = await Runner.run(agent, "And now?", previous_response_id=first.last_response_id)
    else:
        second = await Runner.run(agent, [*first.to_input_list(), {"role": "user", "content": "And now?"}])
    assert second.final_output
    grown = second.context_wrapper.usage.input_tokens
    assert grown > first.context_wrapper.usage.input_tokens, "the earlier turn was there"


async def wrong_key(kind: str) -> None:
    with refusal(openai.AuthenticationError) as caught:
        await Runner.run(Agent(name="a", model=model_of(kind, key=WRONG_KEY)), "Hello")
    assert caught[0].status_code == 401
    assert caught[0].code == "invalid_api_key"


async def unknown_model(kind: str) -> None:
    with refusal(openai.NotFoundError) as caught:
        await Runner.run(Agent(name="a", model=model_of(kind, name=UNKNOWN_MODEL)), "Hello")
    assert caught[0].code == "model_not_found"


CHECKS = (plain, streamed, tools, tools_streamed, structured, handed_on, continued, wrong_key, unknown_model)


def bound(check: Callable[[str], Awaitable[None]], kind: str) -> Callable[[], Awaitable[None]]:
    return lambda: check(kind)


run({f"{check.__name__}[{kind}]": bound(check, kind) for kind in MODELS for check in CHECKS})
