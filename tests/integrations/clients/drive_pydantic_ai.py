"""pydantic-ai against AIRI: its chat model and its Responses model."""

from collections.abc import Awaitable, Callable

from checks import BASE_URL, KEY, MODEL, QUESTION, REPORT, UNKNOWN_MODEL, WRONG_KEY, city_of, refusal, run
from openai import AsyncOpenAI
from pydantic import BaseModel
from pydantic_ai import Agent, ModelHTTPError, NativeOutput, ToolOutput
from pydantic_ai.messages import ToolCallPart, ToolReturnPart
from pydantic_ai.models import Model
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

MODELS = {"chat": OpenAIChatModel, "responses": OpenAIResponsesModel}


class Place(BaseModel):
    """A city."""

    city: str
    inhabitants: int


def model_of(kind: str, *, key: str = KEY, name: str = MODEL) -> Model:
    client = AsyncOpenAI(base_url=BASE_URL, api_key=key, max_retries=0)
    return MODELS[kind](name, provider=OpenAIProvider(openai_client=client))


def with_weather(kind: str) -> Agent:
    agent = Agent(model_of(kind))

    @agent.tool_plain
    def weather(city: str) -> str:
        """Tell the weather in a city."""
        return city_of(city)

    return agent


async def plain(kind: str) -> None:
    result = await Agent(model_of(kind), instructions="Be kind.").run("Hello")
    assert result.output
    assert result.usage.input_tokens > 0
    assert result.usage.output_tokens > 0


async def streamed(kind: str) -> None:
    async with Agent(model_of(kind)).run_stream("Hello") as result:
        deltas = [delta async for delta in result.stream_text(delta=True, debounce_by=None)]
        whole = await result.get_output()
    assert len(deltas) > 1
    assert "".join(deltas) == whole


async def tools(kind: str) -> None:
    result = await with_weather(kind).run(QUESTION)
    assert REPORT in result.output, result.output
    parts = [part for message in result.all_messages() for part in message.parts]
    assert [part.args_as_dict() for part in parts if isinstance(part, ToolCallPart)] == [{"city": "Oslo"}]
    assert [part.content for part in parts if isinstance(part, ToolReturnPart)] == [REPORT]
    assert result.usage.requests == 2


async def tools_streamed(kind: str) -> None:
    async with with_weather(kind).run_stream(QUESTION) as result:
        assert REPORT in await result.get_output()


async def structured(kind: str) -> None:
    for form in (ToolOutput, NativeOutput):
        agent = Agent(model_of(kind), output_type=form(Place))
        place = (await agent.run("Oslo has 700000 inhabitants")).output
        assert isinstance(place, Place), form
        assert place.city


async def continued(kind: str) -> None:
    agent = Agent(model_of(kind))
    first = await agent.run("Hello")
    second = await agent.run("And now?", message_history=first.all_messages())
    assert second.usage.input_tokens > first.usage.input_tokens, "the earlier turn was there"


async def wrong_key(kind: str) -> None:
    with refusal(ModelHTTPError) as caught:
        await Agent(model_of(kind, key=WRONG_KEY)).run("Hello")
    assert caught[0].status_code == 401
    assert "invalid_api_key" in str(caught[0].body)


async def unknown_model(kind: str) -> None:
    with refusal(ModelHTTPError) as caught:
        await Agent(model_of(kind, name=UNKNOWN_MODEL)).run("Hello")
    assert caught[0].status_code == 404
    assert "model_not_found" in str(caught[0].body)


CHECKS = (plain, streamed, tools, tools_streamed, structured, continued, wrong_key, unknown_model)


def bound(check: Callable[[str], Awaitable[None]], kind: str) -> Callable[[], Awaitable[None]]:
    return lambda: check(kind)


run({f"{check.__name__}[{kind}]": bound(check, kind) for kind in MODELS for check in CHECKS})
